"""What a random small job is, and how hypothesis draws one.

A Job is plain data: printed, it is the whole description of a run, and pasted back it runs again
(`python -m tests.parity.differential "Job(...)"`). `play.py` runs it; nothing here knows a framework.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from hypothesis import strategies as st

from tests.parity import odd
from tests.parity.framework import words

BATCH = 4
STEP_HOOKS = {
    "train": words(
        """training_step on_train_batch_start on_train_batch_end on_before_backward on_after_backward
        on_before_optimizer_step on_before_zero_grad"""
    ),
    "val": words("validation_step on_validation_batch_start on_validation_batch_end"),
    "test": words("test_step on_test_batch_start on_test_batch_end"),
}
EPOCH_HOOKS = {
    "train": words("on_train_start on_train_epoch_start on_train_epoch_end"),
    "val": words("on_validation_start on_validation_epoch_start on_validation_epoch_end"),
    "test": words("on_test_start on_test_epoch_start on_test_epoch_end"),
}
CHECKPOINTS = words("checkpoint checkpoint_plain checkpoint_steps checkpoint_every_2 checkpoint_val checkpoint_at_val")
OTHER_CALLBACKS = words("lr_monitor early_stopping early_stopping_val ema swa")
CLOSURE_HOOKS = words("on_before_backward on_after_backward on_before_optimizer_step on_before_zero_grad")
MODULE_ONLY = ("training_step", "validation_step", "test_step")
OVERRIDES = words("optimizer_step backward lr_scheduler_step configure_gradient_clipping optimizer_zero_grad")


class Compact:
    """A dataclass whose repr leaves out what has its default."""

    def __repr__(self) -> str:
        changed = (f for f in fields(self) if getattr(self, f.name) != _default(f))  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"


def _default(f: Any) -> Any:
    return f.default_factory() if callable(f.default_factory) else f.default


@dataclass(frozen=True, repr=False)
class Log(Compact):
    """One `self.log` call: where, by whom ("module" or "callback"), what, with which flags.

    `value` is "count" (a float that changes at every call), "tensor" (the same as a tensor), "loss", or the name of a
    torchmetrics class that is updated and logged as an object.
    """

    hook: str = "training_step"
    name: str = "x"
    by: str = "module"
    value: str = "count"
    flags: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Sched(Compact):
    """One scheduler and how it is configured."""

    kind: str = "exponential"
    interval: str = "epoch"
    frequency: int = 1
    monitor: str | None = None
    strict: bool = True


@dataclass(frozen=True, repr=False)
class Job(Compact):
    """One run of fit, and what follows it.

    Attributes:
        train: rows of each training loader; batches hold 4 rows.
        nest: how several training loaders are passed: "list", "dict", or a mode of CombinedLoader.
        val: rows of each validation loader.
        unsized: the loaders have no length.
        shuffle: the training loaders shuffle by the global random numbers.
        dropout: of the network.
        source: where loaders come from: "arguments", "module" or "datamodule".
        trainer: options of the Trainer.
        optimizers: one ("sgd", "adamw", "lbfgs") per optimizer; more than one only with `manual`.
        manual: manual optimisation.
        schedulers: of the first optimizer.
        logs: the calls of `self.log` besides the loss's.
        none_on: batches at which `training_step` returns None.
        returns: "tensor" or "dict".
        stop_at: (epoch, batch) at which the step sets `should_stop`.
        skip_at: (epoch, batch) at which `on_train_batch_start` returns -1.
        overrides: methods that the module overrides in a way that changes training.
        callbacks: built-in callbacks, by the names of `play.CALLBACKS`.
        checkpoint: options of one more `ModelCheckpoint`.
        early: options of one more `EarlyStopping`.
        odd: names of `odd.ODD`: what else is out of the ordinary.
        watch_hooks: override every hook, in order to compare their order.
        resume_after: train so many epochs first, save, and go on in a new trainer.
        then: calls after fit: "validate", "test", "predict", "test_best" (with the best checkpoint), "test_again"
            (without a model), "fit"; "_loaders" after the name: pass loaders also where fit had a data module.
    """

    train: tuple[int, ...] = (13,)
    nest: str = "list"
    val: tuple[int, ...] = (9,)
    unsized: bool = False
    shuffle: bool = False
    dropout: float = 0.0
    source: str = "arguments"
    trainer: dict[str, Any] = field(default_factory=dict)
    optimizers: tuple[str, ...] = ("sgd",)
    manual: bool = False
    schedulers: tuple[Sched, ...] = ()
    logs: tuple[Log, ...] = ()
    none_on: tuple[int, ...] = ()
    returns: str = "tensor"
    stop_at: tuple[int, int] | None = None
    skip_at: tuple[int, int] | None = None
    overrides: tuple[str, ...] = ()
    callbacks: tuple[str, ...] = ()
    checkpoint: dict[str, Any] | None = None
    early: dict[str, Any] | None = None
    odd: tuple[str, ...] = ()
    watch_hooks: bool = False
    resume_after: int | None = None
    then: tuple[str, ...] = ()


def simpler(job: Job) -> Iterator[Job]:
    """Every job that has one thing less than `job`, the largest steps first."""
    plain = Job()
    for f in fields(job):
        value = getattr(job, f.name)
        if value in (getattr(plain, f.name), {"max_epochs": job.trainer.get("max_epochs")}):
            continue
        keep = {"max_epochs": value["max_epochs"]} if isinstance(value, dict) and "max_epochs" in value else {}
        yield replace(job, **{f.name: keep or getattr(plain, f.name)})
        if isinstance(value, dict):
            rest = [{k: v for k, v in value.items() if k != key} for key in value if key not in keep]
            yield from (replace(job, **{f.name: less}) for less in rest)
        elif isinstance(value, tuple) and len(value) > 1 and f.name != "optimizers":
            yield from (replace(job, **{f.name: value[:i] + value[i + 1 :]}) for i in range(len(value)))


def batches_of(rows: int) -> int:
    """Batches that a loader of so many rows gives."""
    return math.ceil(rows / BATCH)


def one_in(n: int) -> st.SearchStrategy[bool]:
    """True once in n draws; shrinks to False."""
    return st.sampled_from([False] * (n - 1) + [True])


@st.composite
def logs(draw: Any) -> Log:
    """One call of `self.log`, mostly with flags that its hook allows."""
    stage = draw(st.sampled_from(["train", "train", "val", "val", "test"]))
    per_step = draw(st.booleans())
    hook = draw(st.sampled_from((STEP_HOOKS if per_step else EPOCH_HOOKS)[stage]))
    by = "module" if hook in MODULE_ONLY else draw(st.sampled_from(["module", "callback"]))
    name = draw(st.sampled_from(["a", "b", "c/d"] if stage == "train" else ["va", "vb", "a"]))
    value = draw(st.sampled_from(["count", "tensor", "count", "loss", "MeanMetric", "MaxMetric"]))
    if by == "callback" or (value == "loss" and hook not in MODULE_ONLY):
        value = "count"
    flags: dict[str, Any] = {}
    maybe = st.sampled_from([None, True, False])
    on_step, on_epoch = (draw(maybe), draw(maybe)) if per_step else (None, draw(st.sampled_from([None, True])))
    default = (True, False) if stage == "train" and per_step else (False, True)
    off = (default[0] if on_step is None else on_step, default[1] if on_epoch is None else on_epoch) == (False, False)
    chosen = {"on_step": on_step, "on_epoch": True if off else on_epoch}
    flags.update({k: v for k, v in chosen.items() if v is not None})
    for flag, choices in {
        "prog_bar": [False, True],
        "logger": [None, True, False],
        "reduce_fx": ["mean", "max", "min", "sum"],
        "batch_size": [None, 1, 3],
        "add_dataloader_idx": [True, False],
    }.items():
        if draw(one_in(4)):
            flags[flag] = draw(st.sampled_from(choices))
    if not value[0].islower():
        flags.pop("reduce_fx", None)
        flags.pop("batch_size", None)
    return Log(hook, name, by, value, {k: v for k, v in flags.items() if v is not None})


@st.composite
def schedulers(draw: Any) -> Sched:
    """One scheduler, by epoch, step or plateau."""
    kind = draw(st.sampled_from(["exponential", "step", "cosine", "plateau"]))
    interval = draw(st.sampled_from(["epoch", "step"]))
    monitor = None
    if kind == "plateau":
        monitor = draw(st.sampled_from(["train_loss", "val_loss", "train_loss_step", "nowhere"]))
    strict = draw(st.booleans()) if monitor else True
    return Sched(kind, interval, draw(st.sampled_from([1, 1, 2, 3])), monitor, strict)


@st.composite
def trainer_options(draw: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Options of the Trainer that go with the rest of the job."""
    out: dict[str, Any] = {"max_epochs": draw(st.sampled_from([2, 3, 1, 4]))}
    n = max(map(batches_of, job["train"]))
    if draw(one_in(3)):
        whole = st.sampled_from([*range(1, n + 2), 0])
        out["limit_train_batches"] = draw(whole if job["unsized"] or n < 5 else st.one_of(whole, st.floats(0.2, 1.0)))
        limit = out["limit_train_batches"]
        n = min(n, limit) if isinstance(limit, int) else max(1, int(n * limit))
    if job["val"] and draw(one_in(4)):
        out["limit_val_batches"] = draw(st.sampled_from([0, 1, 2, 5] if job["unsized"] else [0, 1, 2, 0.5, 0.75, 1.0]))
    if draw(st.booleans()):
        out.update(draw(_intervals(n, job["unsized"])))
    simple: dict[str, st.SearchStrategy[Any]] = {
        "max_steps": st.integers(1, 14),
        "min_epochs": st.integers(1, 3),
        "min_steps": st.integers(1, 9),
        "num_sanity_val_steps": st.sampled_from([-1, 0, 1, 3]),
        "log_every_n_steps": st.sampled_from([2, 3, 50]),
        "fast_dev_run": st.sampled_from([True, 2]),
        "overfit_batches": st.sampled_from([1, 2]),
        "limit_test_batches": st.sampled_from([1, 2, 0]),
        "limit_predict_batches": st.sampled_from([1, 0.5]),
        "reload_dataloaders_every_n_epochs": st.integers(1, 2),
        "inference_mode": st.just(False),
        "detect_anomaly": st.just(True),
        "precision": st.sampled_from(["bf16-mixed", "64-true", "bf16-true", "32-true"]),
    }
    for name, strategy in simple.items():
        rare = name in ("fast_dev_run", "overfit_batches", "precision", "detect_anomaly", "inference_mode")
        if draw(one_in(16 if rare else 5)):
            out[name] = draw(strategy)
    if not job["manual"]:
        if draw(st.booleans()):
            out["accumulate_grad_batches"] = draw(st.integers(1, 4))
        if draw(one_in(3)):
            out["gradient_clip_val"] = draw(st.sampled_from([0.02, 0.3, 5.0]))
            out["gradient_clip_algorithm"] = draw(st.sampled_from(["norm", "value"]))
    return out


