"""EarlyStopping by default: what it decides, and that it counts a value once."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
from engine.callbacks import EarlyStopping, ModelCheckpoint
from engine.callbacks.early_stopping import EarlyStoppingReason
from engine.errors import MisconfigurationException

from tests.engine.callbacks.scripted import Scripted, rows, trainer


def run(path: Path, values: list[float], stopper: EarlyStopping, **options: Any) -> Any:
    fitted = trainer(path, stopper, **{"max_epochs": 8, "limit_train_batches": 2, **options})
    fitted.fit(Scripted(values), rows(), rows())
    return fitted


@pytest.mark.parametrize(
    ("options", "values", "epochs", "reason"),
    [
        ({"patience": 2}, [1, 0.9, 0.95, 0.91, 0.8], 4, "PATIENCE_EXHAUSTED"),
        ({"patience": 2, "min_delta": 0.1}, [1, 0.95, 0.91, 0.8], 3, "PATIENCE_EXHAUSTED"),
        ({"patience": 2, "min_delta": -0.1}, [1, 0.95, 0.91, 0.8], 3, "PATIENCE_EXHAUSTED"),
        ({"mode": "max", "patience": 1}, [0.1, 0.2, 0.15], 3, "PATIENCE_EXHAUSTED"),
        ({"patience": "2ep"}, [1, 0.9, 0.95, 0.91, 0.8], 4, "PATIENCE_EXHAUSTED"),
        ({"patience": 9}, [1, math.nan], 2, "NON_FINITE_METRIC"),
        ({"patience": 9}, [1, math.inf], 2, "NON_FINITE_METRIC"),
        ({"patience": 2, "check_finite": False}, [1, math.nan, math.nan], 3, "PATIENCE_EXHAUSTED"),
        ({"stopping_threshold": 0.5}, [1, 0.8, 0.49], 3, "STOPPING_THRESHOLD"),
        ({"stopping_threshold": 0.5, "mode": "max"}, [0.1, 0.6], 2, "STOPPING_THRESHOLD"),
        ({"divergence_threshold": 1.5, "patience": 9}, [1, 1.2, 1.6], 3, "DIVERGENCE_THRESHOLD"),
        ({"patience": 3}, [8, 7, 6, 5, 4, 3, 2, 1], 8, "NOT_STOPPED"),
    ],
)
def test_when_training_stops(tmp_path: Path, options: Any, values: Any, epochs: int, reason: str) -> None:
    stopper = EarlyStopping("val_loss", **options)
    assert run(tmp_path, values, stopper).current_epoch == epochs
    assert stopper.stopping_reason is EarlyStoppingReason[reason]


def test_the_reason_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(tmp_path, [1, 2, 3], EarlyStopping("val_loss", patience=2))
    assert "stopping: val_loss has not improved in 2 checks, best 1" in caplog.text


def test_minima_come_first(tmp_path: Path) -> None:
    assert run(tmp_path, [1, 2, 3, 4, 5], EarlyStopping("val_loss", patience=1), min_epochs=4).current_epoch == 4


def test_every_validation_is_a_check_where_there_are_several(tmp_path: Path) -> None:
    stopper = EarlyStopping("val_loss", patience=2)
    fitted = run(tmp_path, [1.0, 2.0, 3.0], stopper, limit_train_batches=1.0, val_check_interval=2)
    assert fitted.global_step == 6


def test_patience_in_epochs_does_not_count_checks(tmp_path: Path) -> None:
    stopper = EarlyStopping("val_loss", patience="2ep")
    fitted = run(tmp_path, [1.0] + [2.0] * 9, stopper, limit_train_batches=4, val_check_interval=2)
    assert fitted.global_step == 10  # the first check of the second epoch after the best value's
    again = EarlyStopping("val_loss", patience="2ep")
    again.load_state_dict(stopper.state_dict())
    assert again.best_epoch == 0


def test_a_value_is_counted_once(tmp_path: Path) -> None:
    # Checked at every epoch's end, validated at every second: by the old rule four checks in vain stop at epoch 4.
    stopper = EarlyStopping("val_loss", patience=3, check_on_train_epoch_end=True)
    assert run(tmp_path, [1, 2, 2, 0.5], stopper, check_val_every_n_epoch=2).current_epoch == 8
    assert stopper.wait_count == 0


def test_a_training_metric_is_checked_with_its_epochs_mean(tmp_path: Path) -> None:
    stopper = EarlyStopping("train_loss", patience=99)
    fitted = run(tmp_path, [1.0], stopper, limit_train_batches=1.0, val_check_interval=2, max_epochs=3)
    assert float(stopper.best_score) == pytest.approx(float(fitted.callback_metrics["train_loss"]), rel=1e-5)


def test_without_validation_the_epochs_end_is_checked(tmp_path: Path) -> None:
    stopper = EarlyStopping("train_loss", stopping_threshold=1e9)
    fitted = trainer(tmp_path, stopper, max_epochs=5, check_val_every_n_epoch=2)
    fitted.fit(Scripted(), rows())
    assert fitted.current_epoch == 1


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 1}, {"check_val_every_n_epoch": 2}])
def test_a_metric_that_nobody_logs_is_an_error(tmp_path: Path, options: Any) -> None:
    with pytest.raises(RuntimeError, match=r"'val_los'.*Did you mean `val_loss`\?.*real_loss"):
        run(tmp_path, [1.0], EarlyStopping("val_los"), **options)


def test_a_metric_of_a_later_validation_is_waited_for(tmp_path: Path) -> None:
    stopper = EarlyStopping("val_loss", patience=1)
    assert run(tmp_path, [1, 2], stopper, check_val_every_n_epoch=3, num_sanity_val_steps=0).current_epoch == 6


def test_a_missing_metric_may_be_tolerated(tmp_path: Path) -> None:
    stopper = EarlyStopping("val_los", strict=False, verbose=True)
    with pytest.warns(RuntimeWarning, match="val_los"):
        assert run(tmp_path, [1.0], stopper, max_epochs=2).current_epoch == 2


def test_a_mode_that_does_not_exist() -> None:
    with pytest.raises(MisconfigurationException, match="Did you mean `max`"):
        EarlyStopping("val_loss", mode="maxi")


def test_a_trial_run_is_not_stopped(tmp_path: Path) -> None:
    assert run(tmp_path, [math.nan], EarlyStopping("nope"), fast_dev_run=2).global_step == 2


def test_a_continued_run_goes_on_counting(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    first = EarlyStopping("val_loss", patience=3)
    trainer(tmp_path, first, saver, max_epochs=3).fit(Scripted([1, 2, 2]), rows(), rows())
    assert first.wait_count == 2
    again, net = EarlyStopping("val_loss", patience=3), Scripted([2])
    fitted = trainer(tmp_path, again, max_epochs=9)
    fitted.fit(net, rows(), rows(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert fitted.current_epoch == 4
    assert float(again.best_score) == 1.0


def test_two_may_watch_two_metrics(tmp_path: Path) -> None:
    stoppers = EarlyStopping("val_loss", patience=9), EarlyStopping("train_loss", stopping_threshold=1e9)
    fitted = trainer(tmp_path, *stoppers, max_epochs=5)
    fitted.fit(Scripted([1.0]), rows(), rows())
    assert fitted.current_epoch == 1
    assert fitted.early_stopping_callbacks == list(stoppers)


def test_a_rule_of_ones_own_has_the_signature_that_lightning_s_has(tmp_path: Path) -> None:
    class Lenient(EarlyStopping):
        def _evaluate_stopping_criteria(self, current: Any) -> tuple[bool, str | None]:
            return super()._evaluate_stopping_criteria(current - 1)

    stopper = Lenient("val_loss", patience="1ep")
    assert run(tmp_path, [3, 2, 4], stopper).current_epoch == 3
    assert float(stopper.best_score) == 1.0
