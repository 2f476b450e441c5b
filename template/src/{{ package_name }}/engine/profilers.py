"""Where the time of a run goes, by hook and by step.

Owns: measuring named actions and the report. Does not own: which actions there are; with a profiler `dispatch` builds a
hook table that calls `profile`, without one nothing of this is called.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile, record_function, schedule

from .distributed import rank_zero_info, rank_zero_only
from .errors import MisconfigurationException, did_you_mean

_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


class Profiler(ABC):
    """Base of all profilers: write `start` and `stop`, and `summary` if there is something to tell.

    Args:
        dirpath: Folder for files; None: the logger's folder, as `setup` is told.
        filename: Write the report into `<stage>-<filename>-<local rank>.txt` there; None: print it on rank 0.
    """

    is_on: bool = True

    def __init__(self, dirpath: str | Path | None = None, filename: str | None = None) -> None:
        self.dirpath = Path(dirpath) if dirpath is not None else None
        self.filename = filename
        self.stage: str | None = None
        self.local_rank: int | None = None

    @abstractmethod
    def start(self, action_name: str) -> None:
        """Begin to measure an action, such as `[LightningModule]Net.training_step`; actions may be nested."""

    @abstractmethod
    def stop(self, action_name: str) -> None:
        """End the action started last under this name.

        Raises:
            ValueError: None was.
        """

    @contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        """Measure what happens inside."""
        self.start(action_name)
        try:
            yield action_name
        finally:
            self.stop(action_name)

    def summary(self) -> str:
        """Return the report; empty: there is none."""
        return ""

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | Path | None = None) -> None:
        """Run before the first action of a run, on every rank."""
        self.stage, self.local_rank = stage, local_rank
        if self.dirpath is None and log_dir is not None:
            self.dirpath = Path(log_dir)

    def describe(self) -> None:
        """Print the report, or write it to its file, at the end of a run. On every rank; prints on rank 0."""
        text = self.summary()
        if text and self.filename is None:
            rank_zero_only(print)(text, flush=True)
        elif text:
            with self._path(".txt").open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    def teardown(self, stage: str | None) -> None:
        """Run after everything, also after an error, on every rank."""
        self.stage = None

    def _path(self, ending: str, default: str | None = None) -> Path:
        """Return the path of a file to write; its folder is made."""
        parts = (self.stage, self.filename or default, self.local_rank)
        name = "-".join(str(part) for part in parts if part is not None)
        path = (self.dirpath or Path()) / f"{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class PassThroughProfiler(Profiler):
    """Measures nothing: `trainer.profiler` when none was asked for, so that `trainer.profiler.profile(...)` works."""

    is_on = False

    def start(self, action_name: str) -> None:
        """Do nothing."""

    def stop(self, action_name: str) -> None:
        """Do nothing."""


class SimpleProfiler(Profiler):
    """Wall-clock time by action: total, mean, number of calls, share.

    An action's time contains that of the actions inside it. Work that a device does later is not in it, unless the
    action waits for the device.

    Args:
        dirpath: See `Profiler`.
        filename: See `Profiler`.
        extended: Also the columns calls and percent.
    """

    def __init__(self, dirpath: str | Path | None = None, filename: str | None = None, extended: bool = True) -> None:
        super().__init__(dirpath, filename)
        self.extended = extended
        self.start_time = time.perf_counter()
        self.totals: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])  # name: calls, seconds
        self._running: dict[str, list[float]] = defaultdict(list)

    def start(self, action_name: str) -> None:
        """Note the time."""
        self._running[action_name].append(time.perf_counter())

    def stop(self, action_name: str) -> None:
        """Add the time since `start`."""
        now = time.perf_counter()
        if not self._running[action_name]:
            raise _never_started(action_name)
        calls, seconds = self.totals[action_name]
        self.totals[action_name] = [calls + 1, seconds + now - self._running[action_name].pop()]

    def summary(self) -> str:
        """Return a table, the longest total first."""
        whole = time.perf_counter() - self.start_time
        rows = [("Action", "Total (s)", "Mean (ms)", "Calls", "Percent")]
        for name, (calls, seconds) in sorted(self.totals.items(), key=lambda item: -item[1][1]):
            share = 100 * seconds / whole
            rows.append((name, f"{seconds:.3f}", f"{1000 * seconds / calls:.3f}", f"{calls:.0f}", f"{share:.1f}"))
        columns = [list(column) for column in zip(*rows, strict=True)][: 5 if self.extended else 3]
        widths = [max(map(len, column)) for column in columns]
        lines = [f"{(self.stage or '').upper()} profile: {whole:.3f} s in all; actions contain one another".strip()]
        for row in zip(*columns, strict=True):
            cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
        lines.insert(2, "-" * len(lines[1]))
        return "\n".join(lines)


class AdvancedProfiler(Profiler):
    """Time by Python function for each action, with cProfile. Slow: for finding out, not for comparing.

    The functions of an action that runs inside another one are listed under the inner action only.

    Args:
        dirpath: See `Profiler`.
        filename: See `Profiler`.
        line_count_restriction: Lines per action in the report: a count, or a share of them as a float.
        dump_stats: Also write each action's `.prof` file into `dirpath`, for viewers such as snakeviz.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        line_count_restriction: float = 1.0,
        dump_stats: bool = False,
    ) -> None:
        super().__init__(dirpath, filename)
        self.line_count_restriction = line_count_restriction
        self.dump_stats = dump_stats
        self.profiles: dict[str, cProfile.Profile] = defaultdict(cProfile.Profile)
        self._stack: list[str] = []

    def start(self, action_name: str) -> None:
        """Switch the recording from the action around this one to this one: Python allows one cProfile at a time."""
        if self._stack:
            self.profiles[self._stack[-1]].disable()
        self._stack.append(action_name)
        self.profiles[action_name].enable()

    def stop(self, action_name: str) -> None:
        """Switch it back."""
        if action_name not in self._stack:
            raise _never_started(action_name)
        self.profiles[self._stack[-1]].disable()
        while self._stack.pop() != action_name:
            continue  # an action inside, which an error has left open
        if self._stack:
            self.profiles[self._stack[-1]].enable()

    def summary(self) -> str:
        """Return a pstats table for each action, by cumulative time."""
        texts = [f"{(self.stage or '').upper()} profile by function".strip()]
        for name, recorded in self.profiles.items():
            stream = io.StringIO()
            pstats.Stats(recorded, stream=stream).sort_stats("cumulative").print_stats(self.line_count_restriction)
            texts.append(f"{name}\n{stream.getvalue().strip()}")
            if self.dump_stats:
                safe = "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in name)
                recorded.dump_stats(self._path(f"-{safe}.prof", default="profile"))
        return "\n\n".join(texts)

    def teardown(self, stage: str | None) -> None:
        """Stop recording, also when an action was left by an error."""
        if self._stack:
            self.profiles[self._stack[-1]].disable()
            self._stack.clear()


