"""Loaders that keep their own position or their own generators continue where they were.

As in `test_resume`, but for what is in the data: rows of the resumed run are those that the whole run had left.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import Callback, LightningModule, Trainer, seed_everything
from engine.callbacks import ModelCheckpoint
from engine.errors import EngineWarning
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from tests.engine.test_resume import Augmented, SaveEverywhere
from tests.engine.toys import quiet_trainer


class Net(LightningModule):
    """Dropout, and a note of every row and loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.seen: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        parts = list(batch.values()) if isinstance(batch, dict) else [batch]
        loss = sum((nn.functional.mse_loss(self.net(x), y) for x, y, _ in parts), torch.zeros(()))
        self.seen.append(([rows.tolist() for _, _, rows in parts], loss.item()))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)


class Counting(IterableDataset[Any]):
    """A stream that knows where it is, shuffled by a generator of its own; each pass is another."""

    def __init__(self) -> None:
        self.position, self.passes = 0, 0

    def __iter__(self) -> Iterator[Any]:
        rows = Augmented()
        while self.position < len(rows):
            self.position += 1
            yield rows[(self.position * 7 + self.passes) % len(rows)]
        self.position, self.passes = 0, self.passes + 1

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, "passes": self.passes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position, self.passes = state["position"], state["passes"]


class Drawing(Dataset[Any]):
    """Rows with noise from generators of the data set's own."""

    def __init__(self) -> None:
        self.of_numpy, self.of_python, self.of_torch = np.random.default_rng(5), random.Random(5), torch.Generator()
        self.of_old_numpy = np.random.RandomState(5)

    def __len__(self) -> int:
        return 13

    def __getitem__(self, index: int) -> Any:
        noise = float(self.of_numpy.random() + self.of_old_numpy.rand()) + self.of_python.random()
        return torch.rand(4, generator=self.of_torch) + noise, torch.tensor([index / 5.0]), index


class Stubborn(Sampler[int]):
    """Draws each order from a generator that goes on from epoch to epoch."""

    def __init__(self, rows: int) -> None:
        self.rows, self.rng = rows, np.random.default_rng(11)

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        return iter(self.rng.permutation(self.rows).tolist())


FIXED = TensorDataset(torch.arange(92.0).view(23, 4) / 50, torch.arange(23.0)[:, None] / 5, torch.arange(23))


def loader_of(job: str) -> Any:
    rows, keyword = Augmented(), {"batch_size": 4}
    own = torch.Generator().manual_seed(8)
    made: dict[str, Any] = {
        "stateful": lambda: StatefulDataLoader(rows, shuffle=True, **keyword),
        "stateful_workers": lambda: StatefulDataLoader(rows, shuffle=True, num_workers=2, **keyword),
        "stateful_stream": lambda: StatefulDataLoader(Counting(), **keyword),
        "stream": lambda: DataLoader(Counting(), **keyword),
        "own_generators": lambda: DataLoader(Drawing(), shuffle=True, **keyword),
        "own_generators_in_workers": lambda: DataLoader(Drawing(), shuffle=True, num_workers=2, **keyword),
        "own_sampler": lambda: DataLoader(rows, sampler=Stubborn(23), **keyword),
        "seeded_sampler": lambda: DataLoader(rows, sampler=RandomSampler(rows, generator=own), **keyword),
        "seeded_loader": lambda: DataLoader(rows, shuffle=True, generator=own, **keyword),
        "mixed": lambda: {"a": loader_of("stream"), "b": loader_of("own_sampler"), "c": DataLoader(rows, 7, True)},
        "workers_that_stay": lambda: DataLoader(FIXED, shuffle=True, num_workers=1, persistent_workers=True, **keyword),
        "cycled_workers": lambda: {
            "a": DataLoader(rows, 3, True),
            "b": DataLoader(rows, 7, True, num_workers=1),
        },
    }
    return made[job]()


