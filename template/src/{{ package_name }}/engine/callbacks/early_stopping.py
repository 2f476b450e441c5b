"""`EarlyStopping`: end training when a metric stops improving.

Owns: the decision. Does not own: when training really stops (minima, end of the epoch); that is the trainer's.

    not finite -> stop · past `stopping_threshold` -> stop · past `divergence_threshold` -> stop
    better than the best by more than `min_delta` -> new best · else one more check in vain, stop at `patience`
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..distributed import log, rank_zero_info, rank_zero_warn
from ..durations import counted
from ..hooks import Callback
from ._monitor import Monitor, one_validation_per_epoch, validates

if TYPE_CHECKING:
    from ..module import LightningModule
    from ..trainer import Trainer

_KEPT = ("wait_count", "stopped_epoch", "best_score", "best_epoch", "patience")


class EarlyStoppingReason(Enum):
    """Why training was stopped."""

    NOT_STOPPED = 0
    STOPPING_THRESHOLD = 1
    DIVERGENCE_THRESHOLD = 2
    PATIENCE_EXHAUSTED = 3
    NON_FINITE_METRIC = 4


class EarlyStopping(Callback):
    """Stop training when a metric has not improved for `patience` checks.

    A check happens once in every epoch, or after every validation where these are more or fewer. A value that was not
    computed since the last check is not counted (with `parity` it is).

    Args:
        monitor: Metric to watch, as logged.
        min_delta: A smaller change is no improvement, in units of the metric.
        patience: Checks without improvement after which training stops; "3ep": the epochs from that of the best value
            to the check that stops, however often is checked.
        verbose: Log every improvement; the reason of a stop is logged always.
        mode: "min" or "max".
        strict: A metric that nobody logs is an error; False: then nothing is checked.
        check_finite: Stop at a NaN or an infinite value.
        stopping_threshold: Stop as soon as the metric is better than this.
        divergence_threshold: Stop as soon as the metric is worse than this.
        check_on_train_epoch_end: Where checks happen; None: at the training epoch's end if validation runs once in
            every epoch or never, else after validation.
        log_rank_zero_only: Log on rank 0 only, not on every rank that decides.

    Every rank checks its own value; one that wants to stop stops all (collective).

    Raises:
        MisconfigurationException: `mode` is neither "min" nor "max".
        RuntimeError: In a run, with `strict`: nobody logs `monitor`.
    """

    role = "early_stopping"
    runs_last = True
    mode_dict: ClassVar[dict[str, Callable[..., Tensor]]] = {"min": torch.lt, "max": torch.gt}
    order_dict: ClassVar[dict[str, str]] = {"min": "<", "max": ">"}

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int | str = 3,
        verbose: bool = False,
        mode: str = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        super().__init__()
        self._watch = Monitor(monitor, mode, type(self).__name__)
        self.monitor = monitor
        self.mode = mode
        self.min_delta = abs(min_delta) if mode == "max" else -abs(min_delta)
        self._signed_delta = min_delta if mode == "max" else -min_delta
        self.patience = patience
        counted(patience, "EarlyStopping(patience", "epochs")  # now, not in the middle of training
        self.verbose = verbose
        self.strict = strict
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.log_rank_zero_only = log_rank_zero_only
        self.wait_count = self.best_epoch = self.stopped_epoch = self._epoch = 0
        self.best_score = torch.tensor(self._watch.worst)
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message: str | None = None
        self._check_on_train_epoch_end = check_on_train_epoch_end
        self._checked_at = -1
        self._had_stopped = False

    @property
    def state_key(self) -> str:
        """Name of this callback's state: several with other metrics may be used together."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    @property
    def monitor_op(self) -> Callable[..., Tensor]:
        """`torch.lt` or `torch.gt`: is the first value better than the second?"""
        return self.mode_dict[self.mode]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop a run that is resumed, if it had been stopped when its checkpoint was written."""
        if self._had_stopped and not trainer.parity:
            trainer.should_stop = True
            rank_zero_info("The run had ended, %s. Leave EarlyStopping out to go on.", self.stopping_reason_message)
        self._had_stopped = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check after validation, if that is when this callback acts."""
        if self._is_active(trainer):
            self._watch.after_validation(trainer)
            if not self._acts_at_epoch_end(trainer):
                self._check(trainer, after_validation=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check at the epoch's end: always for training metrics, whose means exist only now."""
        if not self._is_active(trainer):
            return
        training_metric = not trainer.parity and not self._watch.from_validation
        if self._acts_at_epoch_end(trainer) or training_metric:
            self._check(trainer)

    def _is_active(self, trainer: Trainer) -> bool:
        return trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.fast_dev_run

    def _acts_at_epoch_end(self, trainer: Trainer) -> bool:
        if self._check_on_train_epoch_end is not None:
            return self._check_on_train_epoch_end
        return one_validation_per_epoch(trainer) or not (trainer.parity or validates(trainer))

    def _check(self, trainer: Trainer, after_validation: bool = False) -> None:
        current = trainer.callback_metrics.get(self.monitor)
        if current is None:
            self._missing(trainer, after_validation)
            return
        if not self._watch.is_fresh(trainer, after_validation) or self._is_counted(trainer):
            return
        if trainer.parity:  # where a negative `min_delta` lets a worse value pass
            self.min_delta = self._signed_delta
        self._epoch = trainer.current_epoch
        should_stop, text = self._evaluate_stopping_criteria(current.squeeze())  # sync: the metric is read
        # Whoever wants to stop stops all, or the others would wait for it in their next collective.
        should_stop = trainer.strategy.reduce_boolean_decision(should_stop, all=False)
        if should_stop:
            trainer.should_stop = True
            self.stopped_epoch, self.stopping_reason_message = self._epoch, text
        if text is not None and (should_stop or self.verbose):
            (rank_zero_info if self.log_rank_zero_only or trainer.world_size == 1 else log.info)(text)

    def _is_counted(self, trainer: Trainer) -> bool:
        """Return whether this very value was checked before; remember it otherwise."""
        computed_at = trainer.metric_steps.get(self.monitor, -1)
        if trainer.parity or computed_at == -1:
            return False
        is_counted, self._checked_at = computed_at == self._checked_at, computed_at
        return is_counted

    def _missing(self, trainer: Trainer, after_validation: bool) -> None:
        is_due = trainer.parity or (self._watch.is_due(trainer) and not after_validation)
        if is_due and self.strict:
            raise RuntimeError(self._watch.unknown(trainer))
        if is_due and self.verbose:
            rank_zero_warn(self._watch.unknown(trainer), category=RuntimeWarning)

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        """Return (stop, what happened) for one value, and keep count."""
        value = f"{self.monitor} = {float(current):.5g}"
        is_better = self._watch.is_better
        if self.check_finite and not torch.isfinite(current):
            return self._stop(EarlyStoppingReason.NON_FINITE_METRIC, f"{value} is not finite")
        if self.stopping_threshold is not None and is_better(current, self.stopping_threshold):
            return self._stop(EarlyStoppingReason.STOPPING_THRESHOLD, f"{value} has reached {self.stopping_threshold}")
        if self.divergence_threshold is not None and is_better(self.divergence_threshold, current):
            return self._stop(EarlyStoppingReason.DIVERGENCE_THRESHOLD, f"{value} is past {self.divergence_threshold}")
        if is_better(current - self.min_delta, self.best_score.to(current.device)):
            before = f", was {float(self.best_score):.5g}" if torch.isfinite(self.best_score) else ""
            self.best_score, self.wait_count, self.best_epoch = current, 0, self._epoch
            return False, f"{value} (best{before})"
        self.wait_count += 1
        waited = self._epoch - self.best_epoch if isinstance(self.patience, str) else self.wait_count
        if waited < counted(self.patience, "patience", "epochs"):
            return False, None
        text = f"{self.monitor} has not improved in {self.wait_count} checks, best {float(self.best_score):.5g}"
        return self._stop(EarlyStoppingReason.PATIENCE_EXHAUSTED, text)

    def _stop(self, reason: EarlyStoppingReason, text: str) -> tuple[bool, str]:
        self.stopping_reason = reason
        return True, f"stopping: {text}"

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and how long ago it was."""
        state = {key: getattr(self, key) for key in (*_KEPT, "stopping_reason_message")}
        watched = {"checked_at": self._checked_at, "from_validation": self._watch.from_validation}
        return {**state, "stopping_reason": self.stopping_reason.value, **watched}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        for key in _KEPT:
            setattr(self, key, state_dict.get(key, getattr(self, key)))  # the reference knows no `best_epoch`
        self.stopping_reason = EarlyStoppingReason(state_dict.get("stopping_reason", 0))
        self.stopping_reason_message = state_dict.get("stopping_reason_message")
        self._had_stopped = self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED
        self._checked_at = state_dict.get("checked_at", -1)
        self._watch.from_validation = state_dict.get("from_validation", False)
