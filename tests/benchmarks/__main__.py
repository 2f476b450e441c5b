"""Measure the engine against a hand-written loop and against Lightning, in one run on one machine.

    python -m tests.benchmarks                 every row; some twenty minutes
    python -m tests.benchmarks --quick         roughly, in under a minute; without what needs processes of its own
    python -m tests.benchmarks --only tiny     one row
    python -m tests.benchmarks --write         the table into docs/{en,ja}/reference/speed-table.md

Numbers of one machine say little; the ratios within one run do. The exit status is 1 when a row misses its budget and
`--strict` is given.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import torch

from tests.benchmarks.measure import Row, table
from tests.benchmarks.rows import IN_QUICK, QUICK, ROWS, Effort

DOCS = Path(__file__).resolve().parents[2] / "docs"
HEADS = {
    "en": "# Speed: the table\n\nMade by `nox -s bench -- --write`. What it means: [what a step costs](../speed.md).",
    "ja": "# 速さの表\n\n`nox -s bench -- --write` が書きます。読み方は[1 ステップのコスト](../speed.md)にあります。",
}


def machine() -> str:
    """When, where and with what, in a line."""
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for package in ("lightning", "torchmetrics"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    today = datetime.datetime.now(tz=datetime.UTC).date()
    return f"{today}, {platform.machine()} with {os.cpu_count()} cores, {', '.join(versions)}, one torch thread."


def run(only: list[str], effort: Effort) -> list[Row]:
    """Measure the rows, saying on standard error which is at work."""
    found: list[Row] = []
    for name in only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows = ROWS[name](effort)
        found += rows if isinstance(rows, list) else [rows]
    return found


def main() -> int:
    """Parse the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=list(ROWS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--strict", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    effort = QUICK if args.quick else Effort()
    if args.rounds:
        effort = dataclasses.replace(effort, rounds=args.rounds, processes=args.rounds)
    rows = run(args.only or (IN_QUICK if args.quick else list(ROWS)), effort)
    text = f"{table(rows)}\n\n{machine()} Medians of {effort.rounds} rounds, the middle half in brackets.\n"
    print(text)
    if args.write:
        for language, head in HEADS.items():
            page = DOCS / language / "reference" / "speed-table.md"
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(f"{head}\n\n{text}", encoding="utf-8")
    return int(args.strict and any(row.met() is False or row.same_work is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
