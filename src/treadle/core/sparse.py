"""Dictionaries of which most runs need none: all of them share one that is empty, until one writes to its own.

A run has more than a dozen such. Made for each, they are a third of what its start gives the garbage collector, and
every look into one that is empty is a look at memory of its own.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class _Unwritten(dict[Any, Any]):
    """An empty dictionary that stays so."""

    def __setitem__(self, key: Any, value: Any, /) -> NoReturn:
        raise TypeError("this dictionary is shared by all that have written nothing; write to what `writable` gives")

    def setdefault(self, key: Any, default: Any = None, /) -> None:
        self[key] = default

    def update(self, *more: Any, **named: Any) -> None:
        self[more] = named


UNWRITTEN: Final[dict[Any, Any]] = _Unwritten()


def writable(holder: object, name: str, found: dict[K, V]) -> dict[K, V]:
    """The dictionary to write to, of this attribute, in which `found` was found: the holder's own from now on."""
    if found is UNWRITTEN:
        found = {}
        setattr(holder, name, found)
    return found
