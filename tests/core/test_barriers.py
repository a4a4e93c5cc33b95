"""Barriers that a row comes to more than once."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.kit import Driver, handle, step

from treadle.core import inputs as inp
from treadle.core.plan import Phase, Phases


def cancelled_then_retried(driver: Driver, first: str, then: str) -> dict[str, Any]:
    """Let one cell succeed, cancel the other with the run, retry it; gives the state that follows."""
    driver.give(driver.outcome(first, patch={"v": handle(first)}))
    task = driver.task(then)
    driver.give(inp.Cancel(hard=True))
    driver.give(driver.outcome(task, status="cancelled"))
    driver.give(inp.Retry())
    driver.give(driver.outcome(then, patch={"v": handle(then)}))
    driver.check()
    return driver.run.at("p").block.state  # type: ignore[union-attr]  # it is a Phases block


@pytest.mark.parametrize(("first", "then"), [("p/x/a", "p/x/b"), ("p/x/b", "p/x/a")])
def test_variables_are_set_in_declaration_order_though_a_cell_is_retried_after_the_barrier(
    first: str, then: str
) -> None:
    phase = Phase(id="x", blocks=[step("a", optional=True), step("b", optional=True)])

    state = cancelled_then_retried(Driver(Phases(id="p", phases=[phase])), first, then)

    assert state == {"v": handle("p/x/b")}


def test_two_cells_contradict_each_other_though_one_is_retried_after_the_barrier() -> None:
    phase = Phase(id="x", blocks=[step("a", optional=True), step("b", optional=True)])
    driver = Driver(Phases(id="p", phases=[phase], on_conflict="error"))

    cancelled_then_retried(driver, "p/x/a", "p/x/b")

    failed = driver.run.at("p/x")
    assert failed is not None
    assert (failed.status, failed.failure.code if failed.failure else "") == ("failed", "patch_conflict")
