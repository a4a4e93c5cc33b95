"""Planned values: what may be done with them before they have a value, and what says that they have none."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from treadle.authoring.bound import Bound, or_default, ref
from treadle.authoring.builder import Planned
from treadle.authoring.codec import decode
from treadle.authoring.decorators import step, workflow
from treadle.authoring.registry import Registry
from treadle.core.graph import Graph
from treadle.core.plan import (
    Const,
    ListOf,
    MapOf,
    Slot,
    Step,
    decode_plan,
    encode_plan,
)
from treadle.errors import (
    DefinitionError,
)


@dataclass
class Page:
    url: str
    links: list[str]

    @property
    def size(self) -> int:
        return len(self.links)


@step
def fetch(url: str) -> Page:
    return Page(url, [])


@step
def links(page: Page) -> list[str]:
    return page.links


@step
def inc(x: int) -> int:
    return x + 1


# What a caller without a type checker may do.
loose: Any = SimpleNamespace(iadd=operator.iadd)


def plan(function: Callable[[], object]) -> Planned:
    """The plan of a workflow function; whatever is planned is also a graph that the kernel takes."""
    planned = workflow(name="w", registry=Registry())(function).plan()
    Graph(planned.plan)
    assert decode_plan(encode_plan(planned.plan)) == planned.plan
    return planned


def blocks(planned: Planned) -> dict[str, Step]:
    return {block.id: block for block in planned.plan.blocks if isinstance(block, Step)}


def read(slot: Slot, constants: list[str]) -> Any:
    """What a slot without Refs stands for."""
    if isinstance(slot, Const):
        return decode(constants[slot.index])
    if isinstance(slot, ListOf):
        return [read(item, constants) for item in slot.items]
    assert isinstance(slot, MapOf)
    return {key: read(item, constants) for key, item in slot.items.items()}


@pytest.mark.parametrize(
    ("use", "doing"),
    [
        (bool, "tested for truth"),
        (list, "iterated over"),
        (len, "measured"),
        (str, "turned into text"),
        (hash, "hashed"),
        (lambda x: f"{x}", "formatted"),
        (lambda x: f"{x:>5}", "formatted"),
        (lambda x: x == 1, "compared"),
        (lambda x: x != 1, "compared"),
        (lambda x: x < 1, "compared"),
        (lambda x: x + 1, "used in arithmetic"),
        (lambda x: 1 + x, "used in arithmetic"),
        (lambda x: -x, "used in arithmetic"),
        (lambda x: x**2, "used in arithmetic"),
        (lambda x: x | 1, "used in arithmetic"),
        (lambda x: loose.iadd(x, 1), "used in arithmetic"),
        (int, "converted"),
        (float, "converted"),
        (lambda x: range(5)[x], "converted"),
        (lambda x: 1 in x, "searched"),
        (lambda x: x.strip(), "called"),
        (lambda x: x[True], "indexed by True"),
        (lambda x: x[1:], "indexed by slice"),
        (lambda x: operator.setitem(x, 1, 1), "changed"),
        (lambda x: operator.delitem(x, 1), "changed"),
    ],
)
def test_a_planned_value_has_no_value_yet_and_says_so(use: Callable[[Any], Any], doing: str) -> None:
    planned: Any = inc.bind(1)

    with pytest.raises(DefinitionError, match=rf"has no value yet: it cannot be {doing}"):
        use(planned)


def test_a_planned_value_can_be_looked_at() -> None:
    planned: Any = fetch.bind("u")

    assert repr(planned.links[0]).startswith("<result of step 'fetch' (")
    assert repr(planned.links[0]).endswith(")['links'][0]>")
    assert not hasattr(planned, "_repr_html_")
    assert not hasattr(planned, "__fspath__")
    with pytest.raises(AttributeError, match=r'bound\["_id"\]'):
        _ = planned._id
    assert isinstance(copy.copy(planned), Bound)


def test_a_part_is_taken_before_the_default() -> None:
    planned: Any = or_default(fetch.bind("u"), None)

    with pytest.raises(DefinitionError, match="take the part first"):
        _ = planned.url
    with pytest.raises(DefinitionError, match="takes a planned value first"):
        or_default(5, 6)
    with pytest.raises(DefinitionError, match="the id of a step"):
        ref(5)
