"""Random numbers: seed them, take their state, put it back.

Owns: the global generators of python, numpy, torch and the devices. Does not own: samplers and loaders (`data`), and
when the state is saved (`checkpoint`).
"""

from __future__ import annotations

import ctypes
import hashlib
import operator
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .distributed import environment_rank, rank_zero_info, rank_zero_only
from .errors import MisconfigurationException

_MAX_SEED = 2**32 - 1  # numpy takes no more
_DEVICES_WITH_GENERATORS = ("cuda", "xpu")
_GENERATORS_OF_PACKAGES = {"tpu": "torch.tpu", "xla": "torch_xla.core.xla_model"}  # torch_tpu's and torch_xla's


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = False) -> int:
    """Seed python, numpy (when imported), torch and all devices with one number. On every rank.

    Args:
        seed: 0 to 2**32 - 1. None: the environment variable PL_GLOBAL_SEED, or 0 when it is not set.
        workers: Give loader workers seeds of their own, different on each rank (see `worker_init_fn`).
        verbose: Log the seed.

    Returns:
        The seed used; it is also written to PL_GLOBAL_SEED, for processes started later.

    Raises:
        MisconfigurationException: The seed is not a whole number in that range.
    """
    source = "seed" if seed is not None else "PL_GLOBAL_SEED"
    given = seed if seed is not None else os.environ.get("PL_GLOBAL_SEED", "0")
    try:
        seed = int(given) if isinstance(given, str) else operator.index(given)
    except (TypeError, ValueError):
        seed = -1
    if not 0 <= seed <= _MAX_SEED:
        raise MisconfigurationException(
            f"{source}={given!r} is not a seed. Accepted: a whole number from 0 to {_MAX_SEED}, "
            f"for example `seed_everything(42)`."
        )
    os.environ["PL_GLOBAL_SEED"] = str(seed)
    os.environ["PL_SEED_WORKERS"] = str(int(workers))
    if verbose:
        rank_zero_info("Seed set to %d", seed)
    _seed_generators(seed, seed)
    return seed


def worker_init_fn(worker_id: int, rank: int | None = None) -> None:
    """Seed a loader worker from the loader's base seed, its own number and the rank. Runs in the worker.

    torch gives worker i of every rank the same seed, and numpy none at all: without this, ranks repeat each other's
    augmentations.

    Args:
        worker_id: As torch's DataLoader passes it.
        rank: Global rank; None: this process's.
    """
    rank = getattr(rank_zero_only, "rank", environment_rank()) if rank is None else rank
    base = torch.initial_seed() - worker_id
    digest = hashlib.sha256(f"{base} {worker_id} {rank}".encode()).digest()
    _seed_generators(int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:12], "little"))


def _seed_generators(seed: int, numpy_seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)  # also every device's generator, at once or when the device is first used
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(numpy_seed)
    if xla := sys.modules.get("torch_xla.core.xla_model"):
        xla.set_rng_state(seed % 2**63)


def rng_state() -> dict[str, Any]:
    """Return the state of all global generators of this process, as data that `weights_only=True` loads.

    numpy's is taken when numpy is imported, a device's when the device is in use: nothing is started.
    """
    state: dict[str, Any] = {"python": _python_state(), "torch": torch.get_rng_state()}
    if numpy := sys.modules.get("numpy"):
        state["numpy"] = _numpy_state(numpy)
    for device in _DEVICES_WITH_GENERATORS:
        module = getattr(torch, device)
        if module.is_initialized():
            state[device] = module.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    for device, name in _GENERATORS_OF_PACKAGES.items():
        if module := sys.modules.get(name):
            state[device] = module.get_rng_state()
    return state


# python and numpy build their states number by number (7 and 40 µs, most of an epoch's boundary), though often nobody
# has drawn since the last time. All the memory that a generator draws from is compared in 1 µs.
_seen: dict[str, tuple[Any, Any]] = {}


def _python_state() -> Any:
    generator = getattr(random.getstate, "__self__", None)
    memory = _memory(generator)
    # `gauss` keeps its second number beside that memory.
    return _unless_seen("python", memory and (memory, getattr(generator, "gauss_next", None)), random.getstate)


def _numpy_state(numpy: Any) -> Any:
    def take() -> list[Any]:
        name, keys, position, has_gauss, cached = numpy.random.get_state()
        return [str(name), torch.from_numpy(keys.astype("int64")), int(position), int(has_gauss), float(cached)]

    generator = getattr(numpy.random.get_state, "__self__", None)
    words: Any = getattr(generator, "_bit_generator", None)
    if type(words) is not numpy.random.MT19937:
        return take()
    # The words and the position in them lie in the bit generator, `randn`'s second number in the generator.
    memory = _memory(generator)
    return _unless_seen("numpy", memory and memory + ctypes.string_at(words.ctypes.state_address, 625 * 4), take)


def _memory(generator: Any) -> bytes:
    """Return the bytes of an object of C; none where its address is not known."""
    known = generator is not None and sys.implementation.name == "cpython"
    return ctypes.string_at(id(generator), type(generator).__basicsize__) if known else b""


def _unless_seen(name: str, memory: Any, take: Callable[[], Any]) -> Any:
    """Return the state as taken the last time if the memory is the same, else take it."""
    if memory and _seen.get(name, (None,))[0] == memory:
        return _seen[name][1]
    state = take()
    _seen[name] = (memory, state)
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned; parts for devices that are not here are left out."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    torch.set_rng_state(state["torch"].cpu())
    if "numpy" in state and (numpy := sys.modules.get("numpy")):
        name, keys, *rest = state["numpy"]
        numpy.random.set_state((name, keys.numpy().astype("uint32"), *rest))
    for device in _DEVICES_WITH_GENERATORS:
        module = getattr(torch, device)
        if device in state and module.is_available():
            for index, device_state in enumerate(state[device][: module.device_count()]):
                module.set_rng_state(device_state.cpu(), index)
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"].cpu())
    for device, name in _GENERATORS_OF_PACKAGES.items():
        if device in state and (module := sys.modules.get(name)):
            module.set_rng_state(state[device])


def is_generator(value: Any) -> bool:
    """Return whether `value` is a generator of random numbers of torch, python or numpy."""
    numpy = sys.modules.get("numpy")
    kinds = (torch.Generator, random.Random)
    return isinstance(value, (*kinds, numpy.random.Generator, numpy.random.RandomState) if numpy else kinds)


def generator_state(generator: Any) -> Any:
    """Return the state of one generator, as data that `weights_only=True` loads."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    return _packed(_bits_of(generator).state)


def set_generator_state(generator: Any, state: Any) -> None:
    """Put back what `generator_state` returned."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate((state[0], tuple(state[1]), state[2]))
    else:
        _bits_of(generator).state = _unpacked(state)


def _bits_of(generator: Any) -> Any:
    return getattr(generator, "bit_generator", None) or generator._bit_generator


def _packed(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _packed(value) for key, value in state.items()}
    if hasattr(state, "dtype"):  # words of 32 or 64 bits
        return [str(state.dtype), torch.from_numpy(state.astype("uint64").view("int64"))]
    return state


def _unpacked(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _unpacked(value) for key, value in state.items()}
    return state[1].numpy().view("uint64").astype(state[0]) if isinstance(state, list) else state


@contextmanager
def isolate_rng() -> Iterator[None]:
    """Put all global generators back on leaving, so that what happens inside changes no later random number."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
