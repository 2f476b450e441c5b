"""Record hooks, jobs or facts of a framework into a folder.

    python -m tests.parity.record --framework lightning.pytorch --kind jobs --out tests/data/traces/own --only lbfgs

`tests/data/traces/` holds what lightning 2.6.6 left behind (hooks, jobs, ddp, facts; `own` for the jobs that were added
here); `tests/engine/test_traces.py` replays all of it on the engine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tests.parity import facts, hook_recorder, jobs, more_jobs
from tests.parity.found import FOUND
from tests.parity.framework import Framework, load_framework
from tests.parity.play import play


def recordings(fw: Framework, kind: str, only: list[str] | None) -> dict[str, Any]:
    """Record what `kind` names: file name -> content."""
    if kind == "hooks":
        return {f"hook_order_{name}": hook_recorder.record(fw, name) for name in only or hook_recorder.CASES}
    if kind == "facts":
        return {"facts": facts.record(fw, only)}
    if kind == "found":
        return {name: play(fw, FOUND[name]) for name in only or FOUND}
    table = jobs.JOBS if kind == "jobs" else more_jobs.JOBS
    return {name: jobs.record(fw, name, table[name]) for name in only or table}


def main() -> None:
    """Parse the command line, record, write one JSON file per recording."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", default="engine")
    parser.add_argument("--kind", choices=["hooks", "jobs", "more", "facts", "found"], required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, content in recordings(load_framework(args.framework), args.kind, args.only).items():
        (args.out / f"{name}.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")
        print("wrote", name)


if __name__ == "__main__":
    main()
