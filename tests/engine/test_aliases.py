"""Deep paths of the reference framework lead to the engine's own things."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import engine
import pytest
from engine.aliases import ALIASES
from engine.states import RunningStage

PATHS = [(path, name) for path, names in ALIASES.items() for name in names]


@pytest.mark.parametrize(("path", "name"), PATHS, ids=[f"{path}.{name}" for path, name in PATHS])
def test_every_alias_leads_somewhere(path: str, name: str) -> None:
    assert getattr(importlib.import_module(f"engine.{path}"), name) is not None


def test_an_alias_is_the_same_object_and_usable_as_a_key() -> None:
    from engine.trainer.states import RunningStage as aliased  # type: ignore[import-not-found]

    assert {aliased.TRAINING: 1}[RunningStage.TRAINING] == 1


def test_names_are_reached_by_attribute_after_importing_the_engine_alone() -> None:
    code = (
        "import engine; engine.callbacks.early_stopping.EarlyStopping; engine.loggers.CSVLogger; "
        "engine.utilities.grad_norm; engine.utilities.rank_zero_only; engine.utilities.exceptions.SIGTERMException; "
        "engine.core.mixins.HyperparametersMixin; engine.trainer.states.RunningStage; engine.plugins.io.CheckpointIO; "
        "engine.strategies.ddp.DDPStrategy; engine.tuner.lr_finder; engine.profiler.SimpleProfiler; "
        "engine.pytorch.callbacks.model_checkpoint.ModelCheckpoint"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(Path(engine.__file__).parent.parent)}
    )


def test_an_unknown_name_says_what_there_is() -> None:
    module = importlib.import_module("engine.utilities.exceptions")
    with pytest.raises(AttributeError, match="MisconfigurationException"):
        _ = module.Nothing


def test_the_version_starts_with_two_integers() -> None:
    major, minor = engine.__version__.split(".")[:2]
    assert int(major) >= 0
    assert int(minor) >= 0
