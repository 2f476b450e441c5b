"""A hanging server costs the training nothing."""

from __future__ import annotations

import pytest
from engine.callbacks.slack import SlackProgress

from tests.benchmarks.slack import compare
from tests.engine.callbacks.slack_server import WebhookServer
from tests.engine.calls import watch_a_step


def test_steps_are_as_fast_with_a_hanging_server_as_without_messages() -> None:
    samples = compare(rounds_=3, steps=500)
    ratios = [on / off for on, off in zip(samples["ours"], samples["bare"], strict=True)]
    noise = [again / off for again, off in zip(samples["again"], samples["bare"], strict=True)]
    assert min(ratios) < 1.1 * max(min(noise), 1.0)


def test_a_step_calls_two_functions_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with WebhookServer("hang") as server:
        monkeypatch.setenv("SLACK_WEBHOOK_URL", server.url)
        watched = watch_a_step(callbacks=[SlackProgress(exit_limit_s=0.1)])
        assert server.posts, "the messages were on"
    assert watched.calls <= watch_a_step().calls + 2, watched.describe()
