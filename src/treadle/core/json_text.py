"""JSON text to a tree, strictly, and the places in the text that messages name.

Readers differ on an object that holds one name twice, so that is refused: what was signed must be what everybody reads.
Places are looked for only when there is something to say about them.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, Final

# Up to here an IEEE 754 double, which is all that ECMAScript has, holds every integer.
SAFE: Final = 2**53

# The names and indexes that lead from the root to a part of a tree.
Path = tuple[str | int, ...]
# Line and column, both from 1.
Place = tuple[int, int]

_BLANK: Final = re.compile(r"[ \t\n\r]*")
# A string, or a number or word. The text is known to be JSON, so nothing else needs to be looked for.
_SCALAR: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s,\]}\[{:"]+')


class TextError(ValueError):
    """A text that is not what it should be, and where: line and column, (0, 0) if nobody can tell."""

    def __init__(self, message: str, place: Place = (0, 0)) -> None:
        super().__init__(message)
        self.place = place


class Reading:
    """A tree that was read from a text; `places` finds where each of its parts stands there."""

    __slots__ = ("_find", "_places", "tree")

    def __init__(self, tree: Any, find: Callable[[], dict[Path, Place]]) -> None:
        self.tree = tree
        self._find = find
        self._places: dict[Path, Place] | None = None

    def place(self, path: Path) -> Place:
        """Where the part of a path stands; for what is not there, where it should be: the part around it."""
        if self._places is None:
            try:
                self._places = self._find()
            except RecursionError:
                self._places = {}
        while path and path not in self._places:
            path = path[:-1]
        return self._places.get(path, (1, 1))


class _Repeated(Exception):  # noqa: N818 - never leaves this module; callers see TextError
    """An object holds one name twice."""


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Repeated
    return members


def _no_number(text: str) -> object:
    raise TextError(f"{text} is no number of JSON")


def number_of(digits: str) -> int | float:
    """An integer as all readers of JSON understand it: beyond 2**53 it is the nearest double."""
    # No safe integer has more than 16 digits; int() would refuse thousands of them.
    value = int(digits) if len(digits) <= 17 else SAFE + 1
    return value if -SAFE <= value <= SAFE else float(digits)


def read_json(text: str) -> Reading:
    """The tree of a JSON text.

    Raises:
        TextError: it is no JSON, was cut off, or an object holds a name twice.
    """
    try:
        tree = json.loads(text, object_pairs_hook=_members, parse_constant=_no_number, parse_int=number_of)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            raise TextError("the text ends in the middle; it was cut off", (error.lineno, error.colno)) from None
        raise TextError(f"no JSON: {error.msg[0].lower()}{error.msg[1:]}", (error.lineno, error.colno)) from None
    except _Repeated:
        name, place = _Survey(text).repeated[0]
        raise TextError(f"the name {name!r} stands twice in one object; keep one", place) from None
    except TextError:
        raise
    except RecursionError:
        raise TextError("nested too deep") from None
    return Reading(tree, lambda: _Survey(text).places)


class _Survey:
    """Where each value of a JSON text stands, and which names stand twice. The text is known to be JSON."""

    def __init__(self, text: str) -> None:
        self.places: dict[Path, Place] = {}
        self.repeated: list[tuple[str, Place]] = []
        self._text = text
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]
        self._value(0, ())

    def _place(self, at: int) -> Place:
        line = bisect_right(self._lines, at)
        return line, at - self._lines[line - 1] + 1

    def _skip(self, at: int) -> int:
        found = _BLANK.match(self._text, at)
        assert found is not None
        return found.end()

    def _value(self, at: int, path: Path) -> int:
        """Note the value that begins at or behind `at`; the place behind it."""
        at = self._skip(at)
        self.places.setdefault(path, self._place(at))
        match self._text[at]:
            case "{":
                return self._object(at + 1, path)
            case "[":
                return self._list(at + 1, path)
            case _:
                return self._scalar(at)

    def _scalar(self, at: int) -> int:
        found = _SCALAR.match(self._text, at)
        assert found is not None
        return found.end()

    def _object(self, at: int, path: Path) -> int:
        at = self._skip(at)
        known: set[str] = set()
        while self._text[at] != "}":
            if self._text[at] == ",":
                at = self._skip(at + 1)
            place = self._place(at)
            end = self._scalar(at)
            name: str = json.loads(self._text[at:end])
            if name in known:
                self.repeated.append((name, place))
            known.add(name)
            # Behind the colon.
            at = self._skip(self._value(self._skip(end) + 1, (*path, name)))
        return at + 1

    def _list(self, at: int, path: Path) -> int:
        at = self._skip(at)
        index = 0
        while self._text[at] != "]":
            if self._text[at] == ",":
                at += 1
            at = self._skip(self._value(at, (*path, index)))
            index += 1
        return at + 1
