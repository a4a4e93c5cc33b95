"""The codec: every value comes back, or is refused by name."""

from __future__ import annotations

import dataclasses
import enum
import io
import json
import math
import string
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PureWindowsPath
from types import MappingProxyType
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from treadle.authoring import codec
from treadle.authoring.codec import adapter, convert, decode, describe, encode, part, plain
from treadle.errors import DecodeError, EncodeError

BERLIN = ZoneInfo("Europe/Berlin")


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Ratio(enum.Enum):
    HALF = 0.5
    PAIR = (1, 2)


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    name: str
    at: datetime
    tags: frozenset[str] = frozenset()


class Cat(msgspec.Struct, tag=True):
    name: str
    born: date


class Pair(msgspec.Struct, array_like=True):
    left: int
    right: bytes


class Model(pydantic.BaseModel):
    size: int = pydantic.Field(alias="theSize", ge=0)


class Secret(pydantic.BaseModel):
    key: pydantic.SecretStr


# ---- round trips without a type


def same(one: object, other: object) -> bool:
    """Equal, of equal types, nan and -0.0 included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float) and isinstance(other, float):
        return repr(one) == repr(other)
    if isinstance(one, Decimal):
        return repr(one) == repr(other)
    if isinstance(one, dict) and isinstance(other, dict):
        return len(one) == len(other) and all(
            same(a, b) and same(one[a], other[b]) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, set | frozenset) and isinstance(other, set | frozenset):
        return sorted(map(repr, one)) == sorted(map(repr, other))
    return one == other


zones = st.sampled_from([None, UTC, BERLIN, timezone(timedelta(hours=-3, minutes=-30, seconds=7))])
texts = st.text(st.characters(exclude_categories=[])) | st.sampled_from(
    ["$treadle", '{"$treadle":', "\ud83d\ude00", "\\ud800"]
)
hashable_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**54), 2**54)
    | st.integers(2**63, 2**66)
    | st.floats(allow_nan=False)
    | texts
    | st.binary(max_size=20)
    | st.datetimes(timezones=zones)
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.builds(Path, st.text(string.ascii_letters + "/. é\udc80", max_size=10))
    | st.builds(PureWindowsPath, st.text(string.ascii_letters, max_size=5))
)
keys = st.recursive(hashable_scalars, lambda inner: st.lists(inner, max_size=2).map(tuple), max_leaves=3)
scalars = hashable_scalars | st.floats() | st.decimals() | st.binary(max_size=9).map(bytearray)
lookalikes = st.fixed_dictionaries(
    {"$treadle": st.sampled_from([["bytes", "aGk="], ["set", []], ["dict", []], None, 1, "int", ["none", 1]])}
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = texts | st.sampled_from(["$treadle", "$$treadle", "a"])
    return (
        st.lists(inner, max_size=4)
        | st.dictionaries(names, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=3)
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
        | st.dictionaries(st.just("$treadle"), inner, min_size=1)
        | lookalikes
    )


values = st.recursive(scalars | lookalikes, containers, max_leaves=12)


def distinct_as_json(value: object) -> bool:
    """Whether no two keys or members become one: see the test of refusals."""
    try:
        encode(value)
    except EncodeError as error:
        return "keep one" not in str(error)
    return True


@given(values)
@example({"$treadle": ["bytes", "aGk="]})
@example({"$treadle": {"$treadle": {"\ud800": 1}}})
@example([2**53, 2**53 + 1, -(2**53) - 1, math.nan, -0.0, 1e22, "a\ud800"])
@example({(1, 2): {3: b""}})
def test_every_value_comes_back_without_a_type(value: object) -> None:
    assume(distinct_as_json(value))

    text = encode(value)

    assert same(decode(text), value)
    assert same(decode(text.encode()), value)
    assert same(convert(plain(text), Any), value)
    assert encode(decode(text)) == text


@given(values, st.sampled_from([int, list[int], Point, dict[str, Any], Any]))
def test_the_text_of_a_value_depends_on_nothing_but_the_value(value: object, declared: object) -> None:
    assume(distinct_as_json(value))

    text = encode(value)

    assert encode([value, {"a": value}]) == f'[{text},{{"a":{text}}}]'
    assert encode(value, declared) == adapter(declared).encode(value) == text


@given(values)
def test_the_text_is_json_that_every_reader_takes(value: object) -> None:
    assume(distinct_as_json(value))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    def number(digits: str) -> int:
        assert abs(int(digits)) <= 2**53
        return int(digits)

    encode(value).encode()
    json.loads(encode(value), parse_constant=refuse, parse_int=number)


@given(values)
def test_converting_a_tree_leaves_the_tree_alone(value: object) -> None:
    assume(distinct_as_json(value))
    tree = plain(encode(value))

    convert(tree, Any)

    assert tree == plain(encode(value))


@given(values, values)
def test_a_slot_may_be_composed_of_plain_parts(one: object, other: object) -> None:
    assume(distinct_as_json(one) and distinct_as_json(other))

    composed = {"a": [plain(encode(one)), 5], "b": plain(encode(other))}

    assert same(convert(composed, Any), {"a": [one, 5], "b": other})


def test_small_numbers_and_texts_are_written_as_json_has_them() -> None:
    assert encode([1, -0.0, 1.0, True, None, "é", [], {}, 2**53]) == '[1,-0.0,1.0,true,null,"é",[],{},9007199254740992]'
    assert encode(2**53 + 1) == '{"$treadle":["int","9007199254740993"]}'
    assert decode(encode(10**5000)) == 10**5000
    assert encode(math.inf) == '{"$treadle":["float","inf"]}'


def test_dicts_keep_their_order_and_sets_have_one_order() -> None:
    assert encode({"b": 1, "a": 2}) == '{"b":1,"a":2}'
    assert encode({3, 1, 2}) == encode({2, 3, 1}) == '{"$treadle":["set",[1,2,3]]}'
    assert encode({"\ud800", "a", "é"}) == encode({"é", "\ud800", "a"})


def test_tuples_are_lists_and_enums_are_their_values_without_a_type() -> None:
    assert decode(encode((1, (2,)))) == [1, [2]]
    assert decode(encode([Color.RED, Level.HIGH, Ratio.PAIR])) == ["red", 2, [1, 2]]
    assert decode(encode(Point(1))) == {"x": 1, "y": 0}
    assert decode(encode({Place("a", datetime(2024, 1, 1, tzinfo=UTC))}))[0]["name"] == "a"


def test_subclasses_of_plain_types_are_stored_as_the_plain_type() -> None:
    class Loud(str):
        def __str__(self) -> str:
            return "LOUD"

    class Big(int):
        pass

    class Row(list[Any]):
        pass

    assert same(decode(encode([Row([1, 2]), Row([1.5, b""]), Row()])), [[1, 2], [1.5, b""], []])
    ordered = OrderedDict(a=[Loud("quiet"), Big(2**60)])
    assert same(decode(encode(ordered)), {"a": ["quiet", 2**60]})
    assert decode(encode(defaultdict(list, {1: [2]}))) == {1: [2]}
    assert decode(encode(MappingProxyType({"a": 1}))) == {"a": 1}


def test_a_time_keeps_its_zone_on_both_sides_of_the_clock_change() -> None:
    for fold in (0, 1):
        moment = datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=fold)

        back = decode(encode(moment))

        assert back.tzinfo is BERLIN
        assert back.utcoffset() == moment.utcoffset()
    assert decode(encode(time(1, 2, tzinfo=BERLIN))) == time(1, 2, tzinfo=BERLIN)
    assert decode(encode(datetime(2024, 7, 1, tzinfo=BERLIN)), datetime) == datetime(2024, 7, 1, tzinfo=BERLIN)


@given(
    st.builds(Point, st.integers(), st.integers())
    | st.builds(Place, texts, st.datetimes(timezones=zones), st.frozensets(texts))
    | st.builds(Cat, texts, st.dates())
    | st.builds(Pair, st.integers(), st.binary())
)
def test_objects_of_classes_come_back_as_their_class(value: object) -> None:
    assert same(decode(encode(value), type(value)), value)
    assert same(decode(encode({"a": [value]}), dict[str, list[type(value)]])["a"][0], value)  # type: ignore[misc]  # made at run time


# ---- what does not fit


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "nan",
        "1e999",
        b"\xff",
        '"\ud800"',
        "[" * 100_000,
        "[" * 200_000 + "]" * 200_000,
        '{"$treadle":["none",1]}',
        '{"$treadle":5}',
        '{"$treadle":["bytes","?"]}',
        '{"$treadle":["int",[]]}',
        '{"$treadle":["int","1e5"]}',
        '{"$treadle":["dict",[[1]]]}',
        '{"$treadle":["dict",5]}',
        '{"$treadle":["set",5]}',
        '{"$treadle":["datetime","2024-01-01T00:00:00+00:00[No/Where]"]}',
        '{"$treadle":["datetime","2024-01-01T00:00:00+00:00[../../etc/passwd]"]}',
        '{"$treadle":["decimal","x"]}',
        '{"$treadle":["str","\\\\ud8"]}',
        '{"$treadle":["path","a","b"]}',
    ],
)
@pytest.mark.parametrize("declared", [Any, int, dict[str, Any], dict[str, str | Path]])
def test_damaged_text_is_a_decode_error(text: str | bytes, declared: object) -> None:
    with pytest.raises(DecodeError):
        decode(text, declared)


def test_a_lone_tag_that_is_nested_too_deep_is_a_decode_error() -> None:
    text = "[" * 3000 + encode(b"x") + "]" * 3000

    with pytest.raises(DecodeError):
        decode(text)
    with pytest.raises(DecodeError):
        decode(text, list[Any])


def iterate() -> Iterator[int]:
    yield 1


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


class Opaque:
    pass


@pytest.mark.parametrize(
    ("value", "fragments"),
    [
        (len, ["`$`", "builtin_function_or_method", "name"]),
        (lambda: 1, ["`$`", "function"]),
        (int, ["`$`", "type"]),
        ({"a": [1, {"b c": io.StringIO()}]}, ["`$.a[1]['b c']`", "StringIO", "path"]),
        ([iterate()], ["`$[0]`", "generator", "list"]),
        ({"z": 1j}, ["`$.z`", "complex", "z.real"]),
        (Point(Opaque()), ["`$.x`", "Opaque", "dataclass"]),  # type: ignore[arg-type]  # wrong on purpose
        (Cat(Opaque(), date(2024, 1, 1)), ["`$.name`", "Opaque"]),  # type: ignore[arg-type]  # wrong on purpose
        ({1: [Opaque()]}, ["`$[1][0]`", "Opaque"]),
        ({Opaque()}, ["`${...}`", "Opaque"]),
        ({Opaque(): 1}, ["Opaque"]),
        ({Place("a", datetime(2024, 1, 1, tzinfo=UTC)): 1}, ["Place as the key of a dict"]),
        (memoryview(b"a"), ["memoryview", "bytes"]),
        (ValueError("x"), ["ValueError", "message"]),
        (msgspec.UNSET, ["UnsetType"]),
        ({Color.RED: 1, "red": 2}, ["two keys"]),
        ({Color.RED, "red"}, ["two members"]),
        (Secret(key=pydantic.SecretStr("s3cret")), ["`$.key`", "SecretStr"]),
        (nested(201), ["nested more than 200", "`$[0][0]"]),
        (nested(100_000), ["nested more than 200"]),
    ],
)
def test_what_has_no_json_is_refused_by_place_and_type(value: object, fragments: list[str]) -> None:
    with pytest.raises(EncodeError) as caught:
        encode(value)

    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_cycle_is_named_as_one() -> None:
    value: dict[str, Any] = {"a": [1, {}]}
    value["a"][1]["back"] = value["a"]
    point = Point(1)
    point.x = point  # type: ignore[assignment]  # wrong on purpose

    with pytest.raises(EncodeError, match=r"`\$\.a\[1\]\.back`: it is the list at `\$\.a` again"):
        encode(value)
    with pytest.raises(EncodeError, match=r"`\$\.x`: it is the Point at `\$` again"):
        encode(point)


def test_what_is_just_not_too_deep_comes_back() -> None:
    pairs: Any = 1
    for _ in range(49):
        pairs = {1: pairs}

    assert decode(encode(nested(200))) == nested(200)
    assert decode(encode([*nested(199), b"a"]))[1] == b"a"
    assert decode(encode(pairs)) == pairs
    assert convert(plain(encode(nested(200))), list[Any]) == nested(200)


@pytest.mark.parametrize("key", [1, "$treadle", Color.RED])
def test_odd_dicts_inside_odd_dicts_cost_no_more_than_their_size(key: object) -> None:
    value: Any = b"x"
    for _ in range(45):
        value = {"a": 0, key: value}

    assert encode(decode(encode(value))) == encode(value)
    assert "bytes" in encode(value)


def test_a_used_up_stack_is_an_encode_error() -> None:
    def dive(room: int) -> str:
        return encode(nested(190)) if room == 0 else dive(room - 1)

    frames = 0
    frame = sys._getframe()
    while frame.f_back is not None:
        frame, frames = frame.f_back, frames + 1
    with pytest.raises(EncodeError, match="no stack is left"):
        dive(sys.getrecursionlimit() - frames - 60)


# ---- parts, schemas, adapters


def test_a_part_of_a_plain_tree_is_plain_again() -> None:
    tree = plain(encode({"a": [b"x", {1: "one", (2, 3): {4}}], "$treadle": 5}))

    inner = part(part(tree, "a"), 1)

    assert part(tree, "$treadle") == 5
    assert convert(part(part(tree, "a"), 0), bytes) == b"x"
    assert part(inner, 1) == "one"
    with pytest.raises(KeyError):
        part(inner, 2)
    with pytest.raises(IndexError):
        part(part(tree, "a"), 9)
    with pytest.raises(TypeError, match="bytes has no parts"):
        part(part(part(tree, "a"), 0), 0)
    with pytest.raises(TypeError, match="int has no part"):
        part(5, "a")


def test_types_describe_themselves_as_json_schema() -> None:
    assert describe(int) == {"type": "integer"}
    assert describe(Path) == {"type": "string", "format": "path"}
    assert describe(Point)["$defs"]["Point"]["required"] == ["x"]
    assert describe(Model)["properties"]["theSize"]["minimum"] == 0
    assert describe(list[Model])["items"]["title"] == "Model"
    assert describe(Any) == {}
    assert describe(str | Path) == {}
    assert describe(Callable[[], int]) == {}


def test_an_adapter_is_made_once_for_each_type() -> None:
    assert adapter(list[int]) is adapter(list[int])
    assert adapter(Annotated[int, ["unhashable"]]).decode("5") == 5


def test_classes_made_at_run_time_do_not_pile_up() -> None:
    for _ in range(codec._MAX_TYPES + 10):
        encode(type("Made", (int,), {})(5))

    assert len(codec._lowerings) < codec._MAX_TYPES + 5
    assert encode([5, "a"]) == '[5,"a"]'
