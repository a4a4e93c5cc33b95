"""What a workflow says of its starts: whether it is a singleton, how triggers are collected; and their keys."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, get_args

import msgspec

from treadle.authoring import codec
from treadle.core.addresses import encode_id
from treadle.core.events import Arg
from treadle.core.expressions import parse
from treadle.core.keys import key_of
from treadle.core.resolve import UnresolvedError
from treadle.errors import DefinitionError, EncodeError, ExpressionSyntaxError, SlotError

# What to do if a run of the same id, or of the same singleton, is there already.
OnConflict = Literal["reuse", "reject", "replace", "queue"]
_WORDS: Final[tuple[OnConflict, ...]] = get_args(OnConflict)


class Collecting(msgspec.Struct, frozen=True):
    """How a workflow's triggers are collected; durations in seconds, the key as an expression ("" for one window)."""

    period: float
    timeout: float
    size: int
    key: str
    # The parameter that takes the list, of a batch.
    parameter: str = ""


def on_conflict_of(value: OnConflict | None) -> OnConflict | None:
    """What a start does about a conflict; None is not said.

    Raises:
        DefinitionError: it is no such word.
    """
    if value is not None and value not in _WORDS:
        raise DefinitionError(f"on_conflict={value!r}: {', '.join(_WORDS)}")
    return value


def checked_key(option: str, key: str | bool | None, function: Callable[..., Any]) -> str | None:
    """The expression of a workflow's key over its parameters; "" is one key for all runs, None is no such option.

    Raises:
        DefinitionError: it cannot be read, or names what is no parameter.
    """
    if key is None or isinstance(key, bool):
        return "" if key else None
    try:
        expression = parse(key)
    except ExpressionSyntaxError as error:
        raise DefinitionError(f"{option}={key!r} is no parameter's name or expression: {error}") from error
    known = list(inspect.signature(function).parameters)
    unknown = sorted({str(path[0]) for path in expression.names()}.difference(known))
    if unknown:
        there = ", ".join(known) or "none"
        raise DefinitionError(f"{option}={key!r}: there is no parameter {unknown[0]!r}; there are {there}")
    return expression.text


def key_from(option: str, expression: str, function: Callable[..., Any], values: Mapping[str, Any]) -> str:
    """What an expression over a workflow's arguments gives, those that were left out included.

    Raises:
        SlotError: it has no value.
    """
    if not expression:
        return ""
    given = dict(values)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            given.setdefault(name, parameter.default)
    try:
        args: dict[str, Arg] = {name: f"={codec.encode(value)}" for name, value in given.items()}
        # All of them are at hand, so nobody has to be asked.
        return key_of(expression, args) or ""
    except (EncodeError, UnresolvedError) as error:
        raise SlotError(f"{option}={expression!r} has no value for these arguments: {error}") from error


def name_of(kind: str, workflow: str, key: str) -> str:
    """The name that runs of a workflow hold, by the key that tells them apart."""
    name = f"{kind}:{encode_id(workflow)}"
    return f"{name}/{key}" if key else name
