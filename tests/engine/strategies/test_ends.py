"""The end of a process that took part in a training."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.engine.strategies import ends


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the scheduler is asked in Linux's way")
def test_a_process_ends_well_while_a_thread_of_gloo_still_gives_a_tensor_back() -> None:
    for _ in range(3):  # without the wait at the end, two of three abort
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", ends.__file__]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
