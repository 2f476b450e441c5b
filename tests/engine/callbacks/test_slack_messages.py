"""What messages say and look like: kept examples, Slack's limits under hostile text, the small drawings.

`python tests/engine/callbacks/test_slack_messages.py` writes the kept examples anew; look at the difference.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

KEPT = Path(__file__).parents[2] / "data" / "slack"
SOURCE = Path(__file__).parents[3] / "template" / "src"
sys.path[:0] = [str(SOURCE), str(SOURCE / "{{ package_name }}")]

from engine.callbacks.slack_messages import (  # noqa: E402
    _LABELS,
    _WORDS,
    KINDS,
    LANGUAGES,
    Message,
    Metric,
    Status,
    block_kit,
    compose,
    duration,
    fitted,
    sparkline,
)
from engine.callbacks.webhook_discord import DiscordProgress  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

notify = importlib.import_module("{{ package_name }}.notify")  # of the rendered project: the samples of `notify-test`
samples = notify.samples
CASES = [(kind, language) for kind in KINDS for language in LANGUAGES]


def units(text: str) -> int:
    """Return the length of a text as JavaScript and Slack's clients count it."""
    return len(text.encode("utf-16-le")) // 2


@pytest.mark.parametrize(("kind", "language"), CASES)
def test_each_message_looks_as_it_was_approved(kind: str, language: str) -> None:
    kept = json.loads((KEPT / f"{kind}.{language}.json").read_text(encoding="utf-8"))
    assert block_kit(samples(language, mention="<!here>")[kind]) == kept


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_failure_calls_somebody(kind: str) -> None:
    assert ("<!here>" in json.dumps(block_kit(samples("en", "<!here>")[kind]))) == (kind == "failed")


@pytest.mark.parametrize("word", sorted(_WORDS))
def test_both_languages_use_the_same_values(word: str) -> None:
    english, japanese = (sorted(re.findall(r"\{\w+\}", text)) for text in _WORDS[word])
    assert english == japanese


def test_japanese_messages_hold_no_english_words_of_ours() -> None:
    english = {text for text, _ in _WORDS.values() if "{" not in text and text not in {"fit", "test"}}
    for message in samples("ja").values():
        assert not (english | set(_LABELS.split())) & {label for label, _ in message.facts}
        assert re.search("[ぁ-んァ-ヶ一-龠]", message.title)


nasty = st.text(
    alphabet=st.one_of(st.sampled_from("<>&`*_~|!@#😀\n\x1b[31m\u202e\ud800…\x00"), st.characters()), max_size=400
)
long_nasty = st.builds(lambda text, times: text * times, nasty, st.sampled_from([1, 1, 60]))
pings = st.sampled_from(
    ["``\x00`<!channel>", "<!here|x>", "<@U012AB3CD>", "<!subteam^S012AB3CD>", "&lt;!channel&gt;", "```<!here>"]
)
text = st.one_of(long_nasty, pings)
value = st.one_of(st.floats(), st.integers(-(10**9), 10**9).map(float))
metric = st.builds(Metric, text, value, st.none() | value, st.none() | value)
seconds = st.floats(0, 1e9)
statuses = st.builds(
    Status,
    **dict.fromkeys(("project", "run", "place", "commit", "devices", "checkpoint", "link", "reason"), text),
    data=st.lists(
        st.tuples(text, st.none() | st.integers(0, 10**9), st.none() | st.integers(0, 10**9)), max_size=2
    ).map(tuple),
    traceback=text,
    resume=text,
    stage=st.sampled_from(["fit", "validate", "test", "predict"]),
    epoch=st.integers(0, 10**7),
    max_epochs=st.none() | st.integers(0, 10**7),
    step=st.integers(0, 10**12),
    max_steps=st.none() | st.integers(0, 10**12),
    elapsed_s=seconds,
    left_s=st.none() | seconds | st.floats(0, 1e300),
    silence_s=seconds,
    now=st.just(datetime(2026, 11, 21, tzinfo=UTC)),
    metrics=st.lists(metric, max_size=7).map(tuple),
    history=st.lists(value, max_size=80).map(tuple),
    lr=st.none() | value,
    trials=st.lists(st.tuples(text, value), max_size=20).map(tuple),
    failures=st.integers(0, 10**6),
    metric=text,
)


