"""The helper for what happens every so often."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from engine.callbacks._every import Every, one_trigger, parse_every
from engine.errors import MisconfigurationException


def position(**counters: int) -> Any:
    return SimpleNamespace(
        **{"parity": False, "global_step": 0, "total_batches": 0, "samples_seen": 0, "world_size": 1, **counters}
    )


def test_a_multiple_that_is_jumped_over_is_not_missed() -> None:
    every = Every(5, "steps")
    every.start(position())
    assert [every.is_due(position(global_step=step)) for step in (4, 6, 6, 8, 14, 15)] == [0, 1, 0, 0, 1, 1]


def test_the_reference_asks_at_every_batch_also_at_those_without_a_step() -> None:
    every = Every(2, "steps")
    every.start(position())
    assert [every.is_due(position(global_step=step, parity=True)) for step in (1, 2, 2, 3, 5)] == [0, 1, 1, 0, 0]


def test_counting_begins_where_the_run_continues() -> None:
    every = Every(100, "samples")
    every.start(position(samples_seen=250))
    assert [every.is_due(position(samples_seen=seen)) for seen in (260, 299, 300)] == [False, False, True]


def test_seconds_count_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    every = Every(60, "seconds")
    every.start(position())
    due = []
    for seconds in (30, 61, 100, 121, 500):
        now[0] = 100.0 + seconds
        due.append(every.is_due(position()))
    assert due == [False, True, False, True, True]


def test_several_processes_ask_rank_zero_for_the_time_now_and_then() -> None:
    asked: list[int] = []

    def trainer(batches: int) -> Any:
        strategy = SimpleNamespace(broadcast=lambda value: asked.append(batches) or 61.0)
        return SimpleNamespace(world_size=2, log_every_n_steps=10, total_batches=batches, strategy=strategy)

    every = Every(60, "seconds")
    every.start(trainer(0))
    assert [every.is_due(trainer(batches)) for batches in range(1, 21)].count(True) == 1
    assert asked == [10, 20]


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (None, "steps", None),
        (0, "steps", None),
        ("0ba", "steps", None),
        (3, "epochs", 3),
        (3, "steps", (3, "steps")),
        ("2ep", "steps", 2),
        ("500ba", "epochs", (500, "batches")),
        ("1e3sp", "steps", (1000, "samples")),
        ("1h30m", "steps", (5400.0, "seconds")),
        (timedelta(minutes=1), "seconds", (60.0, "seconds")),
        ({"hours": 1}, "seconds", (3600.0, "seconds")),
    ],
)
def test_arguments_are_read(value: Any, unit: str, expected: Any) -> None:
    parsed = parse_every(value, "x(y", unit)
    assert ((parsed.n, parsed.unit) if isinstance(parsed, Every) else parsed) == expected


def test_an_argument_that_is_refused_is_shown_as_a_whole_call() -> None:
    with pytest.raises(MisconfigurationException, match=r"`ModelCheckpoint\(every_n_epochs=-3\)`"):
        one_trigger(None, None, -3)
    with pytest.raises(MisconfigurationException, match=r"`ModelCheckpoint\(train_time_interval=\{\}\)` names no"):
        one_trigger(None, {}, None)


def test_one_trigger_acts() -> None:
    assert one_trigger(None, None, None) == (1, None)
    assert one_trigger(None, None, 0) == (0, None)
    epochs, every = one_trigger("10m", None, 0)
    assert epochs == 0
    assert every is not None
    assert every.unit == "seconds"
    with pytest.raises(MisconfigurationException, match="more than one trigger"):
        one_trigger(1, timedelta(0), None)
