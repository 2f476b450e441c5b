"""Where in a loader a run is, and how it gets there again.

Owns: one loader being walked, the random generators that have a part in it, its samplers. Does not own: epochs, several
loaders at once, and batches in advance (`data`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from .distributed import rank_zero_warn
from .seed import generator_state, is_generator, isolate_rng, rng_state, set_generator_state, set_rng_state

END = object()
"""What is taken from a loader that has no more."""


class Walk:
    """A loader being walked: the random states it began with, and how many batches it has given since.

    Setting the states back and making the iterator again gives the same order and the same worker seeds; the indices of
    the batches already used are drawn and dropped, so no row is read again. With worker processes the batches
    themselves are, because only that leaves the workers' own generators where they were.
    """

    __slots__ = (
        *("_keeps_workers", "_owners", "_samplers", "before_first", "before_iter", "count", "had_workers"),
        *("is_finished", "iterator", "loader"),
    )

    def __init__(self, loader: Any) -> None:
        self.loader, self.is_finished = loader, False
        self._samplers = samplers_of([loader])
        self._owners, self._keeps_workers = _owners([loader]), _keeps_workers(loader)
        self.iterator: Any = None
        self.before_first: dict[str, Any] | None = None

    def start(self) -> None:
        """Make the iterator, anew when there was one."""
        self.before_iter = {"global": rng_state(), "own": _states_of(self._owners)}
        self.before_first, self.count = None, 0
        self.had_workers = self._keeps_workers and self.loader._iterator is not None
        for sampler in self._samplers:
            if hasattr(sampler, "draw"):  # several processes agree on the order
                sampler.draw()
        self.iterator = iter(self.loader)

    def begin(self) -> None:
        """Take note of the random states before the first batch, at which samplers draw."""
        self.before_first = {"global": rng_state(), "own": _states_of(self._owners)}

    def take(self) -> Any:
        """Return the next batch, or `END`."""
        if not self.count:
            self.begin()
        self.count += 1
        return next(self.iterator, END)

    def state_dict(self) -> dict[str, Any]:
        """Return what `resume` needs."""
        names = ("before_iter", "before_first", "count", "had_workers", "is_finished")
        return {**{name: getattr(self, name) for name in names}, "is_drained": self._is_drained()}

    def _is_drained(self) -> bool:
        """Return whether a data set with a state has given its last row, from which it would begin again."""
        fetcher = getattr(self.iterator, "_dataset_fetcher", None)
        return stateful(self.loader) not in (None, self.loader) and bool(getattr(fetcher, "ended", False))

    def resume(self, state: dict[str, Any], count: int) -> None:
        """Go to where `count` batches have been given; the generators are left anywhere."""
        if state["had_workers"]:
            _start_workers(self.loader)
        set_generators([self.loader], state["before_iter"])
        self.start()
        if state["is_drained"]:
            self.iterator = iter(())
        if state["before_first"] is not None:
            set_generators([self.loader], state["before_first"])
        if count and stateful(self.loader) is None:  # others continue by themselves
            self._skip(count)
        self.before_first, self.count, self.is_finished = state["before_first"], count, state["is_finished"]

    def _skip(self, count: int) -> None:
        iterator: Any = self.iterator
        if _is_map_style(self.loader) and self.loader.num_workers == 0:
            # Only the indices are drawn: no row is read. `_sampler_iter` is torch's, checked with 2.11 to 2.15.
            iterator = getattr(iterator, "_sampler_iter", iterator)
        elif not _is_map_style(self.loader):
            rank_zero_warn(
                f"The loader cannot be asked to continue at batch {count}, so {count} batches are read and dropped. "
                "This is exact if it gives the same batches again; otherwise give it, or its iterable data set when "
                "`num_workers=0`, `state_dict` and `load_state_dict`, as "
                "`torchdata.stateful_dataloader.StatefulDataLoader` has."
            )
        for _ in range(count):
            next(iterator, None)


def samplers_of(loaders: list[Any]) -> list[Any]:
    """Return every sampler and batch sampler of the loaders, each once."""
    batch_samplers = [getattr(loader, "batch_sampler", None) for loader in loaders]
    found = [getattr(owner, "sampler", None) for owner in (*loaders, *batch_samplers)]
    return list({id(sampler): sampler for sampler in (*found, *batch_samplers) if sampler is not None}.values())


def stateful(loader: Any) -> Any:
    """Return what knows and takes the position: the loader, or its iterable data set in this process; else None."""
    dataset = getattr(loader, "dataset", None)
    if _is_map_style(loader) and not _has_state(dataset):
        return None  # even where it could (torchdata's): it would not bring back the workers' random generators
    if _has_state(loader):
        return loader
    is_here = isinstance(dataset, IterableDataset) and not getattr(loader, "num_workers", 0)
    return dataset if is_here and _has_state(dataset) else None


def has_sure_length(loader: Any) -> bool:
    """Return whether a loader gives as many batches as it says: torch's own, one split by rank, or a `Sequence`."""
    samplers = samplers_of([loader])
    if any(hasattr(sampler, "rank") for sampler in samplers):
        return True
    if not isinstance(loader, DataLoader):
        return isinstance(loader, Sequence) and stateful(loader) is None
    plain = _is_map_style(loader) and type(loader).__iter__ is DataLoader.__iter__
    return plain and all(type(sampler).__module__.startswith("torch.utils.data") for sampler in samplers)


