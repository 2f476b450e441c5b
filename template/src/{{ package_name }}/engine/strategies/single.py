"""The strategy of one process on one device.

Owns: its public name. Does not own: anything else; `Strategy` is that strategy already.
"""

from __future__ import annotations

from typing import Any

import torch

from .base import Strategy


class SingleDeviceStrategy(Strategy):
    """Train on one device.

    Args:
        device: Where to compute.
        checkpoint_io: Writes and reads checkpoint files.
    """

    def __init__(self, device: torch.device | str = "cpu", checkpoint_io: Any = None) -> None:
        super().__init__(device, checkpoint_io)
