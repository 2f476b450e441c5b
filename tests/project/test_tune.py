"""`tune`: what it finds, how to train with it, and that nothing else comes of it."""

from __future__ import annotations

from conftest import Project

FEW = ("-o", "data.batch_size=64", "-o", "task.channels=8")


def test_a_learning_rate_is_found_and_the_training_with_it_is_one_command(project: Project) -> None:
    printed = project.succeed("tune", *FEW)
    (run,) = project.runs()
    (setting,) = project.status()["settings"]
    key, _, value = setting.partition("=")

    assert key == "task.lr"
    assert 5e-4 < float(value) < 0.2
    assert f"fit -o {setting}" in printed
    assert project.status()["status"] == "finished"
    assert {file.name for file in run.iterdir()} - {".lock", "git.diff"} == {
        "config.yaml", "environment.json", "events.jsonl", "lr_find.svg", "status.json",
    }  # fmt: skip
    assert not list(project.folder.glob("runs/mlflow*")), "a search is no run of the tracker"
    project.succeed("fit", *FEW, "-o", setting, "-o", "trainer.max_epochs=1", "-o", "loggers.mlflow=null")


def test_the_largest_batch_is_found_first_and_the_rate_for_it(project: Project) -> None:
    project.succeed("tune", "both", *FEW)
    size, rate = project.status()["settings"]

    assert size == "data.batch_size=1077"  # all rows: a CPU's memory holds them
    assert rate.startswith("task.lr=")


def test_a_task_with_nothing_to_set_is_told_so(project: Project) -> None:
    task = project.folder / "src" / "my_project" / "science" / "task.py"
    task.write_text(task.read_text().replace("self.lr", "self.pace").replace("lr: float", "pace: float")
                    .replace("self.pace = lr", "self.pace = pace"))  # fmt: skip
    result = project.run("tune", *FEW)

    assert result.returncode == 2
    assert "has `lr`" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_search_that_does_not_exist(project: Project) -> None:
    result = project.run("tune", "momentum")

    assert result.returncode == 2
    assert "batch_size" in result.stderr
