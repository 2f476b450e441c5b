"""Progress bars: rich on a terminal, tqdm in notebooks, a line now and then everywhere else."""

from __future__ import annotations

import importlib.util
import os
import sys

from .plain_progress import PlainProgressBar
from .progress_bar import LineProgressBar, ProgressBar
from .rich_progress import RichProgressBar, RichProgressBarTheme
from .tqdm_progress import TQDMProgressBar

ProgressBarBase = ProgressBar
"""The name of 1.x."""

__all__ = [
    "LineProgressBar",
    "PlainProgressBar",
    "ProgressBar",
    "ProgressBarBase",
    "RichProgressBar",
    "RichProgressBarTheme",
    "TQDMProgressBar",
    "select_progress_bar",
]


def select_progress_bar() -> ProgressBar:
    """Return the bar that suits where the output goes.

    tqdm in a notebook that has widgets, rich on a terminal, where they are installed; otherwise lines that read well in
    a file, in the log of a cluster and in a terminal that cannot move its cursor (`TERM=dumb`).
    """
    if _in_notebook():
        widgets = _is_installed("tqdm") and _is_installed("ipywidgets")
        return TQDMProgressBar() if widgets else PlainProgressBar()
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and _is_installed("rich"):
        return RichProgressBar()
    return PlainProgressBar()


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and "ipykernel" in sys.modules and ipython.get_ipython() is not None


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
