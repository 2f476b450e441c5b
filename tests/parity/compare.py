"""Compare two recordings: nested dictionaries, lists, numbers and words."""

from __future__ import annotations

import math
from typing import Any

ABSENT = "<absent>"
Difference = tuple[str, Any, Any]


def differences(
    expected: Any, got: Any, *, rtol: float = 1e-5, atol: float = 1e-7, ignore: tuple[str, ...] = ("sha256_f32",)
) -> list[Difference]:
    """List where two recordings disagree.

    Args:
        expected: the recording of the reference.
        got: the recording to judge.
        rtol: relative tolerance of numbers, of `expected`.
        atol: absolute tolerance of numbers.
        ignore: last parts of paths that may differ.

    Returns:
        Tuples (path, expected, got), in the order of the recording; empty when they agree.
    """
    found: list[Difference] = []
    _walk(expected, got, "", rtol, atol, ignore, found)
    return found


def describe(found: list[Difference], limit: int = 12) -> str:
    """One line per difference, at most `limit` of them."""
    lines = [f"  {path}: expected {_short(a)}, got {_short(b)}" for path, a, b in found[:limit]]
    if len(found) > limit:
        lines.append(f"  ... and {len(found) - limit} more")
    return "\n".join(lines)


def first_event_difference(expected: list[Any], got: list[Any]) -> tuple[int, list[Any], list[Any]] | None:
    """Find the first place where two lists of events part.

    Returns:
        The index and the next three events of either side, or None when the lists are equal.
    """
    pairs = zip(expected, got, strict=False)
    index = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(got)))
    if index == len(expected) == len(got):
        return None
    return index, expected[index : index + 3], got[index : index + 3]


def _walk(
    a: Any, b: Any, path: str, rtol: float, atol: float, ignore: tuple[str, ...], found: list[Difference]
) -> None:
    if path.endswith(ignore):
        return
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(set(a) | set(b), key=str):
            _walk(a.get(key, ABSENT), b.get(key, ABSENT), f"{path}.{key}", rtol, atol, ignore, found)
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            found.append((f"{path}.len", len(a), len(b)))
        for i, (p, q) in enumerate(zip(a, b, strict=False)):
            _walk(p, q, f"{path}[{i}]", rtol, atol, ignore, found)
    elif not _same(a, b, rtol, atol):
        found.append((path, a, b))


def _same(a: Any, b: Any, rtol: float, atol: float) -> bool:
    if not (_is_number(a) and _is_number(b)):
        return bool(a == b)
    return a == b or math.isclose(a, b, rel_tol=rtol, abs_tol=atol) or (a != a and b != b)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else text[:157] + "..."
