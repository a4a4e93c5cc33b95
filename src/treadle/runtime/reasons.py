"""What an answer to "why?" is made of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from treadle.core.tables import CANCELLED, SKIPPED

# How many steps a sentence names before it says "and n more"; `on` has them all.
NAMED: Final = 5


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """One reason. `code` is a name of `why.CODES`; `step` is empty for a reason that holds the whole run.

    `tense`: `now` for what holds at this moment; `past` for what the journal tells, with its time in `at`.
    `on` are the steps, signals or labels that it is about; `until` is when it ends, if that is known.
    """

    code: str
    message: str
    step: str = ""
    tense: Literal["now", "past"] = "now"
    kind: Literal["fence", "capacity", "fact"] = "fact"
    at: float | None = None
    until: float | None = None
    on: list[str] = []


def listing(shown: Sequence[str], total: int) -> str:
    """Names in a sentence, with the number of those left out."""
    text = ", ".join(shown)
    return f"{text} and {total - len(shown)} more" if total > len(shown) else text


def clock_time(seconds: float) -> str:
    """A time of day, with the date, in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%SZ}"


def count(number: int, word: str) -> str:
    """A number of things, in words."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def ended_as(outcome: str) -> str:
    """An outcome as a sentence has it."""
    return f"was {outcome}" if outcome in (CANCELLED, SKIPPED) else outcome
