"""What the messages about a run say, and how they look in Slack: pure functions of a `Status`.

Owns: the words (English, Japanese), the bar, the sparkline, escaping, Block Kit and its limits.
Does not own: where the facts come from (`slack_facts`), when a message is due (`slack`), how it travels (`webhook`).

    Status ── compose ──▶ Message ── block_kit ──▶ the JSON that Slack takes

A `Message` knows no service: another one needs its own last arrow only (`webhook_discord`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

LANGUAGES = ("en", "ja")
_WORDS = {
    "started": ("training started", "学習を開始"),
    "resumed": ("training resumed", "学習を再開"),
    "progress": ("epoch {epoch}", "エポック {epoch}"),
    "new_best": ("new best {name} {value}", "{name} の最良値を更新: {value}"),
    "finished": ("{stage} finished", "{stage}が完了"),
    "failed": ("{stage} failed", "{stage}がエラーで停止"),
    "interrupted": ("{stage} interrupted", "{stage}を中断"),
    "preempted": ("{stage} stopped by the machine", "{stage}がマシン側の都合で停止"),
    "stalled": ("no step for {silence}", "ステップが{silence}進んでいません"),
    "swept": ("sweep finished, {count} trials", "探索が完了、全 {count} 試行"),
    "fit": ("training", "学習"),
    "validate": ("validation", "検証"),
    "test": ("test", "テスト"),
    "predict": ("prediction", "予測"),
    "position": ("epoch {epoch}, step {step}", "エポック {epoch}、ステップ {step}"),
    "plan": ("{epochs} epochs, {steps} steps", "{epochs} エポック、{steps} ステップ"),
    "dataset": ("{name} {rows} ({batches} batches)", "{name} {rows} 件（{batches} バッチ）"),
    "left": ("{time} left", "残り {time}"),
    "best": ("best {value}", "最良 {value}"),
    "early": ("stopped early", "早期終了"),
    "open": ("Open the run", "MLflow で開く"),
    "comma": (", ", "、"),
}
_SINGULAR = re.compile(r"(?<![\d,.])(1 (?:epoch|step|trial|batch))e?s\b")
_LABELS = "Run Where Commit Devices Data Plan At Elapsed Ends Took Best Error Reason Checkpoint Resume Failures"
_JAPANESE_LABELS = """実行名 実行環境 コミット デバイス データ 予定 進捗 経過 終了見込み 所要時間 最良 エラー 理由
チェックポイント 再開方法 失敗した試行"""
# Kind of message: its icon, its facts in order, and what follows them.
_KINDS = {
    "started": ("🚀", "Run Where Commit Devices Data Plan", ""),
    "resumed": ("🚀", "Run Where Commit Devices Data Plan At", "table"),
    "progress": ("⏳", "At Elapsed Ends", "bar table footer"),
    "new_best": ("🏆", "At Elapsed Ends", "bar table footer"),
    "finished": ("✅", "Took At Reason Checkpoint", "table link footer"),
    "failed": ("❌", "Error At Checkpoint", "mention traceback footer"),
    "interrupted": ("⏸️", "Reason At Checkpoint Resume", "footer"),
    "preempted": ("⏸️", "Reason At Checkpoint Resume", "footer"),
    "stalled": ("⚠️", "At", "traceback footer"),
    "swept": ("🔎", "Run Best Failures Took", "table"),
}
KINDS = tuple(_KINDS)

_SLACK_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_HEADER, _SECTION = 150, 2900  # Slack refuses 151 and 3001 characters
_DECADES_S = 1e9  # an end beyond is none: `max_epochs` was a way to say "until stopped"
# Colour codes; control characters but tab and newline; lone surrogates; what turns the direction of a text around.
_UNWANTED = re.compile("\x1b\\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Metric:
    """One number of a run: the latest value, the one in the last message, the best so far."""

    name: str
    value: float
    previous: float | None = None
    best: float | None = None


@dataclass(frozen=True)
class Status:
    """What is known of a run at one moment. Times in seconds; None or empty: not known."""

    project: str
    run: str = ""
    place: str = ""
    commit: str = ""
    devices: str = ""
    data: tuple[tuple[str, int | None, int | None], ...] = ()  # name, rows, batches
    stage: str = "fit"
    epoch: int = 0  # the epoch that is being done, counted from 1
    max_epochs: int | None = None
    step: int = 0
    max_steps: int | None = None
    elapsed_s: float = 0.0
    left_s: float | None = None
    silence_s: float = 0.0
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    metrics: tuple[Metric, ...] = ()  # the monitored one first
    history: tuple[float, ...] = ()  # of the monitored metric, one value an epoch
    lr: float | None = None
    checkpoint: str = ""
    link: str = ""
    reason: str = ""  # why it ended: the exception's type and text
    traceback: str = ""
    resume: str = ""
    trials: tuple[tuple[str, float], ...] = ()  # of a sweep, best first
    failures: int = 0
    metric: str = ""  # what the trials were compared by


@dataclass(frozen=True)
class Message:
    """The content of one message in reading order: plain text that nothing has escaped or cut yet."""

    title: str
    summary: str  # all that the lock screen of a phone shows
    facts: tuple[tuple[str, str | datetime], ...] = ()
    mention: str = ""
    bar: str = ""
    table: str = ""
    traceback: str = ""
    link: tuple[str, str] | None = None
    footer: str = ""


def compose(kind: str, status: Status, language: str = "en", mention: str = "") -> Message:
    """Return the message of one of `KINDS` about a run; `mention` is used by failures only."""
    say = speaker(language)
    icon, labels, parts = _KINDS[kind]
    first = status.metrics[0] if status.metrics else Metric("", math.nan)
    epoch, silence = _count(status.epoch, status.max_epochs), duration(status.silence_s, language)
    shown = first.value if first.best is None or kind == "progress" else first.best
    name, value, count = first.name, number(shown), f"{len(status.trials) + status.failures:,}"
    words = say(kind, stage=say(status.stage), epoch=epoch, silence=silence, name=name, value=value, count=count)
    title = f"{icon} {status.project}: {words}"
    known = _facts(status, say, language)
    headline = {"progress": f"{name} {value}", "finished": f"{name} {value}", "swept": str(known["Best"])}.get(kind, "")
    ranking = (f"{number(result):<9} {what[:80]}" for what, result in status.trials[:8])
    content: dict[str, Any] = {
        "mention": mention,
        "bar": _bar(status),
        "table": "\n".join(ranking) if kind == "swept" else _table(status, say),
        "traceback": "\n".join(status.traceback.strip("\n").splitlines()[-20:]),
        "link": (say("open"), status.link) if status.link else None,
        "footer": " · ".join(filter(None, (status.run, status.place, status.devices, status.commit))),
    }
    spoken = dict(zip(_LABELS.split(), (_LABELS if language == "en" else _JAPANESE_LABELS).split(), strict=True))
    facts = tuple((spoken[label], known[label]) for label in labels.split() if known[label])
    summary = say("comma").join(filter(None, (title, status.reason, headline if name or kind == "swept" else "")))
    return Message(title, summary, facts, **{part: content[part] for part in parts.split()})


def _facts(status: Status, say: Callable[..., str], language: str) -> dict[str, str | datetime]:
    is_fit = status.stage == "fit" and status.epoch > 0
    epoch, step = _count(status.epoch, status.max_epochs), _count(status.step, status.max_steps)
    plan = say("plan", epochs=_count(status.max_epochs), steps=_count(status.max_steps))
    elapsed = duration(status.elapsed_s, language)
    left_s = status.left_s if (status.left_s or math.inf) < _DECADES_S else None
    best = f"{status.metric} {number(status.trials[0][1])}, {status.trials[0][0]}" if status.trials else ""
    left = "" if left_s is None else say("left", time=duration(left_s, language))
    return {
        "Run": status.run,
        "Where": status.place,
        "Commit": status.commit,
        "Devices": status.devices,
        "Data": say("comma").join(say("dataset", name=n, rows=_count(r), batches=_count(b)) for n, r, b in status.data),
        "Plan": plan if is_fit else "",
        "At": say("position", epoch=epoch, step=step) if is_fit else "",
        "Elapsed": say("comma").join(filter(None, (elapsed, left))),
        "Ends": "" if left_s is None else status.now + timedelta(seconds=left_s),
        "Took": elapsed,
        "Best": best.lstrip(),
        "Error": status.reason,
        "Reason": status.reason,
        "Checkpoint": status.checkpoint,
        "Resume": status.resume,
        "Failures": f"{status.failures:,}" if status.failures else "",
    }


def block_kit(message: Message) -> dict[str, Any]:
    """Return a message as Slack's Block Kit: escaped, within 50 blocks and 3000 characters a section."""
    room = _SECTION // (len(message.facts) + 2) - 40  # labels are ours, and shorter than 40
    lines = [message.mention, f"`{_escaped(message.bar, 100)}`" if message.bar else ""]
    lines += [f"*{label}*  {_slack_value(value, room)}" for label, value in message.facts]
    texts = ["\n".join(filter(None, lines)), fenced(message.table), fenced(message.traceback, keep_end=True)]
    if message.link and re.fullmatch(r"https?://[^\s<>|]{1,2000}", message.link[1]):
        texts.append(f"<{message.link[1].replace('&', '&amp;')}|{_escaped(message.link[0], 100)}>")
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": _slack_value(message.title, _HEADER)}}
    ]
    blocks += [{"type": "section", "text": _text(text)} for text in texts if text.strip()]
    if message.footer.strip():
        blocks.append({"type": "context", "elements": [_text(_escaped(message.footer, 500))]})
    return {"text": _escaped(message.summary, 500), "blocks": blocks, "unfurl_links": False, "unfurl_media": False}


