"""What happens in a scope between the event that stops it and the end of all that lives in it."""

from __future__ import annotations

import pytest
from tests.core.kit import Driver, step

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.decide import Limits
from treadle.core.plan import Body, Const, Gather, ListOf, Ref, RetryPolicy


@pytest.mark.parametrize("ending", ["lost", "failed"])
def test_an_attempt_that_ends_in_a_scope_that_is_stopped_is_not_made_again(ending: str) -> None:
    body = Body(blocks=[step("s", retry=RetryPolicy(attempts=3, never=("stop",)))])
    driver = Driver(
        Gather(id="g", items=ListOf([Const(0)] * 2), body=body), constants=[1], limits=Limits(dispatched=9, events=2)
    )
    driver.settle()
    other = driver.task("g[1]/s")
    # Its decision is full before the others are cancelled.
    driver.give(driver.failed("g[0]/s", code="stop"), more=False)
    while not driver.seen(ev.ScopeStopped):
        driver.give(more=False)
    before = len(driver.seen(ev.StepDispatched))

    if ending == "lost":
        driver.tasks.pop(other.number)
        driver.give(inp.Lost(other.number, other.generation, other.attempt, "s1"))
    else:
        driver.give(driver.failed(other))

    assert len(driver.seen(ev.StepDispatched)) == before
    assert (driver.status("g[1]/s"), driver.status()) == ("cancelled", "failed")
    assert not driver.tasks
    driver.check()


def test_a_gather_for_the_first_success_has_no_value_where_conditions_skipped_all() -> None:
    body = Body(blocks=[step("s", when=Ref("flag"))], output=Ref("s"))
    driver = Driver(step("flag"), Gather(id="g", items=ListOf([Const(0)] * 2), body=body, mode="first"), constants=[1])

    driver.succeed("flag", result=False)

    gather = driver.run.at("g")
    assert gather is not None
    assert (gather.status, gather.result) == ("succeeded", "=null")
