"""Values to JSON text and back: nothing is lost, and the reader's annotation says what comes back.

**Encoding looks at the value only, never at an annotation.** So a value has one text wherever it stands, and a consumer
with another annotation, or none, reads the same thing. What JSON cannot hold is a *tag*: an object whose single key is
`$treadle`, with a name and a body:

    {"$treadle": ["bytes", "aGk="]}                          {"$treadle": ["int", "9007199254740993"]}
    {"$treadle": ["set", [1, 2]]}                            {"$treadle": ["dict", [[1, "one"], [2, "two"]]]}
    {"$treadle": ["datetime", "2024-05-01T09:00:00+02:00[Europe/Berlin]"]}

Tagged are integers beyond 2**53, non-finite floats, texts with lone surrogates, bytes, dates and times, Decimal, UUID,
paths, sets, and each dict that has a key which is no text, or the key `$treadle` itself: data that looks like a tag is
therefore never taken for one.

**Decoding** with `Any` gives tags back as what they were; tuples come back as lists, enums as their values, objects of
classes as dicts, sets of such objects as lists. With a declared type it gives that type or a `DecodeError`, and accepts
beside the tag the usual JSON form (ISO 8601 text, base64, an array for a set), because people write inputs by hand.

Text without a tag is decoded by msgspec alone, in C. Everything else takes the long way: lift the tags, then convert.
"""

# The JSON border: pyright calls what `isinstance(value, list)` finds inside `Any` unknown, which here is the truth.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false

from __future__ import annotations

import base64
import dataclasses
import enum
import io
import math
import types
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import pairwise
from operator import attrgetter
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any
from uuid import UUID

import msgspec

from treadle.authoring.adapters import (
    TAG,
    Mismatch,
    dump_model,
    freeze,
    hook,
    is_attrs,
    is_model,
    json_schema,
    lift,
    load_model,
    path_text,
    segment,
    shown,
    tag_surrogates,
    tagged,
    type_name,
)
from treadle.authoring.conversion import converter
from treadle.errors import DecodeError, EncodeError

_TAG_BYTES = b"$treadle"
# Up to here every integer is exact in an IEEE 754 double, which is how RFC 8785 (and JavaScript) reads numbers.
_SAFE = 2**53
# JSON levels, tags included. Readers give up between 128 (serde) and 1000 (SQLite, CPython's stack); a fixed bound
# keeps readable on a deep stack what was written on a shallow one.
_MAX_DEPTH = 200
# Classes made at run time must not pile up in the tables for ever; no program has as many by design.
_MAX_TYPES = 4096
# CPython refuses to print integers of more than 4300 digits in decimal; hexadecimal has no such limit.
_DECIMAL_BITS = 1024

_AS_IS: frozenset[type] = frozenset({str, bool, types.NoneType})
_TEXT: frozenset[type] = frozenset({str})
_dump: Callable[[object], bytes] = msgspec.json.Encoder().encode
_load: Callable[[str | bytes], Any] = msgspec.json.Decoder().decode

# A lowering turns a value, found so many levels deep, into a tree that msgspec writes as it stands.
Lowering = Callable[[Any, int], Any]


