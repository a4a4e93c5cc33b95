"""Phases executed in process: decisions, state, lanes, detached cells, and what an error carries."""

from __future__ import annotations

import asyncio
import contextvars
import re
from collections.abc import Callable
from typing import Any

import pytest

from treadle import (
    Cell,
    DefinitionError,
    DefinitionErrors,
    LanePlan,
    Patch,
    Phase,
    Phases,
    PhasesCancelled,
    PhasesFailedError,
    Retry,
    Row,
    Rule,
    StepLimitError,
    TransitionError,
    step,
)
from treadle.authoring.turns import FEW


def executed(result: Any) -> list[str]:
    return [row.phase for row in result.rows]


def note(seen: list[Any], value: Any = None) -> Callable[[Cell], Any]:
    def cell(told: Cell) -> Any:
        seen.append(told)
        return value

    return cell


async def test_a_loop_back_goes_once_and_steps_count_on() -> None:
    seen: list[Cell] = []

    def last(cell: Cell) -> Patch[None]:
        seen.append(cell)
        return Patch(None, {"last": cell.phase})

    phases = Phases(
        *(Phase(f"phase_{n}", {"main": last}, policy=f"policy_{n}") for n in (1, 2, 3)),
        policies={
            "policy_1": [Rule.advance()],
            "policy_2": [Rule.loop_back("phase_1", when="step == 1"), Rule.advance()],
            "policy_3": [Rule.stop()],
        },
        step_limit=10,
    )

    result = await phases.run()

    assert executed(result) == ["phase_1", "phase_2", "phase_1", "phase_2", "phase_3"]
    assert [cell.step for cell in seen] == [0, 1, 2, 3, 4]
    assert result.state == {"last": "phase_3"}
    assert result.rows[1].rule == "loop_back-1"
    assert result.rows[2].entry == 2


async def test_lane_values_reach_the_next_row_and_patches_the_state() -> None:
    seen: list[Cell] = []
    phases = Phases(
        Phase("one", {"main": lambda: Patch("facts_v1", {"done": True})}),
        Phase("two", {"main": note(seen, "later")}),
    )

    result = await phases.run()

    assert seen[0].previous == {"main": "facts_v1"}
    assert seen[0].state == {"done": True}
    assert result.rows[0].values == {"main": "facts_v1"}
    assert result.end_reason == "advanced_past_end"


async def test_values_are_the_objects_themselves() -> None:
    thing = object()
    seen: list[Cell] = []
    phases = Phases(Phase("a", {"x": lambda: Patch(thing, {"t": thing})}), Phase("b", {"y": note(seen)}))

    result = await phases.run({"given": thing})

    assert seen[0].previous["x"] is thing
    assert seen[0].state["t"] is thing
    assert result.state["given"] is thing


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule.stop(), ["a"]),
        (Rule.advance(), ["a", "b", "c"]),
        (Rule.jump("c"), ["a", "c"]),
        (Rule.jump("a", when="step < 2"), ["a", "a", "a"]),
        (Rule.repeat(when="step < 2"), ["a", "a", "a"]),
    ],
)
async def test_every_move_goes_where_it_says(rule: Rule, expected: list[str]) -> None:
    phases = Phases(
        Phase("a", {"x": lambda: 1}, policy="p"),
        Phase("b", {"x": lambda: 1}, policy="on"),
        Phase("c", {"x": lambda: 1}, policy="on"),
        policies={"p": [rule, Rule.stop()], "on": [Rule.advance()]},
        step_limit=10,
    )

    assert executed(await phases.run()) == expected


async def test_no_rule_that_holds_is_an_error_with_what_was_done() -> None:
    phases = Phases(Phase("only", policy="never"), policies={"never": [Rule.stop(when=lambda row: False)]})

    with pytest.raises(TransitionError, match="no matching rule for phase 'only'") as caught:
        await phases.run()

    assert executed(caught.value.partial) == ["only"]
    assert caught.value.kind == "no_rule"


