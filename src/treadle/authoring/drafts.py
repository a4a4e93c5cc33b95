"""Drafts: the arguments of one `.bind`, checked, with their literals already in JSON.

A draft is a `str` (JSON text), a `Bound`, a `Defaulted`, a `Signalled`, or a list or dict of drafts. Drafts are
made at once, so that a list that is changed after `.bind` changes nothing; slots are made of them when the step gets
its place in a plan (`Scope.lower`), because only there is it known how a Ref spells the step it means.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from treadle.authoring.adapters import TAG
from treadle.authoring.bound import UNSET, Bound, Condition, FromData, Node, Promised, Signalled, kind_of
from treadle.authoring.fitting import item_annotation, produced_kind, stored_path
from treadle.authoring.signatures import ANYTHING, Signature, Target
from treadle.errors import DecodeError, EncodeError

_WORDS = {"str": "text", "array": "a list", "object": "an object", "null": "None", "bool": "a bool"}


class Defaulted:
    """A planned value with the JSON text of its default."""

    __slots__ = ("bound", "text")

    def __init__(self, bound: Bound, text: str) -> None:
        self.bound = bound
        self.text = text


def draft_arguments(
    signature: Signature | None, args: tuple[Any, ...], kwargs: dict[str, Any], complaints: list[str]
) -> dict[str, Any]:
    """The drafts of a call's arguments, by parameter; without a signature (a foreign action) by keyword."""
    if signature is None:
        if args:
            complaints.append("is known by its name only, so its arguments are given by name")
        return {name: draft(value, ANYTHING, f"argument {name!r}", complaints) for name, value in kwargs.items()}
    values = signature.assign(args, kwargs, complaints)
    parameters = signature.parameters
    for name, value in values.items():
        parameter = parameters[name]
        kind = kind_of(value)
        if kind in parameter.exact:
            try:
                values[name] = parameter.adapter.encode(value)
            except EncodeError:
                values[name] = literal(value, parameter, f"argument {name!r}", complaints)
        elif kind is Bound and value.__treadle_default__ is UNSET and not value.__treadle_path__:
            values[name] = value
            node = value.__treadle_node__
            if parameter.accepts is not None and type(node) is Node:
                _check_kind(node.produces, parameter, f"argument {name!r}", value, complaints)
        else:
            values[name] = draft(value, parameter, f"argument {name!r}", complaints)
    for name in signature.from_data:
        values.setdefault(name, FromData(name))
    return values


def draft(value: Any, target: Target, label: str, complaints: list[str]) -> Any:
    """The draft of one value; `label` is how complaints call it."""
    if isinstance(value, Promised):
        return _draft_planned(value, target, label, complaints)
    kind = kind_of(value)
    if kind in (list, tuple, dict) and _holds_planned(value):
        if kind is dict:
            return _draft_dict(value, target, label, complaints)
        return [
            draft(item, Target(item_annotation(target.annotation, index)), f"{label}, item {index}", complaints)
            for index, item in enumerate(value)
        ]
    return literal(value, target, label, complaints)


def literal(value: Any, target: Target, label: str, complaints: list[str]) -> str:
    """The JSON text of a value that is known now, after a look whether its reader will understand it."""
    try:
        try:
            text = target.adapter.encode(value)
        except EncodeError:
            # Whether a secret is hidden is known where the plan is started.
            text = _with_secrets(target, value)
        if not (target.unchecked or type(value) in target.exact):
            target.adapter.decode(text)
    except (EncodeError, DecodeError) as error:
        complaints.append(f"{label}: {_advice(value) or error}")
        return "null"
    return text


def _with_secrets(target: Target, value: Any) -> str:
    from treadle.authoring.secrets import with_secrets  # most programs have none

    return with_secrets(target.adapter.encode, value)


