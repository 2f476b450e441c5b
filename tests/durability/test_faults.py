"""Every kind of call of a save that fails, in every way a file system has: training goes on, and nothing is lost."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine.callbacks import ModelCheckpoint
from engine.checkpoint_async import AsyncCheckpointIO
from engine.checkpoint_file import read

from tests.durability.test_files import trainer
from tests.engine.toys import BoringModel, loader

CALLS = {
    "makes the folder": (os, "mkdir"),
    "opens the file": (io, "open"),
    "syncs the file or the folder": (os, "fsync"),
    "opens the folder": (os, "open"),
    "gives the file its name": (os, "replace"),
    "removes an older file": (os, "unlink"),
    "gives it a second name": (os, "link"),
    "gives it a name that points": (os, "symlink"),
}
ERRORS = [errno.EACCES, errno.ENOENT, errno.EROFS, errno.ENOSPC]
IN_THE_BACKGROUND = [what for what in CALLS if what != "gives it a second name"]  # there every name is a file


class Failing:
    """A call that fails twice in a row, from the second time on, where it is about the folder; else the real one."""

    def __init__(self, real: Callable[..., Any], folder: Path, code: int) -> None:
        self.real, self.folder, self.code = real, str(folder), code
        self.times = self.failed = 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self.folder in str(args) or isinstance(args[0], int):  # fsync is told a number
            self.times += 1
            if self.times >= 2 and self.failed < 2:
                self.failed += 1
                raise OSError(self.code, os.strerror(self.code))
        return self.real(*args, **options)


def outlive(folder: Path, monkeypatch: pytest.MonkeyPatch, what: str, code: int, plugin: Any = None) -> None:
    owner, name = CALLS[what]
    failing = Failing(getattr(owner, name), folder, code)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failing)
        save_last: Any = "link" if what == "gives it a name that points" else True
        kept = ModelCheckpoint(folder, save_last=save_last, every_n_train_steps=1)
        fitted = trainer(folder, kept, plugins=plugin)
        fitted.fit(BoringModel(), loader())
    assert failing.failed == 2
    assert fitted.global_step == 6
    assert read(folder / "last.ckpt")["global_step"] == 6
    assert read(kept.best_model_path)["global_step"] == 6
    for path in folder.glob("*.ckpt"):
        read(path)


@pytest.mark.parametrize("code", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("what", CALLS)
def test_training_goes_on_and_the_last_state_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, code: int
) -> None:
    outlive(tmp_path / "x", monkeypatch, what, code)


@pytest.mark.parametrize("code", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("what", IN_THE_BACKGROUND)
def test_so_it_does_when_files_are_written_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, code: int
) -> None:
    outlive(tmp_path / "x", monkeypatch, what, code, AsyncCheckpointIO())
