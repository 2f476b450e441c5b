"""`tune`: find a learning rate or a batch size before training."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from ..config import load
from .train import Accelerator, ConfigFile, Overrides, Presets, overrides_of

app = typer.Typer()


class What(StrEnum):
    """What can be searched."""

    LR = "lr"
    BATCH_SIZE = "batch_size"
    BOTH = "both"


@app.command()
def tune(
    what: Annotated[What, typer.Argument(help="What to look for; both: the batch size first.")] = What.LR,
    config: ConfigFile = None,
    preset: Presets = None,
    override: Overrides = None,
    accelerator: Accelerator = None,
) -> None:
    """Find a learning rate, or the largest batch that fits into memory, and say how to train with it."""
    settings = load(config, preset or (), overrides_of(override, accelerator, None))
    from .. import report, workflow

    wanted = [What.BATCH_SIZE.value, What.LR.value] if what is What.BOTH else [what.value]
    report.end(workflow.tune(settings, wanted, sys.argv))
