"""Comet without a network, read back from its offline archive."""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from engine.errors import MissingExtraError
from engine.loggers import CometLogger

pytest.importorskip("comet_ml")

QUIET: dict[str, Any] = {
    "log_code": False,
    "log_git_metadata": False,
    "log_git_patch": False,
    "log_env_details": False,
    "auto_output_logging": False,
    "display_summary_level": 0,
}


def messages(directory: Path) -> list[dict[str, Any]]:
    (archive,) = directory.glob("*.zip")
    with zipfile.ZipFile(archive) as file:
        return [json.loads(line) for line in file.read("messages.json").decode().splitlines()]


def test_metrics_params_and_files_in_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    logger = CometLogger(online=False, project="demo", prefix="run", offline_directory=str(out), **QUIET)
    logger.log_hyperparams({"lr": 0.1, "net": {"width": 3}})
    for step in range(3):
        logger.log_metrics({"loss": 1.0 / (step + 1), "epoch": 1.0}, step)
    (tmp_path / "curves.svg").write_text("<svg/>")
    logger.log_artifact(tmp_path / "curves.svg", "pictures")
    logger.finalize("success")
    key = logger.version
    assert logger.state_dict() == {"experiment_key": key}
    assert (logger.name, logger.save_dir) == ("demo", str(out))
    logger.log_metrics({"test_loss": 0.5}, 3)  # `test` after `fit` goes on in the same experiment
    logger.experiment.end()

    found = messages(out)
    metrics = [m["payload"]["metric"] for m in found if m["type"] == "metric_msg"]
    points = [(m["step"], m["epoch"], m["metricValue"]) for m in metrics if m["metricName"] == "run_loss"]
    assert points == [(0, 1, 1.0), (1, 1, 0.5), (2, 1, pytest.approx(1 / 3))]
    assert [m["metricValue"] for m in metrics if m["metricName"] == "run_test_loss"] == [0.5]
    text = json.dumps(found)
    assert "net/width" in text
    assert "pictures/curves.svg" in text


def test_a_resumed_fit_takes_its_key_unless_another_is_given() -> None:
    fresh, chosen = CometLogger(), CometLogger(experiment_key="mine")
    for logger in (fresh, chosen):
        logger.load_state_dict({"experiment_key": "old"})
    assert (fresh.version, chosen.version) == ("old", "mine")


def test_missing_comet_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "comet_ml", None)
    with pytest.raises(MissingExtraError, match=r"\[comet\]"):
        CometLogger()
