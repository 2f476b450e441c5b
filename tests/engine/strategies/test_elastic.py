"""Two agents of torchrun on one machine play two nodes: one dies, comes back, and the training goes on exactly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

TRAIN = Path(__file__).parents[2] / "cluster" / "train.py"
EPOCHS = 6


def agent(folder: Path, port: int, seconds: float, *options: str) -> subprocess.Popen[bytes]:
    """Start a node with one process; its output goes to a file."""
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1"]
    # A node is given up after four seconds without a word, rather than fifteen.
    meeting += ["--rdzv-conf=keep_alive_interval=1,keep_alive_max_attempt=4", "--monitor-interval=0.2"]
    command = [sys.executable, "-m", "torch.distributed.run", *meeting, *options, str(TRAIN), str(folder)]
    folder.mkdir(exist_ok=True)
    with (folder / f"log-{time.time_ns()}.txt").open("wb") as log:
        return subprocess.Popen(
            [*command, str(EPOCHS), str(seconds)],
            # Else a node that comes back waits for an address that torchrun (2.13) has told the first ones only.
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            stdout=log,
            stderr=log,
        )


def poll(what: str, folder: Path, ready: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        logs = "\n".join(log.read_text()[-2000:] for log in folder.glob("log-*"))
        assert time.monotonic() < deadline, f"{what} did not come:\n{logs}"
        time.sleep(0.1)


def left(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "weights.pt")
    return found


def kill_node(process: subprocess.Popen[bytes]) -> None:
    """Kill an agent and its process, as a machine that loses its power does."""
    for member in [*psutil.Process(process.pid).children(recursive=True), process]:
        member.send_signal(signal.SIGKILL)
    process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_served(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_node_that_dies_and_comes_back_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, folder, port = tmp_path / "whole", tmp_path / "broken", free_port()
    uninterrupted = agent(whole, free_port(), 0.0, "--nnodes=1", "--nproc-per-node=2")
    nodes = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-id=one"]
    first = agent(folder, port, 0.3, *nodes)
    started = [uninterrupted, first]
    try:
        poll("the place where they meet", folder, lambda: is_served(port))  # by the first, which stays
        second = agent(folder, port, 0.3, *nodes)
        started.append(second)
        poll("a checkpoint", folder, (folder / "last.ckpt").exists)
        kill_node(second)
        started.append(agent(folder, port, 0.3, *nodes))
        poll("the end", folder, (folder / "weights.pt").exists, 200.0)
        assert uninterrupted.wait(120) == first.wait(60) == started[-1].wait(60) == 0
    finally:
        for process in started:
            if process.poll() is None:
                kill_node(process)
    assert left(folder)["processes"] == left(whole)["processes"] == 2
    torch.testing.assert_close(left(folder)["weights"], left(whole)["weights"], rtol=0, atol=0)
