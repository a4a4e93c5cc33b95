"""Steps that a running step adds: what they bring along, their ids and scopes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.authoring.plans_kit import fetch, inc, links

from treadle.authoring.bound import ref
from treadle.authoring.builder import Additions
from treadle.core.plan import (
    Placement,
    Ref,
    Step,
)
from treadle.errors import (
    DefinitionError,
    DefinitionErrors,
    DuplicateStepError,
)

# What a caller without a type checker may do.
loose: Any = SimpleNamespace(inc=inc)


def test_added_steps_bring_what_they_refer_to() -> None:
    page = fetch.bind("u")
    found = links.options(after=inc.options(id="first").bind(1)).bind(page)

    (addition,) = Additions("adder").add([found])

    assert [block.id for block in addition.blocks] == ["fetch", "first", "links"]
    assert addition.constants == ['"u"', "1"]
    assert addition.into is None
    last = addition.blocks[2]
    assert isinstance(last, Step)
    assert last.slots == {"page": Ref("fetch")}
    assert last.after == ("first",)


def test_ids_count_on_and_nothing_is_added_twice() -> None:
    additions = Additions("adder")
    first = inc.bind(1)

    (one,) = additions.add([first])
    (two,) = additions.add([first, inc.bind(first)])

    assert [block.id for block in one.blocks] == ["inc"]
    assert [block.id for block in two.blocks] == ["inc-2"]
    assert isinstance(two.blocks[0], Step)
    assert two.blocks[0].slots == {"x": Ref("inc")}
    assert two.constants == []
    assert additions.add([first]) == []


def test_steps_go_into_the_scopes_they_name() -> None:
    additions = Additions("deploy/adder")
    own = inc.bind(1)
    up = inc.options(into="root", id="http://x/").bind(own)
    near = inc.options(id="near").bind(up)

    made = {addition.into: addition for addition in additions.add([near, up], into="deploy")}

    assert set(made) == {"deploy", ""}
    (top,) = made[""].blocks
    assert isinstance(top, Step)
    assert top.slots == {"x": Ref("deploy/inc")}
    last = made["deploy"].blocks[1]
    assert isinstance(last, Step)
    assert last.slots == {"x": Ref("http:%2F%2Fx%2F")}


def test_a_step_may_be_placed_here_and_refer_to_the_run_by_name() -> None:
    (addition,) = Additions("adder").add([inc.options(here=True, after="total").bind(ref("somewhere/else"))])

    (made,) = addition.blocks
    assert isinstance(made, Step)
    assert made.placement == Placement("here")
    assert made.slots == {"x": Ref("somewhere/else")}
    assert made.after == ("total",)


def test_mistakes_among_added_steps_are_raised_together_and_nothing_is_added() -> None:
    additions = Additions("adder")
    good = inc.bind(1)

    with pytest.raises(DefinitionErrors) as caught:
        additions.add([good, loose.inc.bind("x"), inc.options(into=Path("x")).bind(1), 5])

    assert len(caught.value.exceptions) == 3
    (addition,) = additions.add([good])
    assert [block.id for block in addition.blocks] == ["inc"]


def test_a_planned_value_of_another_attempt_is_refused() -> None:
    first = inc.bind(1)
    Additions("one").add([first])

    with pytest.raises(DefinitionError, match="belongs to another plan"):
        Additions("two").add([first])
    with pytest.raises(DefinitionError, match="was not added by this step"):
        Additions("two").add([inc.bind(first)])


def test_a_name_that_the_adders_own_steps_would_catch_is_refused() -> None:
    additions = Additions("adder")
    top = inc.options(into="root", id="same").bind(1)

    with pytest.raises(DuplicateStepError, match="nearer"):
        additions.add([inc.options(id="same").bind(2), inc.options(id="reader").bind(top)])


def test_additions_take_the_workflows_retry() -> None:
    (addition,) = Additions("adder", retry=4).add([inc.bind(1)])

    (made,) = addition.blocks
    assert isinstance(made, Step)
    assert made.retry is not None
    assert made.retry.attempts == 4
