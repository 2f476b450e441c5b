"""LambdaCallback: functions at hooks."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import engine
import pytest
from engine.callbacks import LambdaCallback

from tests.engine.callbacks.scripted import Scripted, rows, trainer


def test_functions_are_called_with_the_hooks_arguments(tmp_path: Path) -> None:
    seen: list[Any] = []
    callback = LambdaCallback(
        setup=lambda trainer, module, stage: seen.append(stage),
        on_train_batch_end=lambda trainer, module, outputs, batch, batch_idx: seen.append(batch_idx),
        on_train_epoch_end=lambda trainer, module: seen.append(trainer.current_epoch),
    )
    trainer(tmp_path, callback, max_epochs=1, limit_train_batches=2).fit(Scripted(), rows())
    assert seen == ["fit", 0, 1, 0]


def test_every_hook_of_a_callback_can_be_given() -> None:
    hooks = {name for name in vars(engine.Callback) if name.startswith("on_")} | {"setup", "teardown"}
    assert set(inspect.signature(LambdaCallback).parameters) == hooks


def test_a_hook_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"on_epoch_ends.* Did you mean `on_\w+`.* on_train_epoch_end,"):
        LambdaCallback(on_epoch_ends=print)
    with pytest.raises(TypeError):
        LambdaCallback(print)  # type: ignore[misc]
