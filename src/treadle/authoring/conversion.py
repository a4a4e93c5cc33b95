"""From lifted values to a declared type, where msgspec alone does not do.

msgspec converts what it knows. This module does what it does not: unions of several text-like types or classes, enums
of any values, classes that hold such fields, and the exact place of a mismatch (msgspec says `$[...]` in a dict).
A union takes the member that fits: `None`, literals and enums by value, then the member of the value's own type, then
the others as declared. Among classes the one with exactly these keys wins; two that fit alike are a mismatch, since a
guess would be a silent mistake.
"""

# The JSON border: pyright calls what `isinstance(value, list)` finds inside `Any` unknown, which here is the truth.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Union, get_args, get_origin

import msgspec

from treadle.authoring.adapters import Mismatch, hook, is_attrs, is_model, load_model, segment, shown, type_name

# What msgspec puts behind its message: "Expected `int`, got `str` - at `$.steps[0].x`".
_PLACE = re.compile(r" - at (?:`key` in )?`\$(.*)`\Z")
_WORDS = {"null": "None", "array": "list", "object": "dict"}
_EXPECTED = re.compile(r"[Ee]xpected `([^`]*)`, got `[^`]*`\Z")

# Converts a lifted value; raises Mismatch.
Convert = Callable[[Any], Any]


# ---- the declared type


def converter(declared: object) -> Convert:
    """Return the conversion of lifted values to a declared type; it raises Mismatch."""
    if not is_readable(declared):
        return _compile(declared)
    return _Leaf(declared)


def is_readable(declared: object) -> bool:
    """Whether msgspec can convert to this type, with the hook for classes that it does not know."""
    try:
        msgspec.json.Decoder(declared, dec_hook=hook)
    except Exception:  # noqa: BLE001 - a type, an unresolvable name or a user's metaclass: in each case the answer is no
        return False
    return True


class _Leaf:
    """A type that msgspec converts; our own conversion is only made to name the place of a mismatch."""

    def __init__(self, declared: Any) -> None:
        self._declared = declared

    def __call__(self, value: Any) -> Any:
        try:
            return msgspec.convert(value, self._declared, str_keys=True, dec_hook=hook)
        except (msgspec.ValidationError, OverflowError) as error:
            self._find(value)
            raise self._mismatch(value, str(error)) from None

    def _mismatch(self, value: Any, message: str) -> Mismatch:
        place = _PLACE.search(message)
        message = _PLACE.sub("", message)
        expected = _EXPECTED.match(message)
        if expected and not place:
            # msgspec says `null`, `array` and `object`; the reader wrote Python.
            words = re.sub(r"\b(?:null|array|object)\b", lambda word: _WORDS[word[0]], expected[1])
            return Mismatch(f"expected `{words}`, got `{type_name(type(value))}`")
        if "`, got `" not in message:
            message = f"{Mismatch.of(self._declared, value).message}: {message}"
        mismatch = Mismatch(message[:1].lower() + message[1:])
        if place:
            mismatch.places.append(place[1])
        return mismatch

    def _find(self, value: Any) -> None:
        exact = _compile(self._declared)
        if not isinstance(exact, _Leaf):
            exact(value)


_UNIONS = (Union, types.UnionType)
_WRAPPERS = (typing.Required, typing.NotRequired, typing.Final, typing.ClassVar)
_LISTS: dict[object, Callable[[Iterable[Any]], Any]] = {
    list: list,
    set: set,
    frozenset: frozenset,
    tuple: tuple,
    collections.abc.Collection: list,
    collections.abc.Sequence: list,
    collections.abc.MutableSequence: list,
    collections.abc.Set: set,
    collections.abc.MutableSet: set,
}
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def _unwrap(declared: Any) -> Any:
    """The type behind NewType, Annotated, aliases and qualifiers."""
    while True:
        origin = get_origin(declared)
        if hasattr(declared, "__supertype__"):
            declared = declared.__supertype__
        elif hasattr(declared, "__value__"):  # `type Name = ...` of Python 3.12
            declared = declared.__value__
        elif origin is typing.Annotated or origin in _WRAPPERS:
            declared = get_args(declared)[0]
        elif origin is not None and hasattr(origin, "__value__"):
            declared = origin.__value__[get_args(declared)]
        else:
            return declared


def _same(value: Any) -> Any:
    return value


def _compile(declared: Any) -> Convert:
    """Our own conversion: exact in its messages, and of types that msgspec refuses."""
    try:
        known = _compiled.get(declared)
    except TypeError:  # unhashable metadata in Annotated
        return _make(declared)
    if known is None:
        if len(_compiled) > _MAX_TYPES:
            _compiled.clear()
        known = _compiled[declared] = _make(declared)
    return known


