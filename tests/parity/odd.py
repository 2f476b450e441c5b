"""Oddities that a random job may have: what real modules, loaders and callbacks do besides the ordinary.

Each is a small function under a name that a `Job` can hold. `NET` changes the module's class, `TRAIN` and `VAL` the
loaders, `CONFIGURE` gives what `configure_optimizers` returns, `CALLBACKS` adds a callback, `OPTIONS` sets the Trainer.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as S
from torch.utils.data import DataLoader, SequentialSampler

from tests.parity.framework import words

NET: dict[str, Callable[[Any, Any], None]] = {}
CONFIGURE: dict[str, Callable[[Any], Any]] = {}
CALLBACKS: dict[str, Callable[[Any], Any]] = {}
TRAIN: dict[str, Callable[[Any, Any], Any]] = {}
VAL: dict[str, Callable[[Any, Any], Any]] = {}
OPTIONS: dict[str, dict[str, Any]] = {
    "max_epochs_0": {"max_epochs": 0},
    "steps_only": {"max_epochs": -1, "max_steps": 9},
    "max_steps_0": {"max_steps": 0},
    "max_time_0": {"max_time": {"seconds": 0}},
    "barebones": {
        "barebones": True,
        "logger": None,
        "log_every_n_steps": None,
        "num_sanity_val_steps": None,
        "enable_checkpointing": None,
        "enable_progress_bar": None,
        "enable_model_summary": None,
    },
    "validate_by_time": {"val_check_interval": {"seconds": 0}},
    "log_never": {"log_every_n_steps": 0},
    "anomaly": {"detect_anomaly": True},
    "unclipped": {"gradient_clip_val": 0},
    "no_logger": {"logger": False},
}


def net(function: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """Register a change of the module's class under the function's name."""
    NET[function.__name__] = function
    return function


def configure(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Register a `configure_optimizers` under the function's name."""
    CONFIGURE[function.__name__] = function
    return function


def after(cls: Any, name: str, then: Callable[..., Any]) -> None:
    """Let `then(module, *args)` run after the method `name` of the class; its result counts unless it is None."""
    inherited = getattr(cls, name)

    def method(this: Any, *args: Any, **kwargs: Any) -> Any:
        returned = inherited(this, *args, **kwargs)
        changed = then(this, *args, **kwargs)
        return returned if changed is None else changed

    setattr(cls, name, method)


# ---------------------------------------------------------------------- the module


@net
def steps_without_index(player: Any, cls: Any) -> None:
    train, val = cls.training_step, cls.validation_step
    cls.count = 0

    def training_step(self: Any, batch: Any) -> Any:
        self.count += 1
        return train(self, batch, self.count)

    cls.training_step = training_step
    if len(player.job.val) == 1:
        cls.validation_step = lambda self, batch: val(self, batch, 0)


@net
def changes_batches_before_and_after(player: Any, cls: Any) -> None:
    def scaled(this: Any, batch: Any, factor: float) -> Any:
        if isinstance(batch, (list, tuple)) and len(batch) == 2 and isinstance(batch[0], torch.Tensor):
            return [batch[0] * factor, batch[1]]
        return batch

    after(cls, "on_before_batch_transfer", lambda s, b, i: scaled(s, b, 1.5 if s.training else 0.5))
    after(cls, "on_after_batch_transfer", lambda s, b, i: scaled(s, b, 2.0 if s.trainer.training else 1.0))


@net
def evaluates_one_part_only(player: Any, cls: Any) -> None:
    cls.on_validation_model_eval = lambda self: self.net[2].eval() and None


@net
def restores_modes_itself(player: Any, cls: Any) -> None:
    cls.on_validation_model_train = lambda self: self.train() and None
    cls.on_test_model_train = lambda self: self.net.train() and None


@net
def keeps_a_part_in_eval_mode(player: Any, cls: Any) -> None:
    after(cls, "on_train_start", lambda self: self.net[2].eval() and None)


@net
def has_batch_norm(player: Any, cls: Any) -> None:
    def make(self: Any) -> None:
        self.net.insert(1, nn.BatchNorm1d(8))

    after(cls, "__init__", make)