async def test_otherwise_is_for_where_no_rule_holds() -> None:
    phases = Phases(
        Phase("only", policy="never"), policies={"never": [Rule.repeat(when="false")]}, otherwise=Rule.stop(id="enough")
    )

    result = await phases.run()

    assert (result.end_reason, result.rows[0].rule) == ("stop", "enough")


async def test_a_stop_on_the_very_last_row_succeeds_and_one_more_does_not() -> None:
    phases = Phases(
        Phase("a", {"x": lambda: 1}, policy="p"), policies={"p": [Rule.stop(when="step == 2"), Rule.repeat()]}
    )

    assert len((await phases.run(step_limit=3)).rows) == 3
    with pytest.raises(StepLimitError, match="step_limit") as caught:
        await phases.run(step_limit=2)
    assert len(caught.value.partial.rows) == 2


async def test_a_run_may_begin_in_the_middle() -> None:
    phases = Phases(*(Phase(name, {"x": lambda: 1}) for name in "abc"))

    assert executed(await phases.run(start="b")) == ["b", "c"]


async def test_a_failing_cell_cancels_its_siblings_and_no_patch_of_the_row_is_applied() -> None:
    cancelled = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError("no")

    phases = Phases(
        Phase("before", {"x": lambda: Patch(None, {"kept": 1})}),
        Phase("row", {"waits": waits, "patches": lambda: Patch(None, {"kept": 2}), "fails": fails}),
    )

    with pytest.raises(PhasesFailedError, match="phase 'row' lane 'fails' failed: ZeroDivisionError: no") as caught:
        await phases.run()

    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.partial.state == {"kept": 1}
    assert [lane.status for lane in caught.value.partial.rows[1].lanes] == ["cancelled", "succeeded", "failed"]
    await asyncio.wait_for(cancelled.wait(), 5)


async def test_two_lanes_that_set_one_variable() -> None:
    lanes = {"one": lambda: Patch(None, {"x": 1}), "two": lambda: Patch(None, {"x": 2})}

    result = await Phases(Phase("row", lanes)).run()

    assert result.state == {"x": 2}
    assert result.rows[0].overwritten == ("x",)
    with pytest.raises(PhasesFailedError, match="several cells of phase 'row' set 'x'") as caught:
        await Phases(Phase("row", lanes), on_conflict="error").run()
    assert caught.value.kind == "patch_conflict"
    assert caught.value.partial.state == {}


async def test_what_a_cell_sees_never_changes_and_cannot_be_changed() -> None:
    seen: list[Cell] = []
    initial = {"n": 0}

    def count(cell: Cell) -> Patch[None]:
        seen.append(cell)
        return Patch(None, {"n": cell.state["n"] + 1})

    phases = Phases(
        Phase("a", {"x": count, "y": note(seen)}, policy="p"),
        policies={"p": [Rule.stop(when="state.n == 3"), Rule.repeat()]},
    )

    await phases.run(initial)

    assert [cell.state["n"] for cell in seen] == [0, 0, 1, 1, 2, 2]
    assert initial == {"n": 0}
    with pytest.raises(TypeError):
        seen[0].state["n"] = 5  # type: ignore[index]  # that it cannot be written is the point


async def test_a_detached_cell_gates_nothing_and_its_ticket_is_read_as_often_as_one_likes() -> None:
    gate = asyncio.Event()
    pending: list[dict[str, int]] = []

    async def late() -> str:
        await gate.wait()
        return "late"

    phases = Phases(
        Phase("a", {"x": lambda: 1}, detached={"log": late}),
        Phase("b", {"x": lambda cell: pending.append(dict(cell.pending))}),
    )

    result = await phases.run()
    (ticket,) = result.tickets
    before = ticket.done
    gate.set()

    assert not before
    assert await ticket == "late"
    assert await ticket == "late"
    assert pending == [{"log": 1}]
    assert [row.pending for row in result.rows] == [{"log": 1}, {"log": 1}]
    assert result.rows[0].lanes[1].mode == "detached"


