"""What differs between two documents: part by part, steps and blocks matched by their names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import msgspec

from treadle.core.documents import Document, tree_of

# Differs between any two documents, and says nothing about what they hold.
_ALWAYS: Final = frozenset(
    {"$.hash", "$.signature", "$.provenance.created_at", "$.run.key", "$.run.id", "$.run.version"}
)
# When and by whom: differs between any two runs.
_CHANGING: Final = frozenset(
    {"created_at", "ready_at", "started_at", "ended_at", "finished_at", "time", "session", "not_before"}
)
# The mark of a typed value (`authoring.codec`).
_TAG: Final = "$treadle"
# By the first of these that its objects have, a list's items are matched.
_NAMES: Final = ("id", "address", "by")


class Difference(msgspec.Struct, frozen=True):
    """A place where two documents differ; `left` or `right` is UNSET where that one has nothing there."""

    place: str
    left: Any = msgspec.UNSET
    right: Any = msgspec.UNSET


def differences(left: Document, right: Document, *, everything: bool = False) -> list[Difference]:
    """Where two documents differ, in the order of their places; with `everything` also in times and keys."""
    return list(_compare(tree_of(left), tree_of(right), "$", everything=everything))


def _compare(left: Any, right: Any, place: str, *, everything: bool) -> Iterator[Difference]:
    if not everything and place in _ALWAYS:
        return
    one, two = _members(left), _members(right)
    if one is None or two is None or isinstance(left, list) != isinstance(right, list):
        # 1 and 1.0 (and True) are equal in Python and not in a document.
        if left != right or type(left) is not type(right):
            yield Difference(place, left, right)
        return
    for name in sorted(one.keys() | two.keys(), key=_in_order):
        if not everything and name in _CHANGING:
            continue
        inner = f"{place}[{name}]" if isinstance(left, list) else f"{place}.{name}"
        yield from _compare(one.get(name, msgspec.UNSET), two.get(name, msgspec.UNSET), inner, everything=everything)


def _in_order(name: str | int) -> tuple[str, int]:
    return (name, 0) if isinstance(name, str) else ("", name)


def _members(part: Any) -> dict[str | int, Any] | None:
    """The parts of an object or a list by their names; None for what has no parts, as tagged values."""
    if isinstance(part, dict):
        return None if _TAG in part else cast("dict[str | int, Any]", part)
    if not isinstance(part, list):
        return None
    items = tuple[Any, ...](part)  # pyright: ignore[reportUnknownArgumentType]  # JSON
    found = {_name(item, index): item for index, item in enumerate(items)}
    return found if len(found) == len(items) else dict(enumerate(items))


def _name(item: Any, index: int) -> str | int:
    if isinstance(item, dict):
        members = cast("dict[str, Any]", item)
        for name in _NAMES:
            if isinstance(members.get(name), str):
                return str(members[name])
    return index
