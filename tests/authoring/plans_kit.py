"""Steps for tests of plans, and how a plan is made and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from treadle.authoring.builder import Planned
from treadle.authoring.codec import decode
from treadle.authoring.decorators import predicate, step, workflow
from treadle.authoring.registry import Registry
from treadle.core.analysis import check_plan
from treadle.core.graph import Graph
from treadle.core.plan import Const, ListOf, MapOf, Slot, Step, decode_plan, encode_plan
from treadle.errors import DefinitionError, DefinitionErrors


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


@step
def anything(x: Any = None, y: Any = None) -> Any:
    return [x, y]


@step
def total(numbers: list[int], names: dict[str, int] | None = None) -> int:
    return sum(numbers)


@step
def every(a: int, /, b: int, *rest: int, c: int = 3, **more: int) -> int:
    return a + b


@predicate
def is_big(page: Page, limit: int = 10) -> bool:
    return page.size > limit


def plan(function: Callable[[], object]) -> Planned:
    """The plan of a workflow function; whatever is planned is also a graph that the kernel takes."""
    planned = workflow(name="w", registry=Registry())(function).plan()
    Graph(planned.plan)
    assert check_plan(planned.plan) == []
    assert decode_plan(encode_plan(planned.plan)) == planned.plan
    return planned


def blocks(planned: Planned) -> dict[str, Step]:
    return {block.id: block for block in planned.plan.blocks if isinstance(block, Step)}


def errors_of(function: Callable[[], object]) -> list[Exception]:
    with pytest.raises(DefinitionError) as caught:
        plan(function)
    error = caught.value
    return list(error.exceptions) if isinstance(error, DefinitionErrors) else [error]


def read(slot: Slot, constants: list[str]) -> Any:
    """What a slot without Refs stands for."""
    if isinstance(slot, Const):
        return decode(constants[slot.index])
    if isinstance(slot, ListOf):
        return [read(item, constants) for item in slot.items]
    assert isinstance(slot, MapOf)
    return {key: read(item, constants) for key, item in slot.items.items()}
