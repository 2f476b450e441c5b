"""The command line: finds the commands, and turns what goes wrong into words and an exit code.

    0  done      1  a run or a check failed      2  what was given is wrong      130  stopped by Ctrl-C

Every module in `commands/` has an `app` whose commands appear here; a new file there is a new command.
Nothing imported here or at the top of those modules imports torch, so that `--help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import typer

from . import commands
from .sources import ProjectError

_MACHINERY = (Path(__file__).parent, Path(typer.__file__).parent)
_SCIENCE = Path(__file__).parent / "science"
_FLAGS = ("--print-config", "--show")  # the options without a value


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; `arguments` default to those of the process."""
    # torch's threads otherwise spin while they wait for each other: on a machine that does something else as well, the
    # example then takes three times as long (148 s instead of 48 s with two cores and a load of six).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        _application()(args=_with_overrides(sys.argv[1:] if arguments is None else arguments))
    except ProjectError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # the team's own mistake: their lines, without ours between them
        print(_without_our_frames(error), end="", file=sys.stderr)
        sys.exit(1)


def _application() -> typer.Typer:
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="Train, evaluate and use the model that `science/` describes.",
    )
    names = {module.name for module in pkgutil.iter_modules(commands.__path__)}
    for name in ["train", *sorted(names - {"train"})]:
        app.add_typer(importlib.import_module(f"{commands.__name__}.{name}").app)
    return app


def _with_overrides(arguments: Sequence[str]) -> list[str]:
    """Spell `--trainer.max_epochs=3`, `--trainer.max_epochs 3`, `trainer.max_epochs=3` and `seed=3` with `-o`.

    Cloud services that search hyper-parameters pass the first form, users of other tools type the others.
    """
    spelt: list[str] = []
    given = iter(arguments)
    for argument in given:
        follows_option = bool(spelt) and re.fullmatch(r"-\w|--[\w-]+", spelt[-1]) and spelt[-1] not in _FLAGS
        if not follows_option and re.fullmatch(r"--[A-Za-z_]\w*(\.[\w-]+)+", argument):
            argument = f"{argument}={next(given, '')}"
        is_override = not follows_option and re.match(r"(--[A-Za-z_]\w*\.|[A-Za-z_])[\w.-]*=", argument)
        spelt += ["-o", argument.removeprefix("--")] if is_override else [argument]
    return spelt


def _without_our_frames(error: BaseException) -> str:
    """Format a traceback; one that leads into the science begins there, without the engine between its lines."""
    shown = traceback.TracebackException.from_exception(error)
    inside = [Path(frame.filename).is_relative_to(_SCIENCE) for frame in shown.stack]
    if True not in inside:
        return "".join(shown.format())
    kept = [frame for frame in shown.stack[inside.index(True) :] if not _is_machinery(Path(frame.filename))]
    left_out = len(shown.stack) - len(kept)
    shown.stack = traceback.StackSummary.from_list(kept)
    return (
        "".join(shown.format()) + f"({left_out} frames of the machinery left out; traceback.txt in the run's folder.)\n"
    )


def _is_machinery(path: Path) -> bool:
    return not path.is_relative_to(_SCIENCE) and any(path.is_relative_to(folder) for folder in _MACHINERY)
