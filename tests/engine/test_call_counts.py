"""How many Python functions a training step calls, for fixed jobs: what grows here grows for every batch of every run.

Counts are exact, so this is the guard against slow changes; times are measured in `tests/benchmarks`. When a count
falls, lower its limit here; when it must grow, say why beside it.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from tests.engine.calls import COUNTED, WARM, watch_a_step


def log_values(count: int, module: Any, loss: Any, **flags: Any) -> None:
    for i in range(count):
        module.log(f"m{i}", loss, **flags)


# One of each is the look at the loss, which stops a training whose loss is nan (`preflight`).
JOBS: dict[str, tuple[dict[str, Any], float]] = {
    "plain": ({}, 10),
    "log_1": ({"log": functools.partial(log_values, 1)}, 15),
    "log_10": ({"log": functools.partial(log_values, 10)}, 42),
    "log_10_by_epoch": ({"log": functools.partial(log_values, 10, on_step=False, on_epoch=True)}, 52),
    "accumulate": ({"accumulate_grad_batches": 2}, 11),
    "clip": ({"gradient_clip_val": 1.0}, 16),
}
EPOCH_OF_ONE_STEP = 84


@pytest.mark.parametrize("name", JOBS)
def test_a_step_calls_no_more_functions_than_before(name: str) -> None:
    options, limit = JOBS[name]
    seen = watch_a_step(**options)
    assert seen.calls <= limit, seen.describe()


def test_an_epoch_s_boundary_calls_no_more_functions_than_before() -> None:
    seen = watch_a_step(batches=1, max_epochs=WARM + COUNTED + 2)
    assert seen.calls <= EPOCH_OF_ONE_STEP, seen.describe()


READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")


@pytest.mark.parametrize("name", JOBS)
def test_no_step_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a tensor's value stops the host until the device is done; a step must not do it unasked.

    On a CPU nobody waits, so the watch over the loss reads there; elsewhere it does not, which is what is tried here.
    """
    monkeypatch.setattr("engine.preflight.reads_at_once", lambda device: False)
    read: list[str] = []
    for method in READS:
        monkeypatch.setattr(torch.Tensor, method, counting(read, method, getattr(torch.Tensor, method)))
    options = dict(JOBS[name][0])
    log = options.pop("log", None)

    def log_and_look(module: Any, loss: Any) -> None:
        if log is not None:
            log(module, loss)
        marks.append(len(read))

    marks: list[int] = []
    watch_a_step(log=log_and_look, **options)
    assert marks[-1] == marks[3], f"read in steps: {read[marks[3] : marks[-1]]}"
    assert len(marks) > 10


def counting(read: list[str], name: str, method: Any) -> Any:
    def counted(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        read.append(name)
        return method(self, *args, **kwargs)

    return counted
