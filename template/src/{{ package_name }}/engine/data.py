"""Loaders: how many batches they give, how several are combined, and how a run continues in the middle of one.

Owns: `CombinedLoader`, limits, and `Feed`, which walks a loader and can say where it is.
Does not own: moving batches to a device (`run`) and splitting over processes (`sharding`).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .distributed import rank_zero_warn
from .errors import EndsAtCaller, MisconfigurationException
from .position import END, Walk, generators, has_sure_length, samplers_of, set_generators, stateful
from .seed import set_rng_state

MODES = ("max_size_cycle", "min_size", "max_size", "sequential")
Nest = Any


def is_loader(value: Any) -> bool:
    """Return whether `value` is one loader (any iterable, so also a list of numbers) rather than a nest of several."""
    if isinstance(value, (list, tuple)):
        return all(isinstance(child, (int, float, str)) for child in value)
    return not isinstance(value, Mapping) or isinstance(value, CombinedLoader)


def leaves(nest: Nest) -> list[Any]:
    """Return the loaders of a nest of dicts, lists and tuples, in order."""
    if is_loader(nest):
        return [nest]
    children = nest.values() if isinstance(nest, Mapping) else nest
    return [leaf for child in children for leaf in leaves(child)]


def rebuild(nest: Nest, values: Iterator[Any]) -> Nest:
    """Return the nest with its loaders replaced by the next of `values`."""
    if is_loader(nest):
        return next(values)
    if isinstance(nest, Mapping):
        return {key: rebuild(child, values) for key, child in nest.items()}
    if isinstance(nest, tuple) and hasattr(nest, "_fields"):
        return type(nest)(*(rebuild(child, values) for child in nest))
    return type(nest)(rebuild(child, values) for child in nest)


def mapped(nest: Nest, change: Callable[[Any], Any]) -> Nest:
    """Return a nest, or a `CombinedLoader`, with every loader as `change` returns it."""
    if isinstance(nest, CombinedLoader):
        return CombinedLoader(mapped(nest.iterables, change), nest.mode)
    return rebuild(nest, iter([change(loader) for loader in leaves(nest)]))


def flattened(nest: Nest) -> list[Any]:
    """Return the loaders of a nest, or of a `CombinedLoader`, in order."""
    return nest.flattened if isinstance(nest, CombinedLoader) else leaves(nest)


def set_epoch(owners: list[Any], epoch: int) -> None:
    """Tell those that ask for it which epoch begins."""
    for owner in owners:
        take = getattr(owner, "set_epoch", None)
        if callable(take):
            take(epoch)


def length(loader: Any) -> float:
    """Return the number of batches of one loader; `inf` when it cannot say."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return float("inf")


def limited(name: str, batches: float, limit: int | float | None) -> float:
    """Apply a `limit_*_batches` argument to a loader's length.

    Args:
        name: Of the argument, for errors.
        batches: Length of the loader, `inf` when unknown.
        limit: int: that many at most; float in [0, 1]: that share, rounded down; None: all.

    Raises:
        MisconfigurationException: A share of an unknown length, or one that leaves nothing of something.
    """
    if limit is None or (limit == 1.0 and isinstance(limit, float)):
        return batches
    if isinstance(limit, int):
        return min(batches, limit)
    if limit == 0.0:
        return 0
    if batches == float("inf"):
        raise MisconfigurationException(
            f"`Trainer({name}={limit})` asks for a share of a loader that has no length. Use a whole number of batches."
        )
    share = int(batches * limit)
    if share == 0 and batches > 0:
        raise MisconfigurationException(
            f"`Trainer({name}={limit})` of {int(batches)} batches leaves none. Use at least {1.0 / batches:.3g}, "
            "or a whole number of batches."
        )
    return share


