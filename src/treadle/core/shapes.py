"""What of a tree does not fit a declared type: every mistake, with its path.

`msgspec.convert` stops at the first mistake, and takes no notice of members that a type does not have. `mistakes` goes
into the parts of what does not fit, and says something of each.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from typing import Any, Final, Union, cast, get_args, get_origin

import msgspec

from treadle.core.json_text import Path

# A mistake: where, and what.
Mistake = tuple[Path, str]

# How msgspec ends a message about a part of what it was given.
_PLACE: Final = re.compile(r" - at `\$(.*)`$")
_SEGMENT: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


def mistakes(tree: object, declared: Any, path: Path = ()) -> Iterator[Mistake]:
    """All that is wrong with a tree that is to be of a type, in the order of the tree."""
    struct = _struct_for(tree, declared)
    if struct is not None:
        yield from _of_struct(cast("dict[str, object]", tree), struct, path)
        return
    declared = _member_for(tree, declared)
    sound = True
    for segment, part, kind in _parts(tree, declared):
        for mistake in mistakes(part, kind, (*path, segment)):
            sound = False
            yield mistake
    if sound:
        yield from _own(tree, declared, path)


def _own(tree: object, declared: Any, path: Path) -> Iterator[Mistake]:
    try:
        msgspec.convert(tree, declared, strict=True)
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        said = str(error)
        place = _PLACE.search(said)
        if place is not None:
            said = said[: place.start()]
            path = (*path, *(name or int(index) for name, index in _SEGMENT.findall(place[1])))
        yield path, f"{said[:1].lower()}{said[1:]}"


def _alternatives(declared: Any) -> list[Any]:
    """The members of a union, else the type itself; names of types that stand for others are looked through."""
    if get_origin(declared) in (Union, types.UnionType):
        return [member for part in get_args(declared) for member in _alternatives(part)]
    return [declared]


def _struct_for(tree: object, declared: Any) -> type[msgspec.Struct] | None:
    """The struct that an object is to be: the only one there is, or the one whose tag it has."""
    if not isinstance(tree, dict):
        return None
    structs = [kind for kind in _alternatives(declared) if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]
    if len(structs) == 1:
        return structs[0]
    members = cast("dict[str, object]", tree)
    for kind in structs:
        config = kind.__struct_config__
        if config.tag_field is not None and members.get(config.tag_field) == config.tag:
            return kind
    return None


def _member_for(tree: object, declared: Any) -> Any:
    """The one type of a union that a list or an object may be, so that its parts can be looked at."""
    wanted = (dict,) if isinstance(tree, dict) else (list, tuple) if isinstance(tree, list) else ()
    fitting = [kind for kind in _alternatives(declared) if get_origin(kind) in wanted]
    return fitting[0] if len(fitting) == 1 else declared


def _parts(tree: object, declared: Any) -> Iterator[tuple[str | int, object, Any]]:
    """The parts of a list or of an object without fixed members, each with what it is to be."""
    origin, args = get_origin(declared), get_args(declared)
    if isinstance(tree, list) and (origin is list or (origin is tuple and args[1:] == (...,))):
        for index, item in enumerate(cast("list[object]", tree)):
            yield index, item, args[0]
    elif isinstance(tree, dict) and origin is dict:
        for name, item in cast("dict[str, object]", tree).items():
            yield name, item, args[1]


def _of_struct(tree: dict[str, object], struct: type[msgspec.Struct], path: Path) -> Iterator[Mistake]:
    config = struct.__struct_config__
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    sound = True
    for name, part in tree.items():
        if name in fields:
            found = mistakes(part, fields[name].type, (*path, name))
        elif name == config.tag_field:
            continue
        else:
            found = iter([((*path, name), f"unknown member {name!r}{_guess(name, fields)}")])
        for mistake in found:
            sound = False
            yield mistake
    for field in fields.values():
        if field.required and field.encode_name not in tree:
            sound = False
            yield path, f"{_title(struct)} lacks {field.encode_name!r}"
    if sound:
        yield from _own(tree, struct, path)


def _guess(name: str, fields: dict[str, Any]) -> str:
    # Needed by those alone who made a mistake.
    from difflib import get_close_matches

    close = get_close_matches(name, fields, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _title(struct: type[msgspec.Struct]) -> str:
    tag = struct.__struct_config__.tag
    return f"a {tag}" if isinstance(tag, str) else f"a {struct.__name__.lower()}"
