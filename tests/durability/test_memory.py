"""A process that trains for long, or again and again, keeps no more memory than at its start."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import psutil
import torch
from engine import Callback
from engine.callbacks import ModelCheckpoint
from engine.checkpoint_async import AsyncCheckpointIO

from tests.engine.toys import BoringModel, loader, quiet_trainer

MIB = 1 << 20


def memory() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


class Measure(Callback):
    """Notes the memory in use every 1,000 batches."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.total_batches % 1_000 == 0:
            self.seen.append(memory())


class Same(torch.utils.data.IterableDataset[Any]):
    """One batch, so many times."""

    def __init__(self, count: int) -> None:
        self.count, self.batch = count, (torch.randn(4, 4), torch.randn(4, 1))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        return iter([self.batch] * self.count)


def test_memory_is_flat_over_20_000_steps(tmp_path: Path) -> None:
    measure = Measure()
    trainer = quiet_trainer(
        max_epochs=4, callbacks=[measure, ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=500)],
        enable_checkpointing=True, plugins=AsyncCheckpointIO(), log_every_n_steps=50,
    )  # fmt: skip
    trainer.fit(BoringModel(), torch.utils.data.DataLoader(Same(5_000), batch_size=None))
    assert trainer.global_step == 20_000
    assert len(measure.seen) == 20
    assert max(measure.seen[-5:]) - max(measure.seen[3:8]) < 4 * MIB, [seen // MIB for seen in measure.seen]


def test_memory_is_flat_over_50_fits(tmp_path: Path) -> None:
    class Wide(BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Linear(512, 1024)  # 2 MiB: 50 that stay would be seen

    seen = []
    for _ in range(50):
        saver = ModelCheckpoint(tmp_path, save_last=True, enable_version_counter=False)
        trainer = quiet_trainer(callbacks=[saver], enable_checkpointing=True)
        trainer.fit(Wide(), loader(), loader())
        seen.append(memory())
    assert max(seen[-5:]) - max(seen[10:15]) < 8 * MIB, [value // MIB for value in seen]
