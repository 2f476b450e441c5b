"""Kinds of devices: which are there, how many, and how the arguments `accelerator=` and `devices=` choose among them.

Owns: the registry of accelerators, which a project may extend with `register`. Does not own: how several devices work
together (`strategies`). The loops know no vendor.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .errors import MisconfigurationException, did_you_mean


@dataclass(frozen=True)
class Accelerator:
    """One kind of device.

    Attributes:
        name: As in `Trainer(accelerator=...)`.
        device_type: The string of `torch.device`.
        is_available: Asks the machine.
        count: Number of devices (for cpu: of processes to use by default).
        missing: What to do when it is not available.
        is_numbered: Whether a process that sees several chooses one by its number; else it has one of its own.
        strategy: The only `strategy=` that works with it; None: those of several processes all do.
        before_launch: Called with the number of processes, before the first of them is started; None: nothing is.
    """

    name: str
    device_type: str
    is_available: Callable[[], bool]
    count: Callable[[], int]
    missing: str
    is_numbered: bool = True
    strategy: str | None = None
    before_launch: Callable[[int], Any] | None = None

    def device(self, index: int) -> torch.device:
        """Return the device with this index."""
        return torch.device(self.device_type, index) if self.is_numbered else torch.device(self.device_type)

    def __reduce__(self) -> Any:
        """Travel to another process by name."""
        return registered, (self.name,)


def _is_current(kind: str) -> bool:
    # torch_tpu registers itself with torch; its own `torch.tpu.is_available()` raises where there is no TPU.
    current = torch.accelerator.current_accelerator()
    return current is not None and current.type == kind


def _tpu_distributed() -> Any:
    return importlib.import_module("torch.tpu.distributed")


_ALIASES = {"gpu": ("cuda", "mps"), "auto": ("tpu", "mps", "cuda", "cpu")}
_ENDED = {
    "ipu": "PyTorch for Graphcore IPUs ended in 2023",
    "hpu": "PyTorch for Habana HPUs is no longer served by this interface",
}
_OURS = (
    Accelerator("cpu", "cpu", lambda: True, lambda: 1, "", is_numbered=False),
    Accelerator(
        "cuda",
        "cuda",
        # `torch.cuda.is_available` asks the driver, after which no forked process can use CUDA.
        lambda: torch.cuda.device_count() > 0,
        torch.cuda.device_count,
        "Install a CUDA build of torch (https://pytorch.org/get-started/locally) and check `nvidia-smi`.",
    ),
    Accelerator(
        "mps",
        "mps",
        torch.backends.mps.is_available,
        lambda: 1,
        "It exists on Apple computers only.",
        is_numbered=False,
        strategy="single_device",
    ),
    Accelerator(
        "tpu",
        "tpu",
        lambda: _is_current("tpu"),
        lambda: torch.accelerator.device_count(),
        "On a TPU machine install torch_tpu (`pip install torch_tpu`); with torch_xla use accelerator='xla'.",
        is_numbered=False,
        # Addresses that all processes must agree on, which torch_tpu writes into the environment.
        before_launch=lambda count: _tpu_distributed().set_tpu_launch_env(nproc_per_node=count),
    ),
    Accelerator(
        "xla",
        "xla",
        lambda: importlib.util.find_spec("torch_xla") is not None,
        lambda: int(importlib.import_module("torch_xla.runtime").addressable_runtime_device_count()),
        "Install torch_xla with the torch it was built for (`pip install torch==2.9.* 'torch_xla[tpu]==2.9.*'`), or "
        "torch_tpu and accelerator='tpu'.",
        is_numbered=False,
        strategy="xla",
    ),
)
_REGISTRY = {accelerator.name: accelerator for accelerator in _OURS}


def register(accelerator: Accelerator) -> None:
    """Add an accelerator, or replace the one of that name."""
    _REGISTRY[accelerator.name] = accelerator


def registered(name: str) -> Accelerator:
    """Return the accelerator of that name, available or not.

    Raises:
        MisconfigurationException: Nothing has registered it in this process.
    """
    if name not in _REGISTRY:
        raise MisconfigurationException(
            f"accelerator={name!r} is not known in this process. Call `register` at the top of the module that the "
            "model comes from, which every process imports."
        )
    return _REGISTRY[name]


def available() -> list[str]:
    """Return the names of the accelerators that this machine has."""
    return [name for name, accelerator in _REGISTRY.items() if accelerator.is_available()]


def select_accelerator(name: Any) -> Accelerator:
    """Return the accelerator that `Trainer(accelerator=name)` means here.

    Raises:
        MisconfigurationException: It does not exist, or this machine does not have it.
    """
    if isinstance(name, Accelerator):
        return name
    wanted = str(name).lower()
    if wanted in _ENDED:
        raise MisconfigurationException(
            f"accelerator={name!r}: {_ENDED[wanted]}. Available here: {', '.join(available())}. "
            "Use one of those, or accelerator='auto'."
        )
    names = _ALIASES.get(wanted, (wanted,))
    if names[0] not in _REGISTRY:
        options = [*_REGISTRY, *_ALIASES]
        raise MisconfigurationException(
            f"accelerator={name!r} is not known.{did_you_mean(wanted, options)} Accepted: {', '.join(options)}."
        )
    for candidate in names:
        if _REGISTRY[candidate].is_available():
            return _REGISTRY[candidate]
    raise MisconfigurationException(
        f"accelerator={name!r} was asked for, but this machine has none. Available here: {', '.join(available())}. "
        f"{_REGISTRY[names[0]].missing}"
    )


def select_devices(devices: Any, accelerator: Accelerator) -> list[int]:
    """Return the indices that `Trainer(devices=...)` means.

    Args:
        devices: A number (the first so many), -1 or "-1" (all), a list or "0,2" (those), or "auto".
        accelerator: Whose devices. For cpu the indices count processes.

    Raises:
        MisconfigurationException: None, or more than there are.
    """
    total = accelerator.count() if accelerator.name != "cpu" else max(1, os.cpu_count() or 1)
    if devices == "auto":
        return list(range(accelerator.count()))
    if isinstance(devices, str):
        devices = _from_text(devices)
    if isinstance(devices, bool) or not isinstance(devices, (int, list, tuple)):
        raise MisconfigurationException(
            f"devices={devices!r}: accepted are a number, a list such as [0, 1], '0,1' and 'auto'."
        )
    if devices == -1:
        return list(range(accelerator.count()))
    chosen = list(range(devices)) if isinstance(devices, int) else list(devices)
    if not chosen or (isinstance(devices, int) and devices < 0):
        raise MisconfigurationException(
            f"devices={devices!r} leaves no device to run on. Use a number from 1, -1 for all ({total}), or 'auto'."
        )
    if len(set(chosen)) != len(chosen):
        raise MisconfigurationException(f"devices={devices!r} names a device twice. Name each once.")
    beyond = [index for index in chosen if not 0 <= index < total]
    if beyond and accelerator.name != "cpu":
        raise MisconfigurationException(
            f"devices={devices!r}: this machine has {total} {accelerator.name} device(s), 0 to {total - 1}."
        )
    return chosen


def _from_text(text: str) -> Any:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        return text + " (not a number)"
    return numbers if "," in text else numbers[0] if numbers else []
