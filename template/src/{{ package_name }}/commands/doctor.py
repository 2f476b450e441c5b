"""`doctor`: whether everything is as it must be, line by line, with the command that mends what is not."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def doctor(
    accelerator: Annotated[str, typer.Option(help="What the trial training runs on: auto, cpu, gpu, tpu ...")] = "auto",
) -> None:
    """Check whether this machine is ready.

    Looks at versions, devices, configuration and folders, and trains for a moment; exit code 1 if something is wrong.
    """
    from ..doctor import diagnose, show

    findings = diagnose(accelerator)
    show(findings)
    raise typer.Exit(int(any(finding.state == "wrong" for finding in findings)))
