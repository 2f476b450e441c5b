"""The folder of a run: `runs/<experiment>/<time>-<name>/`, one run in one folder, with all that is needed to repeat it.

    config.yaml        the resolved configuration: `fit --config` on it repeats the run
    environment.json   command line, git commit, packages, python, machine
    git.diff           what differed from that commit, if anything did
    uv.lock            the lock file of that moment, if the project has one
    status.json        running, finished, failed or interrupted; how far, on what, best checkpoint, results
    events.jsonl, metrics.csv, hparams.yaml, checkpoints/, curves.svg, predictions.csv, traceback.txt
    confusion.svg, confusion.csv, worst.svg, worst.csv    of a test, if the task returns what they take (`mistakes`)

A run that is resumed goes on in its folder; what a second start would overwrite is kept as `config.1.yaml` and so on.

Owns: the folder and its state. Does not own: finding earlier runs (`history`), and what trains in it (`workflow`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from . import ranks
from .config import Config
from .record import environment, git
from .sources import ProjectError

try:
    import fcntl
except ImportError:  # Windows: there, a run that still goes on can be mistaken for one that has died
    fcntl = None  # type: ignore[assignment]


@dataclass
class Run:
    """One run in one folder.

    Attributes:
        path: The folder, absolute; on ranks that rank 0 could not tell, a name that is never created.
        checkpoint: What it goes on from or evaluates; None: nothing, it starts fresh.
        commit: The code's git commit; None: there is none.
        writes: Whether this process writes files; those above rank 0 do not.
        is_temporary: The folder is removed at the end.
        is_continued: The folder was there before.
        lock: Held by the process that made the run, while the run lives.
    """

    path: Path
    checkpoint: Path | None = None
    commit: str | None = None
    writes: bool = False
    is_temporary: bool = False
    is_continued: bool = False
    lock: IO[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "lock": None}  # for processes that the engine spawns

    @property
    def name(self) -> str:
        """Name of the run in trackers: that of its folder."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def relative(self, path: Path) -> Path:
        """Return a path as it is written down: within the folder if it lies there, so that the folder can be moved."""
        return path.relative_to(self.path) if path.is_relative_to(self.path) else path

    def status(self) -> dict[str, Any]:
        """Return what status.json holds; empty when there is none that can be read."""
        return read_status(self.path)

    def update(self, **status: Any) -> None:
        """Add to status.json, in one piece. Every rank may call it; rank 0 writes."""
        if self.writes:  # read anew: with forked or spawned processes, more than one of them adds to it
            content = json.dumps({**self.status(), **status}, indent=2, default=str)
            _write_whole(self.path / "status.json", content + "\n")

    def note_progress(self, progress: Mapping[str, Any]) -> None:
        """Add how far the run is."""
        self.update(progress=progress)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Note how the body ends: finished, interrupted or failed, the latter with the whole traceback."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self._end("interrupted")
            raise
        except BaseException as error:
            self._end("failed", error=f"{type(error).__name__}: {error}", trace=traceback.format_exception(error))
            raise
        self._end("interrupted" if self.status().get("status") == "interrupted" else "finished")

    def discard(self) -> None:
        """Give up a run that never began; a folder made for it is removed."""
        self._unlock()
        if not self.writes or self.is_continued:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        for above in (self.path.parent, self.path.parent.parent):  # only if this run made them: else they hold others
            with suppress(OSError):
                above.rmdir()

    def _end(self, status: str, trace: Sequence[str] = (), **more: Any) -> None:
        try:
            if trace and self.writes:
                (self.path / "traceback.txt").write_text("".join(trace), encoding="utf-8")
            self.update(status=status, ended=_now(), **more)
        except OSError as error:  # a full disk; what the run has computed is worth more than this note
            print(f"{self.path} does not say that the run {status}: {error.strerror}.", file=sys.stderr)
        self._unlock()
        if self.is_temporary:
            shutil.rmtree(self.path, ignore_errors=True)

    def _unlock(self) -> None:
        if self.lock is not None:
            self.lock.close()
            self.lock = None


