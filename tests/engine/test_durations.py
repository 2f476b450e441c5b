"""Durations: every accepted form, round trips, and what is refused."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from engine.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    RichProgressBar,
    ThroughputMonitor,
    TQDMProgressBar,
)
from engine.durations import Duration
from engine.errors import MisconfigurationException
from engine.loggers import CSVLogger
from engine.tuner import BatchSizeFinder, LearningRateFinder
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.toys import quiet_trainer

counts = st.integers(min_value=0, max_value=10**15)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10ep", Duration(epochs=10)),
        ("500ba", Duration(batches=500)),
        ("1e6sp", Duration(samples=1_000_000)),
        (" 2.5e3 sp ", Duration(samples=2500)),
        ("90s", Duration(seconds=90)),
        ("1h30m", Duration(seconds=5400)),
        ("1H 30M", Duration(seconds=5400)),
        ("2d", Duration(seconds=172_800)),
        ("1w", Duration(seconds=604_800)),
        ("1.5h", Duration(seconds=5400)),
        ("01:12:30:05", Duration(seconds=131_405)),
        ("00:00:00:30", Duration(seconds=30)),
        ("0ep", Duration(epochs=0)),
    ],
)
def test_reads_strings(text: str, expected: Duration) -> None:
    assert Duration.parse(text) == expected


def test_reads_timedelta_and_dicts() -> None:
    assert Duration.parse(timedelta(minutes=2)) == Duration(seconds=120)
    assert Duration.parse({"hours": 1, "minutes": 30}) == Duration(seconds=5400)
    assert Duration.parse({"epochs": 3, "seconds": 1.5}) == Duration(epochs=3, seconds=1.5)
    assert Duration.parse(Duration(batches=4)) == Duration(batches=4)


@given(counts, st.sampled_from(["epochs", "batches", "samples"]))
def test_counts_survive_writing_and_reading(count: int, unit: str) -> None:
    duration = Duration(**{unit: count})
    assert Duration.parse(str(duration)) == duration


@given(st.floats(min_value=0, max_value=1e12, allow_nan=False))
def test_seconds_survive_writing_and_reading(seconds: float) -> None:
    assert Duration.parse(str(Duration(seconds=seconds))) == Duration(seconds=seconds)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=9999)))
def test_all_spellings_of_a_time_agree(time: timedelta) -> None:
    minutes, seconds = divmod(time.seconds, 60)
    clock = f"{time.days}:{minutes // 60}:{minutes % 60}:{seconds}.{time.microseconds:06d}"
    units = f"{time.days}d{minutes // 60}h{minutes % 60}m{seconds}.{time.microseconds:06d}s"
    for spelling in (clock, units, {"days": time.days, "seconds": time.seconds, "microseconds": time.microseconds}):
        assert Duration.parse(spelling).seconds == pytest.approx(time.total_seconds(), abs=1e-5)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(MisconfigurationException):
        duration = Duration.parse(text)
        assert Duration.parse(str(duration)) == duration


WRONG_TEXTS = [
    "",
    "10",
    "10 epochs",
    "ep",
    "-3ep",
    "1.5ep",
    "30m1h",
    "1:2:3",
    "00:25:00:00",
    "nan s",
    "1e999s",
    "1e999sp",
]
WRONG_OTHERS = [10, 1.5, None, b"10ep", timedelta(seconds=-1), {"epochs": 1.5}, {"epochs": "many"}, {"hours": "two"}]


@pytest.mark.parametrize("value", [*WRONG_TEXTS, *WRONG_OTHERS, {"days": -1}])
def test_refuses_with_the_accepted_forms(value: object) -> None:
    with pytest.raises(MisconfigurationException, match="Accepted: '10ep'"):
        Duration.parse(value)  # type: ignore[arg-type]


def test_a_misspelt_unit_is_answered_with_the_nearest() -> None:
    with pytest.raises(MisconfigurationException, match="Did you mean `hours`"):
        Duration.parse({"hour": 2})


TAKERS: dict[str, Any] = {
    "max_epochs": "3ep", "min_epochs": "2ep", "max_steps": "5ba", "min_steps": "4ba", "limit_train_batches": "3ba",
    "limit_val_batches": "2ba", "limit_test_batches": "2ba", "limit_predict_batches": "2ba", "overfit_batches": "2ba",
    "val_check_interval": "2ba", "check_val_every_n_epoch": "2ep", "num_sanity_val_steps": "1ba",
    "log_every_n_steps": "7ba", "reload_dataloaders_every_n_epochs": "2ep", "accumulate_grad_batches": "2ba",
    "fast_dev_run": "2ba",
}  # fmt: skip


@pytest.mark.parametrize("name", TAKERS)
def test_every_length_that_a_trainer_takes_may_be_text(name: str) -> None:
    text = TAKERS[name]
    as_text, as_number = (quiet_trainer(**{name: value}) for value in (text, int(text[:-2])))
    for attribute in (name, "max_epochs", "limit_train_batches", "val_check_seconds"):
        assert getattr(as_text, attribute) == getattr(as_number, attribute)


@pytest.mark.parametrize("name", sorted(TAKERS.keys() - {"val_check_interval"}))  # which takes a time as well
def test_a_length_in_another_unit_is_refused_with_the_one_that_is_taken(name: str) -> None:
    with pytest.raises(MisconfigurationException, match=rf"`Trainer\({name}='1h'\)`.*(10ep|500ba)"):
        quiet_trainer(**{name: "1h"})


@pytest.mark.parametrize("value", ["3ep", "1e6sp", "0ba", 0])
def test_an_interval_that_is_no_number_of_batches_is_refused(value: Any) -> None:
    with pytest.raises(MisconfigurationException, match=rf"`Trainer\(val_check_interval={value!r}\)`.*every_n_epoch"):
        quiet_trainer(val_check_interval=value)


ELSEWHERE: dict[str, Any] = {  # what else counts, by how the user writes it
    "EarlyStopping(patience": (lambda text: EarlyStopping("val_loss", patience=text), "2ep"),
    "ThroughputMonitor(window_size": (lambda text: ThroughputMonitor(window_size=text), "50ba"),
    "TQDMProgressBar(refresh_rate": (lambda text: TQDMProgressBar(refresh_rate=text), "10ba"),
    "RichProgressBar(refresh_rate": (lambda text: RichProgressBar(refresh_rate=text), "10ba"),
    "CSVLogger(flush_logs_every_n_steps": (lambda text: CSVLogger("runs", flush_logs_every_n_steps=text), "50ba"),
    "num_training_steps": (lambda text: LearningRateFinder(num_training_steps=text), "100ba"),
    "steps_per_trial": (lambda text: BatchSizeFinder(steps_per_trial=text), "3ba"),
    "scheduling": (lambda text: GradientAccumulationScheduler({"4ep": text}), "8ba"),
}


@pytest.mark.parametrize("argument", ELSEWHERE)
@pytest.mark.parametrize("wrong", ["1h", "many", "1e6sp"])
def test_a_count_elsewhere_is_read_or_refused_where_it_is_written(argument: str, wrong: str) -> None:
    make, right = ELSEWHERE[argument]
    make(right)
    with pytest.raises(MisconfigurationException, match=rf"`{re.escape(argument)}='{wrong}'.*(10ep|500ba)"):
        make(wrong)
