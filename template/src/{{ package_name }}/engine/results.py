"""What `self.log` keeps: one record for each metric and hook, read by callbacks, progress bars and loggers.

Owns: which hooks may log, how values add up over an epoch, the names they get. Does not own: when values are read
(`metrics`) and where they are written (loggers).

A value stays a tensor on its device until somebody reads it. One call of `log` in a hot loop is one dictionary look-up,
one copy of the value and at most two appends.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import MisconfigurationException, did_you_mean
from .progress import FitProgress
from .transfer import find_batch_size

_STEP_HOOKS = (
    *("training_step", "on_train_batch_start", "on_train_batch_end", "on_before_backward", "backward"),
    *("on_after_backward", "on_before_optimizer_step", "on_before_zero_grad", "optimizer_step"),
    *("configure_gradient_clipping", "optimizer_zero_grad"),
)
_EPOCH_HOOKS = (
    *("on_train_start", "on_train_epoch_start", "on_train_epoch_end"),
    *("on_validation_start", "on_validation_epoch_start", "on_validation_epoch_end"),
    *("on_test_start", "on_test_epoch_start", "on_test_epoch_end"),
)
_EVAL_HOOKS = (
    *("validation_step", "on_validation_batch_start", "on_validation_batch_end"),
    *("test_step", "on_test_batch_start", "on_test_batch_end"),
)

LOG_DEFAULTS: dict[str, tuple[bool, bool]] = {
    **dict.fromkeys(_STEP_HOOKS, (True, False)),
    **dict.fromkeys(_EPOCH_HOOKS, (False, True)),
    **dict.fromkeys(_EVAL_HOOKS, (False, True)),
}
"""Hook -> the defaults of (`on_step`, `on_epoch`) for metrics logged in it; hooks that are absent cannot log."""

_REDUCTIONS = {"mean": "mean", "avg": "mean", "sum": "sum", "max": "max", "min": "min"}
_FOLD_AT = 256  # values kept apart before they are summed: one stack for 256 additions


class LogOptions(NamedTuple):
    """The arguments of `self.log` other than name, value and batch size, as the user wrote them."""

    prog_bar: bool
    logger: bool | None
    on_step: bool | None
    on_epoch: bool | None
    reduce_fx: Any
    enable_graph: bool
    sync_dist: bool
    sync_dist_group: Any
    add_dataloader_idx: bool
    rank_zero_only: bool


class Collected(NamedTuple):
    """Metrics by reader; values are tensors or floats."""

    callback: dict[str, Any]
    log: dict[str, Any]
    bar: dict[str, Any]
    steps: dict[str, int]


@dataclass(slots=True)
class Record:
    """One metric as logged in one hook (and for one evaluation loader)."""

    name: str
    options: LogOptions
    on_step: bool
    on_epoch: bool
    reduction: str
    suffix: str
    dataloader_idx: int | None
    metric: Any = None
    """The torchmetrics object, if one was logged."""
    sync: Callable[[Any, str], Any] | None = None
    """Reduces a step value over processes; None when not asked for or alone."""
    step_value: Any = None
    values: list[Any] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    total: Any = None
    weight: float = 0.0
    computed: Any = None
    is_reset: bool = True
    at_step: int = 0
    is_double: bool = False
    """Values came in float64, so the epoch's value stays so."""

    def update(self, value: Any, batch_size: float, at_step: int) -> None:
        """Take one value (a float, or a detached tensor that nobody else will change)."""
        self.at_step, self.is_reset = at_step, False
        if self.on_step:
            self.step_value = value if self.sync is None else self.sync(value, self.reduction)
        if self.on_epoch:
            self.computed = None
            self.values.append(value)
            self.weights.append(batch_size)
            if len(self.values) >= _FOLD_AT:
                self.fold()

    def fold(self) -> None:
        """Reduce the values kept apart into `total` and `weight`."""
        if not self.values:
            return
        values, weights = self.values, self.weights
        self.values, self.weights = [], []
        self.is_double = isinstance(values[0], Tensor) and values[0].dtype is torch.float64
        reduced = _reduce(values, weights, self.reduction)
        if self.total is not None:
            reduced = _reduce([self.total, reduced], [1.0, 1.0], "sum" if self.reduction == "mean" else self.reduction)
        self.total = reduced
        self.weight += sum(weights)

    def compute(self) -> Any:
        """Return the epoch's value; for torchmetrics this is a collective."""
        if self.computed is None:
            if self.metric is not None:
                self.computed = self.metric.compute()
            else:
                self.fold()
                mean = self.reduction == "mean" and self.weight
                self.computed = self.total / self.weight if mean else self.total
                if isinstance(self.computed, Tensor) and self.computed.dtype is torch.float64 and not self.is_double:
                    self.computed = self.computed.float()
        return self.computed

    def reset(self) -> None:
        """Forget the epoch's values; the last step value stays for readers."""
        self.values, self.weights, self.total, self.weight = [], [], None, 0.0
        self.computed, self.is_reset = None, True
        if self.metric is not None:
            self.metric.reset()

    def key(self, on_step: bool) -> str:
        """Return the name under which the step's or the epoch's value is written."""
        fork = ("_step" if on_step else "_epoch") if self.on_step and self.on_epoch else ""
        return f"{self.name}{fork}{self.suffix}"


