"""A checksum over all bytes of a file of `torch.save`, inside the file.

Owns: the seal, which is the zip archive's comment, and checking it. Does not own: writing, loading
(`checkpoint_file`). torch and Lightning read a sealed file as any other.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from .errors import CheckpointError

_SEAL = b"sums-crc32:"
_SEAL_SIZE = len(_SEAL) + 8  # 19: no single flipped bit of the size makes it 0, "no comment"
_END = struct.Struct("<4s16xH")  # zip's end record: signature, counts and offsets, size of the comment
_TILE = (31, 1024)  # words of 8 bytes: fits a core's cache; from 32,768 words on torch would start threads for each sum
_PART = 1 << 24  # bytes that one thread sums at a time


class _Record(NamedTuple):
    name: str
    start: int
    size: int
    crc32: int


def seal(file: IO[bytes], checksum: Checksum) -> None:
    """Complete the directory of a zip archive without checksums, and put that of the whole into its comment.

    Args:
        file: Open for reading and writing.
        checksum: Of that file, as far as it was begun.
    """
    records, start = _records(file)
    file.seek(start)
    directory = bytearray(file.read())
    entry = 0
    for record in records:
        if not record.name.startswith("data/"):  # for tools that look into `data.pkl`; tensors keep torch's 0, "none"
            struct.pack_into("<I", directory, entry + 16, _crc32(file, record))
        entry += 46 + sum(struct.unpack_from("<HHH", directory, entry + 28))
    struct.pack_into("<H", directory, len(directory) - 2, _SEAL_SIZE)
    file.seek(start)
    file.write(directory)
    file.flush()
    file.write(_SEAL + checksum.of(start + len(directory), unchanged=start))


def verify(path: str | Path) -> bool:
    """Check all bytes of a sealed file; of another archive, the records whose CRC-32 torch computed.

    Returns:
        Whether it is a zip archive; False: a file of torch before 1.6, which has no checksums.

    Raises:
        CheckpointError: It is cut off, changed, or no checkpoint at all.
        PermissionError: It cannot be opened.
    """
    try:
        with Path(path).open("rb") as file:
            if file.read(2) == b"\x80\x02":
                return False
            _check(file)
    except PermissionError:
        raise
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, OverflowError, OSError) as error:
        raise CheckpointError(
            f"The checkpoint {path} is damaged or not a checkpoint: {error}. It was cut off while it was written or "
            f"copied, or the disk failed. Use the checkpoint before it."
        ) from error
    return True


def _check(file: IO[bytes]) -> None:
    expected = _read_seal(file)
    if expected is None:
        for record in _records(file)[0]:
            if record.crc32 and _crc32(file, record) != record.crc32:
                raise zipfile.BadZipFile(f"the checksum of its record `{record.name}` does not fit")
        return
    with Threads() as threads:
        if Checksum(file.name, threads).of(file.seek(-_SEAL_SIZE, os.SEEK_END)) != expected:
            raise zipfile.BadZipFile("its checksum does not fit")


def _read_seal(file: IO[bytes]) -> bytes | None:
    """Return the checksum in it, or None for an archive without a comment, which is not ours."""
    size = file.seek(0, os.SEEK_END)
    for comment in (_SEAL_SIZE, 0):
        file.seek(max(0, size - comment - _END.size))
        tail = file.read()
        if len(tail) == _END.size + comment and _END.unpack_from(tail) == (b"PK\5\6", comment):
            if not comment:
                return None
            if tail[_END.size : -8] == _SEAL:
                return tail[-8:]
    raise zipfile.BadZipFile("its end is missing")


def _records(file: IO[bytes]) -> tuple[list[_Record], int]:
    """Return the archive's records in the order of its directory, and where the directory starts."""
    with zipfile.ZipFile(file) as archive:
        entries, start = archive.infolist(), archive.start_dir
    records = []
    for entry in entries:
        crc32 = entry.CRC if entry.compress_type == zipfile.ZIP_STORED else 0  # of the bytes as they are here
        file.seek(entry.header_offset + 26)
        begin = entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        records.append(_Record(entry.filename.partition("/")[2], begin, entry.compress_size, crc32))
    return records, start


def _crc32(file: IO[bytes], record: _Record) -> int:
    file.seek(record.start)
    checksum = 0
    for position in range(0, record.size, 1 << 18):
        checksum = zlib.crc32(file.read(min(1 << 18, record.size - position)), checksum)
    return checksum


class Threads(ThreadPoolExecutor):
    """Threads for the work on one checkpoint: one more than there are cores, for they also wait for the disk.

    Where none can be started, as when the interpreter is ending, the work is done at once in the caller's.
    """

    def __init__(self) -> None:
        super().__init__(min(8, 1 + (os.cpu_count() or 1)), "checkpoint")

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:  # type: ignore[override]
        """Begin `function(*args)`."""
        try:
            return super().submit(function, *args)
        except RuntimeError:
            done: Future[Any] = Future()
            done.set_result(function(*args))
            return done


class Checksum:
    """The checksum of a file that may still be growing: its parts are summed side by side, as soon as they are there.

    Args:
        path: The file; each thread opens it for itself.
        threads: That do it.
    """

    def __init__(self, path: str | Path, threads: Threads) -> None:
        self.path, self.threads = path, threads
        self._parts: list[Future[bytes]] = []

    def begin(self, size: int) -> None:
        """Sum the parts that end within the first `size` bytes, which have been handed to the system."""
        for start in range(len(self._parts) * _PART, size - _PART + 1, _PART):
            self._parts.append(self.threads.submit(self._sum, start, _PART))

    def of(self, size: int, unchanged: int = 0) -> bytes:
        """Return the checksum, in hexadecimal, of the first `size` bytes.

        Args:
            size: Of the file, or of the part of it that counts.
            unchanged: How many bytes are as they were at `begin`; parts that reach beyond are summed anew.
        """
        del self._parts[unchanged // _PART :]
        self.begin(size)
        start = len(self._parts) * _PART
        if start < size:
            self._parts.append(self.threads.submit(self._sum, start, size - start))
        return b"%08x" % zlib.crc32(b"".join(part.result() for part in self._parts))

    def _sum(self, start: int, size: int) -> bytes:
        with open(self.path, "rb", buffering=0) as file:
            file.seek(start)
            return _sums_crc32(file, size).to_bytes(4, "little")


def _sums_crc32(file: IO[bytes], size: int) -> int:
    """Return the CRC-32 of the row and column sums, modulo 2**64, of the next `size` bytes in tiles of words.

    Two to three times as fast as the CRC-32 of the bytes. What changes no sum is at least four wrong words that make a
    rectangle and cancel out: any wrong bit, any three wrong words and anything within 8 KiB are in the sums.
    """
    tile = bytearray(8 * _TILE[0] * _TILE[1])
    sums = bytearray(8 * sum(_TILE))
    words = torch.frombuffer(tile, dtype=torch.int64).view(_TILE)
    rows, columns = torch.tensor_split(torch.frombuffer(sums, dtype=torch.int64), _TILE[:1])
    checksum = 0
    while size > 0:
        filled = 0
        while filled < min(len(tile), size):
            count = file.readinto(memoryview(tile)[filled:size])  # type: ignore[attr-defined]
            if not count:
                raise zipfile.BadZipFile("it ends too early")
            filled += count
        tile[filled:] = bytes(len(tile) - filled)
        torch.sum(words, 1, out=rows)
        torch.sum(words, 0, out=columns)
        checksum = zlib.crc32(sums, checksum)
        size -= filled
    return checksum