@net
def takes_gradients_in_validation(player: Any, cls: Any) -> None:
    def more(self: Any, batch: Any, *rest: Any, **named: Any) -> None:
        torch.set_grad_enabled(True)
        w = torch.ones((), requires_grad=True)
        (w * 3.0).backward()
        self.log("slope", w.grad)

    after(cls, "validation_step", more)


@net
def logs_a_collection(player: Any, cls: Any) -> None:
    def make(self: Any) -> None:
        found = torchmetrics.MetricCollection([torchmetrics.MeanMetric(), torchmetrics.MaxMetric()])
        self.train_set, self.val_set = found.clone(prefix="t_"), found.clone(prefix="v_")

    def train(self: Any, batch: Any, *rest: Any, **named: Any) -> None:
        self.train_set.update(float(len(rest)) + self.global_step)
        self.log_dict(self.train_set, on_step=player.job.shuffle, on_epoch=True)

    def val(self: Any, batch: Any, *rest: Any, **named: Any) -> None:
        self.val_set.update(1.0 + self.current_epoch)

    def end(self: Any) -> None:
        self.log_dict(self.val_set.compute())
        self.val_set.reset()

    after(cls, "__init__", make)
    after(cls, "training_step", train)
    after(cls, "validation_step", val)
    after(cls, "on_validation_epoch_end", end)


@net
def logs_forward_of_a_metric(player: Any, cls: Any) -> None:
    def make(self: Any) -> None:
        self.mean = torchmetrics.MeanMetric()

    def train(self: Any, batch: Any, *rest: Any, **named: Any) -> None:
        self.mean(float(self.global_step))
        self.log("forward", self.mean, on_step=True, on_epoch=True, prog_bar=True)

    after(cls, "__init__", make)
    after(cls, "training_step", train)


def _logs(name: str, hook: str, value: Callable[[Any], Any], **flags: Any) -> None:
    def change(player: Any, cls: Any) -> None:
        def then(self: Any, *args: Any, **kwargs: Any) -> None:
            self.log(name, value(self), **flags)

        after(cls, hook, then)

    key = "_".join(["logs", name, "in", hook, *flags])
    NET[key] = change


_logs("step", "training_step", lambda s: float(s.global_step * 10))
_logs("step", "on_train_epoch_end", lambda s: float(s.current_epoch * 10))
_logs("step", "validation_step", lambda s: 4.0)
_logs("epoch", "training_step", lambda s: s.current_epoch + 0.5)
_logs("int", "training_step", lambda s: torch.tensor(3), on_epoch=True)
_logs("bool", "validation_step", lambda s: True)
_logs("one", "training_step", lambda s: torch.ones(1, 1), on_epoch=True)
_logs("double", "training_step", lambda s: torch.tensor(1 / 3, dtype=torch.float64), on_epoch=True)
_logs("half", "validation_step", lambda s: torch.tensor(0.1, dtype=torch.bfloat16))
_logs("nan", "validation_step", lambda s: float("nan"))
_logs("inf", "training_step", lambda s: torch.tensor(float("inf")), on_epoch=True)
_logs("synced", "training_step", lambda s: float(s.global_step), sync_dist=True, on_epoch=True)
_logs("first", "validation_step", lambda s: float(s.current_epoch), rank_zero_only=True)
_logs("graph", "training_step", lambda s: s.net[0].bias.sum(), enable_graph=True, on_epoch=True)
_logs("sized", "training_step", lambda s: float(s.global_step), on_epoch=True, batch_size=7)
_logs("summed", "validation_step", lambda s: 1.5, reduce_fx=torch.sum)
_logs("most", "validation_step", lambda s: float(s.global_step), reduce_fx=max, on_step=True, on_epoch=True)
_logs("least", "on_validation_batch_end", lambda s: float(s.global_step), reduce_fx="min", on_step=True)
_logs("bar", "on_train_start", lambda s: 2.0, prog_bar=True, logger=False)
_logs("end", "on_train_end", lambda s: 2.0)
_logs("fit", "on_fit_start", lambda s: 2.0)
_logs("vend", "on_validation_end", lambda s: 2.0)
_logs("transfer", "on_after_batch_transfer", lambda s: 2.0)
_logs("clip", "configure_gradient_clipping", lambda s: float(s.global_step), on_epoch=True)
_logs("back", "backward", lambda s: float(s.global_step), on_step=True, on_epoch=True)
_logs("zero", "optimizer_zero_grad", lambda s: 1.0)
_logs("opt", "optimizer_step", lambda s: float(s.global_step), on_epoch=True)
_logs("sched", "lr_scheduler_step", lambda s: 1.0)
_logs("train_loss", "on_train_epoch_end", lambda s: 0.25 * s.current_epoch)
_logs("val_loss", "on_train_batch_end", lambda s: 0.25 * s.global_step)
_logs("val_loss", "on_validation_epoch_end", lambda s: 1.0 - 0.25 * s.current_epoch)
_logs("a/b", "validation_step", lambda s: 1.0, add_dataloader_idx=False, on_step=True)
_logs("x/dataloader_idx_0", "validation_step", lambda s: 1.0)
_logs("text", "training_step", lambda s: "text")
_logs("wide", "training_step", lambda s: torch.ones(2))
_logs("nested", "training_step", lambda s: {"a": 1.0})


