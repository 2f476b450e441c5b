"""Small models and data that the tests share."""

from __future__ import annotations

from typing import Any

import torch
from engine import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


def tensors(rows: int = 32, features: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return inputs (rows, features) and targets (rows, 1) of a noisy linear problem."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=generator)
    return x, x.sum(1, keepdim=True) + 0.1 * torch.randn(rows, 1, generator=generator)


def dataset(rows: int = 32, features: int = 4, seed: int = 0) -> TensorDataset:
    """Return the problem as a data set."""
    return TensorDataset(*tensors(rows, features, seed))


def loader(
    rows: int = 12, batch_size: int = 4, shuffle: bool = False, seed: int = 0, **options: Any
) -> DataLoader[Any]:
    """Return a loader: by default three batches of four rows."""
    return DataLoader(dataset(rows, seed=seed), batch_size=batch_size, shuffle=shuffle, **options)


class Rows(Dataset[Tensor]):
    """The numbers from 0 to rows - 1, to see which row came when."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([float(index)])


class BoringModel(LightningModule):
    """A linear model that logs a loss in every stage."""

    def __init__(self, features: int = 4, lr: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(features, 1)
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def quiet_trainer(**options: Any) -> Trainer:
    """Return a Trainer that writes nothing and prints nothing."""
    settings: dict[str, Any] = {
        "max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return Trainer(**{**settings, **options})
