"""Hyper-parameters: find them in `__init__`, keep them, and build the object again from a checkpoint.

Owns: `self.hparams`, its form in a checkpoint, and `load_from_checkpoint`. Does not own: the file
(`checkpoint_file`) and what loggers show of them.
"""

from __future__ import annotations

import argparse
import copy
import csv
import dataclasses
import functools
import inspect
from ast import literal_eval
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from .checkpoint_file import read
from .distributed import rank_zero_info, rank_zero_warn
from .errors import CheckpointError, EndsAtCaller, MisconfigurationException, did_you_mean, require
from .inert import find_strangers
from .packing import AttributeDict, unpack
from .packing import pack as pack  # part of this module's surface

_KEPT_OUT = (nn.Module, Dataset, DataLoader, Sampler)
_UNUSED = frozenset(("callbacks", "loops", "optimizer_states", "lr_schedulers"))


class HyperparametersMixin:
    """`save_hyperparameters` and `hparams`, for modules and data modules."""

    _log_hyperparams: bool = False
    _hparams_name: str | None = None

    @property
    def hparams(self) -> AttributeDict:
        """The hyper-parameters; changing them changes what checkpoints will hold."""
        hparams: AttributeDict = self.__dict__.setdefault("_hparams", AttributeDict())
        return hparams

    @property
    def hparams_to_save(self) -> dict[str, Any]:
        """The hyper-parameters that checkpoints hold: all but modules, data sets, loaders and samplers."""
        unsaved = self.__dict__.get("_hparams_unsaved", ())
        return {name: value for name, value in self.hparams.items() if name not in unsaved}

    @property
    def hparams_initial(self) -> AttributeDict:
        """A copy of the hyper-parameters as they were when saved."""
        return _deep_copy(self.__dict__.get("_hparams_initial", {}))

    def save_hyperparameters(
        self, *args: Any, ignore: str | Iterable[str] | None = None, frame: FrameType | None = None, logger: bool = True
    ) -> None:
        """Keep the arguments of `__init__` in `self.hparams` and in every checkpoint.

        Call it in `__init__` (of any class in the chain, or in a dataclass's `__post_init__`). The arguments of all
        `__init__` that are running for this object are found; a subclass's win.

        Modules, data sets, loaders and samplers are in `self.hparams` as well, but not in checkpoints, where they would
        be stored twice, unless named in `args`. Pass them to `load_from_checkpoint`; a note says so.

        Args:
            *args: Names of arguments to keep; or one dict, Namespace, dataclass or pydantic object to keep in their
                place. Nothing: keep all.
            ignore: Names to leave out.
            frame: Where to look for arguments; None: the caller.
            logger: Send them to the loggers, too.

        Raises:
            MisconfigurationException: A name that is no argument, an object of another kind, or no `__init__` running.
        """
        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        arguments = _running_init_arguments(self, frame or inspect.currentframe())
        objects = [arg for arg in args if not isinstance(arg, str)]
        if objects:
            values = _items_of(args)
            name = next((key for key, value in (arguments or {}).items() if value is objects[0]), None)
        else:
            values = _named(type(self).__name__, arguments, args)
            name = "kwargs" if values else None
        values = {key: value for key, value in values.items() if key not in ignored}
        kept_out = [key for key, value in values.items() if key not in args and _is_kept_out(value)]
        if kept_out:
            names = ", ".join(f"`{key}`" for key in kept_out)
            rank_zero_info(
                f"{type(self).__name__}: {names} not in checkpoints (module, data set or loader). Pass it to "
                f"`load_from_checkpoint`. `save_hyperparameters({kept_out[0]!r})` keeps it; `ignore=` ends this note."
            )
        self._hparams_name, self._log_hyperparams = name, logger
        self.hparams.update(values)
        unsaved = {*self.__dict__.get("_hparams_unsaved", ()), *kept_out}
        self.__dict__["_hparams_unsaved"] = unsaved - set(map(str, args))
        self.__dict__["_hparams_initial"] = _deep_copy(self.hparams_to_save)


def _running_init_arguments(owner: object, frame: FrameType | None) -> dict[str, Any] | None:
    """Return the arguments of all `__init__` of `owner` on the stack, outer over inner ones; None: there are none."""
    found: dict[str, Any] | None = None
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__init__" and code.co_argcount:
            names, _, keywords, values = inspect.getargvalues(frame)
            if values.get(names[0]) is owner:
                found = {} if found is None else found
                found.update({name: values[name] for name in names[1:] if name in values})
                found.update(values.get(keywords, {}) if keywords else {})
        frame = frame.f_back
    if found is not None and dataclasses.is_dataclass(owner):  # its __init__ sees placeholders of default factories
        found.update({f.name: getattr(owner, f.name) for f in dataclasses.fields(owner) if f.name in found})
    return found


