"""Timer: limits, stages, and the time of a run that is continued."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import engine
import pytest
from engine.callbacks import ModelCheckpoint, Timer
from engine.errors import MisconfigurationException

from tests.engine.callbacks.scripted import Scripted, rows, trainer


class Wait(engine.Callback):
    """Makes every batch take 20 ms."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        time.sleep(0.02)


@pytest.mark.parametrize("duration", ["0.2s", "00:00:00:0.2", timedelta(seconds=0.2), {"milliseconds": 200}])
def test_training_stops_when_time_is_over(tmp_path: Path, duration: Any) -> None:
    timer = Timer(duration)
    fitted = trainer(tmp_path, Wait(), timer, max_epochs=-1)
    fitted.fit(Scripted(), rows())
    assert 1 <= fitted.global_step <= 11
    assert timer.time_elapsed() >= 0.2
    assert (timer.time_remaining() or 1) <= 0


def test_an_epoch_may_be_finished_first(tmp_path: Path) -> None:
    fitted = trainer(tmp_path, Wait(), Timer("0.05s", interval="epoch"), max_epochs=-1)
    fitted.fit(Scripted(), rows())
    assert fitted.global_step == 7


def test_no_time_is_no_step(tmp_path: Path) -> None:
    fitted = trainer(tmp_path, max_epochs=3, max_time={"seconds": 0})
    fitted.fit(Scripted(), rows())
    assert fitted.global_step == 0


def test_stages_are_measured(tmp_path: Path) -> None:
    timer = Timer()
    fitted = trainer(tmp_path, Wait(), timer, max_epochs=1)
    assert timer.start_time() is None
    assert timer.time_elapsed() == 0
    fitted.fit(Scripted(), rows(), rows())
    assert timer.time_elapsed() >= 0.14 > timer.time_elapsed("validate") > 0
    start, end = timer.start_time(), timer.end_time()
    assert start is not None
    assert end is not None
    assert end - start == timer.time_elapsed("train")
    assert timer.time_elapsed("test") == 0
    assert timer.time_remaining() is None


def test_a_continued_run_has_the_rest_of_the_time(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    trainer(tmp_path, Wait(), Timer("1h"), saver, max_epochs=1).fit(Scripted(), rows())
    again = Timer("0.1s")
    fitted = trainer(tmp_path, again, max_epochs=5)
    fitted.fit(Scripted(), rows(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert fitted.global_step == 7
    assert again.time_elapsed() >= 0.14


def test_a_trainer_that_goes_on_from_its_own_checkpoint_counts_that_time_once(tmp_path: Path) -> None:
    saver, timer = ModelCheckpoint(dirpath=tmp_path, save_last=True), Timer("1h")
    fitted = trainer(tmp_path, timer, saver, max_epochs=1)
    fitted.fit(Scripted(), rows())
    timer.load_state_dict({"time_elapsed": {"train": 1800.0}})
    assert timer.time_elapsed() == 1800.0  # what this fit took is in it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"duration": "5ep"}, "max_epochs"),
        ({"duration": "soon"}, "not a duration"),
        ({"interval": "steps"}, "Did you mean `step`"),
    ],
)
def test_settings_that_cannot_work(options: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        Timer(**options)
