"""The file of what waits: torn lines, full disks, locks, and what is read twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine.loggers import _spool
from engine.loggers._spool import Spool, left_in


def drained(spool: Spool) -> list[object]:
    found: list[object] = []
    while not spool.is_sent:
        entries, position = spool.waiting()
        found += entries
        spool.mark_sent(position)
    return found


def test_what_is_written_is_read_in_order_by_the_next_process(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "a.spool.jsonl", {"key": "k"})
    spool.append([["metrics", {"a": float("nan")}], 2])
    spool.append(["損失"])
    spool.close()
    (again,) = left_in(tmp_path)
    assert again.head == {"key": "k"}
    assert [str(entry) for entry in drained(again)] == ["['metrics', {'a': nan}]", "2", "損失"]
    again.close()
    assert not tmp_path.exists(), "nothing waits, nothing is left"


def test_what_was_sent_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_spool, "CHUNK_BYTES", 40)
    spool = Spool(tmp_path / "a.spool.jsonl", {})
    spool.append([f"entry number {i}" for i in range(10)])
    first, position = spool.waiting()
    spool.mark_sent(position)
    spool.close()
    assert 0 < len(first) < 10
    (again,) = left_in(tmp_path)
    assert [*first, *drained(again)] == [f"entry number {i}" for i in range(10)]


def test_an_entry_longer_than_a_chunk_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_spool, "CHUNK_BYTES", 40)
    spool = Spool(tmp_path / "a.spool.jsonl", {})
    spool.append(["x" * 1000, 1])
    assert drained(spool) == ["x" * 1000, 1]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_cut_by_a_kill_is_dropped_and_the_file_goes_on(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.spool.jsonl"
    spool = Spool(path, {"k": 1})
    spool.append([[1, 2], [3, 4], [5, 6]])
    spool.close()
    os.truncate(path, path.stat().st_size - cut)
    again = Spool(path)
    again.append(["new"])
    whole = 3 - (cut + 5) // 6
    assert drained(again) == [*[[1, 2], [3, 4], [5, 6]][:whole], "new"]


def test_two_processes_never_share_a_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "a.spool.jsonl", {})
    spool.append([1])
    assert left_in(tmp_path) == []
    spool.close()
    (left,) = left_in(tmp_path)
    left.close()


def test_a_full_disk_leaves_whole_lines_only(tmp_path: Path) -> None:
    """The kernel's own refusal: this process may write files of 300 bytes and no more."""
    code = (
        "import sys, resource, pathlib\n"
        f"sys.path.insert(0, {str(Path(_spool.__file__).parents[2])!r})\n"
        "from engine.loggers._spool import Spool\n"
        f"spool = Spool(pathlib.Path({str(tmp_path)!r}) / 'a.spool.jsonl', {{}})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "spool.append(['x' * 100])\n"
        "try: spool.append(['y' * 100, 'z' * 200])\n"
        "except OSError as error: print(error.errno)\n"
        "spool.append(['small'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "27"
    assert (tmp_path / "a.spool.jsonl").read_text().splitlines() == ["{}", f'"{"x" * 100}"', '"small"']


def test_a_full_disk_is_left_without_empty_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        Spool(tmp_path / "a.spool.jsonl", {})
    assert list(tmp_path.iterdir()) == []


def test_a_spoilt_file_and_a_spoilt_line_hold_up_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of a machine that lost its power: zeros where lines were, and a note of how much was sent that is no number."""
    for name in ("a", "b", "d"):
        spool = Spool(tmp_path / f"{name}.spool.jsonl", {"of": name})
        spool.append([1, 2, 3])
        spool.close(keep=True)
    (tmp_path / "a.spool.jsonl").write_bytes(b"\0" * 50 + b"\n[1]\n")
    lines = (tmp_path / "b.spool.jsonl").read_bytes().replace(b"2\n", b"\0\n")
    (tmp_path / "b.spool.jsonl").write_bytes(lines)
    (tmp_path / "c.spool.jsonl").touch()
    (tmp_path / "d.spool.jsonl.sent").write_bytes(b"\0\0")
    found = {spool.head["of"]: drained(spool) for spool in left_in(tmp_path)}
    assert found == {"b": [1, 3], "d": [1, 2, 3]}
    assert f"{tmp_path / 'a.spool.jsonl'} cannot be read" in caplog.text
    assert f"A line of {tmp_path / 'b.spool.jsonl'} cannot be read" in caplog.text
    assert not (tmp_path / "c.spool.jsonl").exists()


def test_a_file_system_without_locks_keeps_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLocks:
        LOCK_EX = LOCK_NB = 0

        def flock(self, fd: int, operation: int) -> None:
            raise OSError(95, "Operation not supported")

    monkeypatch.setattr(_spool, "fcntl", NoLocks())
    spool = Spool(tmp_path / "a.spool.jsonl", {})
    spool.append([1])
    assert drained(spool) == [1]


def test_a_note_that_a_full_disk_took_half_is_left_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(self: Path, text: str) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    spool = Spool(tmp_path / "unsent" / "a.spool.jsonl", {})
    spool.append([1])
    monkeypatch.setattr(Path, "write_text", half)
    assert drained(spool) == [1]
    spool.close()
    assert list(tmp_path.iterdir()) == []
