"""Which rows of a loader a process gets.

Owns: splitting loaders over processes. Does not own: the order of rows, which is the user's: only who takes what is
decided here. One process after the other takes the next, so that what all take at once is what one process would take:

    training     rows in turn; ranks get equally many, and as few as needed are repeated at the end
    evaluation   whole batches in turn, each once; a rank may have one batch less than another, or none
    prediction   likewise, so that the outputs of all ranks, in turn, are those of one process

A loader that a process cannot split (an iterable data set, a plain iterable, one with a `DistributedSampler` already)
is left as it is: every process walks its own.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import os
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from .data import mapped, set_epoch
from .distributed import rank_zero_info
from .loading import remake
from .position import samplers_of
from .seed import isolate_rng, worker_init_fn
from .strategies.base import Strategy


def shard(nest: Any, stage: str, strategy: Strategy, parity: bool = False) -> Any:
    """Return the loaders as this rank walks them. A collective.

    Args:
        nest: One loader, or a nest of several.
        stage: "train", "val", "test" or "predict".
        strategy: Knows this rank and the others.
        parity: Split as the reference framework does: training shuffled whatever the user's order, evaluation padded
            with repeated rows.
    """
    return mapped(nest, lambda loader: _split(loader, stage, strategy, parity))


class ShardedSampler(Sampler[Any]):
    """This rank's part of what another sampler gives: rows, or whole batches.

    Args:
        source: A sampler, or a batch sampler.
        strategy: Knows this rank and the others.
        repeats: Begin again at the source's start until every rank has equally many (training).
        trims: Rather leave some out until every rank has equally many (training with `drop_last`).

    Attributes:
        order: What rank 0's source gave last; None where the source gives every rank the same anyhow.
    """

    def __init__(self, source: Any, strategy: Strategy, *, repeats: bool = False, trims: bool = False) -> None:
        self.source = source
        self.strategy = strategy
        self.rank, self.world_size = strategy.global_rank, strategy.world_size
        self.repeats, self.trims = repeats, trims
        self.order: Any = None
        self._is_to_agree = False
        self.sampler = getattr(source, "sampler", None)
        self.batch_size, self.drop_last = getattr(source, "batch_size", None), getattr(source, "drop_last", False)

    def draw(self) -> None:
        """Make the next walk, at its first row, take rank 0's order anew; later walks keep it. That is a collective.

        Not every walk is: a callback may look at a loader on rank 0 alone.
        """
        self._is_to_agree = not is_ordered(self.source) and hasattr(self.source, "__len__")

    def agree(self) -> None:
        """Take rank 0's order until the next draw. A collective.

        Every rank asks its own source too, so that random generators stay alike.
        """
        self.order = self.strategy.broadcast(_compact(list(self.source)))

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to a source that asks for it."""
        set_epoch([self.source, self.sampler], epoch)

    def __len__(self) -> int:
        """Return how many the rank with most gets, so that limits are alike on all ranks."""
        size = len(self.source)
        return size // self.world_size if self.trims else -(-size // self.world_size)

    def __iter__(self) -> Iterator[Any]:
        is_to_agree, self._is_to_agree = self._is_to_agree, False
        return self._walk(is_to_agree)

    def _walk(self, is_to_agree: bool) -> Iterator[Any]:
        if is_to_agree:  # here, after the loader has drawn its own number: random numbers come as with one process
            self.agree()
        yield from itertools.islice(self._everything(), self.rank, None, self.world_size)

    def _everything(self) -> Iterable[Any]:
        order: Iterable[Any] = self.source if self.order is None else self.order
        if not (self.repeats or self.trims) or not hasattr(self.source, "__len__") or not len(self.source):
            return order
        again = itertools.chain.from_iterable(itertools.repeat(order))
        return itertools.islice(again, len(self) * self.world_size)


class _Batches(BatchSampler):
    """Like torch's, but the walk over rows begins when this one does, not at the first batch."""

    def __iter__(self) -> Iterator[list[Any]]:
        rows = iter(self.sampler)
        batches = iter(lambda: list(itertools.islice(rows, self.batch_size)), [])
        return (batch for batch in batches if len(batch) == self.batch_size or not self.drop_last)


