"""The webhook's address is in nothing that a run writes or prints, whatever happens."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.engine.callbacks.slack_server import TOKEN, WebhookServer

# All in one process: an import of torch and the trackers takes longer than the trainings.
RUN = """
import logging, os, pathlib, pickle, sys, traceback
logging.basicConfig(level=logging.DEBUG, format="%(name)s %(threadName)s %(message)s")
import torch
from engine import Trainer
from engine.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from engine.callbacks.slack import SlackProgress
from engine.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger
from tests.engine.toys import BoringModel, loader


class Model(BoringModel):
    def __init__(self):
        super().__init__()
        self.save_hyperparameters()

    def training_step(self, batch, batch_idx):
        if self.global_step == 7 and self.trainer.logger.name == "fail":
            raise RuntimeError(f"all callbacks: {[vars(c) for c in self.trainer.callbacks]}")
        return super().training_step(batch, batch_idx)


def train(here, mode, is_tracked):
    callback = SlackProgress(1, min_gap_s=0.0, exit_limit_s=2.0)
    loggers = [CSVLogger(here, name=mode)]
    if is_tracked:
        loggers += [TensorBoardLogger(here), MLFlowLogger("e", tracking_uri=f"sqlite:///{here}/mlflow.db")]
    trainer = Trainer(max_epochs=4, accelerator="cpu", devices=1, logger=loggers, default_root_dir=here,
                      callbacks=[callback, ModelCheckpoint(here / "checkpoints", monitor="val_loss", save_last=True),
                                 OnExceptionCheckpoint(here)])
    try:
        trainer.fit(Model(), loader(), loader())
    finally:
        print(callback, vars(callback), callback.state_dict(), trainer.callbacks, pickle.dumps(callback))


def mode_of(line):  # a function, so that the address is no variable of the frames below
    mode, os.environ["SLACK_WEBHOOK_URL"] = line.split()
    return mode


for number, mode in enumerate(map(mode_of, sys.stdin)):
    here = pathlib.Path.cwd() / str(number)
    here.mkdir()
    try:
        train(here, mode, is_tracked=number == 0)
        print("ended well")
    except RuntimeError as error:
        print("ended badly")
        # What tools that print the locals of every frame show.
        frames = traceback.TracebackException(type(error), error, error.__traceback__, capture_locals=True).format()
        print(*frames, file=sys.stderr)
    del os.environ["SLACK_WEBHOOK_URL"]
"""
DAYS: list[tuple[str, list[object]]] = [
    ("fail", [200]),
    ("fail", [500, "reset", 302, 200]),
    ("well", ["hang"]),
    ("well", [(404, f"no_service /services/{TOKEN}")]),
]


def test_no_file_and_no_line_of_a_run_holds_the_address(tmp_path: Path) -> None:
    paths = [str(Path(path).resolve()) for path in (*sys.path, os.getcwd()) if path]
    with ExitStack() as stack:
        servers = [stack.enter_context(WebhookServer(*answers)) for _, answers in DAYS]
        arguments = [f"{mode} {server.url}" for (mode, _), server in zip(DAYS, servers, strict=True)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", RUN]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, input="\n".join(arguments).encode(), capture_output=True,
            timeout=240, check=False,
        )  # fmt: skip
        assert all(server.posts for server in servers), done.stderr.decode()[-2000:]
    assert [line for line in done.stdout.decode().splitlines() if line.startswith("ended")] == [
        "ended badly", "ended badly", "ended well", "ended well",
    ]  # fmt: skip
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {".ckpt", ".csv", ".db"} <= {path.suffix for path in files}
    secret = TOKEN.rpartition("/")[2].encode()
    assert [path for path in files if secret in path.read_bytes()] == []
    assert secret not in done.stdout
    assert secret not in done.stderr
