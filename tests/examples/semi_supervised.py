"""Semi-supervised training: a mean teacher, labelled and unlabelled loaders, two optimizers at different rates.

The teacher's weights are the moving average of the student's; on unlabelled rows the student agrees with the teacher.
Tarvainen and Valpola, "Mean teachers are better role models" (NeurIPS 2017).
"""

from __future__ import annotations

import copy

import torch
from engine import LightningModule, Trainer
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset


class MeanTeacher(LightningModule):
    def __init__(self, decay=0.95):
        super().__init__()
        self.automatic_optimization = False
        self.decay = decay
        self.student = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x):
        return self.teacher(x)

    def training_step(self, batch, batch_idx):
        (x, y), (unlabelled,) = batch["labelled"], batch["unlabelled"]
        supervised = cross_entropy(self.student(x), y)
        noisy = unlabelled + 0.1 * torch.randn_like(unlabelled)
        consistency = mse_loss(self.student(noisy).softmax(1), self.teacher(unlabelled).softmax(1))
        self.manual_backward(supervised + consistency)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.decay)
        self.log_dict({"supervised": supervised, "consistency": consistency}, prog_bar=True)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("accuracy", (self(x).argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        body, head = self.student[0], self.student[2]
        return torch.optim.SGD(body.parameters(), lr=0.1), torch.optim.Adam(head.parameters(), lr=0.01)


def moons(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (rows,), generator=generator)
    angle = torch.rand(rows, generator=generator) * torch.pi + y * torch.pi
    x = torch.stack([angle.cos() + y, angle.sin() + 0.3 * y], 1)
    return x + 0.1 * torch.randn(rows, 2, generator=generator), y


def main(**options):
    few, many, test = moons(32, 0), moons(512, 1), moons(256, 2)
    train = {
        "labelled": DataLoader(TensorDataset(*few), batch_size=8, shuffle=True),
        "unlabelled": DataLoader(TensorDataset(many[0]), batch_size=32, shuffle=True),
    }
    trainer = Trainer(**{"max_epochs": 15, "accelerator": "cpu", **options})
    trainer.fit(MeanTeacher(), train, DataLoader(TensorDataset(*test), batch_size=64))
    return trainer


if __name__ == "__main__":
    main()
