"""Some steps of a run that leave no trace.

Owns: what is put back after a trial, and the run that a trial works on. Does not own: what is tried.

    with unchanged(run):                      # weights, modes, attributes, optimizers, counters, generators
        with beside(run, callback, max_steps=3) as trial:
            fit(trial)                        # the module's hooks, one callback, no logger
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..data import flattened
from ..dispatch import HookTable
from ..distributed import rank_zero_warn
from ..errors import MisconfigurationException, _TunerExitException, did_you_mean
from ..hooks import Callback
from ..loggers import DummyLogger
from ..metrics import CurrentMetrics
from ..module import LightningModule
from ..position import own_generators
from ..progress import FitProgress
from ..results import Results
from ..run import Run
from ..seed import generator_state, rng_state, set_generator_state, set_rng_state

_INTERNAL = frozenset(vars(nn.Module())) | {"_trainer", "_results"}


class Finder(Callback):
    """What searches in a run; one that the `Tuner` has made ends the run with the search."""

    role = "tuner"
    SUPPORTED_MODES: tuple[str, ...] = ()
    early_exit = False

    def __init__(self, mode: str) -> None:
        super().__init__()
        self._mode = mode.lower()
        if self._mode not in self.SUPPORTED_MODES:
            accepted = " and ".join(map(repr, self.SUPPORTED_MODES))
            hint = did_you_mean(self._mode, self.SUPPORTED_MODES)
            raise MisconfigurationException(f"`mode={mode!r}`: accepted are {accepted}.{hint}")

    def find(self, trainer: Any, search: Callable[[Run], None], only_tried: str) -> None:
        """Call `search`, unless this run only tries the code, which `only_tried` says then."""
        if trainer.fast_dev_run:
            rank_zero_warn(only_tried)
        else:
            search(trainer.run)
        if self.early_exit:
            raise _TunerExitException


@contextmanager
def unchanged(run: Run) -> Iterator[None]:
    """Put everything back as it was when the context is left: module, data module, optimizers, counters, generators.

    Weights are kept in host memory meanwhile. Attributes are put back when they are numbers, text, tensors, generators
    or lists, dicts and sets (with the elements they had); other objects are not looked into.
    """
    trainer, module = run.trainer, run.module
    progress = dataclasses.replace(run.progress)
    stage, results = run.state.stage, run.hooks.results
    weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in _tensors(module)}
    modes = [(child, child.training) for child in module.modules()]
    owners = [*module.modules(), *([] if run.datamodule is None else [run.datamodule])]
    put_back = [_attributes(owner) for owner in owners]
    optimizers = [copy.deepcopy(optimizer.state_dict()) for optimizer in run.optimizers]
    precision = copy.deepcopy(run.precision.state_dict())
    loaders = [loader for nest in trainer.given_loaders.values() for loader in flattened(nest)]
    random = [(generator, generator_state(generator)) for generator in own_generators(loaders)]
    random_of_all = rng_state()
    try:
        with restored(trainer):
            yield
    finally:
        for field in dataclasses.fields(progress):
            setattr(run.progress, field.name, getattr(progress, field.name))
        with torch.no_grad():
            for name, tensor in _tensors(module):
                tensor.copy_(weights[name])
        for restore in put_back:
            restore()
        for child, mode in modes:
            child.training = mode
        module.zero_grad(set_to_none=True)
        for optimizer, state in zip(run.optimizers, optimizers, strict=True):
            optimizer.load_state_dict(state)
        if precision:
            run.precision.load_state_dict(precision)
        run.state.stage, run.hooks.results = stage, results
        module._share("_results", results)
        for generator, state in random:
            set_generator_state(generator, state)
        set_rng_state(random_of_all)


@contextmanager
def restored(trainer: Any) -> Iterator[None]:
    """Give the trainer the attributes back that it had."""
    kept = {**vars(trainer), "loaders": dict(trainer.loaders)}
    try:
        yield
    finally:
        vars(trainer).clear()
        vars(trainer).update(kept)


@contextmanager
def beside(run: Run, *callbacks: Callback, **settings: Any) -> Iterator[Run]:
    """Yield a run with the same module, data, devices and optimizers, but counters, hooks and metrics of its own.

    Args:
        run: The run in progress.
        callbacks: The only ones that are called; the module's own hooks are called as always.
        settings: Attributes of the trainer for the time of the trial, e.g. `max_steps=3`.
    """
    trainer = run.trainer
    progress = FitProgress()
    train, evaluation = (Results(training, progress) for training in (True, False))
    for results in (train, evaluation):
        results.on_rank_zero = run.strategy.is_global_zero
        results.sync_step = run.train_results.sync_step
    trial = dataclasses.replace(
        run, hooks=HookTable(trainer, run.module, run.datamodule, callbacks, base=LightningModule), progress=progress,
        loggers=[], train_results=train, eval_results=evaluation, schedulers=[], feed=None, val=None, evaluation=None,  # type: ignore[arg-type]
        resumed=False, seen_batches={}, plateau_steps={},
    )  # fmt: skip
    changed = {
        "run": trial, "progress": progress, "metrics": CurrentMetrics(), "history_rows": [],
        "loaders": dict(trainer.loaders), "callbacks": list(callbacks),
        "loggers": [DummyLogger() for _ in trainer.loggers],
        "should_stop": False, "max_epochs": -1, "min_epochs": None, "min_steps": None, "limit_val_batches": 0,
        "num_sanity_val_steps": 0, "reload_dataloaders_every_n_epochs": 0,
        "val_check_interval": 1.0, "val_check_seconds": None, "check_val_every_n_epoch": 1, **settings,
    }  # fmt: skip
    with restored(trainer):
        vars(trainer).update(changed)
        try:
            yield trial
        finally:
            if trial.feed is not None:
                trial.feed.close()


def holders(run: Run, name: str) -> list[Any]:
    """Return who has an attribute or hyper-parameter `name`: the module, its hparams, the data module, its hparams."""
    owners = [owner for owner in (run.module, run.datamodule) if owner is not None]
    found = [owner for owner in owners if hasattr(owner, name)]
    return found + [owner.hparams for owner in owners if name in (owner.hparams or {})]


def set_attribute(run: Run, name: str, value: Any) -> None:
    """Set `name` everywhere it is held."""
    for holder in holders(run, name):
        if isinstance(holder, dict):
            holder[name] = value
        else:
            setattr(holder, name, value)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())


def _attributes(owner: Any) -> Callable[[], None]:
    """Return a function that puts the plain attributes of `owner` back as they are now."""
    values = {name: value for name, value in vars(owner).items() if name not in _INTERNAL}
    contents = {name: _copy(value) for name, value in values.items()}

    def restore() -> None:
        for name in [name for name in vars(owner) if name not in _INTERNAL and name not in values]:
            del vars(owner)[name]
        for name, value in values.items():
            vars(owner)[name] = value
            _set_contents(value, contents[name])

    return restore


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, torch.Generator):
        return value.get_state()
    return copy.copy(value) if isinstance(value, (list, dict, set)) else None


def _set_contents(value: Any, content: Any) -> None:
    """Put the content of a container, tensor or generator back, in the very same object."""
    if isinstance(value, Tensor):
        value.data.copy_(content)
    elif isinstance(value, torch.Generator):
        value.set_state(content)
    elif isinstance(value, list):
        value[:] = content
    elif isinstance(value, (dict, set)):
        value.clear()
        value.update(content)