@net
def logs_one_key_twice(player: Any, cls: Any) -> None:
    def more(self: Any, batch: Any, *rest: Any, **named: Any) -> None:
        self.log("twice", 1.0, on_epoch=True, on_step=True)
        self.log("twice", 3.0 + self.global_step, on_epoch=True, on_step=True)

    after(cls, "training_step", more)


@net
def logs_at_some_batches(player: Any, cls: Any) -> None:
    def more(self: Any, batch: Any, index: int = 0, *rest: Any, **named: Any) -> None:
        if index in (1, 2):
            self.log("some", float(index + self.current_epoch), on_epoch=True, on_step=True, prog_bar=True)

    after(cls, "training_step", more)
    after(cls, "validation_step", more)


@net
def logs_in_the_first_epoch_only(player: Any, cls: Any) -> None:
    def more(self: Any, batch: Any, *rest: Any, **named: Any) -> None:
        if self.current_epoch == 0:
            self.log("early", float(self.global_step), on_epoch=True, on_step=True)

    after(cls, "training_step", more)
    after(cls, "validation_step", more)


@net
def logs_read_metrics(player: Any, cls: Any) -> None:
    def more(self: Any) -> None:
        found = self.trainer.callback_metrics
        self.log("seen", float(len(found)))
        self.log("seen_loss", found.get("train_loss_step", torch.tensor(-1.0)))

    after(cls, "on_validation_epoch_end", more)
    after(cls, "on_train_epoch_end", more)


@net
def puts_into_callback_metrics(player: Any, cls: Any) -> None:
    def more(self: Any) -> None:
        self.trainer.callback_metrics["own"] = torch.tensor(float(self.current_epoch))

    after(cls, "on_train_epoch_end", more)
    after(cls, "on_validation_epoch_end", more)


@net
def returns_one_element(player: Any, cls: Any) -> None:
    after(cls, "training_step", lambda self, *a, **k: self.net[0].weight.mean().reshape(1))


@net
def returns_more_than_the_loss(player: Any, cls: Any) -> None:
    def more(self: Any, batch: Any, *rest: Any, **named: Any) -> Any:
        loss = self.loss(batch)
        return {"loss": loss, "logits": loss * 2, "text": "x", "n": 3, "nest": {"a": loss}}

    after(cls, "training_step", more)


@net
def returns_a_dict_without_loss(player: Any, cls: Any) -> None:
    after(cls, "training_step", lambda self, *a, **k: {"losses": self.net[0].weight.mean()})


@net
def returns_a_float(player: Any, cls: Any) -> None:
    after(cls, "training_step", lambda self, *a, **k: 0.5)


@net
def returns_a_dict_with_none(player: Any, cls: Any) -> None:
    after(cls, "training_step", lambda self, *a, **k: {"loss": None})


@net
def returns_a_constant(player: Any, cls: Any) -> None:
    after(cls, "training_step", lambda self, *a, **k: torch.tensor(1.0))


@net
def sets_the_rate(player: Any, cls: Any) -> None:
    def more(self: Any) -> None:
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (1 + self.current_epoch)

    after(cls, "on_train_epoch_start", more)


