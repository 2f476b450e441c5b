"""The default project trains its example, and everything that `fit`, `validate`, `test` and `predict` leave."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Project
from mlflow.tracking import MlflowClient

BATCHES = 5
SHORT = (
    *("-o", "loggers.mlflow=null", "-o", "test_after_fit=false"),
    *("-o", f"trainer.limit_train_batches={BATCHES}", "-o", "trainer.limit_val_batches=1"),
)


def columns(file: Path, name: str) -> list[str]:
    with file.open() as lines:
        return [row[name] for row in csv.DictReader(lines) if row.get(name)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


def test_the_example_is_right_for_97_of_100_digits_it_never_saw(trained: tuple[Project, str]) -> None:
    project, output = trained

    assert project.status()["results"]["test_accuracy"] >= 0.97
    assert "test_accuracy" in output


def test_a_run_leaves_what_is_needed_to_repeat_it(trained: tuple[Project, str]) -> None:
    project, _ = trained
    run = project.runs()[0]
    config = yaml.safe_load((run / "config.yaml").read_text())
    environment = json.loads((run / "environment.json").read_text())
    status = project.status(run)

    assert config["task"].keys() == {"channels", "dropout", "lr", "weight_decay"}
    assert config["monitor"] == {"metric": "val_loss", "mode": "min"}
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["command_line"][1:] == ["fit"]
    assert (status["status"], status["command"], status["device"]) == ("finished", "fit", "cpu")
    assert (run / status["best_checkpoint"]).is_file()
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert len(columns(run / "metrics.csv", "val_accuracy")) == status["epochs"]


def test_a_run_is_seen_in_mlflow_with_its_curves(trained: tuple[Project, str]) -> None:
    project, _ = trained
    client = MlflowClient(f"sqlite:///{project.folder / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("my_project")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])

    assert run.info.run_name == project.runs()[0].name
    assert run.info.status == "FINISHED"
    assert run.data.params["lr"] == "0.003"
    written = [float(value) for value in columns(project.runs()[0] / "metrics.csv", "val_accuracy")]
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "environment.json", "curves.svg"} <= files
    assert {"confusion.csv", "confusion.svg", "worst.csv", "worst.svg"} <= files
    tracked = [point.value for point in client.get_metric_history(run.info.run_id, "val_accuracy")]
    assert tracked == pytest.approx(written, abs=1e-6)


def test_a_test_leaves_what_was_taken_for_what_and_the_worst_rows(trained: tuple[Project, str]) -> None:
    project, _ = trained
    run = project.runs()[0]
    with (run / "confusion.csv").open() as lines:
        table = [[int(cell) for cell in row[1:]] for row in csv.reader(lines)][1:]
    right = sum(row[i] for i, row in enumerate(table))
    losses = [float(value) for value in columns(run / "worst.csv", "loss")]
    wrong = [
        a != b
        for a, b in zip(columns(run / "worst.csv", "label"), columns(run / "worst.csv", "taken_for"), strict=True)
    ]

    assert sum(map(sum, table)) == 360
    assert right / 360 == pytest.approx(project.status(run)["results"]["test_accuracy"])
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 16
    assert sum(wrong) == min(16, 360 - right)
    assert len(set(columns(run / "worst.csv", "row"))) == 16
    assert all((run / name).read_text().startswith("<?xml") for name in ("confusion.svg", "worst.svg"))


def test_a_task_that_returns_nothing_has_no_table_of_mistakes(project: Project) -> None:
    task = project.folder / "src" / "my_project" / "science" / "task.py"
    task.write_text(task.read_text().replace('        return {"logits": logits, "labels": labels}\n', ""))
    project.succeed("fit", *SHORT, "-o", "trainer.max_epochs=1", "-o", "test_after_fit=true")

    assert "test_accuracy" in project.status()["results"]
    assert not list(project.runs()[0].glob("confusion*"))


def test_one_file_tells_the_state_of_a_run(trained: tuple[Project, str]) -> None:
    project, _ = trained
    status = project.status(project.runs()[0])

    assert status["progress"]["state"] == status["status"] == "finished"
    assert status["progress"]["step"] == status["steps"]
    assert [path.name for path in project.runs()[0].glob("*status*")] == ["status.json"]


def test_nothing_is_left_outside_runs(trained: tuple[Project, str], untouched: Project) -> None:
    project, _ = trained
    before = {path.name for path in untouched.folder.iterdir()}

    assert {path.name for path in project.folder.iterdir()} - before == {"runs"}


def test_output_to_a_file_is_short_and_ends_with_the_results(trained: tuple[Project, str]) -> None:
    _, output = trained
    lines = [line for line in output.splitlines() if line.strip()]

    assert "\x1b" not in output
    assert "preflight" not in output, "no false alarm"
    assert len(lines) <= 45
    assert "my_project ui" in lines[-1]


def test_evaluation_measures_the_best_checkpoint_again(trained: tuple[Project, str], tmp_path: Path) -> None:
    project = Project(tmp_path / "my-project")
    shutil.copytree(trained[0].folder, project.folder)
    fitted = project.status()
    printed = project.succeed("test")
    tested = project.status()
    project.succeed("validate", "--checkpoint", "last", "-o", "loggers.mlflow=null")

    assert tested["command"] == "test"
    assert tested["results"] == pytest.approx(fitted["results"])
    assert "test_accuracy" in printed
    assert project.status()["results"].keys() == {"val_loss", "val_accuracy"}


def test_predictions_are_a_table_with_a_line_per_row(trained: tuple[Project, str], tmp_path: Path) -> None:
    project = Project(tmp_path / "my-project")
    shutil.copytree(trained[0].folder, project.folder)
    best = project.runs()[0] / project.status(project.runs()[0])["best_checkpoint"]
    printed = project.succeed("predict", "--checkpoint", str(best))
    file = project.runs()[-1] / "predictions.csv"

    assert str(file.relative_to(project.folder)) in printed.replace("\n", "")
    assert len(columns(file, "digit")) == 360
    assert set(columns(file, "digit")) == {str(digit) for digit in range(10)}
    assert all(0.1 <= float(value) <= 1 for value in columns(file, "confidence"))


def test_evaluation_uses_the_configuration_of_the_training(project: Project) -> None:
    project.succeed("fit", *SHORT, "-o", "trainer.max_epochs=1", "-o", "task.channels=4")
    project.succeed("test", "-o", "loggers.mlflow=null")

    assert yaml.safe_load((project.runs()[-1] / "config.yaml").read_text())["task"]["channels"] == 4


def test_a_run_repeated_from_its_own_configuration_gives_the_same_weights(project: Project) -> None:
    project.succeed("fit", *SHORT, "-o", "trainer.max_epochs=2", "-o", "seed=7")
    first = project.runs()[0]
    project.succeed("fit", "--config", str(first / "config.yaml"))
    second = project.runs()[1]

    assert all(torch.equal(weights(first)[name], value) for name, value in weights(second).items())


def test_a_training_goes_on_from_its_last_state_in_a_new_run(project: Project) -> None:
    project.succeed("fit", *SHORT, "-o", "trainer.max_epochs=2")
    project.succeed("fit", *SHORT, "-o", "trainer.max_epochs=3", "--resume", "last")
    first, second = project.runs()

    assert project.status(first)["steps"] == 2 * BATCHES
    assert project.status(second)["steps"] == 3 * BATCHES
    assert project.status(second)["checkpoint"] == str(first / "checkpoints" / "last.ckpt")
    assert len(columns(second / "metrics.csv", "val_loss")) == 1


def test_a_killed_training_goes_on_in_its_own_folder(project: Project) -> None:
    process = project.start("fit", *SHORT, "-o", "trainer.max_epochs=5000")
    deadline = time.monotonic() + 120
    while not list(project.folder.glob("runs/*/*/checkpoints/last.ckpt")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert project.status()["status"] == "running"
    epochs_done = (
        torch.load(next(project.folder.glob("runs/*/*/checkpoints/last.ckpt")), weights_only=True)["epoch"] + 1
    )
    epochs = epochs_done + 2
    project.succeed("fit", *SHORT, "-o", f"trainer.max_epochs={epochs}", "--resume", "auto")
    (run,) = project.runs()

    assert project.status()["status"] == "finished"
    assert project.status()["steps"] == BATCHES * epochs
    assert len(columns(run / "metrics.csv", "val_loss")) == epochs
    assert (run / "config.1.yaml").is_file()  # it was started with other values


def test_resume_auto_starts_afresh_when_nothing_is_unfinished(project: Project) -> None:
    project.succeed("fit", *SHORT, "-o", "trainer.max_epochs=1", "--resume", "auto")
    project.succeed("fit", *SHORT, "-o", "trainer.max_epochs=1", "--resume", "auto")

    assert [project.status(run)["steps"] for run in project.runs()] == [BATCHES, BATCHES]


def test_an_unfinished_run_whose_folder_cannot_be_written_is_named(project: Project) -> None:
    project.succeed("fit", *SHORT, "-o", "trainer.max_epochs=1")
    (run,) = project.runs()
    (run / "status.json").write_text(json.dumps({**project.status(run), "status": "running"}))
    (run / ".lock").unlink(missing_ok=True)
    (run / ".lock").mkdir()  # what no permission keeps root from writing to
    result = project.run("fit", *SHORT, "-o", "trainer.max_epochs=2", "--resume", "auto")

    assert result.returncode == 2
    assert f"{run.name} cannot be written: Is a directory" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_runs_started_together_have_folders_of_their_own(project: Project) -> None:
    together = [project.start("fit", *SHORT, "-o", "trainer.max_epochs=1", "-o", "name=twin") for _ in range(3)]
    for process in together:
        _, err = process.communicate()
        assert process.returncode == 0, err

    assert len(project.runs()) == 3
    assert all(len(list((run / "checkpoints").glob("epoch*.ckpt"))) == 1 for run in project.runs())


def test_a_trial_leaves_nothing(project: Project) -> None:
    project.succeed("fit", "--preset", "debug")

    assert not (project.folder / "runs").exists()


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_an_interrupted_training_ends_in_order(project: Project, name: str, code: int) -> None:
    process = project.start("fit", *SHORT, "-o", "trainer.max_epochs=5000")
    while not list(project.folder.glob("runs/*/*/checkpoints/last.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.Signals[name])
    out, err = process.communicate(timeout=60)

    assert process.returncode == code, out + err
    assert "--resume auto" in out or name != "SIGINT"
    assert "Traceback" not in err
    assert project.status()["status"] == "interrupted"


def test_a_damaged_checkpoint_is_passed_over_and_the_run_goes_on_from_the_one_before(project: Project) -> None:
    best_and_last = ("-o", "callbacks.checkpoint.save_top_k=3")
    project.succeed("fit", *SHORT, *best_and_last, "-o", "trainer.max_epochs=2")
    (run,) = project.runs()
    status = {**project.status(run), "status": "running"}  # as a machine that was taken away leaves it
    (run / "status.json").write_text(json.dumps(status))
    for name in ("last.ckpt", f"epoch=1-step={2 * BATCHES}.ckpt"):
        content = (run / "checkpoints" / name).read_bytes()
        (run / "checkpoints" / name).unlink()
        (run / "checkpoints" / name).write_bytes(content[: len(content) // 2])
    result = project.run("fit", *SHORT, *best_and_last, "-o", "trainer.max_epochs=3", "--resume", "auto")

    assert result.returncode == 0, result.stdout + result.stderr
    assert "last.ckpt is damaged" in result.stdout + result.stderr
    assert project.runs() == [run]
    assert project.status(run)["steps"] == 3 * BATCHES
    assert len(columns(run / "metrics.csv", "val_loss")) == 3
