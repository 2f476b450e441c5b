"""`OnExceptionCheckpoint`: save when training raises, so that the next `fit` goes on from there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..distributed import log
from ..errors import MisconfigurationException
from .checkpoint import Checkpoint

if TYPE_CHECKING:
    from ..module import LightningModule
    from ..trainer import Trainer


class OnExceptionCheckpoint(Checkpoint):
    """Save one checkpoint at an exception; the next `fit` goes on from it, and removes it when it succeeds.

    The batch in which the exception came is trained again. Random numbers go on from where they were then, so such a
    run is not the same as an uninterrupted one; from `ModelCheckpoint(save_last=True)` it is.

    Args:
        dirpath: Folder.
        filename: Name without ending.

    Raises:
        MisconfigurationException: The name is empty.
    """

    FILE_EXTENSION = ".ckpt"

    def __init__(self, dirpath: str | Path, filename: str = "on_exception") -> None:
        super().__init__()
        if not filename:
            raise MisconfigurationException(
                "`OnExceptionCheckpoint(filename='')`: the name is empty. Leave it out for 'on_exception'."
            )
        self.dirpath, self.filename = dirpath, filename
        self._trains = False

    @property
    def ckpt_path(self) -> str:
        """The file's path, whether it exists or not."""
        return os.path.join(self.dirpath, self.filename + self.FILE_EXTENSION)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there is something to save from here on."""
        self._trains = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, replacing an older file."""
        trained, self._trains = self._trains, False
        if not (trained and self.may_save_at_exception(trainer)):
            return
        try:
            trainer.save_checkpoint(self.ckpt_path)
        except Exception as failure:  # the user must see the error that came first
            log.warning("The checkpoint at %s could not be saved: %s", type(exception).__name__, failure)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the file when training has succeeded."""
        if stage == "fit" and self._trains:
            trainer.strategy.remove_checkpoint(self.ckpt_path)
        self._trains = False
