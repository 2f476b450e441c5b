"""The examples run, learn something, and are as short as the requirement says."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import seed_everything

HERE = Path(__file__).parent
PACKAGE = HERE.parent.parent / "template" / "src" / "{{ package_name }}"
QUIET: dict[str, Any] = {
    "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


def run(name: str, **options: Any) -> Any:
    seed_everything(0)
    return runpy.run_path(str(HERE / f"{name}.py"))["main"](**QUIET, **options)


def lines_a_user_writes(name: str) -> int:
    """Count the lines of code from the first class to `__main__`: no imports, blank lines or docstrings."""
    source = (HERE / f"{name}.py").read_text().split("if __name__")[0]
    body = source.split('"""', 2)[2].splitlines()
    return sum(bool(line.strip()) and not line.startswith(("import ", "from ", "#")) for line in body)


@pytest.mark.parametrize("name", ["semi_supervised", "gan"])
def test_a_user_writes_less_than_sixty_lines(name: str) -> None:
    assert lines_a_user_writes(name) < 60


def test_r24_a_mean_teacher_learns_from_two_loaders_with_two_optimizers() -> None:
    trainer = run("semi_supervised")
    assert trainer.callback_metrics["accuracy"] > 0.85
    assert trainer.global_step == trainer.total_batches == 15 * 16  # one step a batch; the longer loader decides
    sgd, adam = trainer.optimizers
    assert (type(sgd), type(adam)) == (torch.optim.SGD, torch.optim.Adam)
    assert sgd.param_groups[0]["lr"] != adam.param_groups[0]["lr"]


def test_r24_clipping_and_accumulation_act_on_it() -> None:
    trainer = run("semi_supervised", gradient_clip_val=0.5, accumulate_grad_batches=4, max_epochs=30)
    assert trainer.global_step == 30 * 4
    assert trainer.callback_metrics["accuracy"] > 0.8


def test_r23_a_gan_learns_where_its_data_lie() -> None:
    model = run("gan").lightning_module
    with torch.no_grad():
        made = model(torch.randn(512, model.latent, generator=torch.Generator().manual_seed(1)))
    assert torch.allclose(made.mean(0), torch.tensor([2.0, -1.0]), atol=0.5)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["semi_supervised", "gan"])
def test_the_preflight_has_nothing_to_say_about_it(name: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(name, max_epochs=2)
    assert not [str(warning.message) for warning in caught if "preflight" in str(warning.message)]


@pytest.mark.parametrize("name", ["semi_supervised", "gan"])
def test_it_runs_as_a_script(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "PL_TRAINER_FAST_DEV_RUN": "1"}
    command = [sys.executable, str(HERE / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
