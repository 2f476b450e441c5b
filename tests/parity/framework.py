"""Load a trainer framework by name, so that one and the same job runs on any of them.

Owns: the handful of names that jobs may use of a framework, and keeping it quiet.
Does not own: jobs, recordings or their comparison.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENGINE_ROOT = Path(__file__).resolve().parents[2] / "template" / "src" / "{{ package_name }}"
TRACES = Path(__file__).resolve().parents[1] / "data" / "traces"
REFERENCE = "lightning.pytorch"


@dataclass(frozen=True)
class Framework:
    """The names a job may use."""

    name: str
    version: str
    root: Any
    Trainer: Any
    LightningModule: Any
    LightningDataModule: Any
    Callback: Any

    @property
    def callbacks(self) -> Any:
        """The sub-package with the built-in callbacks."""
        return importlib.import_module(f"{self.name}.callbacks")

    @property
    def loggers(self) -> Any:
        """The sub-package with the loggers."""
        return importlib.import_module(f"{self.name}.loggers")

    @property
    def tuner(self) -> Any:
        """The sub-package with the tuner."""
        return importlib.import_module(f"{self.name}.tuner")

    @property
    def utilities(self) -> Any:
        """The sub-package with `CombinedLoader`."""
        return importlib.import_module(f"{self.name}.utilities")


def load_framework(name: str) -> Framework:
    """Import the framework `name`: "lightning.pytorch", or "engine" (ours, which is told to behave as the reference).

    Args:
        name: dotted name of the package that exports `Trainer`, `LightningModule` and so on.

    Returns:
        The framework. The Trainer of any package but the reference is bound to `parity="lightning"`.
    """
    if name == "engine" and str(ENGINE_ROOT) not in sys.path:
        sys.path.insert(0, str(ENGINE_ROOT))
    root = importlib.import_module(name)
    quiet(name)
    version = getattr(root, "__version__", None) or importlib.import_module(name.split(".")[0]).__version__
    trainer = root.Trainer if name == REFERENCE else functools.partial(root.Trainer, parity="lightning")
    return Framework(name, version, root, trainer, root.LightningModule, root.LightningDataModule, root.Callback)


def words(text: str) -> list[str]:
    """Split at blanks: lists of names read better as text."""
    return text.split()


def quiet(name: str) -> None:
    """Silence what a framework says about ordinary things; jobs compare what it does."""
    warnings.filterwarnings("ignore")
    for logger in {name, name.split(".")[0], "lightning.fabric", "engine"}:
        logging.getLogger(logger).setLevel(logging.ERROR)


def engine_is_there() -> bool:
    """Whether the engine can be imported and has a Trainer."""
    return (ENGINE_ROOT / "engine" / "trainer.py").exists()