@net
def adds_a_group(player: Any, cls: Any) -> None:
    def more(self: Any) -> None:
        if self.current_epoch == 1 and len(self.trainer.optimizers[0].param_groups) == 1:
            self.extra = nn.Parameter(torch.ones(3))
            self.trainer.optimizers[0].add_param_group({"params": [self.extra], "lr": 0.3})

    after(cls, "on_train_epoch_start", more)


@net
def overwrites_gradients(player: Any, cls: Any) -> None:
    def more(self: Any) -> None:
        for p in self.parameters():
            if p.grad is not None:
                p.grad.mul_(0.5)

    after(cls, "on_after_backward", more)


@net
def drops_gradients_of_one_layer(player: Any, cls: Any) -> None:
    def more(self: Any, optimizer: Any) -> None:
        self.net[0].weight.grad = None

    after(cls, "on_before_optimizer_step", more)


@net
def keeps_gradients_for_validation(player: Any, cls: Any) -> None:
    cls.on_validation_model_zero_grad = lambda self: None


@net
def sets_gradients_to_zero(player: Any, cls: Any) -> None:
    cls.optimizer_zero_grad = lambda self, epoch, batch_idx, optimizer: optimizer.zero_grad(set_to_none=False)


@net
def warms_up_in_optimizer_step(player: Any, cls: Any) -> None:
    def optimizer_step(self: Any, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (self.trainer.global_step + 1)
        optimizer.step(closure=optimizer_closure)

    cls.optimizer_step = optimizer_step


@net
def steps_every_second_time(player: Any, cls: Any) -> None:
    def optimizer_step(self: Any, *args: Any, **kwargs: Any) -> None:
        closure = kwargs.get("optimizer_closure") or args[3]
        if args[1] % 2 == 0:
            args[2].step(closure=closure)
        else:
            closure()

    cls.optimizer_step = optimizer_step


@net
def forgets_the_closure(player: Any, cls: Any) -> None:
    cls.optimizer_step = lambda self, epoch, batch_idx, optimizer, optimizer_closure=None: None


@net
def configures_callbacks(player: Any, cls: Any) -> None:
    fw = player.fw

    class Own(fw.callbacks.EarlyStopping):  # type: ignore[name-defined, misc]
        pass

    cls.configure_callbacks = lambda self: [Own("train_loss", patience=1), fw.callbacks.Timer("00:01:00:00")]


@net
def saves_more_in_checkpoints(player: Any, cls: Any) -> None:
    after(cls, "on_save_checkpoint", lambda self, ckpt: ckpt.update(own=[1, 2]))
    after(cls, "on_load_checkpoint", lambda self, ckpt: setattr(self, "loaded", ckpt.get("own")))


@net
def builds_layers_late(player: Any, cls: Any) -> None:
    def make(self: Any) -> None:
        if not hasattr(self, "late"):
            self.late = nn.Linear(2, 2)

    after(cls, "configure_model", make)


@net
def registers_a_buffer_late(player: Any, cls: Any) -> None:
    def make(self: Any, stage: str) -> None:
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.zeros(2))

    after(cls, "setup", make)


@net
def counts_in_a_buffer(player: Any, cls: Any) -> None:
    after(cls, "__init__", lambda self: self.register_buffer("seen", torch.zeros(())))
    after(cls, "training_step", lambda self, *a, **k: self.seen.add_(1) and None)


@net
def draws_random_numbers_in_validation(player: Any, cls: Any) -> None:
    after(cls, "validation_step", lambda self, *a, **k: self.log("drawn", torch.rand(())))


def _stops(name: str, hook: str) -> None:
    def change(player: Any, cls: Any) -> None:
        def then(self: Any, *args: Any, **kwargs: Any) -> None:
            if self.trainer.global_step >= 3:
                self.trainer.should_stop = True

        after(cls, hook, then)

    NET[name] = change


for _hook in words(
    """on_train_batch_start on_train_batch_end on_train_epoch_start on_train_epoch_end on_validation_start
    on_validation_batch_end on_validation_epoch_end on_validation_end on_before_optimizer_step"""
):
    _stops(f"stops_in_{_hook}", _hook)


class Boom(RuntimeError):
    """What a job raises itself."""


def _raises(name: str, hook: str) -> None:
    def change(player: Any, cls: Any) -> None:
        def then(self: Any, *args: Any, **kwargs: Any) -> None:
            if self.trainer.global_step >= 2:
                raise Boom(hook)

        after(cls, hook, then)

    NET[name] = change


