"""Checkpoint files: whole or not at all, verified and harmless."""

from __future__ import annotations

import errno
import functools
import io
import itertools
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine.checkpoint_file import TorchCheckpointIO, newest_intact, read, write
from engine.errors import CheckpointError, EngineWarning
from engine.sealed import Checksum
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


def _checkpoint(value: float = 1.0) -> dict[str, Any]:
    state = OrderedDict(weight=torch.full((300, 300), value), bias=torch.arange(5), empty=torch.empty(0))
    return {"epoch": 3, "state_dict": state, "hyper_parameters": {"lr": 0.1}, "lr_schedulers": [{"last_lr": [0.1]}]}


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(torch.equal(first["state_dict"][key], second["state_dict"][key]) for key in first["state_dict"])


@pytest.mark.parametrize("mmap", [True, False])
def test_what_is_written_is_read(tmp_path: Path, mmap: bool) -> None:
    write(_checkpoint(), tmp_path / "new" / "folder" / "a.ckpt")
    back = read(tmp_path / "new" / "folder" / "a.ckpt", mmap=mmap)
    assert _same(back, _checkpoint())
    assert (back["epoch"], back["hyper_parameters"], back["lr_schedulers"]) == (3, {"lr": 0.1}, [{"last_lr": [0.1]}])
    assert os.listdir(tmp_path / "new" / "folder") == ["a.ckpt"]


def test_plain_torch_and_zip_tools_read_it(tmp_path: Path) -> None:
    write(_checkpoint(), tmp_path / "a.ckpt")
    assert _same(torch.load(tmp_path / "a.ckpt", weights_only=True), _checkpoint())
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        assert pickle.PROTO[0] == archive.read("archive/data.pkl")[0]


def test_changing_a_mapped_tensor_changes_no_file(tmp_path: Path) -> None:
    write(_checkpoint(), tmp_path / "a.ckpt")
    read(tmp_path / "a.ckpt")["state_dict"]["weight"].zero_()
    assert _same(read(tmp_path / "a.ckpt"), _checkpoint())


def test_the_option_of_torch_is_as_before(tmp_path: Path) -> None:
    write(_checkpoint(), tmp_path / "a.ckpt")
    assert torch.serialization.get_crc32_options()


def test_a_missing_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    write(_checkpoint(), tmp_path / "last.ckpt")
    with pytest.raises(FileNotFoundError, match=r"not found: .*lst.ckpt. Did you mean `last.ckpt`"):
        read(tmp_path / "lst.ckpt")


