"""Loggers that fail: a mistake is said at once, a failure later on costs no training and no checkpoint."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import engine
import pytest
from engine.callbacks import ModelCheckpoint
from engine.errors import EngineWarning
from engine.loggers import CSVLogger, EventLog, Logger, TensorBoardLogger
from engine.loggers.logger import append_whole
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.engine.toys import BoringModel, loader, quiet_trainer


class Breaks(Logger):
    """Raises in one method, from a call of it on; notes the others."""

    def __init__(self, method: str, after: int = 0) -> None:
        self.method, self.left = method, after
        self.calls: list[str] = []

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.method:
            self.left -= 1
            if self.left < 0:
                raise ConnectionError("nobody there")

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._called("log_metrics")

    def save(self) -> None:
        self._called("save")

    def finalize(self, status: str) -> None:
        self._called("finalize")

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self._called("after_save_checkpoint")


@pytest.mark.parametrize(
    ("method", "after"), [("log_metrics", 2), ("save", 1), ("finalize", 0), ("after_save_checkpoint", 0)]
)
def test_a_logger_that_fails_later_ends_no_training(tmp_path: Path, method: str, after: int) -> None:
    broken, whole = Breaks(method, after), Breaks("")
    keep = ModelCheckpoint(tmp_path)
    trainer = quiet_trainer(max_epochs=2, logger=[broken, whole], callbacks=[keep], enable_checkpointing=True)
    with pytest.warns(EngineWarning, match=rf"`Breaks.{method}` failed: ConnectionError: nobody there"):
        trainer.fit(BoringModel(), loader(), loader())
    assert (trainer.global_step, trainer.interrupted) == (6, False)
    assert Path(keep.best_model_path).name == "epoch=1-step=6.ckpt"
    assert whole.calls == broken.calls, "it is called again, and the others are called"


def test_a_logger_that_never_worked_is_a_mistake_and_said_at_once() -> None:
    trainer = quiet_trainer(logger=Breaks("log_metrics"))
    with pytest.raises(ConnectionError, match="nobody there"):
        trainer.fit(BoringModel(), loader())
    assert trainer.global_step == 1


def test_what_is_buffered_is_written_at_every_epochs_end() -> None:
    logger = Breaks("")
    quiet_trainer(max_epochs=2, logger=logger).fit(BoringModel(), loader())
    rows = [n for n, name in enumerate(logger.calls) if name == "log_metrics"]
    assert [name for name in logger.calls if name != "log_metrics"] == ["save", "save", "save", "finalize"]
    assert logger.calls[rows[-1] + 1] == "save"


def test_teardown_is_called_once_though_it_fails() -> None:
    torn: list[str] = []

    def tear_down(name: str, fails: bool) -> Any:
        def teardown(*_: Any) -> None:
            torn.append(name)
            if fails:
                raise ValueError("not tidy")

        return type("Mine", (engine.Callback,), {"teardown": teardown})()

    callbacks = [tear_down("a", False), tear_down("b", True), tear_down("c", False)]
    with pytest.raises(ValueError, match="not tidy"):
        quiet_trainer(callbacks=callbacks).fit(BoringModel(), loader())
    assert torn == ["a", "b", "c"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("name", ["events.jsonl", "status.json.new"])
def test_a_full_disk_costs_lines_of_the_event_log_only(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/full")
    trainer = quiet_trainer(max_epochs=2, callbacks=[EventLog(tmp_path, every_s=0)])
    with pytest.warns(EngineWarning, match="could not write"):
        trainer.fit(BoringModel(), loader())
    assert trainer.global_step == 6


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    """The kernel's own refusal: this process may write files of 10 bytes and no more."""
    file = tmp_path / "lines"
    code = (
        "import sys, resource\n"
        f"sys.path.insert(0, {str(Path(engine.__file__).parents[1])!r})\n"
        "from engine.loggers.logger import append_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        f"append_whole({str(file)!r}, 'first\\n')\n"
        f"try: append_whole({str(file)!r}, 'second, too long\\n')\n"
        "except OSError as error: print(error.errno)\n"
        f"append_whole({str(file)!r}, 'ok\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "27"
    assert file.read_text() == "first\nok\n"
    append_whole(file, "三\n")
    assert file.read_text(encoding="utf-8") == "first\nok\n三\n"


def test_tensorboard_goes_on_in_another_file_after_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_full(self: Any) -> None:
        raise OSError(28, "No space left on device")

    logger = TensorBoardLogger(tmp_path, "exp")
    logger.log_metrics({"loss": 2.0}, 0)
    with monkeypatch.context() as patched:
        patched.setattr(type(logger.experiment), "flush", is_full)
        logger.save()
    logger.log_metrics({"loss": 1.0}, 1)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 2.0), (1, 1.0)]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_logger_of_the_documents_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str) -> None:
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[3] / "docs" / language / "training.md"
    (code,) = (
        block for block in page.read_text(encoding="utf-8").split("```python\n") if "JsonLogger(Logger)" in block
    )
    code = code.partition("\n```")[0]
    names: dict[str, Any] = {"json": json, "Logger": Logger, "CSVLogger": CSVLogger, "Trainer": quiet_trainer}
    exec(code.replace("\nTrainer(", "\ntrainer = Trainer("), names)
    trainer = names["trainer"]
    trainer.fit(BoringModel(), loader())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    with open(trainer.loggers[1].metrics_file, encoding="utf-8", newline="") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    assert lines == rows
    assert len(lines) == 2
