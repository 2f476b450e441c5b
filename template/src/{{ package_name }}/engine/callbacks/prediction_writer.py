"""`BasePredictionWriter`: write predictions while they are made."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from ..errors import MisconfigurationException, did_you_mean
from ..hooks import Callback
from ..transfer import move_data_to_device

if TYPE_CHECKING:
    from ..module import LightningModule
    from ..trainer import Trainer


class WriteInterval(StrEnum):
    """When a prediction writer is called."""

    BATCH = "batch"
    EPOCH = "epoch"
    BATCH_AND_EPOCH = "batch_and_epoch"

    @property
    def on_batch(self) -> bool:
        """Called after every batch."""
        return self is not WriteInterval.EPOCH

    @property
    def on_epoch(self) -> bool:
        """Called once, after the last batch."""
        return self is not WriteInterval.BATCH


class BasePredictionWriter(Callback):
    """Base of callbacks that write predictions; override one or both `write_` methods.

    Every rank writes its own rows: use `trainer.global_rank` in the file's name, and the indices to put rows in order.

    Args:
        write_interval: "batch" (pass `return_predictions=False` to `predict` and memory stays flat), "epoch" or
            "batch_and_epoch".

    Raises:
        MisconfigurationException: An unknown interval.
    """

    def __init__(self, write_interval: Literal["batch", "epoch", "batch_and_epoch"] = "batch") -> None:
        super().__init__()
        accepted = [interval.value for interval in WriteInterval]
        if write_interval not in accepted:
            raise MisconfigurationException(
                f"`write_interval={write_interval!r}`: accepted are {accepted}.{did_you_mean(write_interval, accepted)}"
            )
        self.interval = WriteInterval(write_interval)
        self._predictions: dict[int, list[Any]] = {}

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the predictions of one batch.

        Args:
            trainer: The trainer.
            pl_module: The module.
            prediction: What `predict_step` returned.
            batch_indices: Index in the data set of every row; None where the loader does not tell.
            batch: The batch.
            batch_idx: Its index in its loader.
            dataloader_idx: Index of the loader.
        """
        raise NotImplementedError(_OVERRIDE.format(type(self).__name__, "write_on_batch_end", "batch"))

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Write all predictions of this rank.

        Args:
            trainer: The trainer.
            pl_module: The module.
            predictions: What `predict_step` returned, by batch, on the host; with several loaders a list of such lists.
            batch_indices: For each loader the indices of its batches in the data set.
        """
        raise NotImplementedError(_OVERRIDE.format(type(self).__name__, "write_on_epoch_end", "epoch"))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Hand a batch to `write_on_batch_end`, and keep it for `write_on_epoch_end` if that is called."""
        if self.interval.on_epoch:
            self._predictions.setdefault(dataloader_idx, []).append(move_data_to_device(outputs, "cpu"))
        if self.interval.on_batch:
            indices = trainer.predict_loop.current_batch_indices
            self.write_on_batch_end(trainer, pl_module, outputs, indices, batch, batch_idx, dataloader_idx)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand everything to `write_on_epoch_end`."""
        if not self.interval.on_epoch:
            return
        kept, self._predictions = list(self._predictions.values()), {}
        predictions = kept if len(kept) > 1 else [prediction for of_loader in kept for prediction in of_loader]
        self.write_on_epoch_end(trainer, pl_module, predictions, trainer.predict_loop.epoch_batch_indices)


_OVERRIDE = "`{0}` does not define `{1}`, which its `write_interval` asks for. Define it, or do not ask for {2!r}."