def is_ordered(sampler: Any) -> bool:
    """Return whether a sampler gives the same on every rank without being asked: the rows one after the other."""
    return type(getattr(sampler, "sampler", sampler)) is SequentialSampler and type(sampler) in (
        SequentialSampler,
        BatchSampler,
    )


def _compact(order: list[Any]) -> Any:
    try:
        return array("q", order)  # 8 bytes a row
    except (TypeError, OverflowError):  # batches, or names
        return order


def _split(loader: Any, stage: str, strategy: Strategy, parity: bool) -> Any:
    changes: dict[str, Any] = {}
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        rank_zero_info(
            f"The {stage} loader cannot be split over {strategy.world_size} processes: each walks all of it, unless "
            "its data set leaves rows out by `torch.distributed.get_rank()`. A DataLoader of a data set with a length "
            "is split by itself."
        )
    elif not any(isinstance(sampler, DistributedSampler) for sampler in samplers_of([loader])):
        changes = _reference_sampler(loader, stage, strategy) if parity else _sampler(loader, stage, strategy)
    if not isinstance(loader, DataLoader):
        return loader
    own_seeds = not parity or os.environ.get("PL_SEED_WORKERS") == "1"
    if own_seeds and loader.num_workers and loader.worker_init_fn is None:
        changes["worker_init_fn"] = functools.partial(worker_init_fn, rank=strategy.global_rank)
    return changed(loader, **changes) if changes else loader


def _sampler(loader: DataLoader[Any], stage: str, strategy: Strategy) -> dict[str, Any]:
    batches: Any = loader.batch_sampler
    by_row = batches is None or (stage == "train" and type(batches) is BatchSampler)
    training, drops = stage == "train", by_row and bool(loader.drop_last)
    made = ShardedSampler(
        loader.sampler if by_row else batches, strategy, repeats=training and not drops, trims=training and drops
    )
    if not training and not is_ordered(made.source):
        with isolate_rng():
            made.agree()  # once: the order does not matter, only that it is the same
    return {"sampler" if by_row else "batch_sampler": made}


def _reference_sampler(loader: DataLoader[Any], stage: str, strategy: Strategy) -> dict[str, Any]:
    if stage == "predict":
        return {"sampler": ShardedSampler(loader.sampler, strategy)}
    ordinary = isinstance(loader.sampler, RandomSampler | SequentialSampler)
    rows: Any = loader.dataset if ordinary else list(loader.sampler)
    made: Any = DistributedSampler(
        rows,
        num_replicas=strategy.world_size,
        rank=strategy.global_rank,
        shuffle=stage == "train" or not isinstance(loader.sampler, SequentialSampler),
        seed=int(os.environ.get("PL_GLOBAL_SEED", 0)),
    )
    return {"sampler": made if ordinary else _Through(rows, made)}


class _Through(Sampler[Any]):
    """The entries of a list that another sampler chooses."""

    def __init__(self, entries: list[Any], choice: DistributedSampler[Any]) -> None:
        self.entries, self.choice, self.set_epoch, self.rank = entries, choice, choice.set_epoch, choice.rank

    def __len__(self) -> int:
        return len(self.choice)

    def __iter__(self) -> Iterator[Any]:
        return (self.entries[index] for index in self.choice)


def changed(loader: DataLoader[Any], **changes: Any) -> DataLoader[Any]:
    """Return a loader like `loader` with another `sampler`, `batch_sampler` or `worker_init_fn`.

    A class with its own `__init__` is made anew where it takes DataLoader's arguments, for it may keep an iterator.
    """
    sampler = changes.get("sampler")
    if sampler is not None and loader.batch_sampler is not None:
        assert loader.batch_size is not None
        changes["batch_sampler"] = _Batches(changes.pop("sampler"), loader.batch_size, loader.drop_last)
    if type(loader).__init__ is not DataLoader.__init__:
        with contextlib.suppress(TypeError):
            return remake(loader, **changes)
    twin = copy.copy(loader)
    vars(twin).update(changes, _iterator=None)  # DataLoader refuses these attributes after it was made
    return twin
