"""Print what the model consists of, before training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..hooks import Callback
from ..summary import summarize, table, totals

if TYPE_CHECKING:
    from ..module import LightningModule
    from ..trainer import Trainer


class ModelSummary(Callback):
    """Print the model's layers, parameters and size at the start of `fit`, on rank 0.

    Args:
        max_depth: Levels to list: 1 lists the children, -1 everything, 0 prints nothing.
        short: One line in place of the table; what the trainer shows when it was not asked for a summary.
        **summarize_kwargs: Passed on to `summarize`.
    """

    role = "summary"

    def __init__(self, max_depth: int = 1, *, short: bool = False, **summarize_kwargs: Any) -> None:
        self._max_depth = max_depth
        self._short = short
        self._summarize_kwargs = summarize_kwargs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the summary and print it."""
        if not self._max_depth or not trainer.is_global_zero:
            return
        summary = summarize(pl_module, max_depth=self._max_depth)
        if self._short:
            print(summary.line())
            return
        self.summarize(
            list(summary.columns().items()),
            summary.total_parameters,
            summary.trainable_parameters,
            summary.model_size,
            summary.total_training_modes,
            summary.total_flops,
            **self._summarize_kwargs,
        )

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Print a summary; override to put it elsewhere.

        Args:
            summary_data: Heading and cells of each column.
            total_parameters: Parameters of the model.
            trainable_parameters: Those that require a gradient.
            model_size: Megabytes of the parameters.
            total_training_modes: Number of modules in "train" and in "eval" mode.
            total_flops: Of one forward pass of the example; 0 when there is none.
            **summarize_kwargs: What the callback was made with.
        """
        print(*table(dict(summary_data)), sep="\n")
        print(totals(total_parameters, trainable_parameters, model_size, total_training_modes, total_flops))