@st.composite
def _intervals(draw: Any, n: int, unsized: bool) -> dict[str, Any]:
    every = draw(st.sampled_from([None, 1, 1, 2, 3]))
    if every is None:
        return {"check_val_every_n_epoch": None, "val_check_interval": draw(st.integers(1, 2 * n + 1))}
    out: dict[str, Any] = {"check_val_every_n_epoch": every}
    kind = draw(st.sampled_from(["default", "int", "float"]))
    if kind == "int":
        out["val_check_interval"] = draw(st.integers(1, max(n, 1)))
    elif kind == "float" and not unsized:
        out["val_check_interval"] = draw(st.sampled_from([0.25, 0.4, 0.5, 0.7, 1.0]))
    return out


def _counts_alike(call: Log, job: dict[str, Any]) -> bool:
    """Whether upstream's epoch mean of this value is a mean of all values.

    On the first batch of an epoch lightning 2.6.6 forgets what was logged whenever the logging hook changes. With one
    closure call per batch that is right; with several it loses values.
    """
    several = job["manual"] or "lbfgs" in job["optimizers"]
    return not (several and call.hook in CLOSURE_HOOKS)


def _some(draw: Any, choices: dict[str, list[Any]]) -> dict[str, Any]:
    return {name: draw(st.sampled_from(values)) for name, values in choices.items() if draw(one_in(3))}