@settings(max_examples=150, deadline=None)
@given(statuses, st.sampled_from(CASES))
def test_no_text_breaks_a_limit_of_slack_or_calls_anybody(status: Status, case: tuple[str, str]) -> None:
    kind, language = case
    payload = block_kit(compose(kind, status, language))
    wire = json.dumps(payload)
    assert json.loads(wire) == payload
    assert 1 <= len(payload["blocks"]) <= 50
    assert 0 < units(payload["text"]) <= 3000
    for block in payload["blocks"]:
        check_block(block)
    for piece in strings_in(payload):
        assert not re.search(r"<(?!\!date\^\d+\^|https?://[^\s<>|]+\|)", piece), "only our own markup"
        assert not re.search(r"&(?!amp;|lt;|gt;)", piece), "no half or unknown entity"
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e]", piece)


def check_block(block: dict[str, Any]) -> None:
    if block["type"] == "header":
        assert block["text"]["type"] == "plain_text"
        assert 1 <= units(block["text"]["text"]) <= 150
    elif block["type"] == "section":
        assert set(block) == {"type", "text"}
        assert block["text"]["type"] == "mrkdwn"
        assert block["text"]["verbatim"] is True, "else Slack makes pings of plain @here"
        assert 1 <= units(block["text"]["text"]) <= 3000
        assert block["text"]["text"].strip()
        assert block["text"]["text"].count("```") in (0, 2)
    else:
        assert block["type"] == "context"
        assert 1 <= len(block["elements"]) <= 10
        assert all(element["verbatim"] for element in block["elements"])
        assert all(1 <= units(element["text"]) <= 3000 for element in block["elements"])


def strings_in(node: Any) -> list[str]:
    if isinstance(node, str):
        return [node]
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    return [text for child in children for text in strings_in(child)]


@settings(max_examples=100, deadline=None)
@given(statuses, st.sampled_from(CASES), st.sampled_from(["", "@here", "<@12345678>"]))
def test_no_text_breaks_a_limit_of_discord_or_calls_anybody(
    status: Status, case: tuple[str, str], mention: str
) -> None:
    payload = DiscordProgress().payload(compose(case[0], status, case[1], mention))
    (embed,) = payload["embeds"]
    footer = embed.get("footer", {}).get("text", "")
    assert 0 < units(embed["title"]) <= 256
    assert units(embed["description"]) <= 4096
    assert units(embed["title"]) + units(embed["description"]) + units(footer) <= 6000
    assert payload["content"] in ("", mention)
    allowed = payload["allowed_mentions"]
    assert allowed["parse"] == (["everyone"] if payload["content"] == "@here" else [])
    assert allowed["users"] == (["12345678"] if payload["content"] == "<@12345678>" else [])


@given(st.text(max_size=300), st.integers(1, 200), st.booleans())
def test_fitting_never_exceeds_and_never_splits(text: str, limit: int, keep_end: bool) -> None:
    cut = fitted(text, limit, {"&": "&amp;", "<": "&lt;", ">": "&gt;"}, keep_end=keep_end)
    assert units(cut) <= limit
    assert not re.search(r"&(?!amp;|lt;|gt;)", cut)


def test_fitting_keeps_the_wanted_end_and_says_that_it_cut() -> None:
    assert fitted("abcdef", 4, {}) == "abc…"
    assert fitted("abcdef", 4, {}, keep_end=True) == "…def"
    assert fitted("\x1b[31mred\x1b[0m", 10, {}) == "red"


