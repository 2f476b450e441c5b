"""`doctor` and `ui`: is the machine ready, and what have the runs shown?"""

from __future__ import annotations

import os
import signal
import socket
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import Project


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_doctor_finds_a_ready_machine_ready(project: Project) -> None:
    printed = project.succeed("doctor")

    for what in ("python", "torch", "mlflow", "cpu", "configuration", "runs", "training"):
        assert what in printed
    assert "wrong" not in printed


def test_doctor_names_what_is_wrong_and_the_command_that_mends_it(project: Project) -> None:
    pyproject = project.folder / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('"pyyaml>=6,<7"', '"pyyaml>=99"'))
    config = project.folder / "configs" / "config.yaml"
    config.write_text(config.read_text().replace("max_epochs", "max_epoch"))
    result = project.run("doctor")

    assert result.returncode == 1
    assert "pip install 'pyyaml>=99'" in " ".join(result.stdout.split())
    assert result.stdout.count("wrong") == 2
    assert "`max_epochs`" in result.stdout


def test_doctor_says_when_the_device_is_missing(project: Project) -> None:
    result = project.run("doctor", "--accelerator", "tpu")

    assert result.returncode == 1
    assert "tpu" in result.stdout


@pytest.mark.slow
def test_ui_shows_the_runs_in_mlflow(trained: tuple[Project, str]) -> None:
    project, _ = trained
    port = free_port()
    process = project.start("ui", "--port", str(port), start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while True:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                    assert answer.read() == b"OK"
                break
            except OSError:
                time.sleep(0.3)
        body = b'{"max_results": 10}'
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert b'"my_project"' in answer.read()
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in error
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


def test_ui_listens_nowhere_without_a_host(trained: tuple[Project, str]) -> None:
    result = trained[0].run("ui", "--host", "")

    assert result.returncode == 2
    assert "--host is empty" in result.stderr


def test_ui_knows_a_tracker_by_its_full_name(project: Project) -> None:
    full = ["-o", "loggers.mlflow.class=engine.loggers.MLFlowLogger", "-o", "runs_dir=elsewhere"]
    (project.folder / "runs").mkdir()
    result = project.run("ui", *full)

    assert "Train first" in result.stderr, result.stderr


def test_runs_are_tracked_in_the_project_whatever_its_path(project: Project, tmp_path: Path) -> None:
    odd = Project(tmp_path / "50%20? #1 猫's" / "my-project")
    project.folder.parent.joinpath(odd.folder.parent.name).mkdir()
    project.folder.rename(odd.folder)
    odd.succeed("fit", "-o", "trainer.max_steps=2")

    assert [*tmp_path.rglob("mlflow.db")] == [odd.folder / "runs" / "mlflow.db"]
    assert list((odd.folder / "runs" / "mlflow-artifacts").iterdir())


def test_ui_says_when_its_port_is_taken(trained: tuple[Project, str]) -> None:
    project, _ = trained
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = project.run("ui", "--port", str(port))

    assert result.returncode == 2
    assert f"Port {port}" in result.stderr
    assert "--port" in result.stderr
