"""Requirements 3 to 26: what the user writes, and what calls it. The number in a test's name is the requirement's."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from engine import Callback, LightningModule
from engine.errors import EngineWarning
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from toys import BoringModel, loader, quiet_trainer


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Minimal(LightningModule):
    """The four methods that are enough."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_r3_a_module_is_an_ordinary_nn_module() -> None:
    model = BoringModel()
    nested = nn.Sequential(model, nn.ReLU())
    assert list(nested.state_dict()) == ["0.layer.weight", "0.layer.bias"]
    assert sum(p.numel() for p in nested.parameters()) == 5
    assert {type(child) for child in nested.modules()} == {nn.Sequential, BoringModel, nn.Linear, nn.ReLU}
    nested.eval()
    assert not model.training
    other = BoringModel(lr=1.0)
    other.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
    assert torch.equal(other.layer.weight, model.layer.weight + 1)
    assert isinstance(model, nn.Module)


def test_r4_four_methods_are_enough_to_fit() -> None:
    model, before = Minimal(), weights(Minimal())
    quiet_trainer().fit(model, loader())
    assert not same(before, weights(model))


def test_r5_forward_works_without_a_trainer() -> None:
    model, x = Minimal(), torch.randn(3, 4)
    assert torch.equal(model(x), model.layer(x))


def test_r6_predict_step_is_forward_unless_written() -> None:
    model = Minimal()
    outputs = quiet_trainer().predict(model, DataLoader(torch.randn(6, 4), batch_size=4))  # type: ignore[arg-type]
    assert [tuple(output.shape) for output in outputs] == [(4, 1), (2, 1)]


def test_r7_training_step_takes_the_batch_with_or_without_its_index() -> None:
    seen: list[Any] = []

    class OnlyBatch(Minimal):
        def training_step(self, batch: Any) -> Any:  # type: ignore[override]
            seen.append(len(batch[0]))
            return super().training_step(batch, 0)

    class Named(Minimal):
        def training_step(self, data: Any, batch_idx: int) -> Any:  # type: ignore[override]
            seen.append(batch_idx)
            return super().training_step(data, batch_idx)

    quiet_trainer().fit(OnlyBatch(), loader())
    quiet_trainer().fit(Named(), loader())
    assert seen == [4, 4, 4, 0, 1, 2]


def test_r8_a_tensor_a_dict_with_loss_and_none_are_accepted() -> None:
    class Noting(Callback):
        def __init__(self) -> None:
            self.outputs: list[Any] = []

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            self.outputs.append(outputs)

    class Dicts(Minimal):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": super().training_step(batch, batch_idx), "rows": len(batch[0])}

    class Skips(Minimal):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    trained, notes = [], []
    for model in (Minimal(), Dicts(), Skips()):
        note = Noting()
        quiet_trainer(callbacks=[note]).fit(model, loader())
        trained.append(weights(model))
        notes.append(note.outputs)
    assert same(trained[0], trained[1])
    assert not same(trained[0], trained[2])
    assert [sorted(outputs) for outputs in notes[0]] == [["loss"]] * 3
    assert [outputs["rows"] for outputs in notes[1]] == [4, 4, 4]
    assert notes[2][1] == {}
    assert not notes[0][0]["loss"].requires_grad


def _sgd(module: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), 0.1)


