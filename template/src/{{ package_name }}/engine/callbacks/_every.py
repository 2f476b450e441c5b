"""One helper for all that happens every n steps, batches, samples or seconds of training."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..durations import Duration
from ..errors import MisconfigurationException

if TYPE_CHECKING:
    from ..trainer import Trainer

_COUNTERS = {"steps": "global_step", "batches": "total_batches", "samples": "samples_seen"}


class Every:
    """Is due whenever a counter of the trainer has passed another multiple of `n`.

    A counter that jumps over a multiple (two optimizers, accumulation, a large batch) is not missed.

    Args:
        n: How many; for "seconds" 0 means at every question.
        unit: "steps" (optimizer steps), "batches", "samples" or "seconds".
    """

    def __init__(self, n: float, unit: str) -> None:
        self.n = n
        self.unit = unit
        self._passed = 0
        self._started_at = 0.0

    def start(self, trainer: Trainer) -> None:
        """Begin to count at the trainer's present position."""
        self._started_at = time.monotonic()
        self._passed = 0 if self.unit == "seconds" else self._multiple(trainer)

    def is_due(self, trainer: Trainer) -> bool:
        """Return whether a multiple was passed since the last time this was true.

        By the clock of rank 0: with several processes a collective, once every `log_every_n_steps` batches.
        """
        if self.unit == "steps" and trainer.parity:  # asks at every batch, those without a step of their own too
            return bool(trainer.global_step % self.n == 0)
        if self.unit != "seconds":
            return self._advance(self._multiple(trainer))
        elapsed_s = time.monotonic() - self._started_at
        if trainer.world_size > 1:
            if trainer.total_batches % max(trainer.log_every_n_steps, 1):
                return False
            elapsed_s = trainer.strategy.broadcast(elapsed_s)
        return self.n == 0 or self._advance(int(elapsed_s // self.n))

    def _multiple(self, trainer: Trainer) -> int:
        return int(getattr(trainer, _COUNTERS[self.unit]) // self.n)

    def _advance(self, passed: int) -> bool:
        is_due = passed > self._passed
        self._passed = passed
        return is_due


def parse_every(value: Any, argument: str, int_unit: str) -> Every | int | None:
    """Return what a duration argument means: an `Every`, a number of epochs, or None when it is off (None or 0).

    Args:
        value: A whole number of `int_unit`, or what `Duration.parse` takes ("10ep", "500ba", "1e6sp", "1h30m", ...).
        argument: How the user wrote the argument, for messages.
        int_unit: "steps" or "epochs".

    Raises:
        MisconfigurationException: A negative number, or a unit that does not exist.
    """
    if value is None or (isinstance(value, int) and value == 0):
        return None
    if isinstance(value, int):
        if value < 0:
            raise MisconfigurationException(f"`{argument}={value})`: accepted are whole numbers from 0 (off) on.")
        return value if int_unit == "epochs" else Every(value, int_unit)
    duration = Duration.parse(value)
    if duration.epochs is not None:
        return int(duration.epochs)
    for unit in ("batches", "samples", "seconds"):
        if (amount := getattr(duration, unit)) is not None:
            return Every(amount, unit) if amount or unit == "seconds" else None
    raise MisconfigurationException(f"`{argument}={value!r})` names no amount. Write for example '2ep' or '500ba'.")


def one_trigger(steps: Any, interval: Any, epochs: Any) -> tuple[int, Every | None]:
    """Return (every n epochs, any other trigger) of `ModelCheckpoint`'s arguments; every epoch when none is given.

    Raises:
        MisconfigurationException: More than one of them is given.
    """
    given = {"every_n_train_steps": steps, "train_time_interval": interval, "every_n_epochs": epochs}
    if all(value is None for value in given.values()):
        return 1, None
    units = {"every_n_train_steps": "steps", "train_time_interval": "seconds", "every_n_epochs": "epochs"}
    parsed = [parse_every(value, f"ModelCheckpoint({name}", units[name]) for name, value in given.items()]
    active = [trigger for trigger in parsed if trigger is not None]
    if len(active) > 1:
        written = ", ".join(f"{name}={value!r}" for name, value in given.items() if value)
        raise MisconfigurationException(
            f"`ModelCheckpoint({written})` has more than one trigger. "
            "Keep one of them, or use a second `ModelCheckpoint` for the other."
        )
    trigger = active[0] if active else 0
    return (trigger, None) if isinstance(trigger, int) else (0, trigger)
