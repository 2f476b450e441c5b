"""`notify-test`: whether messages about a training reach Slack, and what they look like."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ..config import load
from .train import ConfigFile, Overrides, Presets

app = typer.Typer()


@app.command()
def notify_test(
    language: Annotated[Literal["en", "ja"] | None, typer.Option(help="Default: the configuration's.")] = None,
    mention: Annotated[str | None, typer.Option(help="Whom a failure calls: here, channel, or an id.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the messages; send nothing.")] = False,
    config: ConfigFile = None,
    preset: Presets = None,
    override: Overrides = None,
) -> None:
    """Post a sample of each message to Slack, at SLACK_WEBHOOK_URL, as the configuration words it."""
    settings = load(config, preset or (), override or ())
    from ..notify import as_text, configured, of_callback, post_samples

    given = {name: value for name, value in {"language": language, "mention": mention}.items() if value is not None}
    for callback in configured(settings, given):
        if show:
            print("\n\n".join(as_text(message) for message in of_callback(callback).values()))
        else:
            print(f"{post_samples(callback)} messages were posted to {callback.service}. Look at the channel.")
