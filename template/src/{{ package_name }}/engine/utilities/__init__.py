"""Helpers for user code, under the reference framework's path.

Owns: `grad_norm` and `suggested_max_num_workers`. Does not own: the rest, which is looked up where it lives.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from ..lazy import lazily

_MODULES = {
    "AttributeDict": ".hparams",
    "CombinedLoader": ".data",
    "apply_to_collection": ".transfer",
    "move_data_to_device": ".transfer",
    "rank_zero_deprecation": ".distributed",
    "rank_zero_info": ".distributed",
    "rank_zero_only": ".distributed",
    "rank_zero_warn": ".distributed",
}

__all__ = [*_MODULES, "grad_norm", "suggested_max_num_workers"]


def grad_norm(module: nn.Module, norm_type: float | int | str, group_separator: str = "/") -> dict[str, Tensor]:
    """Return the norm of every parameter's gradient, and of all together.

    Args:
        module: Whose parameters; those without a gradient are left out.
        norm_type: Order of the norm, "inf" included.
        group_separator: Between the kind of norm and the parameter's name.

    Returns:
        `grad_2.0_norm/{name}` and `grad_2.0_norm_total` for the order 2, tensors of no dimension. Logging them is
        cheap; reading them is a device sync.

    Raises:
        ValueError: The order is not above 0.
    """
    order = float(norm_type)
    if order <= 0:
        raise ValueError(f"grad_norm(norm_type={norm_type!r}): a number above 0, or 'inf', is accepted.")
    norms = {
        f"grad_{order}_norm{group_separator}{name}": parameter.grad.detach().norm(order)
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    if norms:
        norms[f"grad_{order}_norm_total"] = torch.stack(list(norms.values())).norm(order)
    return norms


def suggested_max_num_workers(local_world_size: int) -> int:
    """Return how many loader workers each process of this node can have without crowding the others out.

    Args:
        local_world_size: Processes on this node.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(1, local_world_size) - 1)


__getattr__, __dir__ = lazily(__name__, _MODULES)