@st.composite
def checkpoints(draw: Any) -> dict[str, Any]:
    """Options of a `ModelCheckpoint`."""
    choices: dict[str, list[Any]] = {
        "filename": ["fixed", "{epoch}", "{epoch}-{train_loss:.3f}", "{step}-{nowhere}", "a/{epoch}"],
        "monitor": ["train_loss", "val_loss", "train_loss_epoch", "nowhere"],
        "save_last": [True, False, "link"],
        "save_top_k": [-1, 0, 1, 2, 3],
        "save_weights_only": [True],
        "mode": ["max", "min"],
        "auto_insert_metric_name": [False],
        "save_on_train_epoch_end": [True, False],
        "enable_version_counter": [False],
        "save_on_exception": [True],
        **draw(st.sampled_from([{"every_n_train_steps": [1, 2, 3, 0]}, {"every_n_epochs": [1, 2, 3, 0]}])),
    }
    return _some(draw, choices)


@st.composite
def early_stoppings(draw: Any) -> dict[str, Any]:
    """Options of an `EarlyStopping`."""
    choices: dict[str, list[Any]] = {
        "min_delta": [0.05, -0.1],
        "patience": [0, 1, 2],
        "mode": ["max"],
        "strict": [False],
        "stopping_threshold": [1.0],
        "divergence_threshold": [1.0],
        "check_on_train_epoch_end": [True, False],
    }
    return {"monitor": draw(st.sampled_from(["train_loss", "val_loss", "train_loss_step"])), **_some(draw, choices)}