async def test_a_detached_cell_that_fails_or_patches_harms_only_its_ticket() -> None:
    def fails() -> None:
        raise ValueError("alone")

    phases = Phases(
        Phase("a", detached={"fails": fails, "patches": lambda: Patch(None, {"x": 1})}),
        Phase("b", {"x": lambda: 1}),
        Phase("c", {"x": lambda: 1}),
    )

    result = await phases.run()
    await result.wait_detached(5)
    fails_ticket, patches_ticket = result.tickets

    assert isinstance(fails_ticket.error, ValueError)
    assert "cannot return state patch" in str(patches_ticket.error)
    assert result.state == {}
    with pytest.raises(ValueError, match="alone"):
        await fails_ticket


@pytest.mark.parametrize(("on_finish", "ended"), [("wait", "value"), ("cancel", "error"), ("leave", "pending")])
async def test_what_becomes_of_detached_cells_at_the_end(on_finish: Any, ended: str) -> None:
    async def late() -> str:
        # More turns of the loop than the rest of the block takes.
        for _ in range(200):
            await asyncio.sleep(0)
        return "done"

    result = await Phases(Phase("a", {"x": lambda: 1}, detached={"log": late}), on_finish=on_finish).run()
    (ticket,) = result.tickets

    assert ("pending" if not ticket.done else "error" if ticket.error else "value") == ended
    await result.wait_detached(5)


async def test_a_row_is_tried_again() -> None:
    tries: list[int] = []

    def flaky(cell: Cell) -> str:
        tries.append(cell.entry)
        if len(tries) < 3:
            raise OSError("not yet")
        return "ok"

    phases = Phases(Phase("a", {"x": flaky}, retry=Retry(attempts=3, initial=0)))

    result = await phases.run()

    assert tries == [1, 2, 3]
    assert result.rows[-1].values == {"x": "ok"}


async def test_a_rule_that_raises_ends_the_block_and_is_named() -> None:
    def broken(row: Row) -> bool:
        raise LookupError("what?")

    phases = Phases(Phase("a", {"x": lambda: 1}, policy="p"), policies={"p": [Rule.stop(when=broken)]})

    with pytest.raises(
        PhasesFailedError, match=r"rule 'stop-1' of policy 'p', asked after phase 'a', failed: LookupError: what\?"
    ) as caught:
        await phases.run()

    assert isinstance(caught.value.__cause__, LookupError)


async def test_rules_see_the_row_and_cells_may_be_steps() -> None:
    rows: list[Row] = []

    @step(name="test_in_process:double")
    async def double(cell: Cell) -> Patch[int]:
        return Patch(2 * cell.state["n"], {"n": 2 * cell.state["n"]})

    def enough(row: Row) -> bool:
        rows.append(row)
        return bool(row.lanes["x"] >= 8)

    phases = Phases(
        Phase("a", {"x": double}, policy="p"), policies={"p": [Rule.stop(when=enough), Rule.repeat()]}, state={"n": 1}
    )

    result = await phases.run()

    assert result.state == {"n": 8}
    assert [(row.policy, row.phase, row.step, row.entry) for row in rows] == [
        ("p", "a", 0, 1),
        ("p", "a", 1, 2),
        ("p", "a", 2, 3),
    ]


async def test_a_cancelled_block_stops_all_and_says_how_far_it_was() -> None:
    started = asyncio.Event()
    stopped: list[str] = []

    async def forever(cell: Cell) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(cell.phase)

    phases = Phases(Phase("a", {"x": lambda: 1}, detached={"log": forever}), Phase("b", {"x": forever}))
    task = asyncio.ensure_future(phases.run())
    await started.wait()
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(PhasesCancelled) as caught:
        await task

    assert executed(caught.value.partial) == ["a", "b"]
    assert sorted(stopped) == ["a", "b"]


