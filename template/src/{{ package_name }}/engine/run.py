"""`Run`: everything that is alive during one call of `fit`, `validate`, `test` or `predict`.

Owns: the object the loops work on, and the small things they share (moving a batch, sending metrics to loggers).
Does not own: the loops (`fit`, `evaluate`, `predict`) and the settings (`trainer`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .acceleration import SideStream
from .data import Feed
from .dispatch import HookFunction, HookTable, parameters_of
from .distributed import rank_zero_warn
from .optimizer import LRSchedulerConfig, StepOptimizer
from .precision import Precision
from .progress import FitProgress
from .reduction import reduce_epoch
from .results import NoResults, Results
from .states import RunningStage, TrainerState
from .strategies.agreement import Agreement
from .strategies.base import Strategy
from .transfer import move_data_to_device


def plain_backward(loss: Any, *args: Any, **kwargs: Any) -> None:
    """Let the loss go backward in its own way, with nothing around it."""
    loss.backward(*args, **kwargs)


@dataclass(slots=True)
class Loaders:
    """Loaders of one stage.

    Attributes:
        nest: As the user gave them: one loader, or a list or dict of several.
        loaders: Flattened.
        limits: Batches to take of each, `inf` until they end; for training one number, for all of them together.
    """

    nest: Any
    loaders: list[Any]
    limits: list[float]


@dataclass(slots=True)
class Run:
    """One call of a Trainer function, from setup to teardown."""

    trainer: Any
    module: Any
    datamodule: Any
    state: TrainerState
    strategy: Strategy
    precision: Precision
    hooks: HookTable
    progress: FitProgress
    loggers: list[Any]
    parity: bool
    train_results: Results
    eval_results: Results
    transfer: Callable[[Any, int], Any] = lambda batch, _: batch

    # Set when `fit` starts.
    optimizers: list[Optimizer] = field(default_factory=list)
    step_optimizers: list[StepOptimizer] = field(default_factory=list)
    schedulers: list[LRSchedulerConfig] = field(default_factory=list)
    frequencies: list[int] = field(default_factory=list)
    # These three are None until the run is prepared.
    feed: Feed = None  # type: ignore[assignment]
    step: Callable[..., Any] = None  # type: ignore[assignment]  # one of the functions of `step`
    training_step: Callable[[Any, int], Any] = None  # type: ignore[assignment]
    backward: HookFunction = plain_backward
    zero_grad: Callable[[int], None] | None = None
    before_step: Callable[[Optimizer], None] | None = None
    uses_closure: bool = False
    window: int = 1
    window_size: int = 1
    starts_window: bool = True
    stepped: bool = False
    ends_window: bool = True
    held: dict[Tensor, Tensor] = field(default_factory=dict)  # gradients of the window's earlier batches, manual mode
    validates: bool = False  # in this epoch
    val_check_batch: float = float("inf")
    val_check_seconds: float | None = None
    last_validation_s: float = 0.0
    outer_rng: dict[str, Any] | None = None
    saved_feed: dict[str, Any] | None = None  # where the checkpoint was in the training data
    val_states: dict[str, Any] | None = None  # of the validation loaders: when it began, or from the checkpoint
    is_last_batch: bool = False
    refreshed_at: int = -1
    resumed: bool = False
    agreement: Agreement | None = None

    # Set when loaders are loaded.
    train_loaded_at: float = -float("inf")  # epochs
    val_loaded_at: float = -float("inf")
    val: Loaders | None = None
    evaluation: Loaders | None = None
    seen_batches: dict[int, int] = field(default_factory=dict)
    plateau_steps: dict[int, int] = field(default_factory=dict)
    is_torn_down: bool = False

    def enter(self, stage: RunningStage, results: Any) -> None:
        """Go into a stage: what `trainer.training` and the like say, and where `log` records."""
        self.state.stage = stage
        self.hooks.results = results
        if self.trainer.barebones:
            results = NoResults()
        self.module._share("_results", results)

    def enter_nothing(self) -> None:
        """Leave the last stage: from here on nothing can be logged."""
        self.hooks.results = None
        self.module._share("_results", None)
        self.state.stage = None

    def is_fresh(self, config: LRSchedulerConfig) -> bool:
        """Return whether a plateau scheduler's metric was computed after its last step, and take note of it."""
        step: int = self.trainer.metric_steps.get(config.monitor, -1)
        fresh = step < 0 or self.plateau_steps.get(id(config)) != step
        self.plateau_steps[id(config)] = step
        return fresh

    def log_due(self) -> bool:
        """Return whether loggers write at this batch.

        Every `log_every_n_steps`; besides, at the first and the last batch of an epoch, so that a short run leaves a
        curve.
        """
        trainer, step = self.trainer, self.progress.log_step
        every = trainer.log_every_n_steps
        if every == 0:
            return False
        if (step + 1) % every == 0 or trainer.should_stop:
            return True
        return not self.parity and bool(self.is_last_batch or step == self.progress.epoch_first_log_step)

    def send(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Write metrics to the loggers and the history: plain floats, moved to the host in one transfer.

        Args:
            metrics: Tensors and numbers by name.
            step: The x axis. None: the logging step, and the epoch is added; a metric named "step" replaces it.

        Raises:
            ValueError: A torchmetrics object computed more than one number, which loggers cannot write.
        """
        if not metrics:
            return
        trainer = self.trainer
        trainer.metrics.logged.update(metrics)
        numbers = to_floats(scalars(metrics, needed=bool(self.loggers)))
        if step is None:
            own = numbers.pop("step", None)
            if own is None:
                numbers.setdefault("epoch", self.progress.epoch)
                step = self.progress.log_step
            else:
                step = int(own)
        trainer.history_rows.append({"step": step, "time": time.time(), **numbers})
        for logger in self.loggers if self.strategy.is_global_zero else ():
            try:
                logger.log_metrics(dict(numbers), step=step)
            except Exception as error:
                if len(trainer.history_rows) == 1:  # it never worked: a mistake, and nothing is lost yet
                    raise
                report_failure(logger, "log_metrics", error)

    def reduce_epoch(self, results: Results) -> None:
        """Reduce the epoch's metrics over processes. A collective."""
        if self.strategy.is_distributed:
            reduce_epoch(results, self.strategy, self.module)


def scalars(metrics: dict[str, Any], *, needed: bool) -> dict[str, Any]:
    """Return the metrics of one number; with `needed` there must be no others."""
    wide = [name for name, value in metrics.items() if isinstance(value, Tensor) and value.numel() != 1]
    if wide and needed:
        raise ValueError(
            f"The metric `{wide[0]}` has the shape {tuple(metrics[wide[0]].shape)}, and loggers write single numbers. "
            "Log its mean, or each number under its own name; or `self.log(..., logger=False)` and read it from "
            "`trainer.callback_metrics`."
        )
    return {name: value for name, value in metrics.items() if name not in wide} if wide else metrics


def report_failure(logger: Any, method: str, error: Exception) -> None:
    """Warn that a logger failed, where that must not end a training."""
    rank_zero_warn(
        f"`{type(logger).__name__}.{method}` failed: {type(error).__name__}: {error}. The training is not touched by "
        "it; what this logger misses is in the other loggers and in the history that `fit` returns."
    )


def to_floats(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the metrics as floats.

    The tensors of one device are stacked and copied at once: this is the sync that a log interval costs.
    """
    floats = {name: float(value) for name, value in metrics.items() if not isinstance(value, Tensor)}
    by_device: dict[torch.device, list[str]] = {}
    for name, value in metrics.items():
        if isinstance(value, Tensor):
            by_device.setdefault(value.device, []).append(name)
    for names in by_device.values():
        if len(names) == 1:
            floats[names[0]] = metrics[names[0]].item()  # sync
        else:
            together = torch.stack([metrics[name].detach().to(torch.float64) for name in names])
            floats.update(zip(names, together.tolist(), strict=True))  # sync
    return {name: floats[name] for name in metrics}


def make_transfer(hooks: HookTable, strategy: Strategy, precision: Precision) -> Callable[[Any, int], Any]:
    """Return the function that brings a batch to its device, with the hooks that somebody overrides and no others."""
    device = strategy.root_device
    before, transfer, after = (
        hooks.data_hook(name)
        for name in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
    )
    convert = precision.convert_input if precision.converts_input else None

    def move(batch: Any, dataloader_idx: int) -> Any:
        if convert is not None:
            batch = convert(batch)
        if before is not None:
            batch = before(batch, dataloader_idx)
        batch = move_data_to_device(batch, device) if transfer is None else transfer(batch, device, dataloader_idx)
        return batch if after is None else after(batch, dataloader_idx)

    plain = before is None and transfer is None and after is None and convert is None
    if plain and device.type == "cuda":
        return SideStream(device)
    return (lambda batch, _: move_data_to_device(batch, device)) if plain else move


def step_arguments(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[[Any, int, int], tuple[Any, ...]]:
    """Return what to pass to a user's step, decided once by its signature.

    Args:
        function: The bound step.
        names: Optional arguments in order, as ("batch_idx", "dataloader_idx").
    """
    parameters = parameters_of(function)
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_all = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    count = len(names) if takes_all else max(0, min(len(positional) - 1, len(names)))
    return lambda batch, *rest: (batch, *rest[:count])
