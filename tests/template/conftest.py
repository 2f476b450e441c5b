"""What the tests of the rendering share: a clean copy of the template, and projects rendered from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import copier
import pytest

ROOT = Path(__file__).parents[2]
Render = Callable[..., Path]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the template's files, committed or not, without what tests and tools left between them."""
    copy = tmp_path_factory.mktemp("template")
    left_out = shutil.ignore_patterns("__pycache__", "*.pyc", ".*_cache")
    shutil.copy(ROOT / "copier.yml", copy)
    for folder in ("hooks", "template"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=left_out)
    return copy


@pytest.fixture(scope="session")
def render(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Render:
    """Return a function that renders a project with some answers and defaults for the rest, once for each set."""
    done: dict[str, Path] = {}

    def render_once(folder: str = "my-project", **answers: Any) -> Path:
        key = repr((folder, sorted(answers.items())))
        if key not in done:
            done[key] = tmp_path_factory.mktemp("rendered") / folder
            copier.run_copy(str(template), done[key], data=answers, defaults=True, quiet=True)
        return done[key]

    return render_once
