"""When processes stop, validate by the clock, or follow a signal: together, after the same batch.

Owns: making one rank's wish everybody's. Does not own: what the wish leads to (`fit`, `signals`).

Ranks keep step through their gradients alone: one that leaves a batch early leaves the others waiting. A wish to stop
that all ranks have after the same batch (the ordinary case, for they look at the same metric) is followed at once.
Anything else is exchanged every quarter of a second, counted in batches, so that a step costs nothing more.
"""

from __future__ import annotations

import time
from typing import Any

from ..signals import SignalWatch
from .base import Strategy

PERIOD_S = 0.25
_SIGNALS = ("", "SIGUSR1", "SIGINT", "SIGTERM")  # the last wins


class Agreement:
    """What the ranks of one fit agree on. Every rank makes one and calls it at the same places.

    Args:
        strategy: Asks the other ranks.
        trainer: Its `should_stop` is read and set.
        check_s: Seconds between validations by the clock, or None.

    Attributes:
        is_time_to_validate: The clock of some rank says so, since the last batch.
    """

    def __init__(self, strategy: Strategy, trainer: Any, check_s: float | None) -> None:
        self.strategy, self.trainer, self.check_s = strategy, trainer, check_s
        self.signals: SignalWatch = trainer.signals
        self.signals.is_agreed = False
        self.is_time_to_validate = False
        self._wants_to_stop = False  # this rank alone, so far
        self._is_stopping = False
        self._batches = self._next = 0
        self._spacing = 1
        self._since_s = self._validated_s = time.monotonic()

    def after_batch(self, batches: int) -> None:
        """Agree, if there is something to agree on or it is time to ask; called after a batch's hooks.

        Args:
            batches: Training batches seen so far, the same number on all ranks.
        """
        self.is_time_to_validate = False
        if self.trainer.should_stop and not self._is_stopping:
            self._is_stopping = self.strategy.unanimous(f"stop-{batches}")
            self._wants_to_stop = not self._is_stopping
            self.trainer.should_stop = self._is_stopping
        if batches >= self._next:
            self._choose_spacing(batches)
            self._exchange(self.check_s is not None and time.monotonic() - self._validated_s >= self.check_s)
            self._next = batches + self._spacing

    def at_boundary(self) -> None:
        """Agree between epochs and after a validation, where every rank comes by. A collective."""
        self._wants_to_stop = self._wants_to_stop or bool(self.trainer.should_stop)
        self._exchange(False)

    def _choose_spacing(self, batches: int) -> None:
        now_s, passed = time.monotonic(), max(1, batches - self._batches)
        per_batch_s = max(1e-6, (now_s - self._since_s) / passed)
        self._spacing = max(1, min(int(PERIOD_S / per_batch_s), 8 * self._spacing))
        self._since_s, self._batches = now_s, batches

    def _exchange(self, wants_validation: bool) -> None:
        signal = _SIGNALS.index(self.signals.received or "")
        found = self.strategy.all_max([self._wants_to_stop, wants_validation, signal, -self._spacing])
        stops, self.is_time_to_validate = map(bool, found[:2])
        self._spacing = -found[3]
        if self.is_time_to_validate:
            self._validated_s = time.monotonic()
        if stops:
            self.trainer.should_stop = self._is_stopping = True
            self._wants_to_stop = False
        elif not self.trainer.should_stop:
            self._is_stopping = False
        if found[2]:
            self.signals.received, self.signals.is_agreed = _SIGNALS[found[2]], True
            self.strategy.is_leaving = True
