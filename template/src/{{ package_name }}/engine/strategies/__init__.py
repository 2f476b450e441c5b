"""How the devices of a run work together."""

from __future__ import annotations

import importlib

from ..lazy import submodule
from .base import Strategy
from .select import STRATEGIES, select_strategy
from .single import SingleDeviceStrategy

__all__ = ["STRATEGIES", "DDPStrategy", "FSDPStrategy", "SingleDeviceStrategy", "Strategy", "select_strategy"]

_LATE = {"DDPStrategy": "ddp", "FSDPStrategy": "fsdp"}  # their parts of torch take time to import


def __getattr__(name: str) -> object:
    if name in _LATE:
        return getattr(importlib.import_module(f".{_LATE[name]}", __name__), name)
    return submodule(__name__, name, __all__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
