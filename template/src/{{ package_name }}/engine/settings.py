"""Checks of the Trainer's arguments, before anything is started.

Owns: what values are accepted and which clash. Does not own: devices (`accelerators`) and their strategies.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from .distributed import rank_zero_warn
from .durations import Duration, counted
from .errors import MisconfigurationException

DEFAULT_EPOCHS = 1000
NO_LIMIT = -1
STAGES = ("train", "val", "test", "predict")


def lengths(max_epochs: Any, min_epochs: Any, max_steps: Any, min_steps: Any, max_time: Any) -> dict[str, Any]:
    """Return how long to train, as attributes of the Trainer."""
    steps = whole("max_steps", max_steps, NO_LIMIT, "from 0, -1 for no limit, or text such as '500ba'", "batches")
    if min_epochs is not None:
        min_epochs = whole("min_epochs", min_epochs, NO_LIMIT, "from 0, or text such as '10ep'", "epochs")
    if min_steps is not None:
        min_steps = whole("min_steps", min_steps, NO_LIMIT, "from 0, or text such as '500ba'", "batches")
    return {
        "max_steps": steps,
        "max_epochs": epoch_limit(max_epochs, steps, max_time),
        "min_epochs": 1 if min_epochs is None and min_steps is not None else min_epochs,
        "min_steps": min_steps,
    }


def batches(
    limits: tuple[Any, ...], *, overfit: Any, sanity_steps: Any, log_every: Any, interval: Any, every_n_epoch: Any
) -> dict[str, Any]:
    """Return how much data to use and when to validate and log, as attributes of the Trainer.

    Args:
        limits: `limit_train_batches` and its three brothers.
        overfit: `overfit_batches`, which replaces the first two.
        sanity_steps: `num_sanity_val_steps`.
        log_every: `log_every_n_steps`.
        interval: `val_check_interval`.
        every_n_epoch: `check_val_every_n_epoch`.
    """
    names = [f"limit_{stage}_batches" for stage in STAGES]
    found = {name: check_limit(name, value) for name, value in zip(names, limits, strict=True)}
    overfit = check_limit("overfit_batches", overfit)
    if overfit:
        found["limit_train_batches"] = found["limit_val_batches"] = overfit
    sanity_steps = counted(sanity_steps, "Trainer(num_sanity_val_steps", "batches")
    log_every = 50 if log_every is None else log_every
    every_n_epoch = counted(every_n_epoch, "Trainer(check_val_every_n_epoch", "epochs")
    share, seconds = validation_interval(interval, every_n_epoch)
    steps = 2 if sanity_steps is None else sanity_steps
    return {
        **found,
        "overfit_batches": overfit,
        "val_check_interval": share,
        "val_check_seconds": seconds,
        "check_val_every_n_epoch": every_n_epoch,
        "log_every_n_steps": whole("log_every_n_steps", log_every, 0, "from 0, or text such as '50ba',", "batches"),
        "num_sanity_val_steps": float("inf") if steps == NO_LIMIT else steps,
    }


def refused(name: str, value: Any, accepted: str) -> MisconfigurationException:
    """Return the error for an argument of the Trainer; `accepted` ends the sentence."""
    return MisconfigurationException(f"`Trainer({name}={value!r})`: {accepted}")


def whole(name: str, given: Any, least: int, accepted: str, unit: str = "") -> int:
    """Return a whole number, or text that counts `unit` if there is one; another value is refused."""
    value = counted(given, f"Trainer({name}", unit) if unit else given
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise refused(name, given, f"a whole number {accepted} is accepted.")
    return value


def reload_every(given: Any) -> int:
    """Return `reload_dataloaders_every_n_epochs`: a number of epochs, 0 for never."""
    given = int(given) if isinstance(given, bool) else given  # as Lightning takes it: True is every epoch
    return whole("reload_dataloaders_every_n_epochs", given, 0, "of epochs, or 0 for never,", "epochs")


def plugins(given: Any) -> list[Any]:
    """Return `Trainer(plugins=...)` as a list."""
    found = list(given) if isinstance(given, (list, tuple)) else [] if given is None else [given]
    for plugin in found:
        if not hasattr(plugin, "save_checkpoint") and not hasattr(plugin, "forward_context"):
            accepted = "a precision (`plugins.Precision`) and a checkpoint IO (`plugins.CheckpointIO`) are accepted."
            raise refused("plugins", plugin, accepted)
    return found


def optimisation(accumulate: Any, clip_val: Any, clip_algorithm: Any) -> dict[str, Any]:
    """Return how gradients are used, as attributes of the Trainer."""
    hint = "from 1 (by epoch: the callback `GradientAccumulationScheduler`)"
    if clip_val is not None and not isinstance(clip_val, (int, float)):
        raise TypeError(f"`Trainer(gradient_clip_val={clip_val!r})`: a number is accepted.")
    if clip_algorithm is not None and str(clip_algorithm).lower() not in ("norm", "value"):
        raise refused("gradient_clip_algorithm", clip_algorithm, "accepted are 'norm' and 'value'.")
    return {
        "accumulate_grad_batches": whole("accumulate_grad_batches", accumulate, 1, hint, "batches"),
        "gradient_clip_val": clip_val,
        "gradient_clip_algorithm": clip_algorithm,
    }


def fast_dev_run(given: bool | int, overfit: int | float) -> dict[str, Any]:
    """Return what `fast_dev_run` changes, as attributes of the Trainer: a few batches of everything, once.

    `overfit_batches` keeps its own number of training and validation batches.
    """
    given = counted(given, "Trainer(fast_dev_run", "batches")
    if given < 1:
        raise refused("fast_dev_run", given, "True, False, or a number of batches from 1, is accepted.")
    return {
        "max_epochs": 1,
        "fast_dev_run": given,
        "max_steps": int(given),
        "num_sanity_val_steps": 0,
        "val_check_interval": 1.0,
        "val_check_seconds": None,
        "check_val_every_n_epoch": 1,
        **{f"limit_{stage}_batches": int(given) for stage in STAGES if not overfit or stage in ("test", "predict")},
    }


def epoch_limit(max_epochs: int | str | None, max_steps: int, max_time: Any) -> int:
    """Return `max_epochs` with its default: 1000 when nothing limits the run, none when steps do."""
    if max_epochs is not None:
        return whole("max_epochs", max_epochs, NO_LIMIT, "from 0, -1 for no limit, or text such as '10ep'", "epochs")
    if max_steps == NO_LIMIT and max_time is None:
        rank_zero_warn(
            f"`max_epochs` was not set, so this fit runs up to {DEFAULT_EPOCHS} epochs. Set `Trainer(max_epochs=...)`; "
            "-1 means no limit."
        )
        return DEFAULT_EPOCHS
    return NO_LIMIT


def check_limit(name: str, value: Any) -> int | float:
    """Check a `limit_*_batches` argument: a whole number, or a share from 0.0 to 1.0."""
    if value is None:
        return 1.0
    value = counted(value, f"Trainer({name}", "batches")
    largest = 1.0 if isinstance(value, float) else float("inf")
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= largest:
        raise refused(name, value, "a whole number of batches from 0, or a share from 0.0 to 1.0, is accepted.")
    return value


def validation_interval(value: Any, every_n_epoch: int | None) -> tuple[int | float, float | None]:
    """Return `val_check_interval` as (batches or share, seconds)."""
    if every_n_epoch is not None and (not isinstance(every_n_epoch, int) or every_n_epoch < 1):
        raise refused("check_val_every_n_epoch", every_n_epoch, "a whole number from 1, or None, is accepted.")
    if value is None:
        return 1.0, None
    given, seconds = value, None
    if not isinstance(value, (int, float)):
        duration = Duration.parse(value)
        value, seconds = duration.batches if duration.seconds is None else 1.0, duration.seconds
    if value is None or (not 0.0 <= value <= 1.0 if isinstance(value, float) else value < 1):
        accepted = "a share from 0.0 to 1.0, a number of batches from 1, or a time is accepted; for epochs use"
        raise refused("val_check_interval", given, f"{accepted} `check_val_every_n_epoch`.")
    if every_n_epoch is None and isinstance(value, float) and seconds is None:
        raise MisconfigurationException(
            f"`Trainer(check_val_every_n_epoch=None, val_check_interval={value})`: without epochs the interval counts "
            "batches. Use a whole number, or a time."
        )
    return value, seconds


_OFF_IN_BAREBONES = (
    *("enable_checkpointing", "logger", "enable_progress_bar", "log_every_n_steps", "enable_model_summary"),
    *("num_sanity_val_steps", "fast_dev_run", "detect_anomaly", "profiler"),
)


def check_barebones(arguments: dict[str, Any]) -> None:
    """Refuse settings, among the Trainer's arguments by name, that `barebones=True` turns off."""
    given = {name: arguments[name] for name in _OFF_IN_BAREBONES}
    clashes = {name: value for name, value in given.items() if value not in (None, False, 0, [], 0.0)}
    if clashes:
        listed = ", ".join(f"{name}={value!r}" for name, value in clashes.items())
        raise ValueError(
            f"`Trainer(barebones=True, {listed})`: barebones turns these off. Leave them out, or leave barebones out."
        )


def set_matmul_precision(precision: str | None) -> None:
    """Set how exactly torch multiplies float32 matrices, where asked for."""
    if precision not in (None, "highest", "high", "medium"):
        raise refused("matmul_precision", precision, "accepted are 'highest', 'high' (TF32) and 'medium'.")
    if precision is not None:
        torch.set_float32_matmul_precision(precision)


def set_determinism(deterministic: bool | str | None, benchmark: bool | None) -> None:
    """Set torch's deterministic algorithms and cuDNN's benchmark mode, where asked for."""
    if deterministic not in (None, True, False, "warn"):
        raise refused("deterministic", deterministic, "accepted are True, False and 'warn'.")
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=deterministic == "warn")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        benchmark = False if benchmark is None else benchmark
    if benchmark is not None:
        torch.backends.cudnn.benchmark = benchmark