def oddities(job: dict[str, Any], refused: bool) -> list[str]:
    """The names in `odd.ODD` that go with the rest of the job."""
    out = set(odd.ODD)
    by_hand = {name for name in odd.NET if name.startswith("manual_")}
    out -= (set(odd.CONFIGURE) | {"automatic_calls_manual_backward"}) if job["manual"] else by_hand
    out -= {"two_accumulations"} if job["manual"] else set()  # refused by both, with another kind of error
    if not job["val"]:
        out -= set(odd.VAL)
    if job["watch_hooks"]:  # upstream puts an optimizer that does nothing in its place, and calls its hooks
        out -= {"no_optimizer"}
    if job["manual"] or "lbfgs" in job["optimizers"]:  # see `_counts_alike`
        hooks = ("backward", "optimizer_zero_grad", "configure_gradient_clipping", "optimizer_step")
        out = {name for name in out if not any(f"_in_{hook}" in name for hook in hooks)}
    if "lbfgs" in job["optimizers"]:  # which has no weight decay: upstream raises a KeyError of its own
        out -= {"lr_monitor_epochs"}
    if "ema" in job["callbacks"]:  # upstream averages the whole numbers of batch norms too
        out -= {"has_batch_norm"}
    if job.get("early") or "early_stopping" in str(job["callbacks"]):  # upstream raises an AttributeError of its own
        out -= {"validate_by_time"}
    return sorted(out & odd.REFUSED if refused else out - odd.REFUSED)


