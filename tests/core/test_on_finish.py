"""What becomes of detached cells when the block that started them ends."""

from __future__ import annotations

from tests.core.kit import Driver, step

from treadle.core import events as ev
from treadle.core.plan import Block, Body, Const, Gather, Group, ListOf, Phase, Phases


def rows(**options: object) -> Phases:
    cells: list[Block] = [step("cell"), step("log"), Group(id="group", blocks=[step("x"), step("y", "x")])]
    phase = Phase(id="only", blocks=cells, detached=("log", "group"))
    return Phases(id="p", phases=[phase], **options)  # type: ignore[arg-type]  # options of the struct


def test_detached_cells_are_cancelled_at_the_end_where_that_is_asked_for() -> None:
    driver = Driver(rows(on_finish="cancel"))

    driver.succeed("p/only/cell")
    waiting = driver.status("p")
    interrupted = [driver.run.states[number].node.address for number in driver.interrupted]
    for at in ("p/only/log", "p/only/group/x"):
        driver.give(driver.outcome(at, status="cancelled"))

    assert sorted(interrupted) == ["p/only/group/x", "p/only/log"]
    assert waiting == "succeeded"
    assert driver.status("p/only/group/y") == "cancelled"
    assert driver.status() == "succeeded"
    assert not driver.tasks
    driver.check()


def test_detached_cells_are_left_alone_where_nothing_is_said() -> None:
    driver = Driver(rows())

    driver.succeed("p/only/cell")

    assert driver.status("p") == "succeeded"
    assert driver.waiting() == ["p/only/group/x", "p/only/log"]
    assert not driver.seen(ev.ScopeStopped)


def test_detached_cells_are_cancelled_with_what_is_around_their_block() -> None:
    body = Body(blocks=[rows(), step("other")])
    driver = Driver(Gather(id="g", items=ListOf([Const(0), Const(0)]), body=body), constants=[1])

    driver.succeed("g[0]/p/only/cell")
    driver.fail("g[0]/other")

    assert driver.status("g[1]/p/only/log") == "cancelled"
    assert driver.status("g[1]/p/only/group/y") == "cancelled"
    driver.check()
