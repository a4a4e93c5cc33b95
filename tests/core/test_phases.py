"""Phases: rows, the policies between them, state, detached cells, and rows that are tried again."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.kit import Driver, adding, step, value_of

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.analysis import check_plan
from treadle.core.commands import Task
from treadle.core.decide import root_causes
from treadle.core.plan import (
    Body,
    Branch,
    Choose,
    Const,
    Gather,
    Group,
    Holds,
    LaneValue,
    MapOf,
    Phase,
    PhaseInfo,
    Phases,
    Plan,
    Predicate,
    Ref,
    Rule,
    Slot,
    StateValue,
    Step,
)
from treadle.core.progress import PhasesProgress

ADVANCE = Rule(id="on", move="advance")


def rule(id: str, move: Any, when: str | None = None, target: str = "") -> Rule:
    """A rule over the state variable s, and n, what rules are told."""
    slots: dict[str, Slot] = {"s": StateValue(name="s"), "n": PhaseInfo()}
    return Rule(id=id, move=move, target=target, when=Holds(text=when, slots=slots) if when is not None else None)


def cell(id: str, *refs: str, **more: Any) -> Step:
    return step(id, *refs, slots={"at": PhaseInfo(), **more.pop("slots", {})}, **more)


def row(id: str, *cells: Any, **more: Any) -> Phase:
    return Phase(id=id, blocks=list(cells), **more)


def rows(*names: str, policy: str = "go") -> list[Phase]:
    return [row(name, cell("main"), policy=policy) for name in names]


def flow(*rules: Rule, names: tuple[str, ...] = ("a", "b", "c"), **more: Any) -> Phases:
    return Phases(id="f", phases=rows(*names), policies={"go": rules}, **more)


def opened(driver: Driver) -> list[str]:
    """The phases that were entered, in order."""
    return [event.phase for event in driver.seen(ev.RowOpened)]


def decided(driver: Driver) -> list[tuple[str, str, str]]:
    return [(event.rule, event.move, event.target) for event in driver.seen(ev.DecisionMade)]


def give(driver: Driver, at: str, value: Any = None, **patch: Any) -> None:
    """A cell succeeds and sets variables."""
    handles = {name: f"={str(held).lower() if isinstance(held, bool) else held}" for name, held in patch.items()}
    driver.give(driver.outcome(at, value, patch=handles))


def failure_of(driver: Driver, at: str = "f") -> ev.Failure:
    failure = driver.scope(at).failure
    assert failure is not None
    return failure


def place_of(task: Task) -> dict[str, Any]:
    found: dict[str, Any] = value_of(task.call.args["at"])
    return found


# -- what follows a row ----------------------------------------------------------------------------------------------


def test_without_policies_rows_advance_to_the_end() -> None:
    driver = Driver(Phases(id="f", phases=rows("a", "b", policy="")), step("z", "f"))
    assert driver.waiting() == ["f/a/main"]
    driver.finish()

    assert opened(driver) == ["a", "b"]
    assert decided(driver) == [("", "advance", "b"), ("", "advance", "")]
    assert driver.status() == "succeeded"
    assert driver.seen(ev.RunSettled)[0].outcome == "succeeded"
    driver.check()


@pytest.mark.parametrize(
    ("rules", "entered"),
    [
        ([rule("r", "stop")], ["a"]),
        ([rule("r", "stop", "n.step == 1"), ADVANCE], ["a", "b"]),
        ([rule("r", "repeat", "n.step < 2"), ADVANCE], ["a", "a", "a", "b", "c"]),
        ([rule("r", "jump", "n.step == 0", "c"), ADVANCE], ["a", "c"]),
        ([rule("r", "jump", "n.step == 0", "a"), ADVANCE], ["a", "a", "b", "c"]),
        ([rule("r", "jump", "n.step == 2", "a"), ADVANCE], ["a", "b", "c", "a", "b", "c"]),
        ([ADVANCE], ["a", "b", "c"]),
    ],
)
def test_the_first_rule_that_holds_decides(rules: list[Rule], entered: list[str]) -> None:
    driver = Driver(flow(*rules))
    driver.finish()

    assert opened(driver) == entered
    assert [event.step for event in driver.seen(ev.RowOpened)] == list(range(len(entered)))
    assert driver.status() == "succeeded"
    driver.check()


def test_a_policy_of_one_phase_loops_back_and_cells_are_told_their_place() -> None:
    phases = [*rows("phase_1"), row("phase_2", cell("main"), policy="gate"), *rows("phase_3")]
    gate = (rule("again", "loop_back", "n.step == 1", "phase_1"), ADVANCE)
    driver = Driver(Phases(id="f", phases=phases, policies={"go": (ADVANCE,), "gate": gate}, step_limit=10))
    seen: list[tuple[str, int, int, int]] = []

    def answer(task: Task) -> inp.Outcome:
        at = place_of(task)
        seen.append((at["phase"], at["index"], at["step"], at["entry"]))
        return driver.outcome(task, task.address, patch={"last": f'="{at["phase"]}"'})

    driver.finish(answer)

    assert [at[0] for at in seen] == ["phase_1", "phase_2", "phase_1", "phase_2", "phase_3"]
    assert [at[1:] for at in seen] == [(0, 0, 1), (1, 1, 1), (0, 2, 2), (1, 3, 2), (2, 4, 1)]
    assert value_of(driver.scope("f").result) == {"last": "phase_3"}
    assert driver.status("f/phase_1#2/main") == "succeeded"
    driver.check()


def test_a_run_may_start_in_the_middle() -> None:
    driver = Driver(flow(ADVANCE, start="b"))
    driver.finish()

    assert opened(driver) == ["b", "c"]


def test_a_stop_on_the_last_allowed_row_succeeds_and_another_row_is_an_error() -> None:
    enough = Driver(flow(ADVANCE, step_limit=3))
    enough.finish()
    assert enough.status() == "succeeded"
    short = Driver(flow(ADVANCE, step_limit=2))
    short.finish()

    assert short.status() == "failed"
    assert opened(short) == ["a", "b"]
    assert failure_of(short).code == "step_limit"
    assert short.seen(ev.RunSettled)[0].failures == ["f"]
    short.check()


def test_one_phase_and_one_row_may_be_all() -> None:
    driver = Driver(flow(ADVANCE, names=("a",), step_limit=1))
    driver.finish()

    assert driver.status() == "succeeded"


def test_no_rule_that_holds_is_an_error_unless_something_is_said_for_otherwise() -> None:
    never = rule("never", "advance", "false")
    driver = Driver(Phases(id="f", phases=[row("a", policy="go")], policies={"go": (never,)}))
    assert driver.status() == "failed"
    assert failure_of(driver).message == "policy 'go' had no matching rule for phase 'a'"
    driver.check()

    driver = Driver(flow(never, otherwise=Rule(id="else", move="stop")))
    driver.finish()
    assert driver.status() == "succeeded"
    assert decided(driver) == [("else", "stop", "")]


def test_policies_are_shared_and_empty_rows_allowed() -> None:
    phases = [row("a", policy="go"), row("b", cell("main"), policy="go"), row("c", policy="end")]
    driver = Driver(Phases(id="f", phases=phases, policies={"go": (ADVANCE,), "end": (rule("end", "stop"),)}))
    driver.finish()

    assert [event.policy for event in driver.seen(ev.DecisionMade)] == ["go", "go", "end"]
    assert driver.status() == "succeeded"


def test_a_counter_in_the_state_repeats_a_row() -> None:
    driver = Driver(flow(rule("more", "repeat", "s < 3"), ADVANCE, names=("a",), state={"s": Const(0)}), constants=[0])
    for n in range(3):
        name = "a" if n == 0 else f"a#{n + 1}"
        assert place_of(driver.task(f"f/{name}/main"))["state"] == {"s": n}
        give(driver, f"f/{name}/main", s=n + 1)

    assert driver.status() == "succeeded"
    driver.check()


@pytest.mark.parametrize("text", ["1 / s == 1", "t", "s < 'a'"])
def test_a_rule_that_makes_no_sense_fails_the_block_and_is_named(text: str) -> None:
    driver = Driver(flow(rule("odd", "advance", text), state={"s": Const(0)}), constants=[0])
    driver.finish()

    assert driver.status() == "failed"
    assert "rule 'odd' of policy 'go'" in failure_of(driver).message
    driver.check()


# -- rules that a worker is asked for --------------------------------------------------------------------------------


def asked(*rules: Rule, **more: Any) -> Driver:
    driver = Driver(flow(*rules, **more))
    driver.succeed("f/a/main", result="A")
    return driver


PREDICATE = Predicate(name="p", slots={"at": PhaseInfo()})


def test_a_predicate_is_a_step_of_the_block() -> None:
    driver = asked(Rule(id="p", move="stop", when=PREDICATE), Rule(id="q", move="stop", when=PREDICATE), ADVANCE)
    task = driver.task("f/~rule")
    assert task.action == "p"
    told = place_of(task)
    assert (told["policy"], told["phase"], told["step"], told["lanes"]) == ("go", "a", 0, {"main": "A"})

    driver.succeed("f/~rule", result=False)
    driver.succeed("f/~rule#2", result=True)

    assert driver.status() == "succeeded"
    assert decided(driver) == [("q", "stop", "")]
    driver.check()


@pytest.mark.parametrize("value", [3, None, "yes"])
def test_a_predicate_that_gives_no_bool_fails_the_block(value: Any) -> None:
    driver = asked(Rule(id="p", move="stop", when=PREDICATE))
    driver.succeed("f/~rule", result=value)

    assert driver.status() == "failed"
    assert "did not give a bool" in failure_of(driver).message


def test_a_predicate_that_raises_is_the_cause_and_may_be_retried() -> None:
    driver = asked(Rule(id="p", move="stop", when=PREDICATE), step_limit=9)
    driver.fail("f/~rule")
    assert driver.status() == "failed"
    assert driver.seen(ev.RunSettled)[0].failures == ["f/~rule"]

    driver.give(inp.Retry())
    assert driver.waiting() == ["f/~rule"]
    driver.succeed("f/~rule", result=True)

    assert driver.status() == "succeeded"
    assert opened(driver) == ["a"]
    driver.check()


def test_a_lost_predicate_is_asked_again() -> None:
    driver = asked(Rule(id="p", move="stop", when=PREDICATE))
    driver.lose("f/~rule")
    driver.succeed("f/~rule", result=True)

    assert driver.status() == "succeeded"


def test_a_cancelled_predicate_cancels_the_block() -> None:
    driver = asked(Rule(id="p", move="stop", when=PREDICATE))
    driver.give(driver.outcome("f/~rule", status="cancelled"))

    assert driver.status() == "cancelled"
    driver.check()


# -- state and lane values -------------------------------------------------------------------------------------------


def two_lanes(**more: Any) -> Driver:
    lanes = [cell("x"), cell("y")]
    return Driver(
        Phases(id="f", phases=[row("a", *lanes), row("b", *lanes)], state={"s": Const(0)}, **more), constants=[0]
    )


def test_patches_wait_for_the_barrier_and_the_later_lane_wins() -> None:
    driver = two_lanes()
    give(driver, "f/a/y", s=2, t=7)
    give(driver, "f/a/x", s=1)

    assert place_of(driver.task("f/b/x"))["state"] == {"s": 2, "t": 7}
    assert driver.seen(ev.DecisionMade)[0].overwritten == ["s"]
    give(driver, "f/b/x", u=1)
    assert place_of(driver.task("f/b/y"))["state"] == {"s": 2, "t": 7}
    driver.succeed("f/b/y")
    assert value_of(driver.scope("f").result) == {"s": 2, "t": 7, "u": 1}
    assert driver.seen(ev.DecisionMade)[1].overwritten == []
    driver.check()


def test_a_conflict_may_be_an_error() -> None:
    driver = two_lanes(on_conflict="error")
    give(driver, "f/a/x", s=1)
    give(driver, "f/a/y", s=2)

    assert driver.status() == "failed"
    assert failure_of(driver, "f/a").code == "patch_conflict"
    assert "'s'" in failure_of(driver, "f/a").message
    assert driver.seen(ev.RunSettled)[0].failures == ["f/a"]
    driver.check()


def test_a_failed_row_applies_no_patch() -> None:
    driver = two_lanes()
    give(driver, "f/a/x", s=5)
    driver.fail("f/a/y")

    assert driver.status() == "failed"
    progress = driver.scope("f").block
    assert isinstance(progress, PhasesProgress)
    assert value_of(progress.state["s"]) == 0
    driver.check()


def test_lane_values_reach_one_row_and_a_value_of_none_is_there() -> None:
    phases = [row("a", step("main"), step("none")), row("b", cell("other")), row("c", cell("last"))]
    driver = Driver(Phases(id="f", phases=phases))
    driver.succeed("f/a/main", result="facts_v1")
    driver.succeed("f/a/none")

    assert place_of(driver.task("f/b/other"))["previous"] == {"main": "facts_v1", "none": None}
    driver.succeed("f/b/other", result=3)
    assert place_of(driver.task("f/c/last"))["previous"] == {"other": 3}


def test_lane_values_are_those_of_the_row_that_was_executed_before() -> None:
    lane = step("main", slots={"p": LaneValue(lane="main", default=0)})
    driver = Driver(
        Phases(
            id="f", phases=[row("a", lane, policy="go")], policies={"go": (rule("r", "repeat", "n.step < 1"), ADVANCE)}
        ),
        constants=["none"],
    )
    assert driver.args("f/a/main") == {"p": "none"}
    driver.succeed("f/a/main", result="first")

    assert driver.args("f/a#2/main") == {"p": "first"}


def test_a_required_variable_that_is_not_set_fails_its_cell() -> None:
    driver = Driver(Phases(id="f", phases=[row("a", step("x", slots={"v": StateValue(name="v")}))]))

    assert driver.status() == "failed"
    failure = driver.step("f/a/x").failure
    assert failure is not None
    assert "variable 'v'" in failure.message


def test_state_that_cannot_be_made_fails_the_block_before_its_first_row() -> None:
    state: dict[str, Slot] = {"s": Ref(step="l", path=(3,))}
    gather = Gather(id="l", items=Const(0), body=Body(blocks=[step("i")]))
    driver = Driver(gather, Phases(id="f", phases=rows("r", policy=""), state=state), constants=[[1]])
    driver.succeed("l[0]/i")

    assert driver.status() == "failed"
    assert failure_of(driver).code == "unresolved"
    driver.check()


def test_the_value_may_be_an_output_of_state_lanes_and_rows() -> None:
    output: dict[str, Slot] = {
        "s": StateValue(name="s"),
        "m": LaneValue(lane="main"),
        "a": Ref(step="a/main"),
        "b": Ref(step="c/main", default=0),
    }
    driver = Driver(
        flow(rule("r", "stop", "n.step == 1"), ADVANCE, state={"s": Const(0)}, output=MapOf(output)),
        step("z", "f"),
        constants=["none"],
    )
    driver.succeed("f/a/main", result=1)
    driver.succeed("f/b/main", result=2)

    assert driver.args("z") == {"p0": {"s": "none", "m": 2, "a": 1, "b": "none"}}
    driver.check()


def test_a_cell_reads_the_newest_entry_of_another_row() -> None:
    phases = [row("a", step("main"), policy="go"), row("b", step("main", slots={"a": Ref(step="a/main")}), policy="go")]
    driver = Driver(Phases(id="f", phases=phases, policies={"go": (rule("r", "jump", "n.step == 1", "a"), ADVANCE)}))
    for at, result in (("f/a/main", 1), ("f/b/main", 2), ("f/a#2/main", 3)):
        driver.succeed(at, result=result)

    assert driver.args("f/b#2/main") == {"a": 3}


def test_a_row_that_was_never_executed_is_not_waited_for_and_needs_a_default() -> None:
    late = row(
        "c", step("x", slots={"b": Ref(step="b/main", default=0)}), step("y", after=("b/main",)), step("z", "b/main")
    )
    driver = Driver(
        Phases(
            id="f", phases=[*rows("a", "b"), late], policies={"go": (rule("r", "jump", None, "c"),)}, otherwise=ADVANCE
        ),
        constants=[0],
    )
    driver.succeed("f/a/main")

    assert driver.args("f/c/x") == {"b": 0}
    failure = driver.step("f/c/z").failure
    assert failure is not None
    assert failure.message == "'b/main' is not executed, and its result is required"


# -- the barrier -----------------------------------------------------------------------------------------------------


def test_the_first_failure_cancels_the_row_and_is_its_cause() -> None:
    driver = Driver(
        Phases(id="f", phases=[row("a", cell("x"), cell("y"), step("z", "y")), *rows("b", policy="")]), step("end", "f")
    )
    driver.fail("f/a/y")

    assert driver.statuses() == {"end": "skipped", "f/a/x": "cancelled", "f/a/y": "failed", "f/a/z": "cancelled"}
    assert driver.interrupted == [driver.step("f/a/x").node.number]
    assert driver.status() == "failed"
    assert root_causes(driver.run) == ["f/a/y"]
    driver.check()


def test_an_optional_cell_may_fail() -> None:
    driver = Driver(Phases(id="f", phases=[row("a", cell("x", optional=True), cell("y")), *rows("b", policy="")]))
    driver.fail("f/a/x")
    driver.succeed("f/a/y", result=1)

    assert place_of(driver.task("f/b/main"))["previous"] == {"y": 1}


def test_a_lane_may_be_a_group_or_a_block_and_gives_its_output() -> None:
    lanes = [
        Group(id="g", blocks=[step("x"), step("y", "x")], output=Ref(step="y")),
        Gather(id="h", items=Const(0), body=Body(blocks=[step("i")], output=Ref(step="i"))),
        Choose(id="c", branches=[Branch(id="yes", blocks=[step("k")], output=Ref(step="k"))]),
        Phases(id="p", phases=rows("r", policy=""), state={"v": Const(0)}),
    ]
    driver = Driver(Phases(id="f", phases=[row("a", *lanes), *rows("b", policy="")]), constants=[[1]])
    driver.succeed("f/a/g/x", "f/a/h[0]/i", "f/a/c/yes/k", "f/a/p/r/main", result=1)
    driver.succeed("f/a/g/y", result=2)

    assert place_of(driver.task("f/b/main"))["previous"] == {"g": 2, "h": [1], "c": 1, "p": {"v": [1]}}
    driver.check()


def test_a_breakpoint_after_a_cell_holds_the_next_row() -> None:
    cells = [Group(id="g", blocks=[cell("x", break_after=("red",))])]
    driver = Driver(Phases(id="f", phases=[row("a", *cells), *rows("b", policy="")]), breakpoints=["red"])
    driver.succeed("f/a/g/x")
    assert opened(driver) == ["a"]
    driver.check()

    driver.give(inp.Release("red"))
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_fences_hold_cells() -> None:
    driver = Driver(
        Phases(id="f", phases=[row("a", cell("x", signals=("go",)), cell("y", break_before=("red",)))]),
        breakpoints=["red"],
    )
    assert driver.waiting() == []
    driver.signal("go")
    driver.give(inp.Release("red"))
    driver.finish()

    assert driver.status() == "succeeded"


def test_a_step_adds_cells_to_its_row() -> None:
    driver = Driver(Phases(id="f", phases=[row("a", cell("x")), *rows("b", policy="")]))
    driver.succeed("f/a/x", added=adding(step("more"), into="f/a"))
    assert driver.waiting() == ["f/a/more"]
    driver.finish()

    assert driver.status() == "succeeded"
    driver.check()


@pytest.mark.parametrize("into", ["f", "f/~detached", "f/a", ""])
def test_a_detached_step_adds_to_nothing_that_does_not_wait_for_it(into: str) -> None:
    driver = Driver(Phases(id="f", phases=[row("a", cell("x"), cell("bg"), detached=("bg",))]))
    driver.succeed("f/a/bg", added=adding(step("more"), into=into))

    assert driver.status("f/a/bg") == "failed"
    driver.check()


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (Phases(id="f", phases=[]), "phases are required"),
        (flow(ADVANCE, step_limit=0), "at least one row must be allowed"),
        (flow(ADVANCE, start="q"), "start='q' is not among its phases"),
        (flow(ADVANCE, names=("a", "a")), "two phases have the id 'a'"),
        (flow(ADVANCE, names=("",)), "phase id"),
        (
            Phases(id="f", phases=rows("a", policy="")[:1] + rows("b"), policies={"go": (ADVANCE,)}),
            "needs a transition policy",
        ),
        (Phases(id="f", phases=rows("a", policy="q"), policies={"go": (ADVANCE,)}), "not registered"),
        (flow(rule("r", "jump")), "jump requires a target phase"),
        (flow(rule("r", "jump", None, "q")), "not among the phases"),
        (flow(rule("r", "loop_back")), "loop_back requires a target phase"),
        (flow(rule("r", "loop_back", None, "q")), "not among the phases"),
        (flow(rule("r", "loop_back", None, "b")), "must be earlier than current phase"),
        (flow(rule("r", "loop_back", None, "c")), "must be earlier than current phase"),
        (flow(rule("r", "stop", None, "c")), "stop needs none"),
        (flow(), "has no rules"),
        (flow(rule("r", "stop"), rule("r", "stop")), "two policy 'go' rules have the id 'r'"),
        (Phases(id="f", phases=[row("a", cell("x"), cell("x"))]), "two lanes have the id"),
        (Phases(id="f", phases=[row("a", cell("x"), detached=("y",))]), "no lane 'y' to detach"),
        (Phases(id="f", phases=[row("a", compensate="q")]), "compensated by 'q'"),
        (flow(rule("r", "stop", "1 +")), "step 'f'"),
        (
            Phases(id="f", phases=[row("a", step("x", slots={"b": Ref(step="b/main")})), *rows("b", policy="")]),
            "take it with a default",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(block: Phases, said: str) -> None:
    errors = [str(error) for error in check_plan(Plan(workflow="w", blocks=[block]))]

    assert any(said in error for error in errors), errors
