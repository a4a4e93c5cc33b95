"""Every pair of a row's undo status and an event: what the table allows happens, all else changes nothing."""

from __future__ import annotations

import pytest
from tests.core.kit import Driver, digest
from tests.core.test_compensation import three, to_the_end

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.apply import apply
from treadle.core.tables import UNDO
from treadle.core.undo import undo_of
from treadle.errors import InternalError

ROW = "p/two"
ROW_EVENTS: dict[str, ev.AnyEvent] = {
    "compensation_opened": ev.CompensationOpened(at=ROW, phase="untwo", entry=9),
    "phase_compensated": ev.PhaseCompensated(at=ROW),
    "undo_failed": ev.UndoFailed(at=ROW, failure=ev.Failure("boom")),
    "undo_not_compensable": ev.UndoNotCompensable(at=ROW, failure=ev.Failure("boom")),
    "undo_skipped": ev.UndoSkipped(at=ROW, reason="operator"),
    "undo_parked": ev.UndoParked(at=ROW),
    "undo_reopened": ev.UndoReopened(at=ROW),
    # Of steps only.
    "undo_dispatched": ev.UndoDispatched(at=ROW),
    "undo_confirmed": ev.UndoConfirmed(at=ROW, number=1),
    "undo_attempt_failed": ev.UndoAttemptFailed(at=ROW, number=1, failure=ev.Failure("boom")),
    "undo_attempt_lost": ev.UndoAttemptLost(at=ROW, number=1),
    "child_asked": ev.ChildAsked(at=ROW, number=1),
    "undo_not_needed": ev.UndoNotNeeded(at=ROW),
    "step_undone": ev.StepUndone(at=ROW, number=1),
}
OF_STEPS = frozenset(list(ROW_EVENTS)[7:])


def row_in(status: str) -> Driver:
    """A run in which the undo of the second row has a status, while that of the first goes on."""
    driver = three()
    to_the_end(driver)
    if status == "none":
        return driver
    driver.fail("p/end/x")
    if status == "pending":
        return driver
    driver.succeed("p/two/x", "p/one/x")
    match status:
        case "undone":
            driver.succeed("p/untwo/c")
        case "failed" | "not_compensable":
            driver.fail("p/untwo/c", code="boom" if status == "failed" else status)
        case "skipped" | "parked":
            driver.give(inp.UndoStep("skip" if status == "skipped" else "park", ROW))
            driver.give(driver.outcome("p/untwo/c", status="cancelled"))
        case _:
            assert status == "running"
    return driver


@pytest.mark.parametrize("kind", ROW_EVENTS)
@pytest.mark.parametrize(
    "status", ["none", "pending", "running", "undone", "failed", "not_compensable", "skipped", "parked"]
)
def test_the_undo_of_a_row_changes_by_the_table_only(status: str, kind: str) -> None:
    driver = row_in(status)
    assert undo_of(driver.scope(ROW)).status == status
    if (status, kind) == ("pending", "compensation_opened"):
        # Its turn has come when the undos of steps are final.
        driver.give(inp.UndoStep("skip", "p/two/x"), more=False)
        driver.give(inp.UndoStep("skip", "p/one/x"), more=False)
        assert undo_of(driver.scope(ROW)).status == "running"
        return
    after = UNDO.get((status, kind)) if kind not in OF_STEPS else None
    before = digest(driver.run)

    if after is not None:
        apply(driver.run, ROW_EVENTS[kind])
        assert undo_of(driver.scope(ROW)).status == after
        return
    with pytest.raises(InternalError):
        apply(driver.run, ROW_EVENTS[kind])
    assert digest(driver.run) == before


def test_a_row_is_not_compensated_before_its_turn() -> None:
    driver = row_in("pending")
    before = digest(driver.run)

    with pytest.raises(InternalError, match="not its turn"):
        apply(driver.run, ROW_EVENTS["compensation_opened"])

    assert digest(driver.run) == before
