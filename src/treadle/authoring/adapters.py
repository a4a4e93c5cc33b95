"""What both ways of the codec share: tags, classes of packages that may not be installed, and places in messages.

pydantic models and attrs classes are known by their shape: this module imports neither package.
"""

# The JSON border: pyright calls what `isinstance(value, list)` finds inside `Any` unknown, which here is the truth.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false

from __future__ import annotations

import base64
import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

import msgspec

from treadle.errors import DecodeError

TAG = "$treadle"
_SCALARS = frozenset({str, bool, types.NoneType, int, float})
_NAME = re.compile(r"[^\W\d]\w*\Z")


def segment(key: object) -> str:
    """One segment of a path in a message: `.name` where that can be read, `["any text"]` else."""
    if isinstance(key, str):
        return f".{key}" if _NAME.match(key) and len(key) <= 60 else f"[{key[:60]!r}]"
    return f"[{shown(key)}]"


def path_text(segments: Iterable[str]) -> str:
    """The segments as a path from the root `$`."""
    return "$" + "".join(segments)


def type_name(declared: object) -> str:
    """A type as a reader of the message knows it."""
    if declared is types.NoneType or declared is None:
        return "None"
    if declared is ...:
        return "..."
    origin, args = get_origin(declared), get_args(declared)
    if origin is None:
        return str(getattr(declared, "__name__", None) or declared).removeprefix("typing.")
    if origin in (Union, types.UnionType):
        return " | ".join(map(type_name, args))
    if origin in (Literal, Annotated):
        return str(declared).replace("typing.", "")[:200]
    return f"{type_name(origin)}[{', '.join(map(type_name, args))}]"


def shown(value: object) -> str:
    """A value in a message: short, and never an error of its own (CPython prints no integer of 5000 digits)."""
    try:
        return repr(value)[:80]
    except Exception:  # noqa: BLE001 - `__repr__` is user code
        return f"a {type_name(type(value))}"


class Mismatch(Exception):  # noqa: N818 - never leaves the codec; callers see DecodeError
    """A value that does not fit its declared type; each container on the way out adds its place."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.places: list[str] = []
        # No other member of a union around this place may be tried.
        self.is_final = False

    def copy(self) -> Mismatch:
        """The same mismatch, to be raised elsewhere."""
        twin = Mismatch(self.message)
        twin.places, twin.is_final = list(self.places), self.is_final
        return twin

    @classmethod
    def of(cls, expected: object, value: object) -> Mismatch:
        """The plain case: another type was expected."""
        return cls(f"expected `{type_name(expected)}`, got `{type_name(type(value))}`")

    def __str__(self) -> str:
        return f"at `{path_text(self.places[::-1])}`: {self.message}"


# ---- classes that are known by their shape, since their packages may not be installed


def is_model(kind: object) -> bool:
    """Whether this is a pydantic model (of pydantic 2)."""
    return isinstance(kind, type) and hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_validate")


def is_attrs(kind: object) -> bool:
    """Whether this is an attrs class."""
    return isinstance(kind, type) and hasattr(kind, "__attrs_attrs__")


_by_name: dict[object, bool] = {}


def _reads_names(model: Any) -> bool:
    """Whether the model's pydantic (2.11 and later) reads field names beside aliases: paths of Refs use the names."""
    base = model.model_validate.__func__
    known = _by_name.get(base)
    if known is None:
        known = _by_name[base] = "by_name" in inspect.signature(base).parameters
    return known


def dump_model(model: Any, *, json: bool) -> Any:
    """The fields of a pydantic model as values, or as pydantic's own JSON form of them."""
    return model.model_dump(
        mode="json" if json else "python",
        by_alias=not _reads_names(type(model)),
        round_trip=True,
        serialize_as_any=True,
        warnings=False,
    )


def load_model(model: Any, value: object) -> Any:
    """The pydantic model of a lifted value; raises Mismatch."""
    if isinstance(value, model):
        return value
    options = {"by_alias": True, "by_name": True} if _reads_names(model) else {}
    try:
        return model.model_validate(value, **options)
    except ValueError as error:
        if _is_json(value):
            # A strict model takes arrays for tuples and texts for dates only when told that it reads JSON.
            try:
                return model.model_validate_json(msgspec.json.encode(value), **options)
            except ValueError:
                pass
        raise _model_mismatch(model, error) from None


def _is_json(value: object) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str for key in value) and all(map(_is_json, value.values()))
    if type(value) is list:
        return all(map(_is_json, value))
    return type(value) in _SCALARS


def _model_mismatch(model: Any, error: Any) -> Mismatch:
    found = error.errors(include_url=False)[0] if hasattr(error, "errors") else {"msg": str(error)}
    got = type_name(type(found["input"])) if "input" in found else "?"
    mismatch = Mismatch(f"expected `{type_name(model)}`, got `{got}` that it refuses: {found['msg']}")
    mismatch.places.extend(segment(key) for key in reversed(found.get("loc", ())))
    return mismatch


def hook(declared: Any, value: Any) -> Any:
    """What msgspec calls for classes that it does not know."""
    kind = get_origin(declared) or declared
    if is_model(kind):
        try:
            return load_model(kind, value)
        except Mismatch as mismatch:
            raise ValueError(str(mismatch)) from None
    if isinstance(kind, type):
        if (wrap := getattr(kind, "__treadle_wrap__", None)) is not None:
            try:
                return wrap(get_args(declared), value)
            except Mismatch as mismatch:
                raise ValueError(str(mismatch)) from None
        if isinstance(value, kind):
            return value
        if isinstance(value, str) and issubclass(kind, PurePath):
            return kind(value)
        if isinstance(value, str) and kind is os.PathLike:
            return Path(value)
    raise ValueError(f"expected `{type_name(declared)}`, got `{type_name(type(value))}`")


