"""Mistakes that are planted and must be found by name, sound programs that must stay silent, and each switch."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import pytest
import torch
from engine import Callback, LightningDataModule
from engine.errors import EngineWarning, MisconfigurationException, NonFiniteLossError
from engine.preflight import CHECKS
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim import lr_scheduler as schedules
from torch.utils.data import DataLoader

from tests.engine.toys import BoringModel, loader, quiet_trainer
from tests.engine.unusual import UNUSUAL


class Two(BoringModel):
    """Two layers, `body` and `head`, the first of which goes on through `between`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 1)
        del self.layer

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.body(x)))


def model(base: type = BoringModel, **members: Any) -> Any:
    """Return a model whose class has some members of its own; `init` runs after `__init__`."""
    init = members.pop("init", None)
    made = type("Mine", (base,), members)()
    if init is not None:
        init(made)
    return made


def logs_nothing(self: Any, batch: Any, batch_idx: int) -> Any:
    return {"loss": self.loss(batch), "accuracy": torch.tensor(0.5)}


def step(change: Any) -> Any:
    """Return a `training_step` that gives its loss to `change(module, loss)` and returns what comes back."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        return change(self, self.loss(batch))

    return training_step


def kept(where: Any) -> Any:
    def keep(self: Any, loss: Tensor) -> Tensor:
        where(self, loss)
        return loss

    return step(keep)


def unlisted(module: Any) -> None:
    module.blocks = [nn.Linear(4, 4), nn.Linear(4, 4)]


def in_a_dict(module: Any) -> None:
    module.heads = {"a": nn.Linear(4, 4)}


def with_schedule(make: Any) -> Any:
    def configure_optimizers(self: Any) -> Any:
        optimizer = SGD(self.parameters(), 0.1)
        return [optimizer], [make(optimizer)]

    return configure_optimizers


def warm_up(step: int, *, num_training_steps: int) -> float:
    return 1 - step / num_training_steps


class Keeps(Callback):
    """Keeps every loss."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        self.losses.append(loss)


class Collects(BoringModel):
    """Sums losses up in a buffer and in a number, or in a list: as `keep` says."""

    keep = "total"

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.total: Any = 0.0
        self.by_name: dict[str, list[Tensor]] = {"train": []}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if self.keep == "total":
            self.total = self.total + loss * 0
        elif self.keep == "mean":
            self.mean = 0.9 * self.mean + 0.1 * loss
        else:
            self.by_name["train"].append(loss)
        return loss