class PyTorchProfiler(Profiler):
    """Operators on CPU and device, with `torch.profiler`; a trace for chrome://tracing or Perfetto.

    A step is what ends with a `*_step` hook. By default the second step is warm-up and steps 3 to 5 are recorded.

    Args:
        dirpath: Where `*.pt.trace.json` goes; see `Profiler`.
        filename: See `Profiler`.
        group_by_input_shapes: One row of the report per shape.
        export_to_chrome: Write the trace.
        row_limit: Rows of the report; -1: all.
        sort_by_key: Column to sort by; None: device time where there is a device, else CPU time.
        **profiler_kwargs: Go to `torch.profiler.profile`, such as `schedule`, `with_stack`, `profile_memory`.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        group_by_input_shapes: bool = False,
        export_to_chrome: bool = True,
        row_limit: int = 20,
        sort_by_key: str | None = None,
        **profiler_kwargs: Any,
    ) -> None:
        super().__init__(dirpath, filename)
        self.group_by_input_shapes = group_by_input_shapes
        self.export_to_chrome = export_to_chrome
        self.row_limit = row_limit
        self.sort_by_key = sort_by_key
        self.profiler_kwargs = profiler_kwargs
        self.profiler: profile | None = None
        self._records: list[tuple[str, ExitStack]] = []
        self._steps = 0
        self._text = ""

    def start(self, action_name: str) -> None:
        """Start torch's profiler at the first action, and name this stretch in its trace."""
        if self.profiler is None:
            defaults: dict[str, Any] = {
                "schedule": schedule(wait=1, warmup=1, active=3, repeat=1),
                "record_shapes": self.group_by_input_shapes,
                "on_trace_ready": self._on_trace_ready,
            }
            self._steps, self._text = 0, ""
            self.profiler = profile(**defaults | self.profiler_kwargs)
            self.profiler.start()
        record = ExitStack()
        record.enter_context(record_function(action_name))
        self._records.append((action_name, record))

    def stop(self, action_name: str) -> None:
        """End the stretch; after a `*_step`, tell torch's profiler that a step is over."""
        if action_name not in dict(self._records):
            raise _never_started(action_name)
        while self._records[-1][0] != action_name:  # an action inside, which an error has left open
            self._records.pop()[1].close()
        self._records.pop()[1].close()
        if self.profiler is not None and action_name.endswith(_STEPS):
            self._steps += 1
            self.profiler.step()

    def summary(self) -> str:
        """Return torch's table of operators."""
        self._finish()
        name = f"{(self.stage or '').upper()} profile".strip()
        if self._text:
            return f"{name}\n{self._text}"
        begins = "the schedule begins later. Run more steps, or pass a `schedule`."
        return f"{name}: nothing recorded in {self._steps} steps; {begins}"

    def teardown(self, stage: str | None) -> None:
        """Stop torch's profiler; the next run starts a new one."""
        while self._records:
            self._records.pop()[1].close()
        self._finish()

    def _finish(self) -> None:
        if self.profiler is not None:
            self.profiler.stop()
            self.profiler = None

    def _on_trace_ready(self, recorded: profile) -> None:
        averages = recorded.key_averages(group_by_input_shape=self.group_by_input_shapes)
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        sort_by = self.sort_by_key or f"{device.type if device else 'cpu'}_time_total"
        self._text = averages.table(sort_by=sort_by, row_limit=self.row_limit)
        if self.export_to_chrome and self.dirpath is None:
            rank_zero_info("PyTorchProfiler writes no trace: there is no logger folder. Pass `dirpath=`.")
        elif self.export_to_chrome:
            recorded.export_chrome_trace(str(self._path(f"-{recorded.step_num}.pt.trace.json", default="trace")))


def _never_started(action_name: str) -> ValueError:
    return ValueError(
        f"profiler.stop({action_name!r}): this action is not the one running. Call `start` before, and end nested "
        f"actions in the reverse order; `with profiler.profile(name):` does both."
    )


_BY_NAME: dict[str, Callable[[], Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


def select_profiler(profiler: Profiler | str | None) -> Profiler:
    """Return the profiler that `Trainer(profiler=...)` means; None: a `PassThroughProfiler`, whose `is_on` is False.

    Raises:
        MisconfigurationException: Neither a known name nor a `Profiler`.
    """
    if profiler is None:
        return PassThroughProfiler()
    if isinstance(profiler, Profiler):
        return profiler
    if isinstance(profiler, str) and profiler.lower() in _BY_NAME:
        return _BY_NAME[profiler.lower()]()
    raise MisconfigurationException(
        f"Trainer(profiler={profiler!r}) does not exist.{did_you_mean(str(profiler), _BY_NAME)} "
        f"Accepted: {', '.join(repr(name) for name in _BY_NAME)}, an object derived from `Profiler`, None."
    )
