"""The engine asks a user's module for documented names only: nothing in it was put there for a test of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine import Callback
from engine.callbacks import EarlyStopping, EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint, ModelSummary
from engine.legacy import OLD_HOOKS
from engine.loggers import CSVLogger

from tests.engine.toys import BoringModel, loader, quiet_trainer


class Watched(BoringModel):
    """Notes every attribute that it is asked for and does not have."""

    asked: set[str]

    def __getattr__(self, name: str) -> Any:
        type(self).asked.add(name)
        return super().__getattr__(name)


class ByHand(Watched):
    """The same under manual optimisation."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


@pytest.mark.parametrize("kind", [Watched, ByHand])
def test_no_undeclared_attribute_is_read(kind: type[Watched], tmp_path: Path) -> None:
    kind.asked = set()
    model = kind()
    callbacks = [
        *(ModelCheckpoint(monitor="val_loss"), EarlyStopping("val_loss"), LearningRateMonitor()),
        *(EMAWeightAveraging(), ModelSummary()),
    ]
    trainer = quiet_trainer(
        max_epochs=2, callbacks=callbacks, logger=CSVLogger(tmp_path), default_root_dir=tmp_path,
        enable_checkpointing=None, enable_model_summary=None,
    )  # fmt: skip
    trainer.fit(model, loader(), loader())
    trainer.test(model, loader(), verbose=False)
    trainer.predict(model, loader())
    known = {*OLD_HOOKS, *dir(Callback), "layer"}  # the layer is its own, and kept where torch keeps layers
    of_torch = {"_is_replica"}
    assert {name for name in kind.asked if name not in known} <= of_torch