def _schedule(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


SHAPES = {
    "optimizer": lambda o: o,
    "list": lambda o: [o],
    "tuple": lambda o: (o,),
    "two lists": lambda o: ([o], [_schedule(o)]),
    "two lists of a dict": lambda o: ([o], [{"scheduler": _schedule(o)}]),
    "lists, scheduler alone": lambda o: ([o], _schedule(o)),
    "dict": lambda o: {"optimizer": o},
    "dict with scheduler": lambda o: {"optimizer": o, "lr_scheduler": _schedule(o)},
    "dict of dict": lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": _schedule(o), "interval": "epoch"}},
    "list of dicts": lambda o: [{"optimizer": o, "lr_scheduler": _schedule(o)}],
    "tuple of dicts": lambda o: ({"optimizer": o, "lr_scheduler": {"scheduler": _schedule(o)}},),
}


@pytest.mark.parametrize("shape", list(SHAPES))
def test_r9_r10_every_return_shape_gives_the_same_rates_and_weights(shape: str) -> None:
    def train(make: Any) -> tuple[list[Tensor], float]:
        model = Minimal()
        model.configure_optimizers = lambda: make(_sgd(model))  # type: ignore[method-assign]
        trainer = quiet_trainer(max_epochs=2)
        trainer.fit(model, loader())
        return weights(model), trainer.optimizers[0].param_groups[0]["lr"]

    scheduled = shape not in ("optimizer", "list", "tuple", "dict")
    expected = train(SHAPES["two lists" if scheduled else "optimizer"])
    got = train(SHAPES[shape])
    assert same(got[0], expected[0])
    assert got[1] == expected[1] == (0.025 if scheduled else 0.1)


def test_r9_none_trains_nothing_and_says_so() -> None:
    model, before = Minimal(), weights(Minimal())
    model.configure_optimizers = lambda: None  # type: ignore[method-assign]
    with pytest.warns(EngineWarning, match="no optimizer"):
        quiet_trainer().fit(model, loader())
    assert same(before, weights(model))


def test_r12_validation_runs_in_eval_mode_without_gradients_and_outputs_reach_callbacks() -> None:
    class Model(BoringModel):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            assert not self.training
            assert not torch.is_grad_enabled()
            return {"rows": len(batch[0])}

    class Noting(Callback):
        rows: list[int] = []  # noqa: RUF012

        def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            self.rows = [*self.rows, outputs["rows"]]

    note = Noting()
    quiet_trainer(callbacks=[note], num_sanity_val_steps=0).fit(Model(), loader(), loader(10))
    assert note.rows == [4, 4, 2]


def test_r12_metrics_that_are_returned_and_not_logged_are_noticed() -> None:
    class Returns(BoringModel):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return {"val_loss": self.loss(batch)}

    with pytest.warns(EngineWarning, match=r"validation_step.*val_loss.*self\.log"):
        quiet_trainer().fit(Returns(), loader(), loader())

    class Uses(Returns):
        def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", outputs["val_loss"])

    with warnings.catch_warnings():
        warnings.simplefilter("error", EngineWarning)
        quiet_trainer().fit(Uses(), loader(), loader())


def test_r15_training_shuffles_validation_does_not_and_modes_come_back() -> None:
    class Frozen(BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5).eval()
            self.modes: list[tuple[str, bool, bool]] = []

        def on_train_start(self) -> None:
            self.dropout.eval()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.modes.append(("train", self.training, self.dropout.training))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.modes.append(("val", self.training, self.dropout.training))

    model = Frozen()
    trainer = quiet_trainer(num_sanity_val_steps=0, max_epochs=2)
    trainer.fit(model, loader(4, shuffle=True), loader(4))
    assert model.modes == [("train", True, False), ("val", False, False)] * 2
    assert isinstance(trainer.train_dataloader.sampler, RandomSampler)
    assert isinstance(trainer.val_dataloaders.sampler, SequentialSampler)


@dataclass
class Pair:
    """A batch of the user's own kind."""

    x: Tensor
    name: str


class Moves:
    """Anything with `.to` is moved."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def to(self, device: torch.device, **_: Any) -> Moves:
        self.device = torch.device(device)
        return self


def test_r16_nested_batches_of_any_kind_are_moved() -> None:
    from engine.utilities import move_data_to_device

    batch = {"a": [torch.ones(2)], "b": (Pair(torch.ones(1), "x"), "text"), "c": Moves(), "d": 3}
    moved = move_data_to_device(batch, torch.device("meta"))
    assert moved["a"][0].device.type == moved["b"][0].x.device.type == moved["c"].device.type == "meta"
    assert moved["b"][0].name == "x"
    assert moved["b"][1] == "text"
    assert moved["d"] == 3
    model = Minimal()
    assert torch.zeros(1, device=model.device).device == model.layer.weight.device
    assert model.to("meta").device.type == "meta"


def test_r18_max_epochs_is_exact() -> None:
    model = BoringModel()
    trainer = quiet_trainer(max_epochs=10)
    trainer.fit(model, loader())
    assert (trainer.current_epoch, trainer.global_step, trainer.total_batches) == (10, 30, 30)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [None, ("norm", 0.3), ("value", 0.05)])
def test_r19_r20_numbers_equal_a_loop_written_by_hand(accumulate: int, clip: Any) -> None:
    model, by_hand, data = BoringModel(), BoringModel(), loader(28)
    options = {} if clip is None else {"gradient_clip_algorithm": clip[0], "gradient_clip_val": clip[1]}
    quiet_trainer(max_epochs=3, accumulate_grad_batches=accumulate, **options).fit(model, data)
    optimizer = by_hand.configure_optimizers()
    for _ in range(3):
        batches = list(data)
        for start in range(0, len(batches), accumulate):
            window = batches[start : start + accumulate]
            optimizer.zero_grad()
            for batch in window:
                (by_hand.loss(batch) / len(window)).backward()
            if clip is not None and clip[0] == "norm":
                nn.utils.clip_grad_norm_(by_hand.parameters(), clip[1])
            elif clip is not None:
                nn.utils.clip_grad_value_(by_hand.parameters(), clip[1])
            optimizer.step()
    assert same(weights(model), weights(by_hand))


def test_r23_gradients_may_be_used_inside_validation() -> None:
    class Meta(BoringModel):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            assert not torch.is_grad_enabled()
            torch.set_grad_enabled(True)
            loss = self.loss(batch)
            gradient = torch.autograd.grad(loss, self.layer.weight)[0]
            self.log("inner", gradient.norm())

    model = Meta()
    trainer = quiet_trainer(inference_mode=False)
    trainer.fit(model, loader(), loader())
    assert trainer.callback_metrics["inner"] > 0
    assert trainer.validate(model, loader(), verbose=False)[0]["inner"] > 0


def test_r23_two_networks_where_one_teaches_the_other() -> None:
    class Distilled(BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = BoringModel().requires_grad_(False).eval()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert self.teacher._trainer is self.trainer
            return nn.functional.mse_loss(self(batch[0]), self.teacher(batch[0]) + 1)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)

    model = Distilled()
    before = weights(model.teacher)
    quiet_trainer().fit(model, loader())
    assert same(before, weights(model.teacher))


def test_r25_the_steps_of_the_algorithm_can_be_overridden() -> None:
    class Low(BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[str] = []

        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            self.calls.append("backward")
            super().backward(loss)

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            self.calls.append("optimizer_step")
            optimizer.step(closure=optimizer_closure)

        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            self.calls.append("zero_grad")
            optimizer.zero_grad(set_to_none=False)

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            self.calls.append("lr_scheduler_step")
            scheduler.step()

        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            self.calls.append("transfer")
            return super().transfer_batch_to_device(batch, device, dataloader_idx)

        def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            self.calls.append("clip")

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [{"scheduler": _schedule(optimizer), "interval": "step"}]

    model = Low()
    trainer = quiet_trainer(limit_train_batches=1)
    trainer.fit(model, loader())
    assert model.calls == ["transfer", "optimizer_step", "zero_grad", "backward", "clip", "lr_scheduler_step"]
    assert type(trainer.optimizers[0]) is torch.optim.SGD
    assert isinstance(model.optimizers(), torch.optim.SGD)
    assert model.optimizers(use_pl_optimizer=False) is trainer.optimizers[0]


def test_r25_gradients_are_readable_after_the_step() -> None:
    class Reads(BoringModel):
        norms: tuple[float, ...] = ()

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            assert self.layer.weight.grad is not None
            self.norms = (*self.norms, self.layer.weight.grad.norm().item())

    model = Reads()
    quiet_trainer().fit(model, loader())
    assert len(model.norms) == 3
    assert min(model.norms) > 0


def test_r26_steps_can_be_called_without_a_trainer() -> None:
    model, batch = BoringModel(), next(iter(loader()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = model.training_step(batch, 0)
        model.validation_step(batch, 0)
        model.log_dict({"a": 1.0, "b": 2.0})
        optimizer = model.configure_optimizers()
        loss.backward()
        optimizer.step()
    assert (model.current_epoch, model.global_step, model.global_rank, model.logger) == (0, 0, 0, None)
    with pytest.raises(RuntimeError, match="not attached to a `Trainer`"):
        _ = model.trainer


def test_r26_a_manual_step_can_be_called_without_a_trainer() -> None:
    class Manual(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            self.manual_backward(loss)
            return loss

    model = Manual()
    model.automatic_optimization = False
    model.training_step(next(iter(loader())), 0)
    assert model.layer.weight.grad is not None
