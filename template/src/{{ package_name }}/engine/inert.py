"""Read a pickled checkpoint without running anything in it.

Owns: an unpickler that knows a short list of harmless kinds, and puts a `Stranger` in the place of everything else.
Does not own: when it is used (`checkpoint_file`: after torch's own safe loader has refused a file), and what becomes of
the strangers (`hparams`).

Files of Lightning hold whatever `save_hyperparameters` found: attribute dicts, partials, whole modules. Neither
Lightning nor the project that wrote them need be installed, and a file made to do harm does nothing.
"""

from __future__ import annotations

import argparse
import codecs
import datetime
import pickle
import struct
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch


class Stranger:
    """Stands for an object that was not restored. Knows the name of its class or function, and does nothing.

    Attributes:
        origin: Dotted name in the file.
    """

    origin: str = "unknown"

    def __new__(cls, *args: object, **kwargs: object) -> Stranger:
        return object.__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> Stranger:
        return self

    def __repr__(self) -> str:
        return f"<{self.origin}, not restored>"

    def _ignore(self, *args: object) -> None:
        pass

    # What a pickle may do to an object after it is made.
    __setstate__ = __setitem__ = append = extend = add = _ignore


def find_strangers(value: Any, where: str) -> Iterator[str]:
    """Name every stranger in a nest of dicts, lists, tuples and sets, with its place."""
    if isinstance(value, Stranger) or (isinstance(value, type) and issubclass(value, Stranger)):
        yield f"`{where}` ({value.origin})"
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from find_strangers(key, where)
            yield from find_strangers(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from find_strangers(item, where)


class _Constructor:
    """Calls a harmless function; has nothing that a pickle could set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _NumpyType:
    """The dtype of a pickled numpy number or array."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def number(self, raw: bytes) -> Any:
        """Return the python number, a `Stranger` for kinds that python has no number for."""
        unknown = _subclass(Stranger, origin=f"numpy, dtype {self.code}")
        return struct.unpack(self.order + _NUMBERS[self.code], raw)[0] if self.code in _NUMBERS else unknown()


def _numpy_array(shape: tuple[int, ...], kind: Any, is_fortran: bool, raw: bytes) -> Any:
    """Return an array of numbers, a `Stranger` for one of anything else. numpy's own way makes any object."""
    numpy = sys.modules.get("numpy")
    code, order = (kind.code, kind.order) if type(kind) is _NumpyType else ("", "")
    if numpy is None or code not in _NUMBERS or not isinstance(raw, bytes):
        return _subclass(Stranger, origin=f"numpy, dtype {code}")()
    return numpy.frombuffer(bytearray(raw), order + code).reshape(shape, order="F" if is_fortran else "C")


class _NumpyArray:
    """What numpy's `_reconstruct` makes, empty; the state that follows it in the pickle fills it."""

    def __init__(self, *_: object) -> None:
        self.array: Any = Stranger()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.array = _numpy_array(*state[1:])


_NUMBERS = dict(
    zip(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"), "efdbhiqBHIQ?", strict=True)
)


def _subclass(base: type, name: str = "", **members: Any) -> type:
    """Return a new class, so that what a pickle sets on it touches no other."""
    return type(name or base.__name__, (base,), members)


_PATH_NAMES = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_REBUILD = ("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state", "sparse_tensor", "qtensor")
_HARMLESS: dict[str, Callable[..., Any]] = {
    **{f"torch._utils._rebuild_{name}": getattr(torch._utils, f"_rebuild_{name}") for name in _REBUILD},
    **{f"builtins.{kind.__name__}": kind for kind in (set, frozenset, bytes, bytearray, complex, range, slice)},
    **{f"collections.{kind.__name__}": kind for kind in (OrderedDict, Counter, deque)},
    **{f"datetime.{kind}": getattr(datetime, kind) for kind in ("datetime", "date", "time", "timedelta", "timezone")},
    **{f"{module}.{name}": Path for module in ("pathlib", "pathlib._local") for name in _PATH_NAMES},
    **{f"numpy.{core}.multiarray.scalar": lambda kind, raw: kind.number(raw) for core in ("core", "_core")},
    "numpy.dtype": _NumpyType,
    **{f"numpy.{core}.multiarray._reconstruct": _NumpyArray for core in ("core", "_core")},
    "collections.defaultdict": lambda factory=None: {},
    "builtins.xrange": range,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "torch.serialization._get_layout": torch.serialization._get_layout,
    "_codecs.encode": codecs.encode,
}


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # as Python 2 wrote it, and torch still does
        full_name = f"{module}.{name}"
        if full_name in _HARMLESS:
            return _Constructor(_HARMLESS[full_name])
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if full_name == "argparse.Namespace":
            return _subclass(argparse.Namespace)
        if name == "AttributeDict":  # of any Lightning
            return _subclass(dict, name)
        return _subclass(Stranger, name, origin=full_name)


def _refuse(*args: object, **kwargs: object) -> Any:
    raise pickle.UnpicklingError("only archives of torch 1.6 and later are read without running them")


def read_inert(path: Path, **options: Any) -> Any:
    """Load a file of `torch.save` with every unknown object replaced by a `Stranger`.

    Args:
        path: A zip archive; others, and TorchScript, are refused.
        **options: `map_location` and `mmap` of `torch.load`.
    """
    pickle_module = SimpleNamespace(Unpickler=_InertUnpickler, load=_refuse, __name__="inert")
    return _with_arrays(torch.load(path, weights_only=False, pickle_module=pickle_module, **options))


def _with_arrays(value: Any) -> Any:
    """Put the arrays in the place of what stood for them, in dicts, lists and tuples."""
    if type(value) is _NumpyArray:
        return value.array
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _with_arrays(item)
    elif isinstance(value, list):
        value[:] = map(_with_arrays, value)
    elif type(value) is tuple:
        return tuple(map(_with_arrays, value))
    return value
