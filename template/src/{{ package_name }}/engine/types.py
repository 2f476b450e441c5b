"""Names for type annotations, as users of Lightning write them.

Owns: aliases. Does not own: classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

from .optimizer import LRSchedulerConfig

STEP_OUTPUT: TypeAlias = Tensor | Mapping[str, Any] | None
"""What a step may return."""
EPOCH_OUTPUT: TypeAlias = list[Any]
"""What the `*_epoch_end` hooks of 1.x get."""
TRAIN_DATALOADERS: TypeAlias = Any
"""A loader, or any nest of loaders."""
EVAL_DATALOADERS: TypeAlias = Any
"""A loader, or a list of loaders."""
OptimizerLRScheduler: TypeAlias = Any
"""What `configure_optimizers` may return."""

__all__ = [
    "EPOCH_OUTPUT",
    "EVAL_DATALOADERS",
    "STEP_OUTPUT",
    "TRAIN_DATALOADERS",
    "LRSchedulerConfig",
    "OptimizerLRScheduler",
]