def _named(owner: str, arguments: dict[str, Any] | None, names: tuple[str, ...]) -> dict[str, Any]:
    if arguments is None:
        raise MisconfigurationException(
            f"{owner}.save_hyperparameters() was called outside of `__init__`, where there are no arguments to keep. "
            f"Call it in `__init__`, or pass a dict: `save_hyperparameters({{'lr': 0.1}})`."
        )
    for name in names:
        if name not in arguments:
            raise MisconfigurationException(
                f"{owner}.save_hyperparameters({name!r}): `__init__` has no such argument."
                f"{did_you_mean(name, arguments)} It has: {', '.join(f'`{key}`' for key in arguments) or 'none'}."
            )
    return {name: arguments[name] for name in names or arguments}


def _items_of(objects: tuple[Any, ...]) -> dict[str, Any]:
    value = objects[0]
    if len(objects) == 1:
        if isinstance(value, Mapping) or hasattr(type(value), "model_fields"):  # pydantic's iterate over their fields
            return dict(value)
        if isinstance(value, argparse.Namespace):
            return vars(value).copy()
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise MisconfigurationException(
        f"save_hyperparameters({', '.join(map(repr, objects))}) cannot be kept. Accepted: names of arguments, or one "
        f"dict, Namespace, dataclass or pydantic object. Write `save_hyperparameters({{'name': value}})`."
    )


def _is_kept_out(value: Any) -> bool:
    """Return whether checkpoints do without a value: one of `_KEPT_OUT`, or a list or dict with one in it."""
    value = list(value.values()) if isinstance(value, dict) else value
    if isinstance(value, (list, tuple)):
        return any(isinstance(item, _KEPT_OUT) for item in value)
    return isinstance(value, _KEPT_OUT)


def _deep_copy(values: Mapping[str, Any]) -> AttributeDict:
    copied = AttributeDict(values)
    for key, value in values.items():
        with suppress(Exception):  # what cannot be copied is kept itself
            copied[key] = copy.deepcopy(value)
    return copied


if TYPE_CHECKING:
    _class_only = classmethod
else:

    class _class_only(classmethod):
        """A classmethod that refuses to be called on an instance: what it returns would be thrown away."""

        def __get__(self, instance: Any, owner: Any = None) -> Any:
            method = super().__get__(instance, owner)
            if instance is None:
                return method
            name = f"{type(instance).__name__}.{method.__name__}"

            @EndsAtCaller()
            @functools.wraps(method)
            def refuse(*args: Any, **kwargs: Any) -> Any:
                raise TypeError(
                    f"`{name}` cannot be called on an instance. It makes a new one: "
                    f"`model = {name}(path)`, on the class."
                )

            return refuse


class LoadableMixin:
    """`load_from_checkpoint`, for modules and data modules."""

    CHECKPOINT_HYPER_PARAMS_KEY = "hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME = "hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE = "hparams_type"

    @_class_only
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **overrides: Any,
    ) -> Self:
        """Build an object from a checkpoint of this engine or of Lightning 1.x or 2.x: arguments, then weights.

        Args:
            checkpoint_path: The file.
            map_location: As for `torch.load`; None: the device it was saved from where there is one, else the CPU.
            hparams_file: A `.yaml` or `.csv` file whose hyper-parameters replace those in the checkpoint.
            strict: Whether the weights must match exactly; None: as the module's `strict_loading` says.
            weights_only: None or True: run nothing that is in the file. False: unpickle everything, for trusted files.
            **overrides: Arguments of `__init__` that win over the saved ones, or that are not saved.

        Raises:
            TypeError: Called on an instance.
            CheckpointError: An argument is neither saved, nor restorable, nor given; or the file cannot be used.
            MisconfigurationException: An override that `__init__` does not have.
        """
        is_module, key = issubclass(cls, nn.Module), cls.CHECKPOINT_HYPER_PARAMS_KEY
        checkpoint = read(checkpoint_path, map_location or _where_it_was, weights_only is not False, unused=_UNUSED)
        saved = _read_hparams_file(Path(hparams_file)) if hparams_file else checkpoint.get(key)
        saved = unpack(dict(saved), weights_only is not False) if isinstance(saved, Mapping) else {}
        name = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_NAME)
        arguments = _constructor_arguments(cls, saved, name, overrides)
        instance: Any = cls(**arguments)
        checkpoint[key] = {**saved, **overrides}
        if is_module:
            _load_module(instance, checkpoint, strict, arguments)
        elif cls.__qualname__ in checkpoint:
            instance.load_state_dict(checkpoint[cls.__qualname__])
        return cast("Self", instance)


