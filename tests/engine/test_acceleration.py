"""`Trainer(compile=...)` and fused optimizers, as far as a machine without a GPU can tell."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from engine.acceleration import prefer_fused
from engine.errors import MisconfigurationException
from toys import BoringModel, loader, quiet_trainer


def fitted(**options: Any) -> BoringModel:
    model = BoringModel()
    quiet_trainer(max_epochs=2, **options).fit(model, loader(), loader(seed=1))
    return model


WAYS = pytest.mark.parametrize("compile", [{"backend": "eager"}, {"backend": "eager", "step": True}], ids=str)


@WAYS
def test_a_compiled_module_trains_to_the_same_weights(compile: dict[str, Any]) -> None:
    plain, compiled = fitted(), fitted(compile=compile)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), compiled.parameters(), strict=True))


@WAYS
def test_compiling_changes_no_name_in_the_state_dict_and_the_module_can_be_copied(compile: dict[str, Any]) -> None:
    compiled = fitted(compile=compile)
    assert list(compiled.state_dict()) == list(BoringModel().state_dict())
    assert list(copy.deepcopy(compiled).state_dict()) == list(BoringModel().state_dict())


@WAYS
def test_metrics_are_logged_from_a_compiled_module(compile: dict[str, Any]) -> None:
    plain, trainer = quiet_trainer(), quiet_trainer(compile=compile)
    for each in (plain, trainer):
        each.fit(BoringModel(), loader(), loader(seed=1))
    assert {"train_loss", "val_loss"} <= set(trainer.callback_metrics)
    assert trainer.callback_metrics == plain.callback_metrics


def test_a_compiled_step_is_compiled_once_however_many_batches_there_are() -> None:
    graphs: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    trainer = quiet_trainer(max_epochs=3, compile={"backend": counting, "step": True})
    trainer.fit(BoringModel(), loader(), loader(seed=1))
    assert trainer.global_step > 6
    assert len(graphs) == 1


class EveryHook(BoringModel):
    """Overrides what a compiled step runs through, and notes what was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def on_before_backward(self, loss: Any) -> None:
        self.calls.append("on_before_backward")

    def on_after_backward(self) -> None:
        self.calls.append("on_after_backward")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.calls.append("on_before_optimizer_step")

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.calls.append("on_before_zero_grad")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.calls.append("on_train_batch_start")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.calls.append(f"on_train_batch_end {float(outputs['loss']):.6f}")

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        self.calls.append("optimizer_step")
        optimizer.step(closure=optimizer_closure)


@WAYS
def test_every_hook_is_called_as_without_compiling(compile: dict[str, Any]) -> None:
    plain, compiled = EveryHook(), EveryHook()
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}
    quiet_trainer(**options).fit(plain, loader(), loader(seed=1))
    quiet_trainer(**options, compile=compile).fit(compiled, loader(), loader(seed=1))
    assert compiled.calls == plain.calls
    assert {"on_before_backward", "optimizer_step"} <= set(plain.calls)


@pytest.mark.parametrize("given", ["fastest", 3, ["default"]])
def test_another_way_to_compile_is_refused_with_the_accepted_ones(given: Any) -> None:
    with pytest.raises(MisconfigurationException, match="reduce-overhead"):
        quiet_trainer(compile=given)


def test_parameters_on_the_host_keep_the_optimizer_as_it_is() -> None:
    optimizer = torch.optim.AdamW(torch.nn.Linear(2, 2).parameters())
    prefer_fused([optimizer])
    assert optimizer.param_groups[0]["fused"] is None
