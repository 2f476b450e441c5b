"""The commands: each module has a Typer `app`. They import what needs torch inside the command, see `cli`."""
