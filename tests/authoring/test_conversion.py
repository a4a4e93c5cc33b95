"""Typed decoding: every kind of annotation, and what a value that does not fit is told."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Required,
    TypedDict,
    TypeVar,
)
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from treadle.authoring.codec import adapter, convert, decode, encode, plain
from treadle.errors import DecodeError

T = TypeVar("T")
UserId = NewType("UserId", int)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Ratio(enum.Enum):
    HALF = 0.5
    PAIR = (1, 2)


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    name: str
    at: datetime
    tags: frozenset[str] = frozenset()


@dataclasses.dataclass
class Box(Generic[T]):
    item: T
    more: list[T] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Tree:
    value: int
    children: list[Tree] = dataclasses.field(default_factory=list)
    area: float = dataclasses.field(default=0.0, init=False)


@dataclasses.dataclass
class Mixed:
    where: str | Path
    when: datetime | str | None = None
    shape: Circle | Square | None = None
    box: Box[int | Decimal] | None = None


@dataclasses.dataclass
class Circle:
    radius: float


@dataclasses.dataclass
class Square:
    side: float
    name: str = ""


@dataclasses.dataclass
class Twin:
    radius: float


class Cat(msgspec.Struct, tag=True):
    name: str
    born: date


class Dog(msgspec.Struct, tag="dog", rename="camel"):
    name: str
    good_boy: bool = True


class Pair(msgspec.Struct, array_like=True):
    left: int
    right: bytes


class Sparse(msgspec.Struct):
    known: int | msgspec.UnsetType = msgspec.UNSET


@attrs.define
class Part:
    _number: int
    made: date
    weight: float = attrs.field(default=1.0)
    seen: int = attrs.field(default=0, init=False)


@attrs.define
class Loose:
    _where: str | Path
    seen: int = attrs.field(default=0, init=False)


class Movie(TypedDict):
    title: str
    raw: bytes
    year: NotRequired[int]


class Address(TypedDict, total=False):
    where: Required[str | Path]
    when: date


class Spot(NamedTuple):
    x: int
    when: date
    note: str | Path = ""


class Nested(pydantic.BaseModel):
    ids: set[UUID]
    raw: bytes


class Model(pydantic.BaseModel):
    size: int = pydantic.Field(alias="theSize", ge=0)
    when: datetime
    ratio: float = 1.0
    price: Decimal = Decimal(1)
    nested: Nested | None = None

    @pydantic.computed_field  # type: ignore[prop-decorator]  # as pydantic's own documentation has it
    @property
    def double(self) -> int:
        return self.size * 2


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")
    spot: tuple[int, int]
    color: Color


class Linked(pydantic.BaseModel):
    url: pydantic.HttpUrl


TYPED: list[tuple[object, object]] = [
    (None, None),
    (True, bool),
    (5, int),
    (10**400, int),
    (1.5, float),
    (math.inf, float),
    ("a\ud800", str),
    (b"\xff", bytes),
    (bytearray(b"a"), bytearray),
    ([1, 2**70], list[int]),
    ([1, 2], Sequence[int]),
    ({"a": 1}, Mapping[str, int]),
    ((1, "a"), tuple[int, str]),
    ((1, 2, 3), tuple[int, ...]),
    ((), tuple[()]),
    ({1, 2}, set[int]),
    ({(1, 2)}, set[tuple[int, int]]),
    (frozenset({b"a"}), frozenset[bytes]),
    ({1: "a"}, dict[int, str]),
    ({(1, 2): "a"}, dict[tuple[int, int], str]),
    ({Color.RED: 1}, dict[Color, int]),
    ({Level.LOW: 1}, dict[Level, int]),
    ({UUID(int=5): 1}, dict[UUID, int]),
    ({date(2024, 1, 2): 1}, dict[date, int]),
    ({True: 1}, dict[bool, int]),
    ({Spot(1, date(2024, 1, 1)): 1}, dict[Spot, int]),
    ({"$treadle": b"x"}, dict[str, bytes]),
    (datetime(2024, 1, 2, 3, 4, 5, 6), datetime),  # noqa: DTZ001 - naive ones are values too
    (datetime(2024, 1, 2, tzinfo=UTC), datetime),
    (date(2024, 1, 2), date),
    (time(1, 2, 3, 4), time),
    (timedelta(days=-1, microseconds=3), timedelta),
    (Decimal("1.10"), Decimal),
    (UUID(int=7), UUID),
    (Path("a/b"), Path),
    (Path("a/b"), Path | None),
    (PurePosixPath("a"), PurePosixPath),
    (Color.BLUE, Color),
    (Level.HIGH, Level),
    (Ratio.HALF, Ratio),
    (Ratio.PAIR, Ratio),
    (Rights.READ | Rights.WRITE, Rights),
    (Point(1, 2), Point),
    (Place("a", datetime(2024, 1, 1, tzinfo=UTC), frozenset({"x"})), Place),
    ({Place("a", datetime(2024, 1, 1, tzinfo=UTC))}, set[Place]),
    (Box(1, [2]), Box[int]),
    (Box(Point(1), [Point(2)]), Box[Point]),
    (Tree(1, [Tree(2), Tree(3, [Tree(4)])]), Tree),
    (Mixed(Path("a"), "2024-01-01", Circle(1.0), Box(1, [2])), Mixed),
    (Mixed("a", datetime(2024, 1, 1, tzinfo=UTC), Square(1.0), Box(Decimal(1))), Mixed),
    (Cat("a", date(2024, 1, 1)), Cat),
    (Dog("a", good_boy=False), Cat | Dog),
    ([Cat("a", date(2024, 1, 1)), Dog("b"), Path("x")], list[Cat | Dog | Path]),
    (Pair(1, b"x"), Pair),
    (Sparse(), Sparse),
    (Part(1, date(2024, 1, 1)), Part),
    (Loose(Path("a")), Loose),
    ({"title": "a", "raw": b"b"}, Movie),
    ({"where": Path("a")}, Address),
    ({"where": "a", "when": date(2024, 1, 1)}, Address),
    (Spot(1, date(2024, 1, 1)), Spot),
    (Spot(1, date(2024, 1, 1), Path("a")), Spot),
    (Model(theSize=1, when=datetime(2024, 1, 1, tzinfo=UTC)), Model),
    ([Model(theSize=1, when=datetime(2024, 1, 1, tzinfo=UTC), ratio=math.inf, price=Decimal("0.10"))], list[Model]),
    (
        Model(theSize=1, when=datetime(2024, 1, 1, tzinfo=UTC), nested=Nested(ids={UUID(int=1)}, raw=b"\xff")),
        Model | None,
    ),
    (Strict(spot=(1, 2), color=Color.RED), Strict),
    (Linked(url=pydantic.HttpUrl("http://localhost/a")), Linked),
    (Linked(url=pydantic.HttpUrl("http://localhost/a")), Linked | Strict),
    (5, Optional[int]),  # noqa: UP045 - the old spelling is met in annotations
    ("b", Literal["a", "b"]),
    (True, Literal[True, 5]),
    (5, Literal[True, 5]),
    (UserId(5), UserId),
    (5, Annotated[int, msgspec.Meta(ge=1)]),
    ([5], list[Annotated[UserId, "a note"]]),
    (5, int | str),
    (b"x", bytes | str),
    ("x", bytes | str),
    (date(2024, 1, 1), datetime | date),
    (Color.RED, Color | str),
    ("green", Color | str),
    ([1], list[int] | set[int]),
    ({1}, list[int] | set[int]),
    (["a"], list[int] | list[str]),
    ({"a": Path("x")}, dict[str, str | Path]),
    ({1: Path("x")}, dict[int, str | Path]),
    ((Path("x"), 1), tuple[str | Path, int]),
    ({"a": 1}, object),
]


def is_same(one: object, other: object) -> bool:
    """Equal, and in all parts of the same types: 1, 1.0 and True are equal too, but look different."""
    if type(one) is not type(other) or one != other:
        return False
    # pydantic has a UTC of its own; its models check their types themselves.
    return isinstance(one, pydantic.BaseModel) or sorted(repr(one)) == sorted(repr(other))


@pytest.mark.parametrize(("value", "declared"), TYPED)
def test_a_declared_value_comes_back_as_its_type(value: object, declared: object) -> None:
    codec_of = adapter(declared)

    text = codec_of.encode(value)

    assert is_same(codec_of.decode(text), value)
    assert is_same(codec_of.decode(text.encode()), value)
    assert is_same(codec_of.convert(plain(text)), value)
    assert is_same(decode(encode([value]), list[declared])[0], value)  # type: ignore[valid-type]  # made at run time


@pytest.mark.parametrize(
    ("text", "declared", "value"),
    [
        ('"2024-01-02T03:04:05Z"', datetime, datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ('"2024-01-02"', datetime | date, date(2024, 1, 2)),
        ('"aGk="', bytes, b"hi"),
        ('"1.10"', Decimal, Decimal("1.10")),
        ('["a","b","a"]', set[str], {"a", "b"}),
        ('{"1":"a"}', dict[int, str], {1: "a"}),
        ('{"1":"a"}', dict[int, str | Path], {1: "a"}),
        ('"a/b"', Path, Path("a/b")),
        ('{"theSize":1,"when":"2024-01-01T00:00:00Z"}', Model, Model(theSize=1, when=datetime(2024, 1, 1, tzinfo=UTC))),
        ("12345678901234567890123", int, 12345678901234567890123),
        ("1", float, 1.0),
        ('{"spot":[1,2],"color":"red"}', Strict, Strict(spot=(1, 2), color=Color.RED)),
    ],
)
def test_inputs_written_by_hand_are_read_in_their_usual_json_form(text: str, declared: object, value: object) -> None:
    assert is_same(decode(text, declared), value)
    assert is_same(convert(plain(text), declared), value)


@pytest.mark.parametrize(
    ("value", "declared", "place", "expected", "got"),
    [
        ("a", int, "`$`", "`int`", "`str`"),
        (b"a", int, "`$`", "`int`", "`bytes`"),
        (True, int, "`$`", "`int`", "`bool`"),
        (1.0, int, "`$`", "`int`", "`float`"),
        (datetime(2024, 1, 1, tzinfo=UTC), str, "`$`", "`str`", "`datetime`"),
        ({"steps": [{"x": "a"}]}, dict[str, list[Point]], "`$.steps[0].x`", "`int`", "`str`"),
        ({"a b": {"c": None}}, dict[str, dict[str, int]], "`$['a b'].c`", "`int`", "`None`"),
        ({"steps": [b"a"]}, dict[str, list[int]], "`$.steps[0]`", "`int`", "`bytes`"),
        ([1, "a"], list[int], "`$[1]`", "`int`", "`str`"),
        ([1], tuple[int, int], "`$`", "", "1"),
        ({"y": 1}, Point, "`$`", "`x`", ""),
        ({"where": 5}, Mixed, "`$.where`", "`str | Path`", "`int`"),
        ({"where": "", "shape": {"radius": "a"}}, Mixed, "`$.shape.radius`", "`float`", "`str`"),
        (
            [{"theSize": -1, "when": "2024-01-01"}],
            list[Model],
            "`$[0].theSize`",
            "`Model`",
            "greater than or equal to 0",
        ),
        ("green", Color, "`$`", "`Color`", "green"),
        (7, Ratio, "`$`", "`Ratio`", "7"),
        ("c", Literal["a", "b"], "`$`", "", "c"),
        (0, Annotated[int, msgspec.Meta(ge=1)], "`$`", "`int`", ">= 1"),
        ({"type": "Cow", "name": "a"}, Cat | Dog, "", "Cow", ""),
        (5, Path, "`$`", "`Path`", "`int`"),
        ("nonsense", datetime, "`$`", "", "datetime"),
        ({"radius": 1.0}, Circle | Twin, "`$`", "`Circle` and `Twin` alike", "tag=True"),
        ({"a": 5}, dict[int, int], "", "`int`", "`str`"),
        (None, Point, "`$`", "`Point`", "`None`"),
        (1, None, "`$`", "`None`", "`int`"),
        ({"when": date(2024, 1, 1)}, Address, "`$`", "no `where`", ""),
    ],
)
def test_a_mismatch_names_the_place_and_both_types(
    value: object, declared: object, place: str, expected: str, got: str
) -> None:
    text = encode(value)

    reads: Any = ((decode, text), (convert, plain(text)))
    for read, tree in reads:
        with pytest.raises(DecodeError) as caught:
            read(tree, declared)
        for fragment in (place, expected, got):
            assert fragment in str(caught.value)


@dataclasses.dataclass
class Chain:
    next: Chain | Link | str | Path


@dataclasses.dataclass
class Link:
    next: Chain | Link | str | Path
    name: str = ""


def test_unions_inside_unions_cost_no_more_than_their_size() -> None:
    value: Any = "end"
    for number in range(60):
        value = Link(value) if number % 3 else Chain(value)

    assert decode(encode(value), Chain | Link) == value
    with pytest.raises(DecodeError, match=r"at `\$(\.next){60}`: .* got `bytes`"):
        decode(encode(value).replace('"end"', encode(b"")), Chain | Link)


class Opaque:
    pass


def test_a_class_that_cannot_be_made_from_its_fields_says_so() -> None:
    @dataclasses.dataclass
    class Fussy:
        x: int

        def __post_init__(self) -> None:
            raise KeyError("never")

    with pytest.raises(DecodeError, match="never"):
        decode('{"x":1}', Fussy)
    with pytest.raises(DecodeError, match=r"`Opaque`"):
        decode("{}", Opaque)
