"""How all processes of a run are started, and come to use the same folder before the engine makes a process group.

Owns: becoming torchrun where several devices are asked for; telling, by environment variable to processes that rank 0
starts, by torchrun's own store to those it starts. Does not own: what is told (`run`).
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from .config import Config
from .engine.distributed import rank_zero_only
from .engine.errors import EngineError
from .engine.strategies import select_strategy
from .engine.strategies.launch import run_again

_VARIABLE = "RUN_FOLDER_OF_RANK_ZERO"
_PATIENCE = timedelta(minutes=5)


def start(config: Config) -> None:
    """Become torchrun, which runs this command once for each device, where several are asked for and nothing has yet.

    Strategies that start processes by themselves (`ddp_spawn`, `ddp_fork`) do; several machines need a launcher.
    """
    given = config.trainer.arguments()
    names = ("strategy", "accelerator", "devices", "num_nodes")
    try:
        strategy: Any = select_strategy(**{name: given[name] for name in names if name in given})
    except EngineError:
        return  # said in its own sentence when the trainer is made
    if strategy.is_distributed and strategy.place is None and strategy.start_method is None and strategy.num_nodes == 1:
        strategy.before_launch()
        run_again(len(strategy.devices))


def is_rank_zero() -> bool:
    """Return whether this process writes files and speaks for the others."""
    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]
    return rank == 0


def tell(text: str) -> None:
    """Tell every other process; rank 0 only."""
    os.environ[_VARIABLE] = text
    if store := _torchrun_store():
        store.set(_key(), text)


def told() -> str | None:
    """Return what rank 0 told, waiting for it under torchrun; None under a launcher that offers no way to ask."""
    if text := os.environ.get(_VARIABLE):
        return text
    store = _torchrun_store()
    return store.get(_key()).decode() if store else None


def _torchrun_store() -> TCPStore | None:
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, timeout=_PATIENCE)


def _key() -> str:
    """The store outlives a restart of the processes: each start has a key of its own."""
    return f"{_VARIABLE}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
