"""`SlackProgress` with the real Trainer and a real server: which messages a run sends, and that it never suffers."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import LightningDataModule, Trainer
from engine.callbacks import Callback, EarlyStopping, LearningRateFinder, ModelCheckpoint
from engine.callbacks.slack import SlackProgress, facts
from engine.callbacks.webhook_discord import DiscordProgress
from engine.errors import MisconfigurationException
from engine.loggers import Logger

from tests.engine.callbacks.slack_server import TOKEN, WebhookServer
from tests.engine.toys import BoringModel, loader, quiet_trainer


class Prompt(SlackProgress):
    """Without the pauses that are made for people."""

    min_interval_s = 0.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"min_gap_s": 0.0, **options})


class Patient(Callback):
    """Waits until each message is sent, so that none gives way to the next."""

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        until = time.monotonic() + 30.0
        for callback in trainer.callbacks:
            while (sender := getattr(callback, "_sender", None)) is not None and sender._pending:
                assert time.monotonic() < until, "a message was not sent within 30 s"
                time.sleep(0.005)

    on_train_end = on_train_epoch_start


class Slow(Callback):
    """Gives the sender's thread some time in each epoch."""

    def on_train_epoch_end(self, *_: Any) -> None:
        time.sleep(0.05)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebhookServer]:
    with WebhookServer() as server:
        monkeypatch.setenv("SLACK_WEBHOOK_URL", server.url)
        yield server


def kinds(server: WebhookServer) -> list[str]:
    """Return what each message is, by its icon."""
    names = {"🚀": "started", "⏳": "progress", "🏆": "best", "✅": "finished", "❌": "failed", "⏸": "stopped",
             "⚠": "stalled", "🔎": "swept"}  # fmt: skip
    return [names[text[0]] for text in server.texts()]


def words(server: WebhookServer, index: int) -> str:
    """Return all that one message says."""
    post = server.posts[index]
    return "\n".join(block["text"]["text"] for block in post["blocks"] if "text" in block)


def words_of_footer(server: WebhookServer) -> str:
    """Return the small print of the last message."""
    return str(server.posts[-1]["blocks"][-1]["elements"][0]["text"])


def fit(callback: SlackProgress, *others: Callback, model: Any = None, **options: Any) -> Trainer:
    trainer = quiet_trainer(callbacks=[callback, *others], **options)
    trainer.fit(model or BoringModel(), loader(), loader())
    return trainer


# ---------------------------------------------------------------- which messages a run sends


def test_a_fit_that_ends_in_seconds_sends_two_messages(server: WebhookServer) -> None:
    fit(SlackProgress(every=1), max_epochs=20)
    assert kinds(server) == ["started", "finished"]


def test_the_first_message_tells_what_is_about_to_happen(server: WebhookServer) -> None:
    fit(SlackProgress(project="digits"), max_epochs=4)
    text = words(server, 0)
    assert "digits: training started" in text
    assert "1 × CPU, 32-true" in text
    assert "train 12 (3 batches), val 12 (3 batches)" in text
    assert "4 epochs, 12 steps" in text
    assert re.search(r"\*Where\*  \S+", text)


