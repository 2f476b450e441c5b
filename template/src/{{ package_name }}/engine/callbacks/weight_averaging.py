"""Keep an average of the weights while they train, validate with it, and end with it.

Owns: the averaged tensors, when they are updated, swapped in and saved. Does not own: the formula
(`torch.optim.swa_utils`).

    after a step or an epoch, if `should_update`: average <- formula(average, weights)
    validation: average and weights change places, before its first and after its last batch
    checkpoint: `state_dict` = average, `current_model_state` = weights, so that the file tests as it validated
    end of training: weights <- average
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from ..durations import counted
from ..errors import MisconfigurationException
from ..hooks import Callback

if TYPE_CHECKING:
    from ..module import LightningModule
    from ..trainer import Trainer


class WeightAveraging(Callback):
    """Average weights; override `should_update` to say when, or use `EMAWeightAveraging`.

    Until the first update validation, checkpoints and the end of training use the plain weights.

    Args:
        device: Where the average is kept; None: with the weights. "cpu" saves device memory, at a copy per update.
        use_buffers: Average floating-point buffers too; False: take over the latest.
        avg_fn: `(average, weight, n_averaged) -> average`, for one tensor.
        multi_avg_fn: The same in place for lists of tensors; faster. None and no `avg_fn`: the plain mean.

    Raises:
        MisconfigurationException: Both functions are given.
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        *,
        avg_fn: Callable[[Tensor, Tensor, Tensor | int], Tensor] | None = None,
        multi_avg_fn: Callable[..., None] | None = None,
    ) -> None:
        super().__init__()
        if avg_fn is not None and multi_avg_fn is not None:
            raise MisconfigurationException(
                "`WeightAveraging` was given `avg_fn` and `multi_avg_fn`. Keep one; `multi_avg_fn` is the faster."
            )
        self._device, self._use_buffers = device, use_buffers
        self._avg_fn = avg_fn
        self._multi_avg_fn = multi_avg_fn or get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]
        self._average: list[Tensor] | None = None
        self._n_averaged = 0
        self._is_swapped = False
        self._restored: dict[str, Tensor] = {}
        self._latest_update_step = 0
        self._latest_update_epoch = -1

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether the average takes in the weights of now; asked after every optimizer step and every epoch.

        Args:
            step_idx: Index of that step, from 0; None at an epoch's end.
            epoch_idx: Index of that epoch; None after a step.
        """
        return step_idx is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """With parity: have the layers made before the module's own `setup`, where the reference copies the module."""
        if trainer.parity and stage == "fit":
            pl_module.configure_model()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the average, from the weights or from the checkpoint."""
        self._average = [tensor.detach().to(self._device, copy=True) for _, tensor in _tensors(pl_module)]
        if not self._restored:
            self._n_averaged = 0
        for (name, _), average in self._pairs(pl_module):
            if name in self._restored:
                average.copy_(trainer.strategy.part_of(self._restored[name], average))
        self._restored = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update after an optimizer step."""
        step = trainer.global_step
        if step > self._latest_update_step and self.should_update(step_idx=step - 1):
            self._update(pl_module)
            self._latest_update_step = step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update after an epoch."""
        epoch = trainer.current_epoch
        if epoch > self._latest_update_epoch and self.should_update(epoch_idx=epoch):
            self._update(pl_module)
            self._latest_update_epoch = epoch

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in."""
        if self._acts(trainer):
            self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        if self._is_swapped:
            self._swap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the weights back when validation was interrupted, before anybody saves them."""
        if self._is_swapped and not trainer.training:
            self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module."""
        if self._acts(trainer):
            self._swap(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the average."""
        self._average, self._is_swapped, self._restored = None, False, {}

    def _acts(self, trainer: Trainer) -> bool:
        return self._average is not None and (self._n_averaged > 0 or trainer.parity)

    def _pairs(self, pl_module: LightningModule) -> Iterator[tuple[tuple[str, Tensor], Tensor]]:
        """Return pairs of (name, tensor of the module) and its average."""
        pl_module.trainer.strategy.keep_parts()
        tensors = list(_tensors(pl_module))
        assert self._average is not None
        if len(tensors) != len(self._average):
            raise RuntimeError(
                f"`{type(self).__name__}` averages {len(self._average)} tensors, and `{type(pl_module).__name__}` has "
                f"{len(tensors)} now. Make parameters and buffers in `__init__` or `configure_model`."
            )
        return zip(tensors, self._average, strict=True)

    @torch.no_grad()
    def _update(self, pl_module: LightningModule) -> None:
        averaged: list[Tensor] = []
        current: list[Tensor] = []
        is_first = self._n_averaged == 0
        parameters = {id(p) for p in pl_module.parameters()}
        for (_, tensor), average in self._pairs(pl_module):
            averages = tensor.is_floating_point() and (self._use_buffers or id(tensor) in parameters)
            if is_first or not averages:
                average.copy_(tensor, non_blocking=True)
            else:
                averaged.append(average)
                current.append(tensor.detach().to(average.device))
        if averaged and self._avg_fn is not None:
            for average, tensor in zip(averaged, current, strict=True):
                average.copy_(self._avg_fn(average, tensor, self._n_averaged))
        elif averaged:
            self._multi_avg_fn(averaged, current, self._n_averaged)
        self._n_averaged += 1

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        for (_, tensor), average in self._pairs(pl_module):
            kept = average.clone()
            average.copy_(tensor)
            tensor.copy_(kept)
        self._is_swapped = not self._is_swapped

    def state_dict(self) -> dict[str, Any]:
        """Return when the average was last updated."""
        return {"latest_update_step": self._latest_update_step, "latest_update_epoch": self._latest_update_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._latest_update_step = state_dict["latest_update_step"]
        self._latest_update_epoch = state_dict.get("latest_update_epoch", -1)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as `state_dict`, the weights as `current_model_state`; both are the same after a fit."""
        if self._n_averaged and self._average is None and "optimizer_states" in checkpoint:
            checkpoint["current_model_state"] = checkpoint["state_dict"]
        elif self._acts(trainer):
            self._save_both(pl_module, checkpoint)
        if "current_model_state" in checkpoint:
            checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self._n_averaged)}

    def _save_both(self, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        others = {id(tensor): other for (_, tensor), other in self._pairs(pl_module)}
        every_name = chain(
            pl_module.named_parameters(remove_duplicate=False), pl_module.named_buffers(remove_duplicate=False)
        )
        by_name = {name: others[id(tensor)] for name, tensor in every_name}
        inside = checkpoint["state_dict"]
        outside = {name: by_name.get(name, value) for name, value in inside.items()}
        average, weights = (inside, outside) if self._is_swapped else (outside, inside)
        checkpoint["state_dict"] = average
        if "optimizer_states" in checkpoint:  # else nobody trains on from it
            checkpoint["current_model_state"] = weights

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take weights and average apart again when training goes on; test and prediction use the average.

        With parity a callback that has trained gives them the weights.
        """
        wanted = trainer.state.fn == "fit" or (trainer.parity and self._n_averaged)
        if not wanted or "current_model_state" not in checkpoint:
            return
        self._restored = dict(checkpoint["state_dict"])
        self._n_averaged = int(checkpoint["averaging_state"]["n_averaged"])
        pl_module.load_state_dict(checkpoint["current_model_state"])


def _tensors(pl_module: LightningModule) -> Iterator[tuple[str, Tensor]]:
    return chain(pl_module.named_parameters(), pl_module.named_buffers())


class EMAWeightAveraging(WeightAveraging):
    """Exponential moving average: `average <- decay * average + (1 - decay) * weights`.

    Args:
        device: Where the average is kept; None: with the weights.
        use_buffers: Average floating-point buffers too.
        decay: Part of the average that stays at every update.
        update_every_n_steps: Optimizer steps between updates; this and the next may be text ("10ba", "2ep").
        update_starting_at_step: First step index (from 0) that updates; None: at once.
        update_starting_at_epoch: From this epoch on also update at epochs' ends; None: never there.

    Source:
        Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992, https://doi.org/10.1137/0330046
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int | str = 1,
        update_starting_at_step: int | str | None = None,
        update_starting_at_epoch: int | str | None = None,
    ) -> None:
        super().__init__(device, use_buffers, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
        self.update_every_n_steps = counted(update_every_n_steps, "update_every_n_steps", "batches")
        self.update_starting_at_step = counted(update_starting_at_step, "update_starting_at_step", "batches")
        self.update_starting_at_epoch = counted(update_starting_at_epoch, "update_starting_at_epoch", "epochs")

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether this step or epoch updates the average."""
        if step_idx is not None:
            started = step_idx >= (self.update_starting_at_step or 0)
            return started and self.update_every_n_steps > 0 and step_idx % self.update_every_n_steps == 0
        start = self.update_starting_at_epoch
        return epoch_idx is not None and start is not None and epoch_idx >= start
