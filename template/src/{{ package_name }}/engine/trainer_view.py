"""What can be read from a Trainer: states, counters, metrics, loaders.

Owns: properties, cheap and without side effects but for `estimated_stepping_batches`, which may load the training data.
Does not own: settings and calls (`trainer`).
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from .accelerators import Accelerator, select_accelerator
from .data import CombinedLoader
from .errors import MisconfigurationException
from .evaluate import can_validate
from .hooks import Callback
from .loading import load_training
from .metrics import CurrentMetrics, as_tensor
from .precision import Precision
from .progress import LIMITS, FitProgress, LoopView
from .run import Loaders, Run
from .signals import SignalWatch
from .states import RunningStage, TrainerFn, TrainerState
from .step import prepare_steps
from .strategies.base import Strategy

if TYPE_CHECKING:
    from .optimizer import LRSchedulerConfig

INFINITE = float("inf")


class TrainerView:
    """The readable side of `Trainer`; the writable side sets these attributes."""

    state: TrainerState
    run: Run | None
    progress: FitProgress
    metrics: CurrentMetrics
    strategy: Strategy
    precision_plugin: Precision
    callbacks: list[Callback]
    loggers: list[Any]
    signals: SignalWatch
    current_loaders: Loaders | None
    loaders: dict[str, Loaders]
    default_root_dir: str
    history_rows: list[dict[str, Any]]
    _ckpt_path: str | Path | None
    _ckpt_path_is_set: bool
    predictions: list[Any]
    epoch_batch_indices: list[Any]
    current_batch_indices: list[int]
    num_nodes: int
    max_epochs: int
    max_steps: int
    min_epochs: int | None
    min_steps: int | None
    limit_train_batches: int | float
    limit_val_batches: int | float
    limit_test_batches: int | float
    limit_predict_batches: int | float
    overfit_batches: int | float
    num_sanity_val_steps: int | float
    val_check_interval: int | float
    val_check_seconds: float | None
    check_val_every_n_epoch: int | None
    log_every_n_steps: int
    accumulate_grad_batches: int
    parity: bool
    gradient_clip_val: int | float | None
    gradient_clip_algorithm: str | None

    # Stage.

    def _is(self, stage: RunningStage) -> bool:
        return self.state.stage is stage

    @property
    def training(self) -> bool:
        """Whether `fit` is in progress outside of its validations."""
        return self._is(RunningStage.TRAINING)

    @property
    def sanity_checking(self) -> bool:
        """Whether the sanity check is in progress."""
        return self._is(RunningStage.SANITY_CHECKING)

    @property
    def validating(self) -> bool:
        """Whether a validation is in progress, also one inside `fit`."""
        return self._is(RunningStage.VALIDATING)

    @property
    def testing(self) -> bool:
        """Whether `test` is in progress."""
        return self._is(RunningStage.TESTING)

    @property
    def predicting(self) -> bool:
        """Whether `predict` is in progress."""
        return self._is(RunningStage.PREDICTING)

    @property
    def evaluating(self) -> bool:
        """Whether a validation, a test or the sanity check is in progress."""
        return self.state.stage is not None and self.state.stage.evaluating

    # Counters.

    @property
    def current_epoch(self) -> int:
        """Index of the epoch in progress; afterwards the number of finished epochs."""
        return self.progress.epoch

    @property
    def global_step(self) -> int:
        """Batches that ended with an optimizer step."""
        return self.progress.global_step

    @property
    def total_batches(self) -> int:
        """Training batches seen over all epochs."""
        return self.progress.total_batches

    @property
    def samples_seen(self) -> int:
        """Training samples seen, as far as the batches' sizes are known."""
        return self.progress.samples

    @property
    def log_step(self) -> int:
        """The x axis of the loggers."""
        return self.progress.log_step

    @property
    def log_due(self) -> bool:
        """Whether the loggers write at this batch."""
        return self.run is not None and self.run.log_due()

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch in progress is the epoch's last."""
        return self.run is not None and self.run.is_last_batch

    @property
    def received_sigterm(self) -> bool:
        """Whether this process was asked to end."""
        return self.signals.received in ("SIGTERM", "SIGUSR1")

    @property
    def is_between_batches(self) -> bool:
        """Whether a run resumed from a checkpoint written now continues exactly: no batch is half done."""
        return not self.progress.inside_epoch or self.progress.tail != "" or self.signals.is_leaving

    # Metrics.

    @property
    def callback_metrics(self) -> dict[str, Any]:
        """Latest metrics for monitors: name -> tensor. The dictionary is live; values put into it stay."""
        self._refresh("callback")
        return self.metrics.callback

    @property
    def logged_metrics(self) -> dict[str, Any]:
        """Latest metrics that go to loggers."""
        self._refresh("logged")
        self.metrics.logged.update({name: as_tensor(value) for name, value in self.metrics.logged.items()})
        return self.metrics.logged

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """Latest metrics logged with `prog_bar=True`, as numbers. Reading them is a device sync."""
        self._refresh("bar")
        return {name: float(value) for name, value in self.metrics.bar.items()}  # sync

    @property
    def metric_steps(self) -> dict[str, int]:
        """Name -> `global_step` at which a callback metric was last computed."""
        self._refresh("callback")
        return self.metrics.steps

    def _refresh(self, reader: str) -> None:
        if self.run is not None:
            self.metrics.refresh(self.run.hooks.results, reader)

    # Processes and devices.

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.strategy.world_size

    @property
    def global_rank(self) -> int:
        """Index of this process among all."""
        return self.strategy.global_rank

    @property
    def local_rank(self) -> int:
        """Index of this process on its node."""
        return self.strategy.local_rank

    @property
    def node_rank(self) -> int:
        """Index of this node."""
        return self.strategy.node_rank

    @property
    def is_global_zero(self) -> bool:
        """Whether this process writes files and speaks for all."""
        return self.strategy.is_global_zero

    @property
    def num_devices(self) -> int:
        """Devices used on this node."""
        return max(1, self.world_size // max(1, self.num_nodes))

    @property
    def device_ids(self) -> list[int]:
        """Indices of the devices used on this node."""
        index = self.strategy.root_device.index
        return [index or 0] if self.num_devices == 1 else list(range(self.num_devices))

    @property
    def precision(self) -> str:
        """Numerical precision, such as "32-true" or "bf16-mixed"."""
        return self.precision_plugin.precision

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The gradient scaler of 16-mixed, or None."""
        return self.precision_plugin.scaler

    @property
    def accelerator(self) -> Accelerator:
        """The kind of device in use."""
        return select_accelerator(self.strategy.root_device.type)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int] | None:
        """What a `DistributedSampler` of your own needs; None with one process."""
        return {"num_replicas": self.world_size, "rank": self.global_rank} if self.strategy.is_distributed else None

    @property
    def ckpt_path(self) -> str | Path | None:
        """The file this call restores, or None. Set it to have later calls without `ckpt_path=` restore that file."""
        return self._ckpt_path

    @ckpt_path.setter
    def ckpt_path(self, path: str | Path | None) -> None:
        self._ckpt_path, self._ckpt_path_is_set = path, path is not None

    # Module, optimizers, callbacks, loggers.

    @property
    def lightning_module(self) -> Any:
        """The user's module, or None before the first call."""
        return self.run.module if self.run is not None else None

    @property
    def model(self) -> Any:
        """The module as the strategy calls it."""
        return self.strategy.model or self.lightning_module

    @property
    def optimizers(self) -> list[Any]:
        """The raw optimizers."""
        return self.run.optimizers if self.run is not None else []

    @optimizers.setter
    def optimizers(self, optimizers: list[Any]) -> None:
        if self.run is not None:
            self.run.optimizers = optimizers
            prepare_steps(self.run)

    @property
    def step_optimizers(self) -> list[Any]:
        """The optimizers whose `step` also takes care of precision, hooks and counters."""
        return self.run.step_optimizers if self.run is not None else []

    @property
    def lr_scheduler_configs(self) -> list[LRSchedulerConfig]:
        """The schedulers and when they step."""
        return self.run.schedulers if self.run is not None else []

    def _callbacks_of(self, role: str) -> list[Any]:
        return [callback for callback in self.callbacks if callback.role == role]

    @property
    def checkpoint_callbacks(self) -> list[Any]:
        """All checkpoint callbacks."""
        return self._callbacks_of("checkpoint")

    @property
    def checkpoint_callback(self) -> Any:
        """The first checkpoint callback, or None."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> list[Any]:
        """All early-stopping callbacks."""
        return self._callbacks_of("early_stopping")

    @property
    def early_stopping_callback(self) -> Any:
        """The first early-stopping callback, or None."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def progress_bar_callback(self) -> Any:
        """The progress bar, or None."""
        return next(iter(self._callbacks_of("bar")), None)

    @property
    def logger(self) -> Any:
        """The first logger, or None."""
        return self.loggers[0] if self.loggers else None

    @logger.setter
    def logger(self, logger: Any) -> None:
        self.loggers = [] if not logger else [logger]

    @property
    def log_dir(self) -> str:
        """The first logger's directory, else `default_root_dir`. A collective: read it on every rank or on none."""
        logger = self.logger
        found = None if logger is None else getattr(logger, "log_dir", None) or logger.save_dir
        directory: str = self.strategy.broadcast(str(found or self.default_root_dir))
        return directory

    # Loaders.

    @property
    def train_dataloader(self) -> Any:
        """The training loaders as the user gave them, or None before they are loaded."""
        return self._nest("train")

    @property
    def num_training_batches(self) -> int | float:
        """Batches of a training epoch; `inf` when unknown."""
        return next(iter(self._limits("train")), INFINITE)

    def _nest(self, stage: str) -> Any:
        nest = self.loaders[stage].nest if stage in self.loaders else None
        return nest.iterables if isinstance(nest, CombinedLoader) else nest

    def _limits(self, stage: str) -> list[int | float]:
        limits = self.loaders[stage].limits if stage in self.loaders else []
        return [limit if limit == INFINITE else int(limit) for limit in limits]

    @property
    def val_dataloaders(self) -> Any:
        """The validation loaders as the user gave them, or None."""
        return self._nest("val")

    @property
    def test_dataloaders(self) -> Any:
        """The test loaders as the user gave them, or None."""
        return self._nest("test")

    @property
    def predict_dataloaders(self) -> Any:
        """The prediction loaders as the user gave them, or None."""
        return self._nest("predict")

    @property
    def num_val_batches(self) -> list[int | float]:
        """Batches of each validation loader."""
        return self._limits("val")

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        """Batches of each validation loader that the sanity check uses."""
        return [min(self.num_sanity_val_steps, size) for size in self.num_val_batches]

    @property
    def num_test_batches(self) -> list[int | float]:
        """Batches of each test loader."""
        return self._limits("test")

    @property
    def num_predict_batches(self) -> list[int | float]:
        """Batches of each prediction loader."""
        return self._limits("predict")

    @property
    def enable_validation(self) -> bool:
        """Whether `fit` validates: there are a `validation_step`, loaders and a limit above 0."""
        if self.run is None or self.limit_val_batches == 0:
            return False
        return self.state.fn is not TrainerFn.FITTING or can_validate(self.run)

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps of the whole fit; `inf` without limits. Loads the training data when it is not loaded yet.

        Raises:
            MisconfigurationException: There is no fit to estimate.
        """
        if self.max_epochs == -1:
            return INFINITE if self.max_steps == -1 else self.max_steps
        if self.run is None:
            raise MisconfigurationException(
                "`estimated_stepping_batches` is known inside `fit` only, as in `configure_optimizers`."
            )
        if self.run.feed is None and self.limit_train_batches != 0:
            load_training(self.run)
        batches = self.num_training_batches
        if batches == INFINITE:
            return INFINITE if self.max_steps == -1 and not self.parity else self.max_steps
        steps = math.ceil(batches / self.accumulate_grad_batches) * max(self.max_epochs, 1)
        return steps if self.max_steps == -1 else min(steps, self.max_steps)

    # Where code of the reference framework looks for loops.

    @property
    def fit_loop(self) -> SimpleNamespace:
        """The counters of `fit` in the reference framework's shape; its limits can be set."""
        progress = self.progress
        shared = {"batch_idx": max(progress.batch_idx - 1, 0), "total_batch_idx": progress.total_batches - 1}
        steps = {"global_step": progress.global_step, "_batches_that_stepped": progress.log_step}
        limits = {name: getattr(self, name) for name in LIMITS}
        epoch_loop = LoopView(_trainer=self, **shared, **steps, **limits)
        return LoopView(_trainer=self, epoch_loop=epoch_loop, **shared, **limits)

    @property
    def predict_loop(self) -> SimpleNamespace:
        """What `predict` has collected, in the reference framework's shape."""
        return SimpleNamespace(
            predictions=self.predictions,
            epoch_batch_indices=self.epoch_batch_indices,
            current_batch_indices=self.current_batch_indices,
        )
