"""The CSV logger: growing columns, appending only, reading while it is written, its cost."""

from __future__ import annotations

import csv
import math
import os
import pickle
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from engine.errors import EngineWarning
from engine.loggers import CSVLogger
from engine.loggers import csv_logs as module


def rows_of(logger: CSVLogger) -> list[dict[str, str]]:
    with open(logger.metrics_file, newline="") as file:
        return list(csv.DictReader(file))


def test_columns_grow_and_old_rows_stay(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    logger.log_metrics({"loss": 0.5, "epoch": 0}, 0)
    logger.log_metrics({"loss": 0.25, "epoch": 0}, 1)
    logger.log_metrics({"val,loss": 0.1, "epoch": 0}, 1)
    logger.log_metrics({"loss": 1e-12, "epoch": 1, 'odd"name': 3.0}, 2)
    frame = pd.read_csv(logger.metrics_file)
    assert list(frame.columns) == ["step", "epoch", "loss", "val,loss", 'odd"name']
    assert frame["loss"].dropna().tolist() == [0.5, 0.25, 1e-12]
    assert frame["val,loss"].dropna().tolist() == [0.1]
    assert frame["step"].tolist() == [0, 1, 1, 2]
    assert all(None not in row.values() for row in rows_of(logger)), "every line has every column"


def test_the_first_row_is_visible_at_once_and_later_ones_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    assert len(rows_of(logger)) == 1
    logger.log_metrics({"a": 2.0}, 1)
    assert len(rows_of(logger)) == 1, "rows wait together"
    now[0] += 1.1
    logger.log_metrics({"a": 3.0}, 2)
    assert len(rows_of(logger)) == 3


def test_rows_are_written_at_the_given_count(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=3)
    for step in range(6):
        logger.log_metrics({"a": 1.0}, step)
    assert len(rows_of(logger)) >= 4


def test_steps_are_counted_when_none_is_given(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, prefix="run")
    logger.log_metrics({"a": 1.0})
    logger.log_metrics({"a": 2.0})
    logger.save()
    assert [(row["step"], row["run-a"]) for row in rows_of(logger)] == [("0", "1.0"), ("1", "2.0")]


def test_special_numbers_survive(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"nan": math.nan, "inf": math.inf, "tiny": 5e-324, "third": 1 / 3}, 0)
    logger.save()
    row = pd.read_csv(logger.metrics_file).iloc[0]
    assert math.isnan(row["nan"])
    assert row["inf"] == math.inf
    assert row["third"] == 1 / 3
    assert float(rows_of(logger)[0]["tiny"]) == 5e-324


def test_a_continued_run_continues_the_file_and_drops_a_torn_line(tmp_path: Path) -> None:
    first = CSVLogger(tmp_path, version="run")
    first.log_metrics({"loss": 0.5}, 0)
    first.finalize("success")
    with open(first.metrics_file, "a") as file:
        file.write("1,0.2")  # killed while writing
    second = CSVLogger(tmp_path, version="run")
    second.log_metrics({"loss": 0.3, "accuracy": 0.9}, 1)
    second.finalize("success")
    assert [(row["step"], row["loss"], row["accuracy"]) for row in rows_of(second)] == [
        ("0", "0.5", ""),
        ("1", "0.3", "0.9"),
    ]


def test_hyperparameters_are_merged_in_yaml(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1, "path": Path("x"), "名前": "値"})
    logger.log_hyperparams({"width": 3})
    text = (Path(logger.log_dir) / "hparams.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == {"lr": 0.1, "path": "x", "名前": "値", "width": 3}


def test_nothing_is_written_before_something_is_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "logs")
    logger.save()
    logger.finalize("success")
    assert not (tmp_path / "logs").exists()


def test_a_directory_that_cannot_be_written_warns_and_keeps_the_rows(tmp_path: Path) -> None:
    blocked = tmp_path / "logs"
    blocked.write_text("a file where a directory should be")
    logger = CSVLogger(blocked)
    with pytest.warns(EngineWarning, match="kept in memory"):
        logger.log_metrics({"a": 1.0}, 0)
    blocked.unlink()
    logger.log_metrics({"a": 2.0}, 1)
    logger.save()
    assert [row["a"] for row in rows_of(logger)] == ["1.0", "2.0"]


def test_it_can_be_pickled_between_writes(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    copy = pickle.loads(pickle.dumps(logger))
    copy.log_metrics({"a": 2.0}, 1)
    copy.save()
    assert len(rows_of(logger)) == 2


def test_one_row_of_fifty_values_costs_little(tmp_path: Path) -> None:
    """The budget for fifty values logged in one step is 220 us, of which the file may have a quarter."""
    logger = CSVLogger(tmp_path)
    metrics = {f"metric_{i}": i / 7 for i in range(50)}
    best = math.inf
    for _ in range(5):
        start = time.process_time()
        for step in range(400):
            logger.log_metrics(metrics, step)
        logger.save()
        best = min(best, (time.process_time() - start) / 400 * 1e6)
    assert best < 55 * 3, f"{best:.0f} us"  # three times, for slow machines
    assert os.path.getsize(logger.metrics_file) > 400 * 50


def test_a_run_that_continues_drops_the_rows_that_come_again(tmp_path: Path) -> None:
    first = CSVLogger(tmp_path, version="v")
    for step in range(3):
        first.log_metrics({"loss": float(step)}, step)
    first.save()
    state = first.state_dict()
    first.log_metrics({"loss": 3.0, "new": 1.0}, 3)
    first.save()
    for _ in range(2):  # the second time it was killed before it had logged anything
        second = CSVLogger(tmp_path, version="v")
        second.load_state_dict(state)
        state = second.state_dict()
    second.log_metrics({"loss": 3.5}, 3)
    second.save()
    lines = (tmp_path / "lightning_logs" / "v" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [["0", "0.0"], ["1", "1.0"], ["2", "2.0"], ["3", "3.5"]]


def test_another_file_is_left_as_it_is(tmp_path: Path) -> None:
    first, second = CSVLogger(tmp_path, version="a"), CSVLogger(tmp_path, version="b")
    first.log_metrics({"loss": 1.0}, 0)
    second.log_metrics({"loss": 1.0}, 0)
    state = {**first.state_dict(), "rows": 0}
    second.save()
    again = CSVLogger(tmp_path, version="b")
    again.load_state_dict(state)
    again.log_metrics({"loss": 2.0}, 1)
    again.save()
    assert len((tmp_path / "lightning_logs" / "b" / "metrics.csv").read_text().splitlines()) == 3
