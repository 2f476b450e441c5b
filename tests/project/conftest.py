"""Rendered projects, and their command line as a user's shell sees it. Nothing is installed: PYTHONPATH does."""

from __future__ import annotations

import compileall
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

import copier
import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*_cache")
# What takes long and many tests look at: they go to one worker (`--dist loadgroup`), which makes it once.
SHARED = {"trained", "configs", "answers", "everything"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in SHARED.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(name))


def clean_environment() -> dict[str, str]:
    """Return the environment of every command line: no tracker, no colours, a narrow terminal, one thread."""
    left_out = ("MLFLOW_", "RUN_FOLDER", "PL_TRAINER_", "SLURM_", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return {**kept, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}


@functools.cache
def warm() -> list[str]:
    """Start the server of warm.py; return what starts `python -m` in it."""
    address = Path(tempfile.mkdtemp(prefix="warm-")) / "address"
    command = [sys.executable, str(HERE / "warm.py"), str(address)]
    server = subprocess.Popen(command, env=clean_environment(), stdin=subprocess.PIPE)  # it ends with this pipe
    while not address.exists():
        assert server.poll() is None
        time.sleep(0.05)
    return [sys.executable, "-I", "-S", str(HERE / "warm.py"), str(address)]


@dataclass
class Project:
    """A rendered project in a folder of its own."""

    folder: Path
    package: str = "my_project"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its command line: its own code first."""
        return {**clean_environment(), "PYTHONPATH": str(self.folder / "src")}

    @property
    def cold(self) -> list[str]:
        """How a user's shell starts it, imports and all."""
        return [sys.executable, "-m", self.package]

    def start(self, *arguments: str, command: list[str] | None = None, **more: Any) -> subprocess.Popen[str]:
        """Start the command line, or another `command` with these arguments, and return at once."""
        line = [*(command or [*warm(), self.package]), *arguments]
        options: dict[str, Any] = {"cwd": self.folder, "env": self.environment, "text": True, **more}
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    def run(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        process = self.start(*arguments, **more)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def succeed(self, *arguments: str, **more: Any) -> str:
        """Run a command that must succeed; return what it printed."""
        result = self.run(*arguments, **more)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def answer(self, commands: list[list[str]]) -> list[tuple[int, str, str]]:
        """Run commands in turn in one process: exit code, stdout, stderr of each."""
        paths = os.pathsep.join([str(HERE), self.environment["PYTHONPATH"]])
        process = self.start(
            command=[*warm(), "in_turn"], env={**self.environment, "PYTHONPATH": paths}, stdin=subprocess.PIPE
        )
        out, err = process.communicate(json.dumps([self.package, commands]), timeout=280)
        assert process.returncode == 0, err
        return [(code, out, err) for code, out, err in json.loads(out)]

    def runs(self) -> list[Path]:
        """Return the folders of its runs, oldest first."""
        return sorted(file.parent for file in self.folder.glob("runs/*/*/status.json"))

    def status(self, run: Path | None = None) -> dict[str, Any]:
        """Return the status of a run, by default the newest."""
        status: dict[str, Any] = json.loads(((run or self.runs()[-1]) / "status.json").read_text())
        return status


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the template's files as they are now, without what tools left between them."""
    copy = tmp_path_factory.mktemp("template")
    shutil.copy(ROOT / "copier.yml", copy)
    for folder in ("hooks", "template"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=LEFT_OUT)
    return copy


@pytest.fixture(scope="session")
def rendered_project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Project]:
    """Return a function that renders a project with some answers and defaults for the rest, once for each set."""
    done: dict[str, Project] = {}

    def render(name: str = "my-project", **answers: Any) -> Project:
        key = repr((name, sorted(answers.items())))
        if key not in done:
            folder = tmp_path_factory.mktemp("rendered") / name
            copier.run_copy(str(template), folder, data=answers, defaults=True, quiet=True)
            # Copies are imported again and again; with hashes, an edit that keeps a file's length is seen.
            compileall.compile_dir(folder / "src", quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
            done[key] = Project(folder, name.replace("-", "_"))
        return done[key]

    return render


@pytest.fixture
def project(rendered_project: Callable[..., Project], tmp_path: Path) -> Project:
    """Return a fresh copy of the default project, to be changed at will."""
    folder = tmp_path / "my-project"
    shutil.copytree(rendered_project().folder, folder)
    return Project(folder)


@pytest.fixture(scope="session")
def untouched(rendered_project: Callable[..., Project], tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a copy of the default project in which no test may leave anything."""
    folder = tmp_path_factory.mktemp("untouched") / "my-project"
    shutil.copytree(rendered_project().folder, folder)
    return Project(folder)


@pytest.fixture(scope="session")
def trained(rendered_project: Callable[..., Project], tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """Return the default project after the README's `fit`, and what that printed."""
    folder = tmp_path_factory.mktemp("trained") / "my-project"
    shutil.copytree(rendered_project().folder, folder)
    project = Project(folder)
    result = project.run("fit", command=project.cold)
    assert result.returncode == 0, result.stdout + result.stderr
    return project, result.stdout + result.stderr
