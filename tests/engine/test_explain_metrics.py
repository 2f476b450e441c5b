"""`trainer.explain_metrics()`: each metric with its origin, its reduction, its latest value and its readers."""

from __future__ import annotations

from typing import Any

import pytest
from torchmetrics import MeanMetric

from tests.engine.toys import BoringModel, loader, quiet_trainer


class Logs(BoringModel):
    """Logs in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.average = MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("largest", float(batch_idx), on_step=False, on_epoch=True, reduce_fx="max", logger=False)
        self.average(loss)
        self.log("average", self.average, on_step=False, on_epoch=True)
        return loss


def test_every_key_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(Logs(), loader(), loader(4))
    capsys.readouterr()
    trainer.explain_metrics()
    rows = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()]
    latest = {name: f"{float(value):.4g}" for name, value in trainer.callback_metrics.items()}
    assert rows == [
        ["metric", "logged in", "value", "latest", "goes to"],
        ["loss_step", "training_step", "of a step", latest["loss_step"], "callbacks, bar, loggers"],
        [
            "loss_epoch",
            "training_step",
            "mean, weighted by rows, of an epoch",
            latest["loss"],
            "callbacks, bar, loggers",
        ],
        ["largest", "training_step", "max, of an epoch", "2", "callbacks"],
        ["average", "training_step", "MeanMetric", latest["average"], "callbacks, loggers"],
        [
            "val_loss",
            "validation_step",
            "mean, weighted by rows, of an epoch",
            latest["val_loss"],
            "callbacks, loggers",
        ],
    ]


def test_before_any_run_there_is_nothing_to_explain() -> None:
    with pytest.raises(AttributeError, match="no metrics yet"):
        quiet_trainer().explain_metrics()
