"""What a run says on the terminal: one line when it begins, a table and where to look when it ends.

Owns: these words and their place; the command line and notebooks share them. Does not own: the progress bar (`engine`).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from . import ranks
from .config import short
from .run import Run

if TYPE_CHECKING:
    from .sweep import Sweep
    from .workflow import Outcome

_MOST_TRIALS = 10  # on the terminal


def begin(run: Run) -> None:
    """Say where the run goes, and what it goes on from."""
    if not ranks.is_rank_zero():
        return
    where = "a trial: nothing is kept" if run.is_temporary else str(short(run.path))
    since = f", from {short(run.checkpoint)}" if run.checkpoint else ""
    Console(soft_wrap=True).print(f"Run: {where}{since}", highlight=False)


def end(outcome: Outcome) -> None:
    """Show the results as a table, and say where to look."""
    if not ranks.is_rank_zero():
        return
    console = Console(soft_wrap=True)
    if outcome.trained:
        console.print(f"Trained: {outcome.trained}", highlight=False)
    rows = ([(f"best {outcome.best[0]}", outcome.best[1])] if outcome.best else []) + [*outcome.results.items()]
    if rows:
        table = Table("result", "value")
        for name, value in rows:
            table.add_row(name, _number(value))
        console.print(table)
    if outcome.interrupted:
        console.print(f"Stopped. Go on with: {program()} fit --resume auto", highlight=False)
    if outcome.settings:
        overrides = " ".join(f"-o {setting}" for setting in outcome.settings)
        console.print(f"Found: {', '.join(outcome.settings)}", highlight=False)
        console.print(f"Train with it: {program()} fit {overrides}", highlight=False)
    for file in outcome.files:
        console.print(f"Written: {short(file)}", highlight=False)
    if outcome.folder.is_dir():
        curves = f"; curves: {program()} ui" if outcome.is_tracked else ""
        console.print(f"Look: {short(outcome.folder)}{curves}", highlight=False)


def swept(sweep: Sweep) -> None:
    """Show the best trials as a table, and how to train with the best."""
    if not ranks.is_rank_zero():
        return
    console = Console(soft_wrap=True)
    keys = list(sweep.trials[0].chosen) if sweep.trials else []
    table = Table(sweep.metric, *keys, "ending", "run")
    for trial in sweep.trials[:_MOST_TRIALS]:
        value = "-" if trial.value is None else _number(trial.value)
        chosen = (_value(trial.chosen[key]) for key in keys)
        table.add_row(value, *chosen, trial.ending.partition("\n")[0], trial.folder.name if trial.folder else "-")
    console.print(table)
    if sweep.trials and sweep.trials[0].value is not None:
        overrides = " ".join(f"-o {key}={value}" for key, value in sweep.trials[0].chosen.items())
        console.print(f"Train with the best: {program()} fit {overrides}", highlight=False)
    console.print(f"All {len(sweep.trials)}: {short(sweep.file)}", highlight=False)


def program() -> str:
    """Return how this command line was started, as one would type it: with its folder, if the shell needs that."""
    script = Path(sys.argv[0])
    package = __name__.partition(".")[0]
    if script.name.replace("-", "_") != package:
        return f"python -m {package}"
    return script.name if shutil.which(script.name) else str(short(script))


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    """Return four digits behind the point; of a value that they would not show, four that count."""
    return f"{value:.4f}" if value == 0 or 1e-2 <= abs(value) < 1e6 else f"{value:.4g}"
