"""`Timer`: measure the stages of a run, and stop training when its time is over."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..distributed import rank_zero_info
from ..durations import Duration
from ..errors import MisconfigurationException, did_you_mean
from ..hooks import Callback

if TYPE_CHECKING:
    from ..module import LightningModule
    from ..trainer import Trainer

_INTERVALS = ("step", "epoch")


class Timer(Callback):
    """Keep the time of training, validation and test; stop training when `duration` is over.

    The training time of a resumed run goes on from where it was saved.

    Args:
        duration: "DD:HH:MM:SS", "1h30m", a `timedelta` or its keyword arguments as a dict; None: only measure.
        interval: Look at the clock after every "step" or "epoch". With several processes rank 0's clock decides, looked
            at every `log_every_n_steps` batches, for it is a collective.
        verbose: Log a line when time is over.

    Raises:
        MisconfigurationException: An unknown interval, or a duration that is no time.
    """

    def __init__(
        self, duration: str | timedelta | dict[str, int] | None = None, interval: str = "step", verbose: bool = True
    ) -> None:
        super().__init__()
        if interval not in _INTERVALS:
            raise MisconfigurationException(
                f"`Timer(interval={interval!r})`: accepted are 'step' and 'epoch'.{did_you_mean(interval, _INTERVALS)}"
            )
        self._duration_s = None if duration is None else Duration.parse(duration).seconds
        if duration is not None and self._duration_s is None:
            raise MisconfigurationException(
                f"`Timer(duration={duration!r})` is no time. Write '1h30m', '00:01:30:00' (days first) or a "
                "`timedelta`; epochs and batches are `Trainer(max_epochs=..., max_steps=...)`."
            )
        self._interval = interval
        self._verbose = verbose
        self._start: dict[str, float] = {}
        self._end: dict[str, float] = {}
        self._offset_s = 0.0

    def start_time(self, stage: str = "train") -> float | None:
        """Return when "train", "validate" or "test" began, in seconds of `time.monotonic()`; None before that."""
        return self._start.get(stage)

    def end_time(self, stage: str = "train") -> float | None:
        """Return when the stage ended, in seconds of `time.monotonic()`; None before that."""
        return self._end.get(stage)

    def time_elapsed(self, stage: str = "train") -> float:
        """Return the seconds spent in a stage; for training with those of the run it continues."""
        offset_s = self._offset_s if stage == "train" else 0.0
        start = self._start.get(stage)
        return offset_s if start is None else self._end.get(stage, time.monotonic()) - start + offset_s

    def time_remaining(self, stage: str = "train") -> float | None:
        """Return the seconds left of `duration`; None without a limit."""
        return None if self._duration_s is None else self._duration_s - self.time_elapsed(stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before the first step when the time of a resumed run is over already."""
        self._check(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the stage."""
        stage = _stage_of(trainer)
        self._start[stage] = time.monotonic()
        self._end.pop(stage, None)

    on_validation_start = on_test_start = on_train_start

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of the stage."""
        self._end[_stage_of(trainer)] = time.monotonic()

    on_validation_end = on_test_end = on_train_end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clock, with `interval="step"`."""
        if self._duration_s is None or self._interval != "step":
            return
        if trainer.world_size == 1 or trainer.total_batches % max(trainer.log_every_n_steps, 1) == 0:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the clock."""
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        if self._duration_s is None:
            return
        is_over = self.time_elapsed() >= self._duration_s
        if trainer.world_size > 1:
            is_over = trainer.strategy.broadcast(is_over)
        if is_over and not trainer.should_stop:
            trainer.should_stop = True
            if self._verbose:
                elapsed = timedelta(seconds=int(self.time_elapsed()))
                rank_zero_info("stopping: time is over (%s of training)", elapsed)

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds spent in each stage."""
        return {"time_elapsed": {stage: self.time_elapsed(stage) for stage in ("train", "validate", "test")}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the training time of the run that is continued."""
        self._offset_s = state_dict.get("time_elapsed", {}).get("train", 0.0)
        self._start.pop("train", None)  # an interrupted fit of this Trainer, whose time is in the offset


def _stage_of(trainer: Trainer) -> str:
    return "validate" if trainer.sanity_checking else str(trainer.state.stage)
