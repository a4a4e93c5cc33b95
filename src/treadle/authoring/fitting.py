"""What can be said before a run about whether one step's result fits another's parameter.

Only what is certainly wrong is refused: everything passes through JSON, and a reader may well read the text of
one class as another (text as a Path, an object as a dataclass).
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, Literal, cast, get_args, get_origin

import msgspec

from treadle.authoring.adapters import is_attrs, is_model

# The JSON kinds that values of these annotations become. Tagged kinds (bytes, datetime, ...) are left out:
# readers of many types understand them.
_PRODUCED: Final[dict[Any, str]] = {
    str: "str",
    int: "int",
    float: "float",
    bool: "bool",
    None: "null",
    types.NoneType: "null",
    list: "array",
    tuple: "array",
    dict: "object",
}
# What readers of these annotations certainly cannot do without. A float that is whole may be read as an int, and a
# bool is an int to Python's checkers.
_ACCEPTED: Final[dict[Any, frozenset[str]]] = {
    str: frozenset({"str"}),
    int: frozenset({"int", "float", "bool"}),
    float: frozenset({"int", "float", "bool"}),
    bool: frozenset({"bool"}),
    None: frozenset({"null"}),
    types.NoneType: frozenset({"null"}),
    list: frozenset({"array"}),
    tuple: frozenset({"array"}),
    dict: frozenset({"object"}),
}


def _bare(annotation: Any) -> Any:
    while get_origin(annotation) is typing.Annotated:
        annotation = annotation.__origin__
    return annotation


def _is_record(annotation: Any) -> bool:
    """Whether values of a class become objects of its fields; pydantic's may have a form of their own."""
    if not isinstance(annotation, type):
        return False
    kind: type[Any] = annotation
    if issubclass(kind, msgspec.Struct):
        return not kind.__struct_config__.array_like
    return dataclasses.is_dataclass(kind) or typing.is_typeddict(kind) or is_attrs(kind)


def produced_kind(annotation: Any) -> str | None:
    """The one JSON kind that all values of an annotation have, or None if that is not certain."""
    bare = _bare(annotation)
    origin = get_origin(bare) or bare
    try:
        kind = _PRODUCED.get(origin)
    except TypeError:
        return None
    return "object" if kind is None and _is_record(origin) else kind


def accepted_kinds(annotation: Any) -> frozenset[str] | None:
    """The JSON kinds that an annotation can be read from, or None if that is not certain."""
    bare = _bare(annotation)
    origin = get_origin(bare) or bare
    if origin in (typing.Union, types.UnionType):
        parts = [accepted_kinds(part) for part in get_args(bare)]
        return None if None in parts else frozenset[str]().union(*(part for part in parts if part is not None))
    if origin is Literal:
        parts = [_ACCEPTED.get(type(value)) for value in get_args(bare)]
        return None if None in parts else frozenset[str]().union(*(part for part in parts if part is not None))
    try:
        kinds = _ACCEPTED.get(origin)
    except TypeError:
        return None
    return frozenset({"object"}) if kinds is None and _is_record(origin) and not is_model(origin) else kinds


def item_annotation(annotation: Any, key: object) -> Any:
    """The annotation of the item of a list, tuple or dict at `key`; Any if that is not certain."""
    bare = _bare(annotation)
    origin, args = get_origin(bare), get_args(bare)
    if origin in (typing.Union, types.UnionType):
        # Of `list[int] | None` only the list has items.
        containers = [part for part in args if part is not types.NoneType]
        return item_annotation(containers[0], key) if len(containers) == 1 else Any
    if not isinstance(origin, type) or not args:
        return Any
    if issubclass(origin, tuple):
        if len(args) == 2 and args[1] is Ellipsis:
            return args[0]
        return args[key] if isinstance(key, int) and key < len(args) else Any
    if issubclass(origin, Mapping):
        return args[1] if len(args) == 2 else Any
    return args[0] if issubclass(origin, Sequence | AbstractSet) and len(args) == 1 else Any


def stored_path(annotation: Any, path: tuple[str | int, ...]) -> tuple[list[str | int], Any]:
    """The path as it is in the JSON of a result, where a field may have another name, and the annotation at its end.

    Raises:
        KeyError: with the offending part; the class certainly has no such field.
    """
    stored: list[str | int] = []
    for part in path:
        bare = _bare(annotation)
        names = _fields(bare) if isinstance(bare, type) else None
        if names is None:
            stored.append(part)
            annotation = item_annotation(bare, part)
        elif part in names:
            stored.append(names[part])
            annotation = _field_annotation(bare, part)
        else:
            raise KeyError(part)
    return stored, annotation


@functools.lru_cache(maxsize=1024)
def _fields(kind: type[Any]) -> dict[str | int, str | int] | None:
    """The fields of a class, each with its key in JSON; None if they are not certain."""
    names: dict[str | int, str | int]
    if issubclass(kind, msgspec.Struct):
        config = kind.__struct_config__
        if config.array_like:
            shift = 0 if config.tag is None else 1
            names = {name: n + shift for n, name in enumerate(kind.__struct_fields__)}
            return names | {n: n for n in range(len(names) + shift)}
        # By its stored name too: `bound["key"]` speaks of the JSON.
        names = {key: key for key in kind.__struct_encode_fields__}
        if config.tag_field is not None:
            names[config.tag_field] = config.tag_field
        return {**names, **dict(zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True))}
    if issubclass(kind, tuple) and hasattr(cast("Any", kind), "_fields"):
        named: tuple[str, ...] = cast("Any", kind)._fields
        names = {name: n for n, name in enumerate(named)}
        return names | {n: n for n in range(-len(named), len(named))}
    if dataclasses.is_dataclass(cast("Any", kind)):
        return {field.name: field.name for field in dataclasses.fields(cast("Any", kind))}
    # A TypedDict may hold more keys than it declares, and models have aliases and computed fields.
    return None


@functools.lru_cache(maxsize=1024)
def _field_annotation(kind: Any, part: str | int) -> Any:
    try:
        return typing.get_type_hints(kind, include_extras=True).get(str(part), Any)
    except Exception:  # noqa: BLE001 - an annotation that cannot be read is as good as none here
        return Any