class MetricRecord(Record):
    """A torchmetrics object as logged in one hook; it takes no other values."""

    __slots__ = ()

    def update(self, value: Any, batch_size: float, at_step: int) -> None:
        """Refuse a number under the name of a metric object."""
        raise _twice(self.name)


def _twice(name: str) -> MisconfigurationException:
    return MisconfigurationException(
        f"`self.log({name!r}, ...)` was called twice in one hook with different arguments or with different metric "
        "objects. Give both calls the same ones, or use two names."
    )


def _reduce(values: list[Any], weights: list[float], reduction: str) -> Any:
    if not any(isinstance(value, Tensor) for value in values):
        if reduction == "mean":
            return sum(v * w for v, w in zip(values, weights, strict=True))
        if reduction == "sum" or any(math.isnan(value) for value in values):  # max and min hide a nan by its place
            return sum(values)
        return max(values) if reduction == "max" else min(values)
    anchor = next(value for value in values if isinstance(value, Tensor))
    if any(isinstance(v, Tensor) and v.requires_grad for v in values):  # enable_graph=True
        stacked = torch.stack([torch.as_tensor(v, device=anchor.device) for v in values])
    else:
        wide = anchor.dtype if anchor.device.type == "mps" else torch.float64
        stacked = torch.stack([torch.as_tensor(v, device=anchor.device, dtype=anchor.dtype) for v in values]).to(wide)
    if reduction == "mean":
        return torch.dot(stacked, torch.tensor(weights, dtype=stacked.dtype).to(stacked.device, non_blocking=True))
    return stacked.sum() if reduction == "sum" else stacked.max() if reduction == "max" else stacked.min()


