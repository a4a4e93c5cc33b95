"""From committed events to boundaries, where the events of one append cross each other."""

from __future__ import annotations

from tests.core.kit import Driver, step

from treadle.core import events as ev
from treadle.runtime.boundaries import notices_of
from treadle.runtime.hooks import NAMES
from treadle.store.base import Append, RunHead


def test_a_step_that_is_dispatched_and_cancelled_at_once_begins_and_ends() -> None:
    driver = Driver(step("a"))
    events: list[ev.AnyEvent] = [ev.StepDispatched(at="a"), ev.StepCancelled(at="a")]
    # The cancel has taken the task back: the append asks for none.
    append = Append(key="k", expect=1, commit_id=1, time=1.0, events=events, status="running")

    told = notices_of(driver.run, RunHead(key="k", id="r", workflow="w", plan="p"), append, NAMES)

    assert [notice.name for notice in told] == ["step_started", "step_ended"]
