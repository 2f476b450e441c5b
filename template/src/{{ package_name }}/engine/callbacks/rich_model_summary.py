"""The model summary as a table drawn by rich."""

from __future__ import annotations

from typing import Any

from ..errors import require
from ..summary import rich_table, totals
from .model_summary import ModelSummary


class RichModelSummary(ModelSummary):
    """Print the model's layers as a table with colours.

    Args:
        max_depth: Levels to list: 1 lists the children, -1 everything.
        **summarize_kwargs: Passed on to `summarize`.

    Raises:
        MissingExtraError: rich is not installed.
    """

    def __init__(self, max_depth: int = 1, **summarize_kwargs: Any) -> None:
        require("rich", "rich", "`RichModelSummary`")
        super().__init__(max_depth, **summarize_kwargs)

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
        """Print a summary; see `ModelSummary.summarize`."""
        right = ("Params", "FLOPs", "In sizes", "Out sizes")
        footer = totals(total_parameters, trainable_parameters, model_size, total_training_modes, total_flops)
        print(rich_table(dict(summary_data), right, footer))
