"""`sweep`: many trainings, which was best, and that one that breaks does not end the others."""

from __future__ import annotations

import csv
from typing import Any

import pytest
from conftest import Project

SMALL = ("-o", "data.batch_size=128", "-o", "task.channels=4", "-o", "loggers.mlflow=null")


def rows_of(project: Project) -> list[dict[str, Any]]:
    (file,) = project.folder.glob("runs/my_project/*-sweep.csv")
    with file.open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_r49_hyper_parameters_are_searched_hopeless_trials_end_early_and_a_table_says_which_is_best(
    project: Project,
) -> None:
    printed = project.succeed("sweep", "-v", "task.lr=log:1e-9..1e-1", "--trials", "8", *SMALL, "-o",
                              "trainer.max_epochs=3")  # fmt: skip
    rows = rows_of(project)
    values = [float(row["val_loss"]) for row in rows]

    assert len(rows) == len(project.runs()) == 8
    assert values == sorted(values)
    assert {row["ending"] for row in rows} == {"finished", "pruned"}
    assert rows[0]["ending"] == "finished"
    assert f"fit -o task.lr={rows[0]['task.lr']}" in printed
    assert all(project.status(run)["results"] == {} for run in project.runs()), "the test set was looked at"


def test_a_trial_that_fails_is_listed_last_and_does_not_end_the_others(project: Project) -> None:
    printed = project.succeed("sweep", "-v", "task.dropout=0.1,7", "--trials", "4", *SMALL, "-o",
                              "trainer.max_epochs=1")  # fmt: skip
    endings = [row["ending"] for row in rows_of(project)]

    assert endings[0] == "finished"
    assert "dropout probability" in endings[-1]
    assert "Train with the best" in printed


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        ("task.lr=1e-3", "cannot be understood"),
        ("task.lr=log:0..1", "above 0"),
        ("task.lr=2..1", "cannot be understood"),
        ("task.lrr=1,2", "`lr`"),
        ("lr", "cannot be understood"),
    ],
)
def test_what_cannot_vary_is_one_sentence(vary: str, words: str, project: Project) -> None:
    result = project.run("sweep", "-v", vary)

    assert result.returncode == 2, result.stdout + result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not project.runs()
