"""Bounded decisions, room among the run's tasks, priorities, and what a step costs."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from tests.core.kit import WIDE, Driver, digest, step

from treadle.core import advance
from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.apply import fold, new_state
from treadle.core.decide import Limits, decide, start
from treadle.core.events import decode_events, kind_of
from treadle.core.graph import Graph
from treadle.core.plan import Block, Const, Group, ListOf, Plan, Predicate, Ref, Step


def fan(count: int) -> list[Step]:
    middle = [step(f"s{n}", "a") for n in range(count)]
    return [step("a"), *middle, step("z", slots={"all": ListOf([Ref(f"s{n}") for n in range(count)])})]


def test_a_run_has_no_more_tasks_than_it_may() -> None:
    driver = Driver(*fan(10), limits=Limits(dispatched=3))
    driver.succeed("a")

    while driver.tasks:
        assert len(driver.tasks) <= 3
        driver.succeed(driver.waiting()[0])

    assert driver.status() == "succeeded"
    assert [event.at for event in driver.seen(ev.StepsReady)] == [[f"s{number}" for number in range(3, 10)]]
    driver.check()


def test_ready_steps_go_by_priority_and_then_by_the_order_of_the_plan() -> None:
    driver = Driver(
        step("first"), step("low", priority=-1), step("high", priority=9), step("mid1"), step("mid2"),
        limits=Limits(dispatched=1),
    )  # fmt: skip
    order = []
    while driver.tasks:
        order += driver.waiting()
        driver.succeed(driver.waiting()[0])

    assert order == ["first", "high", "mid1", "mid2", "low"]


def test_who_is_ready_goes_before_who_becomes_ready() -> None:
    driver = Driver(step("a"), step("new", "a"), step("old", priority=1), limits=Limits(dispatched=1))

    driver.succeed("a")

    assert driver.waiting() == ["old"]
    assert driver.status("new") == "ready"


@pytest.mark.parametrize("limits", [WIDE, Limits(dispatched=70, events=150), Limits(dispatched=5, events=70)])
def test_a_long_frontier_is_looked_at_as_a_short_one_is(monkeypatch: pytest.MonkeyPatch, limits: Limits) -> None:
    steps = [step(f"s{number}", "bad" if number % 2 else "good", optional=number % 3 == 0) for number in range(400)]
    # The skip of a step makes one decidable that comes before those that are still to be looked at.
    after = [step(f"t{number}", after=(f"s{number}",), optional=True) for number in range(0, 400, 3)]
    journals = []
    for long in (1, 64, 10**9):
        monkeypatch.setattr(advance, "_LONG", long)
        driver = Driver(step("bad", optional=True), step("good"), *after, *steps, limits=limits)
        driver.fail("bad")
        driver.succeed("good")
        driver.finish()
        driver.check()
        journals.append([text for _, _, text in driver.rows])
        assert len(driver.seen(ev.StepSkipped)) > 200
        assert len(driver.seen(ev.StepDispatched)) > 200

    assert journals[0] == journals[1] == journals[2]


def test_a_plan_of_steps_alone_begins_as_if_each_node_were_looked_at() -> None:
    for blocks in ((), (step("a"), step("b", "a"), step("c", "a", "b"), step("d", after=("c",)), step("e"))):
        graph = Graph(Plan(workflow="w", blocks=list(blocks)))
        short, long = (new_state("k", "run", graph, [], ()) for _ in range(2))
        start(short, now=1.0, limits=Limits(dispatched=0))

        assert graph.flat is not None
        graph.flat = None
        start(long, now=1.0, limits=Limits(dispatched=0))

        assert digest(short) == digest(long)
        assert sorted(short.frontier) == sorted(long.frontier)
    assert Graph(Plan(workflow="w", blocks=[step("a"), Group(id="g", blocks=[step("b")])])).flat is None


def test_steps_that_take_the_same_arguments_share_a_call_and_others_have_their_own() -> None:
    one, two = {"x": Ref("a"), "y": Const(0)}, {"x": Ref("a"), "y": Const(1)}
    driver = Driver(
        step("a"), step("b", slots=one), step("c", slots=dict(one)), step("slow", slots=one, timeout=9.0),
        step("d", slots=two), step("e", slots=one), step("f", slots=one),
        constants=["first", "second"],
    )  # fmt: skip
    driver.succeed("a", result=7)

    calls = {task.address: task.call for task in driver.tasks.values()}
    assert calls["b"] is calls["c"]
    assert calls["e"] is calls["f"]
    assert len({id(call) for call in calls.values()}) == 4
    assert {id: driver.args(id)["y"] for id in "bcdef"} == {
        "b": "first", "c": "first", "d": "second", "e": "first", "f": "first",
    }  # fmt: skip
    assert [calls[id].timeout for id in ("c", "slow", "d")] == [None, 9.0, None]

    driver.finish()
    driver.give(inp.Rewind("a"))
    driver.succeed("a", result=8)

    assert [driver.args(id)["x"] for id in ("b", "c", "f")] == [8, 8, 8]
    driver.check()


def test_a_delay_counts_from_ready() -> None:
    driver = Driver(step("a"), step("b", delay=30), step("c", delay=5), limits=Limits(dispatched=1))

    driver.now += 10
    driver.succeed("a")
    assert driver.task("b").not_before == 1030
    driver.succeed("b")

    assert driver.task("c").not_before == 0, "its delay is over"


def test_evaluations_need_room_too() -> None:
    ask = [step(f"s{n}", when=Predicate("p")) for n in range(4)]
    driver = Driver(*ask, step("t", when=Predicate("p")), limits=Limits(dispatched=2))

    assert driver.waiting() == ["s0", "s1"]
    assert driver.status("s2") == "ready"
    driver.give(driver.outcome("s0", False))
    assert driver.waiting() == ["s1", "s2"]
    driver.give(driver.outcome("s2", True))
    assert driver.task("s2").call.purpose == "step", "it keeps its room"
    driver.lose("s1")
    assert driver.task("s1").attempt == -2, "and so does an evaluation that was lost"
    driver.check()
    driver.finish(lambda task: driver.outcome(task, task.address != "s3"))

    assert driver.statuses() == {
        "s0": "skipped", "s1": "succeeded", "s2": "succeeded", "s3": "skipped", "t": "succeeded"
    }  # fmt: skip
    assert driver.status() == "succeeded"
    driver.check()


def test_a_ready_step_whose_condition_cannot_be_evaluated_fails() -> None:
    driver = Driver(step("a"), step("b", when=Predicate("p")), step("c"), limits=Limits(dispatched=1))
    driver.succeed("a")

    driver.give(driver.outcome("b", 3))

    assert driver.status("b") == "failed"
    assert driver.run.readied == 0
    driver.check()


def test_every_part_of_a_bounded_decision_is_a_legal_state() -> None:
    plan: list[Block] = [*fan(6), Group(id="g", blocks=[step("x"), Group(id="h", blocks=[step("y")])], after=("a",))]
    wide = Driver(*plan)
    driver = Driver(*plan, limits=Limits(events=1, dispatched=4))
    driver.settle()

    while driver.tasks:
        driver.give(driver.outcome(driver.waiting()[0]), more=False)
        for _ in range(1000):
            assert len(driver.last.events) <= 3
            loaded = driver.folded()
            assert digest(loaded) == digest(driver.run)
            if not driver.last.more:
                break
            driver.run = loaded
            driver.commit(decide(loaded, [], now=driver.now, limits=driver.limits))
    wide.finish()

    assert driver.statuses() == wide.statuses()
    assert driver.status() == "succeeded"


def test_a_bounded_failure_skips_the_rest_bit_by_bit() -> None:
    driver = Driver(*fan(50), limits=Limits(events=7))
    driver.settle()

    driver.give(driver.failed("a"), more=False)
    assert driver.last.more
    assert len(driver.last.events) == 8
    driver.settle()

    assert driver.status() == "failed"
    assert driver.statuses()["z"] == "skipped"
    assert len(driver.step("z").causes) <= 100


def test_an_input_between_two_parts_finds_a_legal_state() -> None:
    driver = Driver(*fan(5), limits=Limits(events=1))
    driver.settle()
    driver.give(driver.failed("a"), more=False)

    driver.give(inp.Retry("a"))
    driver.finish()

    assert driver.status() == "succeeded"
    driver.check()


def test_a_folded_run_finds_its_ready_and_waiting_steps_again() -> None:
    driver = Driver(step("a"), step("b"), step("c", signals=("s",)), limits=Limits(dispatched=1))
    driver.run = driver.folded()

    driver.signal("s")
    driver.succeed("a")
    assert driver.waiting() == ["b"]
    driver.run = driver.folded()
    driver.succeed("b")

    assert driver.waiting() == ["c"]


def test_many_causes_are_not_all_named() -> None:
    driver = Driver(*[step(f"s{n}") for n in range(150)], step("z", *[f"s{n}" for n in range(150)]))

    for n in range(150):
        driver.fail(f"s{n}")

    assert len(driver.seen(ev.RunSettled)[0].failures) == 100


def test_a_hundred_thousand_parallel_steps_cost_less_than_two_kilobytes_each() -> None:
    count = 100_000
    plan = Plan(workflow="w", blocks=[Step(id=f"s{n}", action="act") for n in range(count)])
    limits = Limits()
    gc.collect()
    tracemalloc.start()
    graph = Graph(plan)
    run = new_state("k", "r", graph, [], [])
    queue = []
    decision = start(run, now=1.0, limits=limits)
    while True:
        assert len(decision.events) <= 2 * limits.events + 1
        queue += decision.tasks
        if not decision.more:
            break
        decision = decide(run, [], now=1.0, limits=limits)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / count < 2048
    assert run.tasks == limits.dispatched

    done = 0
    while queue:
        batch, queue = queue[:500], queue[500:]
        inputs = [(inp.Outcome(task.number, task.generation, task.attempt), "") for task in batch]
        decision = decide(run, inputs, now=1.0, limits=limits)
        done += len(batch)
        queue += decision.tasks
        # One outcome, one dispatch: what a completion makes does not grow with the run.
        assert len(decision.events) <= 2 * len(batch) + 1

    assert done == count
    assert run.status == "succeeded"


def test_a_stored_journal_is_read_by_kind() -> None:
    driver = Driver(step("a"))
    driver.succeed("a", result={"k": [1]})

    text = "".join(text for _, _, text in driver.rows)
    assert all(f'"kind":"{kind_of(event)}"' in text for event in driver.events)
    run = driver.empty()
    for version, time, row in driver.rows:
        fold(run, decode_events(row.encode()), version, time)
    assert (run.version, run.now, run.status) == (2, 1000.0, "succeeded")
