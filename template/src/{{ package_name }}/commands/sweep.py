"""`sweep`: search hyper-parameters over many trainings."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..config import load
from .train import Accelerator, ConfigFile, Overrides, Presets, overrides_of

app = typer.Typer()

Vary = Annotated[
    list[str],
    typer.Option(
        "--vary",
        "-v",
        metavar="KEY=VALUES",
        help="task.lr=log:1e-4..1e-1, task.channels=8..64 or data.batch_size=16,32.",
    ),
]


@app.command()
def sweep(
    vary: Vary,
    trials: Annotated[int, typer.Option(min=1, help="How many trainings.")] = 20,
    config: ConfigFile = None,
    preset: Presets = None,
    override: Overrides = None,
    accelerator: Accelerator = None,
) -> None:
    """Train many times with other values, each on one device, and list which were best."""
    given = ["trainer.devices=1", *overrides_of(override, accelerator, None)]
    load(config, preset or (), given)
    from .. import report
    from ..sweep import spaces, sweep

    found = sweep(lambda chosen: load(config, preset or (), [*given, *chosen]), spaces(vary), trials, sys.argv)
    report.swept(found)
