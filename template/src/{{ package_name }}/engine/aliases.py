"""Paths under which code written for Lightning looks for names that live elsewhere here.

Owns: the table, and the finder that makes `engine.utilities.exceptions` and the like importable. Does not own: the
things. Each path is a module made on demand, whose names are looked up where they are; nothing is imported before it
is used.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .lazy import submodule

_RANK_ZERO = dict.fromkeys(
    ("rank_zero_only", "rank_zero_info", "rank_zero_warn", "rank_zero_debug", "rank_zero_deprecation"), "distributed"
)
_STATES = dict.fromkeys(("RunningStage", "TrainerFn", "TrainerState", "TrainerStatus"), "states")
_SUMMARY = dict.fromkeys(("ModelSummary", "LayerSummary", "summarize", "get_human_readable_count"), "summary")
_IO = dict.fromkeys(("CheckpointIO", "TorchCheckpointIO"), "checkpoint_file") | {
    "AsyncCheckpointIO": "checkpoint_async"
}
_PRECISION = dict.fromkeys(
    ("Precision", "MixedPrecision", "HalfPrecision", "DoublePrecision", "Float8Precision"), "precision"
)
_ERRORS = dict.fromkeys(("MisconfigurationException", "SIGTERMException", "_TunerExitException"), "errors")
_APPLY = dict.fromkeys(("move_data_to_device", "apply_to_collection"), "transfer")
_PROFILERS = "Profiler PassThroughProfiler SimpleProfiler AdvancedProfiler PyTorchProfiler"
_TYPES = "STEP_OUTPUT EPOCH_OUTPUT EVAL_DATALOADERS TRAIN_DATALOADERS OptimizerLRScheduler LRSchedulerConfig"

ALIASES: dict[str, dict[str, str]] = {
    "callbacks.base": {"Callback": "hooks"},
    "core": {"LightningModule": "module", "LightningDataModule": "datamodule"},
    "core.module": {"LightningModule": "module"},
    "core.lightning": {"LightningModule": "module"},
    "core.datamodule": {"LightningDataModule": "datamodule"},
    "core.hooks": {"ModelHooks": "hooks:ModuleHooks", "DataHooks": "hooks"},
    "core.memory": _SUMMARY,
    "core.mixins": {"HyperparametersMixin": "hparams"},
    "core.optimizer": {"LightningOptimizer": "optimizer:StepOptimizer"},
    "loggers.base": {
        "LightningLoggerBase": "loggers.logger:Logger",
        "DummyLogger": "loggers.logger",
        "rank_zero_experiment": "loggers.logger",
    },
    "plugins": {**_IO, **_PRECISION},
    "plugins.io": _IO,
    "plugins.precision": _PRECISION,
    "profiler": dict.fromkeys(_PROFILERS.split(), "profilers"),
    "strategies.single_device": {"SingleDeviceStrategy": "strategies.single"},
    "trainer.states": _STATES,
    "trainer.supporters": {"CombinedLoader": "data"},
    "trainer.trainer": {"Trainer": "trainer"},
    "utilities.apply_func": _APPLY,
    "utilities.cloud_io": {"load": "checkpoint_file:read"},
    "utilities.combined_loader": {"CombinedLoader": "data"},
    "utilities.data": {"extract_batch_size": "transfer:find_batch_size"},
    "utilities.distributed": _RANK_ZERO,
    "utilities.exceptions": _ERRORS,
    "utilities.grads": {"grad_norm": "utilities"},
    "utilities.memory": {},
    "utilities.model_summary": _SUMMARY,
    "utilities.parsing": {"AttributeDict": "hparams"},
    "utilities.rank_zero": _RANK_ZERO,
    "utilities.seed": dict.fromkeys(("seed_everything", "isolate_rng"), "seed"),
    "utilities.warnings": _RANK_ZERO,
    "utilities.types": dict.fromkeys(_TYPES.split(), "types"),
}
"""Path below the engine -> name -> module that has it (`module:name` when it is called otherwise there)."""


class AliasFinder(MetaPathFinder, Loader):
    """Makes the modules of `ALIASES`.

    Args:
        package: Full name of the engine's package.
    """

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for a path of the table."""
        alias = fullname.removeprefix(f"{self.package}.")
        return ModuleSpec(fullname, self, is_package=True) if alias != fullname and alias in ALIASES else None

    def exec_module(self, module: ModuleType) -> None:
        """Let the module look its names up when they are asked for."""
        names = ALIASES[module.__name__.removeprefix(f"{self.package}.")]

        def lookup(name: str) -> Any:
            if name not in names:
                return submodule(module.__name__, name, names)
            home, _, real = names[name].partition(":")
            return getattr(importlib.import_module(f"{self.package}.{home}"), real or name)

        module.__getattr__ = lookup  # type: ignore[method-assign]
        module.__all__ = list(names)  # type: ignore[attr-defined]


def install(package: str) -> None:
    """Make the paths importable, once for each engine package in this process."""
    if not any(getattr(finder, "package", None) == package for finder in sys.meta_path):
        sys.meta_path.append(AliasFinder(package))
