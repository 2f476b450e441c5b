"""`LambdaCallback`: a callback made of functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..errors import did_you_mean
from ..hooks import Callback

_HOOKS = [name for name in vars(Callback) if name.startswith("on_") or name in ("setup", "teardown")]


class LambdaCallback(Callback):
    """Call functions at hooks, without writing a class.

    Args:
        **hooks: Each named as a hook of `Callback`, called with that hook's arguments (`trainer, pl_module, ...`).

    Raises:
        TypeError: No hook has that name.

    Example:
        >>> callback = LambdaCallback(on_train_epoch_end=lambda trainer, pl_module: print(trainer.current_epoch))
    """

    def __init__(self, **hooks: Callable[..., Any] | None) -> None:
        super().__init__()
        for name, function in hooks.items():
            if name not in _HOOKS:
                raise TypeError(
                    f"`LambdaCallback({name}=...)`: there is no such hook.{did_you_mean(name, _HOOKS)} There are: "
                    f"{', '.join(_HOOKS)}."
                )
            if function is not None:
                # On the instance, so that hooks without a function stay not overridden and cost nothing.
                setattr(self, name, function)

    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # for `help` and notebooks
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
        + [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in _HOOKS]
    )
