"""Callbacks in two processes: rank 0 decides, or any rank stops all; nobody waits for ever."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, str(SCRIPT), str(folder)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_both_ranks_keep_what_rank_zero_found_best(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["saved"]["kept"] == ranks[1]["saved"]["kept"]
    assert list(ranks[0]["saved"]["kept"].values()) == [0.4, 0.3]
    assert ranks[0]["saved"]["best"] == ranks[1]["saved"]["best"] == "epoch=3-step=16.ckpt"
    assert ranks[0]["saved"]["files"] == ["epoch=2-step=12.ckpt", "epoch=3-step=16.ckpt", "last.ckpt"]


def test_one_rank_that_stops_stops_both(ranks: list[dict[str, Any]]) -> None:
    assert [rank["stopped"] for rank in ranks] == [3, 3]


def test_the_clock_of_rank_zero_decides(ranks: list[dict[str, Any]]) -> None:
    assert [rank["timed"] for rank in ranks] == [0, 0]


def test_both_ranks_train_with_one_learning_rate(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["swept"] == ranks[1]["swept"] != 9.0
