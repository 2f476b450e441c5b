"""Measure contenders in turn, and say what came out.

Contenders run one after the other within a round, and rounds repeat with the order turned, so that what the machine
does meanwhile hits all alike. What is reported are medians over rounds of differences and ratios within a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

Samples = dict[str, list[float]]


@dataclass(frozen=True)
class Budget:
    """What a row may cost, as section 7 of the design fixes it.

    Attributes:
        over_bare: most of the unit that ours may take more than the bare loop.
        times_less: at least so many times less than Lightning, over bare.
        ratio: ours divided by bare at most.
    """

    over_bare: float | None = None
    times_less: float | None = None
    ratio: float | None = None

    def text(self, unit: str) -> str:
        """The budget in words."""
        parts = []
        if self.over_bare is not None:
            parts.append(f"{self.over_bare:g} {unit} over bare")
        if self.times_less is not None:
            parts.append(f"{self.times_less:g} times less than Lightning")
        if self.ratio is not None:
            parts.append(f"{self.ratio:g} times bare")
        return ", ".join(parts) or "–"


@dataclass
class Row:
    """One line of the table.

    Attributes:
        what: what is measured.
        unit: of the samples.
        samples: contender -> one number per round.
        budget: what ours may cost.
        same_work: whether all ended in the same weights; None where there is nothing to compare.
        note: a remark.
    """

    what: str
    unit: str
    samples: Samples
    budget: Budget = field(default_factory=Budget)
    same_work: bool | None = None
    note: str = ""

    def median(self, name: str) -> float | None:
        """The median of a contender, or None if it did not run."""
        return statistics.median(self.samples[name]) if self.samples.get(name) else None

    def over_bare(self, name: str) -> list[float]:
        """By round: what a contender took more than the bare loop."""
        return [a - b for a, b in zip(self.samples.get(name, []), self.samples.get("bare", []), strict=False)]

    def ratios(self, name: str) -> list[float]:
        """By round: a contender divided by the bare loop."""
        return [a / b for a, b in zip(self.samples.get(name, []), self.samples.get("bare", []), strict=False) if b]

    def times_less(self) -> float | None:
        """How many times less ours costs over bare than Lightning."""
        ours, theirs = self.over_bare("ours"), self.over_bare("lightning")
        if not ours or not theirs:
            return None
        return statistics.median(theirs) / max(statistics.median(ours), 1e-9)

    def met(self) -> bool | None:
        """Whether ours is within its budget; None without one, or when ours did not run."""
        verdicts = []
        if self.budget.over_bare is not None and self.over_bare("ours"):
            verdicts.append(statistics.median(self.over_bare("ours")) <= self.budget.over_bare)
        if self.budget.times_less is not None and (times := self.times_less()) is not None:
            verdicts.append(times >= self.budget.times_less)
        if self.budget.ratio is not None and self.ratios("ours"):
            verdicts.append(statistics.median(self.ratios("ours")) <= self.budget.ratio)
        return all(verdicts) if verdicts else None


def rounds(contenders: dict[str, Callable[[], float]], count: int) -> Samples:
    """Let every contender run once per round; a first round, which is not counted, warms up."""
    names = list(contenders)
    samples: Samples = {name: [] for name in names}
    for i in range(count + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seconds = contenders[name]()
            if i:
                samples[name].append(seconds)
    return samples


def spread(values: list[float]) -> str:
    """The median with the middle half of the values."""
    if not values:
        return "–"
    if len(values) < 4:
        return _number(statistics.median(values))
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{_number(middle)} ({_number(low)}…{_number(high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: list[Row]) -> str:
    """The rows as a markdown table, with what each costs more than the bare loop."""
    costs = ["bare", "Lightning over bare", "ours over bare", "Lightning / bare", "ours / bare"]
    head = ["what", "unit", *costs, "budget", "met", "same weights"]
    return markdown(head, [_cells(row) for row in rows])


def rates(rows: list[Row]) -> str:
    """Rows of work per second, where more is better, as a markdown table."""
    head = ["what", "unit", "bare", "Lightning / bare", "ours / bare", "same weights"]
    return markdown(head, [[*_cells(row)[:3], *_cells(row)[5:7], _cells(row)[-1]] for row in rows])


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *lines])


def _cells(row: Row) -> list[str]:
    bare = row.median("bare")
    return [
        row.what + (f" ({row.note})" if row.note else ""),
        row.unit,
        "–" if bare is None else _number(bare),
        *(spread(row.over_bare(name)) for name in ("lightning", "ours")),
        *(spread(row.ratios(name)) for name in ("lightning", "ours")),
        row.budget.text(row.unit),
        {True: "yes", False: "**no**", None: "–"}[row.met()],
        {True: "yes", False: "**no**", None: "–"}[row.same_work],
    ]
