"""How the devices of a run work together."""

from __future__ import annotations

from ..lazy import lazily
from .base import Strategy
from .select import STRATEGIES, select_strategy
from .single import SingleDeviceStrategy

__all__ = ["STRATEGIES", "DDPStrategy", "FSDPStrategy", "SingleDeviceStrategy", "Strategy", "select_strategy"]

# Their parts of torch take time to import.
__getattr__, __dir__ = lazily(__name__, {"DDPStrategy": "ddp", "FSDPStrategy": "fsdp"})
