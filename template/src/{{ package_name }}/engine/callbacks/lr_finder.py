"""`LearningRateFinder` under the path of the callbacks.

It runs steps of the loop, so it lives above the trainer, in `tuner`; callbacks stay below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from ..tuner.lr_finder import LearningRateFinder

__all__ = ["LearningRateFinder"]


__getattr__, __dir__ = lazily(__name__, {"LearningRateFinder": "..tuner.lr_finder"})
