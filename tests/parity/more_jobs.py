"""Jobs that were added to those of `jobs.py`.

Random numbers, limits, LBFGS, torchmetrics, odd logging, several loaders, resume, averaging, overridden steps.

Each is a function of a Framework; `JOBS` lists them by name. The recordings of lightning 2.6.6 lie in
`tests/data/traces/own`; `python -m tests.parity.record --framework lightning.pytorch --kind more` makes them anew.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchmetrics as tm
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as S
from torch.utils.data import IterableDataset

from tests.parity.framework import Framework, words
from tests.parity.jobs import (
    Counting,
    Rec,
    Result,
    by_name,
    classifier,
    error_of,
    loader,
    plain,
    test_rows,
    train_rows,
    trainer,
    val_rows,
    weights,
)

LOG_HOOKS = words(
    """
    on_train_start on_train_epoch_start on_train_batch_start on_train_batch_end on_train_epoch_end on_train_end
    on_before_zero_grad on_before_backward on_after_backward on_before_optimizer_step on_validation_start
    on_validation_epoch_start on_validation_batch_start on_validation_batch_end on_validation_epoch_end
    on_validation_end on_fit_start on_fit_end setup teardown
    """
)


def job_lbfgs(fw: Framework) -> Result:
    """LBFGS runs the closure several times a step; every run logs. Its steps amplify what single precision rounds."""

    def configure(m: Any) -> Any:
        return torch.optim.LBFGS(m.parameters(), lr=0.01, max_iter=4)

    rec, net = Rec(), classifier(fw, configure=configure)
    t = trainer(fw, rec, max_epochs=2, accumulate_grad_batches=1, precision="64-true")
    t.fit(net, train_rows(), val_rows())
    return rec.out(t, net)


def job_none(fw: Framework) -> Result:
    """Steps that return None, a dictionary, or a tensor, in turn, with accumulation."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss_seen", loss, on_epoch=True)
        if batch_idx % 3 == 1:
            return None
        return {"loss": loss, "n": len(batch[0])} if batch_idx % 3 == 2 else loss

    out = {}
    for accumulate in (1, 2):
        rec, net = Rec(), classifier(fw, body={"training_step": training_step})
        t = trainer(fw, rec, max_epochs=2, accumulate_grad_batches=accumulate)
        t.fit(net, train_rows(), val_rows())
        out[f"accumulate_{accumulate}"] = rec.out(t, net)
    return out


def job_rng(fw: Framework) -> Result:
    """Which calls draw from the global random numbers: dropout and shuffling show it."""
    cases: dict[str, Result] = {
        "plain": {},
        "no_sanity": {"num_sanity_val_steps": 0},
        "no_val": {"limit_val_batches": 0},
        "val_twice": {"val_check_interval": 3},
        "every2": {"check_val_every_n_epoch": 2},
        "reload": {"reload_dataloaders_every_n_epochs": 1},
    }
    out = {}
    for name, options in cases.items():
        rec, net = Rec(), classifier(fw, dropout=0.3)
        net.train_dataloader = lambda: torch.utils.data.DataLoader(Counting(29), batch_size=4, shuffle=True)
        net.val_dataloader = lambda: val_rows()
        rows: list[Any] = []

        def training_step(batch: Any, batch_idx: int, net: Any = net, rows: list[Any] = rows) -> Any:
            rows.append(batch[2].tolist())
            return F.cross_entropy(net(batch[0]), batch[1])

        net.training_step = training_step
        t = trainer(fw, rec, max_epochs=3, **options)
        torch.manual_seed(11)
        t.fit(net)
        out[name] = {"rows": rows, "weights": weights(net), "after": torch.rand(1).item()}
    return out


