"""`sync`: give the tracker what it has not taken."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..config import load
from ..sources import ProjectError

app = typer.Typer()


@app.command()
def sync(
    override: Annotated[list[str] | None, typer.Option("--override", "-o", help="Such as tracking=local.")] = None,
) -> None:
    """Send what waits in the runs' folders for MLflow, and end the runs of killed processes there."""
    config = load(overrides=override or ())
    from ..engine.loggers._mlflow_left import deliver_all
    from ..engine.loggers._sender import reason_of
    from ..tracking import tracking_uri

    uri = tracking_uri(config)
    folders = sorted({file.parent for file in config.runs.glob("*/*/unsent/*.spool.jsonl")})
    sent: set[str] = set()
    failed: dict[str, Path] = {}
    for folder in folders:
        try:
            sent.update(deliver_all(folder, uri))
        except Exception as error:  # one run that was deleted must not hold up the others
            reason = reason_of(error)
            if reason in failed:
                break  # the server is away; it need not be asked for each
            failed[reason] = folder
    left = len({file.parent for file in config.runs.glob("*/*/unsent/*.spool.jsonl")})
    print(f"{len(sent)} sent, {left} left." if sent or left else "Nothing waits.")
    if failed:
        text = " ".join(f"{folder} is not sent: {reason}." for reason, folder in failed.items())
        raise ProjectError(f"{text} Then again: sync.", 1)
    if left:
        print("What is left belongs to a training that still goes on, or to another tracker (MLFLOW_TRACKING_URI).")
