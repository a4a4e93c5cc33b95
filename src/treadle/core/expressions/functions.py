"""The functions of the language: pure, total, and paid for by the size of what they look at."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from treadle.core.expressions.values import (
    LARGEST,
    Json,
    Meter,
    Refusal,
    add,
    bounded,
    comparable,
    contains,
    kind_of,
    text_of,
    truth,
    type_of,
    type_refusal,
)

MANY = 100

# JSON's numbers; Python's own parsers take more (1_000, nan, digits of other scripts).
_INTEGER = re.compile(r"\s*([+-]?[0-9]{1,19})\s*", re.ASCII)
_FLOAT = re.compile(r"\s*([+-]?[0-9]{1,400}(?:\.[0-9]{1,400})?(?:[eE][+-]?[0-9]{1,4})?)\s*", re.ASCII)
_MOST_DIGITS = 15


class Function(NamedTuple):
    """A function: its name, how many arguments it takes, and what it does."""

    name: str
    least: int
    most: int
    # None where evaluation itself gives the meaning, because not all arguments are evaluated.
    apply: Callable[..., Json] | None
    # Whether the first argument has to be a path.
    reads_first: bool = False

    @property
    def arity(self) -> str:
        """The number of arguments, in words."""
        if self.most == MANY:
            return f"{self.least} or more arguments"
        count = str(self.least) if self.least == self.most else f"{self.least} or {self.most}"
        return f"{count} argument{'' if self.most == 1 else 's'}"


def _expect(function: str, value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        wanted = " or ".join(kind_of(kind()) for kind in kinds)
        raise type_refusal(f"{function} takes {wanted}, not {kind_of(value)}")
    return value


def _len(_: Meter, value: object) -> Json:
    return len(_expect("len", value, str, list, dict))


def _extreme(name: str, choose: Callable[[Sequence[Any]], Any]) -> Callable[..., Json]:
    def apply(meter: Meter, *arguments: object) -> Json:
        values: Sequence[Any] = arguments
        if len(arguments) == 1:
            values = _expect(name, arguments[0], list)
        meter.spend(len(values))
        if not values:
            raise Refusal("expression_value", f"{name} of an empty list; write {name}(x + [0]) to give it a bound")
        for value in values:
            if not comparable(values[0], value):
                raise type_refusal(f"{name} compares numbers, or texts; {_pair(values[0], value)}")
        return cast("Json", choose(values))

    return apply


def _pair(one: object, other: object) -> str:
    return f"not {kind_of(one)}" if one is other else f"not {kind_of(one)} with {kind_of(other)}"


def _sum(meter: Meter, values: object) -> Json:
    total: Json = 0
    items = _expect("sum", values, list)
    meter.spend(len(items))
    # Not the built-in sum: its rounding of floats differs between interpreters.
    for item in items:
        total = add(meter, total, _expect("sum", item, int, float))
    return total


def _any(meter: Meter, values: object) -> Json:
    items = _expect("any", values, list)
    meter.spend(len(items))
    return any(truth(item) for item in items)


def _all(meter: Meter, values: object) -> Json:
    items = _expect("all", values, list)
    meter.spend(len(items))
    return all(truth(item) for item in items)


def _abs(_: Meter, value: object) -> Json:
    return bounded(abs(_expect("abs", value, int, float)))


def _round(_: Meter, value: object, digits: object = None) -> Json:
    number = _expect("round", value, int, float)
    if digits is None:
        return _integer(round(_finite(number)))
    places = _expect("round", digits, int)
    if not 0 <= places <= _MOST_DIGITS:
        raise Refusal("expression_value", f"round keeps 0 to {_MOST_DIGITS} digits, not {text_of(places)}")
    return bounded(round(number, places))


def _finite(number: float) -> float:
    return number if type(number) is int or math.isfinite(number) else bounded(number)


def _integer(number: int) -> int:
    if not -LARGEST <= number <= LARGEST:
        raise Refusal("expression_overflow", f"an integer is beyond {LARGEST}")
    return number


def _int(_: Meter, value: Any) -> Json:
    kind = type_of(_expect("int", value, int, float, bool, str))
    if kind is not str:
        return _integer(int(_finite(value)))
    found = _INTEGER.fullmatch(value)
    if found is None:
        raise Refusal("expression_value", f"int: {_quoted(value)} is no integer")
    return _integer(int(found.group(1)))


def _float(_: Meter, value: Any) -> Json:
    kind = type_of(_expect("float", value, int, float, bool, str))
    if kind is not str:
        return float(bounded(value))
    found = _FLOAT.fullmatch(value)
    if found is None:
        raise Refusal("expression_value", f"float: {_quoted(value)} is no number")
    return bounded(float(found.group(1)))


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _str(_: Meter, value: object) -> Json:
    return text_of(value)


def _bool(_: Meter, value: object) -> Json:
    return truth(value)


def _changed(name: str, change: Callable[[str], str]) -> Callable[..., Json]:
    def apply(meter: Meter, value: object) -> Json:
        text = cast("str", _expect(name, value, str))
        meter.spend_text(len(text))
        return change(text)

    return apply


def _startswith(_: Meter, text: object, start: object) -> Json:
    return cast("str", _expect("startswith", text, str)).startswith(_expect("startswith", start, str))


def _endswith(_: Meter, text: object, end: object) -> Json:
    return cast("str", _expect("endswith", text, str)).endswith(_expect("endswith", end, str))


def _sorted_keys(name: str, meter: Meter, value: object) -> list[str]:
    entries: dict[object, Any] = _expect(name, value, dict)
    meter.spend(len(entries))
    for key in entries:
        if type_of(key) is not str:
            raise type_refusal(f"{name} takes a dict whose keys are texts, not {kind_of(key)}")
    return sorted(cast("dict[str, Any]", entries))


def _keys(meter: Meter, value: object) -> Json:
    return cast("list[Any]", _sorted_keys("keys", meter, value))


def _values(meter: Meter, value: object) -> Json:
    keys = _sorted_keys("values", meter, value)
    return [cast("dict[str, Any]", value)[key] for key in keys]


FUNCTIONS: dict[str, Function] = {
    function.name: function
    for function in (
        Function("abs", 1, 1, _abs),
        Function("all", 1, 1, _all),
        Function("any", 1, 1, _any),
        Function("bool", 1, 1, _bool),
        Function("coalesce", 1, MANY, None),
        Function("contains", 2, 2, contains),
        Function("default", 2, 2, None, reads_first=True),
        Function("defined", 1, 1, None, reads_first=True),
        Function("endswith", 2, 2, _endswith),
        Function("float", 1, 1, _float),
        Function("int", 1, 1, _int),
        Function("keys", 1, 1, _keys),
        Function("len", 1, 1, _len),
        Function("lower", 1, 1, _changed("lower", str.lower)),
        Function("max", 1, MANY, _extreme("max", max)),
        Function("min", 1, MANY, _extreme("min", min)),
        Function("round", 1, 2, _round),
        Function("startswith", 2, 2, _startswith),
        Function("str", 1, 1, _str),
        Function("sum", 1, 1, _sum),
        Function("trim", 1, 1, _changed("trim", str.strip)),
        Function("upper", 1, 1, _changed("upper", str.upper)),
        Function("values", 1, 1, _values),
    )
}
