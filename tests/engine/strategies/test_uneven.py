"""Training loaders that give ranks different numbers of batches: no rank waits for one that has no more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from engine import Callback
from engine.strategies import DDPStrategy
from engine.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset, Sampler

from tests.engine.strategies.nets import Agree
from tests.engine.toys import BoringModel, loader, quiet_trainer

ROWS = {0: 3, 1: 5}  # of each rank


def fit(data: Any, *callbacks: Callback, epochs: int = 1, module: Any = None, **options: Any) -> Any:
    trainer = quiet_trainer(
        devices=2,
        strategy=CountsQuestions(start_method="fork"),
        use_distributed_sampler=False,
        max_epochs=epochs,
        callbacks=[Agree(), *callbacks],
        **options,
    )
    trainer.fit(module or BoringModel(), data, loader(2, 1))
    return trainer


class CountsQuestions(DDPStrategy):
    """Counts how often this rank asked the others whether all have a batch."""

    questions = 0

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        self.questions += 1
        return super().reduce_boolean_decision(decision, all)


class AsksNothing(Callback):
    def on_train_end(self, trainer: Any, module: Any) -> None:
        assert trainer.strategy.questions == 0


class AsksForEach(Callback):
    def on_train_end(self, trainer: Any, module: Any) -> None:
        assert trainer.strategy.questions == trainer.total_batches + 1


class Batches:
    """Some batches, and a length that need not be true.

    Args:
        said: The length on each rank.
        given: How many batches there are on each rank.
    """

    def __init__(self, said: dict[int, int], given: dict[int, int]) -> None:
        self.said, self.given = said, given

    def __len__(self) -> int:
        return self.said[dist.get_rank()]

    def __iter__(self) -> Iterator[Any]:
        return ((torch.full((1, 4), float(row)), torch.zeros(1, 1)) for row in range(self.given[dist.get_rank()]))


class ByNumber(Batches, Sequence[Any]):
    """A sequence: of such there are as many as said."""

    def __init__(self, rows: dict[int, int]) -> None:
        super().__init__(rows, rows)

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        for row in range(ROWS[dist.get_rank()]):
            yield torch.full((4,), float(row)), torch.zeros(1)


class StreamThatGuesses(Stream):
    """Says how many rows all ranks have together, as many streams do."""

    def __len__(self) -> int:
        return sum(ROWS.values())


@pytest.mark.parametrize("stream", [Stream, StreamThatGuesses])
def test_streams_end_with_the_shorter_one(stream: type[Stream]) -> None:
    assert fit(DataLoader(stream(), batch_size=1), AsksForEach()).global_step == 3


class KnowsTheLength(Callback):
    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        assert trainer.num_training_batches == min(ROWS.values())


def test_the_shortest_of_the_lengths_is_known_before_the_epoch() -> None:
    assert fit(ByNumber(ROWS), KnowsTheLength(), AsksNothing(), epochs=2).global_step == 6


class ValidatesWithAll(Callback):
    def on_validation_start(self, trainer: Any, module: Any) -> None:
        assert len(set(trainer.strategy.gather_objects(trainer.total_batches))) == 1


class StreamOfBatches(Batches, IterableDataset[Any]):
    pass


@pytest.mark.parametrize("kind", [Batches, StreamOfBatches])
def test_a_share_of_an_epoch_is_the_same_batch_on_all_ranks(kind: type[Batches]) -> None:
    data: Any = kind({0: 6, 1: 10}, {0: 6, 1: 10})
    data = DataLoader(data, batch_size=None) if kind is StreamOfBatches else data
    trainer = fit(data, ValidatesWithAll(), val_check_interval=0.5)
    assert (trainer.progress.validations, trainer.global_step) == (2, 6)


class HasALengthOnOneRank(Stream):
    def __len__(self) -> int:
        if dist.get_rank() == 0:
            return 10
        raise TypeError("has no length")


def test_a_length_that_one_rank_alone_has_is_none() -> None:
    trainer = fit(DataLoader(HasALengthOnOneRank(), batch_size=1), ValidatesWithAll())
    assert (trainer.progress.validations, trainer.global_step) == (1, 3)


def test_a_length_that_is_another_one_in_each_epoch_is_asked_anew() -> None:
    class Shrinks(ByNumber):
        def set_epoch(self, epoch: int) -> None:
            self.said = self.given = {rank: rows - (epoch if rank == 0 else 2 * epoch) for rank, rows in ROWS.items()}

    assert fit(Shrinks(ROWS), AsksNothing(), epochs=3).global_step == 3 + 2 + 1


def test_a_rank_without_batches_leaves_nothing_to_train() -> None:
    assert fit(ByNumber({0: 0, 1: 2})).global_step == 0


def test_loaders_with_equal_lengths_cost_no_question() -> None:
    assert fit(loader(4, 1), AsksNothing()).global_step == 4


@pytest.mark.parametrize("given", [{0: 3, 1: 3}, ROWS], ids=["no_rank", "one_rank"])
def test_a_length_that_is_not_reached_ends_the_epoch(given: dict[int, int]) -> None:
    trainer = fit(Batches({0: 6, 1: 6}, given), AsksForEach(), accumulate_grad_batches=2)
    assert (trainer.total_batches, trainer.global_step) == (3, 2)


class Unsized:
    """Some batches, and no length."""

    def __init__(self, given: dict[int, int]) -> None:
        self.batches = Batches({}, given)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def test_a_limit_is_no_length() -> None:
    assert fit(Unsized(ROWS), AsksForEach(), limit_train_batches=5).global_step == 3


def test_a_loader_beside_one_with_a_length_may_still_end_first() -> None:
    loaders = CombinedLoader([ByNumber(dict.fromkeys(ROWS, 4)), Unsized(ROWS)], "min_size")
    assert fit(loaders, AsksForEach(), module=OfTheFirst()).global_step == 3


class OfTheFirst(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch[0], batch_idx)


class Estimate(Sampler[list[int]]):
    """Gives fewer batches than it says on one rank, as samplers that fill batches up to a number of tokens do."""

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[list[int]]:
        return ([row] for row in range(ROWS[dist.get_rank()]))


def test_the_length_of_ones_own_batch_sampler_is_not_relied_on() -> None:
    data = DataLoader(loader(8, 1).dataset, batch_sampler=Estimate())
    assert fit(data, AsksForEach()).global_step == 3
