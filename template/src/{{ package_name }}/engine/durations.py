"""Lengths of training: `"10ep"`, `"500ba"`, `"1e6sp"`, `"1h30m"`, `"01:12:00:00"`.

Owns: reading and writing them. Does not own: what is counted, and who stops when (`fit`, the Timer callback).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

from .errors import MisconfigurationException, did_you_mean

_COUNTED = {"ep": "epochs", "ba": "batches", "sp": "samples"}
_SECONDS = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}
_TIMEDELTA_KEYS = ("weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds")
_NUMBER = r"\d+(?:\.\d*)?(?:e[+-]?\d+)?"
_COUNT = re.compile(rf"({_NUMBER})(ep|ba|sp)")
_CLOCK = re.compile(r"(\d+):([01]?\d|2[0-3]):([0-5]?\d):([0-5]?\d(?:\.\d+)?)")
_TIME = re.compile("".join(rf"(?:({_NUMBER}){unit})?" for unit in _SECONDS))
ACCEPTED = (
    "Accepted: '10ep' (epochs), '500ba' (batches), '1e6sp' (samples), times such as '90s', '1h30m', '2d' or "
    "'DD:HH:MM:SS', a timedelta, or a dict such as {'epochs': 10} or {'hours': 1, 'minutes': 30}"
)


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of training in one or several units; what is reached first counts. None: no limit in that unit.

    Attributes:
        epochs: Passes over the training data.
        batches: Batches of one rank.
        samples: Rows over all ranks.
        seconds: Wall-clock time.
    """

    epochs: int | None = None
    batches: int | None = None
    samples: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, value: str | timedelta | Mapping[str, Any] | Duration) -> Duration:
        """Read a duration.

        >>> Duration.parse("10ep")
        Duration(epochs=10, batches=None, samples=None, seconds=None)
        >>> Duration.parse("1h30m").seconds
        5400.0

        Args:
            value: A number with a unit, ep, ba or sp; a time with the units w, d, h, m, s from large to small, or
                DD:HH:MM:SS; a timedelta; a dict with this class's fields, or with timedelta's.

        Raises:
            MisconfigurationException: It is none of these, is negative, not finite, or not a whole number of a
                unit that is counted.
        """
        if isinstance(value, Duration):
            return value
        if isinstance(value, timedelta):
            return cls(seconds=_seconds(value.total_seconds(), value))
        if isinstance(value, Mapping):
            return cls(**_read_mapping(value))
        text = re.sub(r"\s+", "", value).lower() if isinstance(value, str) else ""
        if match := _COUNT.fullmatch(text):
            return cls(**{_COUNTED[match[2]]: _whole(match[1], value)})
        if match := _CLOCK.fullmatch(text):
            days, hours, minutes, seconds = (float(part) for part in match.groups())
            return cls(seconds=_seconds(((days * 24 + hours) * 60 + minutes) * 60 + seconds, value))
        if text and (match := _TIME.fullmatch(text)):
            parts = zip(match.groups(), _SECONDS.values(), strict=True)
            return cls(seconds=_seconds(math.fsum(float(number) * size for number, size in parts if number), value))
        raise MisconfigurationException(f"{value!r} is not a duration. {ACCEPTED}.")

    def __str__(self) -> str:
        """Write it so that `parse` reads it; several units are joined by ` or `, which it does not."""
        counted = [f"{count}{unit}" for unit, name in _COUNTED.items() if (count := getattr(self, name)) is not None]
        return " or ".join(counted + ([f"{self.seconds!r}s"] if self.seconds is not None else []))


def counted(value: Any, argument: str, unit: str) -> Any:
    """Return `value`; text is read as a number of `unit`.

    Args:
        value: A number, None, or text such as "10ep" or "500ba".
        argument: How the user wrote the argument, for the message.
        unit: "epochs" or "batches".

    Raises:
        MisconfigurationException: The text counts something else, or cannot be read.
    """
    if not isinstance(value, str):
        return value
    match = _COUNT.fullmatch(re.sub(r"\s+", "", value).lower())
    if match is None or _COUNTED[match[2]] != unit:
        raise MisconfigurationException(
            f"`{argument}={value!r}{')' * argument.count('(')}` counts {unit}. Write a number, or text such as "
            f"{'10ep' if unit == 'epochs' else '500ba'!r}."
        )
    return _whole(match[1], value)


def _read_mapping(value: Mapping[str, Any]) -> dict[str, Any]:
    own = {field.name for field in fields(Duration)}
    for key in value:
        if key not in own and key not in _TIMEDELTA_KEYS:
            hint = did_you_mean(str(key), [*own, *_TIMEDELTA_KEYS])
            raise MisconfigurationException(
                f"{dict(value)!r} is not a duration: unknown unit {key!r}.{hint} {ACCEPTED}."
            )
    read: dict[str, Any] = {key: _whole(value[key], value) for key in ("epochs", "batches", "samples") if key in value}
    if times := {key: value[key] for key in _TIMEDELTA_KEYS if key in value}:
        try:
            read["seconds"] = _seconds(timedelta(**times).total_seconds(), value)
        except (TypeError, ValueError, OverflowError) as error:
            raise MisconfigurationException(f"{dict(value)!r} is not a duration: {error}. {ACCEPTED}.") from error
    return read


def _whole(number: Any, given: object) -> int:
    try:
        exact = float(number) if isinstance(number, str) else number
        whole = int(number) if isinstance(number, str) and number.isdigit() else int(exact)
    except (TypeError, ValueError, OverflowError):
        exact, whole = math.nan, 0
    if whole != exact or whole < 0:
        raise MisconfigurationException(
            f"{given!r} is not a duration: {number} is not a whole number that can be counted. {ACCEPTED}."
        )
    return whole


def _seconds(seconds: float, given: object) -> float:
    if not 0 <= seconds < math.inf:
        raise MisconfigurationException(f"{given!r} is not a duration: a time is finite and not negative. {ACCEPTED}.")
    return float(seconds)
