"""The public names, signatures and defaults of lightning 2.6.6 that the engine lacks, as a table.

    python -m tests.parity.names --record      names of the installed lightning -> tests/data/traces/names.json
    python -m tests.parity.names --table       the table on standard output
    python -m tests.parity.names --write       the table into docs/*/reference/parity.md

A surface is flat: qualified name -> "class", "property", "attribute", or the list of parameters as text
("name", "name=default", "*name", "**name"). Every gap has its reason in `gaps.py`.
"""

from __future__ import annotations

import argparse
import dis
import enum
import fnmatch
import functools
import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.parity.framework import REFERENCE, TRACES, load_framework, words
from tests.parity.gaps import GAPS

RECORDED = TRACES / "names.json"
DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {language: DOCS / language / "reference" / "parity.md" for language in ("en", "ja")}
INTRODUCTION = {
    "en": """# Parity with Lightning

`Trainer(parity="lightning")` turns the engine's deliberate differences off, so that known results can be compared.
Two tests keep it true. The recorded runs of lightning 2.6.6 in `tests/data/traces` are replayed in the ordinary
tests: order of hooks, losses, logged values, learning rates, weights. `nox -s parity` draws random small jobs
(loaders, schedulers, callbacks, `self.log` in every hook, manual optimisation, errors, resumes) and runs each on
both; what they leave behind must agree to 1e-5. Of 320 jobs (`python -m tests.parity.differential --survey 320
--seed 121`, 21 November 2026) 279 agreed, 41 were refused alike, none differed.
Each difference that was ever found is a named job of `tests/parity/found.py`.

Left as it is: a scheduler's `frequency` of 0 is refused earlier; where there is no optimizer its hooks are not
called; whole numbers in the buffers of an averaged model are taken over, not averaged; `self.log` works in a nested
`LightningModule`.

## What Lightning has and the engine lacks

Made by `nox -s parity` from the public names, signatures and defaults of lightning 2.6.6. What is not in this table
is there, under the same name, with the same parameters in the same order and the same defaults. Of a class that is
lacking only the class is listed.

| name | what is lacking | why |
|---|---|---|
""",
    "ja": """# Lightning との一致

`Trainer(parity="lightning")` は、意図して変えた動作をすべて元に戻します。既知の結果と比べるときに使います。
二つのテストがこれを守ります。`tests/data/traces` にある lightning 2.6.6 の記録 (フックの順序、損失、ログ、
学習率、重み) は通常のテストで再生されます。`nox -s parity` は小さなジョブを無作為に作り (ローダー、
スケジューラー、コールバック、あらゆるフックでの `self.log`、手動最適化、エラー、再開)、両方で実行して、
残された結果を 1e-5 の精度で比べます。320 のジョブ (`python -m tests.parity.differential --survey 320
--seed 121`、2026 年 11 月 21 日) のうち 279 が一致し、41 は同じように拒否され、違いはありませんでした。
見つかった違いは、すべて `tests/parity/found.py` に名前の付いたジョブとして残っています。

変えていない違い: `frequency` が 0 のスケジューラーは早めに拒否します。オプティマイザーがないときはそのフックを
呼びません。平均モデルの整数バッファーは平均せずに引き継ぎます。入れ子の `LightningModule` でも `self.log` が
使えます。

## Lightning にあってエンジンにないもの

`nox -s parity` が lightning 2.6.6 の公開名、引数、既定値から作る表です。ここにないものは、同じ名前、同じ順序の
引数、同じ既定値で揃っています。クラスごと欠けるものはクラスだけを挙げます。

| 名前 | ないもの | 理由 |
|---|---|---|
""",
}
PACKAGES = words("callbacks loggers strategies accelerators profilers plugins tuner utilities")
TOP = words("Callback LightningDataModule LightningModule Trainer seed_everything")
Shape = str | list[str]
Gap = tuple[str, str, str]


def surface(framework: str, *, inherited: bool = True) -> dict[str, Shape]:
    """Everything public that `framework` has under the names Lightning uses.

    Args:
        framework: its dotted name.
        inherited: list all members of a class; otherwise only those that are not another public class's.
    """
    root = load_framework(framework).root
    things = {name: getattr(root, name, None) for name in TOP}
    for package in PACKAGES:
        module = importlib.import_module(f"{framework}.{package}")
        things.update({f"{package}.{name}": getattr(module, name) for name in _public(module)})
    bases = None if inherited else {thing for thing in things.values() if inspect.isclass(thing)}
    found: dict[str, Shape] = {}
    for name, thing in things.items():
        found.update(_describe(name, thing, bases))
    return dict(sorted(found.items()))


def _public(module: Any) -> list[str]:
    return sorted(getattr(module, "__all__", None) or [n for n in dir(module) if n[0].isupper()])


