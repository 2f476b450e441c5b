"""Checks of a module before a run: what would fail later, or pass silently, is said now.

Owns: mistakes that can be seen without running anything. Does not own: those that show in the first steps
    (`preflight`).
"""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType
from typing import Any

from .datamodule import LightningDataModule
from .dispatch import overrides
from .distributed import rank_zero_warn
from .errors import MisconfigurationException, closest
from .hooks import Callback, DataHooks
from .legacy import OLD_HOOKS
from .module import LightningModule
from .states import TrainerFn

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


def verify(trainer: Any, module: Any, datamodule: Any) -> None:
    """Check module and data module for the function about to run.

    Raises:
        MisconfigurationException: Something that is needed is missing, or settings clash.
    """
    fn = trainer.state.fn
    owners = ((module, LightningModule), (datamodule, LightningDataModule), *((c, Callback) for c in trainer.callbacks))
    for owner, base in owners if "hooks" in trainer.preflight else ():
        if owner is not None:
            warn_of_misspelt_hooks(owner, base)
    if fn is TrainerFn.FITTING:
        _verify_fit(trainer, module, datamodule)
    elif fn in (TrainerFn.VALIDATING, TrainerFn.TESTING):
        _verify_evaluation(trainer, module, datamodule, str(fn))
    elif fn is TrainerFn.PREDICTING:
        if not overrides(module, "predict_step", LightningModule) and not overrides(module, "forward", LightningModule):
            raise MisconfigurationException(
                f"`{type(module).__name__}` has no `predict_step` and no `forward`, which `predict` calls in its "
                "place. Define one of them."
            )
        _need_loader(trainer, module, datamodule, "predict", "predict")


def warn_of_misspelt_hooks(owner: Any, base: type) -> None:
    """Warn of methods that look like a hook but are none: `val_dataloder`, `trainning_step`."""
    hooks = [name for name in dir(base) if not name.startswith("_") and callable(getattr(base, name))]
    hooks = [
        name
        for name in hooks
        if name.startswith(("on_", "configure_")) or name in (*_LOADERS, *_STEPS, "setup", "teardown")
    ]
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


def _verify_fit(trainer: Any, module: Any, datamodule: Any) -> None:
    name = type(module).__name__
    for method, remedy in (
        ("training_step", "Define `training_step(self, batch, batch_idx)` and return the loss."),
        (
            "configure_optimizers",
            "Return an optimizer from it, for example `torch.optim.AdamW(self.parameters(), lr=1e-3)`.",
        ),
    ):
        if not overrides(module, method, LightningModule):
            raise MisconfigurationException(f"`{name}` has no `{method}`, which `fit` needs. {remedy}")
    has_step = overrides(module, "validation_step", LightningModule)
    given = trainer.given_loaders.get("val") is not None or any(
        owner is not None and overrides(owner, "val_dataloader", base)
        for owner, base in ((datamodule, DataHooks), (module, LightningModule))
    )
    if has_step and not given:
        rank_zero_warn(f"`{name}` has a `validation_step` but there is no validation loader, so nothing is validated.")
    elif given and not has_step:
        rank_zero_warn(f"There is a validation loader but `{name}` has no `validation_step`, so nothing is validated.")
    if not module.automatic_optimization and trainer.parity:
        _verify_manual(trainer)


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


def _verify_evaluation(trainer: Any, module: Any, datamodule: Any, fn: str) -> None:
    step, stage = ("test_step", "test") if fn == "test" else ("validation_step", "val")
    if not overrides(module, step, LightningModule):
        raise MisconfigurationException(
            f"`{type(module).__name__}` has no `{step}`, which `trainer.{fn}()` needs. Define `{step}(self, batch, "
            "batch_idx)`."
        )
    _need_loader(trainer, module, datamodule, stage, fn)


def _need_loader(trainer: Any, module: Any, datamodule: Any, stage: str, fn: str) -> None:
    method = f"{stage}_dataloader"
    owners = ((datamodule, DataHooks), (module, LightningModule))
    if trainer.given_loaders.get(stage) is None and not any(
        o is not None and overrides(o, method, base) for o, base in owners
    ):
        raise MisconfigurationException(
            f"`trainer.{fn}()` has no data. Pass a loader, a data module, or define `{type(module).__name__}.{method}`."
        )
