"""Checkpoints that are damaged, cannot be written or hold weights only: what is used instead, and what is said."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import Callback, Trainer
from engine.callbacks import EMAWeightAveraging, ModelCheckpoint, OnExceptionCheckpoint, StochasticWeightAveraging
from engine.callbacks._checkpoint_names import link
from engine.checkpoint_async import AsyncCheckpointIO
from engine.checkpoint_file import newest_intact, read
from engine.errors import CheckpointError, EngineWarning

from tests.engine.toys import BoringModel, loader


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False, "callbacks": list(callbacks),
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    return Trainer(**{**settings, **options})


def saver(folder: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, save_last=True, save_top_k=-1, **options)


def spoil(path: Path) -> None:
    """Flip a bit of a file and of no other name that it may have."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_a_damaged_last_is_reported_and_the_one_before_it_used(tmp_path: Path) -> None:
    trainer(tmp_path, saver(tmp_path)).fit(BoringModel(), loader())
    spoil(tmp_path / "last.ckpt")
    spoil(tmp_path / "epoch=1-step=6.ckpt")
    fitted = trainer(tmp_path, saver(tmp_path), max_epochs=3)
    with pytest.warns(EngineWarning, match=r"Passed over: .*last.ckpt is damaged"):
        fitted.fit(BoringModel(), loader(), ckpt_path="last")
    assert fitted.ckpt_path == str(tmp_path / "epoch=0-step=3.ckpt")
    assert fitted.global_step == 9


def test_without_any_whole_file_training_starts_anew_and_says_so(tmp_path: Path) -> None:
    trainer(tmp_path, saver(tmp_path), max_epochs=1).fit(BoringModel(), loader())
    for path in tmp_path.glob("*.ckpt"):
        spoil(path)
    fitted = trainer(tmp_path, saver(tmp_path), max_epochs=1)
    with pytest.warns(EngineWarning, match="no checkpoint was found"):
        fitted.fit(BoringModel(), loader(), ckpt_path="last")
    assert fitted.global_step == 3


def test_a_last_that_is_a_link_to_nothing_gives_way_to_the_files_beside_it(tmp_path: Path) -> None:
    trainer(tmp_path, saver(tmp_path), max_epochs=1).fit(BoringModel(), loader())
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "last.ckpt").symlink_to(tmp_path / "gone.ckpt")
    fitted = trainer(tmp_path, saver(tmp_path))
    fitted.fit(BoringModel(), loader(), ckpt_path="last")
    assert fitted.ckpt_path == str(tmp_path / "epoch=0-step=3.ckpt")


def test_a_run_killed_when_all_was_trained_keeps_the_weights_that_were_not_averaged(tmp_path: Path) -> None:
    def fit(epochs: int) -> BoringModel:
        model = BoringModel()
        averaging = StochasticWeightAveraging(0.05, swa_epoch_start=1)
        trainer(tmp_path, averaging, saver(tmp_path), max_epochs=epochs).fit(model, loader(), ckpt_path="last")
        return model

    with pytest.warns(EngineWarning, match="fresh start"):
        first = fit(3)
    last = torch.load(tmp_path / "last.ckpt")["state_dict"]
    assert not torch.equal(last["layer.weight"], first.layer.weight)
    assert torch.equal(fit(3).layer.weight, first.layer.weight)
    assert torch.equal(torch.load(tmp_path / "last.ckpt")["state_dict"]["layer.weight"], last["layer.weight"])


def test_files_and_folders_of_other_kinds_are_passed_over(tmp_path: Path) -> None:
    trainer(tmp_path, saver(tmp_path), max_epochs=1).fit(BoringModel(), loader())
    torch.jit.save(torch.jit.script(torch.nn.Identity()), str(tmp_path / "last-v1.ckpt"))
    (tmp_path / "last-v2.ckpt").mkdir()
    (tmp_path / "last-v3.ckpt").touch()
    (tmp_path / "last-v4.ckpt").symlink_to(tmp_path / "nothing")
    torch.save([1, 2], tmp_path / "last-v5.ckpt")
    fitted = trainer(tmp_path, saver(tmp_path))
    with pytest.warns(EngineWarning) as said:
        fitted.fit(BoringModel(), loader(), ckpt_path="last")
    assert fitted.ckpt_path == str(tmp_path / "last.ckpt")
    assert sum("Passed over" in str(warning.message) for warning in said) == 4


