"""Keys of tasks: what the limits of a queue by key go by, worked out from a step's arguments."""

from __future__ import annotations

import hashlib
import re

from treadle.core.canonical import canonical
from treadle.core.conditions import parsed
from treadle.core.events import Arg, ArgList, Pick
from treadle.core.expressions import evaluate, lookup_in
from treadle.core.resolve import UnresolvedError, is_inline, value_of
from treadle.core.values import key_id_of
from treadle.errors import ExpressionError

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


def key_of(text: str, args: dict[str, Arg]) -> str:
    """The key that an expression over the arguments gives; empty for null.

    Raises:
        UnresolvedError: it has no value, or reads a part of a value that is too large to ride in events.
    """
    whole = args.get(text) if _NAME.fullmatch(text) else None
    if isinstance(whole, str) and not is_inline(whole) and not key_id_of(whole):
        # The handle names the content, so equal values have equal keys; an encoded value has another one each time.
        return whole[:_MOST_BYTES]
    expression = parsed(text)
    roots = {path[0] for path in expression.names()}
    large = sorted(str(root) for root in roots if root in args and not is_inline(args[str(root)]))
    if any(_is_encoded(args[name]) for name in large):
        raise UnresolvedError(
            f"the key {text!r} reads {', '.join(large)}, which a payload codec encodes; stores read keys as they are"
        )
    if large:
        raise UnresolvedError(
            f"the key {text!r} reads {', '.join(large)}, which is too large; make the key a step's value"
        )
    try:
        value = evaluate(expression, lookup_in({name: value_of(args[name]) for name in args if name in roots}))
    except (ExpressionError, LookupError) as error:
        raise UnresolvedError(f"the key {text!r} has no value: {error}") from error
    found = "" if value is None else value if isinstance(value, str) else canonical(value).decode()
    if len(found.encode()) > _MOST_BYTES:
        return "sha256:" + hashlib.sha256(found.encode()).hexdigest()
    return found
