"""Every hook a module, a data module or a callback may override, when it runs and on which rank.

Owns: names, signatures, order and the defaults that do nothing. Does not own: who calls them (`dispatch` and the
    loops).

One run of `fit`, with callbacks before the module at every line unless said otherwise:

    configure_callbacks · prepare_data · setup · configure_model · [load checkpoint] · configure_optimizers ·
    on_fit_start on_sanity_check_start · a few validation batches · on_sanity_check_end
    on_train_start
    for each epoch:
        on_train_epoch_start
        for each batch:
            on_before_batch_transfer · transfer_batch_to_device · on_after_batch_transfer
            on_train_batch_start
            training_step · on_before_zero_grad · optimizer_zero_grad · on_before_backward · backward ·
            on_after_backward if the accumulation window is full: on_before_optimizer_step ·
            configure_gradient_clipping · optimizer_step lr_scheduler_step · on_train_batch_end
            if validation is due: on_validation_model_zero_grad · on_validation_model_eval · on_validation_start
                on_validation_epoch_start · on_validation_batch_start · validation_step · on_validation_batch_end
                on_validation_epoch_end · on_validation_end · on_validation_model_train
        on_train_epoch_end        (callbacks, module, then callbacks that watch a metric: early stopping, checkpoints)
    on_train_end · on_fit_end · teardown

Hooks run on every rank unless their text says otherwise. A hook that nobody overrides costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .transfer import move_data_to_device

if TYPE_CHECKING:
    from .module import LightningModule
    from .trainer import Trainer


class ModuleHooks:
    """Hooks of a `LightningModule` that do nothing unless overridden."""

    def on_fit_start(self) -> None:
        """Run at the start of `fit`, after `configure_optimizers` and before the sanity check."""

    def on_fit_end(self) -> None:
        """Run at the very end of `fit`."""

    def on_train_start(self) -> None:
        """Run once before the first training epoch, after the sanity check."""

    def on_train_end(self) -> None:
        """Run once after the last training epoch."""

    def on_validation_start(self) -> None:
        """Run at the start of every validation, also of the sanity check."""

    def on_validation_end(self) -> None:
        """Run at the end of every validation, when its metrics are final."""

    def on_test_start(self) -> None:
        """Run at the start of `test`."""

    def on_test_end(self) -> None:
        """Run at the end of `test`."""

    def on_predict_start(self) -> None:
        """Run at the start of `predict`."""

    def on_predict_end(self) -> None:
        """Run at the end of `predict`."""

    def on_train_epoch_start(self) -> None:
        """Run at the start of a training epoch, before its first batch is fetched."""

    def on_train_epoch_end(self) -> None:
        """Run at the end of a training epoch; metrics logged here can be monitored."""

    def on_validation_epoch_start(self) -> None:
        """Run before the first batch of a validation."""

    def on_validation_epoch_end(self) -> None:
        """Run after the last batch of a validation; metrics logged here can be monitored."""

    def on_test_epoch_start(self) -> None:
        """Run before the first test batch."""

    def on_test_epoch_end(self) -> None:
        """Run after the last test batch."""

    def on_predict_epoch_start(self) -> None:
        """Run before the first batch of `predict`."""

    def on_predict_epoch_end(self) -> None:
        """Run after the last batch of `predict`."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Run before `training_step`, with the batch on its device.

        Returns:
            -1 to skip the rest of this epoch, validation included; anything else goes on.
        """

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Run after the optimizer and the schedulers stepped.

        Args:
            outputs: `{"loss": detached loss / accumulation factor, **extras}`, `{}` when the step returned None;
                under manual optimisation what the step returned.
            batch: The batch on its device.
            batch_idx: Index within the epoch, from 0.
        """

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Run before `validation_step`; `dataloader_idx` is given only with several loaders."""

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Run after `validation_step` with what it returned."""

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Run before `test_step`."""

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Run after `test_step` with what it returned."""

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Run before `predict_step`."""

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Run after `predict_step` with what it returned."""

    def on_validation_model_zero_grad(self) -> None:
        """Run before a validation inside `fit`, unless gradients are being accumulated. Default: free the gradients."""
        self.zero_grad()  # type: ignore[attr-defined]

    def on_validation_model_eval(self) -> None:
        """Put the module into evaluation mode for validation. Default: `self.eval()`."""
        self.eval()  # type: ignore[attr-defined]

    def on_validation_model_train(self) -> None:
        """Put the module back after validation; unless overridden each submodule gets its own earlier mode."""
        self.train()  # type: ignore[attr-defined]

    def on_test_model_eval(self) -> None:
        """Put the module into evaluation mode for `test`."""
        self.eval()  # type: ignore[attr-defined]

    def on_test_model_train(self) -> None:
        """Put the module back after `test`; unless overridden each submodule gets its own earlier mode."""
        self.train()  # type: ignore[attr-defined]

    def on_predict_model_eval(self) -> None:
        """Put the module into evaluation mode for `predict`."""
        self.eval()  # type: ignore[attr-defined]

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """Run before gradients are cleared, after the forward pass of the first batch of an accumulation window."""

    def on_before_backward(self, loss: Tensor) -> None:
        """Run before `loss.backward()`; `loss` is already divided by the accumulation factor."""

    def on_after_backward(self) -> None:
        """Run after `loss.backward()`; gradients may still be scaled (16-mixed) or partial (accumulation)."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Run once per optimizer step, after backward, before clipping; gradients are unscaled and complete."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add to or change what is about to be saved. Runs on every rank."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read what `on_save_checkpoint` added. Runs on every rank, before the weights are loaded."""

    def configure_model(self) -> None:
        """Build large layers here: after `setup`, before the weights are loaded. May run again; guard against it."""


