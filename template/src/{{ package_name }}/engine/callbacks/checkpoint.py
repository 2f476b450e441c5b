"""The base of every callback that writes checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..distributed import log
from ..hooks import Callback

if TYPE_CHECKING:
    from ..trainer import Trainer


class Checkpoint(Callback):
    """Mark a callback as one that saves: it runs last, and the Trainer adds no `ModelCheckpoint` of its own."""

    role = "checkpoint"
    runs_last = True

    def may_save_at_exception(self, trainer: Trainer) -> bool:
        """Return whether to save when a run ends by an exception: not at a second Ctrl-C.

        With several processes only at interrupts that all follow: at an error of one rank the others wait elsewhere,
        and a collective would hang until its timeout.
        """
        if trainer.world_size > 1 and not trainer.signals.is_leaving:
            log.warning("No checkpoint at this error: with several processes the others would have to take part.")
            return False
        return not trainer.signals.is_urgent
