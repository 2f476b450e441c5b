"""Where settings come from: YAML files, presets and overrides, each value with the place it was written.

Owns: reading and merging plain values. Does not own: what a setting means or may be (`config`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .engine.errors import did_you_mean

Key = tuple[str, ...]


class ProjectError(Exception):
    """Something that one sentence says in full; the command line shows it without a traceback.

    Args:
        sentence: What was found, what is accepted, what to do.
        exit_code: 2: what the user gave is wrong; 1: a run failed.
    """

    def __init__(self, sentence: str, exit_code: int = 2) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


@dataclass
class Settings:
    """A nest of plain values and, for every key in it, where that key was written.

    Attributes:
        values: Nested dictionaries of plain YAML values.
        places: The file and line, or the override, that gave each key.
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)

    def update(self, newer: Settings) -> None:
        """Lay `newer` on top: mappings merge key by key, everything else is replaced."""
        _merge(self.values, newer.values)
        self.places.update(newer.places)

    def place(self, key: Key) -> str:
        """Return `" (<where the key, or the nearest one above it, was written>)"`, or an empty string."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.places:
                return f" ({self.places[key[:length]]})"
        return ""


def dotted(key: Key) -> str:
    """Return a key as it is written in an override: `trainer.max_epochs`."""
    return ".".join(key)


def read_file(path: Path) -> Settings:
    """Read a YAML file.

    Raises:
        ProjectError: The file is missing, unreadable, no YAML, no mapping, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ProjectError(_missing(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectError(f"The configuration file {path} cannot be read: {_reason(error)}.") from None
    settings = Settings()
    values = _parse(text, str(path), (), str(path), settings.places)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ProjectError(f"{path} must hold `key: value` lines, but holds {describe(values)}.")
    settings.values = values
    return settings


def read_override(text: str, option: str = "-o") -> Settings:
    """Read one `dotted.key=value` from the command line; the value is YAML.

    Args:
        text: Such as `trainer.max_epochs=3`, `data.shuffle=false` or `trainer.devices=[0, 1]`.
        option: How the user gave it, for messages.

    Raises:
        ProjectError: There is no `=`, the key is not dotted names, or the value is no YAML.
    """
    name, equals, raw = text.partition("=")
    place = option + " " + re.sub("://.*", "://…", text)  # an address may hold a secret
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name):
        raise ProjectError(f"`{place}` is no override. Write dotted.key=value, such as -o trainer.max_epochs=3.")
    key = tuple(name.split("."))
    settings = Settings()
    value = _parse(raw, f"The value in `{place}`", key, place, settings.places, line_numbers=False)
    settings.places.update({key[: i + 1]: place for i in range(len(key))})
    for part in reversed(key):
        value = {part: value}
    settings.values = value if isinstance(value, dict) else {}
    return settings


def describe(value: object) -> str:
    """Return a value with its kind, for messages: `the text 'abc'`, `a list`, `the number 3`."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value!r}"
    return "a mapping" if isinstance(value, Mapping) else "a list" if isinstance(value, list) else repr(value)


def _merge(base: dict[str, Any], newer: Mapping[str, Any]) -> None:
    for name, value in newer.items():
        if isinstance(value, dict):
            below = base.get(name)
            base[name] = below if isinstance(below, dict) else {}
            _merge(base[name], value)
        else:
            base[name] = value


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values: PyYAML alone reads `1e-3` as text, `no` as false and `12:30:00` as a number."""


_Loader.yaml_implicit_resolvers = {}

for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("int", r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9_]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^$"), [""])


def _parse(text: str, what: str, key: Key, source: str, places: dict[Key, str], *, line_numbers: bool = True) -> Any:
    """Read YAML into plain values, None where there is nothing; `what` names the text in messages."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _plain(node, key, source, places, line_numbers=line_numbers)
    except yaml.YAMLError as error:
        raise ProjectError(f"{what} is not valid YAML: {_yaml_reason(error)}.") from None
    except RecursionError:
        raise ProjectError(f"{what} contains itself, or is nested too deeply. Write it without `&` and `*`.") from None


def _plain(node: yaml.Node, key: Key, source: str, places: dict[Key, str], *, line_numbers: bool = True) -> Any:
    """Turn a YAML node into plain values and note the place of every key below it."""
    if isinstance(node, yaml.SequenceNode):
        return [
            _plain(item, (*key, str(i)), source, places, line_numbers=line_numbers) for i, item in enumerate(node.value)
        ]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node)
    values: dict[str, Any] = {}
    for name_node, value_node in node.value:
        name = str(name_node.value)
        line = f"{source}, line {name_node.start_mark.line + 1}" if line_numbers else source
        if not isinstance(name_node, yaml.ScalarNode):
            raise ProjectError(f"A key should be a plain word, not a list or a mapping ({line}).")
        if name in values:
            raise ProjectError(f"`{dotted((*key, name))}` is given twice: {places[*key, name]}, and {line}. Keep one.")
        places[*key, name] = line
        values[name] = _plain(value_node, (*key, name), source, places, line_numbers=line_numbers)
    return values


def _scalar(node: yaml.Node) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_object(node)
    except ValueError as error:
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent}, so no configuration {path}. Run from the project, or give --config."
    near = did_you_mean(path.name, [item.name for item in path.parent.glob("*.y*ml")])
    return f"There is no configuration file {path}.{near} Run from the project's folder, or give --config PATH."


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or "it is not UTF-8 text"


def _yaml_reason(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    mark = getattr(error, "problem_mark", None)
    return f"{problem}, line {mark.line + 1}" if mark else problem
