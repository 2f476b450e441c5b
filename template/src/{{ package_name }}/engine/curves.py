"""A picture of the metrics of a run.

Owns: which metrics share a panel, and the drawing. Does not own: the numbers (`history.History`).
Matplotlib is imported when a picture is drawn, and no window is opened.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import require
from .history import History

COLOURS = {"train": "#4c72b0", "val": "#dd8452", "test": "#55a868"}
LABELS = {"step": "step", "epoch": "epoch", "time": "seconds"}
COLUMNS = 3
MOST_PANELS = 24
LOG_FROM = 20  # times that a panel's largest loss is its smallest


def write_curves(
    history: History | Iterable[Mapping[str, float]], path: str | os.PathLike[str] = "curves.svg", x: str = "step"
) -> Path | None:
    """Draw every metric of a run into one picture: a panel for each, training and validation together.

    Args:
        history: What `fit` returned, or its rows.
        path: File to write; the ending says the format (.svg, .png, .pdf).
        x: "step", "epoch", "time", or the name of a metric that the rows hold.

    Returns:
        The path, or None when there was nothing to draw.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    history = history if isinstance(history, History) else History(history)
    panels = _panels(history, x)
    if not panels:
        return None
    matplotlib = require("matplotlib", "plot", "Drawing curves")
    figure_class = require("matplotlib.figure", "plot", "Drawing curves").Figure
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure = figure_class(figsize=(4.2 * columns, 2.7 * lines), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel, (title, names) in zip(axes, panels.items(), strict=False):
        _draw(panel, history, title, names, x)
    for empty in axes[len(panels) :]:
        empty.set_visible(False)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "curves", "svg.fonttype": "none"}):  # same numbers, same file
        figure.savefig(target, dpi=120, metadata={"Date": None} if target.suffix == ".svg" else None)
    return target


def _panels(history: History, x: str) -> dict[str, list[str]]:
    """Return title to metrics: `train_loss_epoch` and `val_loss` meet under "loss"; the learning rate comes last."""
    panels: dict[str, list[str]] = {}
    for name in history.metrics():
        if name != x and any(value == value for value in history.points(name, x)[1]):
            panels.setdefault(_stem(name), []).append(name)
    order = sorted(panels, key=lambda title: (title.startswith(("lr", "momentum")), "loss" not in title))
    return {title: panels[title] for title in order[:MOST_PANELS]}


def _stem(name: str) -> str:
    bare = re.sub(r"^(train|training|val|valid|validation|test)[_/.-]", "", name)
    return re.sub(r"_(step|epoch)$", "", bare) or name


def _draw(panel: Any, history: History, title: str, names: list[str], x: str) -> None:
    spread: set[float] = set()
    for name in names:
        at, values = history.points(name, x)
        stage = next((key for key in COLOURS if name.startswith(key)), None)
        alone = len(names) == 1 and stage is None
        faint = name.endswith("_step") and name.removesuffix("_step") + "_epoch" in names
        panel.plot(
            at,
            values,
            color=COLOURS.get(stage or "train") if alone or stage else None,
            marker="o" if len(at) <= 30 else None,
            markersize=3,
            linewidth=1.0 if faint else 1.6,
            alpha=0.4 if faint else 1.0,
            label=name,
        )
        spread.update(value for value in values if math.isfinite(value))
    if title.endswith("loss") and min(spread, default=0.0) > 0 and max(spread) > LOG_FROM * min(spread):
        panel.set_yscale("log")  # else the first steps, far above, flatten all that follows
    panel.set_title(title if len(names) > 1 else names[0], fontsize=10, loc="left")
    panel.set_xlabel(LABELS.get(x, x), fontsize=8)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.25)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    if len(names) > 1:
        panel.legend(fontsize=7, frameon=False)