def job_limits(fw: Framework) -> Result:
    """How many batches run, and what the trainer says about it, for limits and intervals of every form."""
    cases: dict[str, Result] = {
        "train_3": {"limit_train_batches": 3},
        "train_half": {"limit_train_batches": 0.5},
        "train_0": {"limit_train_batches": 0},
        "train_tiny": {"limit_train_batches": 0.01},
        "train_many": {"limit_train_batches": 99},
        "val_half": {"limit_val_batches": 0.5},
        "val_0": {"limit_val_batches": 0},
        "val_tiny": {"limit_val_batches": 0.01},
        "overfit_2": {"overfit_batches": 2},
        "overfit_fraction": {"overfit_batches": 0.4},
        "fast": {"fast_dev_run": True},
        "fast_3": {"fast_dev_run": 3},
        "interval_quarter": {"val_check_interval": 0.25},
        "interval_half": {"val_check_interval": 0.5},
        "interval_3": {"val_check_interval": 3},
        "interval_7": {"val_check_interval": 7},
        "interval_9": {"val_check_interval": 9},
        "interval_9_across": {"val_check_interval": 9, "check_val_every_n_epoch": None, "max_epochs": 4},
        "interval_none": {"val_check_interval": 0.5, "check_val_every_n_epoch": None},
        "max_steps_5": {"max_steps": 5},
        "max_steps_only": {"max_steps": 10, "max_epochs": None},
        "max_steps_acc": {"max_steps": 5, "accumulate_grad_batches": 2},
        "max_steps_0": {"max_steps": 0},
        "max_epochs_0": {"max_epochs": 0},
        "min_steps": {"max_epochs": 1, "min_steps": 10},
        "min_epochs": {"max_epochs": 2, "min_epochs": 3},
        "sanity_all": {"num_sanity_val_steps": -1},
        "sanity_0": {"num_sanity_val_steps": 0},
        "sanity_many": {"num_sanity_val_steps": 50},
        "log_every_2": {"log_every_n_steps": 2},
        "log_every_50": {"log_every_n_steps": 50},
        "log_every_0": {"log_every_n_steps": 0},
        "no_logger": {"logger": False},
        "barebones": {"barebones": True, "logger": None, "enable_checkpointing": None, "log_every_n_steps": None,
                      "enable_progress_bar": None, "enable_model_summary": None},
    }  # fmt: skip
    out = {}
    for name, options in cases.items():
        rec, net, calls = Rec(), classifier(fw), []
        for hook in ("validation_step", "on_validation_start", "on_train_epoch_start", "on_train_start"):
            _count(net, hook, calls)
        errors = []
        try:
            t = trainer(fw, rec, **options)
            t.fit(net, train_rows(), val_rows())
        except Exception as error:
            errors.append(type(error).__name__)
            out[name] = {"error": errors, "calls": calls}
            continue
        seen = {
            "num_training_batches": t.num_training_batches,
            "num_val_batches": list(t.num_val_batches),
            "num_sanity_val_batches": list(t.num_sanity_val_batches),
            "estimated": t.estimated_stepping_batches,
            "max_epochs": t.max_epochs,
            "max_steps": t.max_steps,
            "should_stop": t.should_stop,
        }
        out[name] = rec.out(t, net, calls=calls, **seen)
    return out


def _count(net: Any, hook: str, calls: list[str]) -> None:
    inherited = getattr(net, hook)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(hook)
        return inherited(*args, **kwargs)

    if hook == "validation_step":
        setattr(net, hook, lambda batch, batch_idx: counted(batch, batch_idx))
    else:
        setattr(net, hook, counted)


def job_stopping(fw: Framework) -> Result:
    """`should_stop` set at odd moments, with and without minima, and -1 from on_train_batch_start."""
    places = {
        "batch_1": ("training_step", 0, 1, {}),
        "batch_1_min_epochs": ("training_step", 0, 1, {"min_epochs": 2}),
        "batch_1_min_steps": ("training_step", 0, 1, {"min_steps": 5}),
        "batch_1_min_steps_acc": ("training_step", 0, 1, {"min_steps": 3, "accumulate_grad_batches": 2}),
        "last_batch": ("training_step", 1, 6, {}),
        "val_every_2": ("training_step", 0, 3, {"val_check_interval": 2}),
        "every2epochs": ("training_step", 0, 3, {"check_val_every_n_epoch": 2}),
        "no_val": ("training_step", 0, 3, {"limit_val_batches": 0}),
        "accumulate": ("training_step", 0, 3, {"accumulate_grad_batches": 3}),
        "skip_epoch": ("skip", 0, 2, {}),
        "skip_at_once": ("skip", 1, 0, {}),
        "skip_acc": ("skip", 0, 2, {"accumulate_grad_batches": 2}),
    }
    return {name: _stopping_case(fw, *place) for name, place in places.items()}


