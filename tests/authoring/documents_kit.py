"""Documents for tests: random plans with random typed constants."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from treadle.authoring import codec
from treadle.authoring.documents import document_of
from treadle.core.documents import Document, Platform, Provenance
from treadle.core.plan import (
    Block,
    Const,
    Group,
    ListOf,
    Placement,
    Plan,
    Predicate,
    Ref,
    RetryPolicy,
    SignalValue,
    Step,
)

WRITTEN = Provenance(
    tool="treadle",
    version="0.1.0",
    created_at=datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
    platform=Platform(os="Linux", arch="x86_64", python="3.11.7"),
    context={"commit": "abc", "on": "yes"},
)

ids = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8)
typed = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=12)
    | st.binary(max_size=9)
    | st.decimals()
    | st.uuids()
    | st.datetimes(timezones=st.sampled_from([None, UTC]))
    | st.timedeltas()
    | st.sampled_from([PurePosixPath("a/b"), {"$treadle": ["bytes", "x"]}, {1: 2.0}, {1.0, 2.5}, -0.0, 1e300])
)
values = st.recursive(
    typed,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
retries = st.builds(RetryPolicy, attempts=st.integers(0, 9), initial=st.floats(0, 1e6), jitter=st.floats(0, 1))


@st.composite
def steps(draw: st.DrawFn, name: str, before: list[str], constants: int) -> Step:
    """A step that refers to what was planned before it."""
    slots: dict[str, Any] = {}
    if constants:
        slots["v"] = Const(draw(st.integers(0, constants - 1)))
    if before:
        slots["r"] = ListOf([Ref(draw(st.sampled_from(before)), path=("x", 1)), SignalValue("go")])
    return Step(
        id=name,
        action=draw(st.sampled_from(["m:a", "m:b", "other name", "é:😀"])),
        slots=slots,
        retry=draw(st.none() | retries),
        timeout=draw(st.none() | st.floats(0.001, 1e9)),
        priority=draw(st.integers(-5, 5)),
        when=draw(st.sampled_from([None, SignalValue("s"), Predicate("m:p", {})])),
        placement=draw(st.sampled_from([None, Placement(mode="here")])),
        annotations=draw(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2)),
    )


@st.composite
def documents(draw: st.DrawFn) -> tuple[Document, list[str]]:
    """A sealed plan, and the JSON texts of its constants."""
    texts = [codec.encode(value) for value in draw(st.lists(values, max_size=4))]
    names = draw(st.lists(ids, min_size=1, max_size=4, unique=True))
    blocks: list[Block] = [draw(steps(name, [], len(texts))) for name in names]
    if draw(st.booleans()):
        blocks.append(Group(id="g" * 10, blocks=[draw(steps("inner", [], len(texts)))]))
    plan = Plan(workflow=draw(st.text(min_size=1, max_size=9)), blocks=blocks, retry=draw(st.none() | retries))
    return document_of(plan, texts, WRITTEN), texts


SOME_VALUES: list[Any] = [
    1,
    1.0,
    -0.0,
    2**60,
    float("inf"),
    b"\x00\xff",
    Decimal("1.10"),
    UUID(int=7),
    datetime(2024, 5, 1, tzinfo=UTC),
    timedelta(days=1, microseconds=1),
    {"a", "b"},
    {1: "x", 2.0: [3.0]},
    {"$treadle": ["float", "1.0"]},
    "on\u2028\x7f",
]
