"""`BatchSizeFinder` under the path of the callbacks.

It runs steps of the loop, so it lives above the trainer, in `tuner`; callbacks stay below it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..tuner.batch_size_scaling import BatchSizeFinder

__all__ = ["BatchSizeFinder"]


def __getattr__(name: str) -> Any:
    if name == "BatchSizeFinder":
        return getattr(importlib.import_module("..tuner.batch_size_scaling", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