def fitted(text: str, limit: int, escapes: Mapping[str, str], *, keep_end: bool = False) -> str:
    """Return `text` without control characters, escaped, cut to `limit` UTF-16 units but never inside an escape."""
    clean = _UNWANTED.sub("", text)
    kept: list[str] = []
    room = limit - 1
    for character in clean[-limit:][::-1] if keep_end else clean[:limit]:
        piece = escapes.get(character, character)
        room -= len(piece) + (character > "\uffff")
        if room < 0:
            break
        kept.append(piece)
    kept += ["…"] if len(kept) < len(clean) else []
    return "".join(reversed(kept) if keep_end else kept)


def fenced(
    text: str, limit: int = _SECTION, escapes: Mapping[str, str] = _SLACK_ESCAPES, *, keep_end: bool = False
) -> str:
    """Return `text`, fitted, as a block of code that nothing in it ends; an empty one is nothing."""
    inside = fitted(text, limit, escapes, keep_end=keep_end).replace("```", "'''")
    return f"```\n{inside}\n```" if inside.strip() else ""


def speaker(language: str) -> Callable[..., str]:
    """Return a function that says a word of ours, with its values, in a language."""
    column = LANGUAGES.index(language)
    return lambda word, **values: _SINGULAR.sub(r"\1", _WORDS[word][column].format(**values))


