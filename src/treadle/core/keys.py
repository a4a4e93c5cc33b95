"""Keys of tasks: what the limits of a queue by key go by, worked out from a step's arguments."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Final

from treadle.core.canonical import canonical
from treadle.core.commands import Call, Task
from treadle.core.conditions import parsed
from treadle.core.events import Arg, ArgList, ArgMap, Pick
from treadle.core.expressions import evaluate, lookup_in
from treadle.core.json_text import SAFE
from treadle.core.plan import UNLIMITED
from treadle.core.resolve import UnresolvedError, handle_of, is_inline, value_of
from treadle.core.state import RunState, StepState
from treadle.core.values import key_id_of
from treadle.errors import ExpressionError

# The built-in action that a worker is asked by.
KEY: Final = "treadle:key"
# A key is an id in stores; longer ones are known by their hash.
_MOST_BYTES = 200
_NAME = re.compile(r"[^\W\d]\w*")


def _is_encoded(arg: Arg) -> bool:
    """Whether any part of an argument is hidden from stores."""
    if isinstance(arg, str):
        return bool(key_id_of(arg))
    if isinstance(arg, Pick):
        return bool(key_id_of(arg.value))
    items = arg.items if isinstance(arg, ArgList) else arg.items.values()
    return any(map(_is_encoded, items))


def key_of(text: str, args: dict[str, Arg]) -> str | None:
    """The key that an expression over the arguments gives; empty for null, None if a worker has to be asked.

    Raises:
        UnresolvedError: it has no value.
    """
    name = _argument(text)
    whole = args.get(name) if name else None
    if isinstance(whole, str):
        if is_inline(whole):
            value = value_of(whole)
            if type(value) is str or (type(value) is int and -SAFE <= value <= SAFE):
                # What the expression would give, without evaluating it.
                return key_text(value)
        elif not key_id_of(whole):
            # The handle names the content, so equal values have equal keys; an encoded value has another one each
            # time.
            return whole[:_MOST_BYTES]
    expression = parsed(text)
    roots = {path[0] for path in expression.names()}
    large = sorted(str(root) for root in roots if root in args and not is_inline(args[str(root)]))
    if any(_is_encoded(args[name]) for name in large):
        raise UnresolvedError(
            f"the key {text!r} reads {', '.join(large)}, which a payload codec encodes; stores read keys as they are"
        )
    if large:
        return None
    try:
        value = evaluate(expression, lookup_in({name: value_of(args[name]) for name in args if name in roots}))
    except (ExpressionError, LookupError) as error:
        raise UnresolvedError(f"the key {text!r} has no value: {error}") from error
    return key_text(value)


@lru_cache(maxsize=1024)
def _argument(text: str) -> str:
    """The argument that an expression is, if it is nothing else than the name of one."""
    return text if _NAME.fullmatch(text) and parsed(text).names() == ((text,),) else ""


def key_text(value: object) -> str:
    """The key that a value stands for."""
    if type(value) is int and -SAFE <= value <= SAFE:
        return str(value)
    found = "" if value is None else value if isinstance(value, str) else canonical(value).decode()
    # No character takes more than four bytes.
    if len(found) > _MOST_BYTES // 4 and len(found.encode()) > _MOST_BYTES:
        return "sha256:" + hashlib.sha256(found.encode()).hexdigest()
    return found


def known_key(run: RunState, step: StepState, args: dict[str, Arg]) -> str | None:
    """The key of a step's attempts; None if a worker has to be asked.

    Raises:
        UnresolvedError: it has no value.
    """
    found = run.keys.get(step.node.number)
    return key_of(step.spec.key, args) if found is None else found


def question(run: RunState, step: StepState, args: dict[str, Arg]) -> Task:
    """The task that finds a step's key in values that the kernel does not see. It takes up nothing of any queue."""
    node, spec = step.node, step.spec
    roots = {str(path[0]) for path in parsed(spec.key).names()}
    values = ArgMap({name: arg for name, arg in args.items() if name in roots})
    return Task(
        run=run.key,
        number=node.number,
        address=node.address,
        generation=step.generation,
        attempt=step.tasked,
        action=KEY,
        queue=UNLIMITED,
        priority=spec.priority,
        not_before=0.0,
        call=Call({"text": handle_of(spec.key), "values": values}, purpose="key", data=run.data, dry_run=run.dry_run),
        run_id=run.run_id,
    )