@pytest.mark.parametrize("content", [b"", b"PK", b"hello" * 100, b"\x80\x02junk"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        read(tmp_path / "a.ckpt")


def test_a_bare_tensor_is_refused_with_the_way_to_load_it(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds a Tensor"):
        read(tmp_path / "a.pt")


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "a.ckpt"
    write({"state_dict": {"weight": torch.arange(40)}, "epoch": 1}, path)
    return path.read_bytes()


def _is_refused(path: Path, content: bytes | bytearray) -> bool:
    path.write_bytes(content)
    try:
        read(path)
    except CheckpointError:
        return True
    return False


def test_a_flipped_bit_anywhere_is_detected(tmp_path: Path, small_file: bytes) -> None:
    missed = []
    for position in range(len(small_file)):
        changed = bytearray(small_file)
        changed[position] ^= 1 << position % 8
        if not _is_refused(tmp_path / "a.ckpt", changed):
            missed.append(position)
    assert missed == []


def test_every_bit_of_the_seal_and_the_end_record_counts(tmp_path: Path, small_file: bytes) -> None:
    missed = []
    for position in range(len(small_file) - 45, len(small_file)):
        for bit in range(8):
            changed = bytearray(small_file)
            changed[position] ^= 1 << bit
            if not _is_refused(tmp_path / "a.ckpt", changed):
                missed.append((position, bit))
    assert missed == []


def test_a_file_cut_off_anywhere_or_too_long_is_detected(tmp_path: Path, small_file: bytes) -> None:
    path = tmp_path / "a.ckpt"
    assert all(_is_refused(path, small_file[:size]) for size in range(0, len(small_file), 3))
    assert all(_is_refused(path, small_file[:-count]) for count in range(1, 60))
    assert _is_refused(path, small_file + b"\0")
    assert not _is_refused(path, small_file)


def test_lost_and_swapped_blocks_in_large_tensors_are_detected(tmp_path: Path) -> None:
    write({"state_dict": {"weight": torch.randn(200_000)}}, tmp_path / "a.ckpt")
    content = (tmp_path / "a.ckpt").read_bytes()
    zeroed = content[:409_600] + bytes(4096) + content[413_696:]
    swapped = content[:8192] + content[16384:20480] + content[12288:16384] + content[8192:12288] + content[20480:]
    assert len(zeroed) == len(swapped) == len(content)
    assert _is_refused(tmp_path / "b.ckpt", zeroed)
    assert _is_refused(tmp_path / "b.ckpt", swapped)


class _AtOnce(ThreadPoolExecutor):
    """Threads that are never late."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:  # type: ignore[override]
        done: Future[Any] = Future()
        done.set_result(function(*args))
        return done


@pytest.mark.parametrize("threads", [_AtOnce, None])
@pytest.mark.parametrize("part", [96, 512, 4096, 40_000])
@pytest.mark.parametrize("tensors", [0, 1, 60])
def test_parts_that_are_summed_while_torch_writes_are_summed_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, tensors: int, threads: Any
) -> None:
    """The archive's directory, which is changed at the end, begins in the middle of a part and fills several."""
    if threads is not None:
        monkeypatch.setattr("engine.checkpoint_file.Threads", threads)
    monkeypatch.setattr("engine.sealed._PART", part)
    monkeypatch.setattr("engine.checkpoint_file._PIECE", 100)
    written = {"state_dict": {str(i): torch.randn(1 + 7 * i) for i in range(tensors)}}
    write(written, tmp_path / "a.ckpt")
    assert _same(read(tmp_path / "a.ckpt"), written)
    changed = bytearray((tmp_path / "a.ckpt").read_bytes())
    changed[len(changed) // 2] ^= 1
    assert _is_refused(tmp_path / "b.ckpt", changed)


def test_sums_begin_before_torch_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    original = Checksum.begin
    monkeypatch.setattr("engine.sealed._PART", 1 << 20)
    monkeypatch.setattr(Checksum, "begin", lambda self, size: (begun.append(size), original(self, size))[1])
    write({"state_dict": {"weight": torch.zeros(6 << 20)}}, tmp_path / "a.ckpt")  # 24 MiB
    assert [size >> 22 for size in begun[:6]] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_file_of_plain_torch_is_detected_by_its_own_checksums(tmp_path: Path) -> None:
    torch.save(_checkpoint(), tmp_path / "a.pt")
    assert _same(read(tmp_path / "a.pt"), _checkpoint())
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[len(content) // 2] ^= 1
    assert _is_refused(tmp_path / "b.pt", content)


def test_files_older_than_the_zip_format_are_read(tmp_path: Path) -> None:
    torch.save(_checkpoint(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert _same(read(tmp_path / "a.pt"), _checkpoint())


class _Failing:
    """Makes one call of the file system fail, the n-th of its kind."""

    def __init__(self, real: Callable[..., Any], at: int, number: int) -> None:
        self.real, self.left, self.number = real, at, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise OSError(self.number, os.strerror(self.number))
        return self.real(*args, **kwargs)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_fsync_or_rename_leaves_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write(_checkpoint(), tmp_path / "a.ckpt")
    monkeypatch.setattr(os, call, _Failing(getattr(os, call), 1, errno.EIO))
    with pytest.raises(CheckpointError, match="Older checkpoints are as they were"):
        write(_checkpoint(2.0), tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == ["a.ckpt"]
    assert _same(read(tmp_path / "a.ckpt"), _checkpoint())


def test_a_disk_that_fills_up_at_any_write_leaves_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(_checkpoint(), tmp_path / "a.ckpt")
    for at in itertools.count(1):
        failing = _Failing(io.BufferedRandom.write, at, errno.ENOSPC)
        disk = type("Disk", (io.BufferedRandom,), {"write": lambda file, data, write=failing: write(file, data)})
        with monkeypatch.context() as patched:
            patched.setattr(Path, "open", lambda path, mode, disk=disk: disk(io.FileIO(path, "w+b")))
            with suppress(CheckpointError):
                write(_checkpoint(2.0), tmp_path / "a.ckpt")
        if failing.left > 0:
            break
        assert os.listdir(tmp_path) == ["a.ckpt"]
        assert _same(read(tmp_path / "a.ckpt"), _checkpoint())
    assert at > 20
    assert _same(read(tmp_path / "a.ckpt"), _checkpoint(2.0))


def test_a_name_that_the_file_system_does_not_take_is_to_be_shortened(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="too long for this file system: shorten `filename`"):
        write({"a": 1}, tmp_path / f"{'long' * 80}.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", _Failing(os.fsync, 1, errno.ENOSPC))
    with pytest.raises(CheckpointError, match=r"No space left.*Free space on this disk"):
        write(_checkpoint(), tmp_path / "a.ckpt")


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", _Failing(os.fsync, 2, errno.EINVAL))
    write(_checkpoint(), tmp_path / "a.ckpt")
    assert _same(read(tmp_path / "a.ckpt"), _checkpoint())


def test_what_cannot_be_pickled_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="picklable: look at `on_save_checkpoint`"):
        write({"state_dict": {}, "own": threading.Lock()}, tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == []


def test_an_interrupt_passes_through_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(_checkpoint(), tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == []


def test_an_interrupt_while_torch_writes_is_no_error_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch turns what is raised in its writer into an error of its own."""

    def interrupt(self: Checksum, size: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Checksum, "begin", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write({"state_dict": {"weight": torch.zeros(2 << 20)}}, tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == []


def test_tensors_that_only_pretend_leave_the_checksum_alone(tmp_path: Path) -> None:
    """`FakeTensorMode` holds in the thread that enters it."""
    write(_checkpoint(), tmp_path / "a.ckpt")
    with FakeTensorMode():  # type: ignore[no-untyped-call]
        assert read(tmp_path / "a.ckpt")["state_dict"]["weight"].shape == (300, 300)
    with FakeTensorMode(allow_non_fake_inputs=True):  # type: ignore[no-untyped-call]
        write({"epoch": 3}, tmp_path / "b.ckpt")
    assert read(tmp_path / "b.ckpt") == {"epoch": 3}


def test_what_killed_processes_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    (tmp_path / ".old.ckpt.1.partial").write_bytes(b"x")
    os.utime(tmp_path / ".old.ckpt.1.partial", (time.time() - 3600,) * 2)
    (tmp_path / ".new.ckpt.2.partial").write_bytes(b"x")
    write(_checkpoint(), tmp_path / "a.ckpt")
    assert sorted(os.listdir(tmp_path)) == [".new.ckpt.2.partial", "a.ckpt"]


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path, function: Any = os.system) -> None:
        self.path, self.function = path, function

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, (f"touch {self.path}",)


def _touch(command: str) -> None:
    Path(command.removeprefix("touch ")).touch()


@pytest.mark.parametrize("function", [os.system, exec, _touch])
@pytest.mark.parametrize("key", ["hyper_parameters", "state_dict", "callbacks"])
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, key: str, function: Any) -> None:
    proof = tmp_path / "proof"
    torch.save({"state_dict": {"w": torch.ones(2)}} | {key: {"a": Payload(proof, function)}}, tmp_path / "evil.ckpt")
    if key == "hyper_parameters":
        evil = read(tmp_path / "evil.ckpt")
        assert repr(evil["hyper_parameters"]["a"]).endswith(f".{function.__name__}, not restored>")
        assert evil["state_dict"]["w"].sum() == 2
    else:
        with pytest.raises(CheckpointError, match=rf"`checkpoint\.{key}\.a`.*weights_only=False"):
            read(tmp_path / "evil.ckpt")
    assert not proof.exists()


def test_the_payload_is_a_real_one(tmp_path: Path) -> None:
    torch.save({"a": Payload(tmp_path / "proof", _touch)}, tmp_path / "evil.ckpt")
    read(tmp_path / "evil.ckpt", weights_only=False)
    assert (tmp_path / "proof").exists()


@pytest.mark.filterwarnings("ignore:.*TorchScript:DeprecationWarning")
@pytest.mark.parametrize("kind", ["before 1.6", "tar", "bare pickle", "archive by hand", "TorchScript", "object array"])
def test_a_malicious_file_of_any_kind_runs_nothing_and_is_one_sentence(tmp_path: Path, kind: str) -> None:
    evil, path = Payload(tmp_path / "proof"), tmp_path / "evil.ckpt"
    if kind == "before 1.6":
        torch.save({"state_dict": {}, "a": evil}, path, _use_new_zipfile_serialization=False)
    elif kind == "tar":
        with tarfile.open(path, "w") as tar:
            for name in ("storages", "tensors", "pickle"):
                (tmp_path / name).write_bytes(pickle.dumps(evil))
                tar.add(tmp_path / name, name)
    elif kind == "bare pickle":
        path.write_bytes(pickle.dumps(evil))
    elif kind == "archive by hand":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(evil))
            archive.writestr("archive/version", "3")
    elif kind == "TorchScript":
        torch.jit.save(torch.jit.script(nn.Identity()), str(path))
    else:
        torch.save({"state_dict": {}, "a": np.array([evil], dtype=object)}, path)
    with pytest.raises(CheckpointError, match=r"evil\.ckpt") as refused:
        read(path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        newest_intact([path])
    assert not (tmp_path / "proof").exists()


def test_of_two_names_of_one_file_the_last_is_the_newest(tmp_path: Path) -> None:
    best, last = tmp_path / "epoch=1.ckpt", tmp_path / "last.ckpt"
    write(_checkpoint(), best)
    os.link(best, last)
    assert newest_intact([best, last], resumable=False) == newest_intact([last, best], resumable=False) == last


def test_arrays_of_numbers_come_back_without_numpys_own_way(tmp_path: Path) -> None:
    arrays = [
        np.arange(3.0),
        np.eye(2, 3, dtype="float16", order="F"),
        np.arange(6, dtype=">i4")[::2],
        np.zeros((0, 2)),
    ]
    write({"state_dict": {}, "callbacks": {"own": {"seen": arrays, "pair": (arrays[0], 1)}}}, tmp_path / "a.ckpt")
    back = read(tmp_path / "a.ckpt")["callbacks"]["own"]
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(back["seen"], arrays, strict=True))
    back["pair"][0][:] = 0.0


def test_what_cannot_be_read_back_is_said_when_it_is_saved(tmp_path: Path) -> None:
    with pytest.warns(EngineWarning, match=r"checkpoint\.callbacks\.own` \(functools.partial\).*weights_only=False"):
        write({"state_dict": {}, "callbacks": {"own": functools.partial(print)}}, tmp_path / "a.ckpt")


def test_strangers_in_parts_that_are_not_used_do_not_matter(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "callbacks": {"own": functools.partial(print)}}, tmp_path / "a.ckpt")
    assert read(tmp_path / "a.ckpt", unused={"callbacks"})["state_dict"] == {}
    assert read(tmp_path / "a.ckpt", weights_only=False)["callbacks"]["own"].func is print


def test_a_pickle_without_an_archive_needs_trust(tmp_path: Path) -> None:
    torch.save({"a": functools.partial(print)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="weights_only=False"):
        read(tmp_path / "a.pt")


def test_the_simple_io_saves_loads_and_removes(tmp_path: Path) -> None:
    storage = TorchCheckpointIO()
    storage.save_checkpoint(_checkpoint(), tmp_path / "a.ckpt")
    assert _same(storage.load_checkpoint(tmp_path / "a.ckpt"), _checkpoint())
    storage.remove_checkpoint(tmp_path / "a.ckpt")
    storage.remove_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "sharded").mkdir()
    (tmp_path / "sharded" / "part").touch()
    storage.remove_checkpoint(tmp_path / "sharded")
    storage.teardown()
    assert os.listdir(tmp_path) == []
    with pytest.raises(TypeError, match="local files, which take none"):
        storage.save_checkpoint({}, tmp_path / "a.ckpt", storage_options={"acl": "private"})


def test_no_second_copy_is_held_while_saving(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="peak memory is read the Unix way")
    checkpoint = {"state_dict": {str(index): torch.ones(1_000_000) for index in range(30)}}
    write(checkpoint, tmp_path / "a.ckpt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write(checkpoint, tmp_path / "b.ckpt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB, of 120 MB


def test_tensors_stay_in_the_file_until_they_are_used(tmp_path: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux lists what a process has mapped")
    write(_checkpoint(), tmp_path / "mapped.ckpt")
    checkpoint = read(tmp_path / "mapped.ckpt")
    assert "mapped.ckpt" in maps.read_text()
    del checkpoint
    read(tmp_path / "mapped.ckpt", mmap=False)
    assert "mapped.ckpt" not in maps.read_text()


KILLED_WRITERS = """
import os, random, signal, sys, time
import torch
from engine.checkpoint_file import read, write

torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
random.seed(0)
path = sys.argv[1]
write({"count": 0, "weights": torch.full((500_000,), 0.0)}, path)
seen = set()
for _ in range(50):
    child = os.fork()
    if child == 0:
        count = read(path)["count"]
        while True:
            count += 1
            write({"count": count, "weights": torch.full((500_000,), float(count))}, path)
    time.sleep(random.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    checkpoint = read(path)
    assert checkpoint["weights"].eq(checkpoint["count"]).all()
    seen.add(checkpoint["count"])
print(len(seen))
"""


def test_fifty_kills_inside_of_saves_leave_a_whole_file(tmp_path: Path) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("processes are forked to be killed")
    command = [sys.executable, "-c", KILLED_WRITERS, str(tmp_path / "last.ckpt")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
    assert set(os.listdir(tmp_path)) - {"last.ckpt"}  # some were killed while writing