def _stopping_case(fw: Framework, where: str, epoch: int, batch: int, options: Result) -> Result:
    def training_step(self: Any, batch_: Any, batch_idx: int) -> Any:
        if where == "training_step" and (self.current_epoch, batch_idx) == (epoch, batch):
            self.trainer.should_stop = True
        loss = F.cross_entropy(self(batch_[0]), batch_[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_train_batch_start(self: Any, batch_: Any, batch_idx: int) -> int | None:
        return -1 if where == "skip" and (self.current_epoch, batch_idx) == (epoch, batch) else None

    def configure(m: Any) -> Any:
        opt = torch.optim.SGD(m.parameters(), lr=0.1)
        return [opt], [S.ExponentialLR(opt, 0.5)]

    body = {"training_step": training_step, "on_train_batch_start": on_train_batch_start}
    rec, net, calls = Rec(), classifier(fw, body=body, configure=configure), []
    _count(net, "on_validation_start", calls)
    _count(net, "on_train_epoch_end", calls)
    t = trainer(fw, rec, **options)
    t.fit(net, train_rows(), val_rows())
    return rec.out(t, net, calls=calls)


def job_combined(fw: Framework) -> Result:
    """Several training loaders in every mode, nested in every way, with limits."""
    combined = fw.utilities.CombinedLoader

    def three() -> list[Any]:
        return [loader(21, 4, 1), loader(9, 4, 2), loader(13, 4, 3)]

    made: dict[str, Callable[[], Any]] = {
        "list": three,
        "dict": lambda: {"a": loader(21, 4, 1), "b": loader(9, 4, 2)},
        "nested": lambda: {"a": [loader(21, 4, 1), loader(9, 4, 2)], "b": loader(13, 4, 3)},
        "tuple": lambda: tuple(three()),
        **{mode: (lambda mode=mode: combined(three(), mode)) for mode in ("min_size", "max_size", "max_size_cycle")},
        "sequential": lambda: combined(three(), "sequential"),
    }
    out: Result = {}
    for name, make in made.items():
        for limits in ({}, {"limit_train_batches": 2}, {"limit_train_batches": 0.5}):
            key = name + "".join(f"_{v}" for v in limits.values())
            out[key] = _combined_case(fw, make(), limits)
    return {**out, "iterated": _iterated(combined, three)}


def _shape_of(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return round(float(batch.double().sum()), 4)
    if isinstance(batch, dict):
        return {k: _shape_of(v) for k, v in batch.items()}
    if isinstance(batch, list | tuple):
        return [type(batch).__name__, *(_shape_of(v) for v in batch)]
    return str(batch)


def _combined_case(fw: Framework, loaders: Any, limits: Result) -> Result:
    seen: list[Any] = []

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        seen.append([batch_idx, _shape_of(batch)])
        return sum(p.sum() for p in self.parameters())

    net = classifier(
        fw, body={"training_step": training_step}, configure=lambda m: torch.optim.SGD(m.parameters(), 0.1)
    )
    t = trainer(fw, Rec(), max_epochs=2, **limits)
    error = error_of(lambda: t.fit(net, loaders))
    if error:
        return {"error": error}
    return {"seen": seen, "batches": t.num_training_batches, "steps": t.global_step}


def _iterated(combined: Any, three: Callable[[], list[Any]]) -> Result:
    out: Result = {}
    for mode in ("min_size", "max_size", "max_size_cycle", "sequential"):
        loaders = combined(three(), mode)
        iter(loaders)
        out[mode] = {
            "length": len(loaders),
            "items": [[_shape_of(batch), idx, at] for batch, idx, at in loaders],
        }
    return out


class Stream(IterableDataset[Any]):
    """Rows without a length."""

    def __init__(self, n: int) -> None:
        self.data = Counting(n)

    def __iter__(self) -> Iterator[Any]:
        for i in range(len(self.data)):
            yield self.data[i][:2]


class Batches:
    """A loader of our own that is no DataLoader: it can only be iterated and has a length."""

    def __init__(self, batches: Any) -> None:
        self.batches = list(batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def job_unsized(fw: Framework) -> Result:
    """Loaders without a length, and plain Python iterables."""

    def stream(n: int) -> Any:
        return torch.utils.data.DataLoader(Stream(n), batch_size=4)

    cases: dict[str, Result] = {
        "plain": {},
        "acc": {"accumulate_grad_batches": 3},
        "limit": {"limit_train_batches": 4, "limit_val_batches": 2},
        "limit_float": {"limit_train_batches": 0.5},
        "interval": {"val_check_interval": 2},
        "interval_float": {"val_check_interval": 0.5},
        "max_steps": {"max_steps": 4, "max_epochs": -1},
        "sanity_all": {"num_sanity_val_steps": -1},
    }
    out = {}
    for name, options in cases.items():
        rec, net, calls = Rec(), classifier(fw), []
        _count(net, "validation_step", calls)
        t = trainer(fw, rec, **{"max_epochs": 2, **options})
        error = error_of(lambda t=t, net=net: t.fit(net, stream(17), stream(10)))
        seen = {"batches": str(t.num_training_batches), "val": [str(n) for n in t.num_val_batches]}
        out[name] = rec.out(t, net, error=error, calls=len(calls), **seen)
    rec, net = Rec(), classifier(fw)
    t = trainer(fw, rec, max_epochs=2)
    t.fit(net, Batches(train_rows()), Batches(val_rows()))
    return {**out, "lists": rec.out(t, net)}


def job_torchmetrics(fw: Framework) -> Result:
    """Metric objects, collections, clones with a prefix, and values of metrics, logged in every usual way."""

    class Net(fw.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Linear(6, 3)
            both = tm.MetricCollection(
                {
                    "acc": tm.Accuracy(task="multiclass", num_classes=3),
                    "rec": tm.Recall(task="multiclass", num_classes=3, average="macro"),
                }
            )
            self.train_metrics, self.val_metrics = both.clone(prefix="train_"), both.clone(prefix="val_")
            self.acc = tm.Accuracy(task="multiclass", num_classes=3)
            self.mean, self.top = tm.MeanMetric(), tm.MaxMetric()
            self.by_hand = tm.Accuracy(task="multiclass", num_classes=3)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            out = self.net(x)
            loss = F.cross_entropy(out, y)
            self.train_metrics.update(out, y)
            self.log_dict(self.train_metrics, on_step=False, on_epoch=True)
            self.acc(out, y)
            self.log("acc", self.acc, on_step=True, on_epoch=True)
            self.log("value", self.by_hand(out, y), on_epoch=True)
            self.mean(loss)
            self.log("mean", self.mean)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            out = self.net(x)
            self.val_metrics.update(out, y)
            self.log_dict(self.val_metrics)
            self.top.update(out.max())
            self.log("top", self.top, on_step=True, on_epoch=True)

        def on_validation_epoch_end(self) -> None:
            self.log("top_again", self.top.compute() * 2)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.2)

    rec, net = Rec(), Net()
    t = trainer(fw, rec)
    t.fit(net, train_rows(), val_rows())
    return {"fit": rec.out(t, net), "validate": plain(t.validate(net, val_rows(), verbose=False))}


def job_log_everywhere(fw: Framework) -> Result:
    """Every hook logs, from the module and from a callback, with every pair of flags: kept, or the kind of error."""
    out: Result = {}
    for hook in LOG_HOOKS:
        for on_step, on_epoch in ((None, None), (True, None), (None, True), (True, True), (False, True), (True, False)):
            out[f"{hook}_{on_step}_{on_epoch}"] = _log_case(fw, hook, on_step, on_epoch)
    return out


def _log_case(fw: Framework, hook: str, on_step: bool | None, on_epoch: bool | None) -> Result:
    n = {"m": 0.0, "c": 0.0}

    def log(module: Any, who: str) -> None:
        n[who] += 1.0
        module.log(f"{who}_x", n[who], on_step=on_step, on_epoch=on_epoch, batch_size=int(n[who]) % 3 + 1)

    def in_module(self: Any, *args: Any, **kwargs: Any) -> None:
        log(self, "m")

    class Logs(fw.Callback):  # type: ignore[name-defined, misc]
        pass

    setattr(Logs, hook, lambda self, trainer, module, *args, **kwargs: log(self if hook != "setup" else module, "c"))
    rec, net = Rec(), classifier(fw, body={hook: _like(fw.LightningModule, hook, in_module)})
    t = trainer(fw, rec, [Logs()], max_epochs=2, log_every_n_steps=2)
    error = error_of(lambda: t.fit(net, loader(20, 8), val_rows()))
    logged = [r for r in rec.logged if any(k.startswith(("m_x", "c_x")) for k in r["metrics"])]
    return {"error": error, "logged": logged, "metrics": by_name(t.callback_metrics)}


def _like(base: Any, hook: str, function: Callable[..., None]) -> Callable[..., None]:
    """Give `function` the parameters of the hook: engines decide by signature."""
    return functools.wraps(getattr(base, hook))(function)


def job_log_varied(fw: Framework) -> Result:
    """Values, names, sizes and repetitions that `self.log` has rules for."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        if batch_idx == 0:
            self.log("first_only", loss, on_step=True, on_epoch=True)
        if batch_idx % 2:
            self.log("odd", float(batch_idx), on_step=False, on_epoch=True)
        self.log("int", batch_idx, on_epoch=True)
        self.log("bool", torch.tensor(batch_idx % 2 == 0), on_epoch=True)
        self.log("half", loss.half(), on_epoch=True)
        self.log("one", loss.reshape(1), on_epoch=True)
        self.log("quiet", loss, logger=False, on_epoch=True)
        self.log("bar", loss, prog_bar=True, logger=False)
        self.log("sized", loss, batch_size=batch_idx + 1, on_step=False, on_epoch=True)
        self.log("top", loss, reduce_fx="max", on_step=False, on_epoch=True)
        self.log("total", loss, reduce_fx=torch.sum, on_step=False, on_epoch=True)
        self.log("least", loss, reduce_fx=min, on_step=True, on_epoch=True)
        self.log("twice", 1.0, on_step=True, on_epoch=True)
        self.log("twice", 3.0, on_step=True, on_epoch=True)
        self.log("shared", 1.0, on_epoch=True)
        self.log_dict({"d/a": loss, "d/b": 2.0}, on_epoch=True)
        return loss

    def on_train_batch_end(self: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("shared", 5.0, on_epoch=True)

    def on_train_epoch_end(self: Any) -> None:
        self.log("epoch_end", float(self.current_epoch))
        self.log("shared_epoch_end", 1.0)

    out = {}
    for name, options in {
        "every_1": {},
        "every_3": {"log_every_n_steps": 3},
        "acc": {"accumulate_grad_batches": 2},
    }.items():
        body = {"training_step": training_step, "on_train_batch_end": on_train_batch_end}
        rec, net = Rec(), classifier(fw, body={**body, "on_train_epoch_end": on_train_epoch_end})
        t = trainer(fw, rec, max_epochs=2, **options)
        t.fit(net, train_rows(), val_rows())
        out[name] = rec.out(t, net, bar=by_name(t.progress_bar_metrics))
    return {**out, "step_name": _step_name(fw), "no_tensor": _no_tensor(fw)}


def _step_name(fw: Framework) -> Result:
    """A metric called `step` is the step."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log_dict({"loss": loss, "step": float(100 + batch_idx)})
        return loss

    rec, net = Rec(), classifier(fw, body={"training_step": training_step})
    t = trainer(fw, rec, max_epochs=1)
    t.fit(net, train_rows())
    return rec.out(t, net)


def _no_tensor(fw: Framework) -> Result:
    """Batches without any tensor: a mean needs a size, a step value does not."""
    out: Result = {}
    for name, options in {
        "step": {},
        "epoch": {"on_epoch": True},
        "sized": {"on_epoch": True, "batch_size": 2},
    }.items():

        def training_step(self: Any, batch: Any, batch_idx: int, options: Result = options) -> Any:
            self.log("x", float(batch_idx), **options)
            return sum(p.sum() for p in self.parameters())

        configure = lambda m: torch.optim.SGD(m.parameters(), 0.1)  # noqa: E731
        rec, net = Rec(), classifier(fw, body={"training_step": training_step}, configure=configure)
        t = trainer(fw, rec, max_epochs=1)
        error = error_of(lambda t=t, net=net: t.fit(net, Batches("abc")))
        out[name] = {"error": error, "metrics": by_name(t.callback_metrics)}
    return out


def job_resume(fw: Framework) -> Result:
    """Stop after an epoch, go on in a new trainer: counters, optimizer, scheduler, metrics; no random numbers in it."""

    def configure(m: Any) -> Any:
        opt = torch.optim.AdamW(m.parameters(), lr=0.05)
        return [opt], [{"scheduler": S.StepLR(opt, 5, 0.5), "interval": "step"}, S.ExponentialLR(opt, 0.9)]

    out: Result = {}
    for name, (stop, options) in {
        "after_1": (1, {}),
        "after_2": (2, {"accumulate_grad_batches": 2}),
        "no_sanity": (1, {"num_sanity_val_steps": 0}),
    }.items():
        path = f"{tempfile.mkdtemp()}/x.ckpt"
        first, again = (classifier(fw, configure=configure, seed=seed) for seed in (0, 1))
        t = trainer(fw, Rec(), max_epochs=stop, **options)
        t.fit(first, train_rows(), val_rows())
        t.save_checkpoint(path)
        rec = Rec()
        t = trainer(fw, rec, max_epochs=4, **options)
        t.fit(again, train_rows(), val_rows(), ckpt_path=path)
        out[name] = rec.out(t, again)
    return out


def job_averaging(fw: Framework) -> Result:
    """Stochastic and exponential averages of weights."""
    out: Result = {}
    for name, make in {
        "swa": lambda: fw.callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2, annealing_epochs=2),
        "swa_fraction": lambda: fw.callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=0.5),
        "ema": lambda: fw.callbacks.EMAWeightAveraging(decay=0.9),
        "ema_every_2": lambda: fw.callbacks.EMAWeightAveraging(decay=0.9, update_every_n_steps=2),
        "ema_late": lambda: fw.callbacks.EMAWeightAveraging(decay=0.9, update_starting_at_step=5),
    }.items():
        rec, net, path = Rec(), classifier(fw), f"{tempfile.mkdtemp()}/x.ckpt"
        t = trainer(fw, rec, [make()], max_epochs=5)
        t.fit(net, train_rows(), val_rows())
        t.save_checkpoint(path)
        sums = {k: v.double().sum().item() for k, v in torch.load(path, weights_only=False)["state_dict"].items()}
        out[name] = rec.out(t, net, saved=sums)
    return out


def job_hooks_that_change_training(fw: Framework) -> Result:
    """Overridden optimizer_step, backward, zero_grad, clipping, scheduler step and transfer hooks."""

    def optimizer_step(self: Any, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + self.trainer.global_step)
        optimizer.step(closure=optimizer_closure)

    def backward(self: Any, loss: Any) -> None:
        (2 * loss).backward()

    def configure_gradient_clipping(
        self: Any, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any
    ) -> None:
        if batches["n"] % 2:
            self.clip_gradients(
                optimizer, gradient_clip_val=gradient_clip_val, gradient_clip_algorithm=gradient_clip_algorithm
            )
        batches["n"] += 1

    def lr_scheduler_step(self: Any, scheduler: Any, metric: Any) -> None:
        scheduler.step()
        self.log_calls = getattr(self, "log_calls", 0) + 1

    def on_after_batch_transfer(self: Any, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * (2 if self.trainer.training else 1), batch[1]]

    def optimizer_zero_grad(self: Any, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if batch_idx % 2 == 0:
            optimizer.zero_grad()

    def with_schedule(m: Any) -> Any:
        opt = torch.optim.SGD(m.parameters(), lr=0.1)
        return [opt], [{"scheduler": S.ExponentialLR(opt, 0.9), "interval": "step"}]

    batches = {"n": 0}
    cases: dict[str, tuple[Result, Any, Result]] = {
        "optimizer_step": ({"optimizer_step": optimizer_step}, None, {}),
        "backward": ({"backward": backward}, None, {"accumulate_grad_batches": 2}),
        "clipping": ({"configure_gradient_clipping": configure_gradient_clipping}, None, {"gradient_clip_val": 0.1}),
        "scheduler": ({"lr_scheduler_step": lr_scheduler_step}, with_schedule, {}),
        "transfer": ({"on_after_batch_transfer": on_after_batch_transfer}, None, {}),
        "zero_grad": ({"optimizer_zero_grad": optimizer_zero_grad}, None, {}),
    }
    out = {}
    for name, (body, configure, options) in cases.items():
        rec, net = Rec(), classifier(fw, body=body, configure=configure)
        t = trainer(fw, rec, max_epochs=2, **options)
        t.fit(net, train_rows(), val_rows())
        out[name] = rec.out(t, net, calls=getattr(net, "log_calls", None))
    return out


def job_optimizer_forms(fw: Framework) -> Result:
    """Every documented return value of configure_optimizers, with the error where there is one."""

    def sgd(m: Any, part: int | None = None) -> Any:
        return torch.optim.SGD((m if part is None else m.net[part]).parameters(), lr=0.1)

    def with_one(form: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
        def configure(m: Any) -> Any:
            opt = sgd(m)
            return form(opt, S.ExponentialLR(opt, 0.5))

        return configure

    forms: dict[str, Callable[[Any], Any]] = {
        "one": sgd,
        "list": lambda m: [sgd(m)],
        "tuple": lambda m: (sgd(m),),
        "lists": with_one(lambda o, s: ([o], [s])),
        "lists_dict": with_one(lambda o, s: ([o], [{"scheduler": s, "interval": "step", "frequency": 3}])),
        "dict": with_one(lambda o, s: {"optimizer": o, "lr_scheduler": s}),
        "dict_dict": with_one(lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s, "name": "mine"}}),
        "list_of_dict": with_one(lambda o, s: [{"optimizer": o, "lr_scheduler": s}]),
        "dict_alone": lambda m: {"optimizer": sgd(m)},
        "none": lambda m: None,
        "empty_lists": lambda m: ([sgd(m)], []),
        "single_scheduler": with_one(lambda o, s: ([o], s)),
        "unknown_key": with_one(lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s, "intervall": "step"}}),
        "bad_interval": with_one(lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s, "interval": "batch"}}),
        "no_scheduler_key": with_one(lambda o, s: {"optimizer": o, "lr_scheduler": {"interval": "step"}}),
        "foreign_scheduler": lambda m: ([sgd(m)], [S.ExponentialLR(sgd(m), 0.5)]),
        "words": lambda m: "sgd",
    }
    out = {}
    for name, configure in forms.items():
        rec, net = Rec(), classifier(fw, configure=configure)
        t = trainer(fw, rec, [fw.callbacks.LearningRateMonitor()], max_epochs=2)
        error = error_of(lambda t=t, net=net: t.fit(net, train_rows()))
        out[name] = {"error": error} if error else rec.out(t, net)
    return out


