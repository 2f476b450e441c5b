"""Checkpoints in the background: what the next step cannot change, one at a time, and what goes wrong comes up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import checkpoint_async
from engine.checkpoint_async import AsyncCheckpointIO, HostMemory, snapshot
from engine.checkpoint_file import CheckpointIO, TorchCheckpointIO, read, write
from engine.errors import CheckpointError
from torch import nn

from tests.parity.framework import ENGINE_ROOT


def checkpoint(value: float = 1.0) -> dict[str, Any]:
    state = OrderedDict(weight=torch.full((300, 300), value), bias=torch.arange(5), empty=torch.empty(0))
    return {"state_dict": state, "lr_schedulers": [{"last_lr": [0.1]}]}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(torch.equal(first["state_dict"][key], second["state_dict"][key]) for key in first["state_dict"])


class _Slow(CheckpointIO):
    """Writes when told to, and fails once where it has an error; counts what is under way."""

    def __init__(self) -> None:
        self.may_write = threading.Event()
        self.running = self.most = 0
        self.error: Exception | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        assert self.may_write.wait(10)
        self.running -= 1
        error, self.error = self.error, None
        if error is not None:
            raise error
        super().save_checkpoint(checkpoint, path)


def test_the_next_step_cannot_change_an_asynchronous_save(tmp_path: Path) -> None:
    slow = _Slow()
    storage = AsyncCheckpointIO(slow)
    changed = checkpoint()
    storage.save_checkpoint(changed, tmp_path / "a.ckpt")
    changed["state_dict"]["weight"].zero_()
    changed["lr_schedulers"][0]["last_lr"].append(7)
    slow.may_write.set()
    assert storage.load_checkpoint(tmp_path / "a.ckpt")["lr_schedulers"] == [{"last_lr": [0.1]}]
    storage.teardown()
    assert same(read(tmp_path / "a.ckpt"), checkpoint())


def test_at_most_one_asynchronous_save_is_under_way(tmp_path: Path) -> None:
    slow = _Slow()
    storage = AsyncCheckpointIO(slow)
    storage.save_checkpoint(checkpoint(), tmp_path / "a.ckpt")
    threading.Timer(0.05, slow.may_write.set).start()
    storage.save_checkpoint(checkpoint(), tmp_path / "b.ckpt")
    storage.teardown()
    assert slow.most == 1
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt", "b.ckpt"]


@pytest.mark.parametrize("next_call", ["save", "load", "teardown"])
def test_an_error_in_the_background_comes_up_at_the_next_call(tmp_path: Path, next_call: str) -> None:
    write(checkpoint(), tmp_path / "old.ckpt")
    slow = _Slow()
    slow.may_write.set()
    slow.error = CheckpointError("disk full")
    storage = AsyncCheckpointIO(slow)
    storage.save_checkpoint(checkpoint(), tmp_path / "a.ckpt")
    storage.remove_checkpoint(tmp_path / "old.ckpt")
    calls: dict[str, Callable[[], Any]] = {
        "save": lambda: storage.save_checkpoint(checkpoint(), tmp_path / "b.ckpt"),
        "load": lambda: storage.load_checkpoint(tmp_path / "old.ckpt"),
        "teardown": storage.teardown,
    }
    with pytest.raises(CheckpointError, match="disk full"):
        calls[next_call]()
    storage.teardown()
    assert sorted(os.listdir(tmp_path)) == [*(["b.ckpt"] if next_call == "save" else []), "old.ckpt"]


def test_a_removal_waits_for_the_save_before_it(tmp_path: Path) -> None:
    write(checkpoint(), tmp_path / "old.ckpt")
    slow = _Slow()
    storage = AsyncCheckpointIO(slow)
    storage.save_checkpoint(checkpoint(), tmp_path / "new.ckpt")
    storage.remove_checkpoint(tmp_path / "old.ckpt")
    assert (tmp_path / "old.ckpt").exists()
    slow.may_write.set()
    storage.teardown()
    assert os.listdir(tmp_path) == ["new.ckpt"]
    storage.remove_checkpoint(tmp_path / "new.ckpt")
    assert os.listdir(tmp_path) == []


def test_a_snapshot_keeps_sharing_views_and_kinds() -> None:
    layer = nn.Linear(4, 4)
    state = layer.state_dict()
    value = {"state": state, "tied": layer.weight, "row": layer.weight[1], "nest": [1, (torch.ones(2), "a")]}
    value |= {"sparse": torch.eye(3).to_sparse(), "conj": torch.ones(2, dtype=torch.complex64).conj()}
    copied = snapshot(value, HostMemory())
    assert type(copied["state"]) is type(state)
    assert copied["state"]._metadata == state._metadata  # type: ignore[attr-defined]
    assert copied["tied"].requires_grad
    assert copied["nest"][1][1] == "a"
    assert torch.equal(copied["sparse"].to_dense(), torch.eye(3))
    with torch.no_grad():
        layer.weight.zero_()
        copied["state"]["weight"][1, 2] = 5.0
    assert copied["row"][2] == copied["tied"][1, 2] == 5.0
    assert copied["state"]["weight"].abs().sum() > 5.0


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where in memory the weight lay at each writing."""
    found: list[int] = []

    def note(copied: dict[str, Any], path: Path) -> None:
        found.append(copied["state_dict"]["weight"].data_ptr())
        write(copied, path)

    monkeypatch.setattr("engine.checkpoint_file.write", note)
    return found