def _describe(name: str, thing: Any, bases: set[Any] | None) -> Iterator[tuple[str, Shape]]:
    if inspect.isclass(thing):
        yield name, "class"
        if thing.__init__ is not object.__init__:
            yield f"{name}()", _parameters(thing.__init__)
        for member in _members(thing, None if bases is None else bases - {thing}):
            yield f"{name}.{member}", _shape(inspect.getattr_static(thing, member, None))
    elif callable(thing):
        yield name, _parameters(thing)
    elif thing is not None:
        yield name, "attribute"


def _members(cls: type, without: set[Any] | None) -> list[str]:
    """Public names of a class.

    Args:
        cls: the class.
        without: its bases that are not looked at: then only names that the framework itself defines are listed.
            None: everything that an object of it has, also from torch and from assignments to `self`.
    """
    if without is None:
        return sorted({*filter(_is_public, dir(cls)), *_assigned(cls)})
    root = cls.__module__.split(".")[0]
    bases = [base for base in cls.__mro__ if base.__module__.split(".")[0] == root and base not in without]
    return sorted({name for base in bases for name in vars(base) if _is_public(name)})


def _is_public(name: str) -> bool:
    return not name.startswith("_")


def _assigned(cls: type) -> set[str]:
    """Attributes that the methods of a class assign to `self`, or that it annotates."""
    found: set[str] = set()
    for base in cls.__mro__:
        found |= set(getattr(base, "__annotations__", {}))
        if base.__module__.split(".")[0] == cls.__module__.split(".")[0]:
            methods = (m for m in vars(base).values() if inspect.isfunction(m))
            found |= {n.argval for m in methods for n in dis.get_instructions(m) if n.opname == "STORE_ATTR"}
    return set(filter(_is_public, found))


def _shape(member: Any) -> Shape:
    if isinstance(member, staticmethod | classmethod):
        member = member.__func__
    if isinstance(member, property | functools.cached_property):
        return "property"
    return _parameters(member) if callable(member) and not inspect.isclass(member) else "attribute"


def _parameters(function: Any) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [_parameter(p) for p in parameters if p.name not in ("self", "cls", "this")]


def _parameter(p: inspect.Parameter) -> str:
    star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
    return star + p.name + ("" if p.default is p.empty else f"={_default(p.default)}")


def _default(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return repr(value.value)
    if inspect.isfunction(value) or inspect.isclass(value):
        return str(value.__name__)
    return repr(value) if isinstance(value, str | int | float | bool | tuple | list | dict | None) else "..."


def gaps(reference: dict[str, Shape], ours: dict[str, Shape]) -> list[Gap]:
    """What the reference has and ours lacks: (name, what is missing, reason); the reason is "" where none is given."""
    out: list[Gap] = []
    missing_classes = {name for name, shape in reference.items() if shape == "class" and name not in ours}
    for name, shape in reference.items():
        inside = any(name.startswith((f"{cls}.", f"{cls}(")) for cls in missing_classes)
        lacks = "" if inside else _lacks(name, shape, ours)
        if lacks:
            out.append((name, lacks, reason_for(name)))
    return out


def reason_for(name: str) -> str:
    """The reason that `gaps.py` gives for a name; patterns are tried in order."""
    return next((reason for pattern, reason in GAPS.items() if fnmatch.fnmatchcase(name, pattern)), "")


def _lacks(name: str, shape: Shape, ours: dict[str, Shape]) -> str:
    if name not in ours:
        return "" if name.endswith("()") and shape == [] else "not there"
    mine = ours[name]
    if not isinstance(shape, list) or not isinstance(mine, list):
        return ""  # a property may be an attribute, a function may be a class
    takes_rest = any(p.startswith("**") for p in mine)
    known = {p.split("=")[0]: p for p in mine}
    problems = []
    for p in shape:
        key = p.split("=")[0]
        if key.startswith("*"):
            continue
        if key not in known:
            problems.append("" if takes_rest else f"`{p}`")
        elif "=" in p and known[key] != p:
            problems.append(f"`{p}` (ours: `{known[key]}`)")
    found = ", ".join(filter(None, problems))
    return f"parameter {found}" if found else _order(shape, mine)


def _order(shape: list[str], mine: list[str]) -> str:
    common = [p.split("=")[0] for p in shape if not p.startswith("*")]
    ours = [p.split("=")[0] for p in mine if p.split("=")[0] in common]
    same = ours == [p for p in common if p in ours]
    return "" if same else f"another order: `{', '.join(ours)}`"


def table(found: list[Gap], language: str = "en") -> str:
    """The page with the table."""
    rows = [f"| `{name}` | {lacks} | {reason} |\n" for name, lacks, reason in found]
    return INTRODUCTION[language] + "".join(rows)


def recorded() -> dict[str, Shape]:
    """The surface of lightning 2.6.6, as recorded."""
    return json.loads(RECORDED.read_text())  # type: ignore[no-any-return]


def main() -> None:
    """Record, print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.record:
        lines = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in surface(REFERENCE, inherited=False).items())
        RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return
    found = gaps(recorded(), surface("engine"))
    for language, page in PAGES.items() if args.write else ():
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(table(found, language))
    if args.table or not args.write:
        print(table(found))


if __name__ == "__main__":
    main()
