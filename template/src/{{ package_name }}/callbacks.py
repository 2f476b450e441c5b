"""Callbacks of the project, besides the engine's. One of your own is switched on by `class: callbacks.Name`.

Owns: what the trackers get of a run's folder, of its data and its machine, and the picture of the curves. Does not own:
the rest of the folder (`run`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch

from .engine import Callback, LightningModule, Trainer
from .engine.curves import write_curves
from .engine.loggers import MLFlowLogger
from .fingerprints import fingerprint, rows


class RunFiles(Callback):
    """Give the record of a run to the trackers, and draw the curves of a training where matplotlib is installed.

    Rank 0 only; `fast_dev_run` leaves nothing.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._is_sent = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Send what makes the run repeatable, once."""
        if not self._is_sent:
            self._send(trainer, "config.yaml", "environment.json", "git.diff", "uv.lock")
            self._is_sent = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw and send the curves; also of a training that failed."""
        if stage == "fit" and self._writes(trainer) and find_spec("matplotlib") is not None:
            write_curves(trainer.history, self.folder / "curves.svg")
            self._send(trainer, "curves.svg")

    def _send(self, trainer: Trainer, *names: str) -> None:
        for file in (self.folder / name for name in names):
            if self._writes(trainer) and file.is_file():
                for logger in trainer.loggers:
                    logger.log_artifact(file)

    def _writes(self, trainer: Trainer) -> bool:
        return trainer.is_global_zero and not trainer.fast_dev_run


class DataFingerprints(Callback):
    """Tell MLflow which data a training sees: sizes and fingerprints. Rank 0 only."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the loaders, once."""
        if trainer.is_global_zero and not trainer.fast_dev_run and (loggers := _mlflow(trainer)):
            for context, loaders in (("training", trainer.train_dataloader), ("validation", trainer.val_dataloaders)):
                for name, dataset in _datasets(loaders, context):
                    size = rows(dataset)
                    profile = "" if size is None else json.dumps({"rows": size})
                    for logger in loggers:
                        logger.log_dataset(name, fingerprint(dataset), context, profile, type(dataset).__qualname__)


class SystemMetrics(Callback):
    """Log the machine's load by MLflow's names, every few seconds of a training and at its end. Rank 0 only.

    Args:
        every_s: Seconds between two looks.
    """

    def __init__(self, every_s: float = 10.0) -> None:
        self.every_s = every_s
        self._ends = threading.Event()
        self._loggers: list[MLFlowLogger] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to look."""
        self._loggers = _mlflow(trainer) if trainer.is_global_zero and not trainer.fast_dev_run else []
        if self._loggers:
            self._ends.clear()
            psutil.cpu_percent()  # from here on it says what was used since it was asked last
            threading.Thread(target=self._watch, args=[trainer], name="system metrics", daemon=True).start()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look once more: a training may take less than a second."""
        self._look(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End it; also of a training that failed."""
        self._ends.set()

    def _watch(self, trainer: Trainer) -> None:
        pause = min(1.0, self.every_s)  # the first look is early
        while not self._ends.wait(pause):
            self._look(trainer)
            pause = self.every_s

    def _look(self, trainer: Trainer) -> None:
        for logger in self._loggers:
            logger.log_metrics(_load(), trainer.global_step)


def _load() -> dict[str, float]:
    memory = psutil.virtual_memory()
    found = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
    }
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    for i in range(torch.cuda.device_count() if in_use else 0):
        free, total = torch.cuda.mem_get_info(i)
        found[f"system/gpu_{i}_memory_usage_megabytes"] = (total - free) / 1e6
    return found


def _mlflow(trainer: Trainer) -> list[MLFlowLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, MLFlowLogger)]


def _datasets(loaders: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the data set of each loader in whatever they are collected in, with a name for it."""
    if isinstance(loaders, dict | list | tuple):
        for key, inner in loaders.items() if isinstance(loaders, dict) else enumerate(loaders):
            yield from _datasets(inner, f"{name}-{key}")
    elif hasattr(loaders, "iterables"):  # a CombinedLoader
        yield from _datasets(loaders.iterables, name)
    elif getattr(loaders, "dataset", None) is not None:
        yield name, loaders.dataset
