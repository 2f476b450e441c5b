"""What the loops ask of a strategy, answered for one process.

Owns: the seam between loops and processes: where the module lives, how steps are called, how ranks agree, what is
saved. Does not own: numerical types (`precision`) and loaders (`data`). A method that does nothing here costs the
loops nothing: they look at `wraps_steps` and `no_sync` once, before the first batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint_file import TorchCheckpointIO
from ..transfer import apply_to_collection


class Strategy:
    """One process on one device; strategies of several processes derive from it.

    Args:
        device: Where this process computes.
        checkpoint_io: Writes and reads checkpoint files.

    Attributes:
        strategy_name: As in `Trainer(strategy=...)`.
        wraps_steps: Whether `step_function` returns something else than the module's own method.
        is_distributed: Whether several processes take part.
        has_inference_mode: Whether the devices compute under `torch.inference_mode`; else evaluation has `no_grad`.
        is_leaving: Whether all ranks have agreed to leave the run, so that collectives still work while they do.
        sync_batchnorm: Whether batch norm is to be computed over all processes; set by the Trainer.
        world_size: Number of processes.
        global_rank: Index of this process among all.
        local_rank: Index of this process on its node.
        node_rank: Index of this node.
        module: The user's module; None before `setup` and after `teardown`.
        wrapped: What is called in its place in training, where the strategy wraps it.
    """

    strategy_name = "single_device"
    wraps_steps = False
    is_distributed = False
    has_inference_mode = True
    sync_batchnorm = False
    is_leaving = False
    world_size = 1
    global_rank = local_rank = node_rank = 0
    module: Any = None
    wrapped: Any = None

    def __init__(self, root_device: torch.device | str = "cpu", checkpoint_io: Any = None) -> None:
        self.root_device = torch.device(root_device)
        self.checkpoint_io = checkpoint_io if checkpoint_io is not None else TorchCheckpointIO()

    @property
    def is_global_zero(self) -> bool:
        """Whether this process writes files and speaks for all."""
        return self.global_rank == 0

    @property
    def model(self) -> Any:
        """The module as it is called in training: wrapped, when the strategy wraps it."""
        return self.wrapped if self.wrapped is not None else self.module

    # The life of a run.

    def configure(self, accelerator: Any, devices: list[int], num_nodes: int, checkpoint_io: Any) -> None:
        """Take what the Trainer's `accelerator`, `devices`, `num_nodes` and `plugins` say; here nothing is open."""

    def launch(self, trainer: Any, name: str, *args: Any) -> Any:
        """Call `trainer.<name>(*args)` in every process that takes part, and return what rank 0 returned."""
        return getattr(trainer, name)(*args)

    def setup_environment(self) -> None:
        """Join the process group. A collective."""
        if self.root_device.type == "cuda":
            torch.cuda.set_device(self.root_device)
        elif self.root_device.type == torch._C._get_privateuse1_backend_name() and self.root_device.index is not None:
            torch.accelerator.set_device_index(self.root_device.index)

    def setup(self, module: nn.Module, *, training: bool) -> None:
        """Move the module to its device, and wrap it when it will be trained by several processes. A collective."""
        self.module = module
        module.to(self.root_device)

    def step_function(self, name: str) -> Callable[..., Any]:
        """Return the function that runs the module's step `name` with gradients synchronised."""
        function: Callable[..., Any] = getattr(self.module, name)
        return function

    def start_epoch(self) -> None:
        """Look at the module again: a callback may train other parameters from now on."""

    def before_backward(self, loss: Tensor) -> Tensor:
        """Return the loss that manual optimisation goes back from."""
        return loss

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which backward does not synchronise gradients."""
        return contextlib.nullcontext()

    def unwrap(self) -> None:
        """Make the module of a run that went well an ordinary one, on the host. A collective for sharded modules."""

    def teardown(self) -> None:
        """Give devices back."""
        self.module = None

    def on_exception(self, exception: BaseException) -> None:
        """Let other processes know that this one failed; called before anybody cleans up."""

    # Agreement between ranks; every method is a collective.

    def barrier(self, name: str | None = None) -> None:
        """Wait for all ranks."""

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Return rank `src`'s object on every rank."""
        return obj

    def gather_objects(self, obj: Any) -> list[Any]:
        """Return every rank's object, on every rank."""
        return [obj]

    def all_max(self, numbers: list[int]) -> list[int]:
        """Return the largest of each number over ranks."""
        return numbers

    def unanimous(self, name: str) -> bool:
        """Return whether all ranks ask this at the same place; no collective for those that do not ask."""
        return True

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Return the tensors of all ranks, stacked along a new first dimension; unchanged with one process."""
        return tensor

    def all_gather_nest(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """Apply `all_gather` to every tensor and number of a nest."""

        def gather(item: Any) -> Tensor:
            tensor = item if isinstance(item, Tensor) else torch.tensor(item, device=self.root_device)
            return self.all_gather(tensor, group, sync_grads)

        return apply_to_collection(data, lambda item: isinstance(item, (Tensor, int, float)), gather)

    def reduce(self, tensor: Tensor, group: Any = None, reduce_op: str = "mean") -> Tensor:
        """Return the tensor reduced over ranks: "mean", "sum", "max" or "min"."""
        return tensor

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Return whether all ranks (or any) decided True."""
        return decision

    # Gradients.

    def clip_grad_norm(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """Clip by the norm over all parameters together; returns the norm before."""
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    # State.

    def module_state_dict(self) -> dict[str, Any]:
        """Return the weights as they go into a checkpoint (full, on rank 0). A collective for sharded modules."""
        weights: dict[str, Any] = self.module.state_dict()
        return weights

    def keep_parts(self) -> None:
        """Leave this rank its part of each parameter, as its optimizer has it; evaluation has the whole ones."""

    def part_of(self, value: Tensor, like: Tensor) -> Tensor:
        """Return this rank's part of a whole tensor if `like` is a part, else the tensor."""
        return value

    def optimizer_state_dict(self, optimizer: Any) -> dict[str, Any]:
        """Return an optimizer's state as it goes into a checkpoint. A collective for sharded modules."""
        state: dict[str, Any] = optimizer.state_dict()
        return state

    def load_optimizer_state_dict(self, optimizer: Any, state: dict[str, Any]) -> None:
        """Load what `optimizer_state_dict` returned."""
        optimizer.load_state_dict(state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a checkpoint. Every rank calls it; rank 0 writes."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def remove_checkpoint(self, filepath: Any) -> None:
        """Delete a checkpoint. Every rank calls it; rank 0 deletes."""
        if self.is_global_zero:
            self.checkpoint_io.remove_checkpoint(filepath)
