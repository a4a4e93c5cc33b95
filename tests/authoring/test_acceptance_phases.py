"""What cells, rules and results of a block in process are told: the public surface that other phase engines have."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle import (
    Cell,
    DefinitionError,
    DefinitionErrors,
    Patch,
    Phase,
    Phases,
    PhasesCancelled,
    PhasesFailedError,
    Row,
    Rule,
    StepLimitError,
    connect,
    context,
    predicate,
    step,
    workflow,
)


async def test_a_rule_is_told_its_policy_the_phases_the_state_the_step_and_what_became_of_the_row() -> None:
    told: list[Row] = []

    def look(row: Row) -> bool:
        told.append(row)
        return row.phases[-1] != row.phase

    async def aside() -> str:
        await asyncio.Event().wait()
        return "never"

    @step(name="acceptance:shaky", optional=True)
    async def shaky() -> int:
        raise ValueError("shaky")

    block = Phases(
        Phase("first", {"main": lambda: Patch(1, {"v": 2}), "shaky": shaky}, detached={"aside": aside}, policy="p"),
        Phase("last", policy="p"),
        policies={"p": [Rule.advance(when=look), Rule.stop()]},
        on_finish="cancel",
    )

    result = await block.run({"v": 0})

    first, last = told
    assert (first.policy, first.phases, first.phase, first.index, first.step) == ("p", ("first", "last"), "first", 0, 0)
    assert first.outcomes == {"main": "succeeded", "shaky": "failed", "aside": "detached"}
    assert (first.lanes["main"], first.state, first.pending) == (1, {"v": 2}, {"aside": 1})
    assert (last.phase, last.step, last.lanes, last.outcomes, last.pending) == ("last", 1, {}, {}, {"aside": 1})
    assert [(run.phase, run.move, run.policy, run.rule) for run in result.rows] == [
        ("first", "advance", "p", "advance-1"),
        ("last", "stop", "p", "stop-2"),
    ]
    for wrong in (first.state, first.lanes, first.outcomes, first.pending):
        with pytest.raises(TypeError):
            wrong["v"] = 3  # type: ignore[index]  # pyright: ignore[reportIndexIssue]  # that it is refused is tested


async def test_an_expression_reads_the_phases_and_the_outcomes() -> None:
    @step(name="acceptance:fails", optional=True)
    async def fails() -> int:
        raise ValueError("no")

    block = Phases(
        Phase("try", {"main": fails}, policy="p"),
        Phase("mend", policy="p"),
        Phase("rest", policy="p"),
        policies={"p": [Rule.jump("rest", when="default(outcomes.main, '') == 'failed' and len(phases) == 3")]},
        otherwise=Rule.stop(),
    )

    assert [row.phase for row in (await block.run()).rows] == ["try", "rest"]


async def test_the_counts_of_pending_cells_are_of_their_row_and_never_change() -> None:
    gate = asyncio.Event()

    async def aside() -> None:
        await gate.wait()

    seen: list[Any] = []

    def main(cell: Cell) -> None:
        seen.append(cell.pending)
        if cell.step == 2:
            gate.set()

    async def later() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    block = Phases(
        Phase("a", {"main": main}, detached={"aside": aside}, policy="again"),
        Phase("b", {"main": later}, policy="on"),
        policies={"again": [Rule.repeat(when="step < 2"), Rule.advance()], "on": [Rule.stop()]},
    )

    result = await block.run()

    assert [dict(pending) for pending in seen] == [{}, {"aside": 1}, {"aside": 2}]
    assert [row.pending.get("aside", 0) for row in result.rows][:3] == [1, 2, 3]
    assert [ticket.step for ticket in result.tickets] == [0, 1, 2]


async def test_one_lane_twice_in_a_row_is_refused_with_its_place() -> None:
    block = Phases(Phase("p", [("a", lambda: 1), ("a", lambda: 2)]), Phase("q", {"b": int}, detached={"b": int}))

    with pytest.raises((DefinitionError, DefinitionErrors)) as caught:
        await block.run()

    text = str(caught.value) + "".join(map(str, getattr(caught.value, "exceptions", ())))
    assert "'p'" in text or "p/a" in text
    assert "a" in text
    assert "q" in text


async def test_nothing_runs_where_any_part_of_the_block_is_wrong() -> None:
    started: list[str] = []
    block = Phases(
        Phase("p", {"a": lambda: started.append("a")}, detached={"b": lambda: started.append("b")}, policy="then"),
        Phase("q", {"a": 7}, policy="nowhere"),  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]  # a mistake
        policies={"then": [Rule.jump("r"), Rule.loop_back("q")]},
    )

    with pytest.raises(DefinitionErrors) as caught:
        await block.run()

    assert started == []
    text = "\n".join(map(str, caught.value.exceptions))
    for part in ("'nowhere'", "'r'", "'q'", "7"):
        assert part in text, text


async def test_a_cancel_between_two_rows_ends_the_block_with_what_was_done() -> None:
    rows: list[int] = []

    async def count(cell: Cell) -> None:
        rows.append(cell.step)
        if cell.step == 2:
            current = asyncio.current_task()
            assert current is not None
            asyncio.get_running_loop().call_soon(outer.cancel)
        await asyncio.sleep(0)

    block = Phases(Phase("p", {"a": count}, policy="r"), policies={"r": [Rule.repeat()]})
    outer = asyncio.ensure_future(block.run())

    with pytest.raises(PhasesCancelled) as caught:
        await outer

    assert rows[:3] == [0, 1, 2]
    assert len(rows) <= 4
    assert caught.value.partial.rows[0].phase == "p"


async def test_errors_carry_rows_state_and_tickets() -> None:
    async def aside() -> str:
        return "aside"

    def fail(cell: Cell) -> Patch[None]:
        if cell.step == 1:
            raise ValueError("second")
        return Patch(None, {"v": cell.step + 1})

    block = Phases(
        Phase("p", {"a": fail}, detached={"b": aside}, policy="r"), policies={"r": [Rule.repeat()]}, step_limit=3
    )
    with pytest.raises(PhasesFailedError, match="phase 'p' lane 'a' failed: ValueError: second") as failed:
        await block.run()
    with pytest.raises(StepLimitError) as limited:
        await block.run(step_limit=1)

    for error, rows in ((failed.value, 2), (limited.value, 1)):
        assert len(error.partial.rows) == rows
        assert error.partial.state == {"v": 1}
        assert await error.partial.tickets[0] == "aside"
        assert await error.partial.tickets[0] == "aside"


async def test_a_row_that_failed_and_is_tried_again_has_no_decision() -> None:
    tries: list[int] = []

    def flaky(cell: Cell) -> int:
        tries.append(cell.entry)
        if len(tries) < 2:
            raise ValueError("flaky")
        return cell.entry

    result = await Phases(Phase("a", {"m": flaky}, retry=2), Phase("b", {"m": flaky})).run()

    assert [(row.phase, row.step, row.entry, row.move, row.lanes[0].status) for row in result.rows] == [
        ("a", 0, 1, "", "failed"),
        ("a", 0, 2, "advance", "succeeded"),
        ("b", 1, 1, "advance", "succeeded"),
    ]


told: list[Row] = []


@step(name="acceptance:fine")
async def fine(cell: Cell) -> int:
    return cell.step


@step(name="acceptance:sorry", optional=True)
async def sorry() -> int:
    raise ValueError("sorry")


@predicate(name="acceptance:over")
async def over(row: Row) -> bool:
    told.append(row)
    assert (await context().plan()).workflow == "acceptance:stored"
    return row.outcomes["shaky"] == "failed" and row.phases == ("first", "last")


@workflow(name="acceptance:stored")
def stored() -> Any:
    return Phases(
        Phase("first", {"main": fine, "shaky": sorry}, detached={"aside": fine}, policy="ask"),
        Phase("last", {"main": fine}, policy="read"),
        policies={
            "ask": [Rule.stop(when=never), Rule.advance(when=over)],
            "read": [Rule.stop(when="outcomes.main == 'succeeded' and phases[1] == phase", id="read")],
        },
    ).bind()


@predicate(name="acceptance:never")
def never(row: Row) -> bool:
    return row.policy != "ask"


async def test_a_stored_rule_is_told_the_same_and_reads_the_plan() -> None:
    told.clear()
    async with connect("memory://") as app:
        run = await app.start(stored, id="stored")
        await run.result()
        decisions = (await run.inspect()).decisions

    assert told[0].outcomes == {"main": "succeeded", "shaky": "failed", "aside": "detached"}
    assert [decision.rule for decision in decisions] == ["advance-2", "read"]


# -- every snapshot stays what it was ----------------------------------------------------------------------------------


class Keeper:
    """Keeps what cells and rules were told, with copies of how it was then."""

    def __init__(self) -> None:
        self.kept: list[tuple[Any, Any]] = []

    def keep(self, told: Cell | Row) -> None:
        self.kept.append((told, {name: _copied(getattr(told, name)) for name in told.__struct_fields__}))

    def check(self) -> None:
        for told, was in self.kept:
            assert {name: _copied(getattr(told, name)) for name in was} == was

    def cell(self, sets: dict[str, int]) -> Any:
        def cell(told: Cell) -> Patch[Any]:
            self.keep(told)
            return Patch({"step": told.step}, dict(sets))

        return cell

    def late(self) -> Any:
        async def late(told: Cell) -> int:
            self.keep(told)
            for _ in range(4):
                await asyncio.sleep(0)
                self.check()
            return told.step

        return late

    def rule(self, row: Row) -> bool:
        self.keep(row)
        return row.step % 2 == 1


def _copied(value: Any) -> Any:
    return {key: copy.deepcopy(item) for key, item in value.items()} if isinstance(value, Mapping) else value


patches = st.dictionaries(st.sampled_from("xyz"), st.integers(0, 3), max_size=2)


@st.composite
def kept_blocks(draw: st.DrawFn) -> tuple[Phases, Keeper]:
    keeper = Keeper()
    phases: list[Phase] = []
    for number in range(draw(st.integers(1, 3))):
        cells = {f"l{lane}": keeper.cell(draw(patches)) for lane in range(draw(st.integers(0, 3)))}
        detached = {"d": keeper.late()} if draw(st.booleans()) else {}
        phases.append(Phase(f"p{number}", cells, detached=detached, policy=draw(st.sampled_from(["one", "two"]))))
    moves = [Rule.advance, Rule.repeat, lambda **given: Rule.jump("p0", **given)]
    policies = {
        "one": [draw(st.sampled_from(moves))(when=keeper.rule, id="asked"), Rule.advance(id="else")],
        "two": [draw(st.sampled_from(moves))(when="step < 4", id="read"), Rule.stop(when=keeper.rule, id="asked")],
    }
    block = Phases(*phases, policies=policies, otherwise=Rule.stop(), step_limit=9, state={"x": 0}, on_finish="wait")
    return block, keeper


@settings(max_examples=60, deadline=None)
@given(kept_blocks())
def test_what_cells_and_rules_were_told_never_changes(made: tuple[Phases, Keeper]) -> None:
    block, keeper = made
    given_state = {"y": 1}

    async def run() -> Any:
        try:
            return await block.run(given_state)
        except PhasesFailedError as error:
            return error.partial

    result = asyncio.run(run())

    keeper.check()
    assert keeper.kept or not any(phase.cells or phase.detached for phase in block.phases)
    assert given_state == {"y": 1}
    assert block.state == {"x": 0}
    rows = [(row.phase, row.step, dict(row.pending), row.move, row.values) for row in result.rows]
    for was in [was for told, was in keeper.kept if isinstance(told, Row)]:
        # A rule was told of the row as the result tells it afterwards.
        [row] = [row for row in rows if row[1] == was["step"]]
        assert (row[0], row[2], row[4]) == (was["phase"], was["pending"], was["lanes"])