class CombinedLoader:
    """Walk several loaders at once.

    Args:
        iterables: Any nest of dicts, lists and tuples of loaders (any iterables).
        mode: "min_size" stops with the shortest; "max_size" with the longest, filling None; "max_size_cycle" with the
            longest, starting shorter ones again; "sequential" one after the other.

    Yields:
        (batch, batch_idx, dataloader_idx): the batch has the nest of `iterables`; in sequential mode it is one
        loader's.
    """

    def __init__(self, iterables: Nest, mode: str = "min_size") -> None:
        if mode not in MODES:
            with EndsAtCaller():
                raise ValueError(f"CombinedLoader(mode={mode!r}): accepted are {', '.join(MODES)}.")
        self.iterables = iterables
        self.mode = mode
        self.limits: list[float] | None = None
        """Most batches of each loader; in the modes that walk together they only set the length of the whole."""
        self.walks: list[Walk] = []

    @property
    def flattened(self) -> list[Any]:
        """The loaders in order."""
        return leaves(self.iterables)

    @property
    def batch_sampler(self) -> Any:
        """The nest of batch samplers, for parity with a loader."""
        return mapped(self.iterables, lambda loader: getattr(loader, "batch_sampler", None))

    @property
    def sampler(self) -> Any:
        """The nest of samplers."""
        return mapped(self.iterables, lambda loader: getattr(loader, "sampler", None))

    def lengths(self) -> list[float]:
        """Return each loader's number of batches after its limit."""
        sizes = [length(loader) for loader in self.flattened]
        return [min(size, limit) for size, limit in zip(sizes, self.limits, strict=True)] if self.limits else sizes

    def size(self) -> float:
        """Return the number of batches of a whole walk; `inf` when unknown."""
        sizes = self.lengths()
        combine = sum if self.mode == "sequential" or not sizes else min if self.mode == "min_size" else max
        return combine(sizes)

    def __len__(self) -> int:
        size = self.size()
        if size == float("inf"):
            raise NotImplementedError("One of the loaders has no length, so their combination has none.")
        return int(size)

    def __iter__(self) -> Iterator[tuple[Any, int, int]]:
        if self.mode == "sequential":
            return self._sequential()
        self.walks = [Walk(loader) for loader in self.flattened]
        for walk in self.walks:
            walk.start()
        return self.together()

    def _sequential(self) -> Iterator[tuple[Any, int, int]]:
        for index, (loader, limit) in enumerate(zip(self.flattened, self.lengths(), strict=True)):
            if limit == 0:
                continue
            for batch_idx, batch in enumerate(loader):
                yield batch, batch_idx, index
                if batch_idx + 1 >= limit:
                    break

    def together(self) -> Iterator[tuple[Any, int, int]]:
        """Yield from where the `walks` are."""
        for batch_idx in range(sys.maxsize):
            batches = [self._next_of(walk) for walk in self.walks]
            finished = [walk.is_finished for walk in self.walks]
            if all(finished) or (self.mode == "min_size" and any(finished)):
                return
            yield rebuild(self.iterables, iter(batches)), batch_idx, 0

    def _next_of(self, walk: Walk) -> Any:
        """Return the next batch of one loader; None when it is at its end, unless it starts again."""
        batch = walk.take()
        if batch is not END:
            return batch
        walk.is_finished = True
        if self.mode != "max_size_cycle" or all(other.is_finished for other in self.walks):
            return None
        walk.start()
        batch = walk.take()
        return None if batch is END else batch


class Together:
    """The batches of a `CombinedLoader` whose loaders are walked at once, as of one loader."""

    def __init__(self, combined: CombinedLoader) -> None:
        self.combined = combined

    def __iter__(self) -> Iterator[Any]:
        return (item[0] for item in self.combined)


