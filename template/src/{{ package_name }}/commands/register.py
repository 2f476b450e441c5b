"""`register`, `promote`, `rollback`: which model is served, decided by a metric."""

from __future__ import annotations

from typing import Annotated

import typer

from ..config import load

app = typer.Typer()

Alias = Annotated[str, typer.Option(help="What serving loads: models:/NAME@ALIAS.")]
AtLeast = Annotated[float | None, typer.Option(help="The worst value of the metric that passes.")]
Force = Annotated[bool, typer.Option("--force", help="Pass though it is not better than what the alias points to.")]
Overrides = Annotated[list[str] | None, typer.Option("--override", "-o", help="Such as tracking=local.")]


@app.command()
def register(
    run: Annotated[str, typer.Option(help="Folder of a training, its name, or newest.")] = "newest",
    alias: Annotated[str | None, typer.Option(help="Give it to this version, if it is better.")] = None,
    at_least: AtLeast = None,
    force: Force = False,
    override: Overrides = None,
) -> None:
    """Make a training's best checkpoint a version of the model."""
    config = load(overrides=override or ())
    from ..registry import Gate, registry

    with registry(config) as models:
        version = models.register(run, alias, Gate(at_least, force))
    print(f"Version {version} of {models.name}" + (f", now `{alias}`." if alias else "."))


@app.command()
def promote(
    version: Annotated[str, typer.Option(help="Number of the version.")],
    alias: Alias = "champion",
    at_least: AtLeast = None,
    force: Force = False,
    override: Overrides = None,
) -> None:
    """Give an alias to a version that is better than the one that has it."""
    config = load(overrides=override or ())
    from ..registry import Gate, registry

    with registry(config) as models:
        models.promote(version, alias, Gate(at_least, force))
    print(f"`{alias}` of {models.name} is version {version}.")


@app.command()
def rollback(alias: Alias = "champion", override: Overrides = None) -> None:
    """Give an alias back to the version that had it before."""
    config = load(overrides=override or ())
    from ..registry import registry

    with registry(config) as models:
        version = models.rollback(alias)
    print(f"`{alias}` of {models.name} is version {version} again.")
