"""The package of callbacks: every name loads, and only when it is asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import engine
import pytest
from engine import callbacks

FOLDER = Path(callbacks.__file__).parent


@pytest.mark.parametrize("name", callbacks.__all__)
def test_every_name_is_a_callback(name: str) -> None:
    found = getattr(callbacks, name)
    assert issubclass(found, engine.Callback)
    assert found.__name__ == name


def test_paths_work_without_importing_them() -> None:
    assert engine.callbacks.early_stopping.EarlyStopping is callbacks.EarlyStopping
    assert engine.callbacks.callback.Callback is engine.Callback
    assert "ModelCheckpoint" in dir(callbacks)


def test_a_name_that_does_not_exist_lists_those_that_do() -> None:
    with pytest.raises(AttributeError, match=r"'ModelCheckpoints'.* ModelCheckpoint,"):
        _ = callbacks.ModelCheckpoints
    with pytest.raises(AttributeError, match="'x'"):
        _ = callbacks.lr_finder.x


def test_importing_the_package_imports_no_callback() -> None:
    code = "import sys, engine.callbacks; print([m for m in sys.modules if m.startswith('engine.callbacks.')])"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=FOLDER.parents[1], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", ["LearningRateFinder", "BatchSizeFinder"])
def test_a_search_has_a_path_among_the_callbacks_that_loads_it_when_asked(name: str) -> None:
    path = f"engine.callbacks.{callbacks._MODULES[name]}"
    code = f"""
import sys, {path}
before = sorted(module for module in sys.modules if module.startswith("engine.tuner"))
assert not hasattr({path}, "nothing")
from {path} import {name}
import engine.callbacks, engine.tuner
assert {name} is engine.callbacks.{name} is engine.tuner.{name}
assert "{name}" in dir({path})
print(before)
"""
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=FOLDER.parents[1], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_type_checkers_see_the_same_names() -> None:
    stub = ast.parse((FOLDER / "__init__.pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == callbacks._MODULES
