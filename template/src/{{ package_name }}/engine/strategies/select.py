"""From `Trainer(strategy=, accelerator=, devices=, num_nodes=)` to a strategy.

Owns: the names of strategies. Does not own: what they do.
"""

from __future__ import annotations

import importlib
from typing import Any

from ..accelerators import Accelerator, select_accelerator, select_devices
from ..errors import MisconfigurationException, did_you_mean
from .base import Strategy
from .launch import launched_place
from .single import SingleDeviceStrategy

STRATEGIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ddp": (".ddp", "DDPStrategy", {}),
    "ddp_find_unused_parameters_true": (".ddp", "DDPStrategy", {"find_unused_parameters": True}),
    "ddp_find_unused_parameters_false": (".ddp", "DDPStrategy", {"find_unused_parameters": False}),
    "ddp_spawn": (".ddp", "DDPStrategy", {"start_method": "spawn"}),
    "ddp_fork": (".ddp", "DDPStrategy", {"start_method": "fork"}),
    "ddp_notebook": (".ddp", "DDPStrategy", {"start_method": "fork"}),
    "fsdp": (".fsdp", "FSDPStrategy", {}),
    "fsdp_cpu_offload": (".fsdp", "FSDPStrategy", {"cpu_offload": True}),
    "xla": (".xla", "XLAStrategy", {}),
}
"""Name -> module, class and settings; a project adds its own here."""


def select_strategy(
    strategy: Any = "auto",
    *,
    accelerator: Any = "auto",
    devices: Any = "auto",
    num_nodes: int = 1,
    checkpoint_io: Any = None,
) -> Strategy:
    """Return the strategy that the Trainer's arguments mean on this machine.

    Raises:
        MisconfigurationException: A name that does not exist, devices that are not there, or another number of them
            than a launcher has started processes.
    """
    kind = select_accelerator(accelerator)
    indices = select_devices(devices, kind)
    place = launched_place()
    launched = place.world_size if place is not None else 1
    if place is not None and launched > 1 and devices != "auto" and len(indices) != place.local_world_size:
        raise MisconfigurationException(
            f"`Trainer(devices={devices!r})` means {len(indices)} process(es) on each node, but the launcher has "
            f"started {place.local_world_size}. Use devices='auto', or start {len(indices)} with --nproc-per-node."
        )
    if isinstance(strategy, Strategy):
        strategy.configure(kind, indices, num_nodes, checkpoint_io)
        return strategy
    name = str(strategy)
    is_single = len(indices) == 1 and num_nodes == 1 and launched == 1
    if kind.strategy is not None:
        name = _only_strategy(kind, name, is_single, launched)
    if name in ("auto", "single_device") and is_single:
        return SingleDeviceStrategy(kind.device(indices[0]), checkpoint_io)
    name = "ddp" if name == "auto" else name
    if name not in STRATEGIES:
        options = ["auto", "single_device", *STRATEGIES]
        raise MisconfigurationException(
            f"strategy={strategy!r} is not known.{did_you_mean(name, options)} Accepted: {', '.join(options)}."
        )
    module, cls, settings = STRATEGIES[name]
    made: Strategy = getattr(importlib.import_module(module, __package__), cls)(**settings)
    made.configure(kind, indices, num_nodes, checkpoint_io)
    return made


def _only_strategy(kind: Accelerator, name: str, is_single: bool, launched: int) -> str:
    """Return the one strategy of an accelerator that has one.

    Raises:
        MisconfigurationException: Another one was asked for, or several processes.
    """
    only = str(kind.strategy)
    if name not in ("auto", "single_device", only) or launched > 1 or (only == "single_device" and not is_single):
        found = f"strategy={name!r}" if launched == 1 else f"{launched} processes"
        raise MisconfigurationException(
            f"accelerator={kind.name!r} works in one process only, with strategy={only!r}; found was {found}. Use "
            f"{'devices=1' if only == 'single_device' else 'no launcher'} and strategy='auto', or accelerator='cpu'."
        )
    return only