for _hook in words(
    """training_step validation_step on_train_batch_end on_train_epoch_end on_validation_end on_train_end on_fit_end
    on_after_backward"""
):
    _raises(f"raises_in_{_hook}", _hook)


# ---------------------------------------------------------------------- manual optimisation


def _manual(function: Callable[[Any, Any, int], Any]) -> None:
    def change(player: Any, cls: Any) -> None:
        cls.step_by_hand = function

    NET[function.__name__] = change


def _loss(self: Any, batch: Any) -> Any:
    loss = self.loss(batch)
    self.log("train_loss", loss, on_step=True, on_epoch=True)
    return loss


@_manual
def manual_closure(self: Any, batch: Any, batch_idx: int) -> Any:
    found = self.optimizers()
    for opt in found if isinstance(found, list) else [found]:

        def closure(opt: Any = opt) -> Any:
            loss = _loss(self, batch)
            opt.zero_grad()
            self.manual_backward(loss)
            return loss

        opt.step(closure=closure)


@_manual
def manual_accumulation(self: Any, batch: Any, batch_idx: int) -> Any:
    found = self.optimizers()
    opts = found if isinstance(found, list) else [found]
    self.manual_backward(_loss(self, batch) / 2)
    if (batch_idx + 1) % 2 == 0 or self.trainer.is_last_batch:
        for opt in opts:
            opt.step()
            opt.zero_grad()


@_manual
def manual_raw_optimizer(self: Any, batch: Any, batch_idx: int) -> Any:
    found = self.optimizers(use_pl_optimizer=False)
    for opt in found if isinstance(found, list) else [found]:
        opt.zero_grad()
        loss = _loss(self, batch)
        self.manual_backward(loss)
        opt.step()
    return loss


@_manual
def manual_two_steps_per_batch(self: Any, batch: Any, batch_idx: int) -> Any:
    found = self.optimizers()
    opt = found[0] if isinstance(found, list) else found
    for _ in range(2):
        loss = _loss(self, batch)
        opt.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(opt, gradient_clip_val=0.1, gradient_clip_algorithm="value")
        opt.step()
    sched = self.lr_schedulers()
    if isinstance(sched, list):
        sched = sched[0]
    if sched is not None and not isinstance(sched, S.ReduceLROnPlateau):
        sched.step()
    return loss


@_manual
def manual_toggle(self: Any, batch: Any, batch_idx: int) -> Any:
    found = self.optimizers()
    for opt in found if isinstance(found, list) else [found]:
        self.toggle_optimizer(opt)
        loss = _loss(self, batch)
        opt.zero_grad()
        self.manual_backward(loss)
        opt.step()
        self.untoggle_optimizer(opt)
    return {"loss": loss, "extra": 1}


@_manual
def manual_nothing(self: Any, batch: Any, batch_idx: int) -> Any:
    _loss(self, batch)


@_manual
def manual_returns_a_float(self: Any, batch: Any, batch_idx: int) -> Any:
    return 1.0


@net
def automatic_calls_manual_backward(player: Any, cls: Any) -> None:
    after(cls, "training_step", lambda self, batch, *a, **k: self.manual_backward(self.loss(batch)))


# ---------------------------------------------------------------------- configure_optimizers


def _sgd(m: Any) -> Any:
    return torch.optim.SGD(m.parameters(), lr=0.1)


@configure
def no_optimizer(m: Any) -> Any:
    return None


@configure
def one_dict(m: Any) -> Any:
    opt = _sgd(m)
    return {"optimizer": opt, "lr_scheduler": S.ReduceLROnPlateau(opt, patience=0, factor=0.5), "monitor": "train_loss"}


@configure
def one_dict_of_dicts(m: Any) -> Any:
    opt = _sgd(m)
    sched = {"scheduler": S.ExponentialLR(opt, 0.7), "interval": "step", "frequency": 2, "name": "own"}
    return {"optimizer": opt, "lr_scheduler": sched}


@configure
def list_of_one_dict(m: Any) -> Any:
    opt = _sgd(m)
    return [{"optimizer": opt, "lr_scheduler": {"scheduler": S.StepLR(opt, 1, 0.5)}}]


