"""Values in checkpoints: what survives `weights_only=True`, and what is kept but never unpickled."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import enum
import functools
import os
import threading
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine.checkpoint_file import read, write
from engine.inert import Stranger, find_strangers
from engine.packing import AttributeDict, pack, unpack
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn


class Color(enum.Enum):
    """An enum whose values are no plain data."""

    RED = object()


class Level(enum.IntEnum):
    """An enum that is a number as well."""

    LOW = 1


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Frozen, nested, with a field that the constructor does not take."""

    steps: list[int]
    path: Path
    total: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", sum(self.steps))


VALUES = {
    "none": None,
    "number": 2**70,
    "complex": 1 + 2j,
    "bytes": b"\x00\xff",
    "path": Path("data") / "train",
    "enum": Color.RED,
    "int enum": Level.LOW,
    "dataclass": Schedule([1, 2], Path("a")),
    "float64": np.float64(0.1),
    "int32": np.int32(7),
    "bool_": np.bool_(True),
    "str_": np.str_("text"),
    "tuple": (1, ("a", Path("b"))),
    "set": {1, "a"},
    "set of paths": {Path("a"), Path("b")},
    "frozenset": frozenset({1, 2}),
    "range": range(2, 10, 3),
    "datetime": datetime.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
    "date": datetime.date(2024, 2, 29),
    "time": datetime.time(1, 2, 3),
    "timedelta": datetime.timedelta(days=-1, microseconds=5),
    "dtype": torch.bfloat16,
    "device": torch.device("cuda:1"),
    "size": torch.Size([2, 3]),
    "namespace": argparse.Namespace(lr=0.1, path=Path("x")),
    "attributes": AttributeDict(lr=0.1, nested=AttributeDict(depth=2)),
    "ordered": OrderedDict(b=1, a=Path("c")),
    "odd keys": {1: "a", (2, 3): Path("b"), Level.LOW: "c", None: "d"},
    "our tag": {"__kind__": "path", "value": "not a path"},
}


@pytest.mark.parametrize("kind", VALUES)
def test_common_kinds_survive_a_file_read_with_weights_only(kind: str, tmp_path: Path) -> None:
    torch.save(pack({"value": VALUES[kind]}), tmp_path / "a.pt")
    back = unpack(torch.load(tmp_path / "a.pt", weights_only=True))["value"]
    assert back == VALUES[kind]
    assert type(back) is type(VALUES[kind])


def test_arrays_and_tensors_survive() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    back = unpack(pack({"array": array, "tensor": torch.ones(2), "empty": np.empty((0, 2))}))
    assert back["array"].dtype == np.float32
    assert np.array_equal(back["array"], array)
    assert back["empty"].shape == (0, 2)
    assert torch.equal(back["tensor"], torch.ones(2))


@pytest.mark.parametrize("kind", ["none", "number", "tuple", "set", "dtype", "bytes"])
def test_plain_values_stay_as_they_are_for_other_readers(kind: str) -> None:
    value = (1, ("a", 2)) if kind == "tuple" else VALUES[kind]
    assert pack(value) == value


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
nested = st.recursive(
    plain | st.dates() | st.timedeltas(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | st.integers(), inner),
)


@settings(deadline=None)
@given(nested)
def test_any_nest_is_the_same_after_packing(value: Any) -> None:
    assert unpack(pack(value)) == value


def _double(value: int) -> int:
    return 2 * value


class Own:
    """An object that nothing knows how to store as data."""

    def __init__(self) -> None:
        self.value = 3


@pytest.mark.parametrize(
    "value", [functools.partial(_double, 1), _double, Own, nn.ReLU(), Own(), defaultdict(list, a=[1])]
)
def test_other_objects_come_back_only_when_trusted(value: Any, tmp_path: Path) -> None:
    write({"state_dict": {}, "hyper_parameters": pack({"a": [value], "lr": 1})}, tmp_path / "a.ckpt")
    packed = read(tmp_path / "a.ckpt")["hyper_parameters"]
    safe = unpack(packed)
    assert safe["lr"] == 1
    if isinstance(value, defaultdict):
        assert safe["a"] == [{"a": [1]}]
        return
    assert isinstance(safe["a"][0], Stranger)
    assert getattr(value, "__name__", type(value).__name__) in next(find_strangers(safe["a"], "a"))
    trusted = unpack(packed, weights_only=False)["a"][0]
    assert trusted is value or type(trusted) is type(value)


@pytest.mark.parametrize("value", [lambda x: x, threading.Lock()])
def test_what_no_pickle_can_hold_is_known_by_name(value: Any) -> None:
    packed = pack({"a": value})
    for weights_only in (True, False):
        assert isinstance(unpack(packed, weights_only)["a"], Stranger)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_a_payload_in_our_own_form_runs_nothing(tmp_path: Path) -> None:
    packed = pack({"a": Payload(tmp_path / "proof")})
    unpack(packed)
    assert not (tmp_path / "proof").exists()
    unpack(packed, weights_only=False)
    assert (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    "forged",
    [
        {"__kind__": "enum", "name": "os:system", "value": "x"},
        {"__kind__": "enum", "name": "antigravity:anything", "value": "x"},
        {"__kind__": "dataclass", "name": "subprocess:Popen", "value": {"args": "true"}},
        {"__kind__": "dataclass", "name": "builtins:eval", "value": {}},
        {"__kind__": "path", "value": 3},
        {"__kind__": "numpy", "dtype": "nonsense", "value": 3, "shape": []},
        {"__kind__": "pickle"},
        {"__kind__": "unheard of", "value": 1},
        {"__kind__": ["unhashable"], "value": 1},
    ],
)
def test_forged_tags_restore_nothing(forged: dict[str, Any]) -> None:
    assert isinstance(unpack({"a": forged})["a"], Stranger)


def test_a_dataclass_comes_back_without_its_constructor(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(Schedule([1, 2], Path("a")))
    monkeypatch.setattr(Schedule, "__post_init__", lambda self: pytest.fail("the constructor ran"))
    assert unpack(packed).total == 3


def test_attribute_dict() -> None:
    hparams = AttributeDict(learning_rate=0.1, depth=2)
    hparams.depth = 3
    del hparams.learning_rate
    assert hparams == {"depth": 3}
    with pytest.raises(AttributeError, match=r"No hyper-parameter `dept`\. Did you mean `depth`\? There are: `depth`"):
        _ = hparams.dept
