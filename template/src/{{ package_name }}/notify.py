"""Samples of the messages that a training sends, about a made-up run: to look at, and to try a webhook with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from .build import reporters
from .config import Config
from .engine.callbacks.slack import SlackProgress
from .engine.callbacks.slack_messages import KINDS, Message, Metric, Status, compose
from .engine.callbacks.webhook import WebhookSender, read_address
from .engine.errors import EngineError
from .sources import ProjectError

_RUN = Status(
    project="my-project",
    run="20261121-143200-baseline",
    place="trainer@gpu-box",
    commit="1a2b3c4",
    devices="2 × NVIDIA H200, bf16-mixed",
    data=(("train", 50_000, 391), ("val", 10_000, 79)),
    epoch=12,
    max_epochs=30,
    step=4692,
    max_steps=11730,
    elapsed_s=754.0,
    left_s=1131.0,
    silence_s=1860.0,
    now=datetime(2026, 11, 21, 14, 44, tzinfo=UTC),
    metrics=(Metric("val_acc", 0.9742, 0.9611, 0.9742), Metric("val_loss", 0.0918, 0.1204, 0.0897)),
    history=(0.61, 0.74, 0.83, 0.88, 0.91, 0.925, 0.94, 0.951, 0.948, 0.958, 0.9611, 0.9742),
    lr=1e-3,
    checkpoint="runs/digits/20261121-143200-baseline/checkpoints/last.ckpt",
    link="https://mlflow.example.com/#/runs/0123456789abcdef",
    traceback='  File "src/my_project/science/task.py", line 41, in training_step\n    loss = self.loss(logits, y)',
    resume="my-project fit --resume auto",
    trials=(("lr=0.001, width=128", 0.981), ("lr=0.01, width=64", 0.962)),
    failures=1,
    metric="val_acc",
)
_ERROR = "ValueError: expected targets of shape [64], got [64, 10]"
_REASONS = {"failed": _ERROR, "interrupted": "Ctrl-C", "preempted": "SIGTERM"}


def samples(language: str = "en", mention: str = "", **known: Any) -> dict[str, Message]:
    """Return every kind of message in a language, by kind; `known` is put in place of what is made up."""
    run = replace(_RUN, **known)
    return {kind: compose(kind, replace(run, reason=_REASONS.get(kind, "")), language, mention) for kind in KINDS}


def as_text(message: Message) -> str:
    """Return a message as lines for a terminal."""
    facts = [f"{label}: {value}" for label, value in message.facts]
    parts = (message.title, message.mention, message.bar, *facts, message.table, message.traceback, message.footer)
    return "\n".join(filter(None, parts))


def configured(config: Config, changed: Mapping[str, Any]) -> list[SlackProgress]:
    """Return the callbacks of the configuration that send messages, `changed` arguments included; else the usual one.

    Raises:
        ProjectError: They do not take an argument as it was given.
    """
    try:
        found = [one for one in reporters(config, **changed) if isinstance(one, SlackProgress)]
        return found or [SlackProgress(**changed)]
    except EngineError as error:
        raise ProjectError(str(error)) from None


def of_callback(callback: SlackProgress) -> dict[str, Message]:
    """Return the samples as a callback would word them."""
    known = {"project": callback.project, "resume": callback.resume_hint}
    return samples(callback.language, callback.mention, **known)


def post_samples(callback: SlackProgress) -> int:
    """Post one message of each kind to the callback's webhook; return how many.

    Raises:
        ProjectError: There is no address, or a message did not arrive.
    """
    try:
        address = read_address(callback.environment)
    except EngineError as error:
        raise ProjectError(str(error)) from None
    if address is None:
        raise ProjectError(
            f"{callback.environment} is not set. Make an incoming webhook in {callback.service}, set the variable to "
            "its address and try again; `--show` prints the messages without sending them."
        )
    sender = WebhookSender(address, callback.service, callback.min_interval_s, is_told=True)  # the error below tells
    messages = of_callback(callback)
    for kind, message in messages.items():
        sender.post(callback.payload(message), kind)
    if not sender.close(60.0):
        raise ProjectError(f"Not every message arrived: {sender.problem}.", exit_code=1)
    return len(messages)
