"""Phases: rows, the policies between them, state, detached cells, and rows that are tried again."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.kit import Driver, adding, step, value_of

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.analysis import check_plan
from treadle.core.commands import Task
from treadle.core.decide import Limits, root_causes
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
    RetryPolicy,
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


# -- detached cells --------------------------------------------------------------------------------------------------


def detached(*, on_finish: Any = "leave", phases: int = 2) -> Driver:
    first = row("a", cell("bg"), cell("main"), detached=("bg",))
    rest = rows("b", "c", "d", policy="")[: phases - 1]
    return Driver(Phases(id="f", phases=[first, *rest], on_finish=on_finish), step("z", "f"))


def test_a_detached_cell_gates_nothing_and_is_counted_as_pending() -> None:
    driver = detached(phases=3)
    assert driver.waiting() == ["f/a/bg", "f/a/main"]
    assert place_of(driver.task("f/a/main"))["pending"] == {}
    driver.succeed("f/a/main", result=1)
    assert place_of(driver.task("f/b/main"))["pending"] == {"bg": 1}
    assert place_of(driver.task("f/b/main"))["previous"] == {"main": 1}
    driver.fail("f/a/bg")
    assert place_of(driver.task("f/b/main"))["pending"] == {"bg": 1}, "what a cell was told does not change"
    driver.succeed("f/b/main")
    assert place_of(driver.task("f/c/main"))["pending"] == {}
    driver.finish()

    assert driver.status() == "succeeded"
    assert driver.status("f/a/bg") == "failed"
    failure = driver.step("f/a/bg").failure
    assert failure is not None
    assert failure.code == "boom", "its outcome stays readable"
    driver.check()


def test_a_detached_cell_sets_nothing() -> None:
    driver = detached()
    give(driver, "f/a/bg", s=1)
    assert driver.status("f/a/bg") == "failed"
    failure = driver.step("f/a/bg").failure
    assert failure is not None
    assert "cannot return state patch" in failure.message
    driver.finish()

    assert driver.status() == "succeeded"
    assert value_of(driver.scope("f").result) == {}


def test_a_detached_cell_sees_the_state_of_its_row_however_late_it_starts() -> None:
    inner = Group(id="bg", blocks=[step("one"), cell("two", after=("one",))])
    driver = Driver(
        Phases(
            id="f",
            phases=[row("a", inner, cell("main"), detached=("bg",)), *rows("b", policy="")],
            state={"s": Const(0)},
        ),
        constants=[0],
    )
    give(driver, "f/a/main", 1, s=5)
    driver.succeed("f/a/bg/one")

    told = place_of(driver.task("f/a/bg/two"))
    assert (told["state"], told["previous"], told["phase"], told["step"]) == ({"s": 0}, {}, "a", 0)
    driver.succeed("f/b/main")
    assert driver.status() == "succeeded"
    driver.succeed("f/a/bg/two")
    assert driver.status("f/a/bg") == "succeeded"
    driver.check()


def test_a_row_of_detached_cells_only_hands_on_nothing() -> None:
    driver = Driver(Phases(id="f", phases=[row("a", cell("bg"), detached=("bg",)), *rows("b", policy="")]))

    assert place_of(driver.task("f/b/main"))["previous"] == {}
    driver.check()


def test_a_detached_cell_may_use_its_siblings() -> None:
    driver = Driver(Phases(id="f", phases=[row("a", step("bg", "main"), step("main"), detached=("bg",))]))
    driver.succeed("f/a/main", result=3)

    assert driver.args("f/a/bg") == {"p0": 3}


def test_at_the_end_detached_cells_are_left_waited_for_or_cancelled() -> None:
    for on_finish, after in (("leave", "succeeded"), ("wait", "running"), ("cancel", "succeeded")):
        driver = detached(on_finish=on_finish)
        driver.succeed("f/a/main", "f/b/main")
        assert ("z" in driver.statuses() and driver.status("z")) == (
            "dispatched" if after == "succeeded" else "waiting"
        )
        assert driver.status("f/a/bg") == ("cancelled" if on_finish == "cancel" else "dispatched")
        driver.check()
        driver.finish()

        assert driver.status() == "succeeded"
        driver.check()


@pytest.mark.parametrize(("on_finish", "ends"), [("leave", True), ("wait", False), ("cancel", True)])
def test_a_failure_ends_the_block_as_it_wants_its_detached_cells_to_end(on_finish: Any, ends: bool) -> None:
    driver = detached(on_finish=on_finish)
    driver.fail("f/a/main")

    assert (driver.status("f") == "failed") is ends
    assert driver.status("f/a/bg") == ("cancelled" if on_finish == "cancel" else "dispatched")
    driver.finish()
    assert driver.status() == "failed"
    driver.check()


def test_a_detached_attempt_of_a_settled_run_may_fail_be_tried_again_and_be_lost() -> None:
    driver = Driver(
        Phases(
            id="f",
            phases=[row("a", cell("bg", retry=RetryPolicy(attempts=2, initial=0)), cell("main"), detached=("bg",))],
        )
    )
    driver.succeed("f/a/main")
    assert driver.status() == "succeeded"

    driver.fail("f/a/bg")
    driver.lose("f/a/bg")
    assert driver.task("f/a/bg").attempt == 3
    driver.check()
    driver.succeed("f/a/bg", result=4)

    assert driver.step("f/a/bg").result == "=4"
    assert driver.status() == "succeeded"
    driver.check()


def test_a_detached_attempt_of_a_settled_run_adds_nothing() -> None:
    driver = Driver(Phases(id="f", phases=[row("a", cell("bg"), cell("main"), detached=("bg",))]))
    driver.succeed("f/a/main")
    driver.succeed("f/a/bg", added=adding(step("more")))

    failure = driver.step("f/a/bg").failure
    assert failure is not None
    assert failure.code == "run_not_active"
    driver.check()


@pytest.mark.parametrize("hard", [False, True])
def test_a_cancel_reaches_detached_cells(hard: bool) -> None:
    inner = Group(id="bg", blocks=[step("one"), step("two", after=("one",))])
    driver = Driver(Phases(id="f", phases=[row("a", inner, cell("main"), detached=("bg",))]), limits=Limits(events=1))
    driver.settle()
    driver.give(inp.Cancel(hard=hard))
    driver.finish()

    assert driver.status() == "cancelled"
    assert driver.statuses() == {
        "f/a/bg/one": "cancelled" if hard else "succeeded",
        "f/a/bg/two": "cancelled",
        "f/a/main": "cancelled" if hard else "succeeded",
    }
    assert driver.status("f/a/bg") == "cancelled"
    driver.check()


# -- rows that are tried again ---------------------------------------------------------------------------------------


def retried(policy: RetryPolicy, *cells: Any) -> Driver:
    phases = [row("a", *(cells or (cell("x"), cell("y"))), retry=policy), *rows("b", policy="")]
    return Driver(Phases(id="f", phases=phases, state={"s": Const(0)}), constants=[0])


def test_a_failed_row_is_tried_again_as_its_next_entry() -> None:
    driver = retried(RetryPolicy(attempts=3, initial=0))
    give(driver, "f/a/x", s=5)
    driver.fail("f/a/y")
    told = place_of(driver.task("f/a#2/x"))
    assert (told["state"], told["entry"], told["step"]) == ({"s": 0}, 2, 0)
    driver.succeed("f/a#2/x")
    driver.fail("f/a#2/y")
    driver.succeed("f/a#3/x", "f/a#3/y")

    assert driver.waiting() == ["f/b/main"]
    assert [(event.entry, event.step, event.again) for event in driver.seen(ev.RowOpened)] == [
        (1, 0, False),
        (2, 0, True),
        (3, 0, True),
        (1, 1, False),
    ]
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_row_is_tried_so_often_and_no_more() -> None:
    driver = retried(RetryPolicy(attempts=2, initial=0))
    driver.fail("f/a/x")
    driver.revoked("f/a/y")
    driver.fail("f/a#2/x")
    driver.revoked()

    assert driver.status() == "failed"
    assert driver.seen(ev.RunSettled)[0].failures == ["f/a#2/x"]
    driver.check()


def test_the_next_try_waits_for_live_attempts_of_the_failed_row() -> None:
    driver = retried(RetryPolicy(attempts=2, initial=0))
    driver.fail("f/a/x")
    assert driver.status("f/a/y") == "cancelled"
    assert driver.waiting() == ["f/a/y"], "it is told to stop, and has not yet"

    driver.give(driver.outcome("f/a/y", status="cancelled"))

    assert driver.waiting() == ["f/a#2/x", "f/a#2/y"]
    driver.check()


@pytest.mark.parametrize(
    ("policy", "delays"),
    [
        (RetryPolicy(attempts=4, backoff="fixed", initial=2), [2, 2, 2]),
        (RetryPolicy(attempts=4, backoff="linear", initial=2), [2, 4, 6]),
        (RetryPolicy(attempts=4, backoff="exponential", initial=2), [2, 4, 8]),
        (RetryPolicy(attempts=4, backoff="exponential", initial=2, cap=5), [2, 4, 5]),
    ],
)
def test_the_delay_before_a_try_is_a_step_that_starts_late(policy: RetryPolicy, delays: list[float]) -> None:
    driver = retried(policy, cell("x"))
    for entry, delay in enumerate(delays, 1):
        driver.fail("f/a/x" if entry == 1 else f"f/a#{entry}/x")
        [task] = driver.tasks.values()
        assert task.action == "treadle:pass"
        assert task.address == ("f/~wait" if entry == 1 else f"f/~wait#{entry}")
        assert task.not_before == driver.now + delay
        driver.succeed(task.address)
    assert driver.waiting() == ["f/a#4/x"]
    driver.check()


def test_some_failures_are_not_tried_again() -> None:
    driver = retried(RetryPolicy(attempts=5, initial=0, never=("fatal",)), Group(id="g", blocks=[cell("x")]))
    driver.fail("f/a/g/x", code="other")
    driver.fail("f/a#2/g/x", code="fatal")

    assert driver.status() == "failed"


def test_tries_count_anew_when_a_phase_is_entered_again() -> None:
    phase = row("a", cell("x"), retry=RetryPolicy(attempts=2, initial=0), policy="go")
    driver = Driver(Phases(id="f", phases=[phase], policies={"go": (rule("r", "repeat", "n.step < 1"), ADVANCE)}))
    driver.fail("f/a/x")
    driver.succeed("f/a#2/x")
    driver.fail("f/a#3/x")

    assert driver.waiting() == ["f/a#4/x"]


def test_a_retry_does_not_use_up_rows() -> None:
    phase = row("a", cell("x"), retry=RetryPolicy(attempts=3, initial=0), policy="go")
    driver = Driver(Phases(id="f", phases=[phase], policies={"go": (ADVANCE,)}, step_limit=1))
    driver.fail("f/a/x")
    driver.succeed("f/a#2/x")

    assert driver.status() == "succeeded"


# -- operators -------------------------------------------------------------------------------------------------------


def test_a_retry_reopens_the_row_with_what_its_failure_had_cancelled() -> None:
    driver = Driver(
        Phases(id="f", phases=[row("a", cell("x"), cell("y"), step("z", "y")), *rows("b", policy="")]), step("end", "f")
    )
    driver.fail("f/a/y")
    driver.revoked()
    assert driver.status() == "failed"

    driver.give(inp.Retry("f/a/y"))

    assert {*driver.seen(ev.StepsReopened)[0].at} == {"f/a/x", "f/a/y", "f/a/z", "end"}
    driver.finish()
    assert driver.status() == "succeeded"
    assert opened(driver) == ["a", "b"]
    driver.check()


def test_a_retry_gives_the_row_its_tries_anew() -> None:
    driver = retried(RetryPolicy(attempts=2, initial=0), cell("x"))
    driver.fail("f/a/x", "f/a#2/x")
    assert driver.status() == "failed"

    driver.give(inp.Retry())
    driver.fail("f/a#2/x")

    assert driver.waiting() == ["f/a#3/x"]
    driver.check()


def test_only_the_newest_entry_of_a_row_is_retried() -> None:
    driver = retried(RetryPolicy(attempts=2, initial=0), cell("x"), cell("o", optional=True))
    driver.fail("f/a/o", "f/a/x", "f/a#2/x")
    driver.revoked()
    refusal = driver.refused(inp.Retry("f/a/x"))
    assert refusal.code == "usage"
    assert "rewind 'f'" in refusal.message

    driver.give(inp.Retry())

    assert {*driver.seen(ev.StepsReopened)[0].at} == {"f/a#2/x", "f/a#2/o"}
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_retry_of_a_row_that_waits_for_its_next_try_is_refused() -> None:
    driver = retried(RetryPolicy(attempts=2, initial=5), cell("x"))
    driver.fail("f/a/x")

    refusal = driver.refused(inp.Retry("f/a/x"))

    assert refusal.code == "step_busy"
    assert "'f/~wait'" in refusal.message


def test_a_run_that_was_cancelled_between_two_tries_goes_on_in_place() -> None:
    driver = retried(RetryPolicy(attempts=2, initial=5), cell("x"))
    driver.fail("f/a/x")
    driver.give(inp.Cancel(hard=True))
    driver.revoked()
    assert driver.status() == "cancelled"
    assert driver.refused(inp.Retry("f/~wait")).code == "usage"

    driver.give(inp.Retry())
    driver.finish()

    assert driver.status() == "succeeded"
    assert opened(driver) == ["a", "b"]
    driver.check()


def test_a_block_that_was_cancelled_between_two_rows_goes_on() -> None:
    driver = Driver(flow(Rule(id="p", move="advance", when=PREDICATE)), constants=[0])
    driver.succeed("f/a/main")
    driver.give(inp.Cancel())
    driver.succeed("f/~rule", result=True)
    assert driver.status() == "cancelled"

    driver.give(inp.Retry())
    driver.finish(lambda task: driver.outcome(task, True))

    assert driver.status() == "succeeded"
    assert opened(driver) == ["a", "b", "c"]
    driver.check()


def test_a_retried_cell_of_the_last_row_decides_anew() -> None:
    driver = Driver(
        Phases(
            id="f",
            phases=[row("a", cell("x", optional=True), policy="go")],
            policies={"go": (rule("r", "repeat", "s == 1"), ADVANCE)},
            state={"s": Const(0)},
        ),
        constants=[0],
    )
    driver.fail("f/a/x")
    assert driver.status() == "succeeded"

    driver.give(inp.Retry())
    give(driver, "f/a/x", s=1)

    assert driver.waiting() == ["f/a#2/x"]
    driver.check()


def test_a_detached_cell_is_retried_alone() -> None:
    driver = detached()
    driver.fail("f/a/bg")
    driver.succeed("f/a/main", "f/b/main", "z")
    assert driver.status() == "succeeded"

    driver.give(inp.Retry("f/a/bg"))

    assert driver.waiting() == ["f/a/bg"]
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_no_step_of_a_row_is_rewound_but_the_block_is() -> None:
    driver = Driver(step("u"), Phases(id="f", phases=rows("a", "b", policy="")), step("z", "f"))
    driver.finish()
    for at in ("f/a/main", "f/b/main", "f/a"):
        refusal = driver.refused(inp.Rewind(at))
        assert refusal.code == "usage"
        assert "rewind 'f'" in refusal.message

    driver.give(inp.Rewind("f"))

    assert driver.seen(ev.StepsReopened)[0].restarted == ["f"]
    assert driver.waiting() == ["f#2/a/main"]
    assert place_of(driver.task("f#2/a/main"))["entry"] == 1
    driver.finish()
    assert driver.status() == "succeeded"
    assert driver.step("z").generation == 2
    assert driver.status("f/a/main") == "succeeded", "the entry before stays readable"
    driver.check()


def test_a_block_begins_anew_below_what_is_rewound() -> None:
    phases = [row("a", cell("main")), row("b", cell("main", "u"))]
    driver = Driver(step("u"), Phases(id="f", phases=phases), step("z", "f"))
    driver.finish()

    driver.give(inp.Rewind("u"))

    assert driver.waiting() == ["f#2/a/main", "u"]
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_block_that_is_under_way_is_not_rewound() -> None:
    driver = Driver(step("u"), Phases(id="f", phases=rows("a", policy=""), after=("u",)))
    driver.succeed("u")

    assert driver.refused(inp.Rewind("f")).code == "usage"
    assert driver.refused(inp.Rewind("u")).code == "step_busy"
    driver.finish()


def test_a_block_that_failed_by_itself_is_rewound() -> None:
    driver = Driver(flow(rule("never", "stop", "s == 1")))
    driver.finish()
    refusal = driver.refused(inp.Retry())
    assert "rewind 'f'" in refusal.message

    driver.give(inp.Rewind("f"))
    give(driver, "f#2/a/main", s=1)

    assert driver.status() == "succeeded"
    driver.check()


# -- cancel and bounds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("after", range(7))
@pytest.mark.parametrize("events", [1, 1000])
def test_a_cancel_at_any_point_ends_the_run_and_a_retry_finishes_it(hard: bool, after: int, events: int) -> None:
    phases = [row("a", cell("x"), cell("y"), policy="p"), row("b", cell("x"), policy="p")]
    policy = (Rule(id="p", move="advance", when=PREDICATE),)
    driver = Driver(
        Phases(id="f", phases=phases, policies={"p": policy}),
        step("z", "f"),
        limits=Limits(dispatched=1, events=events),
    )
    driver.settle()
    for _ in range(after):
        if driver.tasks:
            driver.give(driver.outcome(next(iter(driver.tasks.values())), True))

    driver.give(inp.Cancel(hard=hard))
    driver.finish(lambda task: driver.outcome(task, True))
    assert driver.status() in (["cancelled", "succeeded"] if after > 5 else ["cancelled"])
    driver.check()

    if driver.status() == "cancelled" and not driver.give(inp.Retry()).refusals:
        driver.finish(lambda task: driver.outcome(task, True))
        assert driver.status() == "succeeded"
    driver.check()


def test_a_pause_holds_tasks_and_changes_no_decision() -> None:
    driver = Driver(flow(ADVANCE))
    driver.give(inp.Pause())
    driver.succeed("f/a/main")
    assert driver.waiting() == ["f/b/main"]
    driver.give(inp.Resume())
    driver.finish()

    assert driver.status() == "succeeded"


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
        (Phases(id="f", phases=[row("a", cell("x"), cell("x"))]), "used twice"),
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
