"""`BatchSizeFinder` under the path of the callbacks.

It runs steps of the loop, so it lives above the trainer, in `tuner`; callbacks stay below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from ..tuner.batch_size_scaling import BatchSizeFinder

__all__ = ["BatchSizeFinder"]


__getattr__, __dir__ = lazily(__name__, {"BatchSizeFinder": "..tuner.batch_size_scaling"})
