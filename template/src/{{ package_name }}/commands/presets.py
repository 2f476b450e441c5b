"""`presets`: what can be given to `--preset`."""

from __future__ import annotations

import typer

from ..config import find_root, preset_names, preset_path

app = typer.Typer()


@app.command()
def presets() -> None:
    """List what `--preset` takes; each file's first comment says what it is for."""
    root = find_root()
    names = preset_names(root)
    width = max((len(name) for name in names), default=0)
    for name in names:
        first = preset_path(root, name).read_text(encoding="utf-8").partition("\n")[0]
        print(f"{name:<{width}}  {first.lstrip('# ')}")