def job_evaluate(fw: Framework) -> Result:
    """validate, test and predict alone: several loaders, step values, limits, results."""

    def step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        self.log("loss", F.cross_entropy(self(x), y), on_step=True, on_epoch=True)
        self.log("plain", float(batch_idx), prog_bar=True)
        self.log("hidden", float(batch_idx), logger=False)
        if dataloader_idx == 1:
            self.log("second_only", 1.0 + batch_idx)

    def at_end(self: Any) -> None:
        self.log("at_end", 3.0)

    body = {
        "validation_step": step,
        "test_step": step,
        "predict_step": lambda self, batch, batch_idx, dataloader_idx=0: self(batch[0]) + dataloader_idx,
        "on_validation_epoch_end": at_end,
        "on_test_epoch_end": at_end,
    }
    out: Result = {}
    for name, options in {
        "plain": {},
        "limited": {f"limit_{k}_batches": 2 for k in ("val", "test", "predict")},
    }.items():
        for kind, loaders in {
            "one": val_rows,
            "two": lambda: [val_rows(), test_rows()],
            "dict": lambda: {"a": val_rows(), "b": test_rows()},
        }.items():
            rec, net = Rec(), classifier(fw, body=body)
            t = trainer(fw, rec, **options)
            val = t.validate(net, loaders(), verbose=False)
            test = t.test(net, loaders(), verbose=False)
            found: Result = {"validate": plain(val), "test": plain(test), "logged": rec.logged}
            found["predict"] = plain(t.predict(net, loaders()))
            out[f"{name}_{kind}"] = {**found, "metrics": by_name(t.callback_metrics)}
    return out


JOBS: dict[str, Callable[[Framework], Result]] = {
    name.removeprefix("job_"): job for name, job in list(globals().items()) if name.startswith("job_")
}