def start(
    config: Config,
    command: str,
    arguments: Sequence[str] = (),
    checkpoint: Path | None = None,
    unfinished: Run | None = None,
) -> Run:
    """Make the folder of a run and write what is known at its start. Every rank calls it; rank 0 makes the folder.

    Args:
        config: The resolved configuration; `fast_dev_run` gets a temporary folder that is removed at the end.
        command: `fit`, `validate`, `test` or `predict`.
        arguments: The command line.
        checkpoint: What the run goes on from or evaluates.
        unfinished: A locked run to go on with, in its own folder; None: a new one.

    Raises:
        ProjectError: The folder cannot be made or written.
    """
    if not ranks.is_rank_zero():
        return _told_by_rank_zero(config)
    try:
        run = unfinished or _new_run(config, command, checkpoint)
        _keep_and_write(run.path / "config.yaml", config.to_yaml())
        record = environment(config.root, arguments)
        run.commit = record["git_commit"]
        _keep_and_write(run.path / "environment.json", json.dumps(record, indent=2) + "\n")
        if diff := git(config.root, "diff", "HEAD"):
            _keep_and_write(run.path / "git.diff", diff)
        if (lock := config.root / "uv.lock").is_file():
            _keep_and_write(run.path / "uv.lock", lock.read_text(encoding="utf-8"))
        run.update(command=command, status="running", started=_now(), checkpoint=run.checkpoint)
    except OSError as error:
        raise _unwritable(error.filename or config.runs, error) from None
    ranks.tell(json.dumps([str(run.path), run.checkpoint and str(run.checkpoint)]))
    return run


def read_status(folder: Path) -> dict[str, Any]:
    """Return what the status.json of a run's folder holds; empty when there is none that can be read."""
    try:
        status: dict[str, Any] = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status


def try_lock(path: Path) -> IO[str] | None:
    """Take a run's folder for this process; None when a living process has it. A killed process has it no longer.

    Raises:
        ProjectError: The folder cannot be written.
    """
    try:
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    except OSError:  # a file system without locks, such as a mounted bucket: as on Windows
        pass
    return lock


def _unwritable(folder: str | Path, error: OSError) -> ProjectError:
    return ProjectError(
        f"The folder {folder} cannot be written: {error.strerror}. "
        "Make it writable, or put runs elsewhere: -o runs_dir=PATH."
    )


def _new_run(config: Config, command: str, checkpoint: Path | None) -> Run:
    if config.trainer.fast_dev_run:
        path = Path(tempfile.mkdtemp(prefix="fast-dev-run-"))
        return Run(path, checkpoint, writes=True, is_temporary=True, lock=try_lock(path))
    parent = config.runs / config.experiment
    parent.mkdir(parents=True, exist_ok=True)
    name = command if config.name is None else config.name if command == "fit" else f"{config.name}-{command}"
    wanted = f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
    taken = 1
    path = parent / wanted
    while not _made(path):
        taken += 1
        path = parent / f"{wanted}-{taken}"
    return Run(path, checkpoint, writes=True, lock=try_lock(path))


def _made(path: Path) -> bool:
    """Make a folder; False when it is there already, for instance made by a run of the same second."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _told_by_rank_zero(config: Config) -> Run:
    told = ranks.told()
    if told is None:  # an unknown launcher: the engine takes the paths that matter from rank 0
        return Run(config.runs / config.experiment / "folder-of-rank-0")
    path, checkpoint = json.loads(told)
    return Run(Path(path), Path(checkpoint) if checkpoint else None)


def _keep_and_write(path: Path, text: str) -> None:
    """Write a file; if it is there with another content, keep that one under the next free number."""
    if path.exists() and path.read_text(encoding="utf-8") != text:
        number = 1
        while path.with_suffix(f".{number}{path.suffix}").exists():
            number += 1
        path.rename(path.with_suffix(f".{number}{path.suffix}"))
    _write_whole(path, text)


def _write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new content, never half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
