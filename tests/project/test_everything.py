"""One training with every tracker and every callback of the engine at once, in a rendered project."""

from __future__ import annotations

import csv
import json
import math
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Project
from mlflow.tracking import MlflowClient

CALLBACKS = {
    "device": "{class: DeviceStatsMonitor, cpu_stats: true}",
    "throughput": "{class: callbacks_of_the_test.Throughput}",
    "timer": "{class: Timer, duration: '1h30m'}",
    "average": "{class: EMAWeightAveraging, decay: 0.9, update_every_n_steps: 2ba}",
    "accumulate": "{class: GradientAccumulationScheduler, scheduling: {1ep: 2}}",
    "exception": "{class: OnExceptionCheckpoint}",
    "batch_size": "{class: BatchSizeFinder, max_val: 64, steps_per_trial: 1}",
    "rate": "{class: LearningRateFinder, num_training_steps: 30}",
    "summary": "{class: ModelSummary, max_depth: 2}",
    "bar": "{class: TQDMProgressBar}",
}
LOGGERS = {
    "tensorboard": "{class: TensorBoardLogger}",
    "wandb": "{class: WandbLogger, offline: true}",
    "comet": "{class: CometLogger, online: false, offline_directory: comet, log_env_details: false}",
}
OWN = '''"""A callback of the team's own, for which it has filled in how many rows a batch has."""

from .engine.callbacks import ThroughputMonitor


class Throughput(ThroughputMonitor):
    def __init__(self) -> None:
        super().__init__(batch_size_fn=lambda batch: len(batch[1]), window_size=10)
'''


@pytest.fixture(scope="module")
def everything(rendered_project: Callable[..., Project], tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("everything") / "my-project"
    shutil.copytree(rendered_project().folder, folder)
    made = Project(folder)
    (folder / "src" / "my_project" / "callbacks_of_the_test.py").write_text(OWN)
    (folder / "comet").mkdir()
    chosen = [f"callbacks.{name}={value}" for name, value in CALLBACKS.items()]
    chosen += [f"loggers.{name}={value}" for name, value in LOGGERS.items()]
    options = [part for setting in chosen for part in ("-o", setting)]
    environment = {
        **made.environment,
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "COMET_LOGGING_CONSOLE": "ERROR",
    }
    made.succeed("fit", *options, "-o", "trainer.max_epochs=2", "-o", "trainer.log_every_n_steps=5", env=environment)
    return made


def of_csv(run: Path, name: str) -> list[tuple[int, float]]:
    with (run / "metrics.csv").open() as lines:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(lines) if row.get(name)]


def test_it_trains_and_all_of_them_have_done_their_part(everything: Project) -> None:
    (run,) = everything.runs()
    status = everything.status(run)

    assert status["status"] == "finished"
    assert status["results"]["test_accuracy"] > 0.5
    with (run / "metrics.csv").open() as lines:
        names = next(csv.reader(lines))
    for part in ("lr-AdamW", "DeviceStatsMonitor", "train/device/", "val_accuracy"):
        assert any(part in name for name in names), f"no metric like {part} among {names}"
    assert (run / status["best_checkpoint"]).is_file()


@pytest.mark.parametrize("name", ["train_loss", "val_loss", "val_accuracy", "test_accuracy"])
def test_every_tracker_has_the_numbers_of_the_csv_file(everything: Project, name: str) -> None:
    (run,) = everything.runs()
    expected = of_csv(run, name)
    assert expected
    for found in (of_tensorboard(run, name), of_mlflow(everything, name), of_comet(everything, name)):
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert all(math.isclose(a, b, rel_tol=1e-6) for (_, a), (_, b) in zip(found, expected, strict=True))


def of_tensorboard(run: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(name)]


def of_mlflow(project: Project, name: str) -> list[tuple[int, float]]:
    client = MlflowClient(f"sqlite:///{project.folder / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("my_project")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def of_comet(project: Project, name: str) -> list[tuple[int, float]]:
    (archive,) = (project.folder / "comet").glob("*.zip")
    with zipfile.ZipFile(archive) as file:
        messages = [json.loads(line) for line in file.read("messages.json").decode().splitlines()]
    metrics = [message["payload"]["metric"] for message in messages if message["type"] == "metric_msg"]
    return [(metric["step"], metric["metricValue"]) for metric in metrics if metric["metricName"] == name]


def test_nothing_lies_outside_of_runs_but_what_was_sent_there(everything: Project, untouched: Project) -> None:
    before = {path.name for path in untouched.folder.iterdir()}
    assert {path.name for path in everything.folder.iterdir()} - before == {"runs", "comet"}
