"""The model summary as a callback: when it prints, how much, and how to change it."""

from __future__ import annotations

from typing import Any

import pytest
from engine.callbacks import ModelSummary, RichModelSummary

from tests.engine.toys import BoringModel, loader, quiet_trainer


def printed(capsys: pytest.CaptureFixture[str], callback: Any) -> list[str]:
    quiet_trainer(callbacks=[callback], enable_model_summary=True).fit(BoringModel(), loader())
    return capsys.readouterr().out.splitlines()


def test_a_table_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, ModelSummary()) == [
        "  | Name  | Type   | Params | Mode",
        "0 | layer | Linear | 5      | train",
        "5 parameters, all trainable, 0.000 MB",
    ]


def test_one_line_when_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, ModelSummary(short=True)) == ["BoringModel: 5 parameters, all trainable, 0.000 MB · layer 5"]


def test_nothing_for_depth_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, ModelSummary(max_depth=0)) == []


def test_only_fit_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    quiet_trainer(callbacks=[ModelSummary()], enable_model_summary=True).test(BoringModel(), loader(), verbose=False)
    assert capsys.readouterr().out == ""


def test_rich_draws_it(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    text = "\n".join(printed(capsys, RichModelSummary()))
    assert "layer" in text
    assert "───" in text
    assert text.endswith("5 parameters, all trainable, 0.000 MB")


def test_summarize_may_be_overridden(capsys: pytest.CaptureFixture[str]) -> None:
    class Mine(ModelSummary):
        @staticmethod
        def summarize(summary_data: Any, total_parameters: int, *rest: Any, **kwargs: Any) -> None:
            print(dict(summary_data)["Name"], total_parameters, kwargs)

    assert printed(capsys, Mine(word="x")) == ["['layer'] 5 {'word': 'x'}"]
