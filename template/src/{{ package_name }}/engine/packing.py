"""Any value as data that a checkpoint can hold and `weights_only=True` can load.

Owns: the form of hyper-parameters in a checkpoint. Does not own: where they come from (`hparams`).

Plain values are stored as they are, which Lightning reads as well. Other well-known kinds become a dict under `_KIND`.
What is neither (functions, classes, partials, own objects) is kept as pickled bytes inside a tensor, which nothing
unpickles unless the user says `weights_only=False`.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import enum
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from .errors import did_you_mean
from .inert import Stranger

_KIND = "__kind__"
_PLAIN = (NoneType, bool, int, float, complex, str, bytes, Tensor, nn.Parameter, torch.dtype, torch.device, torch.Size)


class AttributeDict(dict[str, Any]):
    """A dict whose items are attributes as well.

    >>> AttributeDict(lr=0.1).lr
    0.1
    """

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        known = ", ".join(f"`{key}`" for key in self) or "none"
        raise AttributeError(f"No hyper-parameter `{name}`.{did_you_mean(name, map(str, self))} There are: {known}.")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]


_KINDS: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    datetime.timedelta: (lambda t: [t.days, t.seconds, t.microseconds], lambda parts: datetime.timedelta(*parts)),
    range: (lambda numbers: [numbers.start, numbers.stop, numbers.step], lambda parts: range(*parts)),
    argparse.Namespace: (vars, lambda items: argparse.Namespace(**items)),
    **{kind: (list, kind) for kind in (set, frozenset)},
    **{kind: (kind.isoformat, kind.fromisoformat) for kind in (datetime.datetime, datetime.date, datetime.time)},
}
"""Type -> how it is taken apart, and made again; in a file it goes by its name in lower case."""
_MAKE = {kind.__name__.lower(): make for kind, (_, make) in _KINDS.items()}
_MAKE |= {"path": Path, "mapping": AttributeDict, "dict": dict}


def pack(value: Any) -> Any:
    """Return hyper-parameters, or any part of them, in the form that a checkpoint holds and `weights_only=True` loads.

    Args:
        value: Plain values, tensors and dtypes stay; lists, tuples, sets and dicts are walked; paths, enums,
            dataclasses, dates, numpy numbers and arrays, namespaces become tagged dicts; all else pickled bytes.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind in (list, tuple):
        return kind(pack(item) for item in value)
    if kind in (dict, OrderedDict) and _KIND not in value and all(type(key) in _PLAIN for key in value):
        return kind((key, pack(item)) for key, item in value.items())
    if kind is set and all(type(item) in _PLAIN for item in value):
        return value
    tagged = _tag(value)
    if tagged is None:
        tagged = {_KIND: "pickle", "name": _full_name(value if hasattr(value, "__qualname__") else kind)}
        with suppress(Exception):  # a lambda, a lock: known by name only
            tagged["value"] = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
    return tagged


def _full_name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}:{thing.__qualname__}"


def _tag(value: Any) -> dict[str, Any] | None:
    kind = type(value)
    if isinstance(value, enum.Enum) and value.name in kind.__members__:
        return {_KIND: "enum", "name": _full_name(kind), "value": value.name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: pack(getattr(value, f.name)) for f in dataclasses.fields(value) if hasattr(value, f.name)}
        return {_KIND: "dataclass", "name": _full_name(kind), "value": fields}
    if isinstance(value, PurePath):
        return {_KIND: "path", "value": str(value)}
    if kind in _KINDS:
        return {_KIND: kind.__name__.lower(), "value": pack(_KINDS[kind][0](value))}
    if isinstance(value, Mapping):
        is_open = all(isinstance(key, str) for key in value)
        return {
            _KIND: "mapping" if is_open and kind is not dict else "dict",
            "value": [[pack(k), pack(v)] for k, v in value.items()],
        }
    numpy = sys.modules.get("numpy")
    if (
        numpy
        and isinstance(value, (numpy.generic, numpy.ndarray))
        and value.dtype.kind in "biufcUS"
        and value.dtype.char not in "gG"
    ):
        return {_KIND: "numpy", "dtype": value.dtype.str, "value": value.tolist(), "shape": list(value.shape)}
    return None


def unpack(value: Any, weights_only: bool = True) -> Any:
    """Return what `pack` was given, or what Lightning stored; a `Stranger` in the place of what cannot be restored.

    Nothing is imported and no code of the file is run. Enums and dataclasses are restored when their module is already
    imported; a dataclass gets its fields without its constructor.

    Args:
        value: The packed form.
        weights_only: False: unpickle the pickled parts, which can run any code.
    """
    if isinstance(value, (list, tuple, set)) and type(value) in (list, tuple, set):
        return type(value)(unpack(item, weights_only) for item in value)
    if not isinstance(value, dict):
        return value
    if _KIND not in value:
        items = ((key, unpack(item, weights_only)) for key, item in value.items())
        return type(value)(items) if type(value) in (dict, OrderedDict) else AttributeDict(items)
    try:
        return _restore(value, weights_only)
    except (KeyError, TypeError, ValueError, AttributeError, LookupError):
        stranger = Stranger()
        stranger.origin = str(value.get("name", value[_KIND])).replace(":", ".")
        return stranger


def _restore(tagged: dict[str, Any], weights_only: bool) -> Any:
    kind = tagged[_KIND]
    if kind == "pickle":
        if weights_only:
            raise LookupError("not unpickled")
        return pickle.loads(bytes(tagged["value"].tolist()))
    value = unpack(tagged["value"], weights_only)
    if kind == "enum":
        return _imported(tagged["name"], enum.Enum).__members__[value]
    if kind == "dataclass":
        return _restore_dataclass(_imported(tagged["name"], object), value)
    if kind == "numpy":
        numpy = sys.modules["numpy"]
        array = numpy.array(value, dtype=tagged["dtype"]).reshape(tagged["shape"])
        return array if tagged["shape"] else array[()]
    return _MAKE[kind](value)


def _imported(name: str, base: type) -> Any:
    """Return a class of a module that is already imported, without running a module's `__getattr__`."""
    module, _, path = name.partition(":")
    found: Any = sys.modules[module]
    for part in path.split("."):
        found = vars(found)[part]
    if not (isinstance(found, type) and issubclass(found, base)):
        raise TypeError(f"{name} is not a class of that kind")
    return found


def _restore_dataclass(cls: Any, values: dict[str, Any]) -> Any:
    restored = object.__new__(cls)
    for field in dataclasses.fields(cls):
        if field.name in values:
            object.__setattr__(restored, field.name, values[field.name])
    return restored
