"""Every kind of call of a save that fails, in every way a file system has: training goes on, and nothing is lost."""

from __future__ import annotations

import errno
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine.callbacks import ModelCheckpoint
from engine.checkpoint_file import AsyncCheckpointIO, read

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
ERRORS = [errno.EACCES, errno.ENOENT, errno.EROFS, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EPERM, errno.ESTALE]


class Failing:
    """A call that fails from one time to another where it is about the folder; elsewhere it is the real one."""

    def __init__(self, real: Callable[..., Any], folder: Path, code: int, first: int, last: int) -> None:
        self.real, self.folder, self.code, self.first, self.last, self.times = real, str(folder), code, first, last, 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self.folder in str(args) or isinstance(args[0], int):  # fsync is told a number
            self.times += 1
            if self.first <= self.times <= self.last:
                raise OSError(self.code, os.strerror(self.code))
        return self.real(*args, **options)


def fit(folder: Path, **options: Any) -> Any:
    kept = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1, **options)
    fitted = trainer(folder, kept, plugins=options.get("plugins"))
    fitted.fit(BoringModel(), loader())
    return fitted


@pytest.mark.parametrize("plugin", [None, AsyncCheckpointIO], ids=["at once", "in the background"])
@pytest.mark.parametrize("code", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("what", CALLS)
def test_training_goes_on_and_the_last_state_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, code: int, plugin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    owner, name = CALLS[what]
    for first in (1, 2, 4):
        folder = tmp_path / f"{first}"
        with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
            failing = Failing(getattr(owner, name), folder, code, first, first + 1)
            patched.setattr(owner, name, failing)
            kept = ModelCheckpoint(folder, save_last="link", every_n_train_steps=1)
            fitted = trainer(tmp_path, kept, plugins=plugin and plugin())
            fitted.fit(BoringModel(), loader())
        assert fitted.global_step == 6
        assert read(folder / "last.ckpt")["global_step"] == 6
        assert read(kept.best_model_path)["global_step"] == 6
        for path in folder.glob("*.ckpt"):
            read(path)
