"""The progress bar of notebooks, drawn by tqdm; also for terminals."""

from __future__ import annotations

import io
import math
import sys
import time
from typing import Any

from ...errors import require
from .progress_bar import LineProgressBar, View, shown


class TQDMProgressBar(LineProgressBar):
    """One tqdm bar for each call of the trainer; validation inside of `fit` takes it over and gives it back.

    Override `init_train_tqdm` and its like to change a bar. Lines that are printed while a bar stands on a terminal
    come out above it.

    Args:
        refresh_rate: 0 turns the bar off. The bar is drawn by time, so another number changes nothing.
        process_position: Line of the bar, when several processes share a terminal.
        leave: Leave a bar for every epoch, not only for the last.

    Raises:
        MissingExtraError: tqdm is not installed.
    """

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
    SHORT_FORMAT = "{desc}{bar:10}| {n_fmt}/{total_fmt} [{remaining}{postfix}]"  # where that leaves no room for a bar

    def __init__(self, refresh_rate: int = 1, process_position: int = 0, leave: bool = False) -> None:
        require("tqdm", "tqdm", "`TQDMProgressBar`")
        super().__init__(refresh_rate, leave)
        self.process_position = process_position
        self._bar: Any = None
        self._lines: list[_LinesAbove] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bar": None, "_lines": []}

    @property
    def train_progress_bar(self) -> Any:
        """The tqdm bar on show.

        Raises:
            TypeError: There is none; it is made when the first batch is done.
        """
        if self._bar is None:
            raise TypeError(
                "There is no bar yet: it is made with the first batch, and ends with the call of the trainer."
            )
        return self._bar

    val_progress_bar = test_progress_bar = predict_progress_bar = train_progress_bar

    def init_train_tqdm(self) -> Any:
        """Make the bar of `fit`, which also shows its sanity check and validation."""
        return self._make(self.train_description)

    def init_sanity_tqdm(self) -> Any:
        """Make the bar that begins with a sanity check: that of `fit`."""
        return self.init_train_tqdm()

    def init_validation_tqdm(self) -> Any:
        """Make the bar of `validate`."""
        return self._make(self.validation_description)

    def init_test_tqdm(self) -> Any:
        """Make the bar of `test`."""
        return self._make(self.test_description)

    def init_predict_tqdm(self) -> Any:
        """Make the bar of `predict`."""
        return self._make(self.predict_description)

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bar."""
        if self._bar is None:
            print(*args, sep=sep, **kwargs)
        else:
            self._bar.write(sep.join(map(str, args)), **kwargs)

    def _make(self, description: str) -> Any:
        tqdm = require("tqdm.auto", "tqdm", "`TQDMProgressBar`").tqdm
        return tqdm(
            desc=description,
            position=self.process_position,
            leave=True,
            dynamic_ncols=True,
            file=sys.stdout,
            bar_format=self.BAR_FORMAT,
            mininterval=0.0,
        )

    def _draw(self, view: View) -> None:
        if self._bar is None:
            self._open()
        bar = self._bar
        total = view.total if math.isfinite(view.total) else None
        if total != bar.total:
            bar.reset(total)  # the widget of a notebook learns its length only so
        now = time.time()
        bar.n, bar.start_t, bar.last_print_t = view.done, now - view.elapsed_s, now
        bar.set_description(view.description, refresh=False)
        bar.set_postfix({name: shown(value) for name, value in view.metrics.items()}, refresh=False)
        if self._lines and bar.bar_format in (self.BAR_FORMAT, self.SHORT_FORMAT):
            meter = {**bar.format_dict, "bar_format": self.BAR_FORMAT, "ncols": None}  # without a width: a bar of ten
            is_short = bar.ncols is not None and len(bar.format_meter(**meter)) > bar.ncols
            bar.bar_format = self.SHORT_FORMAT if is_short else self.BAR_FORMAT
        bar.refresh()

    def _open(self) -> None:
        fn = str(self.trainer.state.fn)
        kind = {"fit": "train", "validate": "validation"}.get(fn, fn)
        self._bar = getattr(self, f"init_{kind}_tqdm")()
        if sys.stdout.isatty():
            self._lines = [_LinesAbove(self._bar, name) for name in ("stdout", "stderr")]

    def _close(self) -> None:
        for lines in self._lines:
            lines.end()
        self._lines = []
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _LinesAbove(io.TextIOBase):
    """Stands in for `sys.stdout` or `sys.stderr` while a bar is on the terminal; writes whole lines above the bar."""

    def __init__(self, bar: Any, name: str) -> None:
        self._bar, self._name, self._rest = bar, name, ""
        self._stream: Any = getattr(sys, name)
        setattr(sys, name, self)

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        if lines:
            self._bar.clear()
            self._stream.write("\n".join(lines) + "\n")
            self._bar.refresh()
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return bool(self._stream.isatty())

    def fileno(self) -> int:
        return int(self._stream.fileno())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self._stream.encoding)

    def end(self) -> None:
        if self._rest:
            self.write("\n")
        if getattr(sys, self._name) is self:
            setattr(sys, self._name, self._stream)