STEPS = 10 * 3  # of ten epochs, three batches each
# name: (the check, model, what must be said, how it is fitted)
MISTAKES: dict[str, tuple[str, Any, str, dict[str, Any]]] = {
    "misspelt step": ("hooks", lambda: model(validaton_step=lambda *_: None), "validation_step", {}),
    "misspelt loader": ("hooks", lambda: model(val_dataloder=lambda *_: None), "val_dataloader", {}),
    "misspelt hook": ("hooks", lambda: model(on_train_epoch_ends=lambda *_: None), "on_train_epoch_end", {}),
    "synonym": ("hooks", lambda: model(valid_dataloader=lambda *_: None), "val_dataloader", {}),
    "misspelt hook of a callback": (
        "hooks", BoringModel, "on_train_batch_end",
        {"callbacks": [type("Mine", (Callback,), {"on_train_batch_ends": lambda *_: None})()]},
    ),
    "forgotten head": (
        "optimizer", lambda: model(Two, configure_optimizers=lambda self: SGD(self.body.parameters(), 0.1)),
        "`head.weight`, `head.bias`", {},
    ),
    "parameter made after the optimizer": (
        "optimizer",
        lambda: model(
            configure_optimizers=lambda self: (
                SGD(self.parameters(), 0.1), self.register_parameter("scale", nn.Parameter(torch.ones(1))),
            )[0]
        ), "`scale`", {},
    ),
    "layers in a list": ("optimizer", lambda: model(init=unlisted), "`blocks` holds layers in a `list`", {}),
    "layers in a dict": ("optimizer", lambda: model(init=in_a_dict), "nn.ModuleDict", {}),
    "unused layer": (
        "gradients", lambda: model(Two, forward=lambda self, x: self.body(x).sum(1, True)), "`head.weight`", {},
    ),
    "detached": ("gradients", lambda: model(Two, between=lambda self, x: x.detach()), "`body.weight`", {}),
    "no_grad on the way": ("gradients", lambda: model(Two, between=lambda self, x: x.data), "`body.weight`", {}),
    "rounded on the way": (
        "gradients", lambda: model(Two, between=lambda self, x: (x > 0).float()), "`body.weight`", {},
    ),
    "logarithm of zero": (
        "loss", lambda: model(Two, between=lambda self, x: torch.log(x * 0)),
        "first module whose input is not finite: `head` (Linear)", {},
    ),
    "module that divides by zero": (
        "loss", lambda: model(Two, init=lambda m: m.body.register_forward_hook(lambda *a: a[2] / 0)),
        "first module whose output is not finite: `body`", {},
    ),
    "loss of nothing": (
        "loss", lambda: model(training_step=step(lambda self, loss: loss / 0)), "in `training_step` itself", {},
    ),
    "batch with a nan": ("loss", BoringModel, "epoch 0, batch 1. The batch itself", {"rows": [1.0, math.nan, 1.0]}),
    "root of zero": (
        "loss", lambda: model(training_step=step(lambda self, loss: (self.layer.weight * 0).abs().sum().sqrt() + loss)),
        "batch 1. The gradients of an earlier step", {},
    ),
    "loss under manual optimisation": (
        "loss", lambda: model(
            init=lambda m: setattr(m, "automatic_optimization", False),
            training_step=lambda self, batch, batch_idx: self.manual_backward(self.loss(batch) / 0),
        ), "The loss is inf at epoch 0, batch 0", {},
    ),
    "returned and not logged": (
        "unlogged", lambda: model(validation_step=logs_nothing), "returned ['loss', 'accuracy'] and", {},
    ),
    "left in eval": ("eval_mode", lambda: BoringModel().eval(), "was left in evaluation mode", {}),
    "part left in eval": (
        "eval_mode", lambda: model(init=lambda m: m.add_module("net", nn.Sequential(nn.Dropout(0.5)).eval())),
        "`net` is in evaluation mode", {},
    ),
    "cosine over steps": (
        "scheduler",
        lambda: model(configure_optimizers=with_schedule(lambda o: schedules.CosineAnnealingLR(o, STEPS))),
        "made for 30 steps, but steps once an epoch, 10 times", {"max_epochs": 10},
    ),
    "warm-up over steps": (
        "scheduler", lambda: model(configure_optimizers=with_schedule(lambda o: schedules.SequentialLR(
            o, [schedules.LinearLR(o, 0.1, total_iters=5), schedules.CosineAnnealingLR(o, STEPS - 5)], [5]))),
        "'interval': 'step'", {"max_epochs": 10},
    ),
    "warm-up of transformers": (
        "scheduler", lambda: model(configure_optimizers=with_schedule(
            lambda o: schedules.LambdaLR(o, functools.partial(warm_up, num_training_steps=STEPS)))),
        "made for 30 steps", {"max_epochs": 10},
    ),
    "cycle over steps": (
        "scheduler",
        lambda: model(configure_optimizers=with_schedule(lambda o: schedules.CyclicLR(o, 0.1, 1.0))),
        "CyclicLR", {"max_epochs": 10},
    ),
    "list of losses": (
        "graph", lambda: model(
            training_step=kept(lambda m, loss: m.losses.append(loss)), init=lambda m: setattr(m, "losses", []),
        ), "`Mine.losses`", {"max_epochs": 3},
    ),
    "sum of losses": ("graph", Collects, "`Collects.total`", {"max_epochs": 3}),
    "dict of losses": ("graph", lambda: model(Collects, keep="by_name"), "`Mine.by_name`", {"max_epochs": 3}),
    "losses in a callback": ("graph", BoringModel, "`Keeps.losses`", {"max_epochs": 3, "callbacks": [Keeps()]}),
}  # fmt: skip


def said(made: Any, rows: Any = None, **options: Any) -> str:
    """Return what a fit says: its warnings, and the error that ends it."""
    train = loader() if rows is None else DataLoader([(torch.full((4,), x), torch.ones(1)) for x in rows])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            quiet_trainer(**options).fit(made, train, loader(4))
            end = ""
        except NonFiniteLossError as error:
            end = str(error)
    texts = [str(warning.message) for warning in caught if issubclass(warning.category, EngineWarning)]
    return "\n".join(dict.fromkeys([*texts, end])).strip()  # Python itself shows a text once


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_found_and_its_switch_silences_it(name: str) -> None:
    check, make, expected, options = MISTAKES[name]
    found = said(make(), **options)
    assert expected in found
    assert len(found.splitlines()) == 1, "one mistake, one sentence"
    assert said(make(), **options, preflight={check: False}) == ""


def test_every_check_has_a_planted_mistake() -> None:
    assert {check for check, *_ in MISTAKES.values()} == set(CHECKS)
    assert len(MISTAKES) >= 20


def test_a_model_left_in_eval_is_trained_in_training_mode() -> None:
    seen: list[bool] = []
    made = model(training_step=kept(lambda m, _: seen.append(m.training))).eval()
    assert "evaluation mode" in said(made)
    assert seen == [True] * 3
    seen.clear()
    assert said(made.eval(), preflight={"eval_mode": False}) == ""
    assert seen == [False] * 3


