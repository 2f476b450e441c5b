"""Earlier runs: which one to go on with, and which checkpoint to start from or to evaluate.

Owns: reading `runs/<experiment>/`. Does not own: writing there (`run`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO

from .config import Config
from .engine.checkpoint_file import newest_intact
from .engine.errors import did_you_mean
from .run import Run, read_status, try_lock
from .sources import ProjectError

_PATIENCE_S = 5.0  # what the other processes of a run that was killed take to notice and to end


def unfinished(config: Config) -> Run | None:
    """Return the newest training of this experiment if it died or was stopped before its end, locked for this process.

    It goes on from its newest checkpoint that is intact and exact; those passed over are named. A training that still
    goes on, one that finished, and one without such a checkpoint are left alone.
    """
    path = next(iter(_trainings(config)), None)
    if path is None or read_status(path).get("status") == "finished":
        return None
    lock = _lock_in_time(path)
    checkpoint = last_checkpoint(path, resumable=True) if lock else None
    if lock and checkpoint is None:
        lock.close()
    return Run(path, checkpoint, writes=True, is_continued=True, lock=lock) if checkpoint else None


def _lock_in_time(path: Path) -> IO[str] | None:
    deadline = time.monotonic() + _PATIENCE_S
    while (lock := try_lock(path)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return lock


def find_checkpoint(config: Config, which: str) -> Path:
    """Return a checkpoint by path, or that of the newest training of this experiment that has one.

    Args:
        config: Says where the runs of the experiment are.
        which: `last` (its last state), `best` (the best by the monitored metric), or the path of a file.

    Raises:
        ProjectError: There is none.
    """
    if which not in {"best", "last"}:
        return _existing(Path(which))
    for path in _trainings(config):
        found = best_checkpoint(path) if which == "best" else last_checkpoint(path)
        if found:
            return found
    raise ProjectError(
        f"No training in {config.runs / config.experiment} has left a checkpoint. Train first, or give the path of one."
    )


def config_beside(checkpoint: Path) -> Path | None:
    """Return the configuration of the run that wrote this checkpoint, if it lies in a run's folder."""
    path = checkpoint.resolve().parent.parent / "config.yaml"
    return path if path.is_file() else None


def last_checkpoint(run: Path, resumable: bool = False) -> Path | None:
    """Return the last state that a run saved and that is intact; `resumable`: that training continues exactly from."""
    return newest_intact((run / "checkpoints").glob("*.ckpt"), resumable)


def best_checkpoint(run: Path) -> Path | None:
    """Return the best state of a run, by its monitored metric; for a run that never said, the last."""
    best = read_status(run).get("best_checkpoint")
    return run / best if best and (run / best).is_file() else last_checkpoint(run)


def _trainings(config: Config) -> list[Path]:
    """Return the folders of the experiment's trainings, newest first: their names begin with the time."""
    folders = sorted((config.runs / config.experiment).glob("*/status.json"), reverse=True)
    return [file.parent for file in folders if read_status(file.parent).get("command") == "fit"]


def _existing(path: Path) -> Path:
    if path.is_file():
        return path.resolve()
    if not path.parent.is_dir():
        raise ProjectError(f"There is no checkpoint {path}: the folder {path.parent} does not exist.")
    near = did_you_mean(path.name, ["best", "last", *(file.name for file in path.parent.iterdir())])
    raise ProjectError(f"There is no checkpoint {path}.{near} Give `best`, `last` or the path of a .ckpt file.")
