"""`fit`, `validate`, `test`, `predict`: the four things done with the science."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..config import Config, load

app = typer.Typer()

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="YAML file; default: configs/config.yaml.")
]
Presets = Annotated[
    list[str] | None, typer.Option("--preset", "-p", metavar="NAME", help="File in configs/presets; several combine.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--override", "-o", metavar="KEY=VALUE", help="Such as trainer.max_epochs=3; several combine."),
]
Accelerator = Annotated[str | None, typer.Option(help="cpu, gpu, tpu ...; short for -o trainer.accelerator=...")]
Devices = Annotated[str | None, typer.Option(help="How many, or which; short for -o trainer.devices=...")]
Checkpoint = Annotated[str, typer.Option(help="best or last of the newest training, or the path of a file.")]
Resume = Annotated[str | None, typer.Option(help="auto: go on if the newest training died; or last, or a path.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Show the resolved configuration, and stop.")]


@app.command()
def fit(
    config: ConfigFile = None,
    preset: Presets = None,
    override: Overrides = None,
    accelerator: Accelerator = None,
    devices: Devices = None,
    resume: Resume = None,
    print_config: PrintConfig = False,
) -> None:
    """Train, then test the best checkpoint."""
    settings = load(config, preset or (), overrides_of(override, accelerator, devices))
    if print_config:
        return _print(settings)
    from .. import ranks, report, workflow

    ranks.start(settings)
    outcome = workflow.fit(settings, resume, sys.argv)
    report.end(outcome)
    if outcome.interrupted:
        raise typer.Exit(130)


@app.command()
def validate(
    config: ConfigFile = None,
    preset: Presets = None,
    override: Overrides = None,
    accelerator: Accelerator = None,
    devices: Devices = None,
    checkpoint: Checkpoint = "best",
    print_config: PrintConfig = False,
) -> None:
    """Measure a checkpoint on the validation rows."""
    _use("validate", config, preset, overrides_of(override, accelerator, devices), checkpoint, print_config)


@app.command("test")
def evaluate_test(
    config: ConfigFile = None,
    preset: Presets = None,
    override: Overrides = None,
    accelerator: Accelerator = None,
    devices: Devices = None,
    checkpoint: Checkpoint = "best",
    print_config: PrintConfig = False,
) -> None:
    """Measure a checkpoint on the test rows."""
    _use("test", config, preset, overrides_of(override, accelerator, devices), checkpoint, print_config)


@app.command()
def predict(
    config: ConfigFile = None,
    preset: Presets = None,
    override: Overrides = None,
    accelerator: Accelerator = None,
    devices: Devices = None,
    checkpoint: Checkpoint = "best",
    print_config: PrintConfig = False,
) -> None:
    """Write a checkpoint's predictions to a file."""
    _use("predict", config, preset, overrides_of(override, accelerator, devices), checkpoint, print_config)


def _use(
    stage: Literal["validate", "test", "predict"],
    config: Path | None,
    presets: list[str] | None,
    overrides: list[str],
    checkpoint: str,
    print_config: bool,
) -> None:
    """Evaluate or predict with a checkpoint, in the configuration it was trained with unless another is given."""
    from .. import history, ranks, report, workflow

    settings = load(config, presets or (), overrides)
    path = history.find_checkpoint(settings, checkpoint)
    if config is None and (trained_with := history.config_beside(path)):
        settings = load(trained_with, presets or (), overrides)
    if print_config:
        return _print(settings)
    ranks.start(settings)
    report.end(workflow.use(settings, stage, path, sys.argv))


def overrides_of(given: list[str] | None, accelerator: str | None, devices: str | None) -> list[str]:
    """Return the overrides as given, and the short options spelt as overrides."""
    short = {"--accelerator": ("trainer.accelerator", accelerator), "--devices": ("trainer.devices", devices)}
    return [*(given or []), *(f"{option} {key}={value}" for option, (key, value) in short.items() if value is not None)]


def _print(settings: Config) -> None:
    from ..build import complete

    print(complete(settings).to_yaml(), end="")
