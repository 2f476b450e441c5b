"""Optimizers and schedulers: what `configure_optimizers` may return, and how they step.

Owns: parsing and checking the return value, the wrapper given to users, when a scheduler is due.
Does not own: forward, backward and clipping (`step`).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from .distributed import rank_zero_warn
from .errors import MisconfigurationException, did_you_mean

ACCEPTED = (
    "an optimizer, a list of optimizers, ([optimizers], [schedulers]), "
    "{'optimizer': ..., 'lr_scheduler': ...}, a list of such dicts, or None"
)


@dataclass(slots=True)
class LRSchedulerConfig:
    """A scheduler and when it steps.

    Attributes:
        scheduler: Of torch, or any object whose stepping `lr_scheduler_step` defines.
        name: For `LearningRateMonitor`; None: made from the optimizer's class.
        interval: "epoch" or "step".
        frequency: Every so many intervals.
        reduce_on_plateau: Whether `step` takes the monitored value.
        monitor: Name of the metric for it.
        strict: Whether a missing metric is an error.
    """

    scheduler: Any
    name: str | None = None
    interval: str = "epoch"
    frequency: int = 1
    reduce_on_plateau: bool = False
    monitor: str | None = None
    strict: bool = True


class StepOptimizer:
    """What `self.optimizers()` returns: the optimizer, whose `step` also takes care of precision, hooks and counters.

    It is made by `wrap` as a subclass of the optimizer's class, so that schedulers and user code take it as it is, and
    it reads and writes the optimizer's own attributes.
    """

    optimizer: Any
    _perform: Callable[..., Any]
    _module: Any

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)
    defaults = property(lambda self: self.optimizer.defaults)

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # A scheduler built on this wrapper replaces `step` on it, which must not reach the optimizer inside.
        if name == "step":
            object.__setattr__(self, name, value)
        else:
            setattr(self.optimizer, name, value)

    def __repr__(self) -> str:
        return repr(self.optimizer)

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Step the optimizer.

        Args:
            closure: Called by the optimizer to compute loss and gradients; optional under manual optimisation.
            **kwargs: Go to the optimizer's own `step`.
        """
        return self._perform(self.optimizer, closure, **kwargs)

    def state_dict(self) -> Any:
        """Return the optimizer's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: Any) -> None:
        """Load the optimizer's state."""
        self.optimizer.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the optimizer."""
        self.optimizer.add_param_group(param_group)

    @contextlib.contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Train this optimizer's parameters alone within a `with` block.

        Args:
            sync_grad: False leaves gradients unsynchronised between processes in it, for accumulation by hand.
        """
        context = contextlib.nullcontext() if sync_grad else self._module.trainer.strategy.no_sync()
        with self._module.toggled_optimizer(self), context:
            yield


def wrap(optimizer: Any, perform: Callable[..., Any], module: Any) -> StepOptimizer:
    """Return `optimizer` as a `StepOptimizer` of `module`, whose `step` calls `perform(optimizer, closure)`."""
    cls = type(f"Step{type(optimizer).__name__}", (StepOptimizer, type(optimizer)), {})
    wrapper: StepOptimizer = object.__new__(cls)
    wrapper.__dict__.update(optimizer=optimizer, _perform=perform, _module=module)
    return wrapper


def unwrap(optimizer: Any) -> Any:
    """Return the optimizer inside a `StepOptimizer`, or `optimizer` itself."""
    return optimizer.optimizer if isinstance(optimizer, StepOptimizer) else optimizer


