"""What a progress bar is, and one that has a single line whatever the trainer does.

Owns: phases (sanity check, training, validation, test, predict), when a line is due, its contents.
Does not own: drawing (the subclasses).

A batch costs one clock read. Ten times a second at most the metrics are read, which is the only device sync.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from ...durations import counted
from ...hooks import Callback

if TYPE_CHECKING:
    from ...module import LightningModule
    from ...trainer import Trainer

INTERVAL_S, LONGEST_PAUSE_S = 0.1, 1.0
MOST_OF_TIME = 0.05  # drawing may take this part of the time, on slow terminals
# Stage -> what its description and its numbers of batches are called.
_EVALUATIONS = {
    "sanity_check": ("sanity_check", "val"),
    "validate": ("validation", "val"),
    "test": ("test", "test"),
    "predict": ("predict", "predict"),
}


class ProgressBar(Callback):
    """Base of progress bars: what may be shown, not how. Only rank 0 shows anything.

    Override `get_metrics` to choose what is shown behind the bar.

    Example:
        >>> class Percent(ProgressBar):
        ...     def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        ...         print(f"{100 * (batch_idx + 1) / self.total_train_batches:.0f} %", end="\\r")
    """

    role = "bar"
    # What the bar is called, beside `train_description`; a subclass may make properties of them.
    sanity_check_description = "Sanity check"
    validation_description = "Validation"
    test_description = "Testing"
    predict_description = "Predicting"

    def __init__(self) -> None:
        self._trainer: Trainer | None = None
        self._current_eval_dataloader_idx: int | None = None
        self._is_enabled = True

    @property
    def trainer(self) -> Trainer:
        """The trainer of the run.

        Raises:
            TypeError: No run has begun.
        """
        if self._trainer is None:
            raise TypeError(f"`{type(self).__name__}.trainer` is there during a run; none has begun.")
        return self._trainer

    @property
    def is_enabled(self) -> bool:
        """Whether anything is shown."""
        return self._is_enabled

    @property
    def is_disabled(self) -> bool:
        """Whether nothing is shown."""
        return not self.is_enabled

    def disable(self) -> None:
        """Show nothing from now on."""
        self._is_enabled = False

    def enable(self) -> None:
        """Show again."""
        self._is_enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print without breaking the bar."""
        print(*args, **kwargs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the trainer; ranks other than 0 are disabled."""
        self._trainer = trainer
        if not trainer.is_global_zero:
            self.disable()

    @property
    def train_description(self) -> str:
        """What the bar is called during training: the epoch, of the last epoch when that is known."""
        last = self.trainer.max_epochs
        return f"Epoch {self.trainer.current_epoch}" + (f"/{last - 1}" if last and last > 0 else "")

    @property
    def total_train_batches(self) -> int | float:
        """Training batches of an epoch; `inf` when unknown."""
        return self.trainer.num_training_batches

    @property
    def total_val_batches_current_dataloader(self) -> int | float:
        """Validation batches of the loader in progress."""
        trainer = self.trainer
        return self._of_loader(trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches)

    @property
    def total_test_batches_current_dataloader(self) -> int | float:
        """Test batches of the loader in progress."""
        return self._of_loader(self.trainer.num_test_batches)

    @property
    def total_predict_batches_current_dataloader(self) -> int | float:
        """Batches of the loader in progress in `predict`."""
        return self._of_loader(self.trainer.num_predict_batches)

    @property
    def total_val_batches(self) -> int | float:
        """Validation batches of all loaders; 0 in an epoch without validation."""
        every = self.trainer.check_val_every_n_epoch
        if not self.trainer.enable_validation or (every and (self.trainer.current_epoch + 1) % every):
            return 0
        return sum(self.trainer.num_val_batches)

    def _of_loader(self, totals: list[int | float]) -> int | float:
        index = self._current_eval_dataloader_idx or 0
        return totals[index] if index < len(totals) else math.inf

    def has_dataloader_changed(self, dataloader_idx: int) -> bool:
        """Return whether this is another loader than at the last call."""
        old, self._current_eval_dataloader_idx = self._current_eval_dataloader_idx, dataloader_idx
        return old != dataloader_idx

    def reset_dataloader_idx_tracker(self) -> None:
        """Forget which loader was in progress."""
        self._current_eval_dataloader_idx = None

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return what is shown behind the bar. A device sync.

        The metrics logged with `prog_bar=True`, then what callbacks have in an attribute `bar_metrics`.
        """
        metrics: dict[str, Any] = dict(trainer.progress_bar_metrics)
        for callback in trainer.callbacks:
            metrics.update(getattr(callback, "bar_metrics", {}))
        if trainer.parity and trainer.logger is not None and trainer.logger.version not in (None, ""):
            version = trainer.logger.version
            metrics["v_num"] = version[-4:] if isinstance(version, str) else version
        return metrics


class View(NamedTuple):
    """What a line shows at one moment.

    Attributes:
        description: Phase, and epoch.
        done: Batches done.
        total: Batches in all, or `inf`.
        elapsed_s: Seconds since the phase began, without what was spent in a validation inside.
        metrics: Name -> number or text.
    """

    description: str
    done: int
    total: float
    elapsed_s: float
    metrics: dict[str, Any]

    @property
    def batches(self) -> str:
        """Batches done of all, e.g. "12/100"."""
        return f"{self.done}/{self.total:.0f}" if math.isfinite(self.total) else f"{self.done}"

    @property
    def pace(self) -> str:
        """Batches per second, or seconds per batch."""
        if not self.done or not self.elapsed_s:
            return ""
        rate = self.done / self.elapsed_s
        return f"{rate:.1f} it/s" if rate >= 1 else f"{1 / rate:.1f} s/it"

    @property
    def times(self) -> str:
        """Time gone, and time to go when it can be known: "0:12<1:30"."""
        if not self.done or not math.isfinite(self.total):
            return clock(self.elapsed_s)
        return f"{clock(self.elapsed_s)}<{clock(self.elapsed_s / self.done * max(0.0, self.total - self.done))}"

    @property
    def values(self) -> str:
        """The metrics: "loss 0.1234 val_acc 0.9812"."""
        return " ".join(f"{name} {shown(value)}" for name, value in self.metrics.items())


class LineProgressBar(ProgressBar):
    """A bar of one line. Validation inside of `fit` takes the line over and gives it back.

    Subclasses draw: `_draw(view)` shows a line in place of the last one, `_keep()` leaves it standing and begins
    another, `_close()` ends.

    Args:
        refresh_rate: 0 turns the bar off. The bar is drawn by time; another number changes nothing.
        leave: Leave a line for every epoch, not only for the last.
    """

    def __init__(self, refresh_rate: int = 1, leave: bool = False) -> None:
        super().__init__()
        self.refresh_rate = counted(refresh_rate, f"{type(self).__name__}(refresh_rate", "batches")
        self._leave = leave
        self._due = 0.0
        self._shown = False
        self._phase: tuple[str, float, int, float] = ("", math.inf, 0, 0.0)  # description, total, done, begun at
        self._outer: tuple[tuple[str, float, int, float], float] | None = None

    @property
    def is_enabled(self) -> bool:
        """Whether anything is shown."""
        return self._is_enabled and self.refresh_rate > 0

    def _draw(self, view: View) -> None:
        """Show a line in place of the last one."""
        raise NotImplementedError

    def _keep(self) -> None:
        """Leave the line standing, and go to the next."""
        self._close()

    def _close(self) -> None:
        """End the drawing; the last line stays."""

    def _pause_s(self, drawing_s: float) -> float:
        """Return the seconds until the next line, after one that took `drawing_s` to draw."""
        return min(max(INTERVAL_S, drawing_s / MOST_OF_TIME), LONGEST_PAUSE_S)

    # Phases.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the trainer and begin anew."""
        super().setup(trainer, pl_module, stage)
        self._shown, self._outer = False, None
        self._due = 0.0 if self.is_enabled else math.inf

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the line over from the sanity check."""
        self._shown = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the line of the last epoch, whose metrics are final now, and begin another."""
        if self._shown and self._leave:
            self._show()
            self._keep()
        self._begin(self.train_description, self.total_train_batches)
        if not self._shown:  # the first batch may take long: compilation, workers that start
            self._show(read=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw when it is time."""
        if time.monotonic() >= self._due:
            self._advance(batch_idx + 1, self.total_train_batches)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the batches that came since the last drawing; metrics are not final yet, so nothing is read."""
        description, total, done, begun = self._phase
        self._phase = (description, total, int(total) if math.isfinite(total) else done, begun)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last line and end."""
        if self.is_enabled:
            self._show()
        self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the line over from training, or begin."""
        self.reset_dataloader_idx_tracker()
        is_inside = trainer.validating and str(trainer.state.fn) == "fit"
        self._outer = (self._phase, time.monotonic()) if is_inside else None
        self._begin(getattr(self, f"{self._names[0]}_description"), math.inf)

    on_test_start = on_predict_start = on_validation_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw when it is time."""
        if time.monotonic() >= self._due:
            self._advance_evaluation(batch_idx + 1, dataloader_idx)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the line back to training, or end."""
        if self._outer is not None:
            (description, total, done, begun), since = self._outer
            self._phase, self._outer = (description, total, done, begun + time.monotonic() - since), None
        elif not trainer.sanity_checking:
            self._end_evaluation(sum(getattr(trainer, f"num_{self._names[1]}_batches")))

    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back before the traceback is printed."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the terminal back."""
        self._close()

    # Drawing.

    def _begin(self, description: str, total: float) -> None:
        self._phase = (description, total, 0, time.monotonic())

    @property
    def _names(self) -> tuple[str, str]:
        return _EVALUATIONS[str(self.trainer.state.stage)]

    def _advance(self, done: int, total: float) -> None:
        description, _, _, begun = self._phase
        self._phase = (description, total, done, begun)
        self._show()

    def _advance_evaluation(self, done: int, dataloader_idx: int) -> None:
        if self.has_dataloader_changed(dataloader_idx) and dataloader_idx:
            name = self._phase[0].split(" · ")[0]
            self._begin(f"{name} · loader {dataloader_idx}", math.inf)
        self._advance(done, getattr(self, f"total_{self._names[1]}_batches_current_dataloader"))

    def _end_evaluation(self, total: float) -> None:
        description, _, done, begun = self._phase
        done = int(total) if math.isfinite(total) else done
        self._phase = (description.split(" · ")[0], total, done, begun)
        if self.is_enabled:
            self._show()
        self._close()

    def _show(self, read: bool = True) -> None:
        description, total, done, begun = self._phase
        started, was_shown = time.monotonic(), self._shown
        metrics = self.get_metrics(self.trainer, self.trainer.lightning_module) if read else {}
        if self.is_enabled:
            self._draw(View(description, done, total, started - begun, metrics))
            self._shown = True
        now = time.monotonic()
        # The first drawing imports a library, which says nothing about the next.
        self._due = now + self._pause_s(now - started if was_shown else 0.0)


def shown(value: Any) -> str:
    """Return a metric as the bar shows it: four digits of a float, anything else as it is.

    Example:
        >>> shown(0.123456), shown(1e-9), shown(12), shown(3.0)
        ('0.1235', '1e-09', '12', '3.000')
    """
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    return f"{value:#.4g}".rstrip(".") if 1e-4 <= abs(value) < 1e5 or value == 0 else f"{value:.4g}"


def clock(seconds: float) -> str:
    """Return a time as "0:07", "12:34" or "1:02:03".

    Example:
        >>> clock(7.4), clock(754), clock(3723)
        ('0:07', '12:34', '1:02:03')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
