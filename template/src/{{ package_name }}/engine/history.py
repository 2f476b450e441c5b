"""What `fit` returns: the metrics of the run, as pandas and matplotlib take them.

Owns: the table. Does not own: what is written into it (`run.Run.send`) and pictures (`curves`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

Number = float


class History(dict[str, list[Number]]):
    """Metric name to one value for each epoch; `rows` holds every point that was written.

    All lists have the same length, so `pandas.DataFrame(history)` and `plt.plot("epoch", "val_loss", data=history)`
    work as they stand. The value of an epoch is the last one written in it, NaN when there was none. The first columns
    are `epoch`, `step` (the last one of the epoch) and `time` (seconds since the first point).

    Attributes:
        rows: Every point in order: `{"step": ..., "epoch": ..., "time": ..., name: value, ...}`, `time` in seconds
            since 1970. `pandas.DataFrame(history.rows)` is the long table.

    Args:
        rows: Such points; those without an epoch belong to the epoch before.

    Example:
        >>> history = History([
        ...     {"step": 0, "epoch": 0, "loss": 1.0}, {"step": 4, "epoch": 0, "loss": 0.5},
        ...     {"step": 4, "epoch": 0, "val_loss": 0.6}, {"step": 9, "epoch": 1, "loss": 0.25},
        ... ])
        >>> history["loss"], history["step"]
        ([0.5, 0.25], [4, 9])
        >>> history["val_loss"]
        [0.6, nan]
        >>> history.points("loss")
        ([0, 4, 9], [1.0, 0.5, 0.25])
    """

    def __init__(self, rows: Iterable[Mapping[str, Number]] = ()) -> None:
        super().__init__()
        self.rows = [dict(row) for row in rows]
        start = self.rows[0].get("time") if self.rows else None
        epochs: dict[Number, dict[str, Number]] = {}
        current: Number = 0
        for row in self.rows:
            current = row.get("epoch", current)
            values = epochs.setdefault(current, {"epoch": current})
            values.update({name: value for name, value in row.items() if name != "epoch"})
            if start is not None and "time" in row:
                values["time"] = row["time"] - start
        names = dict.fromkeys(["epoch", "step", "time"] if start is not None else ["epoch", "step"])
        names.update(dict.fromkeys(name for row in self.rows for name in row))
        if epochs:
            self.update({name: [values.get(name, math.nan) for values in epochs.values()] for name in names})

    def points(self, name: str, x: str = "step") -> tuple[list[Number], list[Number]]:
        """Return all points of one metric.

        Args:
            name: The metric.
            x: "step", "epoch", "time" (seconds since the first point) or another metric of the same rows.

        Returns:
            The x values and the metric's values, without the rows that lack one of them.

        Raises:
            KeyError: There is no metric of that name; the text lists those there are.
        """
        if name not in self:
            raise KeyError(f"{name!r} was not logged. There are: {', '.join(self.metrics()) or 'no metrics'}.")
        start = self.rows[0].get("time", 0.0) if x == "time" else 0
        found = [(row[x] - start, row[name]) for row in self.rows if name in row and x in row]
        return [at for at, _ in found], [value for _, value in found]

    def metrics(self) -> list[str]:
        """Return the names of the metrics, without `epoch`, `step` and `time`."""
        return [name for name in self if name not in ("epoch", "step", "time")]
