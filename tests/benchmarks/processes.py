"""Rows that need processes of their own: imports, the first step, memory, checkpoints, two-process training.

Each runs `python -m tests.benchmarks.child TASK ...`, which prints numbers by name as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.benchmarks.contenders import installed
from tests.benchmarks.measure import Budget, Row, Samples


def child(task: str, *arguments: Any, processes: int = 1) -> dict[str, Any]:
    """Run a task in a fresh interpreter and return what it printed last."""
    launch = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"] if processes > 1 else []
    command = [sys.executable, *launch, "-m", "tests.benchmarks.child", task, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"{' '.join(command)} printed no result:\n{done.stderr[-2000:]}")
    return json.loads(lines[-1])  # type: ignore[no-any-return]


def gather(task: str, count: int, *arguments: Any) -> dict[str, Samples]:
    """Run all contenders in turn, `count` times: name of the number -> contender -> one per round."""
    found: dict[str, Samples] = {}
    for _ in range(count):
        for contender in ("bare", *installed()):
            for name, number in child(task, contender, *arguments).items():
                found.setdefault(name, {}).setdefault(contender, []).append(number)
    return found


def start(count: int) -> list[Row]:
    """Importing, the way to the first step, and the peak memory of a small fit."""
    found = gather("start", count)
    return [
        Row("import, torch included", "ms", found["import"], Budget(ratio=1.05), note="CPU time"),
        Row("from nothing to the end of the first step", "ms", found["first"], note="CPU time"),
        Row("peak memory of a small fit", "MB", found["mb"]),
    ]


def checkpoint(megabytes: int, count: int) -> list[Row]:
    """Saving, loading and saving in the background, of one tensor file of so many megabytes."""
    size = f"{megabytes} MB"
    saved, found = child("save", megabytes, count), gather("checkpoint", count, megabytes)
    places = {
        "disk": (f"save {size}", "bare: torch.save, which does not wait for the disk"),
        "synced": (f"save {size} until it is on the disk", "bare: torch.save, then fsync"),
        "memory": (f"save {size} to tmpfs, a disk as fast as memory", "bare: torch.save"),
    }
    return [
        *(Row(what, "ms", saved[place], Budget(ratio=1.05), note=note)
          for place, (what, note) in places.items() if place in saved),
        Row(f"memory while saving {size}", "MB", found["save_mb"], note="growth of the peak"),
        Row(f"load {size}", "ms", found["load"], Budget(ratio=0.3), note="bare: torch.load"),
        Row(f"stall of an asynchronous save of {size}, after the first", "ms", found["stall"], Budget(ratio=1.0),
            note="bare: a copy in memory"),
    ]  # fmt: skip


def ddp(count: int, steps: int) -> list[Row]:
    """A step on two processes, in which all contenders take turns."""
    rows = []
    for what, width, rows_of_batch, limit in (("tiny model", 32, 16, 1.05), ("model of about 3 ms", 600, 64, 1.02)):
        samples = child("ddp", width, rows_of_batch, steps, count, processes=2)
        same = len({round(each, 6) for sums in samples["weights"].values() for each in sums}) == 1
        rows.append(Row(f"step on two processes, {what}", "µs", samples["us"], Budget(ratio=limit), same))
        rows.append(Row(f"the same, {what}", "µs", samples["cpu_us"], same_work=same, note="CPU time of one process"))
    return rows
