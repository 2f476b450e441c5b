"""The work that every contender does, and the clock it is timed by.

Owns: the model, the data and the step, which are the same for a hand-written loop, Lightning and the engine.
Does not own: the loops (`contenders.py`) and what is compared (`rows.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

FEATURES, CLASSES = 32, 10


@dataclass(frozen=True)
class Work:
    """A training job.

    Attributes:
        width: hidden units of each of the two hidden layers.
        rows: of a batch.
        batches: of an epoch.
        epochs: how many.
        values: metrics that a step logs.
        collection: keep a torchmetrics collection over each epoch.
        loader: feed from a DataLoader that makes every row in Python, instead of ready batches.
    """

    width: int = 32
    rows: int = 16
    batches: int = 300
    epochs: int = 1
    values: int = 0
    collection: bool = False
    loader: bool = False

    def model(self) -> nn.Module:
        """The network, with the same weights each time."""
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(FEATURES, self.width),
            nn.ReLU(),
            nn.Linear(self.width, self.width),
            nn.ReLU(),
            nn.Linear(self.width, CLASSES),
        )

    def data(self) -> Any:
        """An iterable with a length that gives (inputs, classes)."""
        if self.loader:
            return torch.utils.data.DataLoader(SlowRows(self.batches * self.rows), batch_size=self.rows)
        return Batches(self)

    def metrics(self) -> Any:
        """A collection of torchmetrics, or None."""
        if not self.collection:
            return None
        import torchmetrics as tm

        return tm.MetricCollection(
            {
                "acc": tm.Accuracy(task="multiclass", num_classes=CLASSES),
                "f1": tm.F1Score(task="multiclass", num_classes=CLASSES, average="macro"),
            }
        )


class Batches(Sequence[Any]):
    """Ready batches: no loader's time is in what is measured."""

    def __init__(self, work: Work) -> None:
        g = torch.Generator().manual_seed(1)
        x = torch.randn(16, work.rows, FEATURES, generator=g)
        y = torch.randint(0, CLASSES, (16, work.rows), generator=g)
        self.ready = list(zip(x, y, strict=True))
        self.count = work.batches

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: Any) -> Any:
        return self.ready[i % 16]

    def __iter__(self) -> Iterator[Any]:
        return (self.ready[i % 16] for i in range(self.count))


class SlowRows(torch.utils.data.Dataset[Any]):
    """Rows that are computed one by one, as most data sets are."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.base = torch.randn(FEATURES, generator=torch.Generator().manual_seed(2))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.roll(self.base, i) * (1 + i % 7), i % CLASSES


@dataclass
class Clock:
    """Seconds between the first and the last tick, as `timer` counts them.

    Attributes:
        timer: CPU time of this process by default, which a busy machine does not stretch.
        skip: ticks before the clock starts.
        last: the tick at which it stops; None: any may be. The timer is a call of the system, which disturbs a step.
    """

    timer: Callable[[], float] = time.process_time
    skip: int = 0
    last: int | None = None
    ticks: int = 0
    started: float = 0.0
    stopped: float = field(default=0.0)

    def tick(self) -> None:
        """Mark the start of a step."""
        self.ticks += 1
        if self.ticks > self.skip and (self.last is None or self.ticks in (self.skip + 1, self.last)):
            self.stopped = self.timer()
            self.started = self.started or self.stopped

    @property
    def per_tick(self) -> float:
        """Seconds from one tick to the next."""
        return (self.stopped - self.started) / (self.ticks - self.skip - 1)


def loss_of(net: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and scores of a batch."""
    scores = net(batch[0])
    return F.cross_entropy(scores, batch[1]), scores


def optimizer_of(net: nn.Module) -> torch.optim.Optimizer:
    """Plain SGD: the cheapest step, so that the loop around it shows."""
    return torch.optim.SGD(net.parameters(), lr=0.01)
