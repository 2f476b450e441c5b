"""What a first fit prints, writes and asks of the network: a few useful lines, its own directory, nothing."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.parity.framework import ENGINE_ROOT

FIRST_FIT = """
import torch, engine
class Net(engine.LightningModule):
    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Linear(2, 8), torch.nn.Linear(8, 1)
    def training_step(self, batch, batch_idx):
        loss = self.head(self.body(batch)).mean()
        self.log("loss", loss, prog_bar=True)
        return loss
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.head(self.body(batch)).mean(), prog_bar=True)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
rows = torch.utils.data.DataLoader(torch.ones(32, 2), batch_size=4)
engine.Trainer(max_epochs=3, accelerator="cpu", devices=1{options}).fit(Net(), rows, rows)
"""
NO_NETWORK = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        print("NETWORK", event, arguments, file=sys.stderr, flush=True)
        raise RuntimeError("the network is blocked")
sys.addaudithook(refuse)
"""


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "MLFLOW", "SLURM"))}
    return {**kept, "PYTHONPATH": str(ENGINE_ROOT), "OMP_NUM_THREADS": "1", **more}


def run(program: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    options = {"capture_output": True, "text": True, "cwd": folder, "timeout": 300, "check": True}
    return subprocess.run(command, env=environment(**more), **options)  # type: ignore[call-overload, no-any-return]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A first fit without any option, its output and its folder; the network is blocked."""
    folder = tmp_path_factory.mktemp("first")
    home = tmp_path_factory.mktemp("home")
    done = run(NO_NETWORK + FIRST_FIT.format(options=""), folder, HOME=str(home), TMPDIR=str(home))
    assert files(home) == set(), "nothing is written outside of the run's directory"
    return done, folder


def test_at_most_six_lines_besides_the_bar(first: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    lines = (first[0].stdout + first[0].stderr).splitlines()
    besides = [line for line in lines if not line.startswith("Epoch ")]
    assert len(besides) <= 6, besides
    assert any("parameters" in line for line in besides), "the model in one line"
    assert len(lines) <= 15


def test_no_network_is_asked_for(first: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    assert "NETWORK" not in first[0].stderr


def test_all_files_lie_in_the_runs_directory(first: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    found = files(first[1])
    assert found
    assert {name.split("/")[:2] == ["lightning_logs", "version_0"] for name in found} == {True}


@pytest.mark.parametrize("options", [", fast_dev_run=True", ", accumulate_grad_batches=-2"])
def test_trials_and_refused_trainers_leave_nothing(tmp_path: Path, options: str) -> None:
    command = [sys.executable, "-c", FIRST_FIT.format(options=options)]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, timeout=300, check=False)
    assert (done.returncode == 0) == ("fast_dev_run" in options)
    assert not list(tmp_path.iterdir())


def test_local_loggers_ask_for_no_network_either(tmp_path: Path) -> None:
    made = ("CSVLogger('a')", "TensorBoardLogger('a')", "MLFlowLogger('x', save_dir='a')")
    loggers = ", ".join(f"engine.loggers.{logger}" for logger in made)
    done = run(NO_NETWORK + FIRST_FIT.format(options=f", logger=[{loggers}]"), tmp_path)
    assert "NETWORK" not in done.stderr
    assert {name.split("/")[0] for name in files(tmp_path)} == {"a"}


def test_a_requeued_slurm_job_goes_on_in_its_directory(tmp_path: Path) -> None:
    job = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"}
    for _ in range(2):
        run(FIRST_FIT.format(options=", num_sanity_val_steps=0, max_steps=1"), tmp_path, **job)
    assert {path.name for path in (tmp_path / "lightning_logs").iterdir()} == {"version_4711"}


def on_a_terminal(program: str, folder: Path, columns: int = 80) -> str:
    """Return what a program writes to a terminal of this width."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", program]
    settings = environment(TERM="xterm-256color", COLUMNS=str(columns), LINES="30")
    process = subprocess.Popen(command, cwd=folder, env=settings, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown, end = b"", time.monotonic() + 240
    while time.monotonic() < end:
        ready, _, _ = select.select([ours], [], [], 1.0)
        try:
            part = os.read(ours, 65536) if ready else b""
        except OSError:  # the other side is closed
            break
        if not part and process.poll() is not None:
            break
        shown += part
    os.close(ours)
    assert process.wait(timeout=60) == 0, shown.decode()
    return shown.decode()


def screen(shown: str) -> list[str]:
    """Return the lines that are left on the terminal, after what moved the cursor up, back, or erased lines."""
    lines, row, column = [""], 0, 0
    for code, text in re.findall(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)|([^\x1b\r\n]+)", shown):
        if text:
            line = lines[row].ljust(column)
            lines[row], column = line[:column] + text + line[column + len(text) :], column + len(text)
        elif code == "\r":
            column = 0
        elif code == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif code.endswith("A"):
            row = max(0, row - int(code[2:-1] or 1))
        elif code.endswith("K"):
            lines[row] = "" if code == "\x1b[2K" else lines[row][:column]
    return [line.rstrip() for line in lines if line.strip()]


def test_on_a_terminal_the_bar_is_one_line_and_the_rest_at_most_six(tmp_path: Path) -> None:
    lines = screen(on_a_terminal(FIRST_FIT.format(options=""), tmp_path))
    bars = [line for line in lines if line.startswith("Epoch ")]
    assert len(bars) <= 1, lines
    assert len(lines) - len(bars) <= 6, lines
    assert max(map(len, lines)) <= 80, "no line is wider than the terminal"
