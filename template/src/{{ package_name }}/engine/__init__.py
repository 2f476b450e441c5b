"""The trainer engine: a `Trainer` runs a `LightningModule` on a `LightningDataModule`, and callbacks watch.

`from my_project.engine import Trainer` is all that most code needs. Everything is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from .aliases import install

if TYPE_CHECKING:
    from .data import CombinedLoader
    from .datamodule import LightningDataModule
    from .hooks import Callback
    from .module import LightningModule
    from .seed import seed_everything
    from .trainer import Trainer

__version__ = "0.1.0"

__all__ = ["Callback", "CombinedLoader", "LightningDataModule", "LightningModule", "Trainer", "seed_everything"]

_MODULES = {
    "Callback": "hooks",
    "CombinedLoader": "data",
    "LightningDataModule": "datamodule",
    "LightningModule": "module",
    "Trainer": "trainer",
    "seed_everything": "seed",
}
_PACKAGES = (
    "accelerators",
    "callbacks",
    "checkpoint",
    "core",
    "datamodule",
    "errors",
    "hooks",
    "loggers",
    "module",
    "plugins",
    "profiler",
    "profilers",
    "strategies",
    "trainer",
    "tuner",
    "utilities",
)


install(__name__)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    if name == "pytorch":  # as in `import lightning as L; L.pytorch.callbacks`
        return sys.modules[__name__]
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}; it offers {', '.join((*__all__, *_PACKAGES))}"
    )


def __dir__() -> list[str]:
    return sorted({*__all__, *_PACKAGES, "__version__"})
