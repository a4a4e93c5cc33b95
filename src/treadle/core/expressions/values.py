"""What operators do with JSON values: strict, without user code, and metered.

A value's type is compared exactly, so that nothing that a subclass overrides is ever called. true and false are no
numbers. Results of arithmetic are 64-bit integers or finite floats, the same on every interpreter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Literal, cast

from treadle.core.expressions.nodes import Path

Json = bool | int | float | str | list[Any] | dict[str, Any] | None
Code = Literal[
    "expression_type", "expression_missing", "expression_value", "expression_overflow", "expression_fuel"
]  # fmt: skip

# The largest integer that arithmetic gives; the smallest is its negative.
LARGEST: Final = 2**63 - 1
# Characters that cost as much as one item: they are handled in bulk.
_CHARACTERS_A_UNIT = 64

_NUMBERS: frozenset[type[object]] = frozenset({int, float})
_SCALARS: frozenset[type[object]] = frozenset({type(None), bool, int, float, str})
KINDS: frozenset[type[object]] = _SCALARS | {list, dict}
_KEY_KINDS: dict[type[object], type[object]] = {list: int, dict: str}
_KIND_NAMES: dict[type[object], str] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a text",
    list: "a list",
    dict: "a dict",
}


# Exact types as plain classes: what checkers would make of `type(x) is dict` knows nothing of the items.
type_of: Callable[[object], type[object]] = type


class Missing(Enum):
    """The type of `MISSING`."""

    MISSING = "missing"


# What a lookup answers for a path that leads to nothing.
MISSING: Final = Missing.MISSING

Lookup = Callable[[Path], object]


class Refusal(Exception):  # noqa: N818 - never leaves this package; the place is added where it is known
    """An operation has no answer for these values."""

    def __init__(self, code: Code, message: str) -> None:
        self.code: Code = code
        super().__init__(message)


class Meter:
    """One evaluation: where values come from, and how much work is left."""

    __slots__ = ("fuel", "lookup")

    def __init__(self, lookup: Lookup, fuel: int) -> None:
        self.lookup = lookup
        self.fuel = fuel

    def spend(self, amount: int) -> None:
        """Pay for work before it is done.

        Raises:
            Refusal: there is too little left.
        """
        self.fuel -= amount
        if self.fuel < 0:
            raise Refusal("expression_fuel", "this takes more work than an evaluation may do")

    def spend_text(self, length: int) -> None:
        """Pay for work on so many characters."""
        self.spend(length // _CHARACTERS_A_UNIT)


def kind_of(value: Any) -> str:
    """What a value is, in the words of the language."""
    return _KIND_NAMES.get(type_of(value), f"a Python {type_of(value).__name__}")


def type_refusal(message: str) -> Refusal:
    """Values of the wrong type."""
    return Refusal("expression_type", message)


def follow(value: Any, path: Path) -> Any:
    """The item that a path leads to from a value; `MISSING` if there is none."""
    for part in path:
        kind = type_of(value)
        if kind is dict and isinstance(part, str):
            value = value.get(part, MISSING)
        elif kind is list and isinstance(part, int) and -len(value) <= part < len(value):
            value = value[part]
        else:
            return MISSING
    return value


def item(base: Any, key: Any) -> Any:
    """The item of a list or dict under a computed key, `MISSING` if it has none.

    Raises:
        Refusal: keys of this type make no sense there.
    """
    kind = type_of(base)
    wanted = _KEY_KINDS.get(kind)
    if wanted is None:
        raise type_refusal(f"{kind_of(base)} has no items")
    if type_of(key) is not wanted:
        raise type_refusal(f"the key of {_KIND_NAMES[kind]} is {_KIND_NAMES[wanted]}, not {kind_of(key)}")
    return follow(base, (cast("str | int", key),))


def truth(value: Any) -> bool:
    """Whether a value holds as a condition: null, 0, false and blank text do not.

    Raises:
        Refusal: a list or a dict is neither true nor false.
    """
    kind = type_of(value)
    if kind is str:
        return bool(value.strip())
    if kind in _SCALARS:
        return bool(value)
    raise type_refusal(f"{kind_of(value)} is neither true nor false; compare it, or ask for its len()")


def equal(meter: Meter, left: Any, right: Any) -> bool:
    """Whether two values are the same JSON, 1 and 1.0 being one number and true none."""
    pairs = [(left, right)]
    while pairs:
        one, other = pairs.pop()
        kind = type_of(one)
        if kind not in KINDS or type_of(other) not in KINDS:
            raise type_refusal(f"{kind_of(one if kind not in KINDS else other)} is no JSON value")
        if kind is not type_of(other):
            if not (kind in _NUMBERS and type_of(other) in _NUMBERS and one == other):
                return False
        elif kind in _SCALARS:
            if one != other:
                return False
        else:
            inner = _pairs(meter, one, other)
            if inner is None:
                return False
            pairs.extend(inner)
    return True


def _pairs(meter: Meter, one: Any, other: Any) -> list[tuple[Any, Any]] | None:
    """What has to be equal in two lists or two dicts that are; None if they are not for their size or keys."""
    if len(one) != len(other):
        return None
    meter.spend(len(one))
    if type_of(one) is list:
        return list(zip(one, other, strict=True))
    if one.keys() != other.keys():
        return None
    return [(value, other[key]) for key, value in one.items()]


def contains(meter: Meter, whole: Any, part: Any) -> bool:
    """Whether a list holds a value, a dict a key, or a text a part.

    Raises:
        Refusal: nothing can be in a value of this type, or not a value of that type.
    """
    kind = type_of(whole)
    if kind is list:
        meter.spend(len(whole))
        return any(equal(meter, each, part) for each in whole)
    if kind is not dict and kind is not str:
        raise type_refusal(f"nothing can be in {kind_of(whole)}; a list, a dict or a text is needed")
    if type_of(part) is not str:
        raise type_refusal(f"only a text can be in {kind_of(whole)}, not {kind_of(part)}")
    if kind is str:
        meter.spend_text(len(whole))
    return part in whole


def comparable(left: Any, right: Any) -> bool:
    """Whether two values have an order: two numbers, or two texts (by code point)."""
    kind, other = type_of(left), type_of(right)
    return (kind in _NUMBERS and other in _NUMBERS) or (kind is str and other is str)


def add(meter: Meter, left: Any, right: Any) -> Json:
    """The sum of two numbers, or two texts or two lists joined."""
    kind = type_of(left)
    if kind is type_of(right) and kind in (str, list):
        meter.spend((len(left) + len(right)) // (_CHARACTERS_A_UNIT if kind is str else 1))
        joined: str | list[Any] = left + right
        return joined
    if not (kind in _NUMBERS and type_of(right) in _NUMBERS):
        hint = "; make it a text by str()" if str in (kind, type_of(right)) else ""
        raise type_refusal(f"cannot add {kind_of(left)} and {kind_of(right)}{hint}")
    return bounded(_bounded_operand(left) + _bounded_operand(right))


def _arithmetic(name: str, compute: Callable[[Any, Any], Any]) -> Callable[[Meter, Any, Any], Json]:
    def apply(_: Meter, left: Any, right: Any) -> Json:
        if not (type_of(left) in _NUMBERS and type_of(right) in _NUMBERS):
            raise type_refusal(f"cannot {name} {kind_of(left)} and {kind_of(right)}; two numbers are needed")
        try:
            return bounded(compute(_bounded_operand(left), _bounded_operand(right)))
        except ZeroDivisionError:
            raise Refusal("expression_value", "division by zero") from None

    return apply


ARITHMETIC: dict[str, Callable[[Meter, Any, Any], Json]] = {
    "+": add,
    "-": _arithmetic("subtract", lambda one, other: one - other),
    "*": _arithmetic("multiply", lambda one, other: one * other),
    "/": _arithmetic("divide", lambda one, other: one / other),
    "//": _arithmetic("divide", lambda one, other: one // other),
    "%": _arithmetic("take the remainder of", lambda one, other: one % other),
}


def negative(_: Meter, value: Any) -> Json:
    """A number with its sign turned."""
    if type_of(value) not in _NUMBERS:
        raise type_refusal(f"cannot negate {kind_of(value)}; a number is needed")
    return bounded(-value)


def bounded(value: float) -> int | float:
    """A number that arithmetic may give.

    Raises:
        Refusal: it is beyond 64 bits, or no finite number.
    """
    if type_of(value) is int:
        return _bounded_operand(value)
    if not math.isfinite(value):
        raise Refusal("expression_overflow", "the result is too large for a float")
    return value


def _bounded_operand(value: float) -> int | float:
    # Checked before the operation too: a stored integer may be of any length.
    if type_of(value) is int and not -LARGEST <= value <= LARGEST:
        raise Refusal("expression_overflow", f"an integer is beyond {LARGEST}")
    return value


def text_of(value: Any) -> str:
    """A scalar as text: JSON's own, but whole floats without their fraction.

    Raises:
        Refusal: lists and dicts have no text.
    """
    kind = type_of(value)
    if kind is str:
        return cast("str", value)
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        return str(_bounded_operand(value))
    if kind is float:
        # As JSON's readers do: beyond this a float skips integers.
        whole = value.is_integer() and abs(value) < 2**53
        return str(int(value)) if whole else repr(value)
    raise type_refusal(f"{kind_of(value)} has no text")
