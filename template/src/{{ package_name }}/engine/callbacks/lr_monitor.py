"""`LearningRateMonitor`: send learning rates (momenta, weight decays) to the loggers.

Owns: their names and when they are sent. Does not own: the schedules.

Names: the scheduler's `name`, else `lr-<optimizer class>`, with `-1`, `-2`... from the second unnamed one of a class
on; several parameter groups add `/pg1`, `/pg2`... or `/<group["name"]>`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.optim import Optimizer

from ..errors import MisconfigurationException
from ..hooks import Callback

if TYPE_CHECKING:
    from ..module import LightningModule
    from ..trainer import Trainer


class LearningRateMonitor(Callback):
    """Log the learning rate of every parameter group.

    Args:
        logging_interval: "step": at every step that is logged; "epoch": at every epoch's start; None: each rate at its
            scheduler's interval, without scheduler at steps.
        log_momentum: Also `<name>-momentum` (for Adam's like: beta 1).
        log_weight_decay: Also `<name>-weight_decay`.
        log_key_prefix: Put before every name, e.g. "optimizer/".

    Attributes:
        lrs: name -> the learning rates logged so far.

    Raises:
        MisconfigurationException: An unknown interval; in a run: no logger, or two groups of one name.
    """

    def __init__(
        self,
        logging_interval: Literal["step", "epoch"] | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
        log_key_prefix: str | None = None,
    ) -> None:
        super().__init__()
        if logging_interval not in (None, "step", "epoch"):
            raise MisconfigurationException(
                f"`LearningRateMonitor(logging_interval={logging_interval!r})`: accepted are 'step', 'epoch' and None."
            )
        self.logging_interval = logging_interval
        self.log_momentum, self.log_weight_decay = log_momentum, log_weight_decay
        self.log_key_prefix = log_key_prefix or ""
        self.lrs: dict[str, list[float]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is a logger, and that names differ."""
        if not trainer.loggers:
            raise MisconfigurationException(
                "`LearningRateMonitor` writes to a logger, and `Trainer(logger=False)` has none. "
                "Give the Trainer a logger, e.g. `logger=CSVLogger('runs')`, or remove the callback."
            )
        self.lrs = {name: [] for name, _, _ in self._groups(trainer)}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log the rates that go by steps, where the logger writes at this batch."""
        if self.logging_interval != "epoch" and trainer.log_due:
            self._log(trainer, "step")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the rates that go by epochs."""
        if self.logging_interval != "step":
            self._log(trainer, "epoch")

    def _log(self, trainer: Trainer, interval: str) -> None:
        values: dict[str, float] = {}
        for name, group, group_interval in self._groups(trainer):
            if self.logging_interval is not None or group_interval in (interval, None):
                values |= self._values(name, group)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        if not values:
            return
        point = {"step": trainer.log_step, "epoch": trainer.current_epoch, "time": time.time(), **values}
        trainer.history_rows.append(point)
        if trainer.is_global_zero:
            trainer.tell_loggers("log_metrics", values, step=trainer.log_step)

    def _values(self, name: str, group: dict[str, Any]) -> dict[str, float]:
        lr = float(group["lr"])
        self.lrs.setdefault(name, []).append(lr)
        values = {name: lr}
        if self.log_momentum:
            values[f"{name}-momentum"] = float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))
        if self.log_weight_decay:
            values[f"{name}-weight_decay"] = float(group.get("weight_decay", 0.0))
        return values

    def _groups(self, trainer: Trainer) -> Iterator[tuple[str, dict[str, Any], str | None]]:
        """Yield (name, parameter group, interval) of every scheduler, then of optimizers without one.

        An interval of None goes with both: nothing schedules it, so every logged step and every epoch shows it.
        """
        configs = trainer.lr_scheduler_configs
        owners: list[tuple[Any, ...]] = [(one.scheduler.optimizer, one.name, one.interval) for one in configs]
        # Compared by groups, for a scheduler may hold the optimizer inside a wrapper.
        scheduled = [id(optimizer.param_groups) for optimizer, _, _ in owners]
        owners += [(other, None, None) for other in trainer.optimizers if id(other.param_groups) not in scheduled]
        unnamed: Counter[str] = Counter()
        for optimizer, name, interval in owners:
            if not name:
                name = f"lr-{optimizer.__class__.__name__}"  # of what a wrapper stands for
                unnamed[name] += 1
                name += f"-{unnamed[name] - 1}" if unnamed[name] > 1 else ""
            for suffix, group in _named_groups(optimizer):
                yield f"{self.log_key_prefix}{name}{suffix}", group, interval


def _named_groups(optimizer: Optimizer) -> Iterator[tuple[str, dict[str, Any]]]:
    groups = optimizer.param_groups
    names = [group.get("name", f"pg{i}") for i, group in enumerate(groups, start=1)]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise MisconfigurationException(
            f"`{type(optimizer).__name__}` has several parameter groups named {twice}. "
            "Give each its own `name`, or none: they are then called pg1, pg2 and so on."
        )
    for name, group in zip(names, groups, strict=True):
        yield f"/{name}" if len(groups) > 1 or "name" in group else "", group
