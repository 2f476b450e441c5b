"""Memory and load of the device, in the loggers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..errors import MisconfigurationException, require
from ..hooks import Callback

if TYPE_CHECKING:
    from ..module import LightningModule
    from ..trainer import Trainer

# Of the hundred that `torch.cuda.memory_stats` has, those that tell something about a training.
CUDA_STATS = (
    "allocated_bytes.all.current",
    "allocated_bytes.all.peak",
    "reserved_bytes.all.current",
    "reserved_bytes.all.peak",
    "inactive_split_bytes.all.current",
    "num_alloc_retries",
    "num_ooms",
)


class DeviceStatsMonitor(Callback):
    """Log statistics of the device when loggers are due, as `DeviceStatsMonitor.<hook>/<statistic>`.

    On CUDA: allocated and reserved bytes now and at their peak, failed attempts to allocate. On MPS: allocated bytes.
    On a CPU, with psutil: load, memory and swap in per cent.

    Args:
        cpu_stats: True: also those of the CPU, on a GPU; False: none on a CPU; None: on a CPU only.

    Raises:
        MisconfigurationException: The trainer has no logger.
        MissingExtraError: statistics of the CPU are due and psutil is not installed.
    """

    def __init__(self, cpu_stats: bool | None = None) -> None:
        self._cpu_stats = cpu_stats
        self._cpu = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is a logger, and what can be read."""
        if not trainer.loggers:
            raise MisconfigurationException(
                "`DeviceStatsMonitor` writes to loggers and the Trainer has none. Give it one, e.g. "
                "`logger=CSVLogger('runs')`, or remove the callback."
            )
        on_cpu = trainer.strategy.root_device.type == "cpu"
        self._cpu = self._cpu_stats if self._cpu_stats is not None else on_cpu
        if self._cpu:
            require("psutil", "psutil", "`DeviceStatsMonitor` on a CPU")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log when loggers are due."""
        self._log(trainer, "on_train_batch_start")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log when loggers are due."""
        self._log(trainer, "on_train_batch_end")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """With parity: log when loggers are due."""
        if trainer.parity:
            self._log(trainer, "on_validation_batch_start")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log the first batch of every validation and test; with parity a validation's when loggers are due."""
        hook = f"on_{'test' if trainer.testing else 'validation'}_batch_end"
        if trainer.parity and not trainer.testing:
            self._log(trainer, hook)
        elif not batch_idx and not trainer.sanity_checking:
            self._write(trainer, hook)

    on_test_batch_end = on_validation_batch_end

    def _log(self, trainer: Trainer, hook: str) -> None:
        if trainer.log_due:
            self._write(trainer, hook)

    def _write(self, trainer: Trainer, hook: str) -> None:
        stats = {f"{type(self).__qualname__}.{hook}/{name}": value for name, value in self._stats(trainer).items()}
        if stats:
            trainer.tell_loggers("log_metrics", stats, step=trainer.log_step)

    def _stats(self, trainer: Trainer) -> dict[str, float]:
        device = trainer.strategy.root_device
        stats: dict[str, float] = {}
        if device.type == "cuda":
            found = torch.cuda.memory_stats(device)
            stats = {name: float(found[name]) for name in CUDA_STATS if name in found}
        elif device.type == "mps":
            stats = {"allocated_bytes": float(torch.mps.current_allocated_memory())}
        if self._cpu:
            stats.update(cpu_stats())
        return stats


def cpu_stats() -> dict[str, float]:
    """Return load, memory and swap of the machine in per cent; needs psutil."""
    psutil = require("psutil", "psutil", "CPU statistics")
    return {
        "cpu_percent": psutil.cpu_percent(),
        "cpu_vm_percent": psutil.virtual_memory().percent,
        "cpu_swap_percent": psutil.swap_memory().percent,
    }
