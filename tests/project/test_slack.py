"""A rendered project that reports to Slack: what arrives, and that the address is in nothing it writes or prints."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Project

sys.path.append(str(ROOT))

from tests.engine.callbacks.slack_server import TOKEN, WebhookServer

FAILS = """
class Failing(DigitsTask):
    def on_train_epoch_end(self):
        raise RuntimeError("spilt coffee")
"""
FIT = ["fit", "-o", "trainer.max_epochs=2", "-o", "trainer.limit_train_batches=3", "-o", "trainer.log_every_n_steps=1"]


def test_the_command_line_reports_its_runs_and_keeps_the_address_to_itself(
    rendered_project: Callable[..., Project], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "with-slack"
    shutil.copytree(rendered_project("with-slack", slack=True).folder, folder)
    project = Project(folder, "with_slack")
    with (folder / "src/with_slack/science/task.py").open("a") as task:
        task.write(FAILS)
    with WebhookServer(200) as server:
        monkeypatch.setenv("SLACK_WEBHOOK_URL", server.url)
        misplaced = ["fit", "-o", f"callbacks.slack.webhook={server.url}"]
        failing = [*FIT, "-o", "task.class=science.task.Failing"]
        notify = ["notify-test", "-o", "callbacks.slack.language=ja", "--mention", "here"]
        sweep = ["sweep", "--trials", "2", "--vary", "task.lr=1e-3..1e-2", *FIT[1:]]
        answers = project.answer([misplaced, FIT, failing, ["fit", "--print-config"], ["doctor"], sweep, notify])
    assert [code for code, _, _ in answers] == [2, 0, 1, 0, answers[4][0], 0, 0]
    titles = [text.partition(": ")[2].partition(",")[0] for text in server.texts()]
    assert titles[:3] == ["training started", "training finished", "test finished"]
    assert titles[3:5] == ["training started", "training failed"]
    assert "spilt coffee" in server.texts()[4]
    assert titles[5:7] == ["sweep finished", "学習を開始"]
    assert re.search(r"trials, val_loss [\d.]+, task.lr=0.00\d{1,5}$", server.texts()[5])
    assert len(titles) == 16
    assert "`callbacks.slack.webhook`" in answers[0][2]
    secret = TOKEN.rpartition("/")[2]
    assert [answer for answer in answers if secret in str(answer)] == []
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"environment.json", "status.json", "config.yaml", "traceback.txt", "mlflow.db"} <= {f.name for f in files}
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
