"""The data: handwritten digits, 8x8 grey pixels, 1797 real ones that ship inside scikit-learn.

Fill in: where the rows come from, how they are split, how a row becomes a tensor. Devices, ranks and workers'
seeds are the engine's; a loader's batch size, shuffling and workers are said here, once per loader.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ..engine import LightningDataModule


class DigitsData(LightningDataModule):
    """Train, validation and test loaders of `(images, labels)`, and a loader of unlabelled images to predict.

    Images: `(batch, 1, 8, 8)` float32 in 0..1. Labels: `(batch,)` int64 in 0..9.

    Args:
        batch_size: Rows per training batch; evaluation takes four times as many.
        num_workers: Processes that prepare batches; 0 is fastest for rows that are in memory already.
        split_seed: Decides which rows are held out: a fifth for validation, a fifth for the test.
    """

    def __init__(self, batch_size: int = 32, num_workers: int = 0, split_seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.split_seed = split_seed

    def prepare_data(self) -> None:
        """Download and unpack here: one process per machine runs this. What it assigns is not seen elsewhere."""

    def setup(self, stage: str) -> None:
        """Load and split: every process does, before it asks for a loader. `stage`: fit, validate, test or predict."""
        pixels, labels = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
        targets = torch.tensor(labels, dtype=torch.int64)
        rows = list(range(len(targets)))
        kept, test = train_test_split(rows, test_size=0.2, stratify=targets, random_state=self.split_seed)
        train, val = train_test_split(kept, test_size=0.25, stratify=targets[kept], random_state=self.split_seed)
        self.train_set = TensorDataset(images[train], targets[train])
        self.val_set = TensorDataset(images[val], targets[val])
        self.test_set = TensorDataset(images[test], targets[test])
        self.predict_set = images[test]

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the training rows, shuffled."""
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the rows that choose the best checkpoint."""
        return DataLoader(self.val_set, batch_size=4 * self.batch_size, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the rows that are looked at once, in the end."""
        return DataLoader(self.test_set, batch_size=4 * self.batch_size, num_workers=self.num_workers)

    def predict_dataloader(self) -> DataLoader[Tensor]:
        """Return rows without labels, in the order in which the predictions are written."""
        return DataLoader(self.predict_set, batch_size=4 * self.batch_size, num_workers=self.num_workers)  # type: ignore[arg-type]