def fit(job: str, callbacks: Any = (), ckpt_path: Any = None) -> tuple[Trainer, Net]:
    net = Net()
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = quiet_trainer(max_epochs=3, callbacks=list(callbacks), enable_checkpointing=saves)
    trainer.fit(net, loader_of(job), ckpt_path=ckpt_path)
    return trainer, net


JOBS = """stateful stateful_workers stateful_stream stream own_generators own_generators_in_workers own_sampler
seeded_sampler seeded_loader mixed workers_that_stay cycled_workers"""


@pytest.mark.parametrize("job", JOBS.split())
def test_a_run_continues_exactly_whatever_keeps_the_position(job: str, tmp_path: Path) -> None:
    seed_everything(1, workers=True)
    save = SaveEverywhere(tmp_path)
    _, whole = fit(job, [save])
    assert len(whole.seen) % 3 == 0
    assert len(whole.seen) >= 12
    for path, batches in save.saved[:: 7 if "workers" in job else 1]:
        seed_everything(99)
        _, resumed = fit(job, ckpt_path=path)
        assert resumed.seen == whole.seen[batches:], path.name


class Validated(Net):
    """Notes what validation sees."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.seen.append((batch[0].sum().item(), batch[2].tolist()))


@pytest.mark.parametrize("kept", ["generators", "workers"])
def test_what_validation_keeps_continues_too(kept: str, tmp_path: Path) -> None:
    def fit(callbacks: Any = (), ckpt_path: Any = None) -> Validated:
        net, of_workers = Validated(), {"shuffle": True, "num_workers": 1, "persistent_workers": True}
        data, rest = (FIXED, of_workers) if kept == "workers" else (Drawing(), {"sampler": Stubborn(13)})
        trainer = quiet_trainer(max_epochs=3, callbacks=list(callbacks), val_check_interval=2, limit_train_batches=3)
        trainer.fit(net, DataLoader(FIXED, 4), DataLoader(data, 6, **rest), ckpt_path=ckpt_path)
        return net

    seed_everything(1)
    save = SaveEverywhere(tmp_path)
    whole = fit([save])
    for path, _ in save.saved[1 : -1 : 2 if kept == "generators" else 4]:
        seed_everything(99)
        seen = fit(ckpt_path=path).seen
        assert seen == whole.seen[len(whole.seen) - len(seen) :], path.name
        assert seen


def test_a_loader_that_cannot_continue_says_so(tmp_path: Path) -> None:
    save = SaveEverywhere(tmp_path)
    loader = DataLoader(Augmented(), batch_size=4)
    quiet_trainer(callbacks=[save]).fit(Net(), loader)
    with pytest.warns(EngineWarning, match=r"2 batches are read and dropped.*StatefulDataLoader"):
        quiet_trainer().fit(Net(), iter(loader), ckpt_path=save.saved[2][0])


def test_workers_that_persist_are_named_as_not_exact(tmp_path: Path) -> None:
    save = SaveEverywhere(tmp_path)
    loader = DataLoader(Augmented(), batch_size=4, num_workers=1, persistent_workers=True)
    quiet_trainer(callbacks=[save]).fit(Net(), loader)
    with pytest.warns(EngineWarning, match="persistent_workers=True"):
        quiet_trainer(max_epochs=2).fit(Net(), loader, ckpt_path=save.saved[2][0])


@pytest.mark.parametrize("job", ["stream", "own_sampler", "mixed"])
def test_what_was_fetched_when_the_run_was_interrupted_is_not_lost(job: str, tmp_path: Path) -> None:
    class Interrupt(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.total_batches == 3:
                signal.raise_signal(signal.SIGINT)

    seed_everything(1)
    _, whole = fit(job)
    seed_everything(1)
    trainer, first = fit(job, [Interrupt(), ModelCheckpoint(tmp_path, save_last=True)])
    assert trainer.interrupted
    seed_everything(99)
    _, rest = fit(job, ckpt_path=tmp_path / "last.ckpt")
    assert first.seen + rest.seen == whole.seen
