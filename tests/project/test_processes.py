"""Several processes are one run: one folder, one table of results, each row measured once."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from typing import Any

import pytest
from conftest import Project

TWO = ("--accelerator", "cpu", "--devices", "2", "-o", "loggers.mlflow=null", "-o", "trainer.limit_train_batches=5")


def by_torchrun(project: Project, *arguments: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    result = project.run(*arguments, command=[*command, project.package])
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def assert_one_run(project: Project, printed: str) -> None:
    (run,) = project.runs()
    assert (project.status()["status"], project.status()["processes"]) == ("finished", 2)
    assert printed.count("Run: ") == printed.count("test_accuracy") == 1
    assert sorted(path.name for path in run.parent.iterdir()) == [run.name]


def test_two_processes_of_torchrun_are_one_run(project: Project) -> None:
    assert_one_run(project, by_torchrun(project, "fit", *TWO, "-o", "trainer.max_epochs=2"))


def test_two_processes_that_the_engine_starts_are_one_run_and_measure_and_predict_what_one_does(
    project: Project,
) -> None:
    assert_one_run(project, project.succeed("fit", *TWO, "-o", "trainer.max_epochs=2", command=project.cold))
    measured = project.status()["results"]
    project.succeed("test", "--accelerator", "cpu", "--devices", "1")
    assert project.status()["results"] == pytest.approx(measured, rel=1e-5)

    project.succeed("predict", *TWO)
    together = (project.runs()[-1] / "predictions.csv").read_text()
    project.succeed("predict", "--accelerator", "cpu", "--devices", "1")

    assert together.count("\n") == 361
    assert (project.runs()[-1] / "predictions.csv").read_text() == together


def test_a_mistake_is_said_without_the_launchers_words(project: Project) -> None:
    result = project.run("fit", *TWO, "-o", "trainer.precision=fp8")
    assert result.returncode == 2, result.stderr
    assert "Trainer(precision='fp8') does not exist" in result.stderr
    assert "Traceback" not in result.stderr
    assert "torch.distributed" not in result.stderr
    assert result.stderr.splitlines()[-1] in {f"Rank {rank} failed; what it printed says why." for rank in (0, 1)}


def test_a_rank_that_is_killed_is_named(project: Project) -> None:
    process = project.start("fit", *TWO, "-o", "trainer.max_epochs=5000", "-o", "callbacks.early_stopping=null")
    while "pid" not in project_progress(project):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(project_progress(project)["pid"], signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 1
    assert "Rank 0 was killed by SIGKILL before it could say why. SIGKILL mostly means" in said


def project_progress(project: Project) -> dict[str, Any]:
    return project.status().get("progress") or {} if project.runs() else {}


def test_a_killed_run_of_torchrun_goes_on_in_its_folder_on_every_rank(project: Project) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    endless = ("fit", *TWO, "-o", "trainer.max_epochs=5000", "-o", "callbacks.early_stopping=null")
    process = project.start(*endless, command=[*command, project.package])
    while not list(project.folder.glob("runs/*/*/checkpoints/last.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(project.status()["progress"]["pid"], signal.SIGKILL)  # rank 0; torchrun then ends the other, and itself
    process.communicate()
    epochs = 5 + sum(1 for line in (project.runs()[0] / "events.jsonl").open() if '"epoch_end"' in line)
    by_torchrun(project, "fit", *TWO, "-o", f"trainer.max_epochs={epochs}", "--resume", "auto")

    assert len(project.runs()) == 1
    assert project.status()["steps"] == 5 * epochs


def by_environment(project: Project, *arguments: str) -> list[str]:
    """Start two processes as `srun` on two machines does, which leaves them nothing to ask each other by."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    both = [
        project.start(*arguments, env={**project.environment, **place, "RANK": str(rank), "LOCAL_RANK": "0"})
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said
    return [out for out, _ in said]


def test_processes_of_two_machines_go_on_from_what_rank_zero_finds(project: Project) -> None:
    two = (
        "--accelerator",
        "cpu",
        "--devices",
        "1",
        *TWO[4:],
        "-o",
        "trainer.num_nodes=2",
        "-o",
        "trainer.strategy=ddp",
    )
    by_environment(project, "fit", *two, "-o", "trainer.max_epochs=1")
    (run,) = project.runs()
    (run / "status.json").write_text(json.dumps({**project.status(), "status": "running"}))
    printed = by_environment(project, "fit", *two, "-o", "trainer.max_epochs=2", "--resume", "auto")

    assert_one_run(project, "".join(printed))
    assert project.status()["steps"] == 10
