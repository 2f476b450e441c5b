"""Metrics in a CSV file that can be read while it grows.

Owns: `metrics.csv` and `hparams.yaml` in the run's directory. Does not own: which metrics come, and when.

Taking a row is one dictionary; rows are put into text and appended together: at every hundredth, or once a second.
A metric that comes for the first time adds a column, for which the file is written anew (beside, then renamed).
"""

from __future__ import annotations

import csv
import io
import os
import time
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from ..distributed import rank_zero_only, rank_zero_warn
from ..durations import counted
from .logger import HPARAMS_FILE, VersionedLogger, append_whole, plain, replace_whole, scalars

METRICS_FILE = "metrics.csv"
FLUSH_EVERY_S = 1.0


class CSVLogger(VersionedLogger):
    """Write metrics to `save_dir/name/version_N/metrics.csv` and hyper-parameters to `hparams.yaml`.

    The file is only ever added to: a run that continues in an existing directory continues the file, from the row at
    which its checkpoint was written. Missing values are empty. A full disk does not stop training: it warns, and rows
    wait in memory.

    Args:
        save_dir: Directory above the experiments.
        name: Experiment.
        version: Number or name of the run; None: the next free number.
        prefix: Put before every metric's name.
        flush_logs_every_n_steps: Rows (or "50ba") that wait at most; rows older than a second are written with the
            next one.

    Example:
        >>> import tempfile
        >>> logger = CSVLogger(tempfile.mkdtemp(), name="demo")
        >>> logger.log_metrics({"loss": 0.5}, step=0)
        >>> logger.log_metrics({"loss": 0.25, "accuracy": 1.0}, step=1)
        >>> logger.save()
        >>> print(open(os.path.join(logger.log_dir, "metrics.csv")).read().strip())
        step,loss,accuracy
        0,0.5,
        1,0.25,1.0
    """

    CLAIM_FILE = METRICS_FILE

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int | str = 100,
    ) -> None:
        super().__init__(save_dir, name, version, prefix)
        self._flush_every = max(1, counted(flush_logs_every_n_steps, "CSVLogger(flush_logs_every_n_steps", "batches"))
        self._rows: list[dict[str, float]] = []
        self._count = 0
        self._columns: dict[str, None] = {}  # a set in order
        self._flushed_at = 0.0
        self._opened = False
        self._kept: int | None = None
        self.hparams: dict[str, Any] = {}

    @property
    def experiment(self) -> CSVLogger:
        """The writer, which is the logger itself."""
        return self

    @property
    def metrics_file(self) -> str:
        """Path of the CSV file."""
        return os.path.join(self.log_dir, METRICS_FILE)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Take one row; `step=None` numbers the rows themselves."""
        row = scalars(metrics, self._prefix, self.LOGGER_JOIN_CHAR)
        row["step"] = self._count if step is None else step
        self._count += 1
        self._rows.append(row)
        if len(self._rows) >= self._flush_every or time.monotonic() - self._flushed_at > FLUSH_EVERY_S:
            self.save()

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace | None = None, *args: Any, **kwargs: Any) -> None:
        """Write the hyper-parameters, together with those of earlier calls, to `hparams.yaml`."""
        self.hparams.update(plain(params or {}))
        write_yaml(os.path.join(self.claim(), HPARAMS_FILE), self.hparams)

    @rank_zero_only
    def save(self) -> None:
        """Append the rows that wait."""
        rows, self._rows, self._flushed_at = self._rows, [], time.monotonic()
        if not rows:
            return
        try:
            self._append(rows)
        except OSError as error:
            self._rows = rows + self._rows
            rank_zero_warn(
                f"`CSVLogger` could not write to {self.metrics_file!r} ({error}). Training goes on and the rows are "
                "kept in memory; they are written as soon as the directory can be written to again."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return how many rows the file has."""
        if not self._opened and os.path.exists(self.metrics_file):
            self._take_over()
        return {"file": os.path.abspath(self.metrics_file), "rows": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the row at which the checkpoint was written, if in the same file: later ones come again."""
        same = state_dict.get("file") == os.path.abspath(self.metrics_file)
        self._kept = state_dict["rows"] if same else None

    def _append(self, rows: list[dict[str, float]]) -> None:
        if not self._opened:
            self.claim()
            self._take_over()
        new = dict.fromkeys(key for row in rows if not row.keys() <= self._columns.keys() for key in row)
        self._add_columns([key for key in new if key not in self._columns])
        append_whole(self.metrics_file, _as_csv([[row.get(key, "") for key in self._columns] for row in rows]))

    def _take_over(self) -> None:
        """Continue a file that is there: its columns stay, and a last line cut short by a crash is dropped."""
        if os.path.exists(self.metrics_file):
            with open(self.metrics_file, encoding="utf-8", newline="") as file:
                text = file.read()
            whole = text[: text.rfind("\n") + 1]
            if self._kept is not None:
                whole = "".join(whole.splitlines(keepends=True)[: self._kept + 1])
            if whole != text:
                replace_whole(self.metrics_file, whole)
            self._columns = dict.fromkeys(next(csv.reader(io.StringIO(whole)), []))
            self._count += max(0, whole.count("\n") - 1)
        self._opened = True

    def _add_columns(self, new: list[str]) -> None:
        if not new:
            return
        first = [] if self._columns else [key for key in ("step", "epoch") if key in new]
        columns = dict.fromkeys([*self._columns, *first, *new])
        old = ""
        if self._columns:
            with open(self.metrics_file, encoding="utf-8", newline="") as file:
                old = file.read().partition("\n")[2].replace("\n", "," * len(new) + "\n")
        replace_whole(self.metrics_file, _as_csv([list(columns)]) + old)
        self._columns = columns


def _as_csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_yaml(path: str, values: dict[str, Any]) -> None:
    """Write plain values as YAML, at once or not at all."""
    import yaml  # here: `import engine` needs nothing but torch

    replace_whole(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
