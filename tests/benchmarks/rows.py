"""The rows of the table: what is measured, how, and against which budget."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.benchmarks import processes, slack
from tests.benchmarks.contenders import Contender, prediction, training, validation
from tests.benchmarks.measure import Budget, Row, rounds
from tests.benchmarks.work import Clock, Work

MICRO = 1e6


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds (within one process, and of processes), steps of a run, megabytes of a checkpoint."""

    rounds: int = 15
    processes: int = 5
    steps: int = 300
    megabytes: int = 400


QUICK = Effort(rounds=3, processes=1, steps=60, megabytes=40)


def per_step(
    what: str, work: Work, budget: Budget, effort: Effort, contenders: dict[str, Contender], *, per: int = 1,
    timer: Callable[[], float] = time.process_time,
) -> Row:  # fmt: skip
    """Microseconds from the start of one step to the start of the next (or of every `per`-th)."""
    weights: dict[str, torch.Tensor] = {}

    def run(name: str) -> float:
        steps = work.batches * work.epochs
        clock = Clock(timer, skip=min(20, steps // 3), last=steps)
        net = contenders[name](work, clock)
        weights[name] = torch.cat([p.detach().flatten() for p in net.parameters()])
        return clock.per_tick * per * MICRO

    samples = rounds({name: functools.partial(run, name) for name in contenders}, effort.rounds)
    same = all(torch.equal(w, weights["bare"]) for w in weights.values())
    return Row(what, "µs", samples, budget, same)


def tiny(effort: Effort) -> Row:
    """A step of a tiny model, no logger."""
    work = Work(batches=effort.steps)
    return per_step("step, tiny model", work, Budget(over_bare=10, times_less=20), effort, training())


def middle(effort: Effort) -> Row:
    """A step of a model that takes about 5 ms."""
    work = Work(width=900, rows=64, batches=max(effort.steps // 8, 20))
    return per_step("step, model of about 5 ms", work, Budget(ratio=1.02), effort, training())


def values(count: int, over_bare: float, times_less: float, effort: Effort) -> Row:
    """A step that logs so many values to a CSV logger."""
    work = Work(batches=effort.steps if count < 50 else effort.steps // 3, values=count)
    budget = Budget(over_bare=over_bare, times_less=times_less)
    return per_step(f"step, {count} value{'s' * (count > 1)} logged", work, budget, effort, training())


def collection(effort: Effort) -> Row:
    """A step that updates a torchmetrics collection, computed by epoch; the bare loop does the same."""
    work = Work(batches=effort.steps // 3, collection=True)
    return per_step("step, torchmetrics collection by epoch", work, Budget(over_bare=250), effort, training())


def boundary(effort: Effort) -> Row:
    """The end of one epoch and the start of the next, with the one step between them."""
    work = Work(batches=1, epochs=effort.steps)
    return per_step("an epoch of one step, no logger", work, Budget(over_bare=60), effort, training())


def by_default(effort: Effort) -> Row:
    """A step beside the logger and the checkpoints that a Trainer has unasked."""
    work = Work(batches=effort.steps)
    contenders = training(logger=True, enable_checkpointing=True)
    return per_step("step, with the Trainer's own logger and checkpoints", work, Budget(), effort, contenders)


def validating(effort: Effort) -> Row:
    """A batch of validation, whose loss is logged by epoch; the bare loop computes the same mean."""
    work = Work(batches=effort.steps)
    return per_step("batch of validation", work, Budget(), effort, validation())


def predicting(effort: Effort) -> Row:
    """A batch of prediction."""
    work = Work(batches=effort.steps)
    return per_step("batch of prediction", work, Budget(), effort, prediction())


def input_bound(effort: Effort) -> Row:
    """A step whose DataLoader makes rows in Python, in the same process."""
    work = Work(batches=effort.steps // 3, loader=True)
    return per_step("step, bound by its loader", work, Budget(ratio=1.05), effort, training())


ROWS: dict[str, Callable[[Effort], Row | list[Row]]] = {
    "tiny": tiny,
    "middle": middle,
    "log_1": functools.partial(values, 1, 25, 20),
    "log_10": functools.partial(values, 10, 70, 30),
    "log_50": functools.partial(values, 50, 220, 40),
    "collection": collection,
    "boundary": boundary,
    "default": by_default,
    "validate": validating,
    "predict": predicting,
    "loader": input_bound,
    # What these cost is less than what two rounds differ by: more of them, each shorter.
    "slack": lambda effort: slack.row(effort.rounds * 3, effort.steps * 5),
    "ddp": lambda effort: processes.ddp(effort.rounds * 2, effort.steps),
    "start": lambda effort: processes.start(effort.processes),
    "checkpoint": lambda effort: processes.checkpoint(effort.megabytes, effort.processes),
}
IN_QUICK = [name for name in ROWS if name not in ("ddp", "start", "checkpoint")]  # their processes take most time
