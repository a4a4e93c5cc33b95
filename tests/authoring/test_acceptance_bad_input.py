"""Wrong definitions of blocks: all mistakes at once, each with its place, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from treadle import (
    DefinitionError,
    Phase,
    Phases,
    PhasesFailedError,
    Registry,
    Row,
    Rule,
    RunFailedError,
    case,
    choose,
    connect,
    gather,
    holds,
    predicate,
    step,
    workflow,
)

started: list[str] = []


@step(name="bad:one")
def one() -> int:
    started.append("one")
    return 1


@step(name="bad:three")
def three() -> int:
    return 3


def refusal(plan: Callable[[], Any]) -> str:
    """What planning a workflow of this body is told."""
    with pytest.raises(DefinitionError) as caught:
        workflow(name="bad:flow", registry=Registry())(plan).plan()
    return str(caught.value)


async def refused(*phases: Phase, **more: Any) -> str:
    """What a block is told, in process and in a workflow alike; nothing has run."""
    started.clear()
    block = Phases(*phases, **more)
    with pytest.raises(DefinitionError) as caught:
        await block.run()
    told = str(caught.value)
    planned = refusal(lambda: block.bind())
    assert started == []
    for line in told.splitlines():
        place, _, what = line.partition(": ")
        assert what in planned, (line, planned, place)
    return told


@pytest.mark.parametrize(
    ("phases", "more", "said"),
    [
        ([Phase("a", {"m": one}, policy="q")], {"policies": {"p": [Rule.stop()]}}, "phase 'a' names policy 'q'"),
        (
            [Phase("a", {"m": one}, policy="p")],
            {"policies": {"p": [Rule.jump("z")]}},
            "rule 'jump-1': target 'z' is not",
        ),
        ([Phase("a", {"m": one})], {"start": "z"}, "start='z' is not among its phases: 'a'"),
        ([Phase("a", {"m": one}, compensate="z")], {}, "phase 'a' is compensated by 'z', which is not there"),
        ([Phase("a", [("m", one), ("m", one)])], {}, "phase 'a': two lanes have the id 'm'"),
        ([Phase("a", {"m": one}, detached={"m": one})], {}, "phase 'a': two lanes have the id 'm'"),
        ([Phase("a", {"": one})], {}, "phase 'a': lane id '' has 0 bytes"),
        ([Phase("a", {"m": one}), Phase("a", {"n": one})], {}, "two phases have the id 'a'"),
        ([], {}, "phases are required"),
        ([Phase("a", {"m": one})], {"step_limit": 0}, "step_limit=0"),
        ([Phase("a", {"m": one})], {"on_finish": "never"}, "on_finish='never'; there are 'leave', 'wait', 'cancel'"),
        ([Phase("a", {"m": one})], {"on_conflict": "never"}, "on_conflict='never'; there are 'last', 'error'"),
        ([Phase("a", {"m": one}, policy="p")], {"policies": {"p": []}}, "policy 'p' has no rules"),
        (
            [Phase("a", {"m": one}, policy="p"), Phase("b", {"m": one}, policy="p")],
            {"policies": {"p": [Rule.loop_back("b")]}},
            "loop_back to 'b' must be earlier than current phase 'a'",
        ),
        (
            [Phase("a", {"m": one}, policy="p")],
            {"policies": {"p": [Rule("fly")]}},  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a mistake
            "there is no move 'fly'",
        ),
        (
            [Phase("a", {"m": one}, policy="p"), Phase("b", {"m": one})],
            {"policies": {"p": [Rule.stop()]}},
            "phase 'b' needs a transition policy, since others have one",
        ),
        (
            [Phase("a", {"m": one}, policy="p")],
            {"policies": {"p": [Rule.stop(when="stat.x > 1")]}},
            "rule 'stop-1' of policy 'p': the rule 'stat.x > 1' reads 'stat'",
        ),
        (
            [Phase("a", {"m": one}, policy="p")],
            {"policies": {"p": [Rule.stop(when="step >", id="end")]}},
            "rule 'end' of policy 'p': the expression cannot be read",
        ),
    ],
)
async def test_a_wrong_block_is_told_its_mistake_with_the_place(phases: Any, more: Any, said: str) -> None:
    assert said in await refused(*phases, **more)


async def test_all_mistakes_of_a_block_are_told_at_once() -> None:
    told = await refused(
        Phase("a", {"m": one}, policy="nowhere"),
        Phase("b", {"m": one}, policy="p", compensate="gone"),
        policies={"p": [Rule.jump("z"), Rule.stop(when="1 +"), Rule.loop_back("b")]},
        step_limit=-1,
    )

    for said in ("'nowhere'", "'gone'", "target 'z'", "rule 'stop-2'", "loop_back to 'b'", "step_limit=-1"):
        assert said in told


def test_what_cannot_be_stored_is_told_beside_all_else_that_is_wrong() -> None:
    block = Phases(
        Phase("a", {"m": lambda: 1}, policy="nowhere"),
        policies={"p": [Rule.jump("z", when=lambda row: True)]},
    )

    told = refusal(lambda: block.bind())

    for said in ("the cell 'm' of phase 'a' is <function", "rule 1 of policy 'p' asks <function", "'nowhere'", "'z'"):
        assert said in told


@pytest.mark.parametrize("items", [3, "abc", None, {"a": 1}, 1.5, True, b"x"])
def test_a_gather_over_what_is_no_list_is_refused_when_it_is_planned(items: Any) -> None:
    told = refusal(lambda: gather(items, lambda item: one.bind(), id="g"))

    assert "step 'g'" in told
    assert f"its items are {items!r}, which is no list" in told


def test_items_that_do_not_fit_the_parameter_of_a_gathers_body_are_refused_when_it_is_planned() -> None:
    registry = Registry()

    @step(name="bad:double", registry=registry)
    def double(number: int) -> int:
        return 2 * number

    def mixed() -> list[Any]:
        return [1, "a", double.bind(3), None]

    wrong: list[Any] = ["a"] * 1000
    told = refusal(lambda: gather(mixed(), double, id="g"))

    assert ": item 1 for argument 'number': " in told
    assert ": item 3 for argument 'number': " in told
    assert told.count(": item ") == 2
    assert refusal(lambda: gather(wrong, double, id="g")).count(": item ") == 5


@pytest.mark.parametrize("items", [[1], (1, 2), []])
def test_a_gather_over_a_list_is_planned(items: Any) -> None:
    fine = workflow(name="bad:fine", registry=Registry())(lambda: gather(items, lambda item: one.bind(), id="g"))

    assert [block.id for block in fine.plan().plan.blocks] == ["g"]


def test_a_gather_of_an_unknown_mode_or_limit_is_refused() -> None:
    wrong: dict[str, Any] = {"limit": -1, "mode": "some"}

    told = refusal(lambda: gather([1], lambda item: one.bind(), id="g", **wrong))

    assert "limit=-1" in told
    assert "mode='some'; there are 'any_error', 'all', 'first'" in told


def test_two_branches_of_one_name_are_refused() -> None:
    told = refusal(
        lambda: choose(*(case(holds("1 < 2"), lambda: one.bind(), id="x") for _ in range(2)), id="c"),
    )

    assert "two branches have the id 'x'" in told


@workflow(name="bad:number")
def over_a_number() -> Any:
    # A checker sees it, too.
    number: Any = three.bind()
    return gather(number, lambda item: one.bind(), id="g")


async def test_a_gather_over_a_result_that_is_no_list_fails_with_its_place_and_starts_nothing() -> None:
    started.clear()
    async with connect("memory://") as app:
        run = await app.start(over_a_number, id="r")
        with pytest.raises(
            RunFailedError, match=r"step 'g/~items': type_mismatch: .*expected `list\[Any\]`, got `int`"
        ):
            await run.result()

    assert started == []


@predicate(name="bad:broken")
def broken(row: Row) -> bool:
    raise KeyError(row.phase)


def asks(rule: Any) -> Phases:
    return Phases(Phase("a", {"m": one}, policy="p"), policies={"p": [Rule.stop(when=rule, id="end")]}, id="rows")


@workflow(name="bad:raising")
def raising() -> Any:
    return asks(broken).bind()


async def test_a_rule_that_raises_is_named_with_its_policy_and_phase() -> None:
    with pytest.raises(PhasesFailedError) as caught:
        await asks(broken).run()
    async with connect("memory://") as app:
        run = await app.start(raising, id="r")
        with pytest.raises(RunFailedError) as stored:
            await run.result()
        [question] = (await run.inspect()).evaluations

    assert str(caught.value) == "rule 'end' of policy 'p', asked after phase 'a', failed: KeyError: 'a'"
    named = "rule 'end' of policy 'p', asked after phase 'a', step 'rows/~rule': error: 'a'"
    assert str(stored.value) == f"run 'r' failed: {named}"
    assert question.action == "bad:broken"
