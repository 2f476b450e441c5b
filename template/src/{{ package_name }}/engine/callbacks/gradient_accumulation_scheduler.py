"""`GradientAccumulationScheduler`: accumulate more or fewer batches as epochs go by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..durations import counted
from ..errors import MisconfigurationException
from ..hooks import Callback

if TYPE_CHECKING:
    from ..module import LightningModule
    from ..trainer import Trainer


class GradientAccumulationScheduler(Callback):
    """Set `trainer.accumulate_grad_batches` by epoch.

    Args:
        scheduling: First epoch (from 0, a number or "4ep") -> batches (or "8ba") in one optimizer step from then on;
            1 before the first entry.

    Raises:
        MisconfigurationException: An empty schedule, negative epochs, fewer than one batch; in a run:
            `Trainer(accumulate_grad_batches=...)` as well; with parity: manual optimisation.

    Example:
        >>> schedule = GradientAccumulationScheduler({0: 8, 4: 4})
        >>> schedule.get_accumulate_grad_batches(3), schedule.get_accumulate_grad_batches(4)
        (8, 4)
    """

    def __init__(self, scheduling: dict[Any, Any]) -> None:
        super().__init__()
        scheduling = {
            counted(epoch, "scheduling", "epochs"): counted(batches, "scheduling", "batches")
            for epoch, batches in scheduling.items()
        }
        whole = all(isinstance(number, int) for pair in scheduling.items() for number in pair)
        if not scheduling or not whole or min(scheduling) < 0 or min(scheduling.values()) < 1:
            raise MisconfigurationException(
                f"`GradientAccumulationScheduler({scheduling!r})`: accepted is a dict of epoch (from 0) -> number of "
                "batches (from 1), e.g. `{0: 8, 4: 4}`."
            )
        self.scheduling: dict[int, int] = {0: 1, **scheduling}
        self.epochs = sorted(self.scheduling)
        self._acts = False

    def going_to_accumulate_grad_batches(self) -> bool:
        """Return whether any epoch accumulates."""
        return any(batches > 1 for batches in self.scheduling.values())

    def get_accumulate_grad_batches(self, epoch: int) -> int:
        """Return the number of batches in one optimizer step of an epoch."""
        return self.scheduling[max(first for first in self.epochs if first <= epoch)]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the settings, and set the number for the epoch in which training starts or goes on."""
        if trainer.parity and not pl_module.automatic_optimization:
            raise MisconfigurationException(
                "`GradientAccumulationScheduler` needs automatic optimisation with parity; accumulate in "
                "`training_step`, or leave `parity` out."
            )
        if trainer.accumulate_grad_batches != 1:
            raise MisconfigurationException(
                f"`Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches})` and "
                "`GradientAccumulationScheduler` both decide how much to accumulate. Remove one of them."
            )
        self._acts = True
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the number for this epoch."""
        trainer.accumulate_grad_batches = self.get_accumulate_grad_batches(trainer.current_epoch)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the trainer as it was, so that it may fit again."""
        if self._acts:
            self._acts, trainer.accumulate_grad_batches = False, 1
