"""TensorBoard, read back with its own EventAccumulator."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from engine.errors import EngineWarning, MissingExtraError
from engine.loggers import TensorBoardLogger

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(logger: TensorBoardLogger) -> Any:
    found = event_accumulator.EventAccumulator(logger.log_dir)
    found.Reload()
    return found


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, 4)
        self.layer = torch.nn.Linear(4, 2)
        self.drop = torch.nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.layer(x))


def test_scalars_are_visible_while_the_run_goes_on(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "exp", prefix="run")
    for step in range(3):
        logger.log_metrics({"loss": 1 / (step + 1), "epoch": 0}, step)
    logger.save()
    events = read(logger).Scalars("run-loss")
    assert [event.step for event in events] == [0, 1, 2]
    assert [event.value for event in events] == pytest.approx([1, 1 / 2, 1 / 3])
    assert logger.log_dir == str(tmp_path / "exp" / "version_0")
    logger.finalize("success")
    logger.log_metrics({"test_loss": 0.5}, 3)
    logger.finalize("success")
    assert read(logger).Scalars("run-test_loss")[0].value == 0.5


def test_hyperparameters_for_the_page_and_as_yaml(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "")
    logger.log_hyperparams({"lr": 0.1, "net": {"width": 3, "path": Path("x")}})
    logger.finalize("success")
    found = read(logger)
    plugin = found.SummaryMetadata("_hparams_/session_start_info")
    assert plugin.plugin_data.plugin_name == "hparams"
    assert b"net/width" in plugin.plugin_data.content
    assert found.Scalars("hp_metric")[0].value == -1
    text = (Path(logger.log_dir) / "hparams.yaml").read_text()
    assert yaml.safe_load(text) == {"lr": 0.1, "net": {"width": 3, "path": "x"}}


def test_hyperparameters_with_metrics_of_ones_own(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1}, {"accuracy": 0.9})
    logger.finalize("success")
    assert read(logger).Scalars("accuracy")[0].value == pytest.approx(0.9)


def test_no_hp_metric_when_not_wanted(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    logger.log_hyperparams({"lr": 0.1})
    logger.finalize("success")
    assert read(logger).Tags()["scalars"] == []


def test_graph_is_written_and_the_modes_are_put_back(tmp_path: Path) -> None:
    logger, model = TensorBoardLogger(tmp_path, log_graph=True), Net()
    model.drop.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        logger.log_graph(model)
    logger.finalize("success")
    assert "layer" in str(read(logger).Graph())
    assert (model.training, model.drop.training) == (True, False)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_graph_that_cannot_be_traced_is_a_warning(tmp_path: Path) -> None:
    logger, model = TensorBoardLogger(tmp_path, log_graph=True), Net()
    with pytest.warns(EngineWarning, match="not logged"):
        logger.log_graph(model, torch.zeros(2, 3))
    del model.example_input_array
    with pytest.warns(EngineWarning, match="example_input_array"):
        logger.log_graph(model)


def test_sub_dir_and_version(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "exp", version="one", sub_dir="fold0", flush_secs=1)
    logger.experiment.add_text("note", "hello")
    assert logger.log_dir == str(tmp_path / "exp" / "one" / "fold0")
    assert logger.root_dir == str(tmp_path / "exp")
    assert logger.sub_dir == "fold0"
    logger.finalize("success")


def test_missing_tensorboard_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"\[tensorboard\]"):
        TensorBoardLogger("x")
