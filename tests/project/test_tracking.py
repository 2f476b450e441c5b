"""Where runs are tracked, `sync`, and the registry behind its gate, on the local file."""

from __future__ import annotations

import json
import sys

import mlflow
import pytest
from conftest import Project


def test_a_tracking_file_that_is_wrong_is_one_sentence(project: Project) -> None:
    file = project.folder / "configs" / "tracking" / "team.yaml"
    file.write_text("MLFLOW_TRACKING_TOKEN: abc\n")
    bad = project.folder / "configs" / "tracking" / "bad.yaml"
    bad.write_text("uri: http://a\n")
    answers = project.answer([["sync", "-o", f"tracking={name}"] for name in ("tea", "team", "bad", "local")])
    assert [code for code, _, _ in answers] == [2, 2, 2, 0]
    assert "team" in answers[0][2]
    assert "secret" in answers[1][2]
    assert "MLFLOW_NAME" in answers[2][2]
    assert "Nothing waits" in answers[3][1]


@pytest.mark.slow
@pytest.mark.timeout(900)  # it trains, and imports MLflow in two processes
def test_only_a_better_model_becomes_champion_and_rollback_brings_the_old_one_back(
    trained: tuple[Project, str],
) -> None:
    project, _ = trained
    champion = ["--alias", "champion"]
    commands = [
        ["register", *champion, "--at-least", "1e-9"],
        ["register", *champion],
        ["register", *champion],
        ["register", *champion, "--force"],
        ["rollback"],
        ["rollback"],
        ["promote", "--version", "2"],
        ["promote", "--version", "2", "--force"],
        ["promote", "--version", "9"],
    ]
    answers = project.answer(commands)
    assert [code for code, _, _ in answers] == [1, 0, 1, 0, 0, 2, 1, 0, 2], answers
    assert "The gate is shut" in answers[0][2]
    assert "Version 1 of my_project, now `champion`." in answers[1][1]
    assert "--force" in answers[2][2]
    assert "Version 2" in answers[3][1]
    assert "is version 1 again" in answers[4][1]
    assert "no version 9" in answers[8][2]

    store = mlflow.MlflowClient(f"sqlite:///{project.folder}/runs/mlflow.db")
    assert str(store.get_model_version_by_alias("my_project", "champion").version) == "2"
    run_id = store.get_model_version("my_project", "2").run_id
    run = store.get_run(run_id)
    assert [used.tags[0].value for used in run.inputs.dataset_inputs] == ["training", "validation"]
    assert json.loads(run.inputs.dataset_inputs[0].dataset.profile)["rows"] > 1000
    code = (
        f"import mlflow; mlflow.set_tracking_uri('sqlite:///{project.folder}/runs/mlflow.db')\n"
        "model = mlflow.pyfunc.load_model('models:/my_project@champion')\n"
        "example = model.input_example; print(model.predict(example).shape, model.metadata.signature is not None)"
    )
    shown = project.succeed("-c", code, command=[sys.executable])
    assert "(2, 10) True" in shown


@pytest.mark.slow
@pytest.mark.timeout(900)  # it trains, and imports MLflow
def test_a_trial_is_below_its_sweep_and_the_best_model_is_in_its_run(project: Project) -> None:
    (project.folder / "uv.lock").write_text("version = 1\n")
    small = ["-o", "data.batch_size=512", "-o", "trainer.max_epochs=1", "-o", "loggers.mlflow.log_model=true"]
    project.succeed("sweep", "-v", "task.lr=1e-3,1e-2", "--trials", "1", *small)
    store = mlflow.MlflowClient(f"sqlite:///{project.folder}/runs/mlflow.db")
    runs = store.search_runs([store.get_experiment_by_name("my_project").experiment_id])
    (sweep,) = (run for run in runs if run.info.run_name.endswith("-sweep"))
    (trial,) = (run for run in runs if run is not sweep)
    assert trial.data.tags["mlflow.parentRunId"] == sweep.info.run_id
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert sweep.data.params == {"task.lr": "1e-3,1e-2"}
    assert [point.step for point in store.get_metric_history(sweep.info.run_id, "val_loss")] == [0]
    assert [item.path[-10:] for item in store.list_artifacts(sweep.info.run_id)] == ["-sweep.csv"]
    folder = project.folder / "runs" / "my_project" / trial.data.tags["run_folder"]
    assert {item.path for item in store.list_artifacts(trial.info.run_id)} >= {"uv.lock", "environment.json"}
    held = {item.path for item in store.list_artifacts(trial.info.run_id, "model")}
    assert {"model/MLmodel", "model/checkpoints", "model/input_example.json"} <= held
    assert "system/cpu_utilization_percentage" in trial.data.metrics
    assert not (folder / "model").exists()
    assert not (folder / "unsent").exists()
    assert not list(project.folder.glob("runs/my_project/*-sweep"))