# Classes that hold themselves come back to one conversion, not to a new one at each level.
_compiled: dict[Any, Convert] = {}
_MAX_TYPES = 4096


def _make(declared: Any) -> Convert:
    inner = _unwrap(declared)
    if inner in (Any, object) or isinstance(inner, typing.TypeVar):
        return _same
    kind = get_origin(inner) or inner
    args = get_args(inner)
    if kind in _UNIONS:
        return _Choice(inner, args)
    if kind is typing.Literal:
        return lambda value: _literal(inner, args, value)
    if kind is tuple and args and args[-1] is not ...:
        return _Tuple(inner, args)
    if kind in _LISTS:
        return _Items(inner, _LISTS[kind], _part(args[0] if args else Any))
    if kind in _DICTS:
        return _Pairs(inner, *(args or (Any, Any)))
    if is_model(kind):
        return lambda value: load_model(kind, value)
    if _has_fields(kind):
        return _Record(inner, kind, args)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return lambda value: _member(kind, value)
    return _Leaf(declared)


def _part(declared: Any) -> Convert:
    return _compile(declared) if _has_parts(_unwrap(declared)) else converter(declared)


def _has_parts(declared: Any) -> bool:
    return get_origin(declared) is not None or _has_fields(declared) or declared in _LISTS or declared in _DICTS


def _has_fields(kind: Any) -> bool:
    if not isinstance(kind, type):
        return False
    return (
        issubclass(kind, msgspec.Struct)
        or dataclasses.is_dataclass(kind)
        or is_attrs(kind)
        or typing.is_typeddict(kind)
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    )


def _literal(declared: object, values: Sequence[Any], value: Any) -> Any:
    for known in values:
        stored = known.value if isinstance(known, enum.Enum) else known
        if type(stored) is type(value) and stored == value:
            return known
    raise Mismatch(f"expected `{type_name(declared)}`, got {shown(value)}")


def _member(kind: type[enum.Enum], value: Any) -> Any:
    for member in kind:
        if _plainly(member.value) == _plainly(value):
            return member
    try:
        return kind(value)
    except ValueError:
        raise Mismatch(f"expected `{type_name(kind)}`, got {shown(value)}") from None


def _plainly(value: Any) -> Any:
    """Values as they compare after JSON: a tuple is a list there, and 1 is not True."""
    if isinstance(value, list | tuple):
        return [_plainly(item) for item in value]
    return (type(value), value)


class _Items:
    """list[T] and its like."""

    def __init__(self, declared: Any, make: Callable[[Iterable[Any]], Any], item: Convert) -> None:
        self._declared, self._make, self._item = declared, make, item

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, list | tuple | set | frozenset):
            raise Mismatch.of(self._declared, value)
        items: list[Any] = []
        try:
            for item in value:
                items.append(self._item(item))  # noqa: PERF401 - the length is the place of a mismatch
        except Mismatch as mismatch:
            mismatch.places.append(f"[{len(items)}]")
            raise
        try:
            return self._make(items)
        except TypeError as error:
            raise Mismatch(f"expected `{type_name(self._declared)}`: {error}") from None


class _Tuple:
    """tuple[A, B]: each place has its type."""

    def __init__(self, declared: Any, args: Sequence[Any]) -> None:
        self._declared, self._parts = declared, [_part(arg) for arg in args if arg != ()]

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise Mismatch.of(self._declared, value)
        if len(value) != len(self._parts):
            raise Mismatch(f"expected `{type_name(self._declared)}`, got {len(value)} items")
        items: list[Any] = []
        try:
            for convert, item in zip(self._parts, value, strict=True):
                items.append(convert(item))
        except Mismatch as mismatch:
            mismatch.places.append(f"[{len(items)}]")
            raise
        return tuple(items)


class _Pairs:
    """dict[K, V]; keys written as text are read as K."""

    def __init__(self, declared: Any, key: Any, item: Any) -> None:
        self._declared, self._item = declared, _part(item)
        self._key = _key_converter(key)

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise Mismatch.of(self._declared, value)
        result: dict[Any, Any] = {}
        key: Any = None
        try:
            for key, item in value.items():
                result[self._key(key)] = self._item(item)
        except Mismatch as mismatch:
            mismatch.places.append(segment(key))
            raise
        return result


def _key_converter(declared: Any) -> Convert:
    if declared in (Any, str):
        return _same if declared is Any else _part(str)
    exact = _part(declared)
    holder: Any = dict[declared, None]
    if not is_readable(holder):
        return exact

    def convert(key: Any) -> Any:
        try:
            return next(iter(msgspec.convert({key: None}, holder, str_keys=True, dec_hook=hook)))
        except (msgspec.ValidationError, OverflowError):
            return exact(key)

    return convert


