"""Checks of a module before a run: what would fail later, or pass silently, is said now.

Owns: mistakes that can be seen without running anything. Does not own: those that show in the first steps
    (`preflight`).
"""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType
from typing import Any

from .datamodule import LightningDataModule
from .distributed import rank_zero_warn
from .errors import MisconfigurationException, closest
from .hooks import Callback
from .legacy import OLD_HOOKS
from .loading import has_loader
from .module import LightningModule
from .run import Run
from .states import TrainerFn

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


def verify(run: Run) -> None:
    """Check module and data module for the function about to run.

    Raises:
        MisconfigurationException: Something that is needed is missing, or settings clash.
    """
    module, hooks, trainer = run.module, run.hooks, run.trainer
    callbacks = ((callback, Callback) for callback in trainer.callbacks)
    owners = ((module, LightningModule), (hooks.datamodule, LightningDataModule), *callbacks)
    for owner, base in owners if "hooks" in trainer.preflight else ():
        if owner is not None:
            warn_of_misspelt_hooks(owner, base)
    if run.state.fn is TrainerFn.FITTING:
        _verify_fit(run)
    elif run.state.fn is TrainerFn.PREDICTING:
        if not hooks.module_overrides("predict_step") and not hooks.module_overrides("forward"):
            raise MisconfigurationException(
                f"`{type(module).__name__}` has no `predict_step` and no `forward`, which `predict` calls in its "
                "place. Define one of them."
            )
        _need_loader(run, "predict")
    else:
        step, stage = ("test_step", "test") if run.state.fn is TrainerFn.TESTING else ("validation_step", "val")
        _need_method(run, step, f"Define `{step}(self, batch, batch_idx)`.")
        _need_loader(run, stage)


def warn_of_misspelt_hooks(owner: Any, base: type) -> None:
    """Warn of methods that look like a hook but are none: `val_dataloder`, `trainning_step`."""
    others = (*_LOADERS, *_STEPS, "setup", "teardown")
    hooks = [name for name in dir(base) if name.startswith(("on_", "configure_")) or name in others]
    hooks = [name for name in hooks if callable(getattr(base, name))]
    ours = (f"{__package__}.", "torch.")
    own_classes = [cls for cls in type(owner).__mro__ if not f"{cls.__module__}.".startswith(ours)]
    own = {name for cls in own_classes for name in vars(cls)}
    used: set[str] = set()
    for cls in own_classes:
        used.update(*(_names_in(getattr(value, "__code__", None)) for value in vars(cls).values()))
    for name in sorted(own - used):
        works = name in OLD_HOOKS and base is LightningModule
        if name.startswith("_") or hasattr(base, name) or works or not callable(getattr(owner, name, None)):
            continue
        match = closest_hook(name, hooks)
        if match is not None:
            rank_zero_warn(
                f"`{type(owner).__name__}.{name}` is never called. Did you mean `{match}`? If it is a method of your "
                "own, rename it or start its name with `_`. Turn this check off: `Trainer(preflight={'hooks': False})`."
            )


def _names_in(code: Any) -> Iterator[str]:
    """Yield the attributes that a function reads, those that it calls on `self` among them."""
    if isinstance(code, CodeType):
        yield from code.co_names
        for inner in code.co_consts:
            yield from _names_in(inner)


def closest_hook(name: str, hooks: list[str]) -> str | None:
    """Return the hook that `name` is a misspelling of, or None: a known synonym, or one or two letters apart.

    Of a short name one letter: `step` is no `setup`.
    """
    synonyms = {
        "valid_dataloader": "val_dataloader",
        "validation_dataloader": "val_dataloader",
        "valid_step": "validation_step",
        "val_step": "validation_step",
        "train_step": "training_step",
        "testing_step": "test_step",
        "training_dataloader": "train_dataloader",
        "configure_optimizer": "configure_optimizers",
        "prediction_step": "predict_step",
        "testing_dataloader": "test_dataloader",
        # Of callbacks of 1.x.
        "on_epoch_start": "on_train_epoch_start",
        "on_epoch_end": "on_train_epoch_end",
        "on_batch_start": "on_train_batch_start",
        "on_batch_end": "on_train_batch_end",
        "on_keyboard_interrupt": "on_exception",
        "on_init_end": "setup",
        "on_pretrain_routine_start": "on_fit_start",
    }
    if name in synonyms:
        return synonyms[name]
    match = closest(name, hooks)
    return match if match is not None and _distance(name, match) <= (2 if len(match) > 8 else 1) else None


def _distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


def _verify_fit(run: Run) -> None:
    _need_method(run, "training_step", "Define `training_step(self, batch, batch_idx)` and return the loss.")
    example = "for example `torch.optim.AdamW(self.parameters(), lr=1e-3)`"
    _need_method(run, "configure_optimizers", f"Return an optimizer from it, {example}.")
    name, has_step = type(run.module).__name__, run.hooks.module_overrides("validation_step")
    given = has_loader(run, "val")
    if has_step and not given:
        rank_zero_warn(f"`{name}` has a `validation_step` but there is no validation loader, so nothing is validated.")
    elif given and not has_step:
        rank_zero_warn(f"There is a validation loader but `{name}` has no `validation_step`, so nothing is validated.")
    if not run.module.automatic_optimization and run.parity:
        _verify_manual(run.trainer)


def _verify_manual(trainer: Any) -> None:
    if trainer.gradient_clip_val:
        raise MisconfigurationException(
            f"`Trainer(gradient_clip_val={trainer.gradient_clip_val})` does not act under manual optimisation with "
            "parity. Call `self.clip_gradients(...)` in `training_step`."
        )
    if trainer.accumulate_grad_batches != 1:
        raise MisconfigurationException(
            f"`Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches})` does not act under manual "
            "optimisation. Step every so many batches in `training_step`."
        )


def _need_method(run: Run, method: str, remedy: str) -> None:
    if not run.hooks.module_overrides(method):
        raise MisconfigurationException(
            f"`{type(run.module).__name__}` has no `{method}`, which `trainer.{run.state.fn}()` needs. {remedy}"
        )


def _need_loader(run: Run, stage: str) -> None:
    if not has_loader(run, stage):
        raise MisconfigurationException(
            f"`trainer.{run.state.fn}()` has no data. Pass a loader, a data module, or define "
            f"`{type(run.module).__name__}.{stage}_dataloader`."
        )
