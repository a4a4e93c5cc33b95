"""Values in process: handles that carry the objects they stand for."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from treadle.authoring.bound import kind_of
from treadle.core.events import Arg, ArgList, ArgMap

_WORDS: Final = {None: "=null", True: "=true", False: "=false"}
# Longer texts are not copied only to be readable to an expression.
_READABLE: Final = 100


class Held(str):
    """A handle that carries its value."""

    __slots__ = ("value",)
    value: Any


def held(value: Any) -> Held:
    """The handle of a value."""
    kind = kind_of(value)
    if kind is int:
        text = f"={value}"
    elif kind is bool or value is None:
        text = _WORDS[value]
    elif kind is str and len(value) <= _READABLE:
        text = "=" + msgspec.json.encode(value).decode()
    else:
        text = "~"
    handle = Held(text)
    handle.value = value
    return handle


def value_of(arg: Arg) -> Any:
    """The value behind a handle, or behind a map of them."""
    if isinstance(arg, Held):
        return arg.value
    if isinstance(arg, ArgMap):
        return {name: value_of(item) for name, item in arg.items.items()}
    if isinstance(arg, ArgList):
        return [value_of(item) for item in arg.items]
    return msgspec.json.decode(arg[1:]) if isinstance(arg, str) else None
