"""Progress as lines, for output that is a file or a log."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from .progress_bar import LineProgressBar, View, clock

if TYPE_CHECKING:
    from ...module import LightningModule
    from ...trainer import Trainer

EPOCH_LINES = 10
SHORTEST_S, LONGEST_S = 60.0, 600.0


class PlainProgressBar(LineProgressBar):
    """Print a line now and then: about ten for a run of any number of epochs, and signs of life in long ones.

    A line comes at the end of an epoch (of every tenth part of the epochs, when there are many), and when nothing was
    printed for a minute; in longer runs for half of the time gone, but never for more than ten minutes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._run_began = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin; nothing is printed before a minute or the first epoch has gone."""
        super().setup(trainer, pl_module, stage)
        self._shown = True
        self._run_began = time.monotonic()
        self._due = self._run_began + SHORTEST_S if self.is_enabled else math.inf
        self._epoch = -1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the last epoch, whose metrics are final now."""
        self._end_epoch(trainer)
        self._epoch = trainer.current_epoch
        self._begin(self.train_description, self.total_train_batches)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the last epoch."""
        self._end_epoch(trainer, last=True)

    def _end_epoch(self, trainer: Trainer, last: bool = False) -> None:
        if self._epoch < 0 or not self.is_enabled:
            return
        every = max(1, math.ceil((trainer.max_epochs or 0) / EPOCH_LINES))
        known = trainer.max_epochs is not None and trainer.max_epochs > 0
        if last or (known and (self._epoch + 1) % every == 0) or time.monotonic() >= self._due:
            self._show()
        self._epoch = -1

    def _end_evaluation(self, total: float) -> None:
        """Print nothing: the results follow."""

    def _pause_s(self, drawing_s: float) -> float:
        return max(SHORTEST_S, min(LONGEST_S, (time.monotonic() - self._run_began) / 2))

    def _draw(self, view: View) -> None:
        gone = f"{view.elapsed_s:.1f} s" if view.elapsed_s < 60 else clock(view.elapsed_s)
        parts = [f"{view.description}: {view.batches} batches", gone, view.pace, view.values]
        self.print(", ".join(part for part in parts if part), flush=True)