def _has_state(owner: Any) -> bool:
    return callable(getattr(owner, "state_dict", None)) and callable(getattr(owner, "load_state_dict", None))


def _is_map_style(loader: Any) -> bool:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    return getattr(loader, "batch_sampler", None) is not None


def generators(loaders: list[Any]) -> dict[str, Any]:
    """Return the states of the global generators, and what `own_states` returns."""
    return {"global": rng_state(), **own_states(loaders)}


def set_generators(loaders: list[Any], state: dict[str, Any]) -> None:
    """Put back what `generators` returned."""
    set_own_states(loaders, state)
    set_rng_state(state["global"])


def own_states(loaders: list[Any]) -> dict[str, Any]:
    """Return the states of the generators that loaders, samplers and data sets have, and whose workers live on."""
    lives = [_keeps_workers(loader) and loader._iterator is not None for loader in loaders]
    return {"own": _states_of(_owners(loaders)), "workers_live": lives}


def set_own_states(loaders: list[Any], state: dict[str, Any]) -> None:
    """Put back what `own_states` returned."""
    for loader, live in zip(loaders, state.get("workers_live", ()), strict=False):
        if live:
            _start_workers(loader)
    for generator, own in zip(own_generators(loaders), state["own"], strict=False):
        set_generator_state(generator, own)


def own_generators(loaders: list[Any]) -> list[Any]:
    """Return the generators that loaders, samplers and data sets have, in the same order every time."""
    return _generators_of(_owners(loaders))


def _keeps_workers(loader: Any) -> bool:
    return bool(getattr(loader, "persistent_workers", False)) and stateful(loader) is not loader


def _start_workers(loader: Any) -> None:
    """Make workers that live on, for that draws a number, which walking a loader that has them does not."""
    if loader._iterator is None:
        with isolate_rng():
            iter(loader)


def _owners(loaders: list[Any]) -> list[Any]:
    """Return all that may hold a generator: the loaders, their data sets, their samplers and what those wrap."""
    samplers = samplers_of(loaders)
    sources = [getattr(sampler, "source", None) for sampler in samplers]
    found = [*loaders, *(getattr(loader, "dataset", None) for loader in loaders), *samplers, *sources]
    return [owner for owner in found if hasattr(owner, "__dict__")]


def _states_of(owners: list[Any]) -> list[Any]:
    return [generator_state(generator) for generator in _generators_of(owners)]


def _generators_of(owners: list[Any]) -> list[Any]:
    """Return the generators that are attributes now, each once, in the same order every time."""
    found = [value for owner in owners for value in vars(owner).values() if is_generator(value)]
    return list({id(generator): generator for generator in found}.values())