async def test_all_mistakes_are_told_before_anything_runs() -> None:
    ran: list[str] = []
    phases = Phases(
        Phase("a", [("x", lambda: ran.append("a")), ("x", lambda: 1)], policy="missing"),
        Phase("b", {"y": 5, "z": LanePlan(lambda: 1)}, policy="p"),  # type: ignore[dict-item]  # a mistake
        Phase("c", {"x": lambda: 1}),
        policies={"p": [Rule.loop_back("c"), Rule.jump("nowhere"), Rule.jump("")]},
        start="elsewhere",
        step_limit=0,
    )

    with pytest.raises(DefinitionErrors) as caught:
        await phases.run()

    said = "\n".join(str(error) for error in caught.value.exceptions)
    for text in (
        "the cell 'y' of phase 'b' is 5",
        "two lanes have the id",
        "start='elsewhere'",
        "step_limit=0",
        "phase 'a' names policy 'missing', not registered",
        "phase 'c' needs a transition policy",
        "must be earlier than current phase 'b'",
        "target 'nowhere' is not among the phases",
        "requires a target phase",
    ):
        assert re.search(re.escape(text), said), (text, said)
    assert ran == []


async def test_a_block_without_phases_is_refused() -> None:
    with pytest.raises(DefinitionError, match="phases are required"):
        await Phases().run()


# -- rows share a task -------------------------------------------------------------------------------------------------

ROWS = 40
topic: contextvars.ContextVar[int] = contextvars.ContextVar("topic", default=0)


def repeated(**lanes: Callable[..., Any]) -> Phases:
    """So many rows of the same lanes."""
    rules = [Rule.stop(when=f"step >= {ROWS - 1}"), Rule.repeat()]
    return Phases(Phase("row", lanes, policy="p"), policies={"p": rules}, step_limit=ROWS)


async def nothing() -> None:
    """A cell that does not wait."""


async def test_rows_of_cells_that_do_not_wait_leave_the_loop_to_others() -> None:
    turns = 0
    over = False

    async def others() -> None:
        nonlocal turns
        while not over:
            turns += 1
            await asyncio.sleep(0)

    watching = asyncio.create_task(others())

    result = await repeated(a=nothing, b=nothing, c=nothing, d=nothing).run()
    over = True
    await watching

    assert len(result.rows) == ROWS
    # So many cells run between two turns of the loop, and no more.
    assert ROWS * 4 // FEW <= turns <= ROWS


async def test_a_cell_that_waits_keeps_its_task_and_those_of_the_next_row_get_another() -> None:
    seen: list[object] = []

    async def patient(cell: Cell) -> None:
        mine = asyncio.current_task()
        if cell.step % 3 == 1:
            await asyncio.sleep(0)
        assert asyncio.current_task() is mine
        seen.append(mine)

    result = await repeated(a=patient, b=nothing).run()

    assert len(result.rows) == ROWS
    assert asyncio.current_task() not in seen
    assert all(seen[step] is not seen[step + 1] for step in range(1, ROWS - 1, 3))


async def test_plain_functions_between_async_cells_have_the_context_of_who_executes_the_block() -> None:
    def count() -> int:
        topic.set(topic.get() + 1)
        return topic.get()

    result = await repeated(a=nothing, b=count).run()

    assert [row.lanes[1].value for row in result.rows] == [*range(1, ROWS + 1)]
    assert topic.get() == ROWS


async def test_a_block_that_its_own_cell_cancels_begins_no_other_row() -> None:
    began: list[int] = []

    async def cell(told: Cell) -> None:
        began.append(told.step)
        if told.step == 3:
            task.cancel()

    task = asyncio.create_task(repeated(a=cell, b=nothing).run())
    with pytest.raises(PhasesCancelled) as caught:
        await task

    assert began == [0, 1, 2, 3]
    assert len(caught.value.partial.rows) == 4


async def test_a_cell_that_fails_behind_many_that_share_a_task_is_told_as_ever() -> None:
    async def cell(told: Cell) -> int:
        if told.step == 30:
            raise ValueError("the last one")
        return told.step

    with pytest.raises(PhasesFailedError) as caught:
        await repeated(a=cell, b=nothing).run()

    assert len(caught.value.partial.rows) == 31
    assert isinstance(caught.value.__cause__, ValueError)