class _Field(typing.NamedTuple):
    name: str
    key: str
    required: bool
    convert: Convert


class _Record:
    """A class with fields. They are read at the first use, since classes may hold themselves."""

    def __init__(self, declared: Any, kind: Any, args: Sequence[Any]) -> None:
        self._declared, self._kind, self._args = declared, kind, args
        self._fields: list[_Field] | None = None
        config = getattr(kind, "__struct_config__", None)
        self._tag = (config.tag_field, config.tag) if config is not None and config.tag is not None else None
        self._closed = config is not None and config.forbid_unknown_fields
        self._is_array = config is not None and config.array_like

    @property
    def fields(self) -> list[_Field]:
        if self._fields is None:
            self._fields = _fields_of(self._kind, self._args)
        return self._fields

    def keys(self) -> set[str]:
        return {field.key for field in self.fields} | ({self._tag[0]} if self._tag else set())

    def __call__(self, value: Any) -> Any:
        if isinstance(value, list | tuple) and (self._is_array or issubclass(self._kind, tuple)):
            head = [self._tag[0]] if self._tag else []
            if len(value) > len(head) + len(self.fields):
                raise Mismatch(f"expected `{type_name(self._declared)}`, got {len(value)} items")
            value = dict(zip([*head, *(field.key for field in self.fields)], value, strict=False))
        elif not isinstance(value, dict):
            raise Mismatch.of(self._declared, value)
        self._check_keys(value)
        values: dict[str, Any] = {}
        for field in self.fields:
            if field.key in value:
                try:
                    values[field.name] = field.convert(value[field.key])
                except Mismatch as mismatch:
                    mismatch.places.append(segment(field.key))
                    raise
        return self._make(values)

    def _check_keys(self, value: Mapping[Any, Any]) -> None:
        if self._tag and value.get(self._tag[0], self._tag[1]) != self._tag[1]:
            found = shown(value[self._tag[0]])
            raise Mismatch(f"expected `{type_name(self._declared)}`, got {self._tag[0]} {found}")
        if self._closed and (unknown := sorted(set(value) - self.keys(), key=str)):
            raise Mismatch(f"expected `{type_name(self._declared)}`, got the unknown field {shown(unknown[0])}")
        for field in self.fields:
            if field.required and field.key not in value:
                raise Mismatch(f"expected `{type_name(self._declared)}`, got no `{field.key}`")

    def _make(self, values: dict[str, Any]) -> Any:
        kind: Any = self._kind
        late: dict[str, Any] = {}
        if is_attrs(kind):
            attributes = kind.__attrs_attrs__
            late = {a.name: values.pop(a.name) for a in attributes if not a.init and a.name in values}
            values = {a.alias: values[a.name] for a in attributes if a.name in values}
        elif dataclasses.is_dataclass(kind):
            names = [field.name for field in dataclasses.fields(kind) if not field.init]
            late = {name: values.pop(name) for name in names if name in values}
        try:
            made = self._kind(**values)
        except (TypeError, ValueError) as error:
            raise Mismatch(f"expected `{type_name(self._declared)}`, which refuses these values: {error}") from None
        for name, item in late.items():
            object.__setattr__(made, name, item)
        return made


def _fields_of(kind: Any, args: Sequence[Any]) -> list[_Field]:
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except (NameError, TypeError) as error:
        raise Mismatch(f"the annotations of {type_name(kind)} cannot be read: {error}") from None
    known = dict(zip(getattr(kind, "__parameters__", ()), args, strict=False))

    def field(name: str, key: str, *, required: bool) -> _Field:
        hint = hints.get(name, Any)
        while get_origin(hint) in _WRAPPERS:
            hint = get_args(hint)[0]
        return _Field(name, key, required, _part(_substitute(hint, known)))

    if issubclass(kind, msgspec.Struct):
        return [field(info.name, info.encode_name, required=info.required) for info in msgspec.structs.fields(kind)]
    if dataclasses.is_dataclass(kind):
        missing = dataclasses.MISSING
        return [
            field(f.name, f.name, required=f.init and f.default is missing and f.default_factory is missing)
            for f in dataclasses.fields(kind)
        ]
    if is_attrs(kind):
        attributes = kind.__attrs_attrs__
        return [field(a.name, a.name, required=a.init and repr(a.default) == "NOTHING") for a in attributes]
    if typing.is_typeddict(kind):
        required_keys = kind.__required_keys__
        # __required_keys__ does not see through annotations that are text.
        said = {typing.Required: True, typing.NotRequired: False}
        return [
            field(name, name, required=said.get(get_origin(hint), name in required_keys))
            for name, hint in hints.items()
        ]
    return [field(name, name, required=name not in kind._field_defaults) for name in kind._fields]


