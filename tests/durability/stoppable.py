"""A training to be stopped: python stoppable.py FOLDER [--hang-at BATCH] [--slow-save] [--slurm] [--crash-in PLACE].

Goes on with what it finds in FOLDER; ends with a digest of the final weights and of all rows seen, over all its lives.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from engine import Callback, LightningModule, Trainer, seed_everything
from engine.callbacks import ModelCheckpoint
from engine.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

logging.basicConfig(level=logging.INFO, format="%(message)s")
parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--hang-at", type=int)
parser.add_argument("--slow-save", action="store_true")
parser.add_argument("--slurm", action="store_true")
parser.add_argument("--crash-in")
options = parser.parse_args()


class Rows(Dataset[Any]):
    """Noisy rows; reading the 20th crashes when asked to."""

    reads = 0

    def __len__(self) -> int:
        return 18

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        self.reads += 1
        crash("loader", self.reads == 20)
        return torch.randn(4) + index / 10, torch.tensor([index / 5.0]), index


class Net(LightningModule):
    """Dropout and batch norm; notes the rows of each batch in a file."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        number = self.trainer.total_batches
        print(f"batch {number}")
        with (options.folder / "rows.jsonl").open("a") as file:
            file.write(json.dumps([number, batch[2].tolist()]) + "\n")
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        crash("step", number == 7)
        if number == options.hang_at:
            time.sleep(600)
        time.sleep(0.05)  # so that a signal comes in the middle of the run
        return loss

    def on_train_batch_end(self, *args: Any) -> None:
        crash("hook", self.trainer.total_batches == 7)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        crash("validation", not self.trainer.sanity_checking and self.trainer.current_epoch == 1)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)


class Tell(Logger):
    """Keeps what a run's end is told to be."""

    name, version = "tell", 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def finalize(self, status: str) -> None:
        tell(status=status)


class Watch(Callback):
    """Keeps what exception a run ends by; may take its time over a save."""

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        tell(exception=type(exception).__name__)
        if options.slow_save:
            print("saving")
            time.sleep(1.0)


def tell(**what: str) -> None:
    file = options.folder / "told.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**before, **what}))


def crash(place: str, is_time: bool) -> None:
    if options.crash_in == place and is_time:
        raise RuntimeError("out of luck")


options.folder.mkdir(parents=True, exist_ok=True)
seed_everything(3)
callbacks: list[Callback] = [Watch()]
if not options.slurm:
    callbacks.append(ModelCheckpoint(options.folder, save_last=True, every_n_train_steps=2))
trainer = Trainer(
    max_epochs=4, accelerator="cpu", devices=1, callbacks=callbacks, logger=Tell(), default_root_dir=options.folder,
    enable_checkpointing=not options.slurm, enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
net = Net()
loaders = DataLoader(Rows(), batch_size=4, shuffle=True), DataLoader(Rows(), batch_size=9)
trainer.fit(net, *loaders, ckpt_path=None if options.slurm else "last")
print(f"after fit, interrupted: {trainer.interrupted}")
rows = dict(json.loads(line) for line in (options.folder / "rows.jsonl").open())
digest = hashlib.sha256(repr(sorted(rows.items())).encode())
for tensor in net.state_dict().values():
    digest.update(tensor.numpy().tobytes())
print(digest.hexdigest())