class Results:
    """All records of one loop: training, or one kind of evaluation.

    Attributes:
        hook: Name of the hook being called, set by whoever calls it; None where logging is not possible.
        dataloader_idx: Index of the evaluation loader when there are several, else None.
        batch: The batch in progress, for the batch size; None outside of batches.
        in_batches: The loop is between its first and its last batch: readers get step values.
        is_empty: This process had no batch of the evaluation loader just walked; another may have had some.
        any_step: Some metric keeps step values.
    """

    def __init__(self, training: bool, progress: FitProgress) -> None:
        self.training = training
        self.progress = progress
        self.records: dict[tuple[str | None, int | None, str], Record] = {}
        self.hook: str | None = None
        self.dataloader_idx: int | None = None
        self.batch: Any = None
        self.batch_size: int | None = None
        self.in_batches = False
        self.is_empty = False
        self.any_step = False
        self.sync_step: Callable[[Any, str], Any] | None = None
        self.on_rank_zero = True

    def start_batch(self, batch: Any, dataloader_idx: int | None = None) -> None:
        """Say which batch the next values belong to."""
        self.batch, self.batch_size, self.in_batches, self.dataloader_idx = batch, None, True, dataloader_idx

    def log(self, module: Any, name: str, value: Any, given: tuple[Any, ...], batch_size: int | None) -> None:
        """Record one value for the hook in progress. See `LightningModule.log` for the meaning and the errors.

        Args:
            module: Whose metric it is.
            name: As the user wrote it.
            value: As the user wrote it.
            given: The fields of `LogOptions` as a plain tuple, which is cheaper to make and to compare.
            batch_size: Weight in the epoch's mean; None: found in the batch when it is needed.
        """
        record = self.records.get((self.hook, self.dataloader_idx, name))
        if record is None or record.options != given:
            record = self._register(module, name, value, LogOptions(*given))
        kind = type(value)
        if kind is Tensor and value.dtype is torch.float32 and value.dim() == 0:
            value = value.clone() if record.options.enable_graph else value.detach().clone()
        elif kind is not float:
            value = self._as_scalar(name, value, record.options.enable_graph)
            if is_metric(value):
                if record.metric is not value:
                    raise _twice(name)
                self._update_metric(record)
                return
        if batch_size is None:
            batch_size = 1
            if record.on_epoch and record.reduction == "mean" and self.batch is not None:
                batch_size = self.batch_size
                if batch_size is None:
                    batch_size = self.batch_size = find_batch_size(self.batch)
        if self.on_rank_zero or not record.options.rank_zero_only:
            record.update(value, batch_size, self.progress.global_step)

    def _update_metric(self, record: Record) -> None:
        record.at_step, record.is_reset, record.computed = self.progress.global_step, False, None
        forward = record.metric._forward_cache
        record.step_value = forward.detach().clone() if isinstance(forward, Tensor) else forward

    def _as_scalar(self, name: str, value: Any, keep_graph: bool) -> Any:
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(
                    f"`self.log({name!r}, ...)` got a tensor of shape {tuple(value.shape)}. A metric is one number. "
                    f"Log `value.mean()` or another single element."
                )
            value = value.reshape(()) if keep_graph else value.detach().clone().reshape(())
            if not value.is_floating_point():
                value = value.to(torch.get_default_dtype())
            return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        if is_metric(value):
            return value
        if not hasattr(value, "__float__"):
            hint = " Nested dictionaries cannot be logged; flatten it." if isinstance(value, Mapping) else ""
            raise ValueError(
                f"`self.log({name!r}, ...)` got a `{type(value).__name__}`.{hint} "
                "Accepted are numbers, tensors of one element and torchmetrics objects."
            )
        return float(value)

    def _register(self, module: Any, name: str, value: Any, options: LogOptions) -> Record:
        """Check a metric that is logged for the first time in this hook and make its record."""
        on_step, on_epoch = check_options(self.hook, name, options)
        if isinstance(value, (Mapping, str)):
            self._as_scalar(name, value, False)
        index = self.dataloader_idx
        key = (self.hook, index, name)
        if key in self.records:
            if _means_the_same(self.records[key], options, on_step, on_epoch):
                return self.records[key]
            raise _twice(name)
        if not options.add_dataloader_idx and any(k[0] == self.hook and k[2] == name for k in self.records):
            raise MisconfigurationException(
                f"`self.log({name!r}, add_dataloader_idx=False)` was called for several loaders, whose values would "
                "replace each other. Give each loader its own name, or leave `add_dataloader_idx` out."
            )
        metric = value if is_metric(value) else None
        if metric is not None:
            check_metric_attribute(module, name, metric)
        record = (MetricRecord if metric is not None else Record)(
            name,
            options,
            on_step,
            on_epoch,
            _REDUCTIONS[reduction_name(options.reduce_fx)],
            f"/dataloader_idx_{index}" if options.add_dataloader_idx and index is not None else "",
            index,
            metric,
            self.sync_step if options.sync_dist and not options.rank_zero_only else None,
        )
        self.records[key] = record
        self.any_step = self.any_step or on_step
        return record

    def valid(self) -> Iterator[Record]:
        """Yield the records that hold values and belong to the loader in progress."""
        for record in self.records.values():
            if not record.is_reset and record.dataloader_idx == self.dataloader_idx:
                yield record

    def collect(self, on_step: bool) -> Collected:
        """Return what readers may see now: step values between batches, epoch values otherwise."""
        found = Collected({}, {}, {}, {})
        for record in self.valid():
            if on_step and record.on_step:
                value = record.step_value
            elif not on_step and record.on_epoch:
                value = record.compute()
            else:
                continue
            if value is None or not isinstance(value, (float, int, Tensor)):
                continue
            key = record.key(on_step)
            if record.options.logger is not False:
                found.log[key] = value
            if record.options.prog_bar:
                found.bar[key] = value
            if self.training or (record.on_epoch and not on_step):
                plain = record.name + record.suffix
                found.callback[plain] = found.callback[key] = value
                found.steps[plain] = found.steps[key] = record.at_step
        return found

    def reset(self) -> None:
        """Reset every record."""
        for record in self.records.values():
            record.reset()