def _where_it_was(storage: Any, location: str) -> Any:
    """Keep tensors on the CPU whose device is not here; None: torch puts them where they were."""
    kind, _, index = location.partition(":")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    is_here = device is not None and device.type == kind and int(index or 0) < torch.accelerator.device_count()
    return None if is_here else storage


def _read_hparams_file(path: Path) -> dict[str, Any]:
    if path.suffix in (".yaml", ".yml"):
        yaml = require("yaml", "yaml", "`load_from_checkpoint(hparams_file=...)`")
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    if path.suffix != ".csv":
        raise MisconfigurationException(
            f"hparams_file={str(path)!r} cannot be read. Accepted: `.yaml`, `.yml`, `.csv` with the columns key, value."
        )
    values: dict[str, Any] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values[row["key"]] = row["value"]
            with suppress(ValueError, SyntaxError):  # not a Python literal: a string
                values[row["key"]] = literal_eval(row["value"])
    return values


def _constructor_arguments(
    cls: type, saved: dict[str, Any], name: str | None, overrides: dict[str, Any]
) -> dict[str, Any]:
    """Return what to call `cls` with; `name`: the argument that was given all of `saved` as one object."""
    parameters = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])  # type: ignore[misc]
    kinds = {parameter.kind for parameter in parameters.values()}
    named = {key: p for key, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    saved = {key: value for key, value in saved.items() if key not in ("_instantiator", "_class_path")}
    if name in named:
        inside = {key: value for key, value in overrides.items() if key not in named}
        saved, overrides = {name: AttributeDict(saved | inside)}, {k: v for k, v in overrides.items() if k in named}
    values = saved | overrides
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        for key in overrides:
            if key not in named:
                raise MisconfigurationException(
                    f"{cls.__name__}.load_from_checkpoint({key}=...): `__init__` has no such argument."
                    f"{did_you_mean(key, named)} It has: {', '.join(f'`{other}`' for other in named) or 'none'}."
                )
        values = {key: value for key, value in values.items() if key in named}
    lost = {key: stranger for key, value in values.items() for stranger in find_strangers(value, key)}
    lost |= {key: f"`{key}` (not saved)" for key, p in named.items() if p.default is p.empty and key not in values}
    if lost:
        raise CheckpointError(
            f"{cls.__name__}.load_from_checkpoint cannot restore {', '.join(lost.values())}. Pass what is missing: "
            f"`{cls.__name__}.load_from_checkpoint(path, {', '.join(f'{key}=...' for key in lost)})`. What is "
            f"pickled also comes back with `weights_only=False`, for a file that you trust as you trust a program."
        )
    return values


def _load_module(module: Any, checkpoint: dict[str, Any], strict: bool | None, arguments: dict[str, Any]) -> None:
    state = checkpoint.get("state_dict")
    if state is None:
        raise CheckpointError(
            f"The checkpoint has no `state_dict`, so it holds no module; its keys: {', '.join(map(str, checkpoint))}. "
            f"Weights alone are loaded with `module.load_state_dict(torch.load(path))`."
        )
    module.configure_model()
    module.on_load_checkpoint(checkpoint)
    strict = module.strict_loading if strict is None else strict
    try:
        keys = module.load_state_dict(checkpoint["state_dict"], strict=strict)
    except RuntimeError as error:
        parameters = inspect.signature(type(module)).parameters.items()
        unsaved = [key for key, p in parameters if p.default is not p.empty and key not in arguments]
        if not unsaved or "Error(s) in loading state_dict" not in str(error):
            raise
        raise CheckpointError(
            f"{error}\nNot in the checkpoint, and so at their defaults: {', '.join(f'`{key}`' for key in unsaved)} "
            f"(modules, what `ignore=` names, or all without `save_hyperparameters()`). Pass what was trained: "
            f"`{type(module).__name__}.load_from_checkpoint(path, {', '.join(f'{key}=...' for key in unsaved)})`."
        ) from error
    if not strict and (keys.missing_keys or keys.unexpected_keys):
        rank_zero_warn(
            f"{type(module).__name__}: the checkpoint lacks {keys.missing_keys} and has {keys.unexpected_keys} besides "
            f"(strict=False)."
        )
    device = next((value.device for value in state.values() if isinstance(value, Tensor)), None)
    if device is not None:
        module.to(device)
