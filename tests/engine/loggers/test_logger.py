"""What loggers share: the interface, numbered directories, plain numbers, flat hyper-parameters."""

from __future__ import annotations

import ast
import threading
from argparse import Namespace
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine import loggers
from engine.loggers import CSVLogger, DummyLogger, Logger
from engine.loggers.logger import VersionedLogger, flat, new_checkpoints, plain, scalars


class Colour(Enum):
    RED = "red"


@dataclass
class Settings:
    width: int
    colour: Colour


def test_a_logger_of_ones_own_needs_one_method() -> None:
    class ListLogger(Logger):
        def __init__(self) -> None:
            self.rows: list[Any] = []

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            self.rows.append((step, dict(metrics)))

    logger = ListLogger()
    logger.log_metrics({"loss": 1.0}, step=3)
    logger.log_hyperparams({"lr": 0.1})
    logger.save()
    logger.finalize("success")
    assert logger.rows == [(3, {"loss": 1.0})]
    assert (logger.name, logger.version, logger.log_dir) == ("list", 0, None)


def test_a_logger_without_log_metrics_is_refused() -> None:
    class Empty(Logger):
        pass

    with pytest.raises(TypeError, match="log_metrics"):
        Empty()  # type: ignore[abstract]


def test_dummy_logger_takes_every_call() -> None:
    logger = DummyLogger()
    logger.log_metrics({"a": 1.0})
    logger.experiment.add_image("x", 1)
    logger.experiment[0]["key"] = 2
    logger[0].log_table("x")
    assert not hasattr(logger, "__array__")


def test_scalars_reads_tensors_and_puts_the_prefix() -> None:
    metrics = {"a": torch.tensor(2.0), "b": 3, "c": torch.tensor([4])}
    assert scalars(metrics, "run") == {"run-a": 2.0, "run-b": 3, "run-c": 4}


def test_plain_makes_anything_writable_as_yaml() -> None:
    value = {
        "path": Path("a/b"),
        "colour": Colour.RED,
        "settings": Settings(3, Colour.RED),
        "many": {1},
        "kind": torch.float32,
        "layer": torch.nn.ReLU(),
        "class": torch.nn.Linear,
        "space": Namespace(x=1),
        "partial": partial(max, 1),
        "number": torch.tensor(2.0).numpy(),
        5: None,
    }
    found = plain(value)
    assert found["path"] == "a/b"
    assert found["settings"] == {"width": 3, "colour": "red"}
    assert found["many"] == [1]
    assert found["kind"] == "torch.float32"
    assert found["layer"] == "ReLU()"
    assert found["class"] == "Linear"
    assert found["space"] == {"x": 1}
    assert found["partial"].startswith("functools.partial")
    assert found["number"] == 2.0
    assert found["5"] is None


def test_flat_joins_levels() -> None:
    assert flat({"net": {"width": 3, "act": {"name": "relu"}}, "none": {}}) == {
        "net/width": 3,
        "net/act/name": "relu",
        "none": {},
    }


def test_version_is_the_next_free_number(tmp_path: Path) -> None:
    for name in ("version_0", "version_7", "version_x", "other"):
        (tmp_path / "exp" / name).mkdir(parents=True)
    assert CSVLogger(tmp_path, "exp").version == 8
    assert CSVLogger(tmp_path, "exp", version="mine").log_dir == str(tmp_path / "exp" / "mine")
    assert not (tmp_path / "exp" / "version_8").exists(), "reading the version must not make a directory"


def test_loggers_made_at_once_never_share_a_directory(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, "exp") for _ in range(8)]
    assert {logger.version for logger in loggers} == {0}, "all of them see the same free number"
    threads = [threading.Thread(target=logger.claim) for logger in loggers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(logger.version for logger in loggers) == list(range(8))


def test_a_directory_that_the_user_made_in_log_dir_is_used(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "exp")
    mine = Path(logger.log_dir) / "notes"
    mine.mkdir(parents=True)
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    assert (mine.parent / "metrics.csv").exists()


def test_versioned_logger_is_abstract() -> None:
    with pytest.raises(TypeError):
        VersionedLogger("x")  # type: ignore[abstract]


def test_new_checkpoints_come_once_and_again_when_changed(tmp_path: Path) -> None:
    best, last = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    best.write_text("1")
    last.write_text("2")
    callback = SimpleNamespace(
        best_model_path=str(best),
        best_model_score=torch.tensor(0.5),
        last_model_path=str(last),
        current_score=None,
        best_k_models={str(best): torch.tensor(0.5), str(tmp_path / "gone.ckpt"): torch.tensor(0.7)},
    )
    seen: dict[str, float] = {}
    assert {(Path(f.path).name, f.alias, f.score) for f in new_checkpoints(callback, seen)} == {
        ("best.ckpt", "best", 0.5),
        ("last.ckpt", "latest", None),
    }
    assert new_checkpoints(callback, seen) == []
    seen[str(last)] -= 10
    assert [Path(f.path).name for f in new_checkpoints(callback, seen)] == ["last.ckpt"]


def test_type_checkers_see_the_same_names() -> None:
    stub = ast.parse(Path(loggers.__file__).with_suffix(".pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == loggers._MODULES
