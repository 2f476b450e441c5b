"""Every row goes to one process, in the user's order; ranks that must keep step get equally many."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from engine import Trainer
from engine.data import CombinedLoader, samplers_of
from engine.sharding import ShardedSampler, changed, shard
from engine.strategies import Strategy
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from tests.engine.toys import Rows


class Rank(Strategy):
    """One of several ranks, without processes: what rank 0 broadcasts is handed from one to the next."""

    is_distributed = True

    def __init__(self, rank: int, world_size: int, said: list[Any]) -> None:
        super().__init__()
        self.global_rank, self.world_size, self._said, self._heard = rank, world_size, said, 0

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        if self.global_rank == 0:
            self._said.append(obj)
        self._heard += 1
        return self._said[self._heard - 1]


def walk(loader: Any) -> list[list[int]]:
    """What the engine does at an epoch's start, then the rows of every batch."""
    for sampler in samplers_of([loader]):
        if hasattr(sampler, "draw"):
            sampler.draw()
    return [batch.flatten().int().tolist() for batch in loader]


def split(loader: Any, stage: str, world_size: int, **options: Any) -> list[list[list[int]]]:
    """The rows of each batch of each rank."""
    said: list[Any] = []
    ranks = [Rank(rank, world_size, said) for rank in range(world_size)]
    return [walk(shard(loader, stage, rank, **options)) for rank in ranks]


def together(parts: list[list[list[int]]]) -> list[int]:
    """The rows in the order in which all ranks, step by step, take them."""
    steps = [[part[step] for part in parts if step < len(part)] for step in range(max(map(len, parts)))]
    return [row for batches in steps for i in range(max(map(len, batches))) for b in batches for row in b[i : i + 1]]


