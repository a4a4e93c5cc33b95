"""The canonical form of JSON (RFC 8785) and the hash of it: equal values have equal bytes, in any language.

Members are ordered by the UTF-16 code units of their names, numbers are written as ECMAScript writes them, and there
is no blank. What JSON readers disagree about is refused: integers beyond 2**53, numbers that are not finite, lone
surrogates.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from json.encoder import encode_basestring
from typing import cast

from treadle.core.json_text import SAFE
from treadle.errors import EncodeError


class _Refused(Exception):  # noqa: N818 - never leaves this module; callers see EncodeError
    """A part without a canonical form; each container on the way out adds its place."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.places: list[str] = []


def canonical(tree: object) -> bytes:
    """The canonical bytes of a JSON tree.

    Raises:
        EncodeError: a part has no canonical form; the message names its place.
    """
    parts: list[str] = []
    try:
        _write(tree, parts.append)
        return "".join(parts).encode()
    except _Refused as refused:
        place = "$" + "".join(reversed(refused.places))
        raise EncodeError(f"at `{place}`: {refused}; it has no canonical form") from None
    except RecursionError:
        raise EncodeError("nested too deep") from None
    except UnicodeEncodeError:
        raise EncodeError("a text holds half of a surrogate pair, which is no character") from None


def digest(tree: object) -> str:
    """The hash of a tree's canonical form, with the name of its algorithm in front."""
    return "sha256:" + hashlib.sha256(canonical(tree)).hexdigest()


def _write(value: object, write: Callable[[str], None]) -> None:
    match value:
        case str():
            write(encode_basestring(value))
        case None:
            write("null")
        case bool():
            write("true" if value else "false")
        case int():
            if not -SAFE <= value <= SAFE:
                raise _Refused("an integer beyond 2**53 is not the same to all readers of JSON")
            write(str(value))
        case float():
            write(_number(value))
        case list() | tuple():
            _write_list(cast("list[object]", value), write)
        case dict():
            _write_object(cast("dict[str, object]", value), write)
        case _:
            raise _Refused(f"a {type(value).__name__} is no part of JSON")


def _write_list(items: list[object], write: Callable[[str], None]) -> None:
    write("[")
    index = 0
    try:
        for index, item in enumerate(items):
            if index:
                write(",")
            _write(item, write)
    except _Refused as refused:
        refused.places.append(f"[{index}]")
        raise
    write("]")


def _write_object(members: dict[str, object], write: Callable[[str], None]) -> None:
    write("{")
    mark, name = "", ""
    try:
        for name in in_order(members):
            write(f"{mark}{encode_basestring(name)}:")
            _write(members[name], write)
            mark = ","
    except _Refused as refused:
        refused.places.append(f".{name}")
        raise
    write("}")


def in_order(names: Iterable[str]) -> list[str]:
    """Names of members in their canonical order."""
    ordered = list(names)
    ordered.sort(key=None if all(map(str.isascii, ordered)) else _utf16)
    return ordered


def _utf16(name: str) -> bytes:
    return name.encode("utf-16-be", "surrogatepass")


def _number(value: float) -> str:
    """A number as ECMAScript's `Number.prototype.toString` writes it: the shortest digits that read back as it."""
    if not math.isfinite(value):
        raise _Refused(f"{value} is no number of JSON")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    # The value is 0.DIGITS times ten to the power of `point`.
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    count = len(digits)
    if count <= point <= 21:
        return sign + digits + "0" * (point - count)
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    rest = f".{digits[1:]}" if count > 1 else ""
    return f"{sign}{digits[0]}{rest}e{'+' if point > 0 else '-'}{abs(point - 1)}"
