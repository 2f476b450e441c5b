"""OnExceptionCheckpoint: a file at an error, gone after success."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine.callbacks import OnExceptionCheckpoint
from engine.checkpoint_file import read
from engine.errors import MisconfigurationException

from tests.engine.callbacks.scripted import Scripted, names, rows, trainer


class Failing(Scripted):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == 3:
            raise RuntimeError("out of luck")
        return super().training_step(batch, batch_idx)


def test_an_error_leaves_a_file_from_which_training_goes_on(tmp_path: Path) -> None:
    saver = OnExceptionCheckpoint(tmp_path / "new" / "folder")
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer(tmp_path, saver).fit(Failing(), rows())
    assert read(saver.ckpt_path)["global_step"] == 3
    fitted = trainer(tmp_path, saver, max_epochs=1)
    fitted.fit(Scripted(), rows())
    assert fitted.ckpt_path == saver.ckpt_path
    assert fitted.global_step == 7
    assert names(tmp_path / "new" / "folder") == []


def test_an_error_before_training_keeps_the_older_file(tmp_path: Path) -> None:
    class Early(Scripted):
        def prepare_data(self) -> None:
            raise RuntimeError("early")

    (tmp_path / "on_exception.ckpt").write_text("of an earlier run")
    with pytest.raises(RuntimeError, match="early"):
        trainer(tmp_path, OnExceptionCheckpoint(tmp_path)).fit(Early(), rows())
    assert (tmp_path / "on_exception.ckpt").read_text() == "of an earlier run"


def test_other_calls_do_not_remove_it(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_text("of an earlier run")
    trainer(tmp_path, OnExceptionCheckpoint(tmp_path, "x")).validate(Scripted(), rows(), verbose=False)
    assert names(tmp_path) == ["x.ckpt"]


def test_a_name_is_needed() -> None:
    with pytest.raises(MisconfigurationException, match="empty"):
        OnExceptionCheckpoint(".", "")
