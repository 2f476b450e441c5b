"""What `fit` returns, as pandas and matplotlib take it."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from engine.history import History
from matplotlib.figure import Figure

ROWS = [
    {"step": 0, "epoch": 0, "time": 100.0, "loss": 1.0},
    {"step": 4, "epoch": 0, "time": 101.0, "loss": 0.5},
    {"step": 4, "epoch": 0, "time": 102.0, "val_loss": 0.6},
    {"step": 4, "time": 102.5, "lr": 0.1},
    {"step": 9, "epoch": 1, "time": 104.0, "loss": 0.25},
]


def test_one_value_for_each_epoch() -> None:
    history = History(ROWS)
    assert list(history)[:3] == ["epoch", "step", "time"]
    assert history["epoch"] == [0, 1]
    assert history["step"] == [4, 9]
    assert history["time"] == [2.5, 4.0]
    assert history["loss"] == [0.5, 0.25]
    assert history["val_loss"][0] == 0.6
    assert math.isnan(history["val_loss"][1])
    assert history.metrics() == ["loss", "val_loss", "lr"]


def test_points_of_one_metric_over_any_axis() -> None:
    history = History(ROWS)
    assert history.points("loss") == ([0, 4, 9], [1.0, 0.5, 0.25])
    assert history.points("loss", "time") == ([0.0, 1.0, 4.0], [1.0, 0.5, 0.25])
    assert history.points("lr", "epoch") == ([], [])


def test_a_name_that_was_not_logged_lists_those_that_were() -> None:
    with pytest.raises(KeyError, match="val_loss"):
        History(ROWS).points("valid_loss")


def test_pandas_and_matplotlib_take_it_as_it_is() -> None:
    history = History(ROWS)
    frame = pd.DataFrame(history).set_index("epoch")
    assert frame.loc[1, "loss"] == 0.25
    assert len(pd.DataFrame(history.rows)) == 5
    (line,) = Figure().subplots().plot("epoch", "loss", data=history)
    assert line.get_ydata().tolist() == [0.5, 0.25]


def test_the_rows_are_its_own() -> None:
    rows = [dict(row) for row in ROWS]
    history = History(rows)
    rows[0]["loss"] = 9.0
    assert history.rows[0]["loss"] == 1.0


def test_an_empty_run_gives_an_empty_history() -> None:
    history = History()
    assert (dict(history), history.rows, history.metrics()) == ({}, [], [])
    assert pd.DataFrame(history).empty
