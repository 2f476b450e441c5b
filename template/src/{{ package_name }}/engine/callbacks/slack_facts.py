"""Where the facts of a message come from: the trainer's public names, the machine and git.

Owns: reading. Does not own: remembering (`slack`) or wording (`slack_messages`). Runs on rank 0 only; no collective.
"""

from __future__ import annotations

import math
import os
import re
import socket
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data import length
from .slack_messages import Status

if TYPE_CHECKING:
    from ..trainer import Trainer

_MORE_IS_BETTER = re.compile("acc|auc|auroc|f1|precision|recall|iou|dice|bleu|rouge|score|r2|corr|reward")


def describe(trainer: Trainer, project: str, log_dir: str) -> Status:
    """Return what is known before anything is loaded: project, run, place, commit and devices."""
    parts = Path(log_dir).absolute().parts
    run = "/".join(parts[-2:] if re.fullmatch(r"version_\d+", parts[-1]) else parts[-1:])
    stage = trainer.state.fn
    user = os.environ.get("USER") or os.environ.get("USERNAME")  # neither is set in many containers
    place = f"{user}@{socket.gethostname()}" if user else socket.gethostname()
    return Status(project, run, place, _commit(), _devices(trainer), stage=stage.value if stage else "fit")


def plan(trainer: Trainer, known: Status) -> Status:
    """Return `known` with the sizes of the data and the length of the fit."""
    train = ("train", _rows(trainer.train_dataloader), _count(trainer.num_training_batches))
    val = ("val", _rows(trainer.val_dataloaders), _count(sum(trainer.num_val_batches)))
    data = tuple(one for one in (train, val) if one[2] != 0)
    epochs, steps = trainer.max_epochs, trainer.estimated_stepping_batches
    return replace(known, data=data, max_epochs=None if epochs in (None, -1) else epochs, max_steps=_count(steps))


def read_metrics(trainer: Trainer, names: Iterable[str]) -> dict[str, float]:
    """Return those of `callback_metrics` that exist, as floats: one sync of the device."""
    values = trainer.callback_metrics
    found = {name: values[name].detach().flatten() for name in names if name in values and values[name].numel() == 1}
    device = next((value.device for value in found.values()), None)
    numbers = torch.cat([value.to(device, torch.float32) for value in found.values()]).tolist() if found else []  # sync
    return dict(zip(found, numbers, strict=True))


def watched(trainer: Trainer) -> tuple[str, str | None]:
    """Return metric and mode that the run itself goes by: of its checkpoints, else of its early stopping."""
    for callback in (trainer.checkpoint_callback, trainer.early_stopping_callback):
        if getattr(callback, "monitor", None):
            return callback.monitor, callback.mode
    return "", None


def guess_mode(name: str) -> str:
    """Return "max" for names of scores such as `val_acc`, "min" for all others."""
    return "max" if _MORE_IS_BETTER.search(name.lower()) and "loss" not in name.lower() else "min"


def learning_rate(trainer: Trainer) -> float | None:
    """Return the rate of the first parameter group."""
    return float(trainer.optimizers[0].param_groups[0]["lr"]) if trainer.optimizers else None  # sync if a tensor


def checkpoint(trainer: Trainer) -> str:
    """Return the path of the best checkpoint, else of the last, from the working directory; empty without one."""
    callback = trainer.checkpoint_callback
    path = getattr(callback, "best_model_path", "") or getattr(callback, "last_model_path", "")
    return os.path.relpath(path) if path and Path(path).is_relative_to(Path.cwd()) else str(path)


def run_link(trainer: Trainer) -> str:
    """Return the page of the MLflow run when it is on a server, without credentials; asks nobody."""
    for logger in trainer.loggers:
        uri = str(getattr(logger, "tracking_uri", ""))
        run_id = logger.state_dict().get("run_id") if hasattr(logger, "state_dict") else ""
        if uri.startswith("http") and run_id:
            return f"{re.sub('//[^/@]*@', '//', uri).rstrip('/')}/#/runs/{run_id}"
    return ""


def trace(lines: Iterable[str]) -> str:
    """Return a formatted traceback for a phone: without lines of ^^^^, files from the working directory."""
    text = re.sub(r"^[ ^~]+\n", "", "".join(lines), flags=re.MULTILINE)
    return text.replace(f'File "{Path.cwd()}{os.sep}', 'File "')


def _commit() -> str:
    command = ("git", "describe", "--always", "--dirty", "--exclude=*")
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=2, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _devices(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return f"{trainer.world_size} × {name}, {trainer.precision}"


def _rows(loaders: Any) -> int | None:
    """Return the rows of one or several loaders' datasets, None when one of them has no length."""
    several = loaders if isinstance(loaders, list | tuple) else [loaders]
    return _count(sum(length(getattr(one, "dataset", None)) for one in several))


def _count(number: float) -> int | None:
    return int(number) if math.isfinite(number) else None
