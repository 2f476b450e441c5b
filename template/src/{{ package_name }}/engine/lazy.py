"""Packages whose names are loaded when they are first used (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def lazily(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package, or of a module that has names from elsewhere.

    Args:
        package: Its `__name__`.
        modules: Public name to the module that defines it, as it is called from the package (`.name`: beside it);
            modules can be asked for, too.
    """

    def load(name: str) -> Any:
        if name in modules:
            return getattr(importlib.import_module(f".{modules[name]}", package), name)
        return submodule(package, name, sys.modules[package].__all__)

    return load, lambda: sorted({*vars(sys.modules[package]), *sys.modules[package].__all__})


def submodule(package: str, name: str, offered: Iterable[str]) -> ModuleType:
    """Return `package.name`, a module or an alias of one, for somebody who imported the package alone.

    Args:
        package: Full name of the package.
        name: The attribute asked for.
        offered: What to name in the error.

    Raises:
        AttributeError: There is no such module.
    """
    is_package = "__path__" in vars(sys.modules[package])
    if is_package and not name.startswith("_") and find_spec(f"{package}.{name}") is not None:
        return importlib.import_module(f"{package}.{name}")
    raise AttributeError(f"module {package!r} has no attribute {name!r}; it offers {', '.join(offered) or 'nothing'}")
