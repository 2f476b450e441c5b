"""Predictions as a file: a table where they are one, tensors otherwise.

Owns: the two formats. Does not own: what a prediction is (the task's `predict_step`).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def write(outputs: Sequence[Any], folder: Path) -> Path:
    """Write what `predict_step` returned for each batch.

    A tensor `(batch,)` or `(batch, n)` becomes a column or n columns, a list of texts or numbers a column, a dict of
    such its keys' columns, in predictions.csv, a line per row. Anything else goes, batch by batch, to predictions.pt
    (`torch.load`).

    Args:
        outputs: One entry per batch; or one list of batches per loader.
        folder: Where the file goes.

    Returns:
        The file.
    """
    batches = [_columns(batch) for batch in outputs]
    if not batches or not all(batches) or len({tuple(batch or {}) for batch in batches}) > 1:
        path = folder / "predictions.pt"
        torch.save(list(outputs), path)
        return path
    path = folder / "predictions.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(batches[0] or {})
        for batch in batches:
            table.writerows(zip(*(batch or {}).values(), strict=True))
    return path


def _columns(batch: Any) -> dict[str, list[Any]] | None:
    """Return the columns of one batch; None when it is no table."""
    named = batch if isinstance(batch, dict) else {"prediction": batch}
    columns: dict[str, list[Any]] = {}
    for name, value in named.items():
        if isinstance(value, Tensor) and value.ndim == 2:
            columns.update({f"{name}_{i}": column for i, column in enumerate(value.T.tolist())})
        elif isinstance(value, Tensor) and value.ndim == 1:
            columns[str(name)] = value.tolist()
        elif isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
            columns[str(name)] = value
        else:
            return None
    return columns if len({len(column) for column in columns.values()}) == 1 else None
