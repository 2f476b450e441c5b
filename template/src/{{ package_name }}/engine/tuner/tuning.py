"""`Tuner`: the searches as calls, before any training."""

from __future__ import annotations

from typing import Any, Literal

from ..errors import MisconfigurationException, did_you_mean
from ..loggers import DummyLogger
from .batch_size_scaling import BatchSizeFinder
from .lr_finder import LearningRateFinder, LRFinder
from .trial import restored

Method = Literal["fit", "validate", "test", "predict"]
METHODS = ("fit", "validate", "test", "predict")


class Tuner:
    """Search with a Trainer's settings; nothing of module, data or Trainer is changed but the attribute asked for.

    The setup and teardown hooks of module, data module and callbacks run as in `fit`; loggers write nothing.

    Args:
        trainer: Whose devices, precision, accumulation and clipping are used.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def lr_find(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        method: Method = "fit",
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training: int | str = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> LRFinder | None:
        """Sweep the learning rate and set the suggestion.

        Args:
            model: The module.
            train_dataloaders: A loader, a nest of loaders, or a data module. Default: the module's own.
            val_dataloaders: As for `fit`; a sweep does not validate.
            dataloaders: Must be None.
            datamodule: Instead of loaders.
            method: "fit" is the only one that has a learning rate.
            min_lr: First learning rate.
            max_lr: Last learning rate.
            num_training: Optimizer steps, a number or "100ba".
            mode: "exponential" or "linear".
            early_stop_threshold: Stop when the smoothed loss is worse than the best by this factor; None: never.
            update_attr: Set the suggestion.
            attr_name: Attribute or hyper-parameter to set; "": `lr` or `learning_rate`.

        Returns:
            The curve: `.results`, `.suggestion()`, `.plot()`; None under `fast_dev_run`.

        Raises:
            MisconfigurationException: A value or a combination that cannot work; several optimizers; no attribute.
        """
        if method != "fit":
            raise MisconfigurationException(
                f"`lr_find(method={method!r})`: only training has a learning rate. Leave `method` out."
            )
        finder = LearningRateFinder(
            min_lr, max_lr, num_training, mode, early_stop_threshold, update_attr=update_attr, attr_name=attr_name
        )
        self._search(finder, model, method, (train_dataloaders, val_dataloaders), dataloaders, datamodule)
        return finder.optimal_lr

    def scale_batch_size(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        method: Method = "fit",
        mode: str = "power",
        steps_per_trial: int | str = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
        effective_batch_size: int | None = None,
    ) -> int | None:
        """Search the largest batch size that fits into memory, and set it.

        Args:
            model: The module.
            train_dataloaders: As for `fit`. Default: the module's own, made from the attribute `batch_arg_name`.
            val_dataloaders: As for `fit`.
            dataloaders: As for `validate`, `test` or `predict`.
            datamodule: Instead of loaders.
            method: Which of the Trainer's calls to search for.
            mode: "power" or "binsearch".
            steps_per_trial: Steps for each size, a number or "3ba".
            init_val: First size.
            max_trials: Sizes to try at most.
            batch_arg_name: Attribute or hyper-parameter of module or data module that holds the size.
            margin: Part taken off what "binsearch" finds.
            max_val: Largest size to try.
            effective_batch_size: Rows of each optimizer step, of which the largest part that fits becomes the size;
                sets `trainer.accumulate_grad_batches` as well.

        Returns:
            The size; None under `fast_dev_run`.

        Raises:
            MisconfigurationException: A value or a combination that cannot work; several processes; nothing fits.
        """
        finder = BatchSizeFinder(
            mode, steps_per_trial, init_val, max_trials, batch_arg_name, margin, max_val, effective_batch_size
        )
        self._search(finder, model, method, (train_dataloaders, val_dataloaders), dataloaders, datamodule)
        if self._trainer.fast_dev_run:
            return None
        if effective_batch_size and method == "fit":
            self._trainer.accumulate_grad_batches = effective_batch_size // (finder.optimal_batch_size or 1)
        return finder.optimal_batch_size

    def _search(
        self, finder: Any, model: Any, method: str, train_and_val: tuple[Any, Any], dataloaders: Any, datamodule: Any
    ) -> None:
        """Search in a call of the Trainer, which is as before afterwards."""
        if method not in METHODS:
            raise MisconfigurationException(
                f"`method={method!r}`: accepted are {', '.join(METHODS)}.{did_you_mean(method, METHODS)}"
            )
        wrong = dataloaders is not None if method == "fit" else any(given is not None for given in train_and_val)
        if wrong:
            expected = "`train_dataloaders` and `val_dataloaders`" if method == "fit" else "`dataloaders`"
            raise MisconfigurationException(f"With `method={method!r}` pass loaders as {expected}.")
        trainer, device = self._trainer, model.device
        if any(type(callback) is type(finder) for callback in trainer.callbacks):
            raise MisconfigurationException(
                f"The Trainer has a `{type(finder).__name__}` already, which searches at every `fit`. Remove it, or do "
                "not call the Tuner."
            )
        finder.early_exit = True
        try:
            with restored(trainer):
                trainer.callbacks = trainer.ordered([finder, *trainer.callbacks])
                trainer.loggers = [DummyLogger() for _ in trainer.loggers]
                if method == "fit":
                    trainer.fit(model, *train_and_val, datamodule=datamodule)
                else:
                    silent = {"return_predictions" if method == "predict" else "verbose": False}
                    getattr(trainer, method)(model, dataloaders, datamodule=datamodule, **silent)
        finally:
            model.to(device)
