"""`StochasticWeightAveraging`: average the weights of the last epochs, at a constant learning rate.

Owns: when to average, the schedule of that phase, renewing batch norms.
Does not own: the schedule's formula (torch's SWALR).

    epoch == swa_start: the scheduler gives way to SWALR
    start of every epoch from then on: average <- mean of the weights at these moments
    end of training: weights <- average; batch norms see the training data once more, without a step
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import SWALR

from ..distributed import rank_zero_info, rank_zero_warn
from ..durations import counted
from ..errors import MisconfigurationException
from ..hooks import Callback
from ..optimizer import LRSchedulerConfig

if TYPE_CHECKING:
    from ..module import LightningModule
    from ..trainer import Trainer


class StochasticWeightAveraging(Callback):
    """Average weights along the last epochs of training.

    Args:
        swa_lrs: Learning rate of that phase, one for all parameter groups or a list.
        swa_epoch_start: First epoch, counted from 1 (or "10ep"); a float from 0 to 1 is a part of `max_epochs`.
        annealing_epochs: Epochs in which the learning rate goes to `swa_lrs`.
        annealing_strategy: "cos" or "linear".
        avg_fn: `(average, weight, n_averaged) -> average`; None: the plain mean.
        device: Where the average is kept; None: with the weights.

    Raises:
        MisconfigurationException: A value out of range; in a run: more than one optimizer or scheduler.

    Source:
        Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, UAI 2018,
        https://arxiv.org/abs/1803.05407
    """

    def __init__(
        self,
        swa_lrs: float | list[float],
        swa_epoch_start: int | float | str = 0.8,
        annealing_epochs: int | str = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        avg_fn: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        device: torch.device | str | None = "cpu",
    ) -> None:
        super().__init__()
        start: Any = counted(swa_epoch_start, "swa_epoch_start", "epochs")
        low, high = (1, float("inf")) if isinstance(start, int) else (0.0, 1.0)
        if not low <= start <= high:
            raise MisconfigurationException(
                f"`swa_epoch_start={swa_epoch_start!r}`: accepted are an epoch from 1 on, or a part of `max_epochs` "
                "from 0.0 to 1.0."
            )
        rates = swa_lrs if isinstance(swa_lrs, list) else [swa_lrs]
        if not rates or not all(isinstance(lr, float) and lr > 0 for lr in rates):
            raise MisconfigurationException(
                f"`swa_lrs={swa_lrs!r}`: accepted are a positive float or a list of them, e.g. `swa_lrs=0.05`."
            )
        self._swa_lrs = swa_lrs
        self._swa_epoch_start = start
        self._annealing_epochs: int = counted(annealing_epochs, "annealing_epochs", "epochs")
        self._annealing_strategy = annealing_strategy
        self._avg_fn = avg_fn or self.avg_fn
        self._device = device
        self._average: dict[str, Tensor] = {}
        self._restored: dict[str, Tensor] | None = None
        self._n_averaged = 0
        self._latest_update_epoch = -1
        self._max_epochs = -1

    @property
    def swa_start(self) -> int:
        """Index of the first epoch that averages, from 0."""
        return max(int(self._swa_epoch_start) - 1, 0)

    @property
    def swa_end(self) -> float:
        """Index of the last epoch, from 0; infinite without `max_epochs`."""
        return float("inf") if self._max_epochs == -1 else self._max_epochs - 1

    @staticmethod
    def avg_fn(average: Tensor, weight: Tensor, n_averaged: Tensor) -> Tensor:
        """Return the mean after one more weight: `average + (weight - average) / (n + 1)`."""
        return average + (weight - average) / (n_averaged + 1)

    @staticmethod
    def pl_module_contains_batch_norm(pl_module: nn.Module) -> bool:
        """Return whether there are batch norms, whose statistics belong to other weights than the average."""
        return any(isinstance(module, _BatchNorm) for module in pl_module.modules())

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check optimizers and schedulers; take up the phase of a run that is continued."""
        if len(trainer.optimizers) != 1 or len(trainer.lr_scheduler_configs) > 1:
            raise MisconfigurationException(
                "`StochasticWeightAveraging` works with one optimizer and at most one scheduler; "
                f"`configure_optimizers` gave {len(trainer.optimizers)} and {len(trainer.lr_scheduler_configs)}. "
                "`EMAWeightAveraging` has no such limit."
            )
        self._max_epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
        if isinstance(self._swa_epoch_start, float):
            if self._max_epochs == -1:
                raise MisconfigurationException(
                    f"`swa_epoch_start={self._swa_epoch_start}` is a part of `max_epochs`, which has no limit here. "
                    "Give an epoch, e.g. `swa_epoch_start=10`, or `max_epochs`."
                )
            self._swa_epoch_start = int(self._max_epochs * self._swa_epoch_start)
        if self._restored is None:
            self._average, self._n_averaged, self._latest_update_epoch = {}, 0, -1
            return
        # The scheduler must be there before its state is loaded, which comes next.
        self._begin(trainer, pl_module)
        for name, average in self._average.items():
            average.copy_(trainer.strategy.part_of(self._restored[name], average))
        self._restored = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the weights of now into the average, from `swa_start` on."""
        epoch = trainer.current_epoch
        if not self.swa_start <= epoch <= self.swa_end:
            return
        trainer.strategy.keep_parts()
        if not self._average:
            self._begin(trainer, pl_module)
        if epoch > self._latest_update_epoch:
            self._update(pl_module)
            self._latest_update_epoch = epoch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the module; an interrupted run keeps its weights, to be continued."""
        is_over = self._max_epochs == -1 or trainer.current_epoch - 1 == self.swa_end or not trainer.parity
        if not self._n_averaged or not is_over or trainer.interrupted:
            return
        trainer.strategy.keep_parts()
        with torch.no_grad():
            for name, parameter in pl_module.named_parameters():
                parameter.copy_(self._average[name])
        if self.pl_module_contains_batch_norm(pl_module):
            self._renew_batch_norms(trainer, pl_module)

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the average and put SWALR in the scheduler's place."""
        self._average = {name: p.detach().to(self._device, copy=True) for name, p in pl_module.named_parameters()}
        optimizer = trainer.optimizers[0]
        groups = optimizer.param_groups
        rates = self._swa_lrs if isinstance(self._swa_lrs, list) else [self._swa_lrs] * len(groups)
        for rate, group in zip(rates, groups, strict=True):
            group["initial_lr"] = rate
        scheduler = SWALR(
            optimizer,
            swa_lr=rates,  # type: ignore[arg-type]
            anneal_epochs=self._annealing_epochs,
            anneal_strategy=self._annealing_strategy,
            last_epoch=self._max_epochs if self._annealing_strategy == "cos" else -1,
        )
        configs = trainer.lr_scheduler_configs
        if configs and (configs[0].interval != "epoch" or configs[0].frequency != 1):
            rank_zero_warn(
                f"The scheduler `{type(configs[0].scheduler).__name__}` steps every {configs[0].frequency} "
                f"{configs[0].interval}s; `StochasticWeightAveraging` replaces it by one that steps every epoch."
            )
        configs[:] = [LRSchedulerConfig(scheduler)]
        rank_zero_info("averaging weights from epoch %d on, learning rate %s", trainer.current_epoch, self._swa_lrs)

    @torch.no_grad()
    def _update(self, pl_module: LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            average = self._average[name]
            weight = parameter.to(average.device)
            n_averaged = torch.tensor(self._n_averaged, device=average.device)
            average.copy_(weight if self._n_averaged == 0 else self._avg_fn(average, weight, n_averaged))
        self._n_averaged += 1

    def _renew_batch_norms(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect the statistics of batch norms anew, by `training_step` on one pass over the training data."""
        norms = [module for module in pl_module.modules() if isinstance(module, _BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
        run, size = trainer.run, trainer.num_training_batches
        assert run is not None
        assert run.training_step is not None
        with torch.no_grad(), _without_logging(pl_module):
            for batch_idx, batch in enumerate(trainer.train_dataloader):
                if batch_idx >= size:
                    break
                run.training_step(run.transfer(batch, 0), batch_idx)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def state_dict(self) -> dict[str, Any]:
        """Return the average and how many weights it holds."""
        return {
            "n_averaged": self._n_averaged,
            "latest_update_epoch": self._latest_update_epoch,
            "average_model_state": self._average,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the average for `on_fit_start`."""
        self._n_averaged = state_dict["n_averaged"]
        self._latest_update_epoch = state_dict["latest_update_epoch"]
        self._restored = state_dict["average_model_state"] if self._n_averaged else None


@contextmanager
def _without_logging(pl_module: LightningModule) -> Iterator[None]:
    """Let `self.log` of a step that is run outside of training do nothing."""
    names = ("log", "log_dict")
    for name in names:
        pl_module.__dict__[name] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        for name in names:
            del pl_module.__dict__[name]