@given(st.lists(value, max_size=300), st.integers(1, 40))
def test_a_sparkline_is_as_wide_as_asked_at_most(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(len(values), width)
    assert set(line) <= set("▁▂▃▄▅▆▇█×")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_line_of_the_table_fits_a_phone(language: str) -> None:
    metrics = (Metric("val_multiclass_average_precision", -1.234e-05, 1.0, -1.234e-05), Metric("acc", 0.9742))
    status = Status("p", epoch=1, metrics=metrics, history=(1.0, 2.0) * 40, lr=1e-3)
    lines = compose("progress", status, language).table.splitlines()
    assert max(len(line) for line in lines) <= 46
    assert lines[0].startswith("val_mul…precision")


def test_a_sparkline_rises_with_its_values() -> None:
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 3, 3]) == "▁▁▁"
    assert sparkline([1, math.nan, 2]) == "▁×█"
    assert sparkline([1.7e308, -1.7e308]) == "█▁"
    assert sparkline([0.0, 5e-324]) == "▁▁"
    assert sparkline(list(range(100)))[-1] == "█"


@pytest.mark.parametrize(
    ("seconds", "english", "japanese"),
    [
        (0, "0 s", "0秒"),
        (59.6, "1 min", "1分"),
        (75, "1 min 15 s", "1分15秒"),
        (3600, "1 h", "1時間"),
        (11100, "3 h 5 min", "3時間5分"),
        (200000, "2 d 7 h", "2日7時間"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, english: str, japanese: str) -> None:
    assert (duration(seconds), duration(seconds, "ja")) == (english, japanese)


def test_the_end_of_a_long_traceback_is_what_is_kept() -> None:
    lines = "\n".join(f"line {i} {'x' * 300}" for i in range(100))
    message = compose("failed", replace(Status("p", epoch=1), reason="ValueError: boom", traceback=lines))
    (code,) = [text for text in strings_in(block_kit(message)) if text.startswith("```")]
    assert "line 99" in code
    assert "line 80" not in code


def test_an_error_on_several_lines_becomes_one() -> None:
    message = compose("failed", Status("p", epoch=1, reason="ValueError: one\n  two"))
    assert any("ValueError: one two" in text for text in strings_in(block_kit(message)))


@pytest.mark.parametrize(("step", "bar"), [(0, "░░░░ 0%"), (29, "█░░░ 29%"), (9999, "██ 99%"), (10**4, "██ 100%")])
def test_a_bar_is_full_at_the_end_only(step: int, bar: str) -> None:
    steps = 100 if step < 100 else 10**4
    drawn = compose("progress", Status("p", epoch=1, step=step, max_steps=steps)).bar
    assert drawn.endswith(bar.split()[1])
    assert ("░" in drawn) == (step < steps)


def test_a_sweep_tells_what_its_trials_were_compared_by() -> None:
    message = compose("swept", Status("p", "lr", metric="val_loss", trials=(("lr=0.1", 0.25),)))
    assert ("Best", "val_loss 0.25, lr=0.1") in message.facts
    assert "val_loss 0.25" in message.summary


def test_one_is_no_plural() -> None:
    status = Status("p", epoch=1, max_epochs=1, max_steps=31, data=(("train", 1, 1), ("val", 31, 31)))
    facts = dict(compose("started", status).facts)
    assert facts["Plan"] == "1 epoch, 31 steps"
    assert facts["Data"] == "train 1 (1 batch), val 31 (31 batches)"
    assert compose("swept", Status("p", trials=(("lr=1", 1.0),))).title.endswith("1 trial")


def test_an_unknown_end_is_not_made_up() -> None:
    message = compose("progress", Status("p", epoch=3, step=10, max_epochs=None, max_steps=None))
    assert [label for label, _ in message.facts] == ["At", "Elapsed"]
    assert message.bar == ""


def test_every_field_of_a_status_is_used() -> None:
    module = sys.modules[Status.__module__]
    source = Path(module.__file__ or "").read_text(encoding="utf-8")
    assert {field.name for field in fields(Status)} <= set(re.findall(r"status\.(\w+)", source))


def test_a_message_without_facts_is_still_one() -> None:
    assert block_kit(Message("title", "summary"))["blocks"] == [
        {"type": "header", "text": {"type": "plain_text", "text": "title"}}
    ]


def write_kept() -> None:
    for language in LANGUAGES:
        for kind, message in samples(language, mention="<!here>").items():
            payload = json.dumps(block_kit(message), ensure_ascii=False, indent=1)
            (KEPT / f"{kind}.{language}.json").write_text(payload + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_kept()
