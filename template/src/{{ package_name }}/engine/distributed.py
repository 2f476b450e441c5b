"""Which process this is, and who speaks for the others.

Owns: ranks as the launcher's environment gives them, and the rank-zero decorators.
Does not own: process groups (strategies) and launching (`strategies.launch`).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch.distributed

from .errors import EngineWarning

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__.removesuffix(".distributed"))

# torchrun's names come first: under torchrun inside Slurm, SLURM_NTASKS is 1 while WORLD_SIZE is right.
_RANK_NAMES = ("RANK", "SLURM_PROCID", "LOCAL_RANK")


def environment_rank() -> int:
    """Return the global rank that the launcher's environment variables give, 0 when there is no launcher."""
    for name in _RANK_NAMES:
        if os.environ.get(name, "").isdigit() and (name != "SLURM_PROCID" or in_srun()):
            return int(os.environ[name])
    return 0


def in_srun() -> bool:
    """Tell a task of `srun` from an interactive Slurm shell, where SLURM_PROCID is set as well."""
    return os.environ.get("SLURM_JOB_NAME") not in {"bash", "interactive"} and "SLURM_NTASKS" in os.environ


def slurm_job() -> int | None:
    """Return the id of the Slurm job that this process is a task of; None in an interactive shell and elsewhere."""
    job = os.environ.get("SLURM_JOB_ID", "")
    return int(job) if job.isdigit() and in_srun() else None


def is_distributed() -> bool:
    """Return whether a process group of more than one process is alive."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def rank_zero_only(fn: Callable[P, R]) -> Callable[P, R | None]:
    """Call `fn` on global rank 0 only; return None elsewhere. `rank_zero_only.rank` holds the rank."""

    @wraps(fn)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R | None:
        return fn(*args, **kwargs) if getattr(rank_zero_only, "rank", 0) == 0 else None

    return wrapped


rank_zero_only.rank = environment_rank()  # type: ignore[attr-defined]


@rank_zero_only
def rank_zero_info(message: object, *args: Any) -> None:
    """Log an information line on rank 0."""
    log.info(message, *args)


@rank_zero_only
def rank_zero_debug(message: object, *args: Any) -> None:
    """Log a debug line on rank 0."""
    log.debug(message, *args)


@rank_zero_only
def rank_zero_warn(message: str, category: type[Warning] = EngineWarning, stacklevel: int = 4) -> None:
    """Warn on rank 0; the default filter of Python shows the same text once."""
    warnings.warn(message, category, stacklevel=stacklevel)


def rank_zero_deprecation(message: str, stacklevel: int = 5) -> None:
    """Warn on rank 0 that a name of an older version was used, and name today's."""
    rank_zero_warn(message, category=FutureWarning, stacklevel=stacklevel)