@configure
def two_groups(m: Any) -> Any:
    first, second = list(m.net[0].parameters()), list(m.net[-1].parameters())
    opt = torch.optim.AdamW([{"params": first, "lr": 0.01}, {"params": second, "name": "head"}], lr=0.03)
    return [opt], [S.LambdaLR(opt, [lambda e: 0.9**e, lambda e: 0.5**e])]


@configure
def one_cycle(m: Any) -> Any:
    opt = _sgd(m)
    total = max(int(min(m.trainer.estimated_stepping_batches, 200)), 60)
    return [opt], [{"scheduler": S.OneCycleLR(opt, 0.3, total_steps=total), "interval": "step"}]


@configure
def one_after_the_other(m: Any) -> Any:
    opt = _sgd(m)
    parts = [S.LinearLR(opt, 0.1, total_iters=3), S.CosineAnnealingLR(opt, 5)]
    return [opt], [{"scheduler": S.SequentialLR(opt, parts, [3]), "interval": "step"}]


@configure
def plateau_by_step(m: Any) -> Any:
    opt = _sgd(m)
    sched = S.ReduceLROnPlateau(opt, patience=0, factor=0.5, threshold=0.05)
    return [opt], [{"scheduler": sched, "interval": "step", "monitor": "val_loss", "strict": False, "frequency": 2}]


@configure
def two_schedulers(m: Any) -> Any:
    opt = _sgd(m)
    return [opt], [
        {"scheduler": S.ExponentialLR(opt, 0.9), "interval": "step", "frequency": 3},
        {"scheduler": S.StepLR(opt, 2, 0.5), "frequency": 2},
    ]


@configure
def unknown_key(m: Any) -> Any:
    opt = _sgd(m)
    return {"optimizer": opt, "lr_scheduler": {"scheduler": S.StepLR(opt, 1), "intervall": "step"}, "foo": 1}


@configure
def plateau_without_monitor(m: Any) -> Any:
    opt = _sgd(m)
    return [opt], [S.ReduceLROnPlateau(opt)]


@configure
def scheduler_of_another_optimizer(m: Any) -> Any:
    return [_sgd(m)], [S.StepLR(_sgd(m), 1)]


@configure
def a_text(m: Any) -> Any:
    return "sgd"


@configure
def wrong_interval(m: Any) -> Any:
    opt = _sgd(m)
    return [opt], [{"scheduler": S.StepLR(opt, 1), "interval": "batch"}]


# ---------------------------------------------------------------------- loaders

Pair = namedtuple("Pair", ["x", "y"])


@dataclass
class Rows:
    """A batch that is a dataclass, and is read like a pair."""

    x: Any
    y: Any

    def __getitem__(self, index: int) -> Any:
        return (self.x, self.y)[index]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.x, self.y))


class NoLength:
    """An iterable that nobody can ask anything else."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


class OwnLoader(NoLength):
    """An iterable with a length."""

    def __len__(self) -> int:
        return len(self.loader)


class Epochs(SequentialSampler):
    """A sampler whose order depends on the epoch it is told."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rows = list(range(len(self.data_source)))
        turn = (self.epoch * 3) % max(len(rows), 1)
        return iter(rows[turn:] + rows[:turn])


