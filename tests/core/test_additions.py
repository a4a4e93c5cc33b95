"""Steps added by steps: with the outcome or now, into which scope, twice, against each other, and in circles."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.kit import Driver, adding, step

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.plan import Block, Const, Group, ListOf, MapOf, Placement, Predicate, Ref


def test_added_steps_live_below_their_adder_and_appear_with_its_success() -> None:
    driver = Driver(step("a"), step("b", after=("a",)))

    driver.succeed("a", result=1, added=adding(step("x"), step("y", "x")))

    assert driver.waiting() == ["a/x", "b"], "adding makes no edge"
    driver.finish()
    assert driver.status("a/y") == driver.status() == "succeeded"
    assert driver.kinds()[2:4] == ["steps_added", "step_succeeded"]
    driver.check()


def test_an_attempt_that_fails_adds_nothing() -> None:
    driver = Driver(step("a"))

    driver.give(driver.failed("a", added=adding(step("x"))))

    assert list(driver.statuses()) == ["a"]


def test_a_live_attempt_adds_at_once_and_again_for_nothing() -> None:
    driver = Driver(step("a"))
    add = inp.AddSteps(1, adding(step("x"))[0], generation=1, attempt=1)

    driver.give(add)
    assert driver.waiting() == ["a", "a/x"]
    assert driver.give(add, cause="i").events == [ev.InputAccepted(cause="i")]
    driver.succeed("a", added=adding(step("x")))

    assert len(driver.seen(ev.StepsAdded)) == 1
    driver.check()


@pytest.mark.parametrize(("generation", "attempt"), [(2, 1), (1, 2), (0, 9), (9, 0)])
def test_only_the_live_attempt_adds(generation: int, attempt: int) -> None:
    driver = Driver(step("a"))

    assert driver.refused(inp.AddSteps(1, adding(step("x"))[0], generation, attempt)).code == "run_not_active"


def test_what_is_over_adds_nothing() -> None:
    driver = Driver(step("a"), step("b"))
    fragment = adding(step("x"))[0]
    driver.succeed("a")
    assert driver.refused(inp.AddSteps(1, fragment)).code == "run_not_active"
    assert driver.refused(inp.AddSteps(0, fragment)).code == "run_not_active"
    driver.give(inp.Cancel())
    assert driver.refused(inp.AddSteps(2, fragment)).status == "cancelling"
    driver.finish()

    assert driver.refused(inp.AddSteps(2, fragment)).status == "cancelled"


def test_a_fragment_may_go_into_a_scope_that_contains_the_adder() -> None:
    group = Group(id="g", blocks=[step("a"), step("b")])
    for into, address in [
        (None, "g/a/x"),
        ("g/a", "g/a/x"),
        ("g/a/", "g/a/x"),
        ("g", "g/x"),
        ("", "x"),
    ]:
        driver = Driver(group)
        driver.succeed("g/a", added=adding(step("x"), into=into))
        assert driver.status(address) == "dispatched"
        driver.finish()
        assert driver.status() == "succeeded"
        driver.check()


@pytest.mark.parametrize("into", ["g/b", "h", "nowhere", "g/b/", "a"])
def test_a_fragment_may_not_go_elsewhere(into: str) -> None:
    driver = Driver(Group(id="g", blocks=[step("a"), step("b")]), Group(id="h", blocks=[step("c")]))

    driver.succeed("g/a", added=adding(step("x"), into=into))

    assert driver.status("g/a") == "failed"
    assert driver.seen(ev.StepFailed)[0].failure.code == "unknown_step"


def test_into_what_the_adder_of_the_adder_adds() -> None:
    driver = Driver(step("a"))
    driver.succeed("a", added=adding(step("x")))

    driver.succeed("a/x", added=adding(step("y"), into="a"))
    driver.succeed("a/y", added=adding(step("z"), into="a/"))

    assert driver.waiting() == ["a/z"]


def test_after_a_slash_waits_for_all_that_is_added_below() -> None:
    driver = Driver(step("a"), step("b", after=("a/",)))
    driver.succeed("a", added=adding(step("x")))
    assert driver.status("b") == "waiting"

    driver.succeed("a/x", added=adding(step("y")))
    assert driver.waiting() == ["a/x/y"], "what x adds is added below a too"
    driver.succeed("a/x/y")
    assert driver.waiting() == ["b"]
    driver.finish()

    assert driver.status() == "succeeded"
    driver.check()


def test_a_failure_below_fails_what_waits_for_all_of_it_and_the_run() -> None:
    driver = Driver(step("a", optional=True), step("b", after=("a/",), optional=True))
    driver.succeed("a", added=adding(step("x")))

    driver.fail("a/x")

    assert driver.status("a/") == "failed"
    assert driver.step("b").causes == ["a/"]
    assert driver.status() == "failed"
    assert driver.seen(ev.RunSettled)[0].failures == ["a/x"]


def test_names_reach_siblings_the_adder_and_what_lies_around() -> None:
    driver = Driver(step("a"), Group(id="g", blocks=[step("b")]))
    driver.succeed("g/b", result="B")

    driver.succeed(
        "a", result="A",
        added=adding(
            step("x", "a", "g/b"),
            step("y", after=("x",), placement=Placement("with", step="x")),
            Group(id="h", blocks=[step("z", "x", after=("y",))], after=("x",)),
            step("w", "h/z", after=("h",), when=Ref("x")),
        ),
    )  # fmt: skip

    assert driver.args("a/x") == {"p0": "A", "p1": "B"}
    driver.finish(lambda task: driver.outcome(task, True))
    assert driver.status() == "succeeded"
    driver.check()


def test_added_constants_are_the_fragments_own() -> None:
    driver = Driver(step("a", slots={"v": Const(0)}), constants=["head"])
    slots: dict[str, Any] = {"v": Const(1), "d": MapOf({"k": ListOf([Const(0)])})}

    driver.succeed("a", added=adding(step("x", slots=slots), constants=["own", 2]))

    assert driver.args("a/x") == {"v": 2, "d": {"k": ["own"]}}


def test_the_same_step_may_be_added_by_several() -> None:
    driver = Driver(step("a"), step("b"))
    page = {"slots": {"url": Const(0)}}

    driver.succeed("a", added=adding(step("page", **page), constants=["u"], into=""))
    driver.succeed(
        "b", added=adding(step("page", slots={"url": Const(1)}), constants=[0, "u"], into="")
    )  # fmt: skip

    assert driver.status("b") == "succeeded"
    assert driver.waiting() == ["page"]
    assert len(driver.seen(ev.StepsAdded)) == 1


VARIANTS: list[Block] = [
    step("x", action="other"),
    step("x", slots={"v": Const(1), "d": Ref("a", default=0)}),
    step("x", slots={"v": Const(0), "d": Ref("a", default=1)}),
    step("x", slots={"v": ListOf([Const(0)]), "d": Ref("a", default=0)}),
    step("x", slots={"v": Const(0), "d": Ref("a", default=0)}, optional=True),
    step("x", slots={"v": Const(0), "d": Ref("a", default=0)}, when=Predicate("p", {"q": MapOf({"k": Const(0)})})),
    Group(id="x"),
]


@pytest.mark.parametrize("other", VARIANTS, ids=repr)
def test_another_step_of_the_same_id_fails_the_later_adder_for_good(other: Block) -> None:
    driver = Driver(step("a"), step("b"), step("root"))
    first = step("x", slots={"v": Const(0), "d": Ref("a", default=0)})
    driver.succeed("a", added=adding(first, constants=["c", "d"], into=""))

    driver.succeed("b", added=[*adding(step("y")), *adding(other, constants=["c", "d"], into="")])

    [failed] = driver.seen(ev.StepFailed)
    assert failed.failure.code == "duplicate_step"
    assert "'x'" in failed.failure.message
    assert driver.run.at("b/y") is None, "nothing of it is applied"
    driver.check()


def test_a_step_of_the_plan_is_not_replaced() -> None:
    driver = Driver(step("a"), step("b", slots={"v": Const(0)}), constants=["c"])
    add = adding(step("b", slots={"v": Const(0)}), constants=["c"], into="")[0]
    other = adding(step("b", slots={"v": Const(0)}), constants=["d"], into="")[0]

    assert driver.give(inp.AddSteps(1, add)).events == []
    assert driver.refused(inp.AddSteps(1, other)).code == "duplicate_step"


def test_one_id_twice_in_a_fragment() -> None:
    driver = Driver(step("a"))

    assert driver.refused(inp.AddSteps(1, adding(step("x"), step("x", action="o"))[0])).code == "duplicate_step"
    inside = Group(id="g", blocks=[step("x"), step("x")])
    assert driver.refused(inp.AddSteps(1, adding(inside)[0])).code == "duplicate_step"
    driver.give(inp.AddSteps(1, adding(step("x"), step("x"))[0]))

    assert driver.waiting() == ["a", "a/x"]


def test_a_group_is_the_same_if_its_content_is() -> None:
    driver = Driver(step("a"))
    group = Group(id="g", blocks=[step("x"), Group(id="h", blocks=[step("y")])])
    driver.give(inp.AddSteps(1, adding(group)[0]))

    assert driver.give(inp.AddSteps(1, adding(group)[0])).events == []
    other = Group(id="g", blocks=[step("x"), Group(id="h", blocks=[step("y", action="o")])])
    assert driver.refused(inp.AddSteps(1, adding(other)[0])).code == "duplicate_step"


# -- dedup keys ------------------------------------------------------------------------------------------------------


def test_a_step_with_a_key_that_the_run_holds_is_that_step() -> None:
    driver = Driver(step("a"), step("b"), step("p", dedup="plan"))

    driver.succeed("a", added=adding(step("x", dedup="k"), step("p2", dedup="plan")))
    driver.succeed(
        "b", added=adding(step("y", action="other", dedup="k"), step("z", dedup="new"), step("z2", dedup="new"))
    )

    assert list(driver.statuses()) == ["a", "b", "p", "a/x", "b/z"]
    driver.check()


def test_a_name_of_such_a_step_means_the_one_that_is_there() -> None:
    driver = Driver(step("a"), step("b"))
    driver.succeed("a", added=adding(step("x", dedup="k")))
    driver.succeed("a/x", result=5)

    driver.succeed("b", added=adding(step("y", dedup="k"), step("z", "y")))
    assert driver.args("b/z") == {"p0": 5}
    assert driver.seen(ev.StepsAdded)[-1].aliases == {"y": "a/x"}
    driver.succeed("b/z", added=adding(step("late", "y")))

    assert driver.args("b/z/late") == {"p0": 5}
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_such_a_name_counts_wherever_it_is_used() -> None:
    driver = Driver(step("a"), step("b"))
    driver.succeed("a", added=adding(step("x", dedup="k"), step("w", dedup="l")))

    group = Group(id="g", blocks=[step("u", after=("y",))])
    placed = step("z", placement=Placement("with", step="v"))
    driver.succeed("b", added=adding(step("y", dedup="k"), step("v", dedup="l"), group, placed))

    assert driver.seen(ev.StepsAdded)[-1].aliases == {"y": "a/x", "v": "a/w"}
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_key_below_a_group_cannot_mean_another_step() -> None:
    driver = Driver(step("a"))
    driver.give(inp.AddSteps(1, adding(step("x", dedup="k"))[0]))

    group = Group(id="g", blocks=[step("y", dedup="k")])

    assert driver.refused(inp.AddSteps(1, adding(group)[0])).code == "duplicate_step"
    driver.give(inp.AddSteps(1, adding(Group(id="g", blocks=[step("y", dedup="k2")]))[0]))
    assert driver.give(inp.AddSteps(1, adding(step("z", dedup="k2"))[0])).events == []


# -- what means nothing, and circles ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "code"),
    [
        ([step("x", "nobody")], "unknown_step"),
        ([step("x", after=("nobody",))], "unknown_step"),
        ([step("x", after=("a/nobody",))], "unknown_step"),
        ([step("x", when=Ref("nobody"))], "unknown_step"),
        ([step("x", placement=Placement("with", step="nobody"))], "unknown_step"),
        ([Group(id="g", blocks=[step("x", after=("nobody",))])], "unknown_step"),
        ([Group(id="g"), step("x", "g")], "unknown_step"),
        ([step("")], "definition_invalid"),
        ([step("x" * 600)], "definition_invalid"),
        ([Group(id="g", blocks=[step("a\x00b")])], "definition_invalid"),
        ([step("x", slots={"v": Const(0)})], "slot_invalid"),
        ([step("x", slots={"v": Const(-1)})], "slot_invalid"),
        ([step("x", "x")], "cycle"),
        ([step("x", "y"), step("y", "x")], "cycle"),
        ([step("x", after=("y",)), step("y", after_any=("z",)), step("z", "x?")], "slot_invalid"),
        ([step("x", after=("y",)), step("y", after_any=("z",)), step("z", "x")], "cycle"),
        ([Group(id="g", blocks=[step("x", after=("y",))]), step("y", after=("g",))], "cycle"),
        ([Group(id="g", blocks=[step("x")], after=("y",)), step("y", after=("g/x",))], "cycle"),
        ([Group(id="g", blocks=[Group(id="h", blocks=[step("x")])], after=("g/h/x",))], "cycle"),
        ([step("x", after=("b",))], "cycle"),
        ([step("x", after=("far",))], "cycle"),
        ([step("x", after=("x/",))], "cycle"),
    ],
    ids=repr,
)
def test_a_fragment_that_makes_no_sense_fails_its_adder_and_adds_nothing(blocks: list[Block], code: str) -> None:
    driver = Driver(
        step("a"),
        step("b", after=("a/",)),
        Group(id="g1", blocks=[step("c", after=("b",))]),
        step("far", after=("g1",)),
    )
    before = len(driver.run.states)

    driver.succeed("a", added=adding(*blocks))

    [failed] = driver.seen(ev.StepFailed)
    assert failed.failure.code == code
    assert len(driver.run.states) == before
    driver.check()


def test_a_circle_through_a_group_that_contains_the_adder() -> None:
    driver = Driver(Group(id="g", blocks=[step("a")]), step("z", after=("g",)))

    driver.succeed("g/a", added=adding(step("x", after=("z",)), into="g"))

    failure = driver.seen(ev.StepFailed)[0].failure
    assert failure.code == "cycle"
    assert "g/x -> z -> g -> g/x" in failure.message


def test_waiting_for_the_adder_or_for_what_has_ended_is_no_circle() -> None:
    driver = Driver(step("t"), step("a"), step("b", after=("a/",)))
    driver.succeed("t")

    driver.succeed("a", added=adding(step("x", after=("a", "t", "t/"), after_any=("t/",))))

    assert driver.waiting() == ["a/x"]
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_what_waits_for_all_of_a_failed_step_shares_its_outcome() -> None:
    driver = Driver(step("t", optional=True), Group(id="g", blocks=[step("u")]), step("a"))
    driver.fail("t")
    driver.succeed("g/u")

    driver.succeed("a", added=adding(step("x", after=("t/",), optional=True), step("y", after=("g/u/",))))

    assert driver.status("a/x") == "skipped"
    assert driver.waiting() == ["a/y"]
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_hostile_ids_are_told_apart() -> None:
    ids = ["a/b", "a%2Fb", "x.meta", "../up", "a b", "🦜", "a#2", "n[3]", "~", "root/", "%", "​"]
    driver = Driver(*[step(id_) for id_ in ids], step("adder"))

    driver.succeed("adder", added=adding(*[step(id_) for id_ in ids], step("last", after=("a%2Fb", "a%252Fb"))))

    assert len(set(driver.statuses())) == 2 * len(ids) + 2
    assert "a%2Fb" in driver.statuses()
    assert "a%252Fb" in driver.statuses()
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_thousand_added_steps_are_one_event() -> None:
    driver = Driver(step("a"))

    driver.succeed("a", added=adding(*[step(f"x{n}") for n in range(1000)]))

    assert len(driver.seen(ev.StepsAdded)) == 1
    assert len(driver.waiting()) == 1000
