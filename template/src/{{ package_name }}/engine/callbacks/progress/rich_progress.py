"""The progress bar of terminals, drawn by rich."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import require
from .progress_bar import LineProgressBar, View

if TYPE_CHECKING:
    from ...trainer import Trainer

SHORTEST_BAR, WIDEST_BAR, LEAST_METRICS = 10, 40, 24


@dataclass(frozen=True)
class RichProgressBarTheme:
    """Styles of the parts, in rich's words.

    Attributes:
        description: Style of the phase and epoch.
        progress_bar: Style of the bar.
        progress_bar_finished: Style of the bar when all is done.
        progress_bar_pulse: Style of the bar when the end is not known.
        batch_progress: Style of the count.
        time: Style of the times.
        processing_speed: Style of the pace.
        metrics: Style of the metrics.
    """

    description: str = ""
    progress_bar: str = "cyan"
    progress_bar_finished: str = "green"
    progress_bar_pulse: str = "cyan"
    batch_progress: str = ""
    time: str = "dim"
    processing_speed: str = "dim"
    metrics: str = ""


DEFAULT_THEME = RichProgressBarTheme()


class RichProgressBar(LineProgressBar):
    """A bar of one line that gives way to what is printed, and never wraps: metrics that do not fit are cut.

    Args:
        refresh_rate: 0 turns the bar off. The bar is drawn by time, so another number changes nothing.
        leave: Leave a line for every epoch, not only for the last.
        theme: Styles.
        console_kwargs: For `rich.console.Console`.

    Raises:
        MissingExtraError: rich is not installed.
    """

    def __init__(
        self,
        refresh_rate: int = 100,
        leave: bool = False,
        theme: RichProgressBarTheme = DEFAULT_THEME,
        console_kwargs: dict[str, Any] | None = None,
    ) -> None:
        require("rich", "rich", "`RichProgressBar`")
        super().__init__(refresh_rate, leave)
        self.theme = theme
        self._console_kwargs = console_kwargs or {}
        self._progress: Any = None
        self._task: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_progress": None, "_task": None}

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Return the columns, rich's own or subclasses of `ProgressColumn`; override to change them.

        A task has the fields `count`, `times`, `pace` and `values`, all text.
        """
        progress = require("rich.progress", "rich", "`RichProgressBar`")
        column = require("rich.table", "rich", "`RichProgressBar`").Column
        theme = self.theme

        def text(field: str, style: str, **options: Any) -> Any:
            how = column(no_wrap=True, **options)
            return progress.TextColumn(f"{{task.{field}}}", style=style or "none", table_column=how, markup=False)

        return [
            text("description", theme.description),
            progress.BarColumn(
                bar_width=WIDEST_BAR,
                style="bar.back",
                complete_style=theme.progress_bar,
                finished_style=theme.progress_bar_finished,
                pulse_style=theme.progress_bar_pulse,
            ),
            text("fields[count]", theme.batch_progress),
            text("fields[times]", theme.time),
            text("fields[pace]", theme.processing_speed),
            text("fields[values]", theme.metrics, overflow="ellipsis", ratio=1),
        ]

    @property
    def train_progress_bar(self) -> Any:
        """The `rich.progress.Task` on show, or None."""
        return self._progress.tasks[0] if self._progress is not None and self._progress.tasks else None

    val_progress_bar = val_sanity_check_bar = test_progress_bar = predict_progress_bar = train_progress_bar

    def refresh(self, hard: bool = False) -> None:
        """Draw the line again."""
        if self._progress is not None:
            self._progress.refresh()

    def _draw(self, view: View) -> None:
        if self._progress is None:
            self._open()
        bar_width, fields = fit_line(view, self._progress.console.width)
        for column in self._progress.columns:
            if hasattr(column, "bar_width"):
                column.bar_width = bar_width
        total = view.total if view.total != float("inf") else None
        self._progress.update(self._task, description=view.description, completed=view.done, total=total, **fields)
        self._progress.refresh()
        self._progress.start()  # does nothing when it was started before

    def _open(self) -> None:
        console = require("rich.console", "rich", "`RichProgressBar`").Console(**self._console_kwargs)
        make = require("rich.progress", "rich", "`RichProgressBar`").Progress
        # auto_refresh would be a thread that draws while a debugger or an input() waits
        self._progress = make(*self.configure_columns(self.trainer), console=console, auto_refresh=False, expand=True)
        self._task = self._progress.add_task("", count="", times="", pace="", values="")

    def _close(self) -> None:
        if self._progress is not None:
            console = self._progress.console
            console.quiet |= console.is_jupyter  # where the line that ends a bar would be an empty box
            with contextlib.suppress(ValueError):  # the stream was closed already, at the end of the process
                self._progress.stop()
            self._progress = None


def fit_line(view: View, width: int) -> tuple[int, dict[str, str]]:
    """Return the width of the bar and the texts for a line of `width` characters.

    When room is short the bar goes first, down to `SHORTEST_BAR`, then the pace; then the metrics are cut at their end,
    down to `LEAST_METRICS`, before the times go too.
    """
    fields = {"count": view.batches, "times": view.times, "pace": view.pace, "values": view.values}
    # One space between two of the six columns.
    room = width - 5 - len(view.description) - len(view.batches) - len(view.times) - len(view.pace)
    metrics = len(view.values)
    for name, needed in (("pace", metrics), ("times", min(metrics, LEAST_METRICS))):
        if room - needed < SHORTEST_BAR:
            room, fields[name] = room + len(fields[name]), ""
    return max(1, min(max(room - metrics, SHORTEST_BAR), room, WIDEST_BAR)), fields
