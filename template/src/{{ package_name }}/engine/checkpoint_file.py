"""A checkpoint as bytes on disk: written whole or not at all, verified when read, and never run as code.

Owns: one file, and the `CheckpointIO` that writes it. Does not own: what a checkpoint holds (`checkpoint`), writing in
the background (`checkpoint_async`) and how long it is kept (the ModelCheckpoint callback).

A file is what `torch.save` writes, a zip archive that torch and Lightning read, with a checksum of all its bytes in the
archive's comment. The sums and the disk begin while torch is still writing; reading maps the file into memory.
"""

from __future__ import annotations

import errno
import importlib
import os
import pickle
import shutil
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import torch

from .distributed import log, rank_zero_warn
from .errors import CheckpointError, did_you_mean
from .inert import find_strangers, read_inert
from .sealed import Checksum, Threads, seal, verify

_HPARAMS_KEYS = {f"{owner}{key}" for owner in ("", "datamodule_") for key in ("hyper_parameters", "hparams_type")}
_PIECE = 1 << 22  # bytes after which the disk is told to begin; larger wastes overlap (measured 4 to 64 MiB)
_ABANDONED_S = 600.0  # a `.partial` file nobody has written to for so long belongs to a killed process
_torch_options = threading.Lock()
_warned_of: set[str] = set()