def _each(change: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Apply a change to every loader of a list or to the only one."""

    def changed(player: Any, nest: Any) -> Any:
        if isinstance(nest, list):
            return [change(player, loader) for loader in nest]
        return change(player, nest) if hasattr(nest, "dataset") else nest

    return changed


def _collated(make: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def change(player: Any, loader: Any) -> Any:
        def collate(rows: Any) -> Any:
            return make(torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows]))

        return DataLoader(loader.dataset, batch_size=4, collate_fn=collate)

    return _each(change)


for _name, _change in {
    "lists_of_batches": _each(lambda player, loader: list(loader)),
    "own_loaders": _each(lambda player, loader: OwnLoader(loader)),
    "loaders_without_length": _each(lambda player, loader: NoLength(loader)),
    "samplers_with_epochs": _each(
        lambda player, loader: (
            loader if player.job.unsized else DataLoader(loader.dataset, batch_size=4, sampler=Epochs(loader.dataset))
        )
    ),
    "drop_last": _each(
        lambda player, loader: DataLoader(loader.dataset, batch_size=4, drop_last=not player.job.unsized)
    ),
    "named_tuples": _collated(Pair),
    "dataclasses": _collated(Rows),
    "pairs_of_tuples": _collated(lambda x, y: (x, y)),
    "different_sizes": _collated(lambda x, y: [x, torch.cat([y, y])[: len(y)]]),
    "batches_with_text": _collated(lambda x, y: [x, y, "text", None, 3]),
    "generators": _each(lambda player, loader: DataLoader(loader.dataset, 4, generator=torch.Generator())),
}.items():
    TRAIN[f"train_{_name}"] = VAL[f"val_{_name}"] = _change

VAL["val_dict"] = lambda player, nest: dict(zip("pqr", nest, strict=False)) if isinstance(nest, list) else {"p": nest}
VAL["val_none"] = lambda player, nest: None
VAL["val_sequential"] = lambda player, nest: player.fw.utilities.CombinedLoader(nest, "sequential")
for _mode in ("min_size", "max_size", "max_size_cycle"):
    VAL[f"val_{_mode}"] = lambda player, nest, mode=_mode: player.fw.utilities.CombinedLoader(nest, mode)
VAL["val_nested"] = lambda player, nest: {"a": nest, "b": [nest]} if not isinstance(nest, list) else {"a": nest}
VAL["val_number"] = lambda player, nest: 3
TRAIN["train_number"] = lambda player, nest: 3
TRAIN["train_nested"] = lambda player, nest: nest if isinstance(nest, dict) else {"a": nest, "b": player.again()}
TRAIN["train_sequential"] = lambda player, nest: player.fw.utilities.CombinedLoader(nest, "sequential")


# ---------------------------------------------------------------------- callbacks

CALLBACKS["timer"] = lambda known: known.Timer("00:01:00:00")
CALLBACKS["timer_0"] = lambda known: known.Timer({"seconds": 0}, interval="epoch")
CALLBACKS["lr_monitor_steps"] = lambda known: known.LearningRateMonitor("step", log_momentum=True)
CALLBACKS["lr_monitor_epochs"] = lambda known: known.LearningRateMonitor("epoch", log_weight_decay=True)
CALLBACKS["lambda"] = lambda known: known.LambdaCallback(
    on_train_epoch_end=lambda trainer, module: trainer.callback_metrics.update(late=torch.tensor(1.0))
)
CALLBACKS["two_accumulations"] = lambda known: known.GradientAccumulationScheduler({1: 2})
CALLBACKS["writer"] = lambda known: known.LambdaCallback(on_predict_batch_end=lambda *args: None)
CALLBACKS["bar"] = lambda known: known.TQDMProgressBar(refresh_rate=1000)

ODD = sorted({*NET, *CONFIGURE, *CALLBACKS, *TRAIN, *VAL, *OPTIONS})
REFUSED = set(
    words(
        """a_text plateau_without_monitor scheduler_of_another_optimizer wrong_interval
        forgets_the_closure
        returns_a_constant returns_a_dict_with_none returns_a_dict_without_loss returns_a_float train_number
        train_sequential val_number val_none manual_returns_a_float automatic_calls_manual_backward
        train_different_sizes logs_text_in_training_step logs_wide_in_training_step
        logs_nested_in_training_step logs_x/dataloader_idx_0_in_validation_step logs_end_in_on_train_end
        logs_fit_in_on_fit_start logs_vend_in_on_validation_end logs_sched_in_lr_scheduler_step
        logs_transfer_in_on_after_batch_transfer"""
    )
)
"""Those that any framework refuses; a job that only raises tells little, so they are drawn rarely."""


def pairs(batch: Any) -> list[Any]:
    """The (inputs, classes) pairs in a batch of any shape."""
    if isinstance(batch, dict):
        return [pair for value in batch.values() for pair in pairs(value)]
    if batch is None or isinstance(batch, (str, int)):
        return []
    if isinstance(batch[0], torch.Tensor):
        return [(batch[0], batch[1])]
    return [pair for part in batch for pair in pairs(part)]


def cross_entropy(network: Any, batch: Any) -> Any:
    """The sum of the losses of all pairs in a batch."""
    parts = [F.cross_entropy(network(x).float(), y) for x, y in pairs(batch)]
    return sum(parts[1:], parts[0])
