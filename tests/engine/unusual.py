"""Ten modules that are unusual and right: the preflight has nothing to say about them."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from tests.engine.toys import BoringModel


class Distilled(BoringModel):
    """A frozen teacher with dropout, in evaluation mode, that follows the student's average."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 1))
        self.teacher = copy.deepcopy(self.layer).eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + 0.1 * self.teacher(x)

    def on_train_batch_end(self, *args: Any) -> None:
        for mine, of_student in zip(self.teacher.parameters(), self.layer.parameters(), strict=True):
            mine.data.lerp_(of_student.data, 0.1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.layer.parameters(), 0.01)


class FrozenBody(BoringModel):
    """A body that stays in evaluation mode because `train` is overridden."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> FrozenBody:
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.body(x))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.layer.parameters(), 0.1)


class Experts(BoringModel):
    """Two of four experts get a gradient in each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.layer(x) * torch.randn(4).softmax(0)
        chosen = torch.randperm(4)[:2].tolist()
        return torch.stack([weights[:, k : k + 1] * self.experts[k](x) for k in chosen]).sum(0)


class Adapters(BoringModel):
    """Low-rank adapters on a frozen layer: the gradient of one half is zero at first, for the other half is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.zeros(2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.down @ self.up

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.down, self.up], 0.1)


class Recurrent(BoringModel):
    """The state of the batch before, detached; the newest features, attached, for a picture."""

    state: Any = None
    features: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.layer(x) + (0.0 if self.state is None else self.state)
        self.state = self.features.mean().detach()
        return self.features


class Tied(BoringModel):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.decoder = nn.Linear(4, 8, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.embedding((x.abs() * 2).long().clamp(max=7)).mean(1)) + self.decoder(x).mean()


class Masked(BoringModel):
    """Infinite values on purpose, inside of the model and in a metric; a loss that is not given in every batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        scores = torch.cat([self.layer(batch[0]), torch.full((len(batch[0]), 1), -math.inf)], 1)
        self.log("worst", math.inf)
        loss = nn.functional.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))
        return loss + self.layer.weight.sum() if batch_idx % 2 else None


class Gathers(BoringModel):
    """Keeps what the validation returns itself, and logs at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append({"loss": self.loss(batch), "rows": len(batch[0])})
        return self.seen[-1]

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", torch.stack([one["loss"] for one in self.seen]).mean())
        self.seen.clear()


class Predicts(BoringModel):
    """Validation that returns predictions, which are no metrics, for a callback of somebody else's."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"predictions": self(batch[0]), "targets": batch[1]}


class OwnNames(BoringModel):
    """Methods of its own, of which some are nearly hooks, and called by the others."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return [self.training_step_a, self.training_step_b][batch_idx % 2](batch)

    def training_step_a(self, batch: Any) -> Any:
        return self.step(batch)

    def training_step_b(self, batch: Any) -> Any:
        return 2 * self.train_step(batch)

    def train_step(self, batch: Any) -> Any:
        return self.loss(batch)

    def step(self, batch: Any) -> Any:
        return self.loss(batch)

    def steps(self) -> None: ...
    def on_load(self) -> None: ...
    def configure_metrics(self) -> None: ...
    def load_data(self) -> None: ...
    def train_loader(self) -> None: ...


UNUSUAL: dict[str, type[BoringModel]] = {
    made.__name__: made
    for made in (Distilled, FrozenBody, Experts, Adapters, Recurrent, Tied, Masked, Gathers, Predicts, OwnNames)
}