class DataHooks:
    """Hooks about data, shared by `LightningModule` and `LightningDataModule`; the data module's win."""

    prepare_data_per_node: bool = True
    allow_zero_length_dataloader_with_multiple_devices: bool = False

    def prepare_data(self) -> None:
        """Download or unpack, on local rank 0 of each node only. Attributes set here are lost on other ranks."""

    def setup(self, stage: str) -> None:
        """Build data sets and what depends on them; `stage` is "fit", "validate", "test" or "predict"."""

    def teardown(self, stage: str) -> None:
        """Undo `setup`. Runs always, also after an error."""

    def train_dataloader(self) -> Any:
        """Return a loader, or any nest of dicts, lists and tuples of loaders, for training."""
        raise _no_loader(self, "train")

    def val_dataloader(self) -> Any:
        """Return a loader or a list of loaders for validation."""
        raise _no_loader(self, "val")

    def test_dataloader(self) -> Any:
        """Return a loader or a list of loaders for `test`."""
        raise _no_loader(self, "test")

    def predict_dataloader(self) -> Any:
        """Return a loader or a list of loaders for `predict`."""
        raise _no_loader(self, "predict")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch while it is on the host; runs in every stage, after the mode is set."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; override for containers that `move_data_to_device` cannot walk."""
        return move_data_to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch on its device, e.g. augment it while `self.trainer.training`."""
        return batch


def _no_loader(owner: object, stage: str) -> Exception:
    return NotImplementedError(
        f"`{type(owner).__name__}` has no `{stage}_dataloader()`. Define it there, or pass the loader to the "
        "Trainer's call."
    )


class Callback:
    """Code around the training that is not science, called at every hook with the trainer and the module.

    Callbacks run in the order given, before the module. A callback keeps its own state in `state_dict`.
    """

    runs_last: bool = False
    """True: its `on_train_epoch_end` runs after the module's, because it watches what is logged there; of the role
    "checkpoint" `on_train_batch_end` and `on_validation_end` as well, because what the module does there is saved."""
    role: str = ""
    """How the trainer finds and orders it: "", "tuner", "bar", "summary", "early_stopping" or "checkpoint"."""

    @property
    def state_key(self) -> str:
        """Name of this callback's state in a checkpoint; two stateful callbacks must differ in it."""
        return type(self).__qualname__

    def _generate_state_key(self, **values: Any) -> str:
        return f"{type(self).__qualname__}{values!r}"

    def log(self, name: str, value: Any, **options: Any) -> None:
        """Log a metric as `LightningModule.log` does; works inside the hooks of a run."""
        raise RuntimeError(f"`{type(self).__name__}.log` works only inside a run; it is bound when the Trainer starts.")

    def log_dict(self, dictionary: Any, **options: Any) -> None:
        """Log several metrics as `LightningModule.log_dict` does."""
        raise RuntimeError(
            f"`{type(self).__name__}.log_dict` works only inside a run; it is bound when the Trainer starts."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs of this callback."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Run before `LightningModule.setup`."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Run at the end, also after an error."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_fit_start`."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_fit_end`."""

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run before the sanity check's validation batches."""

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run after the sanity check; its metrics are dropped next."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """See `ModuleHooks.on_train_batch_start`."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """See `ModuleHooks.on_train_batch_end`."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_train_epoch_start`."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_train_epoch_end`."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_validation_epoch_start`."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_validation_epoch_end`."""

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_test_epoch_start`."""

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_test_epoch_end`."""

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_predict_epoch_start`."""

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_predict_epoch_end`."""

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """See `ModuleHooks.on_validation_batch_start`."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """See `ModuleHooks.on_validation_batch_end`."""

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """See `ModuleHooks.on_test_batch_start`."""

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """See `ModuleHooks.on_test_batch_end`."""

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """See `ModuleHooks.on_predict_batch_start`."""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """See `ModuleHooks.on_predict_batch_end`."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_train_start`."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_train_end`."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_validation_start`."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_validation_end`."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_test_start`."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_test_end`."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_predict_start`."""

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_predict_end`."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Run when anything in a run raises, KeyboardInterrupt included, before teardown."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """See `ModuleHooks.on_save_checkpoint`."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """See `ModuleHooks.on_load_checkpoint`; runs after the module's."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """See `ModuleHooks.on_before_backward`."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `ModuleHooks.on_after_backward`."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """See `ModuleHooks.on_before_optimizer_step`."""

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """See `ModuleHooks.on_before_zero_grad`."""
