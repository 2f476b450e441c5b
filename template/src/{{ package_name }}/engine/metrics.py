"""The metrics that callbacks, bars and loggers read from the Trainer.

Owns: the dictionaries behind `trainer.callback_metrics` and its like. Does not own: how values come about (`results`).
They are brought up to date when somebody reads them, so that a metric nobody reads costs nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .results import Results


class CurrentMetrics:
    """Latest values by reader.

    Attributes:
        callback: Name -> tensor of no dimension, for monitors.
        logged: What was sent to loggers.
        bar: What the progress bar shows.
        steps: Name -> `global_step` at which the callback value was computed.
    """

    def __init__(self) -> None:
        self.callback: dict[str, Any] = {}
        self.logged: dict[str, Any] = {}
        self.bar: dict[str, Any] = {}
        self.steps: dict[str, int] = {}

    def refresh(self, results: Results | None, reader: str = "") -> None:
        """Take the values that the loop in progress shows now: for all, or for one ("callback", "logged", "bar")."""
        if results is None or not results.records:
            return
        found = results.collect(results.in_batches)
        if reader in ("", "callback"):
            self.callback.update({name: as_tensor(value) for name, value in found.callback.items()})
            self.steps.update(found.steps)
        if reader in ("", "logged"):
            self.logged.update(found.log)
        if reader in ("", "bar"):
            self.bar.update(found.bar)

    def copy(self) -> CurrentMetrics:
        """Return a copy that later values do not reach."""
        copied = CurrentMetrics()
        vars(copied).update({name: dict(values) for name, values in vars(self).items()})
        return copied

    def clear(self) -> None:
        """Forget everything."""
        for values in (self.callback, self.logged, self.bar, self.steps):
            values.clear()


def is_number(value: Any) -> bool:
    """Return whether a value is a number, or a tensor of one."""
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def as_tensor(value: Any) -> Tensor:
    """Return a number as a tensor of no dimension; tensors as they are."""
    return value if isinstance(value, Tensor) else torch.tensor(float(value))
