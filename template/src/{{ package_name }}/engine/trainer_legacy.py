"""Calls of Lightning 1.x on a Trainer: command-line arguments, `tune`, `tuner`, and the loaders' old names.

Owns: these calls, in today's terms. Does not own: old arguments of `Trainer` and old hooks (`legacy`). Delete this file
and its uses in `trainer` together with `legacy`.
"""

from __future__ import annotations

import functools
import inspect
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any, Self

from .distributed import rank_zero_deprecation
from .legacy import RENAMED, read_variable
from .tuner import BatchSizeFinder, LearningRateFinder, Tuner


class OldCalls:
    """What a `Trainer` of 1.x could be called besides its five calls."""

    _old_arguments: dict[str, Any]

    @classmethod
    def add_argparse_args(cls, parent_parser: ArgumentParser, **_: Any) -> ArgumentParser:
        """Add an option for every argument of the Trainer, today's and those of 1.x, unless the parser has it.

        A value is read as Python where it is Python, else as text; an option without a value is True.
        """
        today = {name: p.default for name, p in inspect.signature(cls.__init__).parameters.items() if name != "self"}
        group = parent_parser.add_argument_group("Trainer")
        for name, default in {**dict.fromkeys(RENAMED), **today}.items():
            if f"--{name}" not in parent_parser._option_string_actions:
                group.add_argument(f"--{name}", nargs="?", const=True, default=default, type=read_variable)
        return parent_parser

    @classmethod
    def from_argparse_args(cls, args: Namespace | ArgumentParser, **kwargs: Any) -> Self:
        """Make a Trainer from what the command line says; `kwargs` win, options that are not the Trainer's are left."""
        given = vars(args.parse_args() if isinstance(args, ArgumentParser) else args)
        today = inspect.signature(cls.__init__).parameters
        known = {n: v for n, v in given.items() if n in today or (n in RENAMED and v is not None)}
        return cls(**{**known, **kwargs})

    @property
    def tuner(self) -> Tuner:
        """A `Tuner` of this Trainer."""
        return Tuner(self)

    def tune(
        self,
        model: Any = None,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        scale_batch_size_kwargs: dict[str, Any] | None = None,
        lr_find_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Run what `auto_lr_find` and `auto_scale_batch_size` of 1.x ask for, once; `fit` does it by itself.

        Args:
            model: The module; None within `fit`.
            train_dataloaders: As for `fit`.
            val_dataloaders: As for `fit`.
            datamodule: As for `fit`.
            scale_batch_size_kwargs: For `Tuner.scale_batch_size`.
            lr_find_kwargs: For `Tuner.lr_find`.

        Returns:
            "scale_batch_size" and "lr_find", what each found, if it was asked for.
        """
        found: dict[str, Any] = {}
        trainer: Any = self
        lr, size = self._old_arguments.pop("auto_lr_find", None), self._old_arguments.pop("auto_scale_batch_size", None)
        sizes = {"mode": size if isinstance(size, str) else "power", **(scale_batch_size_kwargs or {})}
        rates = {"attr_name": lr if isinstance(lr, str) else "", **(lr_find_kwargs or {})}
        data = {"train_dataloaders": train_dataloaders, "val_dataloaders": val_dataloaders, "datamodule": datamodule}
        if size and model is None:
            BatchSizeFinder(**sizes).on_fit_start(trainer, trainer.lightning_module)
        elif size:
            found["scale_batch_size"] = self.tuner.scale_batch_size(model, **data, **sizes)
        if lr and model is None:
            LearningRateFinder(**rates).on_fit_start(trainer, trainer.lightning_module)
        elif lr:
            found["lr_find"] = self.tuner.lr_find(model, **data, **rates)
        return found


def takes_old(old: str, new: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a call of the Trainer: the argument `old` of 1.x is taken for `new`, and the signature stays honest."""

    def decorate(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def translated(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                rank_zero_deprecation(f"`trainer.{call.__name__}({old}=...)` is of Lightning 1.x; today: {new}=...")
                kwargs[new] = kwargs.pop(old)
            return call(*args, **kwargs)

        return translated

    return decorate
