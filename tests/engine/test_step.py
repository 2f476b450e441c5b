"""The step asks of a loss that it can go backward, in its own way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.engine.toys import BoringModel, loader, quiet_trainer


class Pair:
    """Two losses that go backward together; no tensor."""

    def __init__(self, *losses: Tensor) -> None:
        self.losses = losses

    def backward(self, times: float = 1.0) -> None:
        (sum(self.losses) * times).backward()


def test_by_hand_a_loss_needs_no_more_than_a_backward_of_its_own() -> None:
    class ByHand(BoringModel):
        automatic_optimization = False  # in the class is as good as in `__init__`

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.manual_backward(Pair(self.loss(batch), self.loss(batch)), times=0.5)
            self.optimizers().step()
            self.optimizers().zero_grad()

    by_hand, plain = ByHand(), BoringModel()
    for model in (by_hand, plain):
        quiet_trainer().fit(model, loader())
    assert torch.equal(by_hand.layer.weight, plain.layer.weight)


def test_a_tensor_of_another_class_goes_backward_in_its_own_way() -> None:
    class Counted(Tensor):
        def backward(self, *args: Any, **kwargs: Any) -> None:
            backward.append(float(self.detach()))
            self.as_subclass(Tensor).backward(*args, **kwargs)

    class Model(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch).as_subclass(Counted)

    backward: list[float] = []
    quiet_trainer().fit(Model(), loader())
    assert len(backward) == 3
