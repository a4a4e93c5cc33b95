"""What follows from outcomes: order, values, defaults, skips, conditions, groups and the run's result."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.kit import Driver, step, value_of

from treadle.core import events as ev
from treadle.core.plan import Block, Const, Group, ListOf, MapOf, Placement, Predicate, Ref, SignalValue
from treadle.errors import DuplicateStepError, UnknownStepError


def test_a_line_runs_one_step_after_the_other() -> None:
    driver = Driver(step("a"), step("b", "a"), step("c", after=("b",)))

    assert driver.waiting() == ["a"]
    driver.succeed("a", result=7)
    assert driver.waiting() == ["b"]
    assert driver.args("b") == {"p0": 7}
    driver.succeed("b")
    driver.succeed("c")

    assert driver.status() == "succeeded"
    assert driver.kinds() == [
        "run_started",
        "step_dispatched",
        "step_succeeded",
        "step_dispatched",
        "step_succeeded",
        "step_dispatched",
        "step_succeeded",
        "run_settled",
    ]
    driver.check()


def test_a_diamond_joins_when_both_sides_have_ended() -> None:
    driver = Driver(step("a"), step("b", "a"), step("c", "a"), step("d", "b", "c"))
    driver.succeed("a", result=1)
    assert driver.waiting() == ["b", "c"]

    driver.succeed("c", result="c")
    assert driver.waiting() == ["b"]
    driver.succeed("b", result="b")

    assert driver.args("d") == {"p0": "b", "p1": "c"}
    driver.finish()
    assert driver.status() == "succeeded"


def test_an_empty_plan_succeeds_at_once() -> None:
    driver = Driver()

    assert driver.status() == "succeeded"
    assert driver.kinds() == ["run_started", "run_settled"]
    driver.check()


def test_values_are_put_where_the_slots_say() -> None:
    slots: dict[str, Any] = {
        "literal": Const(0),
        "part": Ref("a", path=("k", 1)),
        "list": ListOf([Const(0), Ref("a", path=("k",)), SignalValue("s")]),
        "map": MapOf({"x": Ref("a"), "y": ListOf([Ref("a", path=("k", -1))])}),
        "signal": SignalValue("s"),
    }
    driver = Driver(step("a"), step("b", slots=slots), constants=["{not a ref}"])

    driver.succeed("a", result={"k": [1, 2, 3]})
    assert driver.waiting() == []
    driver.signal("s")

    assert driver.args("b") == {
        "literal": "{not a ref}",
        "part": 2,
        "list": ["{not a ref}", [1, 2, 3], None],
        "map": {"x": {"k": [1, 2, 3]}, "y": [3]},
        "signal": None,
    }
    assert driver.step("b").node.needs == ((1, 1),), "several Refs to a step are one need"


def test_a_handle_that_is_not_at_hand_is_passed_on() -> None:
    driver = Driver(step("a"), step("b", slots={"x": Ref("a", path=("k",)), "y": Ref("a")}))

    driver.succeed("a", result="@digest")

    assert driver.task("b").call.args == {"x": ev.Pick("@digest", ("k",)), "y": "@digest"}


# A6.4 of the specification: X names U, U fails.
CASCADE = [
    ("required Ref", {"slots": {"p": Ref("u")}}, "skipped"),
    ("after", {"after": ("u",)}, "skipped"),
    ("with", {"placement": Placement("with", step="u")}, "skipped"),
    ("follow", {"placement": Placement("follow", step="u")}, "skipped"),
    ("default", {"slots": {"p": Ref("u", default=0)}}, "dispatched"),
    ("after_any", {"after_any": ("u",)}, "dispatched"),
    ("default and after", {"slots": {"p": Ref("u", default=0)}, "after": ("u",)}, "dispatched"),
    ("default and Ref", {"slots": {"p": Ref("u", default=0), "q": Ref("u")}}, "skipped"),
    ("after_any and after", {"after_any": ("u",), "after": ("u",)}, "skipped"),
    ("after_any and Ref", {"after_any": ("u",), "slots": {"p": Ref("u")}}, "skipped"),
    ("after_any and default", {"after_any": ("u",), "slots": {"p": Ref("u", default=0)}}, "dispatched"),
    ("when", {"when": Ref("u")}, "skipped"),
    ("behind signals", {"slots": {"p": Ref("u")}, "signals": ("s",), "break_before": ("red",)}, "skipped"),
]


@pytest.mark.parametrize(("more", "status"), [case[1:] for case in CASCADE], ids=[case[0] for case in CASCADE])
@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("how", ["failed", "skipped", "cancelled"])
def test_what_a_failure_upstream_does(more: dict[str, Any], status: str, optional: bool, how: str) -> None:
    upstream = step("u", *(["t"] if how == "skipped" else []), optional=optional)
    blocks = (step("t"), upstream, step("x", **more), step("y", "x"))
    driver = Driver(*blocks, constants=["fallback"], breakpoints=["red"])

    if how == "skipped":
        driver.fail("t")
    elif how == "failed":
        driver.fail("u")
    else:
        driver.give(driver.outcome("u", status="cancelled"))

    assert driver.status("u") == how
    assert driver.status("x") == status
    if status == "skipped":
        assert driver.step("x").causes == ["u"]
        assert driver.step("y").causes == ["x"]
        assert driver.status("y") == "skipped", "a skip is passed on"
    elif "slots" in more:
        assert driver.args("x") == {"p": "fallback"}
    driver.check()


def test_a_default_for_one_upstream_does_not_save_from_another() -> None:
    for failing, status in (("a", "dispatched"), ("c", "skipped")):
        driver = Driver(step("a"), step("c"), step("x", "a?", after=("c",)), constants=[0])
        driver.fail(failing)
        for at in driver.waiting():
            if at in ("a", "c"):
                driver.succeed(at)
        assert driver.status("x") == status


def test_settled_order_waits_for_the_end() -> None:
    driver = Driver(step("a"), step("b", after_any=("a",)))

    assert driver.waiting() == ["a"]
    driver.fail("a")

    assert driver.waiting() == ["b"]


def test_an_optional_step_fails_nothing_and_a_mandatory_skip_fails_the_run() -> None:
    driver = Driver(step("a", optional=True), step("b", "a?"), constants=[99])
    driver.fail("a")
    assert driver.args("b") == {"p0": 99}
    driver.finish()
    assert driver.status() == "succeeded"

    driver = Driver(step("a", optional=True), step("b", "a", optional=True))
    driver.fail("a")
    assert driver.status() == "succeeded"

    driver = Driver(step("a", optional=True), step("b", "a"))
    driver.fail("a")
    assert driver.status() == "failed"
    assert driver.seen(ev.RunSettled)[0].failures == ["b"]


def test_a_run_goes_on_with_what_a_failure_does_not_touch_and_names_the_first_failure_first() -> None:
    driver = Driver(step("a"), Group(id="g", blocks=[step("b"), step("c", "b")]), step("d"))

    driver.fail("b" if "b" in driver.waiting() else "g/b")
    driver.fail("a")
    assert driver.status() == "running"
    driver.finish()

    assert driver.status() == "failed"
    assert driver.seen(ev.RunSettled)[0].failures == ["a", "g/b"]


# -- two causes of a skip --------------------------------------------------------------------------------------------


def conditional(*more: Any, answer: bool = False) -> Driver:
    driver = Driver(step("c", when=Predicate("p")), *more, constants=["fallback"])
    driver.give(driver.outcome("c", answer))
    return driver


def test_a_step_skipped_by_its_own_condition_satisfies_orders_and_fails_nothing() -> None:
    driver = conditional(step("after", after=("c",)), step("any", after_any=("c",)), step("default", "c?"))

    assert driver.waiting() == ["after", "any", "default"]
    assert driver.args("default") == {"p0": "fallback"}
    driver.finish()
    assert driver.status() == "succeeded"
    [skipped] = driver.seen(ev.StepSkipped)
    assert (skipped.reason, skipped.causes, skipped.by_condition) == ("condition", ["c"], True)


def test_a_required_ref_to_it_skips_for_the_same_cause() -> None:
    driver = conditional(step("ref", "c"), step("far", "ref"), step("order", after=("ref",)))

    assert driver.statuses() == {"c": "skipped", "ref": "skipped", "far": "skipped", "order": "dispatched"}
    assert driver.step("far").by_condition
    assert driver.step("far").causes == ["ref"]
    driver.finish()
    assert driver.status() == "succeeded"


@pytest.mark.parametrize("first", ["c", "f"])
def test_a_failure_beside_a_condition_makes_the_skip_a_failure_in_any_order(first: str) -> None:
    driver = Driver(step("c", when=Predicate("p")), step("f", optional=True), step("x", "c", "f"))

    for at in (first, "f" if first == "c" else "c"):
        driver.give(driver.outcome("c", False) if at == "c" else driver.failed("f"))

    assert not driver.step("x").by_condition
    assert driver.status() == "failed"


def test_a_condition_skip_waits_until_no_failure_can_be_its_cause() -> None:
    driver = conditional(step("slow"), step("x", "c", "slow"))

    assert driver.status("x") == "waiting"
    driver.succeed("slow")

    assert driver.step("x").causes == ["c"]
    assert driver.step("x").by_condition
    assert driver.status() == "succeeded"


# -- conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "path", "status"),
    [
        (True, (), "dispatched"),
        (False, (), "skipped"),
        ({"ok": [False, True]}, ("ok", 1), "dispatched"),
        ({"ok": [False, True]}, ("ok", -2), "skipped"),
        (1, (), "failed"),
        ({"ok": "true"}, ("ok",), "failed"),
        ({}, ("ok",), "failed"),
        ([], (0,), "failed"),
        (None, ("ok",), "failed"),
    ],
)
def test_a_condition_at_hand_is_decided_here(result: Any, path: tuple[str | int, ...], status: str) -> None:
    driver = Driver(step("a"), step("b", when=Ref("a", path=path)))

    driver.succeed("a", result=result)

    assert driver.status("b") == status
    if status == "failed":
        [failed] = driver.seen(ev.StepFailed)
        assert (failed.attempt, failed.failure.code) == (0, "condition")
    driver.check()


def test_a_condition_elsewhere_is_asked_of_a_worker() -> None:
    driver = Driver(step("a"), step("b", when=Ref("a"), queue="q"))

    driver.succeed("a", result="@digest")

    task = driver.task("b")
    assert (task.action, task.attempt, task.queue, task.call.purpose) == ("treadle:truth", -1, "q", "condition")
    assert task.call.args == {"value": "@digest"}
    driver.succeed("b", result=True)
    assert driver.task("b").attempt == 1
    driver.check()


def test_a_condition_may_be_a_signal_or_a_default() -> None:
    driver = Driver(step("a", when=SignalValue("s")), step("u"), step("b", when=Ref("u", default=0)), constants=[True])

    driver.signal("s", value=False)
    driver.fail("u")

    assert driver.status("a") == "skipped"
    assert driver.status("b") == "dispatched"


def test_a_predicate_gets_its_slots_and_is_asked_once() -> None:
    driver = Driver(step("a"), step("b", when=Predicate("p", {"x": Ref("a")})))
    driver.succeed("a", result=5)

    assert driver.task("b").action == "p"
    assert driver.args("b") == {"x": 5}
    question = driver.outcome("b", True)
    driver.give(question)
    answered = driver.task("b")
    driver.give(question)

    assert driver.task("b") is answered, "the repeated answer is no outcome of the step"
    driver.finish()
    assert driver.status() == "succeeded"


def test_a_condition_that_fails_or_gives_no_bool_fails_the_step() -> None:
    for wrong in ("failed", 1, "@digest"):
        driver = Driver(step("a", when=Predicate("p"), retry=None))
        driver.give(driver.failed("a") if wrong == "failed" else driver.outcome("a", wrong))

        [failed] = driver.seen(ev.StepFailed)
        assert failed.failure.code == "condition"
        assert failed.attempt == 0
        assert driver.status() == "failed"


def test_a_lost_evaluation_is_asked_again_so_many_times() -> None:
    driver = Driver(step("a", when=Predicate("p"), lost_limit=3))

    driver.lose("a")
    assert driver.task("a").attempt == -2
    driver.lose("a")
    driver.lose("a")

    assert driver.status("a") == "failed"
    assert [event.failure.code for event in driver.seen(ev.StepFailed)] == ["lost"]
    driver.check()


def test_an_interrupted_evaluation_cancels_the_step() -> None:
    driver = Driver(step("a", when=Predicate("p")))

    driver.give(driver.outcome("a", status="cancelled"))

    assert driver.status("a") == "cancelled"
    assert driver.status() == "cancelled"


# -- groups ----------------------------------------------------------------------------------------------------------


def test_a_group_waits_and_is_waited_for() -> None:
    driver = Driver(step("a"), Group(id="g", blocks=[step("x"), step("y", "x")], after=("a",)), step("z", after=("g",)))

    assert driver.waiting() == ["a"]
    driver.succeed("a")
    assert driver.waiting() == ["g/x"]
    driver.succeed("g/x")
    driver.succeed("g/y")

    assert driver.status("g") == "succeeded"
    assert driver.waiting() == ["z"]
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_group_whose_upstream_failed_is_skipped_with_its_content_and_all_behind_it() -> None:
    inner = Group(id="h", blocks=[step("x", signals=("s",))])
    driver = Driver(
        step("a"), Group(id="g", blocks=[inner, step("y")], after=("a",)), step("z", after=("g",)), step("o")
    )

    driver.fail("a")

    assert driver.status("g") == driver.status("g/h") == "skipped"
    assert driver.step("g/h/x").causes == ["a"]
    assert driver.step("z").causes == ["g"]
    driver.finish()
    assert driver.status() == "failed"
    assert driver.seen(ev.RunSettled)[0].failures == ["a"]
    driver.check()


def test_a_failed_group_fails_the_run_unless_it_is_optional() -> None:
    for optional, status in ((False, "failed"), (True, "succeeded")):
        driver = Driver(Group(id="g", blocks=[step("x"), step("y")], optional=optional))
        driver.fail("g/x")
        assert driver.status("g") == "open", "the group finishes its other work"
        driver.succeed("g/y")

        assert driver.status("g") == "failed"
        assert driver.status() == status


@pytest.mark.parametrize("after", [(), ("a",)])
def test_an_empty_group_settles_by_itself(after: tuple[str, ...]) -> None:
    driver = Driver(step("a"), Group(id="g", after=after), step("b", after=("g",)))

    assert driver.status("g") == ("open" if after else "succeeded")
    driver.finish()

    assert driver.status() == "succeeded"
    driver.check()


def test_nested_groups_open_from_outside_in() -> None:
    inner = Group(id="h", blocks=[step("x", "a")], after=("b",))
    driver = Driver(step("a"), step("b"), Group(id="g", blocks=[inner], after=("a",)))

    driver.succeed("b")
    assert driver.waiting() == ["a"]
    driver.succeed("a")

    assert [event.at for event in driver.seen(ev.ScopeOpened)] == ["g", "g/h"]
    assert driver.waiting() == ["g/h/x"]


def test_a_ref_may_reach_into_a_group_and_out_of_it() -> None:
    driver = Driver(Group(id="g", blocks=[step("x", "t")]), step("y", "g/x"), step("t"))

    driver.succeed("t", result=1)
    driver.succeed("g/x", result=2)

    assert driver.args("y") == {"p0": 2}


def test_waiting_for_all_that_a_step_adds_is_waiting_for_the_step_at_least() -> None:
    driver = Driver(step("a"), step("b", after=("a/",)), step("c", after_any=("a/",)))
    assert driver.waiting() == ["a"]
    driver.succeed("a")
    assert driver.waiting() == ["b", "c"]

    driver = Driver(step("a", optional=True), step("b", after=("a/",)), step("c", after_any=("a/",)))
    driver.fail("a")
    assert driver.status("b") == "skipped"
    assert driver.status("a/") == "failed"
    assert driver.waiting() == ["c"]
    driver.check()


def test_all_that_a_step_adds_shares_the_cause_of_its_skip() -> None:
    driver = conditional(step("x", "c"), step("b", after=("x/",)))

    assert driver.status("x/") == "skipped"
    assert driver.waiting() == ["b"]


# -- the run's result ------------------------------------------------------------------------------------------------


def test_the_output_is_made_of_the_results() -> None:
    output = MapOf({"a": Ref("a"), "l": ListOf([Const(0), Ref("b", default=0), Ref("b", path=("k",), default=0)])})
    driver = Driver(step("a"), step("b", optional=True), output=output, constants=["c"])

    driver.succeed("a", result=1)
    driver.fail("b")

    settled = driver.seen(ev.RunSettled)[0]
    assert value_of(settled.result) == {"a": 1, "l": ["c", "c", "c"]}
    assert settled.missing == []


def test_an_output_without_its_steps_names_them() -> None:
    output = MapOf({"a": Ref("a"), "b": ListOf([Ref("b"), Ref("b"), Const(0), SignalValue("s")])})
    driver = Driver(step("a"), step("b", optional=True), output=output, constants=[0])

    driver.succeed("a")
    driver.fail("b")

    assert driver.run.status == "succeeded"
    assert driver.run.missing == ["b"]
    assert driver.run.result == ev.NULL


def test_a_part_of_a_large_result_is_picked_later() -> None:
    driver = Driver(step("a"), output=Ref("a", path=("k",)))

    driver.succeed("a", result="#digest")

    assert driver.run.result == ev.Pick("#digest", ("k",))
    driver.check()


# -- plans that are none ---------------------------------------------------------------------------------------------


def test_a_graph_refuses_what_it_cannot_link() -> None:
    group = Group(id="g", blocks=[step("x")])
    cases: list[tuple[list[Block], type[Exception]]] = [
        ([step("a"), step("a")], DuplicateStepError),
        ([step("a", dedup="k"), step("b", dedup="k")], DuplicateStepError),
        ([step("a", "nobody")], UnknownStepError),
        ([step("a"), step("b", after=("a/x",))], UnknownStepError),
        ([group, step("b", "g")], UnknownStepError),
        ([group, step("b", placement=Placement("with", step="g"))], UnknownStepError),
    ]
    for wrong, error in cases:
        with pytest.raises(error):
            Driver(*wrong)
    with pytest.raises(UnknownStepError, match="the output"):
        Driver(group, output=Ref("g"))


def test_what_a_step_is_told_goes_into_its_task() -> None:
    driver = Driver(
        step("t"),
        step(
            "a",
            queue="q",
            priority=3,
            timeout=2.5,
            progress_timeout=1.5,
            placement=Placement("with", step="t"),
            action="pkg.fn",
        ),
        step("b", progress_timeout=1.5),
        key="key",
    )
    driver.succeed("t")

    task = driver.task("a")
    assert (task.run, task.run_id, task.action, task.queue, task.priority) == ("key", "run-1", "pkg.fn", "q", 3)
    assert (task.call.timeout, task.call.purpose, task.call.placement) == (2.5, "step", Placement("with", step="t"))
    assert [driver.task(name).call.progress_timeout for name in "ab"] == [1.5, 1.5]
