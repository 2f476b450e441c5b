"""Moving tensors between ranks, as far as torch does not have it ready.

Owns: which backend a kind of device takes, gathering with gradients, and gloo's end. Does not own: when (`processes`).
"""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import MisconfigurationException

# NCCL's recorder of the last collectives: a ring buffer, written to files when one of them times out.
FLIGHT_RECORDER = {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
FLIGHT_HINT = (
    "NCCL has written the last collectives of every rank to /tmp/nccl_trace_rank_* (or TORCH_FR_DUMP_TEMP_FILE) if it "
    "ran into its timeout; `torchfrtrace --prefix nccl_trace_rank_ /tmp` says which rank did not come to which of them."
)


def default_backend(device_type: str) -> str:
    """Return gloo, for what lies on the host, and what the device's backend has registered with torch besides.

    Raises:
        MisconfigurationException: It has registered nothing.
    """
    if device_type == "cpu":
        return "gloo"
    try:
        return f"cpu:gloo,{device_type}:{dist.get_default_backend_for_device(device_type)}"
    except ValueError:
        raise MisconfigurationException(
            f"torch.distributed has no backend for {device_type!r} devices. Use devices=1, or give the strategy one: "
            "`DDPStrategy(process_group_backend=...)`."
        ) from None


class Gather(torch.autograd.Function):
    """`all_gather` whose gradient is the sum over ranks of what each sends back to this one."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, group: Any) -> Tensor:
        context.group = group
        return gather(tensor, group)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=context.group)
        return gradient[dist.get_rank(context.group)], None


def gather(tensor: Tensor, group: Any) -> Tensor:
    """Return the tensors of all ranks (of one shape), stacked along a new first dimension, without gradients."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, tensor.detach().contiguous(), group=group)
    return torch.stack(parts)


def let_gloo_finish() -> None:
    """Return when gloo's threads sleep, for at most five seconds.

    One that gives a tensor back needs Python, and aborts the process where Python has ended meanwhile
    (pytorch/pytorch#179291). Destroying the group does not end them: DistributedDataParallel keeps it.
    """
    deadline, times_asleep = time.monotonic() + 5.0, 0
    while times_asleep < 2 and time.monotonic() < deadline:
        time.sleep(0.001)  # Python is theirs meanwhile
        times_asleep = 0 if _is_gloo_awake() else times_asleep + 1


def _is_gloo_awake() -> bool:
    threads = Path("/proc/self/task").glob("*/stat")  # Linux; elsewhere there are none
    with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
        return any(re.search(r"\(pt_gloo_runloop\) [^S]", thread.read_text()) for thread in threads)
    return True
