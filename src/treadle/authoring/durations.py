"""Durations as people write them: "200ms", "1h30m", ISO 8601, a number of seconds, or a timedelta."""

from __future__ import annotations

import math
import re
from datetime import timedelta

from treadle.errors import DefinitionError

Duration = str | float | timedelta

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
# Years and months have no fixed length, so ISO texts with them are refused.
_ISO = re.compile(
    r"P(?:(?P<w>\d+(?:[.,]\d+)?)W)?(?:(?P<d>\d+(?:[.,]\d+)?)D)?"
    r"(?:T(?:(?P<h>\d+(?:[.,]\d+)?)H)?(?:(?P<m>\d+(?:[.,]\d+)?)M)?(?:(?P<s>\d+(?:[.,]\d+)?)S)?)?"
)
# A thousand years: beyond it, adding to the wall clock leaves what a datetime can show.
_LONGEST = 31_557_600_000.0


def seconds_of(value: Duration, what: str = "duration") -> float:
    """The seconds of a duration.

    Raises:
        DefinitionError: naming `what` and the forms that are understood; negative, infinite and empty
            durations are refused too.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, str):
        seconds = _parse(value, what)
    elif isinstance(value, bool) or not isinstance(value, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without a checker
        raise DefinitionError(f"{what} {value!r} is no duration; write {_forms()}")
    else:
        # Cut before the conversion: an int may be too large for a float.
        seconds = float(max(min(value, 2 * _LONGEST), -1))
    if math.isnan(seconds) or seconds < 0:
        raise DefinitionError(f"{what} {value!r} is not a positive length of time")
    if seconds > _LONGEST:
        raise DefinitionError(f"{what} {value!r} is longer than a thousand years")
    return seconds


def _parse(text: str, what: str) -> float:
    stripped = text.strip()
    if _NUMBER.fullmatch(stripped):
        return float(stripped)
    if iso := _ISO.fullmatch(stripped.upper()):
        parts = {unit: amount for unit, amount in iso.groupdict().items() if amount is not None}
        # "P" and "PT" match with every part absent, "P1DT" with nothing behind its T.
        if parts and not stripped.upper().endswith("T"):
            return math.fsum(float(amount.replace(",", ".")) * _SECONDS[unit] for unit, amount in parts.items())
    found = list(_PART.finditer(stripped))
    if not found or sum(len(match[0]) for match in found) != len(stripped):
        raise DefinitionError(f"{what} {text!r} is no duration; write {_forms()}")
    units = [match[2] for match in found]
    if len(set(units)) != len(units):
        raise DefinitionError(f"{what} {text!r} names a unit twice")
    return math.fsum(float(match[1]) * _SECONDS[match[2]] for match in found)


def _forms() -> str:
    return '"200ms", "1.5s", "2m", "3h", "1d", "1h30m", "PT90S", a number of seconds or a timedelta'
