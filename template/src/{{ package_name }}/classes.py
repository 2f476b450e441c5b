"""Classes by name, and arguments checked against the signature of their `__init__` before anything is constructed.

Owns: finding, checking, and the sentences about what does not fit. Does not own: which sections name classes (`build`).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from .engine.errors import did_you_mean
from .sources import Key, ProjectError, Settings, describe, dotted

_PACKAGE = __name__.rpartition(".")[0]


def find_class(path: str, home: ModuleType, kind: type, key: Key, settings: Settings) -> Any:
    """Find a class by name.

    Args:
        path: `EarlyStopping` (looked up in `home`), `science.task.Other` (in this package), or `elsewhere.Name`.
        home: The module in which a plain name is looked up.
        kind: What the class must derive from.
        key: The section that names the class, for messages.
        settings: Knows where the section was written.

    Raises:
        ProjectError: There is no such module or class, or it is not of that kind.
    """
    place = settings.place((*key, "class"))
    module_name, _, name = path.rpartition(".")
    module = _find_module(module_name, place) if module_name else home
    found = getattr(module, name, None)
    where = module.__name__.removeprefix(f"{_PACKAGE}.")
    if not isinstance(found, type):
        near = did_you_mean(name, [other for other in dir(module) if other[:1].isupper()])
        raise ProjectError(f"There is no class `{name}` in {where}{place}.{near}")
    if not issubclass(found, kind):
        raise ProjectError(f"`{dotted(key)}` must be a {kind.__name__}, but {where}.{name} is none{place}.")
    return found


def parameters_of(cls: type) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a class's `__init__`, without `self`."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    variable = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return {name: value for name, value in [*signature.parameters.items()][1:] if value.kind not in variable}


def check_arguments(cls: type, given: Mapping[str, Any], key: Key, settings: Settings) -> dict[str, Any]:
    """Check arguments by name, and by type where `__init__` is annotated; plain values become what is annotated.

    Raises:
        ProjectError: An argument is unknown or of the wrong type; the text names the nearest one.
    """
    known = parameters_of(cls)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(cls.__init__).parameters.values())  # type: ignore[misc]
    hints = _hints(cls)
    checked = {}
    for name, value in given.items():
        place = settings.place((*key, name))
        if name not in known and not takes_any:
            near = did_you_mean(name, known)
            listed = "" if near else f" It takes: {', '.join(known) or 'nothing'}."
            raise ProjectError(f"`{dotted((*key, name))}` is no argument of {cls.__name__}{place}.{near}{listed}")
        try:
            checked[name] = _convert(value, hints.get(name, Any))
        except ValidationError as error:
            wanted = " or ".join(dict.fromkeys(_wanted(detail["msg"]) for detail in error.errors(include_url=False)))
            found = describe(value)
            raise ProjectError(f"`{dotted((*key, name))}` should be {wanted}, not {found}{place}.") from None
    return checked


def with_defaults(cls: type, checked: Mapping[str, Any], key: Key) -> dict[str, Any]:
    """Add the default values that can be written down as plain values.

    Raises:
        ProjectError: An argument without a default is missing.
    """
    complete: dict[str, Any] = {}
    for name, parameter in parameters_of(cls).items():
        if name in checked:
            complete[name] = checked[name]
        elif parameter.default is parameter.empty:
            full = dotted((*key, name))
            raise ProjectError(f"{cls.__name__} needs `{full}`, which is given nowhere. Give it: -o {full}=VALUE.")
        elif _is_plain(parameter.default):
            complete[name] = parameter.default
    return {**complete, **checked}


def _find_module(name: str, place: str) -> ModuleType:
    for candidate in (f"{_PACKAGE}.{name}", name):
        if _exists(candidate):
            return importlib.import_module(candidate)
    raise ProjectError(f"There is no module `{name}`, neither in {_PACKAGE} nor installed{place}.")


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):
            return False
        raise  # the module exists, but imports something that is not installed: the user's own error


def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls.__init__)  # type: ignore[misc]
    except (NameError, TypeError):  # a name that exists for type checkers only: types are then left to the class
        return {}


def _convert(value: Any, hint: Any) -> Any:
    try:
        adapter = TypeAdapter(hint)
    except (PydanticSchemaGenerationError, PydanticUserError):  # the class's own kind of object
        return value
    return adapter.validate_python(value)


def _wanted(message: str) -> str:
    return message.partition(",")[0].removeprefix("Input should be ").removeprefix("Input ")


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(item) for name, item in value.items())
    return value is None or type(value) in {bool, int, float, str}