def test_a_link_that_cannot_be_renamed_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.ckpt").touch()

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "refused")

    monkeypatch.setattr(os, "replace", refuse)
    assert not link(str(tmp_path / "a.ckpt"), str(tmp_path / "last.ckpt"), symbolic=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_files_that_training_cannot_continue_from_are_passed_over(tmp_path: Path) -> None:
    fitted = trainer(tmp_path, saver(tmp_path))
    fitted.fit(BoringModel(), loader())
    fitted.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    with pytest.warns(EngineWarning, match="holds weights only"):
        assert newest_intact(tmp_path.glob("*.ckpt")) is not None
    assert newest_intact(tmp_path.glob("*.ckpt"), resumable=False) == tmp_path / "weights.ckpt"


class FullDisk:
    """`os.fsync` of a disk that is full from one call to another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: int, last: int) -> None:
        self.real, self.calls, self.first, self.last = os.fsync, 0, first, last
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor: int) -> None:
        self.calls += 1
        if self.first <= self.calls <= self.last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.real(descriptor)


@pytest.mark.parametrize("first", range(1, 9))
def test_training_outlives_a_full_disk_and_keeps_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, first: int
) -> None:
    FullDisk(monkeypatch, first, first + 1)
    kept = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    fitted = trainer(tmp_path, kept)
    with caplog.at_level(logging.ERROR):
        fitted.fit(BoringModel(), loader())
    assert fitted.global_step == 6
    assert "No space left" in caplog.text
    assert "the next trigger tries again" in caplog.text
    assert read(tmp_path / "last.ckpt")["global_step"] == 6
    assert read(kept.best_model_path)["global_step"] == 6
    for path in tmp_path.glob("*.ckpt"):
        read(path)
    assert not list(tmp_path.glob(".*partial"))


def test_a_disk_that_stays_full_ends_the_run_with_its_error_and_the_older_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(tmp_path, saver(tmp_path), max_epochs=1).fit(BoringModel(), loader())
    before = sorted(path.name for path in tmp_path.iterdir())
    FullDisk(monkeypatch, 1, 1_000)
    kept = ModelCheckpoint(tmp_path, save_last=True, save_top_k=1)
    fitted = trainer(tmp_path, kept)
    with pytest.raises(CheckpointError, match="Free space on this disk"):
        fitted.fit(BoringModel(), loader(), ckpt_path="last")
    assert fitted.global_step == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert read(tmp_path / "last.ckpt")["global_step"] == 3


def test_a_folder_that_vanishes_is_made_again(tmp_path: Path) -> None:
    class Vanish(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                for path in (tmp_path / "x").iterdir():
                    path.unlink()
                (tmp_path / "x").rmdir()

    trainer(tmp_path, Vanish(), saver(tmp_path / "x")).fit(BoringModel(), loader())
    assert read(tmp_path / "x" / "last.ckpt")["global_step"] == 6


def test_a_full_disk_in_the_background_comes_up_and_the_last_state_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    FullDisk(monkeypatch, 1, 1)
    kept = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    with caplog.at_level(logging.ERROR):
        trainer(tmp_path, kept, plugins=AsyncCheckpointIO()).fit(BoringModel(), loader())
    assert "No space left" in caplog.text
    assert read(tmp_path / "last.ckpt")["global_step"] == 6
    assert read(kept.best_model_path)["global_step"] == 6


def test_an_error_of_the_last_save_in_the_background_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDisk(monkeypatch, 1, 1_000)
    with pytest.raises(CheckpointError, match="No space left"):
        trainer(tmp_path, saver(tmp_path), plugins=AsyncCheckpointIO()).fit(BoringModel(), loader())


def test_what_cannot_be_pickled_is_raised_at_once(tmp_path: Path) -> None:
    class Unpicklable(BoringModel):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["own"] = lambda: None

    fitted = trainer(tmp_path, saver(tmp_path))
    with pytest.raises(CheckpointError, match="picklable"):
        fitted.fit(Unpicklable(), loader())
    assert fitted.global_step == 3


def test_fit_goes_on_unasked_from_what_an_exception_left(tmp_path: Path) -> None:
    class Fails(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.trainer.global_step == 4:
                raise RuntimeError("out of luck")
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="out of luck"):
        trainer(tmp_path, OnExceptionCheckpoint(tmp_path)).fit(Fails(), loader())
    net, fitted = BoringModel(), trainer(tmp_path, OnExceptionCheckpoint(tmp_path))
    seen = []
    net.on_train_batch_start = lambda batch, batch_idx: seen.append(batch_idx)  # type: ignore[method-assign, assignment]
    fitted.fit(net, loader())
    assert seen == [1, 2]
    assert fitted.global_step == 6
    assert not list(tmp_path.glob("*.ckpt"))


@pytest.mark.parametrize("parity", [None, "lightning"])
def test_weights_alone_are_the_averaged_ones(tmp_path: Path, parity: str | None) -> None:
    weights = {}
    for name, only in (("full", False), ("weights", True)):
        kept = ModelCheckpoint(tmp_path / name, save_weights_only=only, filename="x", every_n_epochs=1)
        trainer(tmp_path, EMAWeightAveraging(decay=0.5), kept, max_epochs=1, parity=parity).fit(BoringModel(), loader())
        weights[name] = read(tmp_path / name / "x.ckpt")
    averaged, raw = weights["full"]["state_dict"], weights["full"]["current_model_state"]
    expected = averaged if parity is None else raw
    assert not torch.equal(averaged["layer.weight"], raw["layer.weight"])
    assert torch.equal(weights["weights"]["state_dict"]["layer.weight"], expected["layer.weight"])
    assert "current_model_state" not in weights["weights"]
