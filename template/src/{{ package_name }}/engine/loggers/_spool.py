"""Entries on disk until a tracking server has them: one append-only file of one process, and how much of it was sent.

Owns: the file, its lock, what a crash in the middle of a line or a full disk leaves behind, and second names of files
that wait and may be removed meanwhile. Does not own: what the entries mean. An entry may be read twice after a crash,
never not at all; a line that the disk has spoilt is left out.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..distributed import log
from .logger import replace_whole

try:
    import fcntl
except ImportError:  # Windows: there, the spool of a living process can be mistaken for that of a dead one
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".spool.jsonl"
CHUNK_BYTES = 500_000  # of one reading; MLflow takes a million bytes in a request


class Spool:
    """A file of JSON lines: first what the run is, then its entries.

    Args:
        path: The file; made with `head` as its first line unless it is there.
        head: What the entries belong to.

    Raises:
        BlockingIOError: A living process writes to it.
        OSError: It cannot be made or read.
        ValueError: Its first line is spoilt.
    """

    def __init__(self, path: Path, head: dict[str, Any] | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | (os.O_CREAT if head is not None else 0), 0o600)
        self._end = 0
        try:
            _lock(self._fd)
            self._end = path.read_bytes().rfind(b"\n") + 1
            os.ftruncate(self._fd, self._end)  # half a line, from a process killed while it wrote
            if self._end == 0 and head is not None:
                self.append([head])
            with path.open("rb") as file:
                line = file.readline()
            self.head: dict[str, Any] = dict(json.loads(line)) if line else {}
        except (OSError, ValueError, TypeError):
            os.close(self._fd)
            if head is not None and self._end == 0:  # the full disk that takes no line takes an empty file all the same
                path.unlink(missing_ok=True)
            raise
        self._note = path.with_name(path.name + ".sent")
        self._sent = min(max(len(line), _read_number(self._note)), self._end)

    @property
    def size_bytes(self) -> int:
        """Length of the file."""
        return self._end

    @property
    def is_sent(self) -> bool:
        """Whether nothing waits."""
        return self._sent >= self._end

    def append(self, entries: list[Any]) -> None:
        """Write entries and wait until the disk has them; a failed write leaves none of them.

        Raises:
            OSError: The disk is full, or gone.
        """
        data = b"".join(json.dumps(entry, separators=(",", ":"), default=str).encode() + b"\n" for entry in entries)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            os.fsync(self._fd)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._fd, self._end)
            raise
        self._end += len(data)

    def waiting(self) -> tuple[list[Any], int]:
        """Return the next entries to send, oldest first, and what to give to `mark_sent` when they have arrived."""
        size = CHUNK_BYTES
        data = b""
        while self._sent + len(data) < self._end and b"\n" not in data:
            data = os.pread(self._fd, min(size, self._end - self._sent), self._sent)
            size *= 2
        data = data[: data.rfind(b"\n") + 1]
        return list(self._read(data)), self._sent + len(data)

    def _read(self, data: bytes) -> Iterator[Any]:
        for line in data.splitlines():
            try:
                yield json.loads(line)
            except ValueError as error:
                log.warning("A line of %s cannot be read (%s) and is left out.", self.path, error)

    def mark_sent(self, position: int) -> None:
        """Note that everything before `position` has arrived; where that cannot be noted, it is sent once more."""
        self._sent = position
        with suppress(OSError):
            replace_whole(os.fspath(self._note), str(position))

    def last(self) -> Any:
        """Return the newest entry; empty when there is none."""
        _, *lines = self.path.read_bytes().splitlines() or [b""]
        return next(self._read(b"".join(lines[-1:])), [])

    def close(self, keep: bool = False) -> None:
        """Release the file; unless `keep`, remove it when all has arrived, and its directory when that is empty."""
        if self.is_sent and not keep:
            half_written = self._note.with_name(self._note.name + ".new")  # by a disk that was full
            for path in (self.path, self._note, half_written):
                path.unlink(missing_ok=True)
        os.close(self._fd)
        with suppress(OSError):
            self.path.parent.rmdir()


def left_in(folder: Path) -> list[Spool]:
    """Open the spools in `folder` that no living process writes to, oldest first."""
    spools = []
    for path in sorted(folder.glob(f"*{SUFFIX}"), key=_modified):
        try:
            spool = Spool(path)
        except OSError:
            continue  # in use, or just sent by another process
        except (ValueError, TypeError) as error:
            log.warning("%s cannot be read (%s) and stays where it is.", path, error)
            continue
        if spool.size_bytes:
            spools.append(spool)
        else:  # of a process killed before its first line
            spool.close()
    return spools


def link(path: Path, folder: Path) -> Path | None:
    """Give a file or directory a second name in a new directory in `folder`; None where the file system has none."""
    place = folder / uuid.uuid4().hex[:8]
    try:
        place.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, place / path.name, copy_function=os.link)
        else:
            os.link(path, place / path.name)
    except (OSError, shutil.Error):
        shutil.rmtree(place, ignore_errors=True)
        return None
    return place / path.name


def unlink(path: Path) -> None:
    """Remove what `link` made."""
    shutil.rmtree(path.parent, ignore_errors=True)
    for folder in path.parents[1:3]:
        with suppress(OSError):
            folder.rmdir()


def _lock(fd: int) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks, such as a mounted bucket: as on Windows
        pass


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _read_number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
