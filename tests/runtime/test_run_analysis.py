"""Analysis of runs: the graph with what was added, measured times, and when an open run will have finished."""

from __future__ import annotations

import pytest
from tests.core.kit import Driver, adding, step

from treadle.core.plan import Group, Phase, Phases
from treadle.runtime.run_analysis import Forecast, RunAnalysis


def analysed(driver: Driver, finished_at: float | None = None) -> RunAnalysis:
    return RunAnalysis(driver.run, driver.now, finished_at)


def pass_time(driver: Driver, seconds: float, *steps: str) -> None:
    """Time goes by, then these steps succeed."""
    driver.now += seconds
    driver.succeed(*steps)


def test_steps_are_measured_from_ready_to_their_outcome() -> None:
    driver = Driver(step("a"), step("b", "a"), step("c", "a"), step("d", "b", "c"))
    pass_time(driver, 2.0, "a")
    pass_time(driver, 1.0, "c")
    pass_time(driver, 4.0, "b")
    pass_time(driver, 0.5, "d")

    found = analysed(driver, driver.now)

    assert found.seconds == {"a": 2.0, "b": 5.0, "c": 1.0, "d": 0.5}
    assert found.unsettled == []
    measured = found.measured()
    assert (measured.seconds, measured.critical_path) == (7.5, ["a", "b", "d"])
    slack = {span.step: span.slack for span in measured.spans}
    assert slack == {"a": 0.0, "b": 0.0, "c": 4.0, "d": 0.0}
    assert found.forecast() == Forecast(driver.now, driver.now, 0.0, [], [])


def test_an_open_run_is_forecast_from_what_is_known() -> None:
    driver = Driver(
        step("a", action="load"),
        step("b", "a", action="load"),
        step("c", "b", action="load"),
        step("other", action="slow"),
        step("last", "c", "other", action="write"),
    )
    pass_time(driver, 10.0, "a")
    driver.now += 4.0

    found = analysed(driver)

    assert found.seconds == {"a": 10.0, "b": 4.0, "other": 14.0}
    assert found.unsettled == ["b", "c", "other", "last"]
    # b is expected to take as long as a did, of which 4 seconds have gone by.
    assert found.forecast() == Forecast(
        now=1014.0,
        finish_at=1030.0,
        seconds_left=16.0,
        critical_path=["b", "c", "last"],
        unknown=["last", "other"],
    )
    assert found.forecast({"other": 100.0, "last": 1.0, "c": 2.0}) == Forecast(
        now=1014.0, finish_at=1101.0, seconds_left=87.0, critical_path=["other", "last"], unknown=[]
    )


def test_a_step_that_takes_longer_than_expected_may_end_at_any_time() -> None:
    driver = Driver(step("a"))
    driver.now += 60.0

    assert analysed(driver).forecast({"a": 1.0}).seconds_left == 0.0


def test_an_earlier_run_says_how_long_steps_take() -> None:
    driver = Driver(step("a"), step("b", "a"))
    pass_time(driver, 3.0, "a")
    pass_time(driver, 4.0, "b")
    again = Driver(step("a"), step("b", "a"))

    forecast = analysed(again).forecast(analysed(driver, driver.now).seconds)

    assert (forecast.seconds_left, forecast.unknown) == (7.0, [])


def test_added_steps_depend_on_their_adder_and_groups_are_looked_through() -> None:
    driver = Driver(
        Group(id="g", blocks=[step("grow"), step("other")]), step("all", after=("g/grow/",)), step("end", after=("g",))
    )
    driver.succeed("g/other")
    driver.succeed("g/grow", added=adding(step("x"), step("y", "x")))

    found = analysed(driver)

    assert found.steps == ["g/grow", "g/other", "all", "end", "g/grow/x", "g/grow/y"]
    assert found.dependencies("g/grow/x") == ["g/grow"]
    assert found.all_dependencies("g/grow/y") == ["g/grow", "g/grow/x"]
    assert found.dependencies("all") == ["g/grow", "g/grow/x", "g/grow/y"]
    assert found.all_dependencies("end") == ["g/grow", "g/grow/x", "g/grow/y", "g/other"]
    assert found.critical_path()[:3] == ["g/grow", "g/grow/x", "g/grow/y"]


def test_steps_added_into_another_scope_depend_on_their_adder() -> None:
    driver = Driver(Group(id="g", blocks=[step("grow")]), step("end", after=("g",)))
    driver.succeed("g/grow", added=adding(step("y"), into=""))

    found = analysed(driver)

    assert found.dependencies("y") == ["g/grow"]
    assert found.leaves() == ["end", "y"]


def test_skipped_steps_took_no_time() -> None:
    driver = Driver(step("a"), step("b", "a"))
    driver.now += 1.0
    driver.fail("a")

    found = analysed(driver, driver.now)

    assert found.seconds == {"a": 1.0}
    assert found.measured().critical_path == ["a", "b"]
    assert found.measured().seconds == pytest.approx(1.0)


def test_rows_come_one_after_the_other_and_nothing_waits_for_a_detached_cell() -> None:
    rows = [
        Phase(id="one", blocks=[step("x"), step("y"), step("slow")], detached=("slow",)),
        Phase(id="two", blocks=[step("x")]),
    ]
    driver = Driver(Phases(id="p", phases=rows), step("end", after=("p",)))
    pass_time(driver, 1.0, "p/one/x")
    pass_time(driver, 2.0, "p/one/y")
    pass_time(driver, 4.0, "p/two/x")
    pass_time(driver, 1.0, "end")

    found = analysed(driver, driver.now)

    assert found.dependencies("p/two/x") == ["p/one/x", "p/one/y"]
    assert found.dependencies("end") == ["p/one/x", "p/one/y", "p/two/x"]
    assert found.dependents("p/one/slow") == []
    assert found.measured().seconds == 8.0
