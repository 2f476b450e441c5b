"""A small job whose validation metric follows a script, so that what callbacks decide is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import engine
import torch
from torch.utils.data import DataLoader, TensorDataset

BATCHES = 7


def rows(n: int = 4 * BATCHES, batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    """A loader of `n` rows `(x, y)`; 7 batches unless said otherwise."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=batch_size, **options)


class Scripted(engine.LightningModule):
    """Logs `val_loss` = the next of `values` at every validation, and `train_loss` in every step."""

    def __init__(self, values: Sequence[float] = (), lr: float = 0.05) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1)
        self.values = list(values)
        self.lr = lr
        self.validations = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        loss = torch.nn.functional.mse_loss(self(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("real_loss", torch.nn.functional.mse_loss(self(x), y))

    def on_validation_epoch_end(self) -> None:
        if self.values and not self.trainer.sanity_checking:
            self.log("val_loss", self.values[min(self.validations, len(self.values) - 1)])
            self.validations += 1

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def trainer(path: Path, *callbacks: Any, **options: Any) -> engine.Trainer:
    """A quiet Trainer on the CPU with these callbacks and no logger."""
    defaults: dict[str, Any] = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": any(callback.role == "checkpoint" for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(path),
    }
    return engine.Trainer(callbacks=list(callbacks), **{**defaults, **options})


def names(folder: Path) -> list[str]:
    """Files in a folder, by name."""
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
