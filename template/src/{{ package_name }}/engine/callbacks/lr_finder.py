"""`LearningRateFinder` under the path of the callbacks.

It runs steps of the loop, so it lives above the trainer, in `tuner`; callbacks stay below it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..tuner.lr_finder import LearningRateFinder

__all__ = ["LearningRateFinder"]


def __getattr__(name: str) -> Any:
    if name == "LearningRateFinder":
        return getattr(importlib.import_module("..tuner.lr_finder", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
