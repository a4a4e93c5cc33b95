"""Conditions that the kernel can decide by itself, since it sees all that they read."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

from msgspec.structs import replace

from treadle.core.events import Arg, Failure
from treadle.core.expressions import Expression, holds, lookup_in, parse
from treadle.core.graph import Node
from treadle.core.plan import Condition, Given, Holds, Predicate, Slot
from treadle.core.resolve import UnresolvedError, is_inline, resolve, truth_of, value_of
from treadle.core.state import RunState, StepState
from treadle.errors import ExpressionError

_Slot = TypeVar("_Slot", bound=Slot)


def fixed(run: RunState, node: Node, condition: Condition | None) -> Condition | Given | None:
    """A condition over the values that it reads now, whatever becomes of them; what has none stays as it is."""
    if isinstance(condition, (Predicate, Holds)):
        return replace(condition, slots={name: _fixed(run, node, slot) for name, slot in condition.slots.items()})
    return None if condition is None else _fixed(run, node, condition)


def _fixed(run: RunState, node: Node, slot: _Slot) -> _Slot | Given:
    try:
        return Given(resolve(run, node, slot))
    except UnresolvedError:
        return slot


def truth(run: RunState, node: Node, condition: Condition | Given) -> bool | Failure | None:
    """Whether a condition holds; a Failure if that makes no sense, None if a worker has to be asked."""
    if isinstance(condition, Predicate):
        return None
    try:
        if isinstance(condition, Holds):
            return test(condition.text, visible(run, node, condition))
        arg = resolve(run, node, condition)
    except UnresolvedError as error:
        return Failure(code="unresolved", message=str(error))
    if not is_inline(arg):
        return None
    found = truth_of(arg)
    return found if found is not None else Failure(code="condition", message="the value of the condition is not a bool")


def answer_of(asked: StepState) -> bool | Failure:
    """What a worker found a condition to be."""
    found = truth_of(asked.result)
    return found if found is not None else Failure(code="condition", message="the condition did not give a bool")


def visible(run: RunState, node: Node, condition: Holds) -> dict[str, Arg] | None:
    """The values that an expression reads, as far as they are set; None if one of them cannot be seen here."""
    args: dict[str, Arg] = {}
    for name, slot in condition.slots.items():
        try:
            arg = resolve(run, node, slot)
        except UnresolvedError:
            continue
        if not is_inline(arg):
            return None
        args[name] = arg
    return args


@lru_cache(maxsize=1024)
def parsed(text: str) -> Expression:
    """The expression of a text, which a plan's check has found right."""
    return parse(text)


def test(text: str, args: dict[str, Arg] | None) -> bool | Failure | None:
    """Whether an expression holds for arguments by the names of its roots; None without arguments."""
    if args is None:
        return None
    try:
        return holds(parsed(text), lookup_in({name: value_of(arg) for name, arg in args.items()}))
    except ExpressionError as error:
        return Failure(code=error.code, message=str(error), type=type(error).__name__)
    except LookupError as error:
        return Failure(code="condition", message=f"there is no {error} in a value that the condition reads")
