"""The hook table: from a hook's name to one function that calls all who override it, or None.

Owns: who is called, in which order, and under which name `self.log` records. Does not own: what hooks mean (`hooks`)
and when they run (the loops).

Everything is decided once per run. A loop asks `if on_batch_start is not None` and pays nothing for empty hooks. With a
profiler the same table holds timed functions; without one there is no trace of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from .errors import EngineError
from .hooks import Callback, DataHooks
from .results import Results

HookFunction = Callable[..., Any]
_SAVING = ("on_train_batch_end", "on_validation_end")
_WITHOUT_DATALOADER = {"on_train_batch_start", "on_train_batch_end"}


def overrides(owner: object, name: str, base: type) -> bool:
    """Return whether `owner` defines `name` itself, on its class or on the instance, instead of `base`'s."""
    if name in getattr(owner, "__dict__", {}):
        return True
    own = getattr(type(owner), name, None)
    return own is not None and own is not getattr(base, name, None)


def parameters_of(function: HookFunction) -> dict[str, inspect.Parameter]:
    """Return the parameters that a call of `function` may fill, by name."""
    return dict(inspect.signature(function).parameters)


class HookTable:
    """Functions of one run by hook name.

    Args:
        trainer: Given to callbacks as their first argument.
        module: The user's module; `base` is its engine class, to tell overridden hooks.
        datamodule: Wins over the module for the data hooks; may be None.
        callbacks: In calling order.
        profiler: When given, every function is timed under a name such as `[Callback]Timer.on_fit_start`.
    """

    def __init__(
        self,
        trainer: Any,
        module: Any,
        datamodule: Any,
        callbacks: Sequence[Callback],
        *,
        base: type,
        profiler: Any = None,
    ) -> None:
        self.trainer, self.module, self.datamodule = trainer, module, datamodule
        self.callbacks = tuple(callbacks)
        self.base = base
        self.profiler = profiler
        self.results: Results | None = None
        self._cache: dict[str, HookFunction | None] = {}

    def __getitem__(self, name: str) -> HookFunction | None:
        """Return the function that calls hook `name` everywhere, or None when nobody overrides it."""
        if name not in self._cache:
            self._cache[name] = self._caller(name, self._functions(name))
        return self._cache[name]

    def call(self, name: str, *args: Any) -> Any:
        """Call hook `name` now; for hooks outside of the hot loop."""
        function = self[name]
        return function(*args) if function is not None else None

    def method(self, name: str) -> HookFunction:
        """Return the module's own `name`, overridden or not, as a function under whose name `log` records."""
        key = f"module.{name}"
        if key not in self._cache:
            function = getattr(self.module, name)
            adapters: dict[str, HookFunction] = {
                "lr_scheduler_step": self._step_scheduler_with_index,
                "optimizer_step": self._step_optimizer_with_index,
                "configure_gradient_clipping": self._clip_with_index,
            }
            if name in adapters and "optimizer_idx" in parameters_of(function):
                function = partial(adapters[name], function)
            self._cache[key] = self._caller(name, (self.wrap(name, function),))
        function = self._cache[key]
        assert function is not None
        return function

    def _step_scheduler_with_index(self, function: HookFunction, scheduler: Any, metric: Any) -> Any:
        """Call an `lr_scheduler_step(scheduler, optimizer_idx, metric)` of 1.x."""
        owner = getattr(scheduler, "optimizer", None)
        indices = [index for index, optimizer in enumerate(self.trainer.optimizers) if optimizer is owner]
        return function(scheduler, indices[0] if indices else 0, metric)

    def _clip_with_index(self, function: HookFunction, optimizer: Any, **options: Any) -> Any:
        """Call a `configure_gradient_clipping(optimizer, optimizer_idx, ...)` of 1.x."""
        return function(optimizer, self.trainer.optimizers.index(optimizer), **options)

    def _step_optimizer_with_index(
        self, function: HookFunction, epoch: int, batch_idx: int, optimizer: Any, closure: HookFunction
    ) -> Any:
        """Call an `optimizer_step(epoch, batch_idx, optimizer, optimizer_idx, closure, on_tpu, ...)` of 1.x."""
        index = next((i for i, known in enumerate(self.trainer.step_optimizers) if known is optimizer), 0)
        required = [p for p in parameters_of(function).values() if p.default is p.empty]
        return function(epoch, batch_idx, optimizer, index, closure, *[False] * (len(required) - 5))

    def module_overrides(self, name: str) -> bool:
        """Return whether the module has its own `name`."""
        return overrides(self.module, name, self.base)

    def data_hook(self, name: str) -> HookFunction | None:
        """Return an overridden data hook, the data module's before the module's, or None."""
        owner = self.owner_of(name)
        return None if owner is None else self._caller(name, (self.wrap(name, getattr(owner, name), owner),))

    def owner_of(self, name: str) -> Any:
        """Return who defines a data hook or a loader method: the data module, the module, or None."""
        if self.datamodule is not None and overrides(self.datamodule, name, DataHooks):
            return self.datamodule
        return self.module if self.module_overrides(name) else None

    def waiting(self, name: str, batches: Iterable[Any]) -> Iterable[Any]:
        """Return `batches`, which are waited for under the module's `name` if a profiler is on."""
        return batches if self.profiler is None else self._timed_walk(name, batches)

    def _timed_walk(self, name: str, batches: Iterable[Any]) -> Iterator[Any]:
        iterator, take = self.wrap(name, iter)(batches), self.wrap(name, next)
        while (batch := take(iterator, self)) is not self:  # which nobody takes for a batch
            yield batch

    def _functions(self, name: str) -> tuple[HookFunction, ...]:
        watches, saves = name == "on_train_epoch_end", name in _SAVING and not self.trainer.parity
        late = [c for c in self.callbacks if c.runs_last and (watches or (saves and c.role == "checkpoint"))]
        functions = self._of_callbacks(name, [c for c in self.callbacks if not any(c is other for other in late)])
        if self.module_overrides(name):
            functions.append(self.wrap(name, getattr(self.module, name)))
        return (*functions, *self._of_callbacks(name, late))

    def _of_callbacks(self, name: str, callbacks: Sequence[Callback]) -> list[HookFunction]:
        return [
            self.wrap(name, partial(fit_arguments(getattr(callback, name), name), self.trainer, self.module), callback)
            for callback in callbacks
            if overrides(callback, name, Callback)
        ]

    def wrap(self, name: str, function: HookFunction, owner: object = None) -> HookFunction:
        """Return `function` timed, if a profiler is on, as the owner's `name`; None: the module's."""
        if self.profiler is None:
            return function
        owner, profile = self.module if owner is None else owner, self.profiler.profile
        kind = "LightningDataModule" if owner is self.datamodule else "LightningModule"
        kind = "Callback" if isinstance(owner, Callback) else kind
        label = f"[{kind}]{type(owner).__name__}.{name}"

        def timed(*args: Any, **kwargs: Any) -> Any:
            with profile(label):
                return function(*args, **kwargs)

        return timed

    def _caller(self, name: str, functions: tuple[HookFunction, ...]) -> HookFunction | None:
        if not functions:
            return None

        def call_hook(*args: Any, **kwargs: Any) -> Any:
            results = self.results
            if results is None:
                return [function(*args, **kwargs) for function in functions][-1]
            outer, results.hook = results.hook, name
            returned = function = None
            try:
                for function in functions:
                    returned = function(*args, **kwargs)
            except Exception as error:
                _name_callback(error, function, name)
                raise
            results.hook = outer
            return returned

        return call_hook


def _name_callback(error: Exception, function: Any, name: str) -> None:
    """Add to what a callback raised whose it is: of several of one kind the traceback does not tell."""
    bound = getattr(function, "func", None)
    owner = getattr(bound, "__self__", None)
    if isinstance(owner, Callback) and not isinstance(error, EngineError):
        error.add_note(f"It was raised by the callback `{owner.state_key}` in `{name}`.")


def fit_arguments(function: HookFunction, name: str) -> HookFunction:
    """Adapt a callback's hook to the arguments it takes; in 1.x training batches had a `dataloader_idx` too."""
    if not name.endswith(("_batch_start", "_batch_end")):
        return function
    parameters = list(parameters_of(function).values())
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return function
    wanted = 4 if name.endswith("_start") else 5
    if len(parameters) == wanted and name not in _WITHOUT_DATALOADER:
        return lambda *args: function(*args[:wanted])
    if len([p for p in parameters if p.default is p.empty]) == wanted + 1:
        return lambda *args: function(*args, *([0] * (wanted + 1 - len(args))))
    return function