def _substitute(hint: Any, known: Mapping[Any, Any]) -> Any:
    """The hint of a generic class's field, with the arguments the class was given."""
    if isinstance(hint, typing.TypeVar):
        return known.get(hint, hint)
    parameters = getattr(hint, "__parameters__", ())
    if not known or not parameters or isinstance(hint, type):
        return hint
    return hint[tuple(known.get(parameter, Any) for parameter in parameters)]


# What each union made of each object, while the outermost union of a conversion is at work.
_tried: ContextVar[dict[tuple[int, int], Any] | None] = ContextVar("_tried", default=None)


class _Choice:
    """A union; the module's docstring says which member a value gets."""

    def __init__(self, declared: Any, args: Sequence[Any]) -> None:
        self._declared = declared
        self._members = [(_unwrap(arg), _part(arg)) for arg in args]

    def __call__(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self._object(value)
        mismatches: list[Mismatch] = []
        for _, convert in sorted(self._members, key=lambda member: _rank(member[0], value)):
            try:
                return convert(value)
            except Mismatch as mismatch:
                if mismatch.is_final:
                    raise
                mismatches.append(mismatch)
        raise self._mismatch(value, mismatches)

    def _object(self, value: dict[Any, Any]) -> Any:
        """Each object of the tree is tried once for each union: unions inside unions would else cost 2**depth."""
        tried = _tried.get()
        if tried is None:
            token = _tried.set({})
            try:
                return self._object(value)
            finally:
                _tried.reset(token)
        # Ids are safe as keys while the outermost union holds the tree.
        place = (id(self), id(value))
        if place not in tried:
            try:
                tried[place] = self._closest(value)
            except Mismatch as mismatch:
                tried[place] = mismatch.copy()
                raise
        known = tried[place]
        if isinstance(known, Mismatch):
            raise known.copy()
        return known

    def _closest(self, value: dict[Any, Any]) -> Any:
        mismatches: list[Mismatch] = []
        by_closeness: dict[int, list[Convert]] = {}
        for declared, convert in self._members:
            by_closeness.setdefault(_closeness(declared, convert, value), []).append(convert)
        for closeness in sorted(by_closeness, reverse=True):
            fits = []
            for convert in by_closeness[closeness]:
                try:
                    fits.append(convert(value))
                except Mismatch as mismatch:
                    if mismatch.is_final:
                        raise
                    mismatches.append(mismatch)
            if len(fits) > 1 and closeness:
                raise self._ambiguity(fits)
            if fits:
                return fits[0]
        if len(by_closeness.get(2, ())) == 1:
            # Only one member has exactly these keys: what it says of them is what the reader needs.
            raise mismatches[0]
        raise self._mismatch(value, mismatches)

    def _ambiguity(self, fits: Sequence[object]) -> Mismatch:
        names = " and ".join(f"`{type_name(type(made))}`" for made in fits)
        mismatch = Mismatch(
            f"expected `{type_name(self._declared)}`, got an object that fits {names} alike; make them "
            "msgspec Structs with tag=True, or give them a Literal field that differs"
        )
        mismatch.is_final = True
        return mismatch

    def _mismatch(self, value: Any, mismatches: Sequence[Mismatch]) -> Mismatch:
        inside = [mismatch for mismatch in mismatches if mismatch.places]
        if len(inside) == 1:
            # One member has this shape: the place inside it says more than the union's name.
            return inside[0]
        if isinstance(value, dict):
            reasons = "; ".join(dict.fromkeys(mismatch.message for mismatch in mismatches))
            return Mismatch(f"expected `{type_name(self._declared)}`, got an object that fits none: {reasons[:400]}")
        return Mismatch.of(self._declared, value)


def _rank(declared: Any, value: Any) -> int:
    kind = get_origin(declared) or declared
    if kind is types.NoneType or kind is typing.Literal or (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        return 0
    if type(value) is kind:
        return 1
    return 2 if isinstance(kind, type) and isinstance(value, kind) else 3


def _closeness(declared: Any, convert: Convert, value: Mapping[Any, Any]) -> int:
    """How well an object fits a member that accepts it: 2 all keys and no others, 1 a class, 0 a dict."""
    if isinstance(convert, _Record):
        return 2 if convert.keys() == set(value) else 1
    if is_model(declared):
        return 2 if set(declared.model_fields) == set(value) else 1
    return 0
