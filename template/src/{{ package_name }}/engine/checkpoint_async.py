"""Checkpoints written in the background, while training goes on.

Owns: the copy in host memory that the next step cannot change, and the line in which saves and removals wait. Does not
own: the file (`checkpoint_file`).
"""

from __future__ import annotations

import copy
import ctypes
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint_file import CheckpointIO, TorchCheckpointIO
from .errors import CheckpointError
from .sealed import Threads

_LARGE = 1 << 20  # bytes from which another thread copies: to ask one takes as long as to copy a few hundred KiB


class AsyncCheckpointIO(CheckpointIO):
    """Writes in the background: `save_checkpoint` returns when everything is copied to host memory.

    At most one save is under way: the next one, loading and `teardown` wait for it, and raise what went wrong in it;
    the next one begins all the same. Removals wait in the same line, and are left out after a failed save, so that the
    last good file stays. The memory of the copy is kept until `teardown`, for the next one: to get memory anew takes
    longer than to copy. A `checkpoint_io` of your own may keep what it is given, so there each save gets its own.

    Args:
        checkpoint_io: Does the writing; None: `TorchCheckpointIO`.
    """

    def __init__(self, checkpoint_io: CheckpointIO | None = None) -> None:
        self.checkpoint_io = checkpoint_io or TorchCheckpointIO()
        self._worker: ThreadPoolExecutor | None = None
        self._pending: list[Future[Any]] = []
        self._memory = HostMemory()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Copy the checkpoint and begin to write it.

        Raises:
            CheckpointError: The save before this one failed; its `path` is that one's, and this one is under way.
        """
        failure = None
        try:
            self._wait()
        except CheckpointError as error:
            failure = error
        self._worker = self._worker or ThreadPoolExecutor(1, "checkpoint-write")
        reusable = type(self.checkpoint_io).save_checkpoint is CheckpointIO.save_checkpoint
        memory, self._memory = self._memory.released() if reusable else HostMemory(), HostMemory()
        arguments = (snapshot(checkpoint, memory), path, *(() if storage_options is None else (storage_options,)))
        self._memory = memory  # only now: an interrupt may leave threads that still copy into it
        self._pending = [self._worker.submit(self.checkpoint_io.save_checkpoint, *arguments)]
        if failure is not None:
            raise failure

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, after the save under way."""
        self._wait()
        return self.checkpoint_io.load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint after the save under way, if that succeeds."""
        if self._worker is None or not self._pending:
            self.checkpoint_io.remove_checkpoint(path)
            return
        self._pending.append(self._worker.submit(self._remove_after, self._pending[0], path))

    def _remove_after(self, saving: Future[Any], path: str | Path) -> None:
        if saving.exception() is None:
            self.checkpoint_io.remove_checkpoint(path)

    def teardown(self) -> None:
        """Wait for everything; raises what went wrong in the last save."""
        worker, self._worker, self._memory = self._worker, None, HostMemory()
        if worker is not None:
            worker.shutdown()
        try:
            self._wait()
        finally:
            self.checkpoint_io.teardown()

    def _wait(self) -> None:
        wait(self._pending)  # an interrupt leaves them pending: the next save must not copy over what they write
        pending, self._pending = self._pending, []
        for task in pending:
            task.result()


class HostMemory:
    """What a snapshot is copied to: a tensor of bytes for each storage, and free ones from a snapshot before."""

    def __init__(self) -> None:
        self.copies: dict[tuple[torch.device, int, int], Tensor] = {}
        self.free: dict[int, list[Tensor]] = {}
        self.under_way: list[Future[None]] = []

    def released(self) -> HostMemory:
        """Return the same memory, all of it free."""
        released = HostMemory()
        for copied in self.copies.values():
            released.free.setdefault(copied.numel(), []).append(copied)
        return released

    def copy(self, storage: torch.UntypedStorage, threads: Threads) -> torch.UntypedStorage:
        """Return a copy of `storage`, the same one for the same storage; it is whole when `under_way` is done."""
        key = (storage.device, storage.data_ptr(), storage.nbytes())
        if key not in self.copies:
            free = self.free.get(storage.nbytes()) or [torch.empty(storage.nbytes(), dtype=torch.uint8)]
            host = self.copies[key] = free.pop()
            if storage.device.type == "cpu" and storage.nbytes() >= _LARGE:
                self.under_way.append(threads.submit(_move, host, storage))
            else:  # in this thread, whose stream it is to follow
                host.copy_(torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage))
        return self.copies[key].untyped_storage()


def _move(host: Tensor, storage: torch.UntypedStorage) -> None:
    """Copy bytes. `copy_` would do it with as many threads again, or with one, as torch is told."""
    ctypes.memmove(host.data_ptr(), storage.data_ptr(), storage.nbytes())


def snapshot(checkpoint: Any, memory: HostMemory) -> Any:
    """Return a copy of a checkpoint in `memory`, made by several threads: no later step changes it.

    Tensors that share a storage, such as tied weights and views, still do.
    """
    with torch.inference_mode(False), Threads() as threads:  # memory made in it serves in it alone
        copied = _copy(checkpoint, memory, threads)
        for copying in memory.under_way:
            copying.result()
    return copied


def _copy(value: Any, memory: HostMemory, threads: Threads) -> Any:
    if isinstance(value, Tensor):
        return _copy_tensor(value, memory, threads)
    if isinstance(value, dict):
        copied = copy.copy(value)  # keeps the class, and the `_metadata` of a state_dict
        for key, item in value.items():
            copied[key] = _copy(item, memory, threads)
        return copied
    if type(value) in (list, tuple):
        return type(value)(_copy(item, memory, threads) for item in value)
    return copy.deepcopy(value)


def _copy_tensor(tensor: Tensor, memory: HostMemory, threads: Threads) -> Tensor:
    plain = tensor.detach()
    is_lazy = plain.is_quantized or plain.is_conj() or plain.is_neg()  # more than its bytes
    if is_lazy or plain.layout != torch.strided or type(plain) is not Tensor:
        return plain.to("cpu", copy=True)
    host = memory.copy(plain.untyped_storage(), threads)
    copied = torch.empty(0, dtype=plain.dtype).set_(host, plain.storage_offset(), plain.size(), plain.stride())
    return copied.requires_grad_(tensor.requires_grad)
