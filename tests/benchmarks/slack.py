"""A step with Slack messages on and a server that hangs, against one without: a row of `python -m tests.benchmarks`.

Both are measured in turns in one process by the CPU time of the training's thread, so that the ratio holds on a busy
machine. A second measurement without messages tells how large noise is.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ENGINE_ROOT = Path(__file__).resolve().parents[2] / "template" / "src" / "{{ package_name }}"
if "engine" not in sys.modules:
    sys.path.insert(0, str(ENGINE_ROOT))

from engine import Callback  # noqa: E402
from engine.callbacks.slack import SlackProgress  # noqa: E402

from tests.benchmarks.measure import Budget, Row, Samples, rounds  # noqa: E402
from tests.engine.callbacks.slack_server import WebhookServer  # noqa: E402
from tests.engine.toys import BoringModel, loader, quiet_trainer  # noqa: E402


class Clock(Callback):
    """Measures the training alone, without what comes before and after."""

    def on_train_epoch_start(self, *_: Any) -> None:
        self.started = time.thread_time()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.seconds = time.thread_time() - self.started


def seconds_per_step(steps: int, *callbacks: Callback) -> float:
    """Return what a step of a tiny model takes, the hardest case for whatever runs beside it."""
    clock = Clock()
    trainer = quiet_trainer(callbacks=[clock, *callbacks])
    trainer.fit(BoringModel(), loader(steps, batch_size=1))
    return clock.seconds / steps


def compare(rounds_: int, steps: int) -> Samples:
    """Return seconds per step by round: "bare" without messages, "ours" with them, "again" without once more."""
    kept = os.environ.get("SLACK_WEBHOOK_URL", "")
    with WebhookServer("hang") as server:
        os.environ["SLACK_WEBHOOK_URL"] = server.url
        contenders = {
            "bare": lambda: seconds_per_step(steps),
            "ours": lambda: seconds_per_step(steps, SlackProgress("1s", min_gap_s=0.0, exit_limit_s=0.1)),
            "again": lambda: seconds_per_step(steps),
        }
        samples = rounds(contenders, rounds_)
        assert server.posts, "the messages were on"
    os.environ["SLACK_WEBHOOK_URL"] = kept
    return samples


def row(rounds_: int, steps: int) -> Row:
    """The row of the table; bare is the engine itself without messages."""
    samples = {name: [1e6 * value for value in values] for name, values in compare(rounds_, steps).items()}
    off, again = statistics.median(samples["bare"]), statistics.median(samples.pop("again"))
    note = f"bare: the same without messages, measured again {again / off:.3g} times"
    return Row("step, Slack on and its server hanging", "µs", samples, Budget(ratio=1.1), note=note)
