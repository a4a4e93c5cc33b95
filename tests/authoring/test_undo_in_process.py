"""Undo and compensation of phases that are executed in process: closures, partial results, and the kernel's order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from treadle import (
    Cell,
    Compensation,
    DefinitionError,
    NotCompensable,
    Patch,
    Phase,
    Phases,
    PhasesFailedError,
    Registry,
    Undoable,
    step,
)
from treadle.authoring.outcomes import PhasesCancelled, PhasesResult


async def partial_of(phases: Phases, **more: Any) -> PhasesResult:
    """What a block had done that failed."""
    with pytest.raises(PhasesFailedError) as caught:
        await phases.run(**more)
    partial = caught.value.partial
    assert isinstance(partial, PhasesResult)
    return partial


def fails() -> None:
    raise RuntimeError("the last phase fails")


async def test_a_block_that_fails_undoes_its_cells_and_compensates_its_phases() -> None:
    log: list[str] = []

    def make(cell: Cell) -> Patch[str]:
        log.append(f"make {cell.phase}")
        return Patch(f"made {cell.phase}", {"made": [*cell.state["made"], cell.phase]})

    async def unmake(cell: Cell, state: str, result: str) -> None:
        await asyncio.sleep(0)
        log.append(f"unmake {cell.phase} {state} {result}")

    def back(of: Compensation) -> None:
        log.append(f"back from {of.phase} {of.lanes['main']} {of.state['made']}")

    cell = Undoable(make, undo=unmake, prepare=lambda cell: f"before {cell.phase}")
    phases = Phases(
        Phase("one", {"main": cell}, compensate="back"),
        Phase("two", {"main": cell}, compensate="back"),
        Phase("three", {"main": fails}, compensate="back"),
        compensations=[Phase("back", {"main": back})],
        state={"made": []},
    )

    partial = await partial_of(phases)

    assert log == [
        "make one",
        "make two",
        "unmake two before two made two",
        "unmake one before one made one",
        "back from two made two ['one', 'two']",
        "back from one made one ['one']",
    ]
    assert partial.unwound == "fully"
    assert [(row.phase, row.undo, row.lanes[0].undo) for row in partial.rows] == [
        ("one", "undone", "undone"),
        ("two", "undone", "undone"),
        ("three", "none", "none"),
    ]
    assert [(run.phase, run.compensates, run.step) for run in partial.compensations] == [
        ("back", "two", 1),
        ("back", "one", 0),
    ]


async def test_a_block_told_to_stop_leaves_what_it_did() -> None:
    log: list[str] = []
    phases = Phases(
        Phase("one", {"main": Undoable(lambda: 1, undo=lambda: log.append("undo"))}), Phase("two", {"main": fails})
    )

    partial = await partial_of(phases, on_failure="stop")

    assert (log, partial.unwound, partial.rows[0].lanes[0].undo) == ([], "", "none")


async def test_a_block_that_succeeds_undoes_nothing() -> None:
    log: list[str] = []

    result = await Phases(Phase("one", {"main": Undoable(lambda: 1, undo=lambda: log.append("undo"))})).run()

    assert (log, result.unwound, result.compensations) == ([], "", [])


async def test_an_undo_that_raises_is_shown_and_the_rest_goes_on() -> None:
    log: list[str] = []

    def stuck(result: int) -> None:
        raise NotCompensable("sold") if result == 2 else ValueError("stuck")

    good = Undoable(lambda: 3, undo=lambda result: log.append(f"undo {result}"))
    phases = Phases(
        Phase("one", {"a": Undoable(lambda: 1, undo=stuck), "b": good}),
        Phase("two", {"a": Undoable(lambda: 2, undo=stuck)}, compensate="back"),
        Phase("three", {"main": fails}),
        compensations=[Phase("back", {"main": fails})],
    )

    partial = await partial_of(phases)

    one, two, _ = partial.rows
    assert log == ["undo 3"]
    assert partial.unwound == "partly"
    assert {run.lane: run.undo for run in one.lanes} == {"a": "failed", "b": "undone"}
    assert isinstance(one.lanes[0].undo_error, ValueError)
    assert (two.lanes[0].undo, two.undo) == ("not_compensable", "failed")
    assert isinstance(partial.compensations[0].lanes[0].error, RuntimeError)


async def test_a_row_is_undone_before_it_is_tried_again() -> None:
    log: list[str] = []

    def moody() -> int:
        log.append("try")
        if log.count("try") < 3:
            raise RuntimeError("not yet")
        return 1

    cell = Undoable(lambda: log.append("make"), undo=lambda: log.append("unmake"))
    await Phases(Phase("one", {"a": cell, "b": moody}, retry=3)).run()

    assert log == ["make", "try", "unmake", "make", "try", "unmake", "make", "try"]


async def test_the_undo_of_a_step_function_works_in_process_too() -> None:
    log: list[str] = []

    @step(registry=Registry(), name="make", undo=lambda cell, result: log.append(f"unmake {cell.phase} {result}"))
    async def make(cell: Cell) -> str:
        return "made"

    partial = await partial_of(Phases(Phase("one", {"a": make}), Phase("two", {"main": fails})))

    assert log == ["unmake one made"]
    assert partial.unwound == "fully"


async def test_an_unsafe_undo_is_skipped_and_undos_of_one_resource_follow_each_other() -> None:
    busy: list[str] = []

    async def alone(result: str) -> None:
        assert busy == []
        busy.append(result)
        await asyncio.sleep(0)
        busy.remove(result)

    lanes = {
        "a": Undoable(lambda: "a", undo=alone, resource="disk"),
        "b": Undoable(lambda: "b", undo=alone, resource="disk"),
        "c": Undoable(lambda: "c", undo=alone, reconcile=lambda result: result != "c"),
    }

    partial = await partial_of(Phases(Phase("one", lanes), Phase("two", {"main": fails})))

    assert {run.lane: run.undo for run in partial.rows[0].lanes} == {"a": "undone", "b": "undone", "c": "skipped"}


async def test_a_detached_cell_is_cancelled_before_its_block_is_undone() -> None:
    log: list[str] = []

    began = asyncio.Event()

    async def slow() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            log.append("stopped")

    async def later() -> None:
        await began.wait()
        raise RuntimeError("the last phase fails")

    detached = {"bg": Undoable(slow, undo=lambda: log.append("undo bg"))}
    phases = Phases(Phase("one", {"main": lambda: None}, detached=detached), Phase("two", {"main": later}))

    partial = await partial_of(phases)

    assert log == ["stopped", "undo bg"]
    [ticket] = partial.tickets
    assert "was cancelled" in str(ticket.error)


async def test_a_block_that_is_cancelled_while_it_undoes_shows_how_far_it_is() -> None:
    reached = asyncio.Event()

    async def endless() -> None:
        reached.set()
        await asyncio.Event().wait()

    phases = Phases(
        Phase("one", {"a": Undoable(lambda: 1, undo=lambda: None)}),
        Phase("two", {"a": Undoable(lambda: 2, undo=endless)}),
        Phase("three", {"main": fails}),
    )
    work = asyncio.create_task(phases.run())
    await reached.wait()

    work.cancel()
    with pytest.raises(PhasesCancelled) as caught:
        await work

    assert [row.lanes[0].undo for row in caught.value.partial.rows] == ["parked", "parked", "none"]


def test_an_undo_that_asks_for_what_there_is_not_is_refused_before_anything_runs() -> None:
    ran: list[int] = []
    phases = Phases(Phase("one", {"a": Undoable(lambda cell: ran.append(1), undo=lambda path: None)}))

    with pytest.raises(DefinitionError, match=r"cell one/a: undo= asks for 'path'; the cell has cell"):
        asyncio.run(phases.run())

    assert ran == []


def test_an_undoable_cell_is_what_it_was_for_unit_tests() -> None:
    assert Undoable(lambda cell: cell + 1, undo=print)(2) == 3
