"""What test_ends.py runs: a training whose gloo threads get a processor only when nothing else wants it."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "template" / "src" / "{{ package_name }}")]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from tests.engine.toys import BoringModel, loader, quiet_trainer  # noqa: E402


def starve_gloo() -> int:
    """Return how many threads now wait for the one processor that this process keeps."""
    starved = 0
    for thread in map(int, os.listdir("/proc/self/task")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            os.sched_setaffinity(thread, {min(os.sched_getaffinity(0))})
            if Path(f"/proc/self/task/{thread}/comm").read_text() == "pt_gloo_runloop\n":
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
                starved += 1
    return starved


if __name__ == "__main__":
    quiet_trainer(devices=2, strategy="ddp").fit(BoringModel(), loader(), loader())
    assert starve_gloo() == 2
    dist.all_reduce(torch.ones(100_000))