def test_the_memory_of_a_copy_is_used_again_until_the_end(tmp_path: Path, places: list[int]) -> None:
    storage = AsyncCheckpointIO()
    for value in (1.0, 2.0, 3.0):
        storage.save_checkpoint(checkpoint(value), tmp_path / f"{value}.ckpt")
    storage.teardown()
    assert len(set(places)) == 1
    assert all(same(read(tmp_path / f"{value}.ckpt"), checkpoint(value)) for value in (1.0, 2.0, 3.0))
    assert storage._memory.copies == storage._memory.free == {}


def test_a_tensor_of_another_size_gets_memory_of_its_own(tmp_path: Path) -> None:
    storage = AsyncCheckpointIO()
    for size in (5, 3, 7, 5):
        storage.save_checkpoint({"state_dict": {"a": torch.ones(size), "b": torch.zeros(size)}}, tmp_path / "a.ckpt")
    assert storage.load_checkpoint(tmp_path / "a.ckpt")["state_dict"]["a"].tolist() == [1.0] * 5
    assert storage.load_checkpoint(tmp_path / "a.ckpt")["state_dict"]["b"].tolist() == [0.0] * 5
    storage.teardown()


def test_what_somebody_else_s_storage_was_given_stays_as_it_was() -> None:
    class Keeping(CheckpointIO):
        kept: list[Any] = []  # noqa: RUF012

        def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
            self.kept.append(checkpoint)

    storage = AsyncCheckpointIO(Keeping())
    for value in (1.0, 2.0):
        storage.save_checkpoint(checkpoint(value), "nowhere.ckpt")
    storage.teardown()
    assert [kept["state_dict"]["weight"][0, 0].item() for kept in Keeping.kept] == [1.0, 2.0]


def test_an_interrupt_while_a_save_is_waited_for_leaves_that_save_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()
    monkeypatch.setattr("engine.checkpoint_file.write", lambda copied, path: may_write.wait(10) and write(copied, path))
    storage = AsyncCheckpointIO()
    storage.save_checkpoint(checkpoint(1.0), tmp_path / "a.ckpt")
    threading.Timer(0.3, signal.pthread_kill, (threading.get_ident(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        storage.save_checkpoint(checkpoint(2.0), tmp_path / "b.ckpt")
    threading.Timer(0.3, may_write.set).start()
    storage.save_checkpoint(checkpoint(3.0), tmp_path / "c.ckpt")
    storage.teardown()
    assert same(read(tmp_path / "a.ckpt"), checkpoint(1.0))
    assert same(read(tmp_path / "c.ckpt"), checkpoint(3.0))


def test_memory_serves_within_a_validation_and_outside_of_one(tmp_path: Path) -> None:
    """Torch lets a tensor made in inference mode be changed there alone."""
    storage = AsyncCheckpointIO()
    for is_validating in (True, False, True):
        with torch.inference_mode(is_validating):
            storage.save_checkpoint(checkpoint(), tmp_path / "a.ckpt")
        assert same(storage.load_checkpoint(tmp_path / "a.ckpt"), checkpoint())
    storage.teardown()


def test_a_copy_that_fails_is_no_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: torch.Tensor, *_: Any) -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr(torch.Tensor, "copy_", fail)
    with pytest.raises(RuntimeError, match="no more memory"):
        snapshot(checkpoint(), HostMemory())


def test_threads_that_an_interrupt_left_copying_do_not_reach_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C ends the wait for the threads of the copy that the first one broke off."""
    may_copy, move = threading.Event(), checkpoint_async._move
    late: list[threading.Thread] = []

    def interrupted(host: torch.Tensor, storage: torch.UntypedStorage) -> None:
        late.append(threading.Thread(target=lambda: (may_copy.wait(10), move(host, storage))))
        late[-1].start()
        raise KeyboardInterrupt

    def state(value: float) -> dict[str, Any]:
        return {"state_dict": {str(i): torch.full((1 << 20,), value + i) for i in range(3)}}

    storage = AsyncCheckpointIO()
    storage.save_checkpoint(state(0.0), tmp_path / "first.ckpt")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_async, "_move", interrupted)
        with pytest.raises(KeyboardInterrupt):
            storage.save_checkpoint(state(10.0), tmp_path / "broken-off.ckpt")
    slow = storage.checkpoint_io = TorchCheckpointIO()
    slow.save_checkpoint = lambda *given: (may_copy.wait(10), [each.join() for each in late], write(*given))  # type: ignore[assignment, method-assign]
    storage.save_checkpoint(state(20.0), tmp_path / "next.ckpt")
    may_copy.set()
    storage.teardown()
    assert sorted(os.listdir(tmp_path)) == ["first.ckpt", "next.ckpt"]
    assert same(read(tmp_path / "next.ckpt"), state(20.0))


def test_small_tensors_are_copied_without_asking_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    monkeypatch.setattr(checkpoint_async, "_move", lambda host, storage: moved.append(storage.nbytes()))
    snapshot({"small": torch.zeros(1000), "large": torch.zeros(1 << 20)}, HostMemory())
    assert moved == [4 << 20]


_AT_EXIT = """
import atexit, sys, torch
from engine.checkpoint_async import AsyncCheckpointIO
from engine.checkpoint_file import write
state = {"state_dict": {"weight": torch.arange(8 << 20)}}
at_exit, in_background = sys.argv[1:]
AsyncCheckpointIO().save_checkpoint(state, in_background)
atexit.register(write, state, at_exit)
"""


def test_a_large_file_is_written_while_the_interpreter_ends(tmp_path: Path) -> None:
    """No thread can be started then."""
    files = [tmp_path / "at-exit.ckpt", tmp_path / "in-background.ckpt"]
    command = [sys.executable, "-c", _AT_EXIT, *map(str, files)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ENGINE_ROOT)}, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [read(file)["state_dict"]["weight"][-1].item() for file in files] == [(8 << 20) - 1] * 2
