"""One run with every logger at once: each holds the same numbers as the CSV file."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from engine.loggers import CometLogger, CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from tests.engine.loggers.test_comet import QUIET
from tests.engine.loggers.test_wandb import read as read_wandb
from tests.engine.toys import BoringModel, loader, quiet_trainer

Points = list[tuple[int, float]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of two epochs and a test, and its loggers by name."""
    for module in ("mlflow", "tensorboard", "wandb", "comet_ml"):
        pytest.importorskip(module)
    root = tmp_path_factory.mktemp("all")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        (root / "comet").mkdir()
        loggers: dict[str, Any] = {
            "csv": CSVLogger(root / "csv"),
            "tensorboard": TensorBoardLogger(root / "tensorboard"),
            "mlflow": MLFlowLogger("all", save_dir=root / "mlflow"),
            "wandb": WandbLogger(save_dir=root / "wandb"),
            "comet": CometLogger(online=False, project="all", offline_directory=str(root / "comet"), **QUIET),
        }
        trainer = quiet_trainer(logger=list(loggers.values()), max_epochs=2, log_every_n_steps=2)
        model = BoringModel()
        trainer.fit(model, loader(20), loader())
        trainer.test(model, loader(), verbose=False)
        loggers["wandb"].experiment.finish()
        loggers["comet"].experiment.end()
    return {**loggers, "root": root}


def csv_points(run: dict[str, Any], name: str) -> Points:
    frame = pd.read_csv(run["csv"].metrics_file)
    return [(int(row["step"]), row[name]) for _, row in frame.iterrows() if not math.isnan(row[name])]


def tensorboard_points(run: dict[str, Any], name: str) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(run["tensorboard"].log_dir)
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(name)]


def mlflow_points(run: dict[str, Any], name: str) -> Points:
    from mlflow import MlflowClient

    logger = run["mlflow"]
    found = MlflowClient(tracking_uri=logger.tracking_uri).get_metric_history(logger.run_id, name)
    return [(point.step, point.value) for point in found]


def wandb_points(run: dict[str, Any], name: str) -> Points:
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in read_wandb(run["root"] / "wandb")
        if record.HasField("history")
    ]
    return [(row["trainer/global_step"], row[name]) for row in rows if name in row]


def comet_points(run: dict[str, Any], name: str) -> Points:
    (archive,) = (run["root"] / "comet").glob("*.zip")
    with zipfile.ZipFile(archive) as file:
        messages = [json.loads(line) for line in file.read("messages.json").decode().splitlines()]
    metrics = [message["payload"]["metric"] for message in messages if message["type"] == "metric_msg"]
    return [(metric["step"], metric["metricValue"]) for metric in metrics if metric["metricName"] == name]


@pytest.mark.parametrize("name", ["train_loss", "val_loss", "test_loss"])
@pytest.mark.parametrize("read", [tensorboard_points, mlflow_points, wandb_points, comet_points])
def test_every_logger_holds_the_numbers_of_the_csv_file(run: dict[str, Any], read: Any, name: str) -> None:
    expected = csv_points(run, name)
    assert expected
    found = read(run, name)
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_first_and_last_step_of_every_epoch_are_there(run: dict[str, Any]) -> None:
    assert [step for step, _ in csv_points(run, "train_loss")] == [0, 1, 3, 4, 5, 7, 9]


def test_nothing_is_left_in_the_working_directory(run: dict[str, Any]) -> None:
    names = {path.name for path in run["root"].iterdir()}
    assert names == {"csv", "tensorboard", "mlflow", "wandb", "comet"}


def test_the_status_of_the_run_is_told(run: dict[str, Any]) -> None:
    logger = run["mlflow"]
    assert logger.experiment.get_run(logger.run_id).info.status == "FINISHED"
    assert Path(run["tensorboard"].log_dir, "hparams.yaml").exists()
