"""Rendered projects pass their own checks unchanged, and do what their README says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from template.conftest import Render

from .conftest import Trained, install, run

NOX = (sys.executable, "-m", "nox", "--no-error-on-missing-interpreters", "-s")
IN_ONE_ENVIRONMENT = pytest.mark.xdist_group("trained")  # each test goes on with what the one before has installed
SESSIONS = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("types", "tests", "smoke")]


@pytest.mark.parametrize("session", SESSIONS)
def test_session_of_the_project_passes(project: Path, session: str, shared: Path) -> None:
    run(*NOX, session, "--envdir", shared / "nox", cwd=project, MYPY_CACHE_DIR=str(shared / "mypy"))
    assert changed(project) == ""


@pytest.mark.xdist_group("lint")
def test_lint_and_pre_commit_pass_and_change_nothing(project: Path) -> None:
    run(*NOX, "lint", cwd=project)
    run(sys.executable, "-m", "pre_commit", "run", "--all-files", "--color", "never", cwd=project)
    assert changed(project) == ""


def changed(project: Path) -> str:
    """Return what git would commit."""
    return run("git", "status", "--porcelain", cwd=project)


@IN_ONE_ENVIRONMENT
def test_example_reaches_its_accuracy_in_a_minute_of_two_cores(trained: Trained) -> None:
    (accuracy,) = re.findall(r"test_accuracy\W+([01]\.\d+)", trained.shown)
    assert float(accuracy) >= 0.97
    assert trained.cpu_s < 120  # wall time would count the neighbours
    assert "runs/" in trained.shown
    assert changed(trained.folder) == ""


@IN_ONE_ENVIRONMENT
def test_notebook_runs(trained: Trained) -> None:
    notebook = json.loads((trained.folder / "notebooks" / "quickstart.ipynb").read_text("utf-8"))
    code = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    code = "\n".join(line for line in code.splitlines() if not line.startswith(("%", "!")))
    run(trained.bin / "python", "-c", code, cwd=trained.folder / "notebooks", MPLBACKEND="agg")


@IN_ONE_ENVIRONMENT
def test_two_projects_live_and_train_in_one_environment(render: Render, trained: Trained) -> None:
    projects = [render(name, package_name=name) for name in ("first_one", "second_one")]
    install(trained.bin, *(part for project in projects for part in ("-e", str(project))))
    running = [
        subprocess.Popen(
            [str(trained.bin / project.name.replace("_", "-")), "fit", "-o", "trainer.max_epochs=2"],
            cwd=project, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for project in projects
    ]  # fmt: skip
    shown = [process.communicate(timeout=240)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(shown)
    together = "import first_one.engine as a, second_one.engine as b; assert a.Trainer is not b.Trainer"
    run(trained.bin / "python", "-c", together, cwd=trained.folder.parent)
    assert all([*project.glob("runs/**/*.ckpt")] for project in projects)


@IN_ONE_ENVIRONMENT
def test_server_of_cloud_run_predicts(render: Render, trained: Trained, tmp_path: Path) -> None:
    """The very file that the image starts, in an environment with its extra, on the checkpoint of a training."""
    checkpoint = sorted(trained.folder.glob("runs/**/*.ckpt"))[0]
    project = render("served", package_name="installed", deploy=["cloud-run"])
    install(trained.bin, f"{project}[serve]")
    server = [str(trained.bin / "python"), "deploy/cloud-run/server.py"]
    refused = subprocess.run(server, cwd=project, env={"CHECKPOINT": "nowhere"}, capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.strip() == "CHECKPOINT is 'nowhere', which is no file. Set it to a .ckpt file of a run."
    port = "18765"
    log = (tmp_path / "server.log").open("w")
    settings = {"CHECKPOINT": str(checkpoint), "PORT": port, "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(server, cwd=project, env=settings, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, tmp_path / "server.log")
        rows = [[[[0.0] * 8] * 8], [[[1.0] * 8] * 8]]
        answer = post(f"http://127.0.0.1:{port}/predict", {"rows": rows})
        assert [len(column) for column in answer.values()] == [2, 2]
        for wrong, remedy in (({"row": []}, "rows"), ({"rows": "x"}, "rows"), ({"rows": [[1.0]]}, "do not fit")):
            with pytest.raises(urllib.error.HTTPError) as caught:
                post(f"http://127.0.0.1:{port}/predict", wrong)
            assert caught.value.code == 422
            assert remedy in caught.value.read().decode()
        process.terminate()
        assert process.wait(timeout=30) == 0
        assert ended(process.pid), "a process of the server is left"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def ended(group: int, timeout_s: float = 20) -> bool:
    """Wait until no process of a group is left."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    return False


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"no answer from {address}\n{log.read_text('utf-8')}")


def post(address: str, body: object) -> dict[str, list[float]]:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)
