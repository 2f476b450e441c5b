"""accelerator="xla" on torch_xla's CPU device, once as one device and once as two: the numbers of the CPU.

Needs torch 2.9 and torch_xla 2.9 (`nox -s xla`). Two devices are a mode of the whole process, so each has its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.xla.train import train

TRAIN = Path(__file__).with_name("train.py")
JOBS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05},
    "bf16": {"precision": "bf16-mixed"},
}


def run(folder: Path, devices: int, jobs: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TRAIN), str(folder), "xla", str(devices), repr(jobs)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)


@pytest.mark.parametrize("devices", [1, 2])
def test_training_is_that_of_the_cpu(devices: int, tmp_path: Path) -> None:
    ended = run(tmp_path, devices, JOBS)
    assert ended.returncode == 0, ended.stderr[-3000:]
    for name, options in JOBS.items():
        expected, found = train(tmp_path / "cpu", "cpu", 1, dict(options)), torch.load(tmp_path / name / "left.pt")
        tolerance = 2e-2 if name == "bf16" else 1e-4
        torch.testing.assert_close(found["weights"], expected["weights"], rtol=tolerance, atol=tolerance)
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=5 * tolerance, abs=tolerance)
        assert found["predictions"] == pytest.approx(expected["predictions"], rel=5 * tolerance, abs=5 * tolerance)
        assert found["devices"] == devices  # that a batch lay on


def test_a_checkpoint_goes_on_exactly_and_is_read_by_any_device(tmp_path: Path) -> None:
    last = str(tmp_path / "first" / "last.ckpt")
    jobs = {
        "whole": {"max_epochs": 3, "dropout": 0.5},
        "first": {"max_epochs": 2, "dropout": 0.5},
        "resumed": {"max_epochs": 3, "dropout": 0.5, "ckpt_path": last},
    }
    ended = run(tmp_path, 1, jobs)
    assert ended.returncode == 0, ended.stderr[-3000:]
    whole, resumed = (torch.load(tmp_path / name / "left.pt") for name in ("whole", "resumed"))
    assert torch.equal(resumed["weights"], whole["weights"])
    assert all(tensor.device.type == "cpu" for tensor in torch.load(last)["state_dict"].values())
    train(tmp_path / "cpu", "cpu", 1, {"max_epochs": 3, "ckpt_path": last})


@pytest.mark.parametrize(
    ("options", "words"), [({"strategy": "ddp"}, "strategy='ddp'"), ({"num_nodes": 2}, "num_nodes=2")]
)
def test_what_does_not_work_is_one_sentence(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    ended = run(tmp_path, 2, {"refused": options})
    assert ended.returncode == 1
    assert words in ended.stderr.splitlines()[-1]