def write(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint so that `path` holds, at any moment, the old file or the new one, complete and on disk.

    Called by one rank per path. The folder is made when missing. No second copy of the tensors is held in memory.

    Args:
        checkpoint: What `torch.save` can pickle; only plain data and tensors can be read back by default.
        path: Replaced when it exists.

    Raises:
        CheckpointError: It could not be written: disk full, no permission, something that cannot be pickled. The
            incomplete file is removed; `path` and its neighbours are as before.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        with partial.open("w+b") as file:
            _write_sealed(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        _warn_of_strangers(partial, path)
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if not isinstance(error, Exception):
            raise
        failure = CheckpointError(
            f"The checkpoint {path} could not be written ({type(error).__name__}: {error}). Older checkpoints are as "
            f"they were. {_remedy(error)}"
        )
        failure.may_pass, failure.path = isinstance(error, OSError), str(path)
        raise failure from error


def _warn_of_strangers(written: Path, path: Path) -> None:
    """Say at the first save, not when a run is to be resumed, that something cannot be read back."""
    with suppress(Exception):
        found = read_inert(written, map_location="cpu", mmap=True)
        kept = {key: value for key, value in found.items() if key not in _HPARAMS_KEYS}
        strangers = [name for name in find_strangers(kept, "checkpoint") if name not in _warned_of]
        if strangers:
            _warned_of.update(strangers)
            rank_zero_warn(
                f"The checkpoint {path} holds {', '.join(strangers[:5])}, which needs arbitrary pickle: training can "
                "be resumed from it only with `weights_only=False`. In `on_save_checkpoint` and `state_dict`, save "
                "plain data, arrays and tensors only."
            )


def _remedy(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free space on this disk, keep fewer checkpoints (`save_top_k`), or choose another `dirpath`."
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "Its name is too long for this file system: shorten `filename`, or set `auto_insert_metric_name=False`."
    if isinstance(error, OSError):
        return "See that the folder can be written to, or choose another `dirpath`."
    return (
        "What is saved must be picklable: look at `on_save_checkpoint` and `state_dict` for lambdas, locks, open files."
    )


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left: a write that is alive changes its file all the time."""
    for partial in folder.glob(".*.partial"):
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime > _ABANDONED_S:
                partial.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a loss of power; some network file systems refuse, and then it is theirs to keep."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _write_sealed(checkpoint: dict[str, Any], file: IO[bytes]) -> None:
    with Threads() as threads:
        sink = _Sink(file, Checksum(file.name, threads))
        try:
            with _without_checksums_of_torch():
                torch.save(checkpoint, cast(IO[bytes], sink))
        except Exception:
            if sink.error is not None:  # torch reports it as its own failure
                raise sink.error from None
            raise
        seal(file, sink.checksum)


@contextmanager
def _without_checksums_of_torch() -> Iterator[None]:
    """Keep torch from computing the CRC-32 of every record (a third of the time of a save); `seal` sees to it."""
    with _torch_options:
        before = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)
        try:
            yield
        finally:
            torch.serialization.set_crc32_options(before)


class _Sink:
    """The file as `torch.save` sees it: what is written is summed, and on its way to the disk, while torch goes on."""

    def __init__(self, file: IO[bytes], checksum: Checksum) -> None:
        self.file, self.checksum = file, checksum
        self.error: BaseException | None = None
        self._written = self._on_its_way = 0

    def write(self, data: bytes | memoryview) -> int:
        if self.error is not None:  # torch goes on to write the directory of the archive
            return len(data)
        try:
            for start in range(0, len(data), _PIECE):
                self._written += self.file.write(data[start : start + _PIECE])
                if self._written - self._on_its_way >= _PIECE:
                    self._send()
        except BaseException as error:
            self.error = error
            raise
        return len(data)

    def _send(self) -> None:
        self.file.flush()
        if hasattr(os, "posix_fadvise"):
            # Named for dropping pages, it first starts writing dirty ones, without waiting: fsync finds little left.
            piece = self.file.fileno(), self._on_its_way, self._written - self._on_its_way
            self.checksum.threads.submit(os.posix_fadvise, *piece, os.POSIX_FADV_DONTNEED)
        self.checksum.begin(self._written)
        self._on_its_way = self._written

    def flush(self) -> None:
        self.file.flush()


def read(
    path: str | Path,
    map_location: Any = None,
    weights_only: bool = True,
    mmap: bool = True,
    unused: Collection[str] = (),
) -> dict[str, Any]:
    """Read a checkpoint of this engine, of Lightning or of `torch.save`, after verifying its checksums.

    Any rank may call it, each for itself. Nothing in the file is run: what is not plain data or tensors comes back, in
    the hyper-parameters, as a `Stranger`, and anywhere else is an error.

    Args:
        path: The file, or the folder of a sharded checkpoint.
        map_location: As for `torch.load`; None: host memory, whatever device it was saved from.
        weights_only: False runs what the file says: for files you trust as you trust a program.
        mmap: Map the file: tensors are read when they are used, and changing them changes no file.
        unused: Keys of the checkpoint that the caller does not use; there, too, strangers do not matter.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, not a checkpoint, or needs arbitrary pickle.
        PermissionError: It cannot be opened.
    """
    path = Path(path)
    if not path.exists():
        near = [other.name for other in path.parent.glob("*") if other.exists()] if path.parent.is_dir() else []
        raise FileNotFoundError(f"Checkpoint file not found: {path}.{did_you_mean(path.name, near)}")
    if path.is_dir():
        folders = importlib.import_module(".sharded_file", __package__)  # late: it imports torch.distributed
        options = {"map_location": map_location, "weights_only": weights_only, "mmap": mmap, "unused": unused}
        whole: dict[str, Any] = folders.read_sharded(path, **options)
        return whole
    is_archive = verify(path)
    options = {"map_location": "cpu" if map_location is None else map_location, "mmap": mmap and is_archive}
    try:
        checkpoint = _load(path, weights_only, is_archive, options, unused)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"The checkpoint {path} could not be loaded ({type(error).__name__}: {error}). "
            + ("If you trust it as you trust a program, pass `weights_only=False`." if weights_only else "")
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"{path} holds a {type(checkpoint).__name__}, not a checkpoint, which is a dict with `state_dict` and "
            f"more. Load it with `torch.load` and `module.load_state_dict`."
        )
    return checkpoint


def _load(path: Path, weights_only: bool, is_archive: bool, options: dict[str, Any], unused: Collection[str]) -> Any:
    try:
        return torch.load(path, weights_only=weights_only, **options)
    except pickle.UnpicklingError as error:
        if not weights_only:
            raise
        if not is_archive:
            raise CheckpointError(
                f"The checkpoint {path}, of the format before torch 1.6, needs arbitrary pickle. Loading that can run "
                "any code. If you trust the file as you trust a program, pass `weights_only=False`, and save it anew."
            ) from error
    except RuntimeError as error:
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} is a program (TorchScript), not a checkpoint. If you trust it, use `torch.jit.load`."
            ) from error
        raise
    loaded = read_inert(path, **options)
    used = {k: v for k, v in loaded.items() if k not in _HPARAMS_KEYS | set(unused)} if type(loaded) is dict else loaded
    if strangers := list(find_strangers(used, "checkpoint")):
        raise CheckpointError(
            f"The checkpoint {path} needs arbitrary pickle for {', '.join(strangers[:5])}. Loading that can run any "
            f"code. If you trust the file as you trust a program, pass `weights_only=False`. In `on_save_checkpoint` "
            f"and `state_dict`, save plain data and tensors only."
        )
    return loaded


def newest_intact(paths: Iterable[str | Path], resumable: bool = True) -> Path | None:
    """Return the file written last among those that are intact; each one that is passed over is named in a warning.

    Args:
        paths: Of files (or of folders, of which the part that is no tensors is verified); missing ones are left out.
        resumable: Pass over what training cannot continue from exactly as well: files of weights only, and those that
            were written in the middle of a batch, at an exception.
    """
    existing = {Path(path) for path in paths if Path(path).exists()}
    # Two names of one file are as old as each other: `last` comes before `epoch=...`.
    for path in sorted(existing, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True):
        try:
            rest = path / "rest.ckpt" if path.is_dir() else path
            found = read_inert(rest, map_location="cpu", mmap=True) if verify(rest) and resumable else {}
        except (CheckpointError, PermissionError) as error:
            rank_zero_warn(f"Passed over: {error}")
            continue
        except Exception as error:  # whatever torch raises for an archive of another kind
            rank_zero_warn(f"Passed over: {path} is no checkpoint ({type(error).__name__}).")
            continue
        if type(found) is not dict:
            rank_zero_warn(f"Passed over: {path} is no checkpoint.")
        elif "state_dict" in found and "optimizer_states" not in found:
            rank_zero_warn(f"Passed over: {path} holds weights only, which training cannot be resumed from.")
        elif not (found.get("kagaku") or {}).get("is_between_batches", True):
            rank_zero_warn(
                f"Passed over: {path} was written at an exception, in the middle of a batch, so a run resumed from it "
                "would not be the same. To go on from it all the same, give its path."
            )
        else:
            return path
    return None


class CheckpointIO:
    """How checkpoints reach storage; `Trainer(plugins=[...])` takes one. One rank calls it per file.

    As it stands it writes one local file per checkpoint, complete when `save_checkpoint` returns. For other storage,
    override all of it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; see `write`.

        Raises:
            TypeError: `storage_options` are given; local files have none.
        """
        if storage_options is not None:
            raise TypeError(
                f"storage_options={storage_options!r}: {type(self).__name__} writes local files, which take none. "
                f"Leave it out, or pass `Trainer(plugins=[...])` a CheckpointIO of your own."
            )
        write(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; see `read`. `weights_only=None` means True."""
        return read(path, map_location, weights_only is not False)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, file or folder, if it is there. One that the file system keeps is named and left."""
        try:
            if Path(path).is_dir():
                shutil.rmtree(path)
            else:
                Path(path).unlink(missing_ok=True)
        except OSError as error:
            log.warning("The older checkpoint %s could not be removed (%s), and stays.", path, error)

    def teardown(self) -> None:
        """Finish what is under way, at the end of a run."""


class TorchCheckpointIO(CheckpointIO):
    """Local files, under Lightning's name."""
