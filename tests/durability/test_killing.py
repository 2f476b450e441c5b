"""A training that is killed at random moments, and restarted with `--resume auto`, ends as if nothing had happened.

Equal to an uninterrupted run: the rows and the loss of every batch on every process, the final weights and the states
of the optimizers to the bit, and the numbers that were logged. KILLS=200 (`nox -s killing`) is the long form.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.durability.lives import JOBS

HERE = Path(__file__).parent
KILLS = int(os.environ.get("KILLS", "6"))
SEED = os.environ.get("KILLING_SEED", "1")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render the default project with the science of this test."""
    import copier

    root, folder = HERE.parents[1], tmp_path_factory.mktemp("killed") / "my-project"
    template = tmp_path_factory.mktemp("template")
    shutil.copy(root / "copier.yml", template)
    for name in ("hooks", "template"):
        shutil.copytree(root / name, template / name, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    copier.run_copy(str(template), folder, defaults=True, quiet=True)
    shutil.rmtree(folder / "src" / "my_project" / "science")
    shutil.copytree(HERE / "science", folder / "src" / "my_project" / "science")
    return folder


def seen(folder: Path, rank: int) -> dict[int, Any]:
    """Return rows and loss by batch; a batch that came again, after a kill, must have been the same."""
    batches: dict[int, Any] = {}
    for line in (folder / f"seen-{rank}.jsonl").read_text().splitlines():
        try:
            number, *what = json.loads(line)
        except ValueError:  # the line at which the process was killed
            continue
        assert batches.setdefault(number, what) == what, f"batch {number} of rank {rank} came back different"
    return batches


def equal(one: Any, other: Any) -> bool:
    """Compare two nests of tensors and plain values, to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def finished_run(folder: Path) -> Path:
    """Return the one run that finished."""
    states = {file.parent: json.loads(file.read_text())["status"] for file in folder.glob("runs/*/*/status.json")}
    (run,) = [path for path, status in states.items() if status == "finished"]
    return run


def logged(run: Path) -> Iterator[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        yield from csv.DictReader(file)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("job", JOBS)
def test_a_training_killed_again_and_again_ends_as_if_nothing_had_happened(project: Path, job: str) -> None:
    kills = -(-KILLS // len(JOBS))
    command = [sys.executable, "-m", "tests.durability.lives", str(project), job, str(kills), SEED]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(report))

    whole = project / "whole" / job
    for number in range(len(report["lives"])):
        assert_equal(project / "killed" / job / str(number), whole, ranks=2 if job == "ddp" else 1)
    assert sum(report["kills"].values()) >= kills


def assert_equal(killed: Path, whole: Path, ranks: int) -> None:
    """Hold a finished run that was killed against an uninterrupted one."""
    for rank in range(ranks):
        assert seen(killed, rank) == seen(whole, rank)
    one, other = finished_run(whole), finished_run(killed)
    first, second = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert equal(first[key], second[key]), key
    assert list(logged(one)) == list(logged(other))
    files = [{file.name for file in (run / "checkpoints").glob("epoch*")} for run in (one, other)]
    assert files[0] <= files[1]