def json_schema(declared: object) -> dict[str, Any]:
    """The JSON Schema of a type, as far as msgspec or pydantic give one."""
    try:
        if is_model(declared):
            return typing.cast("Any", declared).model_json_schema()  # type: ignore[no-any-return]  # pydantic is not imported
        return msgspec.json.schema(declared, schema_hook=_schema_of)
    except Exception:  # noqa: BLE001 - "no schema" has as many errors as there are types; none is a fault of the caller
        return {}


def _schema_of(kind: type) -> dict[str, Any]:
    if issubclass(kind, PurePath):
        return {"type": "string", "format": "path"}
    if is_model(kind):
        return {"type": "object", "title": kind.__name__}
    raise NotImplementedError


# ---- tags


def tagged(name: str, body: object) -> dict[str, list[object]]:
    """The tag of this name."""
    return {TAG: [name, body]}


def tag_surrogates(lowered: Any) -> Any:
    """Tag the texts that UTF-8 cannot hold: so rare that only the refusal of the encoder leads here."""
    kind = type(lowered)
    if kind is str:
        if _is_unicode(lowered):
            return lowered
        return tagged("str", lowered.encode("unicode_escape").decode("ascii"))
    if kind is dict:
        if all(map(_is_unicode, lowered)):
            return {key: tag_surrogates(item) for key, item in lowered.items()}
        return tagged("dict", [[tag_surrogates(key), tag_surrogates(item)] for key, item in lowered.items()])
    if isinstance(lowered, list | tuple):
        return [tag_surrogates(item) for item in lowered]
    return lowered


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def lift(tree: Any) -> Any:
    """Return a new tree with values in the place of their tags."""
    kind = type(tree)
    if kind is dict:
        if TAG in tree and len(tree) == 1:
            return _untag(tree[TAG])
        return {key: item if type(item) in _SCALARS else lift(item) for key, item in tree.items()}
    if kind is list:
        return [item if type(item) in _SCALARS else lift(item) for item in tree]
    return tree


def _untag(body: Any) -> Any:
    match body:
        case [str() as name, payload] if name in _LIFTS:
            try:
                return _LIFTS[name](lift(payload))
            except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
                if isinstance(error, DecodeError):
                    raise
                raise DecodeError(f"damaged value of kind {name}: {shown(payload)} ({error})") from None
        case _:
            raise DecodeError(
                f'{{"{TAG}": {shown(body)}}} is no value that this version knows; a dict with this key is '
                f'written as {{"{TAG}": ["dict", [[key, value], ...]]}}'
            )


def freeze(value: Any) -> Any:
    """What stood in a set or was a key could be hashed, so an array in its place was a tuple."""
    return tuple(map(freeze, value)) if type(value) is list else value


def _lift_set(make: Callable[[Iterable[Any]], Any]) -> Callable[[Any], Any]:
    def lift_items(items: Any) -> Any:
        frozen = [freeze(item) for item in items]
        try:
            return make(frozen)
        except TypeError:
            # Objects of frozen classes: until their type is applied they are dicts.
            return items

    return lift_items


def _lift_dict(pairs: Any) -> Any:
    return {freeze(key): item for key, item in pairs}


def _lift_int(text: str) -> int:
    return int(text, 16 if "x" in text else 10)


def _split(text: str) -> tuple[str, Any, int]:
    """The ISO 8601 part, the zone and the fold of a moment as the codec writes it."""
    moment, *suffixes = text.replace("]", "").split("[")
    fold = int(suffixes[-1:] == ["fold=1"])
    keys = suffixes[: len(suffixes) - fold]
    if not keys:
        return moment, None, fold
    from zoneinfo import ZoneInfo  # most programs name no zone, and it costs every import of treadle

    (key,) = keys
    return moment, ZoneInfo(key), fold


def _lift_datetime(text: str) -> datetime:
    iso, zone, fold = _split(text)
    moment = datetime.fromisoformat(iso).replace(fold=fold)
    if zone is None:
        return moment
    local = moment.replace(tzinfo=zone)
    # Where the zone's rules have changed since, the instant is what counts.
    return local if local.utcoffset() == moment.utcoffset() else moment.astimezone(zone)


def _lift_time(text: str) -> time:
    iso, zone, fold = _split(text)
    moment = time.fromisoformat(iso).replace(fold=fold)
    return moment if zone is None else moment.replace(tzinfo=zone)


def _lift_bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _lift_secret(value: Any) -> Any:
    from treadle.authoring.secrets import Secret  # most programs have none

    return Secret(value)


def _lift_secret_name(name: str) -> Any:
    from treadle.authoring.secrets import Secret

    return Secret.named(name)


def _refuse_hidden(key_id: str) -> Any:
    raise DecodeError(f"it is hidden: the run has it encoded with key {key_id!r}; plan the workflow anew")


_LIFTS: dict[str, Callable[[Any], Any]] = {
    "int": _lift_int,
    "float": float,
    "str": lambda text: text.encode("ascii").decode("unicode_escape"),
    "bytes": _lift_bytes,
    "bytearray": lambda text: bytearray(_lift_bytes(text)),
    "datetime": _lift_datetime,
    "date": date.fromisoformat,
    "time": _lift_time,
    "timedelta": lambda text: msgspec.convert(text, timedelta),
    "decimal": Decimal,
    "uuid": UUID,
    "path": Path,
    "posixpath": PurePosixPath,
    "windowspath": PureWindowsPath,
    "set": _lift_set(set),
    "frozenset": _lift_set(frozenset),
    "dict": _lift_dict,
    "hidden": _refuse_hidden,
    "secret": _lift_secret,
    "secret_name": _lift_secret_name,
}
