"""Random small jobs of the engine, broken off at a random place and resumed: nothing may tell that they were.

The engine's own promise (parity off), so Lightning is not needed. What is compared: every step after the break
(losses, learning rates, counters, metrics), what the logger got, and the final weights.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.parity.compare import describe, differences
from tests.parity.differential import as_json
from tests.parity.framework import Framework, load_framework
from tests.parity.jobs import by_name, weights
from tests.parity.play import Player
from tests.parity.random_job import Job, jobs

COUNT = int(os.environ.get("PARITY_JOBS", "300")) // 2
PLACES = ("on_train_batch_end", "on_validation_end", "on_train_epoch_end")


class BrokenOffError(Exception):
    """What a run is broken off by."""


def breaker(fw: Framework, place: str, after: int, path: str) -> Any:
    """A callback that saves a checkpoint at the `after`-th call of the hook `place`, and breaks the run off."""

    class Break(fw.Callback):  # type: ignore[name-defined, misc]
        runs_last = True
        calls = 0

        def setup(self, *_: Any, **__: Any) -> None:
            self.role = "checkpoint"  # what the module does in that hook is saved; the Trainer would count a saver

        def act(self, trainer: Any) -> None:
            if trainer.sanity_checking:
                return
            self.calls += 1
            if self.calls == after:
                trainer.save_checkpoint(path)
                raise BrokenOffError

    setattr(Break, place, lambda self, trainer, module, *args: self.act(trainer))
    return Break()


def counts_from(fw: Framework, player: Player, calls: dict[str, int]) -> Any:
    """A callback: the numbers that `player` logs, which count calls, go on from `calls` after the sanity check."""

    class CountsFrom(fw.Callback):  # type: ignore[name-defined, misc]
        def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
            player.calls = dict(calls)

    return CountsFrom()


def state(trainer: Any, net: Any) -> dict[str, Any]:
    """What a finished run leaves."""
    return {
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "metrics": by_name(trainer.callback_metrics),
        "weights": weights(net),
        "lr": [g["lr"] for o in trainer.optimizers for g in o.param_groups],
    }


def broken_and_resumed(fw: Framework, job: Job, place: str, after: int) -> str | None:
    """Run `job` through, then broken off and resumed; "" when both are alike, None when the place never came."""
    through = Player(fw, job)
    expected = state(*through.fit())
    first = Player(fw, job)
    path = os.path.join(first.folder, "broken.ckpt")
    first.extra = [breaker(fw, place, after, path)]
    try:
        first.fit()
    except BrokenOffError:
        pass
    else:
        return None
    second = Player(fw, job)
    second.calls = dict(first.calls)
    second.extra = [counts_from(fw, second, first.calls)]
    torch.manual_seed(99)
    got = state(*second.fit(ckpt_path=path, seed=99))
    done = len(first.steps)
    expected["steps"], got["steps"] = through.steps[done:], second.steps
    logged = [r for r in through.logged if r not in first.logged]
    expected["logged"], got["logged"] = logged, [r for r in second.logged if r not in first.logged]
    return describe(differences(as_json(expected), as_json(got)), limit=8)


@pytest.mark.timeout(1800)
@settings(max_examples=COUNT, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(job=jobs(), place=st.sampled_from(PLACES), after=st.integers(1, 12))
def test_a_run_broken_off_anywhere_goes_on_as_if_nothing_had_been(job: Job, place: str, after: int) -> None:
    fw = load_framework("engine")
    fw = dataclasses.replace(fw, Trainer=fw.root.Trainer)
    logs = tuple(call for call in job.logs if call.hook != "on_train_start")  # which a resumed run calls again
    # A run that has taken its last step is done: nothing is left to resume.
    options = {k: v for k, v in job.trainer.items() if k != "max_steps"}
    job = dataclasses.replace(job, resume_after=None, then=(), watch_hooks=False, logs=logs, trainer=options)
    job = dataclasses.replace(job, stop_at=None)  # not kept: whoever resumes a stopped run wants to go on
    assume("fast_dev_run" not in job.trainer)
    assume(not job.shuffle or not any("lists_of_batches" in name for name in job.odd))  # shuffled once, when made
    assume("adds_a_group" not in job.odd)  # its model has another parameter after the first epoch than a new one
    try:
        Player(fw, job).fit()
    except Exception:
        assume(False)  # a job that the engine refuses
    found = broken_and_resumed(fw, job, place, after)
    assume(found is not None)
    assert not found, f"{job}\nbroken off at call {after} of {place}\n{found}"