def test_the_last_message_tells_metrics_duration_and_checkpoint(server: WebhookServer, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss")
    fit(SlackProgress(), checkpoint, max_epochs=3, enable_checkpointing=True, default_root_dir=tmp_path)
    text = words(server, -1)
    assert checkpoint.best_model_path in text
    assert re.search(r"val_loss\s+\d", text)
    assert "*Took*" in text
    assert "epoch 3/3, step 9/9" in text
    assert re.search("[▁▂▃▄▅▆▇█]{3} val_loss", text)


@pytest.mark.parametrize(
    ("uri", "run_id", "link"),
    [
        ("https://me:secret@mlflow.example.com/", "4f2a", "https://mlflow.example.com/#/runs/4f2a"),
        ("https://mlflow.example.com", None, ""),  # the server did not answer, so there is no run
        ("sqlite:///runs/mlflow.db", "4f2a", ""),
    ],
)
def test_the_last_message_links_to_a_run_on_a_server_without_its_password(
    uri: str, run_id: str | None, link: str, server: WebhookServer
) -> None:
    class Tracker(Logger):
        tracking_uri = uri

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            """Nothing."""

        def state_dict(self) -> dict[str, Any]:
            return {"run_id": run_id}

    fit(SlackProgress(), logger=Tracker())
    assert ("Open the run" in words(server, -1)) == bool(link)
    assert link in words(server, -1)
    assert "secret" not in words(server, -1)


@pytest.mark.parametrize(
    ("every", "count"), [(1, 5), ("2ep", 2), ("50%", 1), ("20%", 4), ("9ba", 1), ("6ba", 2), ("24sp", 2), ("1h", 0)]
)
def test_progress_comes_as_often_as_asked(every: Any, count: int, server: WebhookServer) -> None:
    fit(Prompt(every), Patient(), model=BoringModel(lr=0.0), max_epochs=6)
    assert kinds(server).count("progress") == count
    assert kinds(server)[0] == "started"
    assert kinds(server)[-1] == "finished"


def test_time_gives_a_cadence_too(server: WebhookServer) -> None:
    class Second(Callback):
        def on_train_epoch_end(self, *_: Any) -> None:
            time.sleep(0.3)

    fit(Prompt("1s"), Second(), model=BoringModel(lr=0.0), max_epochs=8)
    assert 1 <= kinds(server).count("progress") <= 2


def test_the_pause_between_two_messages_is_kept_and_nothing_is_lost(server: WebhookServer) -> None:
    fit(Prompt(every=1, min_gap_s=0.12), Slow(), max_epochs=10, limit_val_batches=0)
    assert 2 <= kinds(server).count("progress") <= 5


def test_a_new_best_has_its_own_message(server: WebhookServer) -> None:
    fit(Prompt("1h"), Patient(), max_epochs=3)
    assert kinds(server) == ["started", "best", "finished"]
    assert "new best val_loss" in server.texts()[1]


def test_a_new_best_that_had_to_wait_is_told_with_its_own_value(server: WebhookServer) -> None:
    class Peak(BoringModel):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("acc", torch.tensor([0.1, 0.9, 0.5, 0.4][self.current_epoch]))

    class Pause(Patient):
        def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
            self.on_train_epoch_start(trainer)  # the gap begins when the first message has been sent
            time.sleep(0.4 if trainer.current_epoch == 1 else 0.0)

    fit(Prompt("1h", monitor="acc", min_gap_s=0.3), Pause(), model=Peak(), max_epochs=4, num_sanity_val_steps=0)
    assert "best" in kinds(server)
    assert all("0.9" in text for text in server.texts()[1:])


def test_the_expected_end_counts_from_the_message_on(server: WebhookServer, monkeypatch: pytest.MonkeyPatch) -> None:
    old, describe = datetime(2020, 1, 1, tzinfo=UTC), facts.describe
    monkeypatch.setattr(facts, "describe", lambda *args: replace(describe(*args), now=old))
    fit(Prompt(every=1), Patient(), model=BoringModel(lr=0.0), max_epochs=3)
    (ends,) = re.findall(r"<!date\^(\d+)\^", words(server, 1))
    assert 0 <= int(ends) - time.time() + 60 < 120


def test_a_fit_without_an_end_in_sight_is_told_without_one(
    server: WebhookServer, caplog: pytest.LogCaptureFixture
) -> None:
    class Stop(Patient):
        def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 2

    fit(Prompt(every=1), Stop(), model=BoringModel(lr=0.0), max_epochs=10**12)
    assert kinds(server) == ["started", "progress", "progress", "progress", "finished"]
    assert "*Ends*" not in words(server, 1)
    assert caplog.records == []


class Stream(torch.utils.data.IterableDataset[Any]):
    """Rows whose number nobody knows, which its length says."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.ones(4), torch.ones(1))] * 8)

    def __len__(self) -> int:
        raise TypeError("a stream has no length")


def test_data_of_unknown_length_is_told_as_such(server: WebhookServer) -> None:
    trainer = quiet_trainer(callbacks=[Prompt("2ba")], max_epochs=2)
    trainer.fit(BoringModel(), torch.utils.data.DataLoader(Stream(), batch_size=4))
    assert [kinds(server)[0], kinds(server)[-1]] == ["started", "finished"]
    assert "train ∞ (∞ batches)" in words(server, 0)
    assert "2 epochs, ∞ steps" in words(server, 0)


def test_workers_of_a_loader_neither_send_nor_hang(server: WebhookServer) -> None:
    trainer = quiet_trainer(callbacks=[SlackProgress()])
    trainer.fit(BoringModel(), loader(num_workers=2, multiprocessing_context="fork"))
    assert kinds(server) == ["started", "finished"]


def test_arrows_compare_with_the_message_before(server: WebhookServer) -> None:
    fit(Prompt(every=1), Patient(), max_epochs=4)
    assert "▼" not in words(server, 1)
    assert re.search(r"val_loss\s+\S+ ▼ best", words(server, 2))


def test_the_run_s_own_monitor_comes_first_with_its_mode(server: WebhookServer) -> None:
    class Scores(BoringModel):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.log("quality", torch.tensor(float(self.current_epoch)))

    stopping = EarlyStopping("quality", mode="max", patience=10)
    fit(Prompt("1h"), stopping, Patient(), max_epochs=3, model=Scores())
    assert kinds(server) == ["started", "best", "finished"]
    assert "quality 2" in server.texts()[-1]


def test_an_early_stop_is_named(server: WebhookServer) -> None:
    fit(SlackProgress(), EarlyStopping("val_loss", patience=1, min_delta=100.0), max_epochs=50)
    assert "stopped early" in server.texts()[-1]
    assert "epoch 2/50, step 6/150" in words(server, -1)


def test_validate_test_and_predict_tell_their_result(server: WebhookServer) -> None:
    trainer = quiet_trainer(callbacks=[SlackProgress()])
    model = BoringModel()
    trainer.validate(model, loader(), verbose=False)
    trainer.test(model, loader(), verbose=False)
    trainer.predict(model, loader())
    assert kinds(server) == ["finished"] * 3
    assert [text.split(": ")[1].split()[0] for text in server.texts()] == ["validation", "test", "prediction"]
    assert "val_loss" in words(server, 0)
    assert "test_loss" in words(server, 1)
    assert "epoch" not in words(server, 1)


def test_japanese_is_one_option(server: WebhookServer) -> None:
    fit(SlackProgress(language="ja"))
    assert "学習を開始" in server.texts()[0]
    assert "学習が完了" in server.texts()[1]


def test_a_resumed_fit_takes_up_the_story(server: WebhookServer, tmp_path: Path) -> None:
    first = fit(SlackProgress(), Slow(), max_epochs=3)
    first.save_checkpoint(tmp_path / "a.ckpt")
    callback = SlackProgress()
    trainer = quiet_trainer(callbacks=[callback], max_epochs=5)
    trainer.fit(BoringModel(), loader(), loader(), ckpt_path=tmp_path / "a.ckpt")
    assert "training resumed" in server.texts()[2]
    assert "step 9/15" in words(server, 2)
    assert len(callback.state_dict()["history"]) == 5
    assert re.search("[▁▂▃▄▅▆▇█]{5} val_loss", words(server, 3))


def test_the_story_of_another_version_is_taken_up_as_far_as_it_is_known(server: WebhookServer) -> None:
    callback = SlackProgress()
    callback.load_state_dict({"history": [1.0, 2.0], "of_another_version": 3})
    assert callback.state_dict()["history"] == [1.0, 2.0]


def test_a_second_run_begins_a_new_story(server: WebhookServer) -> None:
    callback = SlackProgress()
    fit(callback, max_epochs=3)
    fit(callback, max_epochs=2)
    assert len(callback.state_dict()["history"]) == 2
    assert kinds(server) == ["started", "finished"] * 2


def test_a_debugging_run_says_nothing(server: WebhookServer) -> None:
    fit(SlackProgress(), fast_dev_run=True)
    assert server.posts == []


# ---------------------------------------------------------------- runs that end badly


class Breaks(BoringModel):
    """Raises in the fifth training batch."""

    error: BaseException = ValueError("shape <64, 10> & ```so on```")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 4:
            raise self.error
        return super().training_step(batch, batch_idx)


def test_a_failure_tells_error_place_and_traceback_and_calls_whom_it_was_told_to(server: WebhookServer) -> None:
    with pytest.raises(ValueError, match="shape"):
        fit(SlackProgress(mention="here"), model=Breaks(), max_epochs=3)
    text = words(server, -1)
    assert kinds(server) == ["started", "failed"]
    assert "<!here>" in text
    assert "ValueError: shape &lt;64, 10&gt; &amp;" in text
    assert "epoch 2/3, step 4/9" in text
    assert f'File "{Path.cwd()}' not in text
    assert "in training_step" in text
    assert "^^^" not in text


def test_a_failure_before_the_first_batch_is_told(server: WebhookServer) -> None:
    class NoOptimizer(BoringModel):
        def configure_optimizers(self) -> Any:
            raise RuntimeError("no optimizer today")

    with pytest.raises(RuntimeError, match="no optimizer today"):
        fit(SlackProgress(), model=NoOptimizer())
    assert kinds(server) == ["failed"]


@pytest.mark.parametrize("hook", ["prepare_data", "setup"])
def test_data_that_cannot_be_read_is_told(hook: str, server: WebhookServer, tmp_path: Path) -> None:
    def fails(*_: Any) -> None:
        raise FileNotFoundError("no such bucket")

    data = LightningDataModule()
    setattr(data, hook, fails)
    with pytest.raises(FileNotFoundError, match="no such bucket"):
        quiet_trainer(callbacks=[SlackProgress()], default_root_dir=tmp_path).fit(BoringModel(), datamodule=data)
    assert kinds(server) == ["failed"]
    assert tmp_path.name in words_of_footer(server)


def test_a_device_that_answers_no_more_is_not_asked_for_the_last_message(server: WebhookServer) -> None:
    class Lost:
        def __float__(self) -> float:
            raise RuntimeError("device-side assert triggered")

    class Crashes(Breaks):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 4:
                self.trainer.optimizers[0].param_groups[0]["lr"] = Lost()
            return super().training_step(batch, batch_idx)

    with pytest.raises(ValueError, match="shape"):
        fit(SlackProgress(), model=Crashes(), max_epochs=3)
    assert kinds(server) == ["started", "failed"]


def test_a_failure_is_told_with_the_order_of_the_reference_framework_too(server: WebhookServer) -> None:
    with pytest.raises(ValueError, match="shape"):
        fit(SlackProgress(), model=Breaks(), max_epochs=3, parity="lightning")
    assert kinds(server) == ["started", "failed"]


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_failing_evaluation_is_told(stage: str, server: WebhookServer) -> None:
    class Bad(BoringModel):
        def forward(self, x: Any) -> Any:
            raise RuntimeError("bad layer")

    with pytest.raises(RuntimeError, match="bad layer"):
        getattr(quiet_trainer(callbacks=[SlackProgress()]), stage)(Bad(), loader())
    assert kinds(server) == ["failed"]


def test_ctrl_c_tells_how_to_go_on(server: WebhookServer) -> None:
    class Interrupted(Breaks):
        error = KeyboardInterrupt()

    fit(SlackProgress(resume_hint="my-project fit --resume"), model=Interrupted(), max_epochs=3)
    assert kinds(server) == ["started", "stopped"]
    assert "training interrupted, Ctrl-C" in server.texts()[-1]
    assert "my-project fit --resume" in words(server, -1)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let SIGINT raise, also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return super().training_step(batch, batch_idx)

    class Again(Callback):
        def on_exception(self, *_: Any) -> None:
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()

    with WebhookServer("hang") as server:
        monkeypatch.setenv("SLACK_WEBHOOK_URL", server.url)
        start = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            fit(SlackProgress(exit_limit_s=60.0), Again(), model=Interrupted(), max_epochs=3)
        assert time.perf_counter() - start < 30.0


class Preempted(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(batch, batch_idx)


def test_a_machine_that_will_soon_be_off_is_not_held_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    with WebhookServer("hang") as server:
        monkeypatch.setenv("SLACK_WEBHOOK_URL", server.url)
        start = time.perf_counter()
        with pytest.raises(SystemExit):
            fit(SlackProgress(exit_limit_s=60.0), model=Preempted(), max_epochs=3)
        assert time.perf_counter() - start < 30.0


def test_a_machine_taken_away_is_told_as_such(server: WebhookServer) -> None:
    with pytest.raises(SystemExit):
        fit(SlackProgress(), model=Preempted(), max_epochs=3)
    assert "stopped by the machine" in server.texts()[-1]
    assert "SIGTERM" in words(server, -1)


def test_a_run_that_hangs_is_told_once_with_the_place(server: WebhookServer) -> None:
    class Hangs(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 4:
                _wait_for_a_dead_disk()
            return super().training_step(batch, batch_idx)

    fit(SlackProgress(stalled_after_s=0.4), model=Hangs(), max_epochs=3)
    assert kinds(server) == ["started", "stalled", "finished"]
    assert "_wait_for_a_dead_disk" in words(server, 1)


def _wait_for_a_dead_disk() -> None:
    time.sleep(1.4)


def test_a_slow_validation_is_no_hang(server: WebhookServer) -> None:
    class Thorough(BoringModel):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            time.sleep(0.25)

    fit(SlackProgress(stalled_after_s=0.5), model=Thorough())
    assert "stalled" not in kinds(server)


# ---------------------------------------------------------------- never in the way


@pytest.mark.parametrize("answer", ["hang", "reset", "drip headers", 500, 404, 302, (429, "", {"Retry-After": "60"})])
def test_the_training_is_the_same_and_its_end_not_late_whatever_the_server_does(
    answer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = fit(Slow(), max_epochs=2).model.state_dict()  # type: ignore[arg-type]
    with WebhookServer(answer) as server:
        monkeypatch.setenv("SLACK_WEBHOOK_URL", server.url)
        start = time.perf_counter()
        trainer = fit(Prompt(every=1, exit_limit_s=1.0), Slow(), max_epochs=2)
        assert time.perf_counter() - start < 2.0
        assert server.posts
    assert all(torch.equal(value, expected[name]) for name, value in trainer.model.state_dict().items())
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_a_server_that_is_gone_holds_up_the_end_of_one_run_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    callback = SlackProgress(exit_limit_s=4.0)
    with WebhookServer("hang") as server:
        monkeypatch.setenv("SLACK_WEBHOOK_URL", server.url)
        fit(callback)
        start = time.perf_counter()
        fit(callback)
        assert time.perf_counter() - start < 3.9
        server.answers = [200]
        fit(callback)
        assert kinds(server)[-2:] == ["started", "finished"]


@pytest.mark.parametrize("answer", [(404, "no_service"), 500])
def test_a_fit_and_the_test_after_it_warn_once(
    answer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with WebhookServer(answer) as old, WebhookServer() as new:
        monkeypatch.setenv("SLACK_WEBHOOK_URL", old.url)
        trainer = quiet_trainer(callbacks=[Prompt(exit_limit_s=0.5)])
        trainer.fit(BoringModel(), loader())
        posts = len(old.posts)
        trainer.test(BoringModel(), loader(), verbose=False)
        assert len([record for record in caplog.records if "do not arrive" in record.getMessage()]) == 1
        assert (len(old.posts) == posts) == (answer != 500), "what is gone is left alone"
        monkeypatch.setenv("SLACK_WEBHOOK_URL", new.url)
        trainer.test(BoringModel(), loader(), verbose=False)
        assert kinds(new) == ["finished"]


def test_without_an_address_there_is_one_quiet_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("SLACK_WEBHOOK_URL", raising=False)
    caplog.set_level(logging.INFO)
    fit(SlackProgress())
    (line,) = [record for record in caplog.records if "SLACK_WEBHOOK_URL" in record.getMessage()]
    assert line.levelno == logging.INFO


def test_an_unusable_address_is_told_and_the_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SLACK_WEBHOOK_URL", f"hooks.slack.com/{TOKEN}")
    trainer = fit(SlackProgress())
    assert trainer.global_step == 3
    trainer.test(BoringModel(), loader(), verbose=False)
    assert caplog.text.count("does not read like https") == 1
    assert TOKEN not in caplog.text


def test_a_mistake_in_the_callback_ends_the_messages_and_not_the_training(
    server: WebhookServer, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(SlackProgress):
        def payload(self, message: Any) -> dict[str, Any]:
            raise KeyError("no such field")

    assert fit(Wrong(), max_epochs=2).global_step == 6
    assert "KeyError in `on_train_start`" in caplog.text
    assert server.posts == []


def test_it_is_absent_on_other_ranks(server: WebhookServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda self: False))
    fit(SlackProgress())
    assert server.posts == []


def test_two_processes_send_one_story(server: WebhookServer, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "from engine.callbacks.slack import SlackProgress\n"
        "from tests.engine.toys import BoringModel, loader, quiet_trainer\n"
        "trainer = quiet_trainer(callbacks=[SlackProgress()], devices=2, strategy='ddp')\n"
        "trainer.fit(BoringModel(), loader(), loader())\n"
    )
    paths = [str(Path(path).resolve()) for path in (*sys.path, os.getcwd()) if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert kinds(server) == ["started", "finished"]
    assert "2 × CPU" in words(server, 0)


# ---------------------------------------------------------------- sweeps and tuning


def test_a_sweep_sends_one_summary(server: WebhookServer) -> None:
    with SlackProgress(project="digits").sweep("learning rates", metric="val_loss") as trials:
        for lr in (0.1, 0.01):
            trainer = fit(SlackProgress(), model=BoringModel(lr=lr))
            trials.append((f"lr={lr}", float(trainer.callback_metrics["val_loss"])))
        trials.append(("lr=1e9", None))
    assert kinds(server) == ["swept"]
    assert "sweep finished, 3 trials" in server.texts()[0]
    assert re.search(r"\*Best\*  val_loss \S+, lr=0.1", words(server, 0))
    assert "*Failures*  1" in words(server, 0)


def test_a_sweep_of_sweeps_sends_one_summary(server: WebhookServer) -> None:
    with SlackProgress().sweep("all") as trials:
        with SlackProgress().sweep("some") as some:
            some.append(("a", 1.0))
        trials.append(("some", some[0][1]))
        fit(SlackProgress())
    fit(SlackProgress())
    assert kinds(server) == ["swept", "started", "finished"]


def test_a_mistake_in_what_a_sweep_found_keeps_nobody_from_having_it(
    server: WebhookServer, caplog: pytest.LogCaptureFixture
) -> None:
    with SlackProgress().sweep("lr") as trials:
        trials.append(("lr=1", "high"))  # type: ignore[arg-type]
    assert trials == [("lr=1", "high")]
    assert "No more Slack messages" in caplog.text


def test_a_sweep_that_breaks_still_tells_what_it_found(server: WebhookServer) -> None:
    def sweep() -> None:
        with SlackProgress().sweep("lr", mode="max") as trials:
            trials.extend([("bad", 0.1), ("good", 0.9)])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        sweep()
    assert re.search(r"0\.9\s+good\n0\.1\s+bad", words(server, 0))


def test_trials_in_processes_of_their_own_keep_quiet(server: WebhookServer) -> None:
    with SlackProgress().sweep("lr") as trials:
        child = multiprocessing.get_context("fork").Process(target=_trial)
        child.start()
        child.join(60)
        trials.append(("one", float(child.exitcode or 0)))
    assert kinds(server) == ["swept"]
    assert "*Best*  0, one" in words(server, 0)


def _trial() -> None:
    quiet_trainer(callbacks=[SlackProgress()]).validate(BoringModel(), loader(), verbose=False)


def test_the_search_for_a_learning_rate_sends_nothing_of_its_own(server: WebhookServer) -> None:
    from engine.tuner import Tuner

    trainer = quiet_trainer(callbacks=[SlackProgress()], max_epochs=2)
    Tuner(trainer).lr_find(BoringModel(), loader(64), num_training=20)
    assert kinds(server) == []


def test_finders_inside_a_fit_send_nothing_of_their_own(server: WebhookServer) -> None:
    fit(SlackProgress(), LearningRateFinder(num_training_steps=5), model=BoringModel(), max_steps=9, max_epochs=3)
    assert kinds(server) == ["started", "finished"]


# ---------------------------------------------------------------- arguments, copies, another service


@pytest.mark.parametrize("every", ["", "never", "0%", 0, "10 percent", "5eps", "-1ep", "%"])
def test_a_cadence_that_is_none_is_refused(every: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"every=.*'10%', '2ep'"):
        SlackProgress(every)


@pytest.mark.parametrize(
    "options",
    [
        {"language": "fr"},
        {"mode": "maximum"},
        {"metrics": "val_acc"},
        {"mention": "everybody"},
        {"mention": "<!channel> hello"},
        {"exit_limit_s": float("inf")},
        {"exit_limit_s": -1.0},
        {"stalled_after_s": -1.0},
    ],
)
def test_an_argument_that_cannot_be_understood_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(MisconfigurationException, match="accepted are"):
        SlackProgress(**options)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("here", "<!here>"),
        ("@channel", "<!channel>"),
        ("<!everyone>", "<!everyone>"),
        ("U012AB3CD", "<@U012AB3CD>"),
        ("@W012AB3CD", "<@W012AB3CD>"),
        ("S012AB3CD", "<!subteam^S012AB3CD>"),
    ],
)
def test_a_mention_is_written_as_slack_wants_it(given: str, sent: str) -> None:
    assert SlackProgress(mention=given).mention == sent


def test_copies_hold_no_thread_and_no_address(server: WebhookServer) -> None:
    callback = SlackProgress()
    trainer = quiet_trainer(callbacks=[callback])
    callback.setup(trainer, BoringModel(), "fit")
    assert TOKEN not in repr(vars(callback))
    assert TOKEN.encode() not in pickle.dumps(callback)
    assert TOKEN not in json.dumps(callback.state_dict())
    copy.deepcopy(callback).teardown(trainer, BoringModel(), "fit")
    callback.teardown(trainer, BoringModel(), "fit")


def test_another_service_is_one_small_class(server: WebhookServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCORD_WEBHOOK_URL", server.url)
    with pytest.raises(ValueError, match="shape"):
        fit(DiscordProgress(mention="here"), model=Breaks(), max_epochs=3)
    first, last = server.posts
    assert "training started" in first["embeds"][0]["title"]
    assert first["allowed_mentions"] == {"parse": [], "users": []}
    assert last["content"] == "@here"
    assert last["allowed_mentions"]["parse"] == ["everyone"]
    assert "ValueError" in last["embeds"][0]["description"]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_documents_class_for_teams_works(
    language: str, server: WebhookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAMS_WEBHOOK_URL", server.url)
    monkeypatch.delenv("SLACK_WEBHOOK_URL")
    page = (Path(__file__).parents[3] / "docs" / language / "slack.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code.replace("my_project.engine", "engine"), found)
    server.answers = [202]
    with pytest.raises(ValueError, match="shape"):
        fit(found["TeamsProgress"](language=language), model=Breaks(), max_epochs=3)
    first, last = (post["attachments"][0]["content"] for post in server.posts)
    assert len([fact for fact in first["body"][1]["facts"] if fact["value"]]) >= 4
    assert "ValueError: shape" in json.dumps(last["body"])
    with pytest.raises(MisconfigurationException, match="mention"):
        found["TeamsProgress"](mention="here")


def test_nothing_else_in_the_engine_mentions_slack() -> None:
    import engine

    root = Path(engine.__file__ or "").parent
    named = {path.name for path in root.rglob("*.py") if "slack" in path.read_text(encoding="utf-8").lower()}
    assert named <= {"slack.py", "slack_messages.py", "slack_facts.py", "webhook.py", "webhook_discord.py"}


@pytest.fixture
def notify(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of a project; it has an engine of its own, so that its classes are others."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "template" / "src")
    module = importlib.import_module("{{ package_name }}.notify")
    monkeypatch.setattr(module.SlackProgress, "min_interval_s", 0.0)
    return module


def test_the_sample_messages_can_be_posted_and_a_gone_webhook_is_an_error(
    notify: Any, server: WebhookServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    callback = notify.SlackProgress(language="ja", mention="here", project="digits", resume_hint="digits fit")
    assert notify.post_samples(callback) == len(server.posts) == 10
    assert server.texts()[0] == "🚀 digits: 学習を開始"
    assert any("digits fit" in words(server, i) for i in range(10))
    server.answers = [(404, "no_service")]
    with pytest.raises(notify.ProjectError, match="no_service"):
        notify.post_samples(callback)
    monkeypatch.delenv("SLACK_WEBHOOK_URL")
    with pytest.raises(notify.ProjectError, match="SLACK_WEBHOOK_URL is not set"):
        notify.post_samples(callback)
    assert "my-project: training finished" in notify.as_text(notify.samples("en")["finished"])
    assert caplog.records == [], "the error says it"
