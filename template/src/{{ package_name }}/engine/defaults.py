"""Callbacks and loggers that a Trainer adds by itself.

Owns: which, when, and in what order they are called. Does not own: what they do.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from . import callbacks as library
from . import loggers
from .callbacks.progress import select_progress_bar
from .distributed import slurm_job
from .errors import MisconfigurationException
from .hooks import Callback


def default_loggers(logger: Any, root: str, dummy: bool) -> list[Any]:
    """Return the loggers that `Trainer(logger=...)` means.

    Args:
        logger: True or None for the default, False for none, a logger, or several.
        root: Directory of the default one: TensorBoard where it is installed, else CSV files.
        dummy: Replace them by one that does nothing (`fast_dev_run`).
    """
    if logger is False or (logger is None and dummy):
        return []
    if dummy:
        return [loggers.DummyLogger()]
    if logger in (None, True):
        kind = loggers.TensorBoardLogger if find_spec("tensorboard") else loggers.CSVLogger
        return [kind(root, version=slurm_job())]  # a job that is requeued goes on in its directory
    return list(logger) if isinstance(logger, (list, tuple)) else [logger]


def default_callbacks(
    given: Any,
    *,
    checkpointing: bool | None,
    dry_run: bool,
    bar: bool | None,
    summary: bool | None,
    max_time: Any,
    old: dict[str, Any],
) -> list[Callback]:
    """Return the callbacks given and those added, in calling order.

    Args:
        given: One callback, a list, or None.
        dry_run: Add no checkpoint callback (`fast_dev_run`).
        checkpointing: None: add one when there is none; True: the same; False: refuse one.
        bar: Likewise for the progress bar.
        summary: Likewise for the model summary.
        max_time: A limit, for which a `Timer` is added.
        old: Arguments of 1.x that become callbacks.

    Raises:
        MisconfigurationException: One is given and turned off at the same time.
    """
    callbacks: list[Callback] = list(given) if isinstance(given, (list, tuple)) else [] if given is None else [given]
    wanted = {
        "bar": (bar, "enable_progress_bar"),
        "summary": (summary, "enable_model_summary"),
        "checkpoint": (checkpointing, "enable_checkpointing"),
    }
    for role, (enabled, argument) in wanted.items():
        found = [callback for callback in callbacks if callback.role == role]
        if role == "bar" and len(found) > 1:
            names = " and ".join(type(callback).__name__ for callback in found)
            raise MisconfigurationException(f"There are several progress bars, {names}. Keep one of them.")
        if found and enabled is False:
            raise MisconfigurationException(
                f"`Trainer({argument}=False)` was given together with the callback `{type(found[0]).__name__}`. Leave "
                "one of them out."
            )
        if not found and enabled is not False and not (dry_run and role == "checkpoint"):
            added = _make(role, old, short=enabled is None)
            if added is not None:
                callbacks.append(added)
    if max_time is not None:
        callbacks.append(library.Timer(duration=max_time))
    if "accumulate_schedule" in old:
        callbacks.append(library.GradientAccumulationScheduler(old.pop("accumulate_schedule")))
    if old.pop("stochastic_weight_avg", False):
        callbacks.append(library.StochasticWeightAveraging(swa_lrs=1e-2))
    return ordered(callbacks)


def _make(role: str, old: dict[str, Any], short: bool) -> Callback | None:
    if role == "bar":
        rate = old.pop("progress_bar_refresh_rate", None)
        if rate is not None:
            return library.TQDMProgressBar(refresh_rate=rate) if rate else None
        return select_progress_bar()
    made: Callback = library.ModelSummary(short=short) if role == "summary" else library.ModelCheckpoint()
    return made


def ordered(callbacks: list[Callback]) -> list[Callback]:
    """Return callbacks in calling order: tuners first, checkpoints last, the others as they are."""
    places = {"tuner": -1, "checkpoint": 1}
    return sorted(callbacks, key=lambda callback: places.get(callback.role, 0))