class Feed:
    """Walks the training loader, epoch by epoch, and can continue where another run stopped.

    An epoch ends on all ranks with the first that has no more batches, for the others would wait for its gradients.
    As it begins they take the shortest of their lengths; where one cannot be relied on they ask before each batch, too.

    Args:
        loader: A loader, a nest of them, or a `CombinedLoader`.
        mode: Of a nest; see `CombinedLoader`.
        ranks: The strategy, which knows the other ranks; None: there are none.

    Attributes:
        loaders: The loaders, flattened.
        limit: Most batches of an epoch.
    """

    def __init__(self, loader: Nest, mode: str = "max_size_cycle", ranks: Any = None) -> None:
        self.loader = loader if is_loader(loader) else CombinedLoader(loader, mode)
        self.combined = self.loader if isinstance(self.loader, CombinedLoader) else None
        self.loaders = flattened(self.loader)
        self.limit = float("inf")
        self._agreed: float | None = None  # the size for all ranks
        self._ranks: Any = ranks if ranks is not None and ranks.is_distributed else None
        self._walk = Walk(self.loader)
        self._iterator: Any = None
        self._resume: dict[str, Any] | None = None  # the state to go on from
        self._ahead: list[Any] = []  # batches that were fetched and not yet given out
        self._is_at_end = False  # the epoch's last batch was given out
        self._asks_each = False  # the other ranks, before each batch, whether they have one too

    def size(self) -> float:
        """Return the number of batches of one epoch after the limit; `inf` when unknown."""
        return min(length(self.loader), self.limit) if self._agreed is None else self._agreed

    def rows_per_batch(self) -> int | None:
        """Return the rows of every batch but the last, where the loader says so."""
        rows = getattr(self.loader, "batch_size", None)
        return rows if isinstance(rows, int) else None

    def set_epoch(self, epoch: int) -> None:
        """Tell every sampler, batch sampler and loader that asks for it which epoch begins. A collective."""
        set_epoch([*samplers_of(self.loaders), *self.loaders], epoch)
        self.agree_on_length()

    def agree_on_length(self) -> None:
        """Take the shortest length of all ranks, or none if one has none. A collective."""
        if self._ranks is None:
            return
        self._agreed = None
        own, is_sure = self.size(), all(map(has_sure_length, self.loaders))
        shortest, is_unsure = self._ranks.all_max([1 if own == float("inf") else -int(own), not is_sure])
        self._agreed = float("inf") if shortest > 0 else -shortest
        self._asks_each = shortest > 0 or bool(is_unsure)

    def open(self) -> None:
        """Make the iterator of the next epoch, unless it is there already."""
        if self._iterator is None:
            self._is_at_end = False
            if self.combined is not None:
                self._iterator = iter(self.combined)
            else:
                self._walk.start()
                self._iterator = self._walk.iterator

    def close(self) -> None:
        """Drop the iterator (and its workers, unless they are persistent)."""
        self._iterator = self._walk.iterator = None
        self._ahead = []
        if self.combined is not None:
            self.combined.walks = []

    def batches(self, done: int = 0) -> Iterator[tuple[Any, bool]]:
        """Yield (batch, is_last) for the rest of the epoch; `close` ends it, wherever it was left.

        Args:
            done: Batches of this epoch that were used before.
        """
        if self._resume is not None and self._resume["walks"]:
            self._continue(self._resume, done)
        else:
            self.start()  # a checkpoint of the epoch's start, before there was an iterator
            was_open = self._iterator is not None
            self.open()
            if was_open and self.combined is None:  # else nobody but the iterator has drawn, and this costs 40 µs
                self._walk.begin()
        iterator = (item[0] for item in self._iterator) if self.combined is not None else self._iterator
        size = self.size()
        if self._is_at_end:
            return
        if size != float("inf") and not self._asks_each and not self._is_stateful():
            iterator, self._ahead = itertools.chain(self._ahead, iterator), []  # from a run that had to ask
            for index, batch in zip(range(done, int(size)), iterator, strict=False):
                yield batch, index == size - 1
        else:
            rest = max(0, int(size) - done - len(self._ahead)) if self._is_cut() else None
            yield from self._unknown(itertools.islice(iterator, rest))

    def _unknown(self, iterator: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
        """Walk a loader of which one batch is fetched ahead, to know which is the last."""
        batch = self._ahead.pop() if self._ahead else self._take(iterator)
        while batch is not END:
            following = self._take(iterator)
            self._is_at_end = following is END
            self._ahead = [] if self._is_at_end else [following]
            yield batch, self._is_at_end
            batch = following

    def _is_stateful(self) -> bool:
        return any(stateful(loader) is not None for loader in self.loaders)

    def _is_cut(self) -> bool:
        """Return whether a limit, or another rank, ends the epoch before the loader does."""
        combined = self.combined
        whole = self.loader if combined is None else CombinedLoader(combined.iterables, combined.mode)
        return self.size() < length(whole)

    def _take(self, iterator: Iterator[Any]) -> Any:
        batch = next(iterator, END)
        return batch if not self._asks_each or self._ranks.reduce_boolean_decision(batch is not END) else END

    # A position in a checkpoint.

    def state_dict(self, rng: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what `load_state_dict` needs to continue, in this epoch or with the next, on a fresh loader.

        Args:
            rng: State of the global generators to continue with, when it is not the present one.
        """
        now = generators(self.loaders)
        walks = self.combined.walks if self.combined is not None else [self._walk]
        starts_afresh = self._is_at_end and self._is_cut()
        owners = [] if starts_afresh else map(stateful, self.loaders)
        return {
            "walks": [walk.state_dict() for walk in walks if walk.iterator is not None],
            "now": now if rng is None else {**now, "global": rng},
            "ahead": list(self._ahead),
            "is_at_end": self._is_at_end,
            "loaders": [owner.state_dict() if owner is not None else None for owner in owners],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a position back; `start` or the next `batches(done)` continues from it."""
        self._resume = state
        for loader, own in zip(self.loaders, state.get("loaders", []), strict=False):
            owner = stateful(loader)
            if own is not None and owner is not None:
                owner.load_state_dict(own)
                if state["is_at_end"] and owner is loader:
                    iter(loader)  # torchdata's makes one more to find out; here it shifts no random numbers
            if getattr(loader, "persistent_workers", False) and loader.num_workers:
                rank_zero_warn(
                    "`persistent_workers=True`: what the workers' random generators had become is not in the "
                    "checkpoint. The resume is exact if the data set draws no random numbers, or without this option."
                )

    def start(self) -> None:
        """Put all generators where they were when a checkpoint was written between two epochs."""
        if self._resume is not None:
            set_generators(self.loaders, self._resume["now"])
            self._resume = None

    def restore_global(self) -> None:
        """Put the global generators where they were when the checkpoint was written."""
        if self._resume is not None:
            set_rng_state(self._resume["now"]["global"])

    def _continue(self, state: dict[str, Any], done: int) -> None:
        self._resume = None
        self.close()
        self._ahead, self._is_at_end = list(state["ahead"]), state["is_at_end"]
        if self._is_at_end and self._is_stateful():
            self._iterator = iter(())
        elif self.combined is not None:
            self.combined.walks = [Walk(loader) for loader in self.loaders]
            for walk, saved in zip(self.combined.walks, state["walks"], strict=True):
                walk.resume(saved, saved["count"])
            self._iterator = self.combined.together()
        else:
            self._walk.resume(state["walks"][0], done + len(self._ahead))
            self._iterator = self._walk.iterator
        set_generators(self.loaders, state["now"])
