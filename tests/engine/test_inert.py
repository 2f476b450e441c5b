"""Pickles of Lightning, read without Lightning and without running anything."""

from __future__ import annotations

import argparse
import datetime
import functools
import pickle
import sys
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from engine.checkpoint_file import read
from engine.errors import CheckpointError
from engine.inert import Stranger, find_strangers, read_inert
from torch import nn


def _foreign_class(module: str, name: str, *bases: type) -> Any:
    """Make a class that can be pickled now and not imported later; call `_forget` in between."""
    made = ModuleType(module)
    made.__dict__[name] = cls = type(name, bases or (object,), {"__module__": module, "__qualname__": name})
    sys.modules[module] = made
    return cls


def _forget(*modules: str) -> None:
    for module in modules:
        del sys.modules[module]


def _hyper_parameters(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    torch.save({"state_dict": {"w": torch.ones(2)}, "hyper_parameters": values}, path)
    checkpoint = read(path)
    assert torch.equal(checkpoint["state_dict"]["w"], torch.ones(2))
    return dict(checkpoint["hyper_parameters"])


def test_known_kinds_are_restored(tmp_path: Path) -> None:
    values = {
        "partial": functools.partial(print),
        "path": Path("a/b"),
        "when": datetime.datetime(2024, 1, 2),
        "delta": datetime.timedelta(1),
        "namespace": argparse.Namespace(lr=0.1),
        "ordered": OrderedDict(a=1),
        "counter": Counter("aab"),
        "deque": deque([1, 2]),
        "set": {1, "a"},
        "frozenset": frozenset({1}),
        "bytes": b"\xff\x00",
        "range": range(3),
        "float64": np.float64(0.5),
        "int64": np.int64(-3),
        "big endian": np.array([258], dtype=">i4")[0],
        "bool_": np.bool_(True),
        "default": defaultdict(list, a=[1]),
        "dtype": torch.float16,
        "tensor": torch.arange(3),
        "parameter": nn.Parameter(torch.ones(1)),
    }
    back = _hyper_parameters(tmp_path / "a.ckpt", values)
    assert isinstance(back.pop("partial"), Stranger)
    assert torch.equal(back.pop("tensor"), torch.arange(3))
    assert isinstance(back.pop("parameter"), nn.Parameter)
    assert {key: value == values[key] for key, value in back.items()} == dict.fromkeys(back, True), back


def test_classes_that_are_not_installed_become_strangers(tmp_path: Path) -> None:
    attributes = _foreign_class("lightning_gone", "AttributeDict", dict)
    config = _foreign_class("omegaconf_gone", "DictConfig", dict)
    items = _foreign_class("list_gone", "ListConfig", list)
    values = {"nested": attributes(lr=0.1), "config": config(a=1), "list": items([1]), "module": nn.Linear(2, 2)}
    torch.save({"state_dict": {}, "hyper_parameters": attributes(values)}, tmp_path / "a.ckpt")
    _forget("lightning_gone", "omegaconf_gone", "list_gone")
    back = read(tmp_path / "a.ckpt")["hyper_parameters"]
    assert back["nested"] == {"lr": 0.1}
    assert list(find_strangers(back, "hp")) == [
        "`hp.config` (omegaconf_gone.DictConfig)",
        "`hp.list` (list_gone.ListConfig)",
        "`hp.module` (torch.nn.modules.linear.Linear)",
    ]
    assert repr(back["config"]) == "<omegaconf_gone.DictConfig, not restored>"


class _Reduced:
    """Pickles as the call that it is given."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def test_what_numpy_holds_besides_numbers_is_named_by_its_kind(tmp_path: Path) -> None:
    torch.save({"a": np.array(["x"]), "b": np.datetime64("2020-01-01"), "c": np.float32(0.5)}, tmp_path / "a.pt")
    back = read_inert(tmp_path / "a.pt")
    assert list(find_strangers(back, "at")) == ["`at.a` (numpy, dtype U1)", "`at.b` (numpy, dtype M8)"]
    assert back["c"] == 0.5


def test_chains_of_calls_and_states_do_nothing(tmp_path: Path) -> None:
    proof = str(tmp_path / "proof")
    opened = _Reduced(open, (proof, "w"))
    values = {
        "getattr": _Reduced(getattr, (_Reduced(__import__, ("os",)), "system")),
        "eval": _Reduced(eval, (f"open({proof!r}, 'w')",)),
        "inside": functools.partial(opened.reduced[0], proof, "w"),
        "state": _Reduced(functools.partial, (print,), {"func": opened}),
        "apply": _Reduced(map, (open, [proof])),
    }
    back = _hyper_parameters(tmp_path / "a.ckpt", values)
    assert all(isinstance(value, Stranger) for value in back.values())
    assert not Path(proof).exists()


def test_a_state_set_on_a_function_changes_nothing_of_ours(tmp_path: Path) -> None:
    before = torch._utils._rebuild_tensor_v2.__defaults__
    function, state = b"ctorch._utils\n_rebuild_tensor_v2\n", b"N}X\x0c\x00\x00\x00__defaults__)s\x86"
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}X\x01\x00\x00\x00a" + function + state + b"bs.")
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    with pytest.raises(CheckpointError, match="__defaults__"):
        read(tmp_path / "a.ckpt")
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


def test_only_archives_are_read_this_way(tmp_path: Path) -> None:
    torch.save({"a": functools.partial(print)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(pickle.UnpicklingError, match="only archives"):
        read_inert(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="TorchScript"):
        read(tmp_path / "a.pt")
