"""One process and all its XLA devices, through torch_xla: for TPU set-ups from before torch_tpu.

Owns: when recorded operations are sent to the device, and how a batch is split over several. Does not own: processes:
there is one, and with several devices the compiler spreads the work over them (SPMD), so ranks do not exist and
`batch_size` is that of all devices together.

torch_xla records operations and runs them when told to or when a value is read. It is told before each step: what the
batch before has recorded, from its forward pass to its optimizer's step, is one graph, compiled once.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..accelerators import Accelerator
from ..errors import MisconfigurationException
from ..transfer import apply_to_collection
from .base import Strategy


class XLAStrategy(Strategy):
    """Train in one process on one XLA device, or on all of this machine."""

    strategy_name = "xla"
    wraps_steps = True
    _is_seeded = False
    has_inference_mode = False  # torch_xla's tensors have no version counter to leave out

    def configure(self, accelerator: Accelerator, devices: list[int], num_nodes: int, checkpoint_io: Any) -> None:
        """Take the Trainer's devices; from the first time on that there are several, the process is in SPMD mode.

        Raises:
            MisconfigurationException: Some of several devices, or several nodes.
        """
        self.checkpoint_io = checkpoint_io if checkpoint_io is not None else self.checkpoint_io
        total = accelerator.count()
        if len(devices) not in (1, total) or num_nodes > 1:
            raise MisconfigurationException(
                f"accelerator='xla' with {len(devices)} devices and num_nodes={num_nodes}: torch_xla works here in one "
                f"process, on one device or on all {total} of this machine. Use devices=1, devices={total}, or "
                "torch_tpu with accelerator='tpu'."
            )
        self._xla = importlib.import_module("torch_xla")
        # First of all: a device that was used before this mode began would be another one.
        self._mesh = _mesh(total) if len(devices) > 1 else None
        self._random = importlib.import_module("torch_xla.core.xla_model")
        if not XLAStrategy._is_seeded:  # `seed_everything` may not have reached its generator yet
            self._random.set_rng_state(torch.initial_seed() % 2**63)
            XLAStrategy._is_seeded = True
        self._split_sizes = len(devices)
        self.root_device = self._xla.device()

    def setup_environment(self) -> None:
        """Nothing is to be joined or chosen."""

    def step_function(self, name: str) -> Callable[..., Any]:
        """Return the module's step, which first lets the device begin with what was recorded before."""
        return functools.partial(self._step, super().step_function(name))

    def _step(self, function: Callable[..., Any], batch: Any, *args: Any) -> Any:
        # The generator moves on with each step and with nothing else, such as a value read in between: a resumed
        # training draws the same.
        seed = self._random.get_rng_state()
        self._xla.sync()
        self._random.set_rng_state((seed * 6364136223846793005 + 1442695040888963407) % 2**63)
        if self._mesh is not None:
            batch = apply_to_collection(batch, self._can_split, self._split)
        return function(batch, *args)

    def _can_split(self, item: Any) -> bool:
        return isinstance(item, Tensor) and item.dim() > 0 and item.size(0) % self._split_sizes == 0

    def _split(self, tensor: Tensor) -> Tensor:
        spmd: Any = importlib.import_module("torch_xla.distributed.spmd")
        spmd.mark_sharding(tensor, self._mesh, ("data", *[None] * (tensor.dim() - 1)))
        return tensor

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a checkpoint with its tensors on the host, so that any device reads it."""
        on_host = apply_to_collection(checkpoint, _is_on_device, lambda tensor: tensor.detach().cpu())
        super().save_checkpoint(on_host, filepath, storage_options)


def _mesh(devices: int) -> Any:
    runtime: Any = importlib.import_module("torch_xla.runtime")
    spmd: Any = importlib.import_module("torch_xla.distributed.spmd")
    runtime.use_spmd()
    return spmd.Mesh(list(range(devices)), (devices,), ("data",))


def _is_on_device(item: Any) -> bool:
    return isinstance(item, Tensor) and item.device.type == "xla"
