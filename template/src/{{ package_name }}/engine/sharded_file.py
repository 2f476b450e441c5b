"""A checkpoint as a folder to which every rank writes its part, by `torch.distributed.checkpoint`.

Owns: that folder. Does not own: ordinary checkpoints (`checkpoint_file`) and who has which part (`strategies.fsdp`).

    rest.ckpt              what is no part of anything, sealed as every checkpoint; where a tensor was stands its number
    .metadata, *.distcp    the tensors, by number; any number of processes reads them

torch reads `.metadata` by plain unpickling, which runs what it says; here only the classes that belong there are made.
"""

from __future__ import annotations

import pickle
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from .checkpoint_file import read, write
from .errors import CheckpointError
from .transfer import apply_to_collection

_REST = "rest.ckpt"
_MARK = "\0part "
_HOMES = {"torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem", "pathlib"}


def write_sharded(checkpoint: dict[str, Any], folder: Path, part_type: type, *, writes_rest: bool) -> None:
    """Write a checkpoint whose sharded tensors are of `part_type`. A collective; `folder` is shared by all ranks.

    Raises:
        CheckpointError: A rank could not write its part.
    """
    parts: dict[str, Any] = {}

    def put_apart(part: Any) -> str:
        parts[str(len(parts))] = part
        return f"{_MARK}{len(parts) - 1}"

    rest = apply_to_collection(checkpoint, lambda item: isinstance(item, part_type), put_apart)
    try:
        save(parts, checkpoint_id=folder)
        if writes_rest:
            write(rest, folder / _REST)
    except CheckpointException as error:
        failures = "; ".join(f"rank {rank}: {wrapped[0]}" for rank, wrapped in error.failures.items())
        raise CheckpointError(f"The checkpoint {folder} could not be written ({failures}).") from error


def read_sharded(folder: Path, **options: Any) -> dict[str, Any]:
    """Read a folder that `write_sharded` wrote: a checkpoint with whole tensors, on the host. `options` as for `read`.

    Raises:
        CheckpointError: It is not such a folder, or something in it is not what belongs there.
    """
    if not (folder / _REST).exists():
        raise CheckpointError(f"{folder} is a folder, but no sharded checkpoint: it has no `{_REST}`.")
    rest, reader = read(folder / _REST, **options), _Reader(folder)
    described = reader.read_metadata().state_dict_metadata
    parts: dict[str, Any] = {
        name: torch.empty(about.size, dtype=about.properties.dtype)
        for name, about in described.items()
        if isinstance(about, TensorStorageMetadata)
    }
    load(parts, storage_reader=reader, no_dist=True)
    marked = lambda item: isinstance(item, str) and item.startswith(_MARK)  # noqa: E731
    whole: dict[str, Any] = apply_to_collection(rest, marked, lambda mark: parts[mark.removeprefix(_MARK)])
    return whole


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata: Metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"The checkpoint {self.path} is damaged: its `.metadata` describes no tensors.")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        found = super().find_class(module, name) if module in _HOMES | {"torch", "torch.serialization"} else None
        is_data = isinstance(found, torch.dtype) or found is torch.Size or name == "_get_layout"
        if is_data or (isinstance(found, type) and (is_dataclass(found) or issubclass(found, (Enum, PurePath)))):
            return found
        raise CheckpointError(f"The checkpoint's `.metadata` asks for `{module}.{name}`, which does not belong there.")


def _member(kind: Any, name: str) -> Enum:
    """Stand in for `getattr`, by which Python 3.11.0 to 3.11.3 pickle the members of an enumeration."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise CheckpointError("The checkpoint's `.metadata` asks for an attribute, which does not belong there.")
    return kind[name]