def number(value: float) -> str:
    """Return a metric's value in at most four significant digits."""
    return f"{value:.4g}"


def duration(seconds: float, language: str = "en") -> str:
    """Return a length of time in its two largest units; `seconds` is finite."""
    units = (("d", "日", 86400), ("h", "時間", 3600), ("min", "分", 60), ("s", "秒", 1))
    whole = max(round(seconds), 0)
    first = next((i for i, unit in enumerate(units) if whole >= unit[2]), len(units) - 1)
    parts: list[str] = []
    for english, japanese, length in units[first : first + 2]:
        count, whole = divmod(whole, length)
        if count or not parts:
            parts.append(f"{count}{japanese}" if language == "ja" else f"{count} {english}")
    return ("" if language == "ja" else " ").join(parts)


def sparkline(values: Sequence[float], width: int = 20) -> str:
    """Draw a curve as one line of text: the last of each equal share of `values`, `×` where it is not finite."""
    count = min(len(values), width)
    shown = [values[(i + 1) * len(values) // count - 1] for i in range(count)]
    finite = [value for value in shown if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    span = high / 2 - low / 2 or 1.0  # in halves, because the whole may be more than a float holds
    return "".join("▁▂▃▄▅▆▇█"[int((v / 2 - low / 2) / span * 7.999)] if math.isfinite(v) else "×" for v in shown)


def _count(value: int | None, maximum: int | None = None) -> str:
    return ("∞" if value is None else f"{value:,}") + ("" if maximum is None else f"/{maximum:,}")


def _bar(status: Status, width: int = 16) -> str:
    if not status.max_steps:
        return ""
    step = min(max(status.step, 0), status.max_steps)
    filled = width * step // status.max_steps
    return "█" * filled + "░" * (width - filled) + f" {100 * step // status.max_steps}%"  # 100 at the end only


def _table(status: Status, say: Callable[..., str]) -> str:
    rows = []
    names = [_short(metric.name) for metric in status.metrics]
    width = max(map(len, names), default=0)
    for name, metric in zip(names, status.metrics, strict=True):
        before = metric.value if metric.previous is None else metric.previous
        arrow = "▲" if metric.value > before else "▼" if metric.value < before else " "
        best = "" if metric.best is None else say("best", value=number(metric.best))
        rows.append(f"{name:<{width}} {number(metric.value):>9} {arrow} {best}".rstrip())
    rows += [f"{'lr':<{width}} {number(status.lr):>9}"] if status.lr is not None and rows else []
    rows += [f"{sparkline(status.history)} {names[0]}"] if len(status.history) > 1 and rows else []
    return "\n".join(rows)


def _short(name: str) -> str:
    return name if len(name) <= 17 else f"{name[:7]}…{name[-9:]}"  # a phone shows some forty characters in a line


def _escaped(text: str, limit: int) -> str:
    return fitted(text, limit, _SLACK_ESCAPES).replace("```", "'''")  # would open a block of code


def _slack_value(value: str | datetime, room: int) -> str:
    if isinstance(value, str):
        return _escaped(" ".join(value.split()), room)
    return f"<!date^{value.timestamp():.0f}^{{date_short_pretty}} {{time}}|{value:%Y-%m-%d %H:%M %Z}>"


def _text(text: str) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": text, "verbatim": True}  # else Slack looks for names and channels in plain words
