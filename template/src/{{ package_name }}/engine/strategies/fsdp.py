"""Sharded data parallelism: every rank holds a part of each parameter, of its gradient and of the optimizer's state.

Owns: sharding a module by torch's `fully_shard` (FSDP2) for training, and making it whole again. Does not own:
processes and collectives (`processes`), and which rows a rank gets (`sharding`).

Evaluation runs with whole parameters, gathered once at its start: ranks may have different numbers of batches, and then
none may wait for another in the middle. Before and after training the module is an ordinary one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint as recomputed

from ..errors import MisconfigurationException
from ..sharded_file import write_sharded
from ..transfer import apply_to_collection
from .processes import ProcessesStrategy

Policy = Collection[type[nn.Module]] | Callable[[nn.Module], bool] | None


class FSDPStrategy(ProcessesStrategy):
    """Train one module whose parameters are spread over several processes, one for each device.

    Gradients are the mean over ranks, as in `DDPStrategy`; the results are the same, the memory is less.

    Args:
        auto_wrap_policy: What is gathered at once: classes, or a function of a module. Default: the elements of every
            `nn.ModuleList`, mostly the blocks of a transformer. What is in none of them is gathered with the root.
        mixed_precision: Types of parameters and of the exchange. Default: as stored; `Trainer(precision=...)` acts too.
        activation_checkpointing_policy: As `auto_wrap_policy`: what is computed again in backward. Default: nothing.
        reshard_after_forward: Give gathered parameters back after forward; False needs more memory and less exchange.
        cpu_offload: Keep parameters and optimizer on the host between uses.
        state_dict_type: "full": checkpoints are one file, those of any other strategy. "sharded": a folder to which
            every rank writes its part; it is read with any number of processes, under any strategy.
        processes: See `ProcessesStrategy`.
    """

    strategy_name = "fsdp"
    wraps_steps = True

    def __init__(
        self,
        *,
        auto_wrap_policy: Policy = None,
        mixed_precision: MixedPrecisionPolicy | None = None,
        activation_checkpointing_policy: Policy = (),
        reshard_after_forward: bool = True,
        cpu_offload: bool = False,
        state_dict_type: str = "full",
        **processes: Any,
    ) -> None:
        super().__init__(**processes)
        if state_dict_type not in ("full", "sharded"):
            raise MisconfigurationException(f"state_dict_type={state_dict_type!r}: accepted are 'full' and 'sharded'.")
        self.auto_wrap_policy, self.activation_checkpointing_policy = auto_wrap_policy, activation_checkpointing_policy
        self.mixed_precision, self.cpu_offload = mixed_precision, cpu_offload
        self.reshard_after_forward, self.state_dict_type = reshard_after_forward, state_dict_type
        self._originals: list[_Original] = []
        self._is_whole = False

    def setup(self, module: nn.Module, *, training: bool) -> None:
        """Move the module to its device with rank 0's weights, and shard it for training. A collective.

        Raises:
            MisconfigurationException: Manual optimisation, or a policy that chooses nothing.
        """
        super().setup(module, training=training)
        self.broadcast_tensors([*module.parameters(), *module.buffers()])
        if not training:
            return
        if not module.automatic_optimization:
            raise MisconfigurationException(
                "Under strategy='fsdp' backward must follow `training_step`, so manual optimisation does not work. Use "
                "strategy='ddp', or leave `automatic_optimization` at True."
            )
        self._originals = [_Original(child) for child in module.modules()]
        self.wrapped = self._shard(module)
        for original in self._originals:
            original.note_additions()

    def _shard(self, module: nn.Module) -> Any:
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        offload = CPUOffloadPolicy() if self.cpu_offload else OffloadPolicy()
        precision = self.mixed_precision or MixedPrecisionPolicy()
        common: dict[str, Any] = {"mesh": mesh, "mp_policy": precision, "offload_policy": offload}
        for child in _chosen(module, self.activation_checkpointing_policy):
            vars(child)["forward"] = functools.partial(recomputed, child.forward, use_reentrant=False)
        default = {id(block) for blocks in module.modules() if isinstance(blocks, nn.ModuleList) for block in blocks}
        policy = self.auto_wrap_policy if self.auto_wrap_policy is not None else lambda child: id(child) in default
        for child in reversed(list(_chosen(module, policy))):  # those within others first
            fully_shard(child, reshard_after_forward=self.reshard_after_forward, **common)
        return fully_shard(_Steps(module), **common)

    def _set_whole(self, whole: bool) -> None:
        """Gather all parameters and keep them, or go back to this rank's part of them. Gathering is a collective."""
        if self.wrapped is None or self._is_whole == whole:
            return
        self._is_whole = whole
        for part in (part for part in self.wrapped.modules() if isinstance(part, FSDPModule)):
            is_root = part is self.wrapped
            part.set_reshard_after_forward(self.reshard_after_forward and not whole and not is_root, recurse=False)
            if whole:
                part.unshard()
            else:
                part.reshard()

    def unwrap(self) -> None:
        """Make the module an ordinary one again, on the host. A collective."""
        if self.wrapped is None or self.failed_at is not None:
            return
        self._set_whole(False)
        self.wrapped = None
        made: dict[int, nn.Parameter] = {}
        for original in self._originals:
            original.restore()
            parts: dict[str, Any] = {n: p for n, p in original.module._parameters.items() if isinstance(p, DTensor)}
            for name, part in parts.items():
                if id(part) not in made:  # tied weights stay tied
                    made[id(part)] = nn.Parameter(_full(part), part.requires_grad)
                original.module._parameters[name] = made[id(part)]
        self._originals = []

    def teardown(self) -> None:
        """Take the wrapper off."""
        self.unwrap()
        super().teardown()

    # Steps.

    def step_function(self, name: str) -> Callable[..., Any]:
        """Return `training_step` with sharded parameters; other steps with whole ones. A collective."""
        function = super().step_function(name)
        if name == "training_step":
            return functools.partial(self._train, function)
        self._set_whole(True)
        return functools.partial(self.wrapped, function) if self.wrapped is not None else function

    def _train(self, function: Callable[..., Any], *args: Any) -> Any:
        self._set_whole(False)
        return self.checked_output(self.wrapped(function, *args))

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Return a context in which gradients are added up on each rank alone; they are whole for so long."""
        self.wrapped.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.wrapped.set_requires_gradient_sync(True)

    def clip_grad_norm(self, parameters: Any, max_norm: float) -> Tensor:
        """Clip by the norm over all parts of all parameters; returns the norm before. A collective."""
        norm = nn.utils.clip_grad_norm_(parameters, max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    # State.

    def module_state_dict(self) -> dict[str, Any]:
        """Return the weights, each as this rank's part; `save_checkpoint` makes them whole where that is asked for."""
        self.keep_parts()
        return super().module_state_dict()

    def keep_parts(self) -> None:
        """Give up what was gathered."""
        self._set_whole(False)

    def part_of(self, value: Any, like: Any) -> Any:
        """Return this rank's part of a whole tensor if `like` is a part, else the value."""
        if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
            return value
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    def load_optimizer_state_dict(self, optimizer: Any, state: dict[str, Any]) -> None:
        """Load a state with whole tensors: of each, this rank's part."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        kept = {
            index: {name: self.part_of(value, parameters[index]) for name, value in entry.items()}
            for index, entry in state["state"].items()
        }
        super().load_optimizer_state_dict(optimizer, {**state, "state": kept})

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a checkpoint: one file by rank 0, or a folder by all. A collective."""
        if self.state_dict_type == "full":
            device = "cpu" if self.is_global_zero else "meta"
            whole = apply_to_collection(checkpoint, lambda item: isinstance(item, DTensor), lambda p: _full(p, device))
            return super().save_checkpoint(whole, filepath, storage_options)
        path = Path(filepath)
        partial = path.with_name(f".{path.name}.partial")
        write_sharded(checkpoint, partial, DTensor, writes_rest=self.is_global_zero)
        if self.is_global_zero:
            shutil.rmtree(path, ignore_errors=True)
            os.replace(partial, path)


class _Steps(nn.Module):
    """What is wrapped: called with a step of the module and its arguments, it runs it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, step: Callable[..., Any], *args: Any) -> Any:
        return step(*args)


class _Original:
    """A module as it was before it was sharded: `fully_shard` changes its class, its hooks and its attributes."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind, self.names = module, type(module), set(vars(module))
        self.added: set[str] = set()

    def note_additions(self) -> None:
        self.added = set(vars(self.module)) - self.names

    def restore(self) -> None:
        self.module.__class__ = self.kind
        attributes = vars(self.module)
        for name in self.added:
            attributes.pop(name, None)
        for hooks in [value for name, value in attributes.items() if name.endswith("_hooks") and name[0] == "_"]:
            theirs = [key for key, hook in hooks.items() if hook.__module__.startswith("torch.distributed.fsdp")]
            for key in theirs:
                del hooks[key]


def _chosen(module: nn.Module, policy: Any) -> Iterator[nn.Module]:
    children = [child for child in module.modules() if child is not module]
    if callable(policy):
        return (child for child in children if policy(child))
    return (child for child in children if isinstance(child, tuple(policy)))


def _full(part: Any, device: str = "cpu") -> Tensor:
    whole: Tensor = part.detach().full_tensor().to(device)
    return whole
