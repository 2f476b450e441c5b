"""The science of the projects that are killed: small jobs in which everything random or kept has a part.

Every training step leaves a line in `seen-<rank>.jsonl`: which batch of the run it was, its rows, its loss to the bit.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanAbsoluteError

from ..engine import LightningModule

ROWS = 42


class Rows(Dataset[Any]):
    """Noise from the three global generators whenever a row is read."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        noise = torch.randn(4) * 0.1 + random.random() * 0.01 + float(np.random.rand()) * 0.01
        return noise + index / 20, torch.tensor([index / 10.0]), index


class Task(LightningModule):
    """Fit a line through noise.

    Args:
        job: `plain`, `workers`, `two_loaders` or `manual`.
        folder: Where the lines go.
    """

    monitor = "val_loss"

    def __init__(self, job: str = "plain", folder: str = ".") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.job, self.folder = job, Path(folder)
        self.automatic_optimization = job != "manual"
        self.error = MeanAbsoluteError()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.teacher = nn.Linear(4, 8).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Note what was seen; in manual mode, two optimizers take turns."""
        parts = batch if self.job == "two_loaders" else [batch]
        loss = sum((nn.functional.mse_loss(self.net(x), y) for x, y, _ in parts), torch.zeros(()))
        line = [self.trainer.total_batches, [rows.tolist() for _, _, rows in parts], loss.item().hex()]
        with (self.folder / f"seen-{self.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.error.update(self.net[0](parts[0][0])[:, :1].detach(), parts[0][1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_error", self.error, on_step=False, on_epoch=True)
        if not self.automatic_optimization:
            first, second = self.optimizers()
            self.manual_backward(loss)
            if batch_idx % 2:
                for optimizer in (first, second):
                    optimizer.step()
                    optimizer.zero_grad()
            for scheduler in self.lr_schedulers():
                scheduler.step()
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let the teacher follow, at the very moment at which checkpoints are written."""
        for slow, fast in zip(self.teacher.parameters(), self.net[0].parameters(), strict=True):
            slow.lerp_(fast.detach(), 0.3)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Adam with a schedule by step; for `manual`, one optimizer for each end of the net."""
        ends = [self.net[:2].parameters(), self.net[3].parameters()]
        parts = [self.parameters()] if self.automatic_optimization else ends
        optimizers = [torch.optim.Adam(part, 0.01) for part in parts]
        steps = 2 * int(self.trainer.estimated_stepping_batches)  # which makes the loaders before a position is known
        schedules = [torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=steps) for o in optimizers]
        return optimizers, [{"scheduler": schedule, "interval": "step"} for schedule in schedules]

    def train_dataloader(self) -> Any:
        """One loader, or two of which the shorter starts again within the epoch."""
        workers = 2 if self.job == "workers" else 0
        loader = DataLoader(Rows(), batch_size=3, shuffle=True, num_workers=workers)
        return [loader, DataLoader(Rows(), batch_size=8, shuffle=True)] if self.job == "two_loaders" else loader

    def val_dataloader(self) -> Any:
        """The rows in order, with their noise."""
        return DataLoader(Rows(), batch_size=16)
