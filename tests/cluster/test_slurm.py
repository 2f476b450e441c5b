"""Under a real Slurm: tasks of srun, torchrun inside a batch job, and a job that is requeued and goes on exactly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.template.conftest import Render

from .conftest import answer, poll

TRAIN = Path(__file__).with_name("train.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]


def batch(folder: Path, *command: str, tasks: int = 1, options: str = "") -> str:
    """Submit a job whose script runs `command`; return its id."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "job.sh"
    lines = ["#!/bin/bash", f"#SBATCH --ntasks={tasks} --output={folder}/log.txt --open-mode=append {options}"]
    script.write_text("\n".join([*lines, "export OMP_NUM_THREADS=1", "exec " + " ".join(command), ""]))
    done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def wait_for(folder: Path, name: str) -> None:
    def there() -> bool:
        return (folder / name).exists()

    try:
        poll(name, there, 300.0)
    except AssertionError:
        log = folder / "log.txt"
        pytest.fail(log.read_text()[-3000:] if log.exists() else answer("squeue", "-l"))


def left(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "weights.pt")
    return found


@pytest.fixture(scope="session")
def uninterrupted(slurm: Path) -> dict[str, Any]:
    """Two tasks of srun, which have Slurm's variables only."""
    folder = slurm / "srun"
    batch(folder, "srun", "--kill-on-bad-exit=1", sys.executable, str(TRAIN), str(folder), "6", "0", tasks=2)
    wait_for(folder, "weights.pt")
    return left(folder)


def test_tasks_of_srun_are_the_ranks_of_one_run(uninterrupted: dict[str, Any]) -> None:
    assert uninterrupted["processes"] == 2


def test_the_variables_of_torchrun_win_over_those_of_slurm(slurm: Path, uninterrupted: dict[str, Any]) -> None:
    folder = slurm / "torchrun"
    endpoint = ["--rdzv-id=$SLURM_JOB_ID", "--rdzv-endpoint=127.0.0.1:$((20000 + SLURM_JOB_ID % 10000))"]
    command = [*TORCHRUN, "--local-addr=127.0.0.1", *endpoint, str(TRAIN), str(folder), "6", "0"]
    batch(folder, "srun", *command)
    wait_for(folder, "weights.pt")
    assert left(folder)["processes"] == 2
    torch.testing.assert_close(left(folder)["weights"], uninterrupted["weights"], rtol=0, atol=0)


def test_a_requeued_job_goes_on_to_the_same_weights(slurm: Path, uninterrupted: dict[str, Any]) -> None:
    folder = slurm / "requeued"
    command = ["srun", "--kill-on-bad-exit=1", sys.executable, str(TRAIN), str(folder), "6", "0.5"]
    job = batch(folder, *command, tasks=2, options="--requeue")
    wait_for(folder, "step-1")
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    poll("the requeue", lambda: "Restarts=1" in answer("scontrol", "show", "job", job))
    answer("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm waits two minutes before it starts it again
    wait_for(folder, "weights.pt")
    torch.testing.assert_close(left(folder)["weights"], uninterrupted["weights"], rtol=0, atol=0)


def test_the_rendered_script_trains_is_requeued_and_goes_on_in_its_run(slurm: Path, render: Render) -> None:
    project = render(deploy=["slurm"], presets=["cpu"])
    command = project / ".venv" / "bin" / "my-project"  # stands for the installed project
    command.parent.mkdir(parents=True)
    command.write_text(
        f'#!/bin/sh\nPYTHONPATH={project}/src OMP_NUM_THREADS=1 exec {sys.executable} -m my_project "$@"\n'
    )
    command.chmod(0o755)
    options = ["-o", "trainer.max_epochs=400", "-o", "callbacks.early_stopping=null", "-o", "loggers.mlflow=null"]
    options += ["-o", "trainer.limit_train_batches=2", "-o", "trainer.limit_val_batches=1"]
    submit = ["sbatch", "--parsable", "--cpus-per-task=1", f"--output={project}/log.txt", "deploy/slurm/train.sbatch"]
    job = subprocess.run([*submit, *options], cwd=project, capture_output=True, text=True, check=True).stdout.strip()

    def log() -> str:
        return (project / "log.txt").read_text()[-3000:] if (project / "log.txt").exists() else answer("squeue", "-l")

    def status() -> dict[str, Any]:
        files = list(project.glob("runs/*/*/status.json"))
        return json.loads(files[0].read_text()) if files else {}

    poll("a checkpoint", lambda: bool(list(project.glob("runs/*/*/checkpoints/last.ckpt"))), 200.0)
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    poll("the requeue", lambda: "Restarts=1" in answer("scontrol", "show", "job", job), 200.0)
    answer("scontrol", "update", f"JobId={job}", "StartTime=now")
    poll("the end", lambda: status().get("status") == "finished" or "Error" in log(), 280.0)
    assert status()["status"] == "finished", log()
    assert status()["epochs"] == 400
    assert len(list(project.glob("runs/*/*/status.json"))) == 1