class Refused(Exception):  # noqa: N818 - never leaves the codec; callers see EncodeError
    """A part that cannot be stored; each container on the way out adds its place."""

    def __init__(self, reason: str, *, too_deep: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.too_deep = too_deep
        self.places: list[str] = []
        self.containers: list[object] = []

    def leave(self, container: object, place: str) -> None:
        """Add the place in a container, from the inside out."""
        self.containers.append(container)
        self.places.append(place)

    def error(self) -> EncodeError:
        """The error that callers see."""
        places = self.places[::-1]
        if not self.too_deep:
            return EncodeError(f"cannot store `{path_text(places)}`: {self.reason}")
        first_at: dict[int, int] = {}
        for index, container in enumerate(self.containers[::-1]):
            first = first_at.setdefault(id(container), index)
            if first != index:
                return EncodeError(
                    f"cannot store `{path_text(places[:index])}`: it is the {type_name(type(container))} at "
                    f"`{path_text(places[:first])}` again, a value that contains itself; store ids instead"
                )
        return EncodeError(f"cannot store `{path_text(places[:8])}...`: {self.reason}")


def _too_deep(value: object) -> Refused:
    return Refused(
        f"{type_name(type(value))} nested more than {_MAX_DEPTH} levels deep; flatten it, or store it as an artifact",
        too_deep=True,
    )


def _lower_as_is(value: Any, depth: int) -> Any:
    return value


def _lower_str(value: str, depth: int) -> str:
    # A subclass may redefine str(); join gives the characters themselves.
    return "".join((value,))


def _lower_int(value: int, depth: int) -> Any:
    number = int.__int__(value)
    if -_SAFE <= number <= _SAFE:
        return number
    return tagged("int", str(number) if number.bit_length() <= _DECIMAL_BITS else hex(number))


def _lower_float(value: float, depth: int) -> Any:
    number = float.__float__(value)
    return number if math.isfinite(number) else tagged("float", float.__repr__(number))


def _lower_bytes(value: bytes | bytearray, depth: int) -> Any:
    name = "bytearray" if isinstance(value, bytearray) else "bytes"
    return tagged(name, base64.b64encode(value).decode("ascii"))


def _suffix(value: datetime | time) -> str:
    """What ISO 8601 forgets, in the brackets of RFC 9557: the zone's name, and the second pass of a repeated hour."""
    fold = "[fold=1]" if value.fold else ""
    key = getattr(value.tzinfo, "key", None)
    if isinstance(key, str):
        return f"[{key}]{fold}"
    if value.tzinfo is not None and value.utcoffset() is None:
        raise Refused(f"its time zone {shown(value.tzinfo)} has neither offset nor name; use zoneinfo or UTC")
    return fold


def _lower_datetime(value: datetime, depth: int) -> Any:
    text = datetime.isoformat(value)
    if type(value) is not datetime and datetime.fromisoformat(text) != value:
        raise Refused(f"{type_name(type(value))} is finer than microseconds; store it as text or an integer")
    return tagged("datetime", text + _suffix(value))


def _lower_time(value: time, depth: int) -> Any:
    return tagged("time", time.isoformat(value) + _suffix(value))


def _lower_date(value: date, depth: int) -> Any:
    return tagged("date", date.isoformat(value))


def _lower_timedelta(value: timedelta, depth: int) -> Any:
    exact = timedelta(value.days, value.seconds, value.microseconds)
    return tagged("timedelta", msgspec.to_builtins(exact))


def _lower_decimal(value: Decimal, depth: int) -> Any:
    return tagged("decimal", Decimal.__str__(value))


def _lower_uuid(value: UUID, depth: int) -> Any:
    return tagged("uuid", UUID.__str__(value))


def _lower_path(value: PurePath, depth: int) -> Any:
    if isinstance(value, Path):
        return tagged("path", str(value))
    return tagged("windowspath" if isinstance(value, PureWindowsPath) else "posixpath", str(value))


def _lower_list(value: Any, depth: int) -> Any:
    if depth >= _MAX_DEPTH:
        raise _too_deep(value)
    # The whole list is looked at in C first: long ones nearly always hold one kind of scalar.
    kinds = set(map(type, value))
    if kinds <= _AS_IS or (len(kinds) == 1 and _is_safe(kinds, value)):
        return value
    lowered: list[Any] = []
    append = lowered.append
    try:
        for item in value:
            kind = type(item)
            if kind in _AS_IS or (kind is int and -_SAFE <= item <= _SAFE):
                append(item)
            else:
                append(_lowerings[kind](item, depth + 1))
    except Refused as refused:
        refused.leave(value, f"[{len(lowered)}]")
        raise
    return lowered


def _is_safe(kinds: set[type], value: Any) -> bool:
    if int in kinds:
        return bool(min(value) >= -_SAFE and max(value) <= _SAFE)
    return float in kinds and all(map(math.isfinite, value))


def _lower_set(value: Any, depth: int) -> Any:
    if depth >= _MAX_DEPTH:
        raise _too_deep(value)
    lowered = []
    try:
        for item in value:
            part = _lowerings[type(item)](item, depth + 3)
            lowered.append((_text(part), part))
    except Refused as refused:
        refused.leave(value, "{...}")
        raise
    # Sets have no order of their own; equal sets must have equal texts.
    lowered.sort(key=_first)
    for one, other in pairwise(lowered):
        if one[0] == other[0]:
            raise Refused(f"two members of the {type_name(type(value))} are both {one[0][:80]} as JSON; keep one")
    return tagged("frozenset" if isinstance(value, frozenset) else "set", [part for _, part in lowered])


def _first(pair: tuple[str, Any]) -> str:
    return pair[0]


def _lower_dict(value: Any, depth: int) -> Any:
    if depth >= _MAX_DEPTH:
        raise _too_deep(value)
    # Looked at beforehand: a dict that was lowered in part and then again as pairs would cost 2**depth.
    if TAG in value or not set(map(type, value)) <= _TEXT:
        return _lower_pairs(value, depth)
    lowered: dict[str, Any] = {}
    key = ""
    try:
        for key, item in value.items():
            kind = type(item)
            if kind in _AS_IS or (kind is int and -_SAFE <= item <= _SAFE):
                lowered[key] = item
            else:
                lowered[key] = _lowerings[kind](item, depth + 1)
    except Refused as refused:
        refused.leave(value, segment(key))
        raise
    return lowered


def _lower_pairs(value: Any, depth: int) -> Any:
    """A dict with keys that are no plain texts: an object after all if they lower to texts, else a list of pairs."""
    pairs: list[tuple[Any, Any]] = []
    key: Any = None
    try:
        for key, item in value.items():
            name = _lowerings[type(key)](key, depth + 4)
            if _holds_object(name):
                raise Refused(f"{type_name(type(key))} as the key of a dict; use text, numbers, UUIDs, dates or tuples")
            pairs.append((name, _lowerings[type(item)](item, depth + 4)))
    except Refused as refused:
        refused.leave(value, segment(key))
        raise
    if len({_text(name) for name, _ in pairs}) != len(pairs):
        raise Refused(f"two keys of the {type_name(type(value))} are the same as JSON; keep one")
    if all(isinstance(name, str) and name != TAG for name, _ in pairs):
        return dict(pairs)
    return tagged("dict", pairs)


def _holds_object(lowered: Any) -> bool:
    """Whether a lowered key holds an object that is no tag: read back it would be a dict, which is no key."""
    if isinstance(lowered, dict):
        return len(lowered) != 1 or TAG not in lowered
    return isinstance(lowered, list | tuple) and any(map(_holds_object, lowered))


def _lower_mapping(value: Mapping[Any, Any], depth: int) -> Any:
    return _lower_dict(dict(value), depth)


def _lower_enum(value: enum.Enum, depth: int) -> Any:
    member = value.value
    return _lowerings[type(member)](member, depth)


def _getter(names: list[str]) -> Callable[[Any], Iterable[Any]]:
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: [getattr(value, name) for name in names]


def _lowering_of_fields(names: Iterable[str], keys: Iterable[str], tag: tuple[str, Any] | None) -> Lowering:
    """An object of a class with known fields becomes an object; fields that are UNSET are left out."""
    key_of = list(keys)
    values_of = _getter(list(names))

    def lower(value: Any, depth: int) -> Any:
        if depth >= _MAX_DEPTH:
            raise _too_deep(value)
        lowered: dict[str, Any] = {} if tag is None else {tag[0]: tag[1]}
        key = ""
        try:
            for key, item in zip(key_of, values_of(value), strict=True):
                kind = type(item)
                if kind in _AS_IS or (kind is int and -_SAFE <= item <= _SAFE):
                    lowered[key] = item
                elif item is not msgspec.UNSET:
                    lowered[key] = _lowerings[kind](item, depth + 1)
        except Refused as refused:
            refused.leave(value, segment(key))
            raise
        except AttributeError as error:
            raise Refused(f"a field of this {type_name(type(value))} has no value ({error})") from None
        return lowered if TAG not in lowered else tagged("dict", list(lowered.items()))

    return lower


def _lowering_of_struct(kind: type[msgspec.Struct]) -> Lowering:
    config = kind.__struct_config__
    names, keys = kind.__struct_fields__, kind.__struct_encode_fields__
    if not config.array_like:
        tag = None if config.tag is None or config.tag_field is None else (config.tag_field, config.tag)
        return _lowering_of_fields(names, keys, tag)
    head = [] if config.tag is None else [config.tag]
    return lambda value, depth: _lower_list([*head, *(getattr(value, name) for name in names)], depth)


def _lower_model(value: Any, depth: int) -> Any:
    if depth >= _MAX_DEPTH:
        raise _too_deep(value)
    try:
        dumped = dump_model(value, json=False)
    except Exception as error:
        raise Refused(f"its {type_name(type(value))}.model_dump() fails: {error}") from error
    try:
        return _lowerings[type(dumped)](dumped, depth)
    except Refused:
        # Url and IP address objects have a JSON form that only the model knows. It is good if the model reads it back
        # as an equal one; a SecretStr, which dumps as asterisks, is not.
        try:
            alternative = dump_model(value, json=True)
            is_faithful = load_model(type(value), alternative) == value
        except Exception:  # noqa: BLE001 - serialisers and validators are user code
            is_faithful, alternative = False, None
        if not is_faithful:
            raise
        return _lowerings[type(alternative)](alternative, depth)


_ADVICE: tuple[tuple[Any, str], ...] = (
    ((types.FunctionType, types.BuiltinFunctionType, types.MethodType, type), "pass what it returns, or its name"),
    (io.IOBase, "store the path, or the content as bytes or an artifact"),
    ((Generator, Iterator), "make it a list"),
    (complex, "store [z.real, z.imag]"),
    (memoryview, "store bytes(view)"),
    (BaseException, "store its message"),
    (object, "return plain data, a dataclass, or a msgspec, pydantic or attrs class"),
)


def _refuse(value: Any, depth: int) -> Any:
    advice = next(text for kinds, text in _ADVICE if isinstance(value, kinds))
    raise Refused(f"{type_name(type(value))} has no JSON form; {advice}")


_BASES: dict[type, Lowering] = {
    **dict.fromkeys(_AS_IS, _lower_as_is),
    str: _lower_str,
    int: _lower_int,
    float: _lower_float,
    bytes: _lower_bytes,
    bytearray: _lower_bytes,
    list: _lower_list,
    tuple: _lower_list,
    dict: _lower_dict,
    set: _lower_set,
    frozenset: _lower_set,
    datetime: _lower_datetime,
    date: _lower_date,
    time: _lower_time,
    timedelta: _lower_timedelta,
    Decimal: _lower_decimal,
    UUID: _lower_uuid,
    PurePath: _lower_path,
    enum.Enum: _lower_enum,
}


def _lowering_of(kind: type) -> Lowering:
    """The lowering of a class that is met for the first time."""
    if issubclass(kind, enum.Enum):
        return _lower_enum
    if issubclass(kind, msgspec.Struct):
        return _lowering_of_struct(kind)
    if is_model(kind):
        return _lower_model
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        return _lowering_of_fields(names, names, None)
    if is_attrs(kind):
        names = [field.name for field in getattr(kind, "__attrs_attrs__")]  # noqa: B009 - attrs has no static type here
        return _lowering_of_fields(names, names, None)
    for base in kind.__mro__:
        if base in _BASES:
            return _BASES[base]
    return _lower_mapping if issubclass(kind, Mapping) else _refuse


class _Lowerings(dict[type, Lowering]):
    """The lowering of each class, found by one dict lookup; made when a class is first met."""

    def __missing__(self, kind: type) -> Lowering:
        if len(self) > _MAX_TYPES:
            self.clear()
        lowering = self[kind] = _lowering_of(kind)
        return lowering


_lowerings = _Lowerings()


def register(kind: type, lowering: Callable[[Callable[[Any, int], Any]], Lowering]) -> None:
    """Let a class of Treadle's own be encoded; `lowering` is given that of the parts."""
    _BASES[kind] = lowering(lambda value, depth: _lowerings[type(value)](value, depth))


def _text(lowered: Any) -> str:
    try:
        return _dump(lowered).decode()
    except UnicodeEncodeError:
        return _dump(tag_surrogates(lowered)).decode()


def encode(value: Any, declared: object = Any) -> str:
    """Return the JSON text of a value; raise EncodeError for what has none, naming its place.

    The text depends on the value alone: `declared` is accepted for symmetry, and checked when the text is decoded.
    """
    kind = type(value)
    if kind is int and -_SAFE <= value <= _SAFE:
        return str(value)
    try:
        return _text(_lowerings[kind](value, 0))
    except Refused as refused:
        raise refused.error() from refused.__cause__
    except RecursionError:
        # The bound on depth does not help where the caller's own stack is nearly used up.
        raise EncodeError(f"cannot store `$`: no stack is left to encode {type_name(kind)}") from None


# ---- decoding: tags become what they were, then the declared type has its say


def plain(text: str | bytes) -> object:
    """Return the JSON tree of a text as it stands, tags not interpreted; for `part` and `convert`."""
    try:
        return _load(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise DecodeError(f"not JSON that can be read: {error}") from None


def part(tree: Any, key: str | int) -> object:
    """Return one part of a plain tree, itself plain: the item of an object or an array, through a tagged dict too.

    Raises KeyError or IndexError where there is none, TypeError where the tree has no parts.
    """
    if isinstance(tree, list) and isinstance(key, int):
        return tree[key]
    if isinstance(tree, dict):
        if TAG in tree and len(tree) == 1:
            kind, body = tree[TAG]
            if kind != "dict":
                raise TypeError(f"a value of kind {kind} has no parts")
            return {freeze(lift(name)): item for name, item in body}[key]
        return tree[key]
    raise TypeError(f"{type_name(type(tree))} has no part {key!r}")


class Adapter:
    """The codec of one declared type, made once by `adapter`; calls that are made per step go straight to closures.

    `encode(value) -> str`, `decode(text) -> value`, `convert(tree) -> value`: as the functions of these names.
    """

    __slots__ = ("convert", "declared", "decode", "encode")

    encode: Callable[[object], str]
    decode: Callable[[str | bytes], Any]
    convert: Callable[[object], Any]

    def __init__(self, declared: object) -> None:
        self.declared = declared
        self.encode = encode
        if declared is Any or declared is object:
            self.decode, self.convert = _decode_any, _convert_any
            return
        typed = _typed(declared)
        self.convert = typed
        try:
            fast: Callable[[str | bytes], Any] = msgspec.json.Decoder(declared, dec_hook=hook).decode
        except Exception:  # noqa: BLE001 - some types (unions of text-like ones, say) are beyond msgspec, by various errors
            self.decode = lambda text: typed(plain(text))
        else:
            self.decode = _fast_decode(fast, typed)


def _fast_decode(fast: Callable[[str | bytes], Any], typed: Callable[[object], Any]) -> Callable[[str | bytes], Any]:
    def decode(text: Any) -> Any:
        if not (TAG in text if type(text) is str else _TAG_BYTES in text):
            try:
                return fast(text)
            except Exception:  # noqa: BLE001 - constructors are user code; the long way says what is wrong, and where
                return typed(plain(text))
        return typed(plain(text))

    return decode


def _typed(declared: object) -> Callable[[object], Any]:
    """The long way: lift the tags, then convert."""
    apply = converter(declared)
    # Of these a tree holds the values themselves.
    exact: Any = next((kind for kind in (str, bool, int, float) if declared is kind), None)

    def typed(tree: object) -> Any:
        if type(tree) is exact:
            return tree
        try:
            return apply(lift(tree))
        except Mismatch as mismatch:
            raise DecodeError(str(mismatch)) from None
        except DecodeError:
            raise
        except RecursionError:
            raise DecodeError("nested too deep to read") from None
        except Exception as error:
            raise DecodeError(f"making `{type_name(declared)}` fails: {type_name(type(error))}: {error}") from error

    return typed


def _convert_any(tree: object) -> Any:
    try:
        return lift(tree)
    except RecursionError:
        raise DecodeError("nested too deep to read") from None


def _decode_any(text: Any) -> Any:
    tree = plain(text)
    return _convert_any(tree) if (TAG in text if type(text) is str else _TAG_BYTES in text) else tree


_adapters: dict[object, Adapter] = {}


def adapter(declared: object) -> Adapter:
    """Return the adapter of a declared type, made at the first call for it."""
    try:
        known = _adapters.get(declared)
    except TypeError:  # Annotated with a list, say: it cannot be a key
        return Adapter(declared)
    if known is None:
        if len(_adapters) > _MAX_TYPES:
            _adapters.clear()
        known = _adapters[declared] = Adapter(declared)
    return known


def decode(text: str | bytes, declared: object = Any) -> Any:
    """Return the value of a JSON text as the declared type; raise DecodeError, naming the place, if it does not fit."""
    return adapter(declared).decode(text)


def convert(value: object, declared: object) -> Any:
    """Return the value of a plain JSON tree (see `plain`), as the declared type; the tree stays as it was."""
    return adapter(declared).convert(value)


def describe(declared: object) -> dict[str, Any]:
    """Return the JSON Schema of what people may write for a declared type; empty where there is none."""
    return json_schema(declared)