def _means_the_same(record: Record, options: LogOptions, on_step: bool, on_epoch: bool) -> bool:
    """Return whether options written differently come to the same (`logger=None` and `logger=True`)."""
    resolved = options._replace(logger=record.options.logger, on_step=None, on_epoch=None)
    same_logger = (options.logger is not False) == (record.options.logger is not False)
    same_times = (on_step, on_epoch) == (record.on_step, record.on_epoch)
    return same_logger and same_times and resolved == record.options._replace(on_step=None, on_epoch=None)


class NoResults:
    """What `log` writes to when nothing is to be kept (`barebones`)."""

    def log(self, *_: Any) -> None:
        """Take a value and forget it."""


def reduction_name(reduce_fx: Any) -> str:
    """Return the name of a reduction given by name or as a function (`torch.mean`, `max`)."""
    known = isinstance(reduce_fx, str) or getattr(reduce_fx, "__module__", None) in (None, "builtins", "torch")
    return str(getattr(reduce_fx, "__name__", reduce_fx)).lower() if known else ""


def check_options(hook: str | None, name: str, options: LogOptions) -> tuple[bool, bool]:
    """Return (`on_step`, `on_epoch`) after the hook's defaults, or say what is wrong.

    Raises:
        MisconfigurationException: The hook cannot log, or not in this way.
    """
    if hook is None or hook not in LOG_DEFAULTS:
        where = f"in `{hook}`" if hook else "outside of the hooks of a running loop"
        raise MisconfigurationException(
            f"`self.log({name!r}, ...)` was called {where}, where no loop collects metrics. "
            "Log in the steps or in the hooks of training, validation and test "
            "(`on_*_start`, `on_*_epoch_*`, `on_*_batch_*`), or write to `self.logger` directly."
        )
    step, epoch = LOG_DEFAULTS[hook]
    on_step = step if options.on_step is None else options.on_step
    on_epoch = epoch if options.on_epoch is None else options.on_epoch
    if hook in _EPOCH_HOOKS and (on_step or not on_epoch):
        raise MisconfigurationException(
            f"`self.log({name!r}, on_step={on_step}, on_epoch={on_epoch})` in `{hook}`: this hook runs once an epoch. "
            "Use on_step=False, on_epoch=True, or leave both out."
        )
    if not on_step and not on_epoch:
        raise MisconfigurationException(
            f"`self.log({name!r}, on_step=False, on_epoch=False)` writes nothing. Set one of them to True."
        )
    if reduction_name(options.reduce_fx) not in _REDUCTIONS:
        raise MisconfigurationException(
            f"`self.log({name!r}, reduce_fx={options.reduce_fx!r})`: accepted are 'mean', 'sum', 'max' and 'min'. "
            "For another reduction log a `torchmetrics.Metric`."
        )
    if options.add_dataloader_idx and "/dataloader_idx_" in name:
        raise MisconfigurationException(
            f"The metric name {name!r} contains '/dataloader_idx_', which the engine adds itself. "
            "Use another name, or `add_dataloader_idx=False`."
        )
    return on_step, on_epoch


def is_metric(value: Any) -> bool:
    """Return whether `value` is a torchmetrics metric, without importing torchmetrics."""
    torchmetrics = sys.modules.get("torchmetrics")
    return torchmetrics is not None and isinstance(value, torchmetrics.Metric)


def is_metric_collection(value: Any) -> bool:
    """Return whether `value` is a torchmetrics collection, without importing torchmetrics."""
    torchmetrics = sys.modules.get("torchmetrics")
    return torchmetrics is not None and isinstance(value, torchmetrics.MetricCollection)


def check_metric_attribute(module: Any, name: str, metric: Any) -> None:
    """Refuse a torchmetrics object that the module does not own: it would not move, nor be found again."""
    owned = [child for child in module.modules() if is_metric(child)]
    if any(child is metric for child in owned):
        return
    names = [attribute for attribute, child in module.named_modules() if is_metric(child)]
    raise MisconfigurationException(
        f"`self.log({name!r}, {type(metric).__name__}(...))`: the metric is not an attribute of "
        f"`{type(module).__name__}` (metrics it has: {names or 'none'}).{did_you_mean(name, names)} "
        "Make it in `__init__`, as `self.accuracy = ...`, and log `self.accuracy`."
    )
