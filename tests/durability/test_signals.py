"""Real processes that are asked to stop: what they save, say and return, and that the rest of the run is the same."""

from __future__ import annotations

import json
import logging
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
import torch._dynamo

HERE = Path(__file__).parent


class Life:
    """`stoppable.py` in a process forked from this one, which has everything imported."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        theirs, ours = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(ours, 1)
            os.dup2(ours, 2)
            os._exit(live(str(folder), *options, **environment))
        os.close(ours)
        self.output = os.fdopen(theirs)

    def wait_for(self, text: str) -> None:
        """Read lines until one has `text`."""
        lines = []
        for line in self.output:
            lines.append(line)
            if text in line:
                return
        raise AssertionError("".join(lines))

    def send(self, name: str) -> None:
        """Send a signal."""
        os.kill(self.pid, signal.Signals[name])

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and the rest of the output."""
        with self.output:
            out = self.output.read()
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode, out


def live(folder: str, *options: str, **environment: str) -> int:
    """Be the training; return its exit code."""
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        del os.environ[name]
    os.environ.update(environment)
    logging.root.handlers.clear()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    torch.set_num_threads(1)  # a forked process must not use its parent's
    sys.argv = ["stoppable.py", folder, *options]
    try:
        runpy.run_path(str(HERE / "stoppable.py"), run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
    return 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the last line of a run that nobody stops: a digest of weights and rows."""
    code, out = Life(tmp_path_factory.mktemp("whole")).end()
    assert code == 0, out
    return out.splitlines()[-1]


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR1", 138), ("SIGINT", 0)])
def test_a_signal_ends_the_batch_saves_tells_everybody_and_leaves(
    tmp_path: Path, whole: str, name: str, code: int
) -> None:
    process = Life(tmp_path)
    process.wait_for("batch 4")
    process.send(name)
    returned, out = process.end()
    told = json.loads((tmp_path / "told.json").read_text())

    assert returned == code, out
    assert told["status"] == "interrupted"
    assert told["exception"] == ("KeyboardInterrupt" if name == "SIGINT" else "SIGTERMException")
    assert ("after fit, interrupted: True" in out) == (name == "SIGINT")
    assert Life(tmp_path).end()[1].splitlines()[-1] == whole


def test_a_second_ctrl_c_leaves_at_once_and_keeps_the_checkpoint(tmp_path: Path, whole: str) -> None:
    process = Life(tmp_path, "--hang-at", "5")
    process.wait_for("batch 5")
    files = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.ckpt")}
    process.send("SIGINT")
    process.wait_for("SIGINT received")
    began = time.monotonic()
    process.send("SIGINT")
    returned, out = process.end()

    assert time.monotonic() - began < 30  # the batch takes ten minutes
    assert returned == 0, out
    assert "Interrupted. Resume with `ckpt_path=" in out
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.ckpt")} == files
    assert Life(tmp_path).end()[1].splitlines()[-1] == whole


def test_a_second_sigterm_does_not_cut_the_saving_short(tmp_path: Path, whole: str) -> None:
    process = Life(tmp_path, "--slow-save")
    process.wait_for("batch 4")
    process.send("SIGTERM")
    process.wait_for("saving")
    process.send("SIGTERM")
    assert process.end()[0] == 143
    assert Life(tmp_path).end()[1].splitlines()[-1] == whole


def test_slurm_is_asked_to_start_the_job_again_until_it_is_done(tmp_path: Path, whole: str) -> None:
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    slurm = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train"}
    for restart in range(3):
        process = Life(tmp_path / "run", "--slurm", **slurm, SLURM_RESTART_COUNT=str(restart))
        process.wait_for(f"batch {3 * restart + 2}")
        process.send("SIGUSR1")
        assert process.end()[0] == 138
    code, out = Life(tmp_path / "run", "--slurm", **slurm, SLURM_RESTART_COUNT="3").end()
    assert code == 0
    assert out.splitlines()[-1] == whole
    assert (tmp_path / "asked").read_text() == "requeue 77\n" * 3
    assert sorted(path.name for path in (tmp_path / "run").glob("hpc*")) == [f"hpc_ckpt_{n}.ckpt" for n in (1, 2, 3)]


def test_a_job_somebody_sits_at_is_not_put_back_into_the_queue(tmp_path: Path) -> None:
    process = Life(tmp_path, SLURM_JOB_ID="77", SLURM_JOB_NAME="bash")
    process.wait_for("batch 4")
    process.send("SIGUSR1")
    returned, out = process.end()
    assert returned == 138
    assert "queue" not in out
    assert not list(tmp_path.glob("hpc*"))


@pytest.mark.parametrize("where", ["step", "hook", "loader", "validation"])
def test_a_crash_anywhere_is_made_good_by_the_next_start(tmp_path: Path, whole: str, where: str) -> None:
    code, out = Life(tmp_path, "--crash-in", where).end()
    told = json.loads((tmp_path / "told.json").read_text())
    assert code == 1
    assert "out of luck" in out
    assert (told["status"], told["exception"]) == ("failed", "RuntimeError")
    assert Life(tmp_path).end()[1].splitlines()[-1] == whole