def needs_closure(optimizer: Optimizer) -> bool:
    """Return whether `step` cannot run without a closure (LBFGS, SAM)."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def parse_optimizers(
    returned: Any, *, automatic: bool, custom_scheduler_step: bool
) -> tuple[list[Optimizer], list[LRSchedulerConfig], list[int]]:
    """Return optimizers, schedulers and, for 1.x modules, how many batches in turn each optimizer gets.

    Args:
        returned: One of the accepted shapes.
        automatic: Whether the engine steps the schedulers.
        custom_scheduler_step: Whether the module overrides `lr_scheduler_step`, which makes any scheduler object valid.

    Raises:
        MisconfigurationException: Another shape, a scheduler that cannot work, or one of an optimizer not returned.
    """
    optimizers, schedulers, frequencies = _split(returned)
    optimizers = [unwrap(optimizer) for optimizer in optimizers]
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer) and not hasattr(optimizer, "param_groups"):
            raise MisconfigurationException(
                f"`configure_optimizers` returned a `{type(optimizer).__name__}` where an optimizer is due. "
                f"Accepted are {ACCEPTED}."
            )
    configs = [_config(scheduler, monitor, automatic) for scheduler, monitor in schedulers]
    for config in configs:
        _check(config, optimizers, automatic=automatic, custom_step=custom_scheduler_step)
    return optimizers, configs, frequencies


def _split(returned: Any) -> tuple[list[Any], list[tuple[Any, str | None]], list[int]]:
    """Return the optimizers, the schedulers each with the metric it watches, and the frequencies."""
    if returned is None:
        rank_zero_warn("`configure_optimizers` returned None: this fit runs with no optimizer.")
        return [], [], []
    returned = returned if isinstance(returned, (list, tuple)) else [returned]
    if len(returned) == 2 and isinstance(returned[0], (list, tuple)):
        optimizers, schedulers = returned
        schedulers = schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]
        return list(optimizers), [(scheduler, None) for scheduler in schedulers], []
    if not all(isinstance(item, Mapping) for item in returned):
        return list(returned), [], []
    watched = []
    for item in returned:
        _refuse_unknown(item)
        schedulers = item.get("lr_scheduler")
        schedulers = [] if schedulers is None else schedulers if isinstance(schedulers, list) else [schedulers]
        watched += [(scheduler, item.get("monitor") or None) for scheduler in schedulers]
    frequencies = [int(item["frequency"]) for item in returned if len(returned) > 1 and item.get("frequency")]
    return [item["optimizer"] for item in returned], watched, frequencies if len(frequencies) == len(returned) else []


def _refuse_unknown(returned: Mapping[str, Any]) -> None:
    accepted = ("optimizer", "lr_scheduler", "monitor", "frequency")
    if "optimizer" not in returned:
        raise MisconfigurationException(
            f"`configure_optimizers` returned a dict with the keys {list(returned)} and no 'optimizer'. Accepted: "
            f"{ACCEPTED}."
        )
    for key in returned:
        if key not in accepted:
            rank_zero_warn(
                f"`configure_optimizers` returned the key {key!r}, which is not used.{did_you_mean(key, accepted)} "
                f"Known keys: {', '.join(accepted)}."
            )


def _config(scheduler: Any, monitor: str | None, automatic: bool) -> LRSchedulerConfig:
    scheduler = scheduler if isinstance(scheduler, Mapping) else {"scheduler": scheduler}
    known = {field.name for field in fields(LRSchedulerConfig)}
    if "scheduler" not in scheduler:
        raise MisconfigurationException(
            f"The `lr_scheduler` dict has the keys {list(scheduler)} and no 'scheduler'. Known keys: {sorted(known)}."
        )
    for key in scheduler.keys() - known:
        rank_zero_warn(
            f"The `lr_scheduler` key {key!r} is not used.{did_you_mean(key, known)} Known keys: {sorted(known)}."
        )
    settings: dict[str, Any] = {"monitor": monitor, **{k: v for k, v in scheduler.items() if k in known}}
    settings.setdefault("reduce_on_plateau", isinstance(scheduler["scheduler"], ReduceLROnPlateau))
    if not automatic:
        ignored = [key for key in ("monitor", "strict", "reduce_on_plateau") if key in scheduler]
        if ignored:
            rank_zero_warn(f"Under manual optimisation you step the schedulers; these keys are not used: {ignored}.")
    return LRSchedulerConfig(**settings)


def _check(config: LRSchedulerConfig, optimizers: list[Any], *, automatic: bool, custom_step: bool) -> None:
    scheduler = config.scheduler
    name = type(scheduler).__name__
    known = isinstance(scheduler, (LRScheduler, ReduceLROnPlateau))
    if not known and not (hasattr(scheduler, "state_dict") and hasattr(scheduler, "load_state_dict")):
        raise TypeError(
            f"The scheduler `{name}` has no `state_dict` and `load_state_dict`, so it could not be resumed. Define "
            "both."
        )
    if not known and automatic and not custom_step:
        raise MisconfigurationException(
            f"The scheduler `{name}` is not one of torch's, so the engine does not know how to step it. "
            "Override `lr_scheduler_step(self, scheduler, metric)`."
        )
    if config.interval not in ("step", "epoch"):
        raise MisconfigurationException(f"interval={config.interval!r} of `{name}`: accepted are 'epoch' and 'step'.")
    if not isinstance(config.frequency, int) or config.frequency < 1:
        raise MisconfigurationException(
            f"frequency={config.frequency!r} of `{name}`: a whole number from 1 is accepted."
        )
    if automatic and config.reduce_on_plateau and config.monitor is None:
        raise MisconfigurationException(
            f"`{name}` needs a metric to watch. Return {{'optimizer': o, 'lr_scheduler': s, 'monitor': 'val_loss'}}."
        )
    if automatic and config.interval == "epoch" and isinstance(scheduler, OneCycleLR):
        rank_zero_warn("`OneCycleLR` is made to step at every batch: use {'scheduler': ..., 'interval': 'step'}.")
    owner = unwrap(getattr(scheduler, "optimizer", None))
    if owner is not None and not any(owner is optimizer for optimizer in optimizers):
        raise MisconfigurationException(
            f"`{name}` belongs to an optimizer that `configure_optimizers` did not return. Return that optimizer as "
            "well."
        )
