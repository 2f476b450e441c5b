"""How far a run has come.

Owns: the counters and their form in a checkpoint. Does not own: when they are raised (the loops do that).
The `loops` entry keeps the reference framework's key names, so that its tools find the epoch; ours is under "kagaku".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any


@dataclass(slots=True)
class FitProgress:
    """Counters of `fit`; all start at 0 and survive the run."""

    epoch: int = 0
    """Epochs finished; the index of the epoch in progress."""
    batch_idx: int = 0
    """Batches of this epoch that are done; 0 between epochs."""
    total_batches: int = 0
    """Training batches seen over all epochs."""
    global_step: int = 0
    """Batches that ended with an optimizer step (with `parity`: optimizer steps of all optimizers)."""
    log_step: int = 0
    """The x axis of loggers: batches that ended with a step due, whatever the number of optimizers."""
    validations: int = 0
    """Validations run inside this `fit`."""
    samples: int = 0
    """Training samples seen, where batches tell their size."""
    inside_epoch: bool = False
    """An epoch was started and its end hooks have not all run."""
    is_last_batch: bool = False
    """The batch just done was the last of its epoch."""
    window: int = 1
    """Batches of one accumulation window in the epoch in progress."""
    epoch_first_log_step: int = 0
    """`log_step` at the start of the epoch in progress."""
    tail: str = ""
    """What is left of the batch or epoch just done: "" (nothing), "validate", "plateau" or "epoch_end"."""

    def state_dict(self) -> dict[str, Any]:
        """Return the counters as a checkpoint's `loops` entry."""
        counts, kinds = (self.epoch, self.total_batches, self.batch_idx), ("ready", "started", "processed", "completed")
        total, batches, current = (dict.fromkeys(kinds, count) for count in counts)
        return {
            "fit_loop": {
                "state_dict": {},
                "epoch_progress": {"total": total, "current": dict(total)},
                "epoch_loop.state_dict": {"_batches_that_stepped": self.log_step},
                "epoch_loop.batch_progress": {
                    "total": batches,
                    "current": current,
                    "is_last_batch": self.is_last_batch,
                },
                "kagaku": asdict(self),
            }
        }

    def load_state_dict(self, loops: dict[str, Any], epoch: int, global_step: int) -> None:
        """Take the counters back from a checkpoint's `loops` entry, ours or the reference framework's.

        Args:
            loops: The checkpoint's `loops` entry.
            epoch: Its `epoch`, the index of the epoch in which it was saved.
            global_step: Its `global_step`.
        """
        state = loops.get("fit_loop", {})
        if "kagaku" in state:
            for name, value in state["kagaku"].items():
                setattr(self, name, value)
            return
        finished = state.get("epoch_progress", {}).get("total", {})
        batches = state.get("epoch_loop.batch_progress", {})
        self.epoch, self.global_step = finished.get("processed", epoch), global_step
        self.log_step = state.get("epoch_loop.state_dict", {}).get("_batches_that_stepped", global_step)
        self.total_batches = batches.get("total", {}).get("ready", global_step)
        if not batches.get("is_last_batch", True):
            self.batch_idx = batches.get("current", {}).get("ready", 0)
            self.inside_epoch = self.batch_idx > 0


LIMITS = ("max_epochs", "min_epochs", "max_steps", "min_steps")


class LoopView(SimpleNamespace):
    """Counters of a trainer as the reference framework shows them in its loops; setting a limit sets the trainer's."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in LIMITS:
            setattr(self._trainer, name, value)
        super().__setattr__(name, value)
