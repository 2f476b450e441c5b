"""Differential testing: the same random job on lightning 2.6.6 and on the engine.

    python -m tests.parity.differential "Job(train=(13,), trainer={'max_epochs': 2})"    one job, side by side
    python -m tests.parity.differential --survey 300 --seed 1                            many, differences grouped

`test_differential.py` does the second as a test that shrinks what it finds.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter, defaultdict
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.parity.compare import describe, differences, first_event_difference
from tests.parity.framework import REFERENCE, Framework, load_framework
from tests.parity.play import play
from tests.parity.random_job import Job, Log, Sched, jobs, simpler


def disagreement(reference: Framework, ours: Framework, job: Job) -> str:
    """Run `job` on both; "" when they agree, else what differs first, in a few lines.

    When both raise, only the kind of error is compared: ours may come earlier.
    """
    return parted(as_json(play(reference, job)), as_json(play(ours, job)))


def as_json(recording: dict[str, Any]) -> dict[str, Any]:
    """The recording as a JSON file would give it back."""
    return json.loads(json.dumps(recording))  # type: ignore[no-any-return]


def parted(expected: dict[str, Any], got: dict[str, Any]) -> str:
    """What differs between two recordings of one job, in a few lines; "" for nothing."""
    if "error" in expected or "error" in got:
        same = expected.get("error") == got.get("error")
        return "" if same else f"error: expected {_error(expected)}, got {_error(got)}"
    event = first_event_difference(expected["events"], got["events"])
    if event is not None:
        return f"event {event[0]}: expected {event[1]}, got {event[2]}"
    # Numbers near 0 differ more: an average is computed in another order here.
    return describe(differences(expected, got, atol=1e-6), limit=6)


def _error(recording: dict[str, Any]) -> str:
    return f"{recording['error']}: {recording['message']}" if "error" in recording else "no error"


def survey(reference: Framework, ours: Framework, count: int, start: int) -> int:
    """Draw `count` jobs, print one line for each that differs and a table of kinds; return how many differed."""
    kinds: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    outcomes: Counter[str] = Counter()

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(job=jobs())
    def draw(job: Job) -> None:
        expected, got = as_json(play(reference, job)), as_json(play(ours, job))
        found = parted(expected, got)
        outcomes["differs" if found else "raises alike" if "error" in expected else "agrees"] += 1
        if found:
            kinds[_kind(found)].append((len(repr(job)), repr(job), found))

    draw()
    for kind, cases in sorted(kinds.items(), key=lambda item: -len(item[1])):
        job = shrink(reference, ours, read_job(min(cases)[1]))
        print(f"{len(cases)} x {kind}\n  {job}\n  {disagreement(reference, ours, job)}\n", flush=True)
    print(dict(outcomes))
    return outcomes["differs"]


def shrink(reference: Framework, ours: Framework, job: Job) -> Job:
    """The smallest job that one gets to by leaving out one thing after the other while the two still differ."""
    for candidate in simpler(job):
        if disagreement(reference, ours, candidate):
            return shrink(reference, ours, candidate)
    return job


def _kind(found: str) -> str:
    head = found.strip().split("\n")[0]
    return "".join("#" if c.isdigit() else c for c in head.split(": expected")[0])[:80] + (
        " " + head.split("expected")[1][:60] if head.startswith("error") else ""
    )


def read_job(text: str) -> Job:
    """The job that `text` (the printed form of one) describes."""
    return eval(text, {"__builtins__": {}, "Job": Job, "Log": Log, "Sched": Sched})  # type: ignore[no-any-return]


def main() -> int:
    """Parse the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", nargs="?", help="the printed form of one job")
    parser.add_argument("--survey", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shrink", action="store_true", help="leave out of the job what does not matter")
    parser.add_argument("--framework", default="engine")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    reference, ours = load_framework(REFERENCE), load_framework(args.framework)
    if args.job:
        job = read_job(args.job)
        if args.shrink:
            job = shrink(reference, ours, job)
            print(job)
        found = disagreement(reference, ours, job)
        print(found or "they agree")
        return bool(found)
    return survey(reference, ours, args.survey or 300, args.seed)


if __name__ == "__main__":
    sys.exit(main())
