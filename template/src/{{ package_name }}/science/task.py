"""The task: what is learnt from a batch, what is measured, and with which optimizer.

Fill in, in this order: the parts (`__init__`), how data flows through them (`forward`), what happens with a batch in
each stage (the steps), and what updates the weights (`configure_optimizers`). The loop, devices, files and trackers
are the engine's: `self.log` is all that is said about a number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.classification import MulticlassAccuracy

from ..engine import LightningModule
from .model import DigitsNet

Batch = tuple[Tensor, Tensor]


class DigitsTask(LightningModule):
    """Classify images `(batch, 1, 8, 8)` float into the digits 0..9.

    The arguments are the hyper-parameters: each can be set under `task:` in the configuration, by this name.

    Args:
        channels: Width of the network.
        dropout: Share of the features dropped while training, 0..1.
        lr: Learning rate at the start; it falls to zero along half a cosine over the whole training.
        weight_decay: Pull of the weights towards zero.
    """

    monitor = "val_loss"  # this number, as logged below, decides which checkpoint is best and when to stop
    monitor_mode = "min"

    def __init__(self, channels: int = 32, dropout: float = 0.5, lr: float = 3e-3, weight_decay: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.weight_decay = weight_decay
        self.net = DigitsNet(channels, dropout)
        self.val_accuracy = MulticlassAccuracy(num_classes=10, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(batch, 10)`; used by every step, and by whoever serves the model."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch; the engine does the rest."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure one batch while training; the values of an epoch are averaged over its rows."""
        images, labels = batch
        logits = self(images)
        self.val_accuracy(logits, labels)
        self.log("val_loss", F.cross_entropy(logits, labels), prog_bar=True, sync_dist=True)
        self.log("val_accuracy", self.val_accuracy, prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Measure one batch of the rows that no decision was based on; what it returns becomes confusion.svg."""
        images, labels = batch
        logits = self(images)
        self.test_accuracy(logits, labels)
        self.log("test_loss", F.cross_entropy(logits, labels), sync_dist=True)
        self.log("test_accuracy", self.test_accuracy)
        return {"logits": logits, "labels": labels}

    def predict_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        """Return what is wanted of one batch: each key becomes a column of predictions.csv."""
        confidence, digit = self(batch).softmax(dim=1).max(dim=1)
        return {"digit": digit, "confidence": confidence}

    def configure_optimizers(self) -> dict[str, object]:
        """Return the optimizer and, if wanted, a schedule of its learning rate."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        steps = self.trainer.estimated_stepping_batches
        # A function of the planned length, which is not saved: a training that goes on with more epochs falls anew.
        schedule = LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * min(step / steps, 1)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