def test_parity_and_barebones_look_at_names_only() -> None:
    made = model(Two, configure_optimizers=lambda self: SGD(self.body.parameters(), 0.1))
    assert said(made, parity="lightning") == ""
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"))
    assert said(made, barebones=True, **silent) == ""
    assert said(model(valid_dataloader=lambda *_: None), preflight=False) == ""


@pytest.mark.parametrize(("value", "message"), [({"gradient": False}, "Did you mean `gradients`"), ("off", "accepted")])
def test_a_switch_that_does_not_exist(value: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        quiet_trainer(preflight=value)


# ---------------------------------------------------------------- no false alarm


class Adversaries(BoringModel):
    """Two optimizers by hand; the second steps at every third batch only."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.judge = nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        chosen, net = (second, self.judge) if batch_idx % 3 == 2 else (first, self.layer)
        chosen.zero_grad()
        self.manual_backward(net(batch[0]).mean())
        chosen.step()
        chosen.zero_grad()

    def configure_optimizers(self) -> Any:
        return SGD(self.layer.parameters(), 0.1), SGD(self.judge.parameters(), 0.1)


class Frozen(Two):
    """A frozen body in evaluation mode, as transfer learning has it, and the newest logits kept for a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.body.requires_grad_(False).eval()
        self.norm = nn.BatchNorm1d(4).eval()
        self.hidden_teacher = [nn.Linear(4, 1).requires_grad_(False)]
        self.shown: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.shown = self.head(self.norm(self.body(x)))
        return self.shown


SOUND: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (BoringModel, {"max_epochs": 3}),
    "fast_dev_run": (BoringModel, {"fast_dev_run": True}),
    "accumulated": (BoringModel, {"accumulate_grad_batches": 2, "max_epochs": 3}),
    "two by hand": (Adversaries, {"max_epochs": 4}),
    "frozen": (Frozen, {"max_epochs": 3}),
    "returned to a hook": (
        lambda: model(validation_step=logs_nothing, on_validation_batch_end=lambda *_: None), {},
    ),
    "none returned": (lambda: model(training_step=lambda *_: None), {"max_epochs": 3}),
    "cosine over epochs": (
        lambda: model(configure_optimizers=with_schedule(lambda o: schedules.CosineAnnealingLR(o, 10))),
        {"max_epochs": 10},
    ),
    "long schedule, short trial": (
        lambda: model(configure_optimizers=with_schedule(lambda o: schedules.CosineAnnealingLR(o, 200))),
        {"max_epochs": 2},
    ),
    "numbers kept": (
        lambda: model(training_step=kept(lambda m, loss: m.losses.append(loss.detach())),
                      init=lambda m: setattr(m, "losses", [])),
        {"max_epochs": 3},
    ),
    "lbfgs": (
        lambda: model(configure_optimizers=lambda self: torch.optim.LBFGS(self.parameters(), 0.01)), {},
    ),
    "bfloat16": (BoringModel, {"precision": "bf16-mixed"}),
    "no validation": (BoringModel, {"limit_val_batches": 0}),
    **{name: (make, {"max_epochs": 4}) for name, make in UNUSUAL.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_program_hears_nothing(name: str) -> None:
    make, options = SOUND[name]
    assert said(make(), **options) == ""


def test_nothing_is_left_on_the_parameters_and_in_the_run() -> None:
    made = BoringModel()
    quiet_trainer(max_epochs=3).fit(made, loader())
    assert not any(p._post_accumulate_grad_hooks for p in made.parameters())


def test_an_error_in_the_first_step_leaves_no_hook_either() -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("mine")

    made = model(training_step=fails)
    with pytest.raises(RuntimeError, match="mine"):
        quiet_trainer().fit(made, loader())
    assert not any(p._post_accumulate_grad_hooks for p in made.parameters())


def test_the_weights_are_those_of_a_fit_without_it() -> None:
    ends = []
    for on in (True, False):
        made = model(Two, between=lambda self, x: nn.functional.dropout(x, 0.2))
        quiet_trainer(max_epochs=4, preflight=on).fit(made, loader(shuffle=False), loader(4))
        ends.append(torch.cat([p.detach().flatten() for p in made.parameters()]))
    assert torch.equal(*ends)


def test_on_an_accelerator_losses_are_read_together_and_the_batch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.preflight.reads_at_once", lambda device: False)
    found = said(BoringModel(), rows=[1.0, 1.0, math.nan, 1.0])
    assert "epoch 0, batch 2" in found
    assert "detect_anomaly=True" in found
    assert "The batch itself" in said(BoringModel(), rows=[1.0, math.nan], detect_anomaly=True)


def test_a_data_module_may_keep_what_it_likes() -> None:
    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            self.rows = [torch.ones(4, requires_grad=True) * 2 for _ in range(100)]
            return loader()

    with warnings.catch_warnings():
        warnings.simplefilter("error", EngineWarning)
        quiet_trainer(max_epochs=3).fit(model(validation_step=None), datamodule=Data())
