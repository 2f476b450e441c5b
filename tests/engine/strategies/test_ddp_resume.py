"""Two processes continue exactly, each with its own random numbers, gradients in progress and rows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import Callback, seed_everything
from engine.callbacks import ModelCheckpoint
from engine.checkpoint_file import read
from engine.errors import EngineWarning
from engine.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from tests.engine.test_resume import Augmented
from tests.engine.test_resume_data import Net
from tests.engine.toys import BoringModel, loader, quiet_trainer


class Noted(Net):
    """Writes down what each rank saw."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        torch.rand(self.global_rank)  # so that ranks draw apart
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def on_train_end(self) -> None:
        epochs = [row for row in self.trainer.history_rows if "loss" in row]
        told = {"seen": self.seen, "loss": [row["loss"] for row in epochs], "weights": self.net[0].weight.tolist()}
        Path(f"{self.path}-{self.global_rank}.json").write_text(json.dumps(told))


class Save(Callback):
    """A checkpoint after some batches: within an accumulation window, and at the epoch's end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.total_batches in (1, 3, 4, 6):
            trainer.save_checkpoint(self.folder / f"{trainer.total_batches}.ckpt")


def fit(path: Path, devices: int = 2, ckpt_path: Path | None = None, **options: Any) -> list[dict[str, Any]]:
    strategy: dict[str, Any] = {"strategy": DDPStrategy(start_method="fork")} if devices > 1 else {}
    trainer = quiet_trainer(max_epochs=2, devices=devices, accumulate_grad_batches=2, **strategy, **options)
    trainer.fit(Noted(path), DataLoader(Augmented(), batch_size=3, shuffle=True), ckpt_path=ckpt_path)
    return [json.loads(Path(f"{path}-{rank}.json").read_text()) for rank in range(devices)]


def test_each_process_continues_with_its_own_state(tmp_path: Path) -> None:
    seed_everything(1)
    whole = fit(tmp_path / "whole", callbacks=[Save(tmp_path)])
    assert len({json.dumps(told["seen"]) for told in whole}) == 2
    for batches in (1, 3, 4, 6):
        seed_everything(99)
        resumed = fit(tmp_path / "resumed", ckpt_path=tmp_path / f"{batches}.ckpt")
        for now, before in zip(resumed, whole, strict=True):
            assert now["seen"] == before["seen"][batches:], batches
            assert now["weights"] == before["weights"], batches
            assert now["loss"] == before["loss"][-len(now["loss"]) :], batches


def test_another_number_of_processes_is_named_as_not_exact(tmp_path: Path) -> None:
    fit(tmp_path / "whole", callbacks=[Save(tmp_path)])
    with pytest.warns(EngineWarning, match=r"written by 2 process\(es\) and training goes on with 1"):
        fit(tmp_path / "resumed", devices=1, ckpt_path=tmp_path / "3.ckpt")


class Drawing(BoringModel):
    """Notes what python's, numpy's and torch's generators give in its process."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_train_start(self) -> None:
        text = f"{random.random()} {np.random.rand()} {torch.rand(()).item()}"
        Path(f"{self.path}-{self.global_rank}").write_text(text)


def test_processes_that_the_engine_forks_draw_what_the_seed_says(tmp_path: Path) -> None:
    drawn = []
    for number in range(2):
        seed_everything(5)
        trainer = quiet_trainer(devices=2, strategy=DDPStrategy(start_method="fork"))
        trainer.fit(Drawing(tmp_path / str(number)), loader())
        drawn += [(tmp_path / f"{number}-{rank}").read_text() for rank in range(2)]
    assert len(set(drawn)) == 1


def test_a_full_disk_ends_no_training_of_several_processes(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where the folder should be")

    class Unblock(Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1 and trainer.is_global_zero:
                (tmp_path / "blocked").unlink()

    saver = ModelCheckpoint(tmp_path / "blocked", save_last=True)
    fit(tmp_path / "whole", callbacks=[Unblock(), saver], enable_checkpointing=True)
    assert read(tmp_path / "blocked" / "last.ckpt")["epoch"] == 1
