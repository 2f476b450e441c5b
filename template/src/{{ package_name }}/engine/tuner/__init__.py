"""Search for a learning rate or a batch size before (or in the middle of) training; loaded when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .batch_size_scaling import BatchSizeFinder
    from .lr_finder import LearningRateFinder, LRFinder
    from .tuning import Tuner

__all__ = ["BatchSizeFinder", "LRFinder", "LearningRateFinder", "Tuner"]

_MODULES = {
    "BatchSizeFinder": "batch_size_scaling",
    "LRFinder": "lr_finder",
    "LearningRateFinder": "lr_finder",
    "Tuner": "tuning",
}


__getattr__, __dir__ = lazily(__name__, _MODULES)
