"""From the user's loader methods to what the loops walk.

Owns: who gives a loader, its limits, how often to validate. Does not own: walking (`data`) and splitting (`sharding`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from .data import CombinedLoader, Feed, Together, flattened, leaves, length, limited, mapped
from .distributed import rank_zero_warn
from .errors import MisconfigurationException
from .run import Loaders, Run

INFINITE = float("inf")


def loader_source(run: Run, stage: str) -> Any:
    """Return the loaders of a stage ("train", "val", ...): those passed in, or what the overridden method gives.

    Raises:
        TypeError: The method returned None, or something in its nest cannot be walked.
    """
    nest = run.trainer.given_loaders.get(stage)
    if nest is None:
        owner = run.hooks.owner_of(f"{stage}_dataloader")
        if owner is None:
            return None
        nest = run.hooks.wrap(name := f"{stage}_dataloader", getattr(owner, name), owner)()
        if nest is None:
            raise TypeError(
                f"`{type(owner).__name__}.{stage}_dataloader` returned None. Return a loader, or `[]` for no data."
            )
    check_iterable(nest, stage)
    if run.parity:  # The reference makes an iterator only to see whether it can.
        _ = [iter(loader) for loader in flattened(nest) if not isinstance(loader, DataLoader)]
    return nest


def has_loader(run: Run, stage: str) -> bool:
    """Return whether somebody gives loaders for a stage."""
    given = run.trainer.given_loaders.get(stage)
    return given is not None or run.hooks.owner_of(f"{stage}_dataloader") is not None


def load_training(run: Run) -> None:
    """Load the training loaders and decide how often to validate.

    Raises:
        MisconfigurationException: There is no training loader, or an interval does not fit its length.
        ValueError: `val_check_interval` is larger than the epoch.
    """
    trainer = run.trainer
    if run.feed is not None or run.train_loaded_at < 0:  # else a resumed run has loaders of an earlier epoch
        run.train_loaded_at = run.progress.epoch
    with _epoch_is(run, run.train_loaded_at):
        nest = loader_source(run, "train")
    if nest is None:
        raise MisconfigurationException(
            f"`fit` needs training data. Pass a loader (`trainer.fit(model, loader)`), a data module, or define "
            f"`{type(run.module).__name__}.train_dataloader`."
        )
    if trainer.overfit_batches:
        nest = mapped(nest, _in_order)
    nest = trainer.shard(nest, "train")
    if run.feed is not None:
        run.feed.close()
    run.feed = Feed(nest, trainer.train_mode, ranks=run.strategy)
    combined, loaders, limit = run.feed.combined, run.feed.loaders, trainer.limit_train_batches
    limits = [limited("limit_train_batches", length(loader), limit) for loader in loaders]
    if combined is None:
        run.feed.limit = limits[0]
    elif combined.mode == "sequential":
        raise ValueError(
            "CombinedLoader(mode='sequential') serves evaluation only. Train with 'max_size_cycle', 'min_size' or "
            "'max_size'."
        )
    else:
        combined.limits = limits
    run.feed.agree_on_length()
    trainer.loaders["train"] = Loaders(nest, loaders, [run.feed.size()])
    _set_interval(run)


@contextmanager
def _epoch_is(run: Run, epoch: float) -> Iterator[None]:
    """Let `current_epoch` be what it was when the loaders in use were made."""
    now, run.progress.epoch = run.progress.epoch, int(epoch)
    try:
        yield
    finally:
        run.progress.epoch = now


def _set_interval(run: Run) -> None:
    trainer, size = run.trainer, run.feed.size()
    interval = trainer.val_check_interval
    run.val_check_seconds = trainer.val_check_seconds
    if run.val_check_seconds is not None:
        return
    if isinstance(interval, int) and not isinstance(interval, bool):
        run.val_check_batch = interval
        if interval > size and trainer.check_val_every_n_epoch is not None:
            raise ValueError(
                f"`Trainer(val_check_interval={interval})` is more than the {int(size)} training batches of an epoch. "
                f"Use at most that, a share such as 0.5, or `check_val_every_n_epoch=None` to count across epochs."
            )
    elif size == INFINITE:
        if interval != 1.0:
            raise MisconfigurationException(
                f"`Trainer(val_check_interval={interval})` is a share of an epoch, but the training loader has no "
                "length. Use a number of batches, 1.0 (at the end of the epoch), or a time."
            )
        run.val_check_batch = INFINITE
    else:
        run.val_check_batch = max(1, int(size * interval))


def load_loaders(run: Run, stage: str, limit_name: str) -> Loaders | None:
    """Load the evaluation loaders of a stage, with the number of batches to take of each."""
    trainer = run.trainer
    limit = getattr(trainer, limit_name)
    nest = None if limit == 0 else loader_source(run, stage)
    if nest is None:
        return None
    if stage == "val" and trainer.overfit_batches:
        nest = mapped(nest, _in_order)
    if stage == "predict" and not isinstance(nest, CombinedLoader):
        nest = mapped(nest, _whole)
    nest = trainer.shard(nest, stage)
    loaders = flattened(nest)
    limits = [limited(limit_name, length(loader), limit) for loader in loaders]
    trainer.loaders[stage] = loaded = Loaders(nest, loaders, limits)
    if not isinstance(nest, CombinedLoader) or nest.mode == "sequential":
        return loaded
    if stage == "predict":
        raise ValueError(
            f"`trainer.predict` walks loaders one after the other, not by CombinedLoader(mode={nest.mode!r}). "
            "Pass the loaders as a list."
        )
    nest.limits = limits
    return Loaders(nest, [Together(nest)], [nest.size()])


def check_iterable(nest: Any, stage: str) -> None:
    """Refuse what cannot be walked.

    Raises:
        TypeError: An entry is no iterable.
    """
    for loader in leaves(nest):
        if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
            raise TypeError(
                f"The {stage} loader is a `{type(loader).__name__}`, which cannot be walked. "
                "Accepted are a DataLoader, any iterable, and nests of them; return it, not its class."
            )


def _in_order(loader: Any) -> Any:
    """Return a loader without shuffling, for `overfit_batches`: the same few batches in every epoch."""
    if not isinstance(loader, DataLoader) or not isinstance(getattr(loader, "sampler", None), RandomSampler):
        return loader
    rank_zero_warn("`overfit_batches` turns the shuffling of the loader off, so that the same batches come again.")
    return remake(loader, sampler=SequentialSampler(loader.dataset))  # type: ignore[arg-type]


def _whole(loader: Any) -> Any:
    """Return a loader that keeps its last batch: every row is predicted."""
    drops = isinstance(loader, DataLoader) and loader.drop_last and loader.batch_size is not None
    return remake(loader, sampler=loader.sampler, drop_last=False) if drops else loader


def remake(loader: DataLoader[Any], **changes: Any) -> DataLoader[Any]:
    """Return a loader like `loader` with some arguments changed (`sampler` or `batch_sampler` among them)."""
    names = (
        *("dataset", "batch_size", "num_workers", "collate_fn", "pin_memory", "drop_last", "timeout", "generator"),
        *("worker_init_fn", "prefetch_factor", "persistent_workers", "pin_memory_device", "multiprocessing_context"),
    )
    arguments = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    if "batch_sampler" in changes or loader.batch_size is None:
        for name in ("batch_size", "drop_last"):
            arguments.pop(name, None)
        if "batch_sampler" not in changes:
            arguments["batch_size"] = None
    return type(loader)(**{**arguments, **changes})
