"""What loops, callbacks and modules ask a Trainer to do.

Owns: small services between the settings (`trainer`) and the run. Does not own: the five calls (`trainer`).
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .checkpoint import dump
from .defaults import ordered
from .errors import CheckpointError
from .handover import hand_over, take_over
from .hooks import Callback
from .legacy import OldHooks, old_hooks_of
from .run import Run, report_failure
from .sharding import shard
from .step import manual_backward
from .summary import table
from .trainer_view import TrainerView
from .verify import verify


class TrainerServices(TrainerView):
    """The part of `Trainer` that a run calls; three of its methods are functions of `defaults` and `handover`."""

    ordered = staticmethod(ordered)
    hand_over = hand_over
    take_over = take_over
    use_distributed_sampler: bool

    def attach(self, run: Run) -> None:
        """Take a run whose module fits this call, and add what serves the module's hooks of 1.x."""
        verify(run)
        self.run = run
        if old_hooks_of(run.module) and not any(isinstance(callback, OldHooks) for callback in self.callbacks):
            self.callbacks = self.ordered([*self.callbacks, OldHooks(run.module)])

    def check_callbacks(self) -> None:
        """Refuse two stateful callbacks whose states would overwrite each other.

        Raises:
            RuntimeError: There are two of one `state_key`.
        """
        keys = [
            callback.state_key for callback in self.callbacks if type(callback).state_dict is not Callback.state_dict
        ]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise RuntimeError(
                f"Two callbacks would save their state under one name, {', '.join(sorted(twice))}. Give them "
                "different settings, or override `state_key` in one of them."
            )

    def check_signals(self) -> None:
        """Leave the run when a signal arrived; called between batches."""
        self.signals.act()

    def shard(self, nest: Any, stage: str) -> Any:
        """Return the loaders as this process walks them: its share when there are several processes."""
        if not self.strategy.is_distributed or not self.use_distributed_sampler:
            return nest
        return shard(nest, stage, self.strategy, self.parity)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what lives in one process: a run, loaders that were made for it."""
        counts = {stage: replace(found, nest=None, loaders=[]) for stage, found in self.loaders.items()}
        train = {"train": counts["train"]} if "train" in counts else {}
        return {**vars(self), "run": None, "loaders": train, "current_loaders": None}

    def manual_backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """See `LightningModule.manual_backward`."""
        assert self.run is not None
        manual_backward(self.run, loss, *args, **kwargs)

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any = None
    ) -> None:
        """Write a checkpoint. Every rank must call it; rank 0 writes.

        Args:
            filepath: Where to.
            weights_only: Leave optimizers, callbacks and the exact position out.
            storage_options: Go to the checkpoint IO.

        Raises:
            AttributeError: No module was trained or evaluated yet.
            CheckpointError: The file could not be written; older files are intact.
        """
        if self.run is None:
            raise AttributeError(
                "There is nothing to save yet: call `fit`, `validate`, `test` or `predict` with a model first."
            )
        self.tell_loggers("save")  # a run resumed from this file does not log again what came before it
        failure = None
        try:
            self.strategy.save_checkpoint(dump(self.run, weights_only=bool(weights_only)), filepath, storage_options)
        except CheckpointError as error:
            failure = error
        told = self.strategy.broadcast(failure)  # every rank is to know what becomes of the run
        if failure or told:
            raise failure or told

    def tell_loggers(self, method: str, *args: Any, **options: Any) -> None:
        """Call a method of every logger; one that fails is reported, and ends neither training nor the others' turn."""
        for logger in self.loggers:
            try:
                getattr(logger, method)(*args, **options)
            except Exception as error:
                report_failure(logger, method, error)

    def load_checkpoint(self, path: Any, weights_only: bool | None) -> dict[str, Any]:
        """Read a checkpoint to the host; never unpickles code unless `weights_only` is False."""
        loaded: dict[str, Any] = self.strategy.checkpoint_io.load_checkpoint(
            path, map_location="cpu", weights_only=weights_only is not False
        )
        return loaded

    def init_module(self, empty_init: bool | None = None) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which modules are made with the run's type, on its device."""
        stack = contextlib.ExitStack()
        stack.enter_context(self.precision_plugin.init_context())
        stack.enter_context(torch.device("meta" if empty_init else self.strategy.root_device))
        return stack

    def explain_metrics(self) -> None:
        """Print every metric that was logged: where, what becomes of its values, the latest, and who gets it.

        Raises:
            AttributeError: Nothing was run yet.

        Example:
            >>> from torch.utils.data import DataLoader
            >>> from .module import LightningModule
            >>> from .trainer import Trainer
            >>> class Net(LightningModule):
            ...     def validation_step(self, batch, batch_idx):
            ...         self.log("val_loss", batch.sum(), prog_bar=True)
            ...         self.log("largest", batch.max(), reduce_fx="max", logger=False)
            >>> trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
            >>> _ = trainer.validate(Net(), DataLoader(torch.arange(6.0), batch_size=4), verbose=False)
            >>> trainer.explain_metrics()
            metric   | logged in       | value                               | latest | goes to
            val_loss | validation_step | mean, weighted by rows, of an epoch | 7      | callbacks, bar, loggers
            largest  | validation_step | max, of an epoch                    | 5      | callbacks
        """
        if self.run is None:
            raise AttributeError("There are no metrics yet: call `fit`, `validate` or `test` first.")
        columns: dict[str, list[str]] = {name: [] for name in ("metric", "logged in", "value", "latest", "goes to")}
        records = {**self.run.train_results.records, **self.run.eval_results.records}
        for (hook, *_), record in records.items():
            mean = "mean, weighted by rows" if record.reduction == "mean" else record.reduction
            how = record.metric.__class__.__name__ if record.metric is not None else f"{mean}, of an epoch"
            readers = {"bar": record.options.prog_bar, "loggers": record.options.logger is not False}
            for on_step in [True] * record.on_step + [False] * record.on_epoch:
                key = record.key(on_step)
                latest = self.metrics.callback.get(key, self.metrics.logged.get(key))
                shown = "" if latest is None else f"{float(latest):.4g}"
                goes_to = ", ".join(["callbacks", *(name for name, reads in readers.items() if reads)])
                row = (key, str(hook), "of a step" if on_step else how, shown, goes_to)
                for cells, cell in zip(columns.values(), row, strict=True):
                    cells.append(cell)
        self.print("\n".join(table(columns)))

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank 0 without breaking the progress bar."""
        if not self.is_global_zero:
            return
        bar = self.progress_bar_callback
        if bar is not None and getattr(bar, "is_enabled", False) and not self.state.stopped:
            bar.print(*args, **kwargs)
        else:
            print(*args, **kwargs)
