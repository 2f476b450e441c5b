"""What `ModelCheckpoint` and `EarlyStopping` share: reading one metric, and knowing whether its value is of now.

Owns: comparison by mode, freshness, the error for a name that does not exist.
Does not own: what is done with the value.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..errors import MisconfigurationException, did_you_mean

if TYPE_CHECKING:
    from ..trainer import Trainer

MODES = ("min", "max")


class Monitor:
    """One watched metric of the trainer's `callback_metrics`.

    A metric carries the step at which it was computed (`trainer.metric_steps`). A validation metric is fresh while no
    optimizer step was taken since; a training metric of the batch that has just stepped is fresh too, although it was
    computed before that step. An epoch's mean of training values exists at the epoch's end only, so a training metric
    is never fresh right after a validation.

    Args:
        name: Key in `trainer.callback_metrics`.
        mode: "min" or "max".
        owner: The callback's class name, for messages.

    Raises:
        MisconfigurationException: `mode` is neither "min" nor "max".
    """

    def __init__(self, name: str, mode: str, owner: str) -> None:
        if mode not in MODES:
            raise MisconfigurationException(
                f"`{owner}(mode={mode!r})`: accepted are 'min' and 'max'.{did_you_mean(str(mode), MODES)}"
            )
        self.name, self.mode, self.owner = name, mode, owner
        self.worst = math.inf if mode == "min" else -math.inf
        self.from_validation = False
        self.validated = False

    def is_better(self, value: Any, than: Any) -> bool:
        """Return whether `value` is strictly better than `than`; a NaN is never better."""
        return bool(value < than) if self.mode == "min" else bool(value > than)

    def after_validation(self, trainer: Trainer) -> None:
        """Note that a validation ended, and whether it computed this metric."""
        self.validated = True
        self.from_validation = trainer.metric_steps.get(self.name) == trainer.global_step

    def is_fresh(self, trainer: Trainer, after_validation: bool = False) -> bool:
        """Return whether the value was computed for the weights of now. Values set by hand (no step known) are."""
        computed_at = trainer.metric_steps.get(self.name)
        if computed_at is None or trainer.parity:
            return True
        tolerance = 0 if after_validation or self.from_validation else 1
        return bool(trainer.global_step - computed_at <= tolerance)

    def is_due(self, trainer: Trainer) -> bool:
        """Return whether the metric must exist by now: an epoch is over, and its validation, if there is one."""
        return not trainer.parity and (self.validated or not validates(trainer))

    def unknown(self, trainer: Trainer) -> str:
        """Return the text of the error for a name that nobody logs."""
        names = sorted(trainer.callback_metrics)
        return (
            f"`{self.owner}(monitor={self.name!r})`: no metric of that name was logged."
            f"{did_you_mean(self.name, names)} Metrics that exist: {', '.join(names) or 'none'}. "
            f"Log it with `self.log({self.name!r}, value)` in a step or at an epoch's end, or monitor another one."
        )


def validates(trainer: Trainer) -> bool:
    """Return whether this `fit` has anything to validate on; loaders are asked for at the first validation only."""
    return bool(trainer.enable_validation and (not trainer.num_val_batches or sum(trainer.num_val_batches)))


def one_validation_per_epoch(trainer: Trainer) -> bool:
    """Return whether validation runs exactly once in every epoch, at its end, so that the epoch's end knows all."""
    every_epoch = trainer.check_val_every_n_epoch == 1
    # The reference takes the whole number 1, every batch, for the share 1.0 here.
    is_share = trainer.parity or isinstance(trainer.val_check_interval, float)
    return every_epoch and is_share and trainer.val_check_interval == 1.0 and trainer.val_check_seconds is None


def waits_for_validation(monitor: str | None, trainer: Trainer, module: Any, acts_at_epoch_end: bool) -> bool:
    """Return whether the reference leaves a trigger to a later validation: no metric yet, or one that follows."""
    if monitor is None or monitor not in trainer.callback_metrics:
        return monitor is not None
    every = trainer.check_val_every_n_epoch
    is_ahead = validates(trainer) and (every is None or (trainer.current_epoch + 1) % every == 0)
    return is_ahead and trainer.is_last_batch and module.automatic_optimization and not acts_at_epoch_end