@st.composite
def jobs(draw: Any) -> Job:
    """A whole job; most of them run, a few are refused by any framework."""
    rows = st.sampled_from([21, 26, 17, 33, 13, 9, 4, 1])
    job: dict[str, Any] = {
        "train": tuple(draw(st.lists(rows, min_size=1, max_size=draw(st.sampled_from([1, 1, 1, 2, 3]))))),
        "val": tuple(draw(st.lists(rows, min_size=0, max_size=draw(st.sampled_from([1, 1, 2, 3]))))),
        "unsized": draw(one_in(8)),
        "shuffle": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 0.0, 0.4])),
        "source": draw(st.sampled_from(["arguments", "arguments", "module", "datamodule"])),
        "manual": draw(one_in(5)),
        "returns": draw(st.sampled_from(["tensor", "tensor", "dict"])),
        "watch_hooks": draw(st.booleans()),
        "logs": tuple(draw(st.lists(logs(), max_size=4))),
        "schedulers": tuple(draw(st.lists(schedulers(), max_size=2))),
    }
    if len(job["train"]) > 1:
        job["nest"] = draw(st.sampled_from(["list", "dict", "min_size", "max_size", "max_size_cycle"]))
    if job["unsized"]:
        job["shuffle"] = False
    job["trainer"] = draw(trainer_options(job))
    epochs = job["trainer"]["max_epochs"]
    place = st.tuples(st.integers(0, epochs - 1), st.integers(0, 6))
    for key in ("stop_at", "skip_at"):
        if draw(one_in(7)):
            job[key] = draw(place)
    if draw(one_in(6)):
        job["none_on"] = tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True)))
    # LBFGS needs a closure that returns a loss.
    names = st.sampled_from(["sgd", "adamw"] if job["manual"] or "none_on" in job else ["sgd", "adamw", "lbfgs"])
    job["optimizers"] = tuple(draw(st.lists(names, min_size=1, max_size=2 if job["manual"] else 1)))
    if draw(one_in(5)) and not job["manual"]:
        job["overrides"] = tuple(draw(st.lists(st.sampled_from(OVERRIDES), min_size=1, max_size=2, unique=True)))
    job["logs"] = tuple(call for call in job["logs"] if _counts_alike(call, job))
    if "skip_at" in job:  # upstream shows what was logged at the batch before the one that ends an epoch by -1
        job["logs"] = tuple(call for call in job["logs"] if call.hook != "on_train_batch_start")
    choices = [*OTHER_CALLBACKS, draw(st.sampled_from(CHECKPOINTS))]
    if not job["manual"] and "accumulate_grad_batches" not in job["trainer"]:
        choices.append("accumulate")
    job["callbacks"] = tuple(draw(st.lists(st.sampled_from(choices), max_size=2, unique=True)))
    if job["trainer"].get("precision") == "bf16-true":
        # The average is computed in another order, which rounds apart; metric objects keep float32 here.
        job["callbacks"] = tuple(c for c in job["callbacks"] if c != "ema")
        job["logs"] = tuple(call for call in job["logs"] if call.value.islower())
    if "swa" in job["callbacks"] and (job["manual"] or "limit_train_batches" in job["trainer"]):
        job["callbacks"] = tuple(c for c in job["callbacks"] if c != "swa")
    # With max_steps upstream begins a resumed run with an empty epoch.
    if (
        epochs > 1
        and draw(one_in(5))
        and not {"fast_dev_run", "max_steps"} & set(job["trainer"])
        and not ({"steps_only", "max_steps_0", "max_epochs_0"} & set(job.get("odd", ())))
    ):
        job["resume_after"] = draw(st.integers(1, epochs - 1))
    calls = ["validate", "test", "predict", "test_loaders", "validate_loaders", "predict_loaders"]
    if not job["shuffle"] and not job["dropout"]:  # a second fit draws once more from the random numbers upstream
        calls.append("fit")
    if draw(one_in(4)) and not set(job["callbacks"]) & set(CHECKPOINTS):
        job["checkpoint"] = draw(checkpoints())
    if draw(one_in(6)):
        job["early"] = draw(early_stoppings())
    if set(job["callbacks"]) & set(CHECKPOINTS) or "checkpoint" in job:
        calls += ["test_best", "test_again"]
    if draw(st.booleans()):
        job["odd"] = tuple(
            draw(st.lists(st.sampled_from(oddities(job, draw(one_in(8)))), min_size=1, max_size=3, unique=True))
        )
    if {"steps_only", "max_steps_0", "max_epochs_0"} & set(job.get("odd", ())):
        job.pop("resume_after", None)
    job["then"] = tuple(draw(st.lists(st.sampled_from(calls), max_size=2, unique=True)))
    return Job(**job)
