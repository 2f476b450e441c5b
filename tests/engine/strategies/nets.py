"""What spawned processes import too: no test library, no metrics library."""

from __future__ import annotations

from typing import Any

import torch
from engine import Callback
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tests.engine.toys import BoringModel


def weights(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


class Agree(Callback):
    """Fails unless all ranks have the same weights at the end."""

    def on_train_end(self, trainer: Any, module: Any) -> None:
        everywhere = trainer.strategy.all_gather(weights(module))
        assert trainer.world_size == 1 or all(torch.equal(everywhere[0], other) for other in everywhere)


class Deeper(BoringModel):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))  # type: ignore[assignment]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class Stack(BoringModel):
    """Two blocks, and what is in none of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.blocks = nn.Linear(4, 7), nn.ModuleList(Block(7) for _ in range(2))
        self.layer = nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.layer(x)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", (self(batch[0]) - batch[1]).abs().mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 0.01)


class IsSharded(Callback):
    """Fails unless training has a part of each parameter only."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert all(isinstance(parameter, DTensor) for parameter in module.parameters())
        size = sum(parameter.to_local().numel() for parameter in module.parameters())
        assert size < 0.8 * sum(parameter.numel() for parameter in module.parameters())
