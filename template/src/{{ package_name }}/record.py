"""What must be known to repeat a run: code, packages, machine, command line.

Owns: gathering it. Does not own: where it is written (`run`).
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

if TYPE_CHECKING:
    from .config import Config
    from .run import Run


def environment(root: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Return what the outcome of a run depends on besides configuration and data, as plain values.

    Args:
        root: The project's folder, asked for its git commit.
        arguments: The command line as typed; empty: that of this process.
    """
    return {
        "command_line": [*arguments] or sys.argv,
        "folder": str(Path.cwd()),
        "git_commit": git(root, "rev-parse", "HEAD").strip() or None,
        "git_branch": git(root, "rev-parse", "--abbrev-ref", "HEAD").strip() or None,
        "git_changed_files": git(root, "status", "--porcelain").splitlines(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": torch.cuda.device_count(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "packages": packages(),
    }


def run_tags(config: Config, run: Run) -> dict[str, str]:
    """Return what a tracker shows of a run at a glance: its folder, commit, machine, devices, parent, template."""
    answers = config.root / ".copier-answers.yml"
    template = yaml.safe_load(answers.read_text(encoding="utf-8")) if answers.is_file() else {}
    tags = {
        "run_folder": run.name,
        "mlflow.source.git.commit": run.commit,
        "mlflow.parentRunId": os.environ.get("MLFLOW_PARENT_RUN_ID"),  # set by what starts many: a sweep
        "host": platform.node(),
        "accelerator": config.trainer.accelerator,
        "devices": config.trainer.devices,
        "presets": ", ".join(config.presets),
        "template_version": template.get("_commit"),
    }
    return {name: str(value) for name, value in tags.items() if value not in (None, "")}


def packages() -> dict[str, str]:
    """Return the installed distributions and their versions, by name."""
    return dict(sorted((item.metadata["Name"], item.version) for item in metadata.distributions()))


def git(root: Path, *arguments: str) -> str:
    """Return what git prints for the project; empty without git, outside a repository, or before the first commit."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, errors="replace", timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""
