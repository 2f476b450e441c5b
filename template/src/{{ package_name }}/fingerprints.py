"""What a data set is, in a few letters: two trainings with the same fingerprint saw the same rows.

Owns: the fingerprint. Does not own: what is done with it. No row is asked for, so no random number is drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sized
from typing import Any

import torch

MOST_BYTES = 1 << 28  # of one tensor that are looked at; beyond, its shape must do


def fingerprint(dataset: Any) -> str:
    """Return 16 hexadecimal digits of the class, the length, and the tensors, arrays and indices that a data set holds.

    A data set with other contents (files, say) gives itself an attribute or method `fingerprint`, a text.
    """
    digest = hashlib.sha256()
    for part in _parts(dataset, depth=3):
        digest.update(part)
    return digest.hexdigest()[:16]


def rows(dataset: Any) -> int | None:
    """Return how many rows it has; None for a stream."""
    return len(dataset) if isinstance(dataset, Sized) else None


def _parts(thing: Any, depth: int) -> Iterator[bytes]:
    if isinstance(thing, torch.Tensor):
        yield f"{tuple(thing.shape)} {thing.dtype}".encode()
        if thing.numel() * thing.element_size() <= MOST_BYTES and not thing.is_sparse:
            yield thing.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if thing.ndim else b""
    elif isinstance(thing, str | int | float | bool | bytes | None):
        yield repr(thing).encode()
    elif hasattr(thing, "__array__") and hasattr(thing, "dtype") and thing.dtype != object:
        yield f"{thing.shape} {thing.dtype}".encode()
        if thing.nbytes <= MOST_BYTES:
            yield thing.tobytes()
    elif isinstance(thing, list | tuple | range):
        yield f"{type(thing).__name__} {len(thing)}".encode()
        for item in thing if depth and len(thing) <= 1_000_000 else ():
            yield from _parts(item, depth - 1)
    elif own := getattr(thing, "fingerprint", None):
        yield str(own() if callable(own) else own).encode()
    else:
        yield f"{type(thing).__qualname__} {rows(thing)}".encode()
        for name, value in sorted(getattr(thing, "__dict__", {}).items()) if depth else ():
            yield name.encode()
            yield from _parts(value, depth - 1)
