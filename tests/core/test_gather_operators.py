"""Gather: what operators do to it, and cancels at any point."""

from __future__ import annotations

import pytest
from tests.core.kit import Driver, adding, step, value_of
from tests.core.test_gathers import over, scan

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.decide import Limits
from treadle.core.plan import (
    Body,
    Group,
    Ref,
)


def test_a_retry_goes_on_with_what_was_cancelled_and_what_was_never_opened() -> None:
    driver = over([1, 2, 3, 4, 5], limit=2)
    driver.succeed("g[0]/x", result=10)
    driver.fail("g[2]/x")
    driver.revoked("g[1]/x")
    assert driver.status() == "failed"

    driver.give(inp.Retry("g[2]/x"))
    assert {*driver.seen(ev.StepsReopened)[0].at} == {"g[1]/x", "g[2]/x", "z"}
    driver.succeed("g[1]/x", "g[2]/x", "g[3]/x", "g[4]/x", result=1)

    assert driver.args("z") == {"p0": [10, 1, 1, 1, 1]}
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_retry_while_the_rest_is_being_stopped_is_refused() -> None:
    driver = over([1, 2])
    driver.fail("g[0]/x")

    refusal = driver.refused(inp.Retry("g[0]/x"))

    assert refusal.code == "step_busy"
    assert "'g[1]/x'" in refusal.message


def test_the_losers_of_a_race_are_not_retried() -> None:
    driver = over([1, 2, 3], mode="first")
    driver.fail("g[0]/x")
    driver.succeed("g[1]/x")
    driver.revoked("g[2]/x")
    driver.fail("z")

    driver.give(inp.Retry())
    assert driver.seen(ev.StepsReopened)[0].at == ["z"]
    driver.finish()
    assert driver.status() == "succeeded"
    for at in ("g[0]/x", "g[2]/x"):
        assert "rewind 'g'" in driver.refused(inp.Retry(at)).message
    assert "rewind 'g'" in driver.refused(inp.Rewind("g[1]/x")).message
    driver.check()


def test_a_step_in_a_body_is_rewound_and_the_results_follow() -> None:
    driver = over([1, 2], step("x"), step("y", "x"))
    driver.finish()
    driver.give(inp.Rewind("g[0]/x"))
    assert {*driver.seen(ev.StepsReopened)[0].at} == {"g[0]/x", "g[0]/y", "z"}
    driver.succeed("g[0]/x")
    driver.succeed("g[0]/y", result="new")

    assert driver.args("z") == {"p0": ["new", "g[1]/y"]}
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_an_iteration_is_rewound_as_a_whole() -> None:
    driver = over([1, 2], step("x"), step("y"))
    driver.finish()
    driver.give(inp.Rewind("g[1]"))

    assert driver.waiting() == ["g[1]/x", "g[1]/y"]
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_gather_is_rewound_as_its_next_entry() -> None:
    driver = over([1, 2])
    driver.finish()
    driver.give(inp.Rewind("g"))
    assert driver.waiting() == ["g#2[0]/x", "g#2[1]/x"]
    assert driver.args("g#2[1]/x") == {"item": 2, "index": 1}
    driver.finish()
    driver.give(inp.Rewind("g"))
    driver.succeed("g#3[0]/x", "g#3[1]/x", result=3)

    assert driver.args("z") == {"p0": [3, 3]}
    assert driver.status("g[0]/x") == "succeeded"
    driver.finish()
    driver.check()


def test_a_gather_below_what_is_rewound_begins_anew_with_new_items() -> None:
    driver = Driver(step("a"), scan(items=Ref(step="a")), step("z", "g"))
    driver.succeed("a", result=[1, 2])
    driver.finish()
    driver.give(inp.Rewind("a"))
    driver.succeed("a", result=[3])

    assert driver.waiting() == ["g#2[0]/x"]
    assert driver.args("g#2[0]/x")["item"] == 3
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_gather_that_had_not_begun_keeps_its_entry() -> None:
    driver = Driver(step("a"), step("b"), scan(items=Ref(step="a"), after=("b",)))
    driver.succeed("a", result=[1])
    driver.give(inp.Rewind("a"))
    driver.succeed("b")
    driver.succeed("a", result=[1])

    assert driver.waiting() == ["g[0]/x"]
    driver.check()


def test_a_failed_question_of_a_closed_entry_is_not_retried() -> None:
    driver = over(3)
    driver.fail("g/~items")
    driver.give(inp.Rewind("g"))
    driver.fail("g#2/~items")
    assert "rewind 'g'" in driver.refused(inp.Retry("g/~items")).message

    driver.give(inp.Retry())

    assert driver.waiting() == ["g#2/~items"]
    driver.check()


def test_what_a_closed_body_had_added_elsewhere_waits_for_the_next_entry_to_add_it() -> None:
    driver = Driver(scan(), step("z", after=("g",)), constants=[[1]])
    more = step("more", dedup="key")
    driver.succeed("g[0]/x", added=adding(more, into=""))
    driver.finish()
    assert driver.status() == "succeeded"

    driver.give(inp.Rewind("g"))
    assert driver.status("more") == "waiting"
    driver.succeed("g#2[0]/x", added=adding(more, into=""))
    assert driver.waiting() == ["more", "z"]
    driver.finish()
    assert driver.status() == "succeeded"
    driver.give(inp.Rewind("g"))
    driver.succeed("g#3[0]/x")
    assert driver.status("more") == "skipped"
    driver.finish()
    driver.check()


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("after", range(6))
@pytest.mark.parametrize("events", [1, 1000])
def test_a_cancel_at_any_point_ends_the_run_and_a_retry_finishes_it(hard: bool, after: int, events: int) -> None:
    driver = over([1, 2, 3, 4], limit=2, limits=Limits(events=events))
    driver.settle()
    for _ in range(after):
        if driver.tasks:
            driver.give(driver.outcome(next(iter(driver.tasks.values())), True))

    driver.give(inp.Cancel(hard=hard))
    driver.finish()
    assert driver.status() == ("cancelled" if after < 5 else driver.status())
    driver.check()

    if driver.status() == "cancelled" and not driver.give(inp.Retry()).refusals:
        driver.finish()
        assert driver.status() == "succeeded"
        assert value_of(driver.scope("g").result) is not None
    driver.check()


def test_a_stopped_scope_stops_what_comes_into_it() -> None:
    inner = Group(id="k", blocks=[step("x"), step("w")])
    driver = over([1, 2], body=Body(blocks=[inner]), limits=Limits(events=1))
    driver.settle()
    driver.give(driver.failed("g[0]/k/x"), more=False)
    driver.give(driver.failed("g[0]/k/w"), more=False)
    while not driver.scope("g").stopping:
        driver.give(inp.Look(), more=False)
    assert driver.status("g[1]/k/x") == "dispatched", "the decision was full before it came to this"
    driver.give(driver.outcome("g[1]/k/x", added=adding(Group(id="n", blocks=[step("m")]), into="g[1]")))

    assert driver.status("g[1]/n/m") == "cancelled"
    driver.finish()
    assert driver.status() == "failed"
    driver.check()
