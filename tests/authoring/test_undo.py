"""`@step(undo=..., prepare=..., reconcile=..., resource=...)`: what is stored, and every mistake at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from treadle.authoring.builder import PlanBuilder
from treadle.authoring.decorators import StepFunction, step, workflow
from treadle.authoring.registry import Registry
from treadle.authoring.undo import UndoDefinition
from treadle.core.plan import Step, Undo
from treadle.errors import DefinitionError


def save(path: str) -> str:
    return path


def put_back(path: str, state: str, result: int | None) -> None:
    """Nothing to do."""


def is_mine(state: str, size: int) -> bool:
    return size > 0


def decorated(name: str = "w", registry: Registry | None = None, **how: Any) -> StepFunction[..., Any]:
    def write(path: str, text: str = "", size: int = 3) -> int:
        return size

    found: StepFunction[..., Any] = step(name=name, registry=registry or Registry(), **how)(write)
    return found


def block_of(function: StepFunction[..., Any]) -> Step:
    builder = PlanBuilder("plan")
    builder.step("one", function, "a")
    [block] = builder.build().plan.blocks
    assert isinstance(block, Step)
    return block


def test_the_functions_are_stored_under_names_made_of_the_steps() -> None:
    registry = Registry()

    write = decorated(
        registry=registry, undo=put_back, prepare=save, reconcile=is_mine, resource="disk", aliases=["old"]
    )

    assert block_of(write).undo == Undo("w:undo", prepare="w:prepare", reconcile="w:reconcile", resource="disk")
    assert registry.names() == sorted(
        f"{name}{role}" for name in ("w", "old") for role in ("", ":undo", ":prepare", ":reconcile")
    )
    assert registry.get("old:undo").function is put_back
    assert block_of(write.options(id="other", retry=2)).undo is not None


def test_a_step_without_undo_has_none() -> None:
    assert block_of(decorated()).undo is None


def test_what_a_plan_leaves_out_is_taken_from_the_steps_defaults() -> None:
    registry = Registry()

    decorated(registry=registry, undo=lambda path: None, reconcile=lambda size, result: True)

    undo, reconcile = registry.get("w:undo"), registry.get("w:reconcile")
    assert isinstance(undo, UndoDefinition)
    assert isinstance(reconcile, UndoDefinition)
    assert (undo.defaults, reconcile.defaults) == ({}, {"size": 3})


def nothing() -> None:
    """Takes nothing."""


def generator() -> Any:
    yield 1


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"prepare": save}, "prepare= without undo=: give the function that takes the step back"),
    ({"reconcile": nothing, "resource": "x"}, "reconcile= and resource= without undo="),
    ({"undo": 7}, "undo=7: give a function"),
    ({"undo": nothing, "resource": 7}, "resource=7: give a text"),
    ({"undo": decorated("other")}, "give a plain function; it is no step of its own"),
    ({"undo": lambda page: None}, "undo= asks for 'page'; the step has path, text, size"),
    ({"undo": lambda state: None}, "undo= asks for 'state', but there is no prepare= that would return it"),
    ({"undo": nothing, "prepare": lambda result: None}, "prepare= asks for 'result'; the step has path, text, size"),
    ({"undo": lambda *paths: None}, "undo= takes any number of arguments"),
    ({"undo": generator}, "undo=: 'generator' yields"),
    ({"undo": str}, "undo=<class 'str'>: give a function"),
]


@pytest.mark.parametrize(("how", "text"), MISTAKES, ids=[text[:50] for _, text in MISTAKES])
def test_a_mistake_is_said_when_the_step_is_defined(how: dict[str, Any], text: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        decorated(**how)

    assert text in str(caught.value)
    assert "@step 'w'" in str(caught.value)


def test_all_mistakes_are_said_at_once() -> None:
    registry = Registry()

    with pytest.raises(DefinitionError) as caught:
        decorated(registry=registry, undo=lambda page, state: None, reconcile=lambda other: True, resource=1)

    assert len(str(caught.value).splitlines()) == 4
    assert registry.names() == []


def test_a_parameter_that_means_two_things_is_refused() -> None:
    def act(state: str, result: str) -> None:
        """Its parameters have the names of what an undo gets."""

    with pytest.raises(DefinitionError, match="asks for 'state', what prepare= returned, but the step has a parameter"):
        step(name="a", registry=Registry(), undo=lambda state: None, prepare=lambda state: state)(act)


def test_a_workflow_says_what_a_failure_does() -> None:
    write = decorated()

    def writes() -> None:
        write.bind("a")

    make: Callable[..., Any] = workflow
    plan = make(name="w", registry=Registry(), on_failure="unwind", undo_limit=1)(writes).plan().plan

    assert (plan.on_failure, plan.undo_limit) == ("unwind", 1)
    with pytest.raises(DefinitionError, match="on_failure='explode': stop or unwind"):
        make(on_failure="explode")
    with pytest.raises(DefinitionError, match="undo_limit=0: a number from 1"):
        make(undo_limit=0)
    with pytest.raises(DefinitionError, match="undo_limit=True"):
        PlanBuilder("p", undo_limit=True)
