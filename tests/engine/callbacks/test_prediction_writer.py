"""BasePredictionWriter: what is handed over, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine.callbacks import BasePredictionWriter
from engine.errors import MisconfigurationException

from tests.engine.callbacks.scripted import Scripted, rows, trainer


class Predicting(Scripted):
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> torch.Tensor:
        return self(batch[0])


class Writer(BasePredictionWriter):
    def __init__(self, interval: Any) -> None:
        super().__init__(interval)
        self.batches: list[Any] = []
        self.epochs: list[Any] = []

    def write_on_batch_end(
        self, trainer: Any, pl_module: Any, prediction: Any, batch_indices: Any, batch: Any, batch_idx: int,
        dataloader_idx: int,
    ) -> None:  # fmt: skip
        self.batches.append((batch_idx, dataloader_idx, list(batch_indices), len(prediction)))

    def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        self.epochs.append((predictions, batch_indices))


def test_batches_come_with_the_rows_they_are_of(tmp_path: Path) -> None:
    writer = Writer("batch")
    returned = trainer(tmp_path, writer).predict(Predicting(), rows(6), return_predictions=False)
    assert writer.batches == [(0, 0, [0, 1, 2, 3], 4), (1, 0, [4, 5], 2)]
    assert writer.epochs == []
    assert not returned


def test_everything_comes_at_the_end(tmp_path: Path) -> None:
    writer = Writer("batch_and_epoch")
    trainer(tmp_path, writer).predict(Predicting(), rows(6))
    ((predictions, indices),) = writer.epochs
    assert [len(prediction) for prediction in predictions] == [4, 2]
    assert indices == [[[0, 1, 2, 3], [4, 5]]]
    assert len(writer.batches) == 2


def test_several_loaders_are_told_apart(tmp_path: Path) -> None:
    writer = Writer("epoch")
    trainer(tmp_path, writer).predict(Predicting(), [rows(4), rows(8)])
    ((predictions, indices),) = writer.epochs
    assert [len(of_loader) for of_loader in predictions] == [1, 2]
    assert indices == [[[0, 1, 2, 3]], [[0, 1, 2, 3], [4, 5, 6, 7]]]


@pytest.mark.parametrize(("interval", "method"), [("batch", "write_on_batch_end"), ("epoch", "write_on_epoch_end")])
def test_a_method_that_is_missing_is_named(tmp_path: Path, interval: Any, method: str) -> None:
    with pytest.raises(NotImplementedError, match=method):
        trainer(tmp_path, BasePredictionWriter(interval)).predict(Predicting(), rows(4))


def test_an_interval_that_does_not_exist() -> None:
    with pytest.raises(MisconfigurationException, match="Did you mean `epoch`"):
        BasePredictionWriter("epochs")  # type: ignore[arg-type]
