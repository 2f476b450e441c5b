"""Rendered projects in git and an environment of their own, as a team has them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from template.conftest import Render, render, template
from template.test_rendering import FULL, MINIMAL

__all__ = ["render", "template"]

VARIANTS: dict[str, Mapping[str, Any]] = {"defaults": {}, "minimal": MINIMAL, "full": {**FULL, "python_min": "3.11"}}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command to its end and return what it printed; fails with that text if the command does."""
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, f"{' '.join(map(str, command))}\n{ended.stdout}"
    return ended.stdout


def uv(*arguments: str | Path, cwd: Path) -> str:
    """Run uv of this environment."""
    return run(Path(sys.executable).parent / "uv", *arguments, cwd=cwd)


def environment(folder: Path, project: str) -> Path:
    """Make a virtual environment with a project in it; return where its commands are."""
    uv("venv", "--quiet", "--python", sys.executable, folder, cwd=folder.parent)
    install(folder / "bin", "-e", project)
    return folder / "bin"


def install(commands: Path, *what: str) -> None:
    """Install into the environment that has these commands."""
    uv("pip", "install", "--quiet", "--python", commands / "python", *what, cwd=commands)


def commit(project: Path) -> None:
    """Put a project under git, as the message after the copy says."""
    identity = ["-c", "user.name=Tests", "-c", "user.email=tests@example.com", "-c", "commit.gpgsign=false"]
    run("git", "init", "--quiet", "-b", "main", cwd=project)
    run("git", "add", ".", cwd=project)
    run("git", *identity, "commit", "--quiet", "-m", "Rendered from the template", cwd=project)


@pytest.fixture(scope="session", params=VARIANTS)
def project(request: pytest.FixtureRequest, render: Render) -> Path:
    """A rendered project, committed and not changed since."""
    folder = render(**VARIANTS[request.param])
    if not (folder / ".git").exists():
        commit(folder)
    return folder


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what the variants share: nox's environments, as their requirements only grow, and mypy's cache."""
    return tmp_path_factory.mktemp("shared")


@dataclass(frozen=True)
class Trained:
    """The default project after the README's `fit`.

    Attributes:
        folder: The project.
        bin: The commands of the environment that it is installed in.
        shown: What the training printed.
        cpu_s: Processor seconds that it took.
    """

    folder: Path
    bin: Path
    shown: str
    cpu_s: float


@pytest.fixture(scope="session")
def trained(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Install the default project, and train it."""
    folder = render("installed")
    commit(folder)
    commands = environment(tmp_path_factory.mktemp("environment") / "venv", str(folder))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = run(commands / "installed", "fit", cwd=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Trained(folder, commands, shown, cpu_s)
