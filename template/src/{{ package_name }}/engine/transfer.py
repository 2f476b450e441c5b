"""Walk a batch, whatever its nest: move or change what is inside, find its size.

Owns: the recursion over lists, tuples, named tuples, dicts and dataclasses. Does not own: when batches are moved.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .distributed import rank_zero_warn
from .errors import MisconfigurationException


def apply_to_collection(data: Any, matches: Callable[[Any], bool], change: Callable[[Any], Any]) -> Any:
    """Return `data` with every element for which `matches` is true replaced by `change(element)`.

    Args:
        data: Any nest of lists, tuples, named tuples, mappings and dataclass instances; other objects are leaves.
        matches: Asked first, so that a container may itself be an element.
        change: Called once for each match.
    """
    if matches(data):
        return change(data)
    if isinstance(data, Mapping):
        return _rebuild_mapping(data, {k: apply_to_collection(v, matches, change) for k, v in data.items()})
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(apply_to_collection(v, matches, change) for v in data))
    if isinstance(data, (list, tuple)):
        items = [apply_to_collection(v, matches, change) for v in data]
        return items if type(data) is list else type(data)(items)
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return _rebuild_dataclass(data, matches, change)
    return data


def _rebuild_mapping(data: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    if type(data) is dict:
        return items
    if isinstance(data, defaultdict):
        return defaultdict(data.default_factory, items)
    if isinstance(data, OrderedDict):
        return OrderedDict(items)
    return type(data)(items)  # type: ignore[call-arg]


def _rebuild_dataclass(data: Any, matches: Callable[[Any], bool], change: Callable[[Any], Any]) -> Any:
    # A shallow copy instead of the constructor: fields with init=False and __post_init__ must not run again.
    changed = copy.copy(data)
    for field in dataclasses.fields(data):
        if hasattr(data, field.name):
            object.__setattr__(changed, field.name, apply_to_collection(getattr(data, field.name), matches, change))
    return changed


def move_data_to_device(batch: Any, device: torch.device | str) -> Any:
    """Return `batch` with everything that has a `.to` moved to `device`.

    Tensors bound for an accelerator are copied without blocking, which overlaps when the host memory is pinned.

    Args:
        batch: Any nest of lists, tuples, mappings, dataclasses, tensors and objects with `.to(device)`.
        device: Where to.
    """
    device = torch.device(device) if isinstance(device, str) else device
    kind = type(batch)
    if kind is list or kind is tuple:  # The usual batch is there already: no walk, and no call.
        for item in batch:
            if type(item) is not Tensor or item.device != device:
                break
        else:
            return kind(batch)
    return apply_to_collection(batch, _has_to, lambda item: _move(item, device))


def _has_to(item: Any) -> bool:
    return isinstance(item, Tensor) or (callable(getattr(item, "to", None)) and not isinstance(item, type))


def _move(item: Any, device: torch.device) -> Any:
    if isinstance(item, Tensor):
        return item if item.device == device else item.to(device, non_blocking=device.type not in ("cpu", "mps"))
    moved = item.to(device)
    return item if moved is None else moved  # Some containers move in place and return nothing.


def find_batch_size(batch: Any) -> int:
    """Return the size of the first tensor's first dimension, and warn when other tensors disagree.

    Raises:
        MisconfigurationException: No tensor was found.
    """
    sizes = _sizes(batch)
    size = next(sizes, None)
    if size is None:
        raise MisconfigurationException(
            f"The batch size for an epoch's mean could not be found in a batch of type `{type(batch).__name__}`: "
            "it holds no tensor. Give it: `self.log(..., batch_size=n)`."
        )
    other = next((other for other in sizes if other != size), None)
    if other is not None:
        rank_zero_warn(
            f"Tensors of one batch have first dimensions {size} and {other}; the epoch's mean is weighted by {size}, "
            "the first one. Say which is meant: `self.log(..., batch_size=n)`."
        )
    return size


def first_size(batch: Any) -> int:
    """Return the first dimension of a batch's first tensor; 0 when it holds none."""
    first = batch[0] if type(batch) in (list, tuple) and batch else batch
    if type(first) is Tensor and (shape := first.shape):  # The usual batch, without the walk.
        return shape[0]
    return next(_sizes(batch), 0)


def _sizes(batch: Any) -> Iterator[int]:
    if isinstance(batch, Tensor):
        yield batch.size(0) if batch.dim() else 1
    elif isinstance(batch, (Mapping, list, tuple)):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _sizes(value)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for item in dataclasses.fields(batch):
            yield from _sizes(getattr(batch, item.name))
    elif getattr(batch, "num_graphs", None) is not None:  # torch_geometric: its tensors count nodes, not samples
        yield int(batch.num_graphs)
