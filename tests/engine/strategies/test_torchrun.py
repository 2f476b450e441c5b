"""Two and three processes under torchrun: what they train is what one process trains, whatever the strategy does."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.strategies import checks
from tests.engine.strategies.nets import weights

CASES = [f"{kind} {name}" for kind in checks.MODULES for name in checks.OPTIONS]


@functools.cache
def alone(case: str) -> Tensor:
    kind, _, name = case.partition(" ")
    return weights(checks.fit(kind, 1, checks.OPTIONS[name]))


@pytest.fixture(scope="module", params=[2, 3])
def left(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What so many processes left behind."""
    file = tmp_path_factory.mktemp("torchrun") / "left.pt"
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={request.param}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch, checks.__file__, str(file)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found: dict[str, Any] = torch.load(file)
    return found


@pytest.mark.parametrize("case", CASES)
def test_training_is_that_of_one_process_with_the_global_batch(case: str, left: dict[str, Any]) -> None:
    assert isinstance(left[case], Tensor), left[case]
    tolerance = 5e-3 if "bf16" in case else 1e-5
    torch.testing.assert_close(left[case], alone(case), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("check", checks.SAME_AS_ALONE)
def test_what_a_strategy_is_told_changes_no_result(check: str, left: dict[str, Any]) -> None:
    assert isinstance(left[check], Tensor), left[check]
    expected = alone(f"{checks.SAME_AS_ALONE[check]} plain")
    torch.testing.assert_close(left[check], expected, rtol=1e-5, atol=1e-5)


def test_a_communication_hook_takes_part(left: dict[str, Any]) -> None:
    """Gradients that travel as float16 lead to nearly, not exactly, the same weights."""
    assert isinstance(left["hooks"], Tensor), left["hooks"]
    assert not torch.equal(left["hooks"], left["ddp plain"])
    torch.testing.assert_close(left["hooks"], left["ddp plain"], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("check", ["without_sync_while_accumulating", "unused_parameters", "all_gather"])
def test_checks_within_the_processes(check: str, left: dict[str, Any]) -> None:
    assert left[check] is None, left[check]