def _advice(value: object) -> str:
    """What else to do with a value that has no JSON form because it is no data at all."""
    if inspect.iscoroutine(value):
        # Not awaiting it is right here, so Python need not warn.
        value.close()
        return f"{value.__qualname__}(...) was called; plan it with .bind(...)"
    fields: tuple[str, ...] = getattr(type(value), "__struct_fields__", ()) or tuple(getattr(value, "__dict__", ()))
    for name in fields:
        if isinstance(getattr(value, name, None), Promised):
            kind = type(value).__name__
            return f"field {name!r} of {kind} is a planned value; make the {kind} in a step"
    if hasattr(type(value), "bind") and hasattr(value, "definition"):
        return f"{value!r} is not planned; pass what its .bind(...) gives"
    return ""


def _draft_planned(value: Promised, target: Target, label: str, complaints: list[str]) -> Any:
    if isinstance(value, Signalled):
        _check_kind(produced_kind(value.__treadle_type__), target, label, value, complaints)
        return value
    if isinstance(value, Condition):
        complaints.append(f"{label}: {value!r} goes into when=; make it a step to pass its result on")
        return "null"
    if isinstance(value, FromData):
        complaints.append(f"{label}: FROM_DATA is the default of a step's parameter, not a value to be passed")
        return "null"
    if not isinstance(value, Bound):
        complaints.append(f"{label}: {value!r} has no result; pass the steps in it")
        return "null"
    bound = _stored(value, target, label, complaints)
    if (default := value.__treadle_default__) is UNSET:
        return bound
    if isinstance(default, Promised) or (type(default) in (list, tuple, dict) and _holds_planned(default)):
        complaints.append(f"{label}: a default is a plain value, not a planned one")
        return bound
    return Defaulted(bound, literal(default, target, f"{label}, default", complaints))


def _stored(bound: Bound, target: Target, label: str, complaints: list[str]) -> Bound:
    """The planned value with its path as it is in JSON, after a look whether it can fit."""
    node, path = bound.__treadle_node__, bound.__treadle_path__
    if not isinstance(node, Node):
        return bound
    if not path:
        _check_kind(node.produces, target, label, bound, complaints)
        return bound
    try:
        stored, annotation = stored_path(node.returns, path)
    except KeyError as error:
        complaints.append(f"{label}: what {node.definition.short} returns has no stored field {error}")
        return bound
    _check_kind(produced_kind(annotation), target, label, bound, complaints)
    return Bound(node, tuple(stored))


def _check_kind(kind: str | None, target: Target, label: str, value: Promised, complaints: list[str]) -> None:
    if kind is None or target.accepts is None or kind in target.accepts:
        return
    wanted = " or ".join(sorted(_WORDS.get(accepted, accepted) for accepted in target.accepts))
    complaints.append(f"{label}: {value!r} is {_WORDS.get(kind, kind)}, but {wanted} is needed")


def check_condition(value: Promised, complaints: list[str]) -> Any:
    """The draft of `when=`."""
    if isinstance(value, Condition):
        return value
    drafted = draft(value, _BOOL, "when=", complaints)
    if isinstance(drafted, Defaulted | str):
        complaints.append("when=: a condition has no default; the step is skipped where its value is missing")
    return drafted


def _draft_dict(value: dict[Any, Any], target: Target, label: str, complaints: list[str]) -> Any:
    drafts = [
        (key, draft(item, Target(item_annotation(target.annotation, key)), f"{label}, key {key!r}", complaints))
        for key, item in value.items()
    ]
    if all(type(key) is str and key != TAG for key, _ in drafts):
        return dict(drafts)
    # The tagged form of a dict whose keys are not plain texts (see codec), with drafts among its values.
    pairs = [[literal(key, ANYTHING, f"{label}, key {key!r}", complaints), item] for key, item in drafts]
    return {TAG: ['"dict"', pairs]}


def _holds_planned(container: Any) -> bool:
    """Whether a list, tuple or dict has a planned value somewhere inside."""
    items: Iterable[Any] = container.values() if kind_of(container) is dict else container
    for item in items:
        kind = kind_of(item)
        if kind in _PLAIN:
            continue
        if isinstance(item, Promised) or (kind in (list, tuple, dict) and _holds_planned(item)):
            return True
    return False


_PLAIN = frozenset({str, int, float, bool, type(None), bytes})
_BOOL = Target(bool)
