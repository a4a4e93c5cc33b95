"""Planned values: what may be done with them before they have a value, and what says that they have none."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tests.authoring.plans_kit import fetch, inc

from treadle.authoring.bound import Bound, or_default, ref
from treadle.errors import (
    DefinitionError,
)

# What a caller without a type checker may do.
loose: Any = SimpleNamespace(iadd=operator.iadd)


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
