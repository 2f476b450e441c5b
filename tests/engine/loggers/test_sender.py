"""The background sender: order, retries, time limits, and a disk that takes nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine.loggers import _sender
from engine.loggers._sender import BackgroundSender
from engine.loggers._spool import Spool

Make = Callable[..., BackgroundSender]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(send: Callable[[list[Any]], Any], name: str = "test") -> BackgroundSender:
        return BackgroundSender(send, lambda: Spool(tmp_path / "unsent" / "a.spool.jsonl", {}), name, interval_s=0.01)

    return make


def test_entries_arrive_in_order_and_once_and_leave_nothing(make: Make, tmp_path: Path) -> None:
    got: list[int] = []
    sender = make(got.extend)
    for i in range(1000):
        sender.put(i)
    assert sender.flush(20)
    assert got == list(range(1000))
    sender.close(1)
    assert list(tmp_path.iterdir()) == []


def test_failed_entries_are_sent_again_with_those_that_came_since(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    got: list[int] = []
    down = threading.Event()
    down.set()

    def send(entries: list[int]) -> None:
        if down.is_set():
            raise ConnectionError("nobody there\nmore lines")
        got.extend(entries)

    sender = make(send)
    sender.put(1)
    assert not sender.flush(20), "a failed attempt ends the waiting"
    assert sender.failing
    sender.put(2)
    assert sender.keep(20)
    down.clear()
    end = time.monotonic() + 20
    while not sender.flush(1) and time.monotonic() < end:
        pass
    assert got == [1, 2]
    assert not sender.failing
    assert [record.message.split(". ")[0] for record in caplog.records] == [
        "test takes nothing now (nobody there)",
        "test takes it again; what waited is sent.",
    ]


def test_close_waits_no_longer_than_asked_and_what_waits_is_on_disk(make: Make, tmp_path: Path) -> None:
    release = threading.Event()
    got: list[int] = []
    sender = make(lambda entries: release.wait(60) and got.extend(entries), "slow")
    sender.put(1)
    sender.put(2)
    start = time.monotonic()
    sender.close(0.3)
    assert time.monotonic() - start < 5
    assert (tmp_path / "unsent" / "a.spool.jsonl").read_text().splitlines() == ["{}", "1", "2"]
    sender.put(3)
    release.set()
    assert sender.flush(20), "what came after the close is sent"
    assert got == [1, 2, 3]


def test_a_disk_that_refuses_costs_no_entry_while_the_server_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def full() -> Spool:
        raise OSError(28, "No space left on device")

    got: list[int] = []
    sender = BackgroundSender(got.extend, full, "test", interval_s=0.01)
    for i in range(5000):
        sender.put(i)
    assert sender.flush(20)
    assert got == list(range(5000))
    assert caplog.text.count("kept in memory only") == 1


def test_an_outage_of_days_does_not_end_the_sending(make: Make) -> None:
    """Two to the power of a thousand failures is more seconds than a float holds."""
    got: list[int] = []
    attempts = 0

    def send(entries: list[int]) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 1200:
            raise ConnectionError
        got.extend(entries)

    sender = make(send)
    sender._interval_s = 0.0
    sender.put(1)
    end = time.monotonic() + 60
    while not got and time.monotonic() < end:
        time.sleep(0.01)
    assert got == [1]


def test_one_cause_is_said_once_for_all_senders_and_the_cause_is_what_lies_at_the_bottom(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def send(entries: list[int]) -> None:
        try:
            raise ConnectionRefusedError("nobody there")
        except OSError:
            raise RuntimeError("API request failed with exception ...")  # noqa: B904 (as MLflow does it)

    troubles: dict[BackgroundSender, str] = {}
    for name in ("a", "b"):
        sender = BackgroundSender(
            send, lambda name=name: Spool(tmp_path / f"{name}.spool.jsonl", {}), "test", 0.01, troubles
        )
        sender.put(1)
        assert not sender.flush(20)
    assert [record.message.split(". ")[0] for record in caplog.records] == ["test takes nothing now (nobody there)"]


def test_a_disk_that_has_room_again_gets_what_it_refused(make: Make, tmp_path: Path) -> None:
    room = threading.Event()

    def open_spool() -> Spool:
        if not room.is_set():
            raise OSError(28, "No space left on device")
        return Spool(tmp_path / "a.spool.jsonl", {})

    def send(entries: list[int]) -> None:
        raise ConnectionError("nobody there")

    sender = BackgroundSender(send, open_spool, "test", interval_s=0.01)
    for i in range(2500):
        sender.put(i)
    assert sender.keep(20)
    room.set()
    end = time.monotonic() + 20
    while not (tmp_path / "a.spool.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert sender.close(1) == str(tmp_path)
    assert (tmp_path / "a.spool.jsonl").read_text().split() == ["{}", *map(str, range(2500))]


def test_what_neither_disk_nor_server_takes_is_bounded_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_sender, "MOST_IN_MEMORY", 10)

    def refuse(*_: object) -> Spool:
        raise OSError(28, "No space left on device")

    sender = BackgroundSender(refuse, refuse, "test", interval_s=0.01)
    for i in range(25):
        sender.put(i)
    assert sender.close(0.5) == "memory"
    assert caplog.text.count("10 entries for test wait in memory") == 1
    assert "10 entries for test are on no disk and not sent" in caplog.text


def test_a_file_does_not_grow_for_ever(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_sender, "LARGEST_BYTES", 1000)
    got: list[str] = []
    sender = make(got.extend)
    for i in range(20):
        sender.put(f"{i}" * 100)
        assert sender.flush(20)
    assert len(got) == 20
    assert (tmp_path / "unsent" / "a.spool.jsonl").stat().st_size < 2500


def test_closing_keeps_what_the_thread_has_not_come_to(make: Make) -> None:
    sender = make(lambda entries: None)
    sender._started = True  # so that no thread runs
    sender.put(1)
    folder = sender.close(0)
    (file,) = Path(folder).glob("*.spool.jsonl")
    assert file.read_text().split()[1:] == ["1"]
