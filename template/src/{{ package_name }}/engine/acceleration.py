"""What makes training on an accelerator fast without touching the science.

Owns: copying batches beside the computation, `torch.compile` by one option, fused optimizers. Does not own: when
(`session`). Each acts only where it can help; on the CPU nothing of this file runs, but for `compile_module` when it
is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from .dispatch import overrides
from .errors import MisconfigurationException
from .transfer import apply_to_collection, move_data_to_device

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_FUSED = (Adam, AdamW, SGD)


class SideStream:
    """Copies batches to a CUDA device on a stream of its own, so that the copy of one runs beside the step before it.

    The host runs ahead of the device: when it asks for the next batch the device still computes. On the computing
    stream the copy would wait for that; here it does not. It needs pinned memory (`DataLoader(pin_memory=True)`) to
    overlap, and is right without.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, batch: Any, dataloader_idx: int = 0) -> Any:
        """Return the batch on the device, ready for the current stream."""
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            moved = move_data_to_device(batch, self.device)
        current.wait_stream(self.stream)
        # The allocator must not hand the memory out again before the current stream has used it.
        apply_to_collection(moved, lambda item: isinstance(item, Tensor), lambda tensor: tensor.record_stream(current))
        return moved


def compile_options(given: Any) -> dict[str, Any] | None:
    """Return the arguments of `torch.compile` that `Trainer(compile=...)` means; None when it is off.

    Args:
        given: False or None: off; True: defaults; a mode ("reduce-overhead" records CUDA graphs); "step": the whole
            `training_step` in place of `forward`; or a dict of arguments, in which `"step": True` means the same.

    Raises:
        MisconfigurationException: Another mode or type.
    """
    if given in (None, False):
        return None
    if given is True:
        return {}
    if isinstance(given, str) and given in (*COMPILE_MODES, "step"):
        return {"step": True} if given == "step" else {"mode": given}
    if isinstance(given, Mapping):
        return dict(given)
    raise MisconfigurationException(
        f"`Trainer(compile={given!r})`: accepted are True, False, 'step', a dict of `torch.compile`'s arguments, and "
        f"the modes {', '.join(COMPILE_MODES)}."
    )


def compile_module(module: nn.Module, base: type, options: dict[str, Any]) -> None:
    """Compile a module in place: its `training_step`, or its `forward`, or each of its parts where it has none.

    `self.log` and hooks stay ordinary Python outside of the graph; names in `state_dict` do not change.

    Args:
        module: The user's module.
        base: The engine's class, to tell whether `forward` is the user's.
        options: Arguments of `torch.compile`; with `"step": True` for the whole `training_step`.
    """
    arguments = {name: value for name, value in options.items() if name != "step"}
    if options.get("step"):
        for child in module.modules():
            if isinstance(child, base):  # `log` keeps books that differ at every step: a graph of it would not last
                log: Any = type(child).log.__get__(child)  # type: ignore[attr-defined]
                child.__dict__["log"] = torch.compiler.disable(log)  # type: ignore[no-untyped-call]
        step = type(module).training_step.__get__(module)  # type: ignore[attr-defined]
        module.__dict__["training_step"] = torch.compile(step, **arguments)
        return
    parts = list(module.children())
    for part in [module] if overrides(module, "forward", base) or not parts else parts:
        part.compile(**arguments)


def prefer_fused(optimizers: list[Optimizer]) -> None:
    """Let Adam, AdamW and SGD update all parameters in one kernel, where the user did not choose an implementation."""
    for optimizer in optimizers:
        groups = optimizer.param_groups
        undecided = all(group.get("fused") is None and group.get("foreach") is None for group in groups)
        parameters = [parameter for group in groups for parameter in group["params"]]
        if type(optimizer) not in _FUSED or not undecided or not all(map(_can_fuse, parameters)):
            continue
        for group in groups:
            if not group.get("differentiable") and not group.get("capturable"):
                group["fused"] = True


def _can_fuse(parameter: Tensor) -> bool:
    return parameter.is_cuda and parameter.is_floating_point() and not parameter.is_sparse
