"""The event log and the status file, as another program reads them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.callbacks import Callback
from engine.loggers import CSVLogger, EventLog

from tests.engine.toys import BoringModel, loader, quiet_trainer


def events(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]


def status(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "status.json").read_text())
    return found


def test_a_run_from_start_to_end(tmp_path: Path) -> None:
    trainer = quiet_trainer(callbacks=[EventLog(tmp_path)], max_epochs=2)
    trainer.fit(BoringModel(), loader(), loader())
    found = events(tmp_path)
    assert [(event["event"], event["epoch"], event["step"]) for event in found] == [
        ("start", 0, 0),
        ("validation_end", 0, 3), ("epoch_end", 0, 3),
        ("validation_end", 1, 6), ("epoch_end", 1, 6),
        ("end", 2, 6),
    ]  # fmt: skip
    assert all(event["call"] == "fit" and event["time"] > 1e9 for event in found)
    assert found[0]["module"] == "BoringModel"
    assert found[-1]["state"] == "finished"
    now = status(tmp_path)
    assert (now["state"], now["step"], now["max_epochs"], now["error"]) == ("finished", 6, 2, None)
    assert now["metrics"]["val_loss"] == pytest.approx(float(trainer.callback_metrics["val_loss"]))


def test_the_status_can_be_polled_while_the_run_goes_on(tmp_path: Path) -> None:
    seen: list[tuple[Any, ...]] = []

    class Poll(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            now = status(tmp_path)
            seen.append((now["state"], now["stage"], now["epoch"], now["batch"], now["batches"]))

    quiet_trainer(callbacks=[EventLog(tmp_path, every_s=0.0), Poll()]).fit(BoringModel(), loader())
    assert seen == [("running", "train", 0, batch, 3) for batch in (1, 2, 3)]


def test_the_batch_at_the_end_of_an_epoch_is_the_one_that_ended_it(tmp_path: Path) -> None:
    written: list[tuple[Any, ...]] = []
    log = EventLog(tmp_path, 3600.0, lambda now: written.append((now["stage"], now["step"], now["batch"])))
    quiet_trainer(callbacks=[log], max_epochs=2).fit(BoringModel(), loader(), loader(5))
    assert [row for row in written if row[1]][:4] == [
        ("validate", 3, 0), ("train", 3, 3),
        ("validate", 6, 0), ("train", 6, 3),
    ]  # fmt: skip


def test_the_status_is_not_written_more_often_than_asked(tmp_path: Path) -> None:
    written: list[dict[str, Any]] = []
    log = EventLog(tmp_path, every_s=3600.0, publish=written.append)
    quiet_trainer(callbacks=[log]).fit(BoringModel(), loader(400))
    assert [(now["state"], now["batch"]) for now in written] == [("running", 0), ("running", 100), ("finished", 0)]
    assert not (tmp_path / "status.json").exists()


@pytest.mark.parametrize(
    ("error", "state"),
    [(ValueError("mine"), "failed"), (KeyboardInterrupt(), "interrupted"), (SystemExit(1), "interrupted")],
)
def test_errors_can_be_read_by_a_program(tmp_path: Path, error: BaseException, state: str) -> None:
    class Fails(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise error

    with contextlib.suppress(ValueError, SystemExit):
        quiet_trainer(callbacks=[EventLog(tmp_path)]).fit(Fails(), loader())
    found = events(tmp_path)
    assert [event["event"] for event in found] == ["start", "exception", "end"]
    assert found[1]["type"] == type(error).__name__
    assert "training_step" in found[1]["traceback"]
    assert status(tmp_path)["state"] == state
    assert status(tmp_path)["error"] == {"type": type(error).__name__, "message": str(error)}


def test_numbers_that_json_does_not_know_are_text(tmp_path: Path) -> None:
    class Bad(BoringModel):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("val_loss", torch.tensor(float("nan")))

    quiet_trainer(callbacks=[EventLog(tmp_path)]).fit(Bad(), loader(), loader())
    assert status(tmp_path)["metrics"]["val_loss"] == "nan"
    assert "NaN" not in (tmp_path / "events.jsonl").read_text()


def test_it_writes_beside_the_logger_and_goes_on_in_the_same_file(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "exp")
    trainer = quiet_trainer(callbacks=[EventLog()], logger=logger)
    trainer.fit(BoringModel(), loader())
    trainer.test(BoringModel(), loader(), verbose=False)
    calls = [(event["call"], event["event"]) for event in events(Path(logger.log_dir))]
    assert calls[-3:] == [("test", "start"), ("test", "test_end"), ("test", "end")]


def test_a_trial_run_leaves_nothing(tmp_path: Path) -> None:
    quiet_trainer(callbacks=[EventLog(tmp_path / "run")], fast_dev_run=True).fit(BoringModel(), loader(), loader())
    assert not (tmp_path / "run").exists()