class Backwards(Sampler[int]):
    """A sampler of the user's own, with an order of its own."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rows - 1, -1, -1))


class Unseeded(Backwards):
    """Another order in every process: what nobody has seeded."""

    def __iter__(self) -> Iterator[int]:
        return iter(random.SystemRandom().sample(range(self.rows), self.rows))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 12, 13, 24, 25])
def test_training_gives_every_rank_as_many_rows_and_repeats_as_few_as_needed(rows: int, world_size: int) -> None:
    parts = split(DataLoader(Rows(rows), batch_size=4), "train", world_size)
    sizes = [[len(batch) for batch in part] for part in parts]
    assert all(size == sizes[0] for size in sizes)
    total = -(-rows // world_size) * world_size
    assert sum(map(sum, sizes)) == total
    assert together(parts) == [i % rows for i in range(total)]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("sampler", [Backwards(13), SubsetRandomSampler(range(13)), Unseeded(13)])
def test_training_keeps_the_order_of_any_sampler(sampler: Any, world_size: int) -> None:
    order: list[int] = []

    class Noting(Backwards):
        def __iter__(self) -> Iterator[int]:
            drawn = list(sampler)
            order.extend(drawn if not order else [])
            return iter(drawn)

    parts = split(DataLoader(Rows(13), batch_size=2, sampler=Noting(13)), "train", world_size)
    assert together(parts)[:13] == order


@pytest.mark.parametrize("world_size", [2, 3])
def test_weighted_rows_are_drawn_once_for_all(world_size: int) -> None:
    sampler = WeightedRandomSampler([0.0, 1.0, 3.0, 0.0], 24)
    parts = split(DataLoader(Rows(4), batch_size=2, sampler=sampler), "train", world_size)
    assert sum(len(batch) for part in parts for batch in part) == 24
    assert {row for part in parts for batch in part for row in batch} <= {1, 2}


def test_shuffling_gives_the_order_of_one_process_and_another_one_in_the_next_epoch() -> None:
    def epochs(world_size: int) -> list[list[int]]:
        torch.manual_seed(3)
        said: list[Any] = []
        ranks = [Rank(rank, world_size, said) for rank in range(world_size)]
        states = [torch.get_rng_state() for _ in ranks]
        loaders = [shard(DataLoader(Rows(12), batch_size=2, shuffle=True), "train", rank) for rank in ranks]
        found = []
        for _ in range(2):
            parts = []
            for i, loader in enumerate(loaders):
                torch.set_rng_state(states[i])
                parts.append(walk(loader))
                states[i] = torch.get_rng_state()
            found.append(together(parts))
        return found

    alone = epochs(1)
    assert epochs(2) == epochs(3) == alone
    assert alone[0] != alone[1]
    assert sorted(alone[0]) == list(range(12))


@pytest.mark.parametrize("rows", range(1, 26))
@pytest.mark.parametrize("drop_last", [False, True])
def test_evaluation_takes_the_batches_of_one_process_each_once(rows: int, drop_last: bool) -> None:
    loader = DataLoader(Rows(rows), batch_size=4, drop_last=drop_last)
    alone = walk(loader)
    for world_size in (1, 2, 3):
        for stage in ("val", "test", "predict"):
            parts = split(loader, stage, world_size)
            steps = range(max(map(len, parts)))
            assert [part[i] for i in steps for part in parts if i < len(part)] == alone


def test_evaluation_of_a_shuffled_loader_agrees_on_who_takes_what() -> None:
    parts = split(DataLoader(Rows(21), batch_size=4, sampler=Unseeded(21)), "val", 3)
    assert sorted(row for part in parts for batch in part for row in batch) == list(range(21))


def test_limits_see_the_same_length_on_all_ranks() -> None:
    said: list[Any] = []
    loaders = [shard(DataLoader(Rows(9), batch_size=4), "val", Rank(rank, 2, said)) for rank in range(2)]
    assert [len(loader) for loader in loaders] == [2, 2]
    assert [len(list(loader)) for loader in loaders] == [2, 1]


@pytest.mark.parametrize(("rows", "batches"), [(16, 2), (17, 2), (23, 2), (24, 3)])
def test_drop_last_leaves_out_rather_than_repeats(rows: int, batches: int) -> None:
    parts = split(DataLoader(Rows(rows), batch_size=4, drop_last=True), "train", 2)
    assert [[len(batch) for batch in part] for part in parts] == [[4] * batches] * 2
    assert together(parts) == list(range(8 * batches))


def test_batches_of_a_batch_sampler_stay_whole() -> None:
    batches = [[0, 1], [2], [3, 4, 5], [6], [7, 8]]

    class Buckets(Sampler[list[int]]):
        def __len__(self) -> int:
            return len(batches)

        def __iter__(self) -> Iterator[list[int]]:
            return iter(batches)

    loader = DataLoader(Rows(9), batch_sampler=Buckets())
    assert split(loader, "train", 2) == [[[0, 1], [3, 4, 5], [7, 8]], [[2], [6], [0, 1]]]
    assert split(loader, "val", 2) == [[[0, 1], [3, 4, 5], [7, 8]], [[2], [6]]]


def test_rows_without_batches_are_split_too() -> None:
    assert split(DataLoader(Rows(5), batch_size=None), "val", 2) == [[[0], [2], [4]], [[1], [3]]]
    assert split(DataLoader(Rows(5), batch_size=None), "train", 2) == [[[0], [2], [4]], [[1], [3], [0]]]


def test_a_loader_that_is_split_already_is_left_alone() -> None:
    own = DistributedSampler(Rows(8), num_replicas=2, rank=1, shuffle=False)
    loader = DataLoader(Rows(8), batch_size=2, sampler=own)
    assert shard(loader, "train", Rank(0, 2, [])) is loader


def test_nests_and_combinations_are_split_leaf_by_leaf() -> None:
    nest = {"a": DataLoader(Rows(8), batch_size=2), "b": [DataLoader(Rows(4), batch_size=1)]}
    made = shard(nest, "train", Rank(1, 2, []))
    assert walk(made["a"]) == [[1, 3], [5, 7]]
    assert walk(made["b"][0]) == [[1], [3]]
    combined = shard(CombinedLoader(nest, "max_size"), "train", Rank(1, 2, []))
    assert combined.mode == "max_size"
    assert len(combined) == 2


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.tensor([float(i)]) for i in range(3)])


@pytest.mark.parametrize("loader", [DataLoader(Stream(), batch_size=1), [torch.zeros(1)] * 3])
def test_what_cannot_be_split_is_walked_by_all(loader: Any) -> None:
    made = shard({"only": loader}, "train", Rank(1, 2, []))["only"]
    assert len(list(made)) == 3


def test_samplers_are_told_the_epoch() -> None:
    class Epochs(Backwards):
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    sampler = Epochs(4)
    for stage in ("train", "val"):
        loader = shard(DataLoader(Rows(4), sampler=sampler), stage, Rank(0, 2, []))
        for owner in samplers_of([loader]):
            if isinstance(owner, ShardedSampler):
                owner.set_epoch(7 if stage == "train" else 8)
        assert sampler.epoch == (7 if stage == "train" else 8)


def test_a_loader_class_of_the_users_own_keeps_its_attributes() -> None:
    class Own(DataLoader[Any]):
        def __init__(self, rows: int, tag: str) -> None:
            self.tag = tag
            super().__init__(Rows(rows), batch_size=2)

    loader = Own(4, "mine")
    twin = changed(loader, sampler=SequentialSampler(range(2)))
    assert (twin.tag, twin.batch_size, walk(twin)) == ("mine", 2, [[0, 1]])
    assert walk(loader) == [[0, 1], [2, 3]]


def test_a_loader_class_that_keeps_an_iterator_is_made_anew() -> None:
    class Keeps(DataLoader[Any]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.kept = super().__iter__()

        def __iter__(self) -> Any:
            return self.kept

    assert split(Keeps(Rows(4), batch_size=1), "val", 2) == [[[0], [2]], [[1], [3]]]


def seeds(rank: int, **options: Any) -> list[int]:
    class Seed(Rows):
        def __getitem__(self, index: int) -> Tensor:
            return torch.tensor([torch.initial_seed() % 2**31])

    torch.manual_seed(0)
    loader = DataLoader(Seed(4), batch_size=2, num_workers=1, **options)
    return [row for batch in shard(loader, "train", Rank(rank, 2, [])) for row in batch.flatten().tolist()]


def test_workers_of_different_ranks_draw_different_numbers() -> None:
    assert seeds(0) != seeds(1)
    assert seeds(0) == seeds(0)


def test_workers_that_the_user_seeds_keep_their_seeds() -> None:
    own = functools.partial(torch.manual_seed)
    assert seeds(0, worker_init_fn=own) == seeds(1, worker_init_fn=own) == [0, 0]


# As the reference framework.


def test_parity_shuffles_training_and_pads_evaluation() -> None:
    loader = DataLoader(Rows(21), batch_size=4)
    training = split(loader, "train", 2, parity=True)
    assert together(training)[:21] != list(range(21))
    evaluation = [row for part in split(loader, "val", 2, parity=True) for batch in part for row in batch]
    assert sorted(evaluation) == [0, *range(21)]
    prediction = [row for part in split(loader, "predict", 2, parity=True) for batch in part for row in batch]
    assert sorted(prediction) == list(range(21))


def test_parity_wraps_other_samplers() -> None:
    loader = DataLoader(Rows(8), batch_size=2, sampler=Backwards(4))
    rows = [row for part in split(loader, "train", 2, parity=True) for batch in part for row in batch]
    assert sorted(rows) == [0, 1, 2, 3]


# What the Trainer makes of it.


def test_one_process_gets_the_loader_itself() -> None:
    loader = DataLoader(Rows(4))
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    assert trainer.shard(loader, "train") is loader


def test_the_trainer_splits_unless_it_is_told_not_to() -> None:
    loader = DataLoader(Rows(4), sampler=RandomSampler(Rows(4)))
    for use in (True, False):
        trainer = Trainer(accelerator="cpu", devices=2, use_distributed_sampler=use, logger=False)
        made = trainer.shard(loader, "train")
        assert (made is loader) is not use
        assert isinstance(made.batch_sampler.sampler, ShardedSampler) is use
        assert made.batch_size == loader.batch_size
