"""Properties of the kernel: random plans under random inputs, whatever order they come in."""

from __future__ import annotations

import os
from typing import Any
from zlib import crc32

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.core.kit import Driver, adding, digest
from tests.core.random_plans import CONSTANTS, LABELS, SIGNALS, blocks, open_plans

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.analysis import check_plan
from treadle.core.apply import apply
from treadle.core.commands import Task
from treadle.core.decide import Limits, decide
from treadle.core.events import Failure, Items, encode_events
from treadle.core.inputs import decode_input, encode_input
from treadle.core.plan import Block, Body, Const, Gather, Group, Plan, Ref, Step
from treadle.core.state import ScopeState, counts_as_cancelled, is_bad, settled
from treadle.core.tables import OUTCOMES, RUNNING
from treadle.core.undo import UNFINISHED, resource_of, undo_of

# Small in `make test`; a soak sets the variable.
EXAMPLES = int(os.environ.get("TREADLE_EXAMPLES", "150"))
slow = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


FINAL = {
    "step_undone",
    "phase_compensated",
    "undo_failed",
    "undo_not_compensable",
    "undo_not_needed",
    "undo_skipped",
    "undo_parked",
}


class OrderOfUndos:
    """Reads a journal as it grows, and checks the order of undos against its own notes of what began and ended."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        # What the run was after each event; an unwinding may be over when its first event is read.
        self.run = driver.empty()
        self.read = 0
        self.began: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        self.open: dict[str, int] = {}
        self.running: set[str] = set()
        # Rows that are to be compensated, and the one that is, by the scope that is unwound.
        self.rows: dict[str, int] = {}
        self.compensating: dict[int, str] = {}

    def check(self) -> None:
        """Read on."""
        events = self.driver.events
        while self.read < len(events):
            self.run.now = self.driver.now
            apply(self.run, events[self.read])
            self.take(events[self.read], self.read)
            self.read += 1

    def take(self, event: ev.AnyEvent, position: int) -> None:
        at: str = getattr(event, "at", "") if not isinstance(event, ev.StepsReopened) else ""
        match ev.kind_of(event):
            case "step_dispatched" | "prepare_dispatched":
                self.began.setdefault(at, position)
            case "step_succeeded" | "step_failed" | "step_cancelled" | "attempt_ended" | "scope_settled":
                self.ended[at] = position
            case "steps_reopened" if isinstance(event, ev.StepsReopened):
                for name in [*event.at, *event.removed] if event.rewind else []:
                    self.began.pop(name, None)
            case _:
                self.of_undo(ev.kind_of(event), at)

    def of_undo(self, kind: str, at: str) -> None:
        if kind == "unwinding_started":
            self.take_on()
        elif kind == "undo_dispatched" and at not in self.running:
            self.start(at)
        elif kind == "compensation_opened":
            self.compensate(at)
        elif kind in FINAL:
            self.open.pop(at, None)
            self.running.discard(at)
            self.rows.pop(at, None)
            self.compensating = {scope: row for scope, row in self.compensating.items() if row != at}
        elif kind == "undo_reopened":
            found = self.run.at(at)
            assert found is not None
            known = self.rows if isinstance(found, ScopeState) else self.open
            known[at] = undo_of(found).scope

    def take_on(self) -> None:
        """Note what the unwindings undo."""
        for scope, unwinding in self.run.unwindings.items():
            for step in unwinding.taken:
                if undo_of(step).status in UNFINISHED:
                    self.open[step.node.address] = scope
            for row in unwinding.rows:
                if undo_of(row).status in UNFINISHED:
                    self.rows[row.node.address] = scope

    def compensate(self, at: str) -> None:
        """A row is taken back when all undos of steps are final: one at a time, the last one that ended first."""
        scope = self.rows[at]
        assert not [step for step, around in self.open.items() if around == scope]
        assert scope not in self.compensating
        self.compensating[scope] = at
        others = [row for row, around in self.rows.items() if around == scope and row != at]
        assert all(self.ended[row] < self.ended[at] for row in others)
        row = self.run.at(at)
        assert row is not None
        assert row.status == "succeeded"

    def start(self, at: str) -> None:
        run = self.run
        limit = run.graph.plan.undo_limit
        self.running.add(at)
        together = [other for other in self.running if self.open.get(other) == self.open.get(at)]
        assert not limit or len(together) <= limit
        steps = [self.run.step_at(other) for other in together]
        assert [resource_of(step) for step in steps if step is not None].count("disk") <= 1
        others = [other for other, scope in self.open.items() if other != at and scope == self.open.get(at)]
        assert all(self.began[other] < self.ended[at] for other in others)


# -- random histories ------------------------------------------------------------------------------------------------


class Chaos:
    """Gives a run whatever may come, in any order, and checks after each decision what always holds."""

    def __init__(self, data: st.DataObject, plan: list[Block], limits: Limits) -> None:
        self.draw = data.draw
        self.driver = Driver(
            *plan,
            constants=CONSTANTS,
            breakpoints=self.draw(st.sampled_from([[], ["red"], LABELS])),
            limits=limits,
            on_failure=self.draw(st.sampled_from(["stop", "unwind"])),
            undo_limit=self.draw(st.sampled_from([0, 1, 2])),
        )
        self.order = OrderOfUndos(self.driver)
        self.past: list[inp.AnyInput] = []

    def answer(self, task: Task) -> inp.Outcome:
        driver = self.driver
        if task.call.purpose == "condition":
            kind = self.draw(st.sampled_from(["true", "true", "false", "number", "failed"]))
            if kind == "failed":
                return driver.failed(task)
            return driver.outcome(task, {"true": True, "false": False, "number": 3}[kind])
        if task.call.purpose == "reconcile":
            return driver.outcome(task, self.draw(st.sampled_from([True, True, False, 3])))
        kind = self.draw(st.sampled_from(["ok", "ok", "ok", "ok", "failed", "again", "later", "add", "cancelled"]))
        if kind == "failed":
            return driver.failed(task, verdict=self.draw(st.sampled_from(["", "final"])))
        if kind == "again":
            return driver.failed(task, verdict="retry")
        if kind == "later":
            return driver.failed(task, verdict="retry", delay=3.0)
        if kind == "cancelled":
            return driver.outcome(task, status="cancelled")
        result = self.draw(st.sampled_from([True, False, 1, [1, 2]]))
        if task.call.purpose != "step":
            code = self.draw(st.sampled_from(["", "not_compensable"]))
            return driver.failed(task, code=code) if code else driver.outcome(task, result)
        return driver.outcome(task, result, added=self.fragment(task) if kind == "add" else [], **self.more(task))

    def more(self, task: Task) -> dict[str, Any]:
        """What else an outcome brings: the items of a gather, or variables of a Phases block."""
        if task.action == "treadle:items":
            return {"items": self.draw(st.sampled_from([None, Items(3, 2, ("=[1, 2]", "=[3]")), Items(0, 2, ())]))}
        if task.action == "act" and self.draw(st.integers(0, 3)) == 0:
            return {"patch": {self.draw(st.sampled_from(["v", "w"])): "=1"}}
        return {}

    def fragment(self, task: Task) -> Any:
        """Steps that this adder adds in each of its generations, some of them or all."""
        number = task.number
        ids = [f"a{number}", f"b{number}"][: self.draw(st.integers(1, 2))]
        first = Step(id=ids[0], action="added", optional=self.draw(st.booleans()))
        found: list[Block] = [first]
        if len(ids) > 1:
            second = Step(id=ids[1], action="added", slots={"x": Ref(step=ids[0])}, dedup=f"key{number}")
            group = Group(id=f"g{number}", blocks=[second], after=(ids[0],))
            found.append(group if self.draw(st.booleans()) else second)
        if self.draw(st.integers(0, 3)) == 0:
            body = Body(blocks=[Step(id="x", action="added")], output=Ref(step="x"))
            found.append(Gather(id=f"q{number}", items=Const(0), body=body))
        return adding(*found, constants=[[1, 2]], into=self.draw(st.sampled_from([None, ""])))

    def an_input(self) -> inp.AnyInput | None:
        driver = self.driver
        tasks = [driver.tasks[number] for number in sorted(driver.tasks)]
        kinds = ["outcome"] * 12 + ["past", "past", "signal", "signal", "release", "release", "retry", "rewind"]
        kinds += ["lost", "pause", "resume", "cancel", "hard", "add", "undo", "undo", "steer", "steer"]
        kinds += ["child", "child", "child"]
        kind = self.draw(st.sampled_from(kinds))
        if kind == "past":
            return self.draw(st.sampled_from(self.past)) if self.past else None
        if kind == "child":
            return self.of_a_child()
        if kind in ("outcome", "lost", "add"):
            if not tasks:
                return None
            task = self.draw(st.sampled_from(tasks))
            if kind == "lost":
                driver.tasks.pop(task.number)
                return inp.Lost(task.number, task.generation, task.attempt, "s")
            if kind == "add":
                [fragment] = self.fragment(task)
                return inp.AddSteps(task.number, fragment)
            return self.answer(task)
        return self.operator(kind)

    def of_a_child(self) -> inp.AnyInput | None:
        """A child was made, or has ended."""
        driver = self.driver
        # Not those by which a child is asked to undo what it did.
        asked = [
            task
            for _, task in sorted(driver.tasks.items())
            if (child := task.call.child) is not None and not child.unwind
        ]
        ends = self.ends()
        if asked and (not ends or self.draw(st.booleans())):
            task = self.draw(st.sampled_from(asked))
            made = task.call.child
            assert made is not None
            # Half of them: the end of the child is quicker than the report of its start.
            if self.draw(st.booleans()):
                return self.ended(task.address, made.key)
            driver.tasks.pop(task.number)
            return inp.ChildStarted(at=task.address, child=made.key, id="c", detached=made.detached)
        return self.ended(*self.draw(st.sampled_from(ends))) if ends else None

    def ends(self) -> list[tuple[str, str]]:
        """The calls that wait for their child's end: address, and the child's key."""
        run = self.driver.run
        return [(run.states[number].node.address, key) for number, key in sorted(run.calls.items())]

    def ended(self, at: str, child: str) -> inp.ChildEnded:
        outcome = self.draw(st.sampled_from(["succeeded", "succeeded", "failed", "cancelled"]))
        failure = None if outcome == "succeeded" else Failure(f"child_{outcome}")
        result = self.draw(st.sampled_from(["=true", "=false", ""])) if failure is None else ""
        return inp.ChildEnded(at=at, child=child, outcome=outcome, result=result, failure=failure)

    def operator(self, kind: str) -> inp.AnyInput:
        names = [state.node.address for state in self.driver.run.states] or ["nobody"]
        match kind:
            case "signal":
                return inp.Signal(self.draw(st.sampled_from(SIGNALS)))
            case "release":
                return inp.Release(self.draw(st.sampled_from(LABELS)))
            case "retry":
                return inp.Retry(self.draw(st.sampled_from(["", *names])))
            case "rewind":
                return inp.Rewind(self.draw(st.sampled_from(names)), keep=self.draw(st.booleans()))
            case "undo":
                return inp.Undo(self.draw(st.sampled_from(["", "", *names])))
            case "steer":
                verb: Any = self.draw(st.sampled_from(["retry", "skip", "park"]))
                return inp.UndoStep(verb, self.draw(st.sampled_from(["", *names])))
            case "pause":
                return inp.Pause()
            case "resume":
                return inp.Resume()
            case _:
                return inp.Cancel(hard=kind == "hard", unwind=self.draw(st.booleans()))

    def give(self, value: inp.AnyInput, *, cause: str = "") -> None:
        driver = self.driver
        value = decode_input(encode_input(value))
        twin, loaded = driver.folded(), driver.folded()
        assert digest(loaded) == digest(driver.run)
        first = decide(twin, [(value, cause)], now=driver.now, limits=driver.limits)
        second = decide(loaded, [(value, cause)], now=driver.now, limits=driver.limits)
        made = driver.give(value, cause=cause, more=False)
        text = encode_events(made.events)
        assert encode_events(first.events) == encode_events(second.events), "equal runs decided differently"
        assert encode_events(second.events) == text, "a folded run decided differently from the live one"
        assert first.tasks == made.tasks == second.tasks
        twin.version = loaded.version = driver.run.version
        assert digest(twin) == digest(driver.run) == digest(loaded)
        self.take_back()
        self.check()

    def take_back(self) -> None:
        """The store answers a cancel that asked for it: it takes back some of the tasks that nobody had claimed."""
        driver = self.driver
        if driver.revoke:
            driver.revoke = False
            # The tasks of the same append are entered after that.
            fresh = {task.number for task in driver.last.tasks}
            numbers = [n for n in sorted(driver.tasks) if n not in fresh and self.draw(st.booleans())]
            for number in numbers:
                del driver.tasks[number]
            driver.give(inp.Revoked(numbers), more=False)

    def check(self) -> None:
        """What holds in every state."""
        run = self.driver.run
        self.order.check()
        for unwinding in run.unwindings.values():
            statuses = [step.undo.status for step in unwinding.taken if step.undo is not None]
            assert unwinding.left == sum(status in ("pending", "running") for status in statuses)
            assert unwinding.running == statuses.count("running")
            rows = [row.undo.status for row in unwinding.rows if row.undo is not None]
            assert unwinding.rows_left == sum(status in UNFINISHED for status in rows)
        tasked = {state.node.number for state in run.steps() if state.tasked}
        assert tasked == set(self.driver.tasks)
        assert run.readied == sum(state.status == "ready" for state in run.steps())
        for state in run.states:
            if isinstance(state, ScopeState):
                children = [child for child in run.states[1:] if child.around is state and child is not state]
                adds = state.node.owner is not None and not settled(run.states[state.node.owner.number])
                assert state.unsettled == sum(not settled(child) for child in children) + adds
                assert {*state.bad} == {child.node.number for child in children if settled(child) and is_bad(child)}
                assert state.cancelled == sum(settled(child) and counts_as_cancelled(child) for child in children)
                if state.status in OUTCOMES:
                    assert state.unsettled == 0
        if run.status in OUTCOMES:
            assert all(settled(state) or self.is_apart(state) for state in run.states)

    def is_apart(self, state: Any) -> bool:
        """Whether it is a detached cell, or in one: the run does not wait for it."""
        while state.around is not state:
            state = state.around
        return state is not self.driver.run.root

    def step(self) -> None:
        value = self.an_input()
        if value is None:
            return
        self.past.append(value)
        self.give(value, cause=self.draw(st.sampled_from(["", "inbox-1"])))

    def finish(self) -> None:
        """Answer everything and release everything: the run settles."""
        driver = self.driver
        driver.settle()
        for _ in range(400):
            if driver.run.status in OUTCOMES and not driver.tasks and not driver.run.calls:
                break
            for at, key in self.ends():
                driver.give(inp.ChildEnded(at=at, child=key, outcome="succeeded", result="=true"))
            if driver.tasks:
                task = driver.tasks[min(driver.tasks)]
                items = {"items": Items(1, 1, ("=[1]",))} if task.action == "treadle:items" else {}
                driver.give(driver.outcome(task, True, **items))
                continue
            for name in SIGNALS:
                driver.give(inp.Signal(name))
            for label in LABELS:
                driver.give(inp.Release(label))
        stuck = {at: status for at, status in driver.statuses().items() if status not in OUTCOMES}
        assert driver.run.status in OUTCOMES, f"stuck: {stuck}"
        assert not driver.tasks
        assert not driver.run.calls
        self.check()
        driver.check()


@slow
@given(st.data(), blocks(), st.sampled_from([1, 3, 10**6]), st.sampled_from([1, 2, 10**6]))
def test_any_run_folds_repeats_and_ends(data: st.DataObject, plan: list[Block], events: int, dispatched: int) -> None:
    chaos = Chaos(data, plan, Limits(events=events, dispatched=dispatched))

    chaos.check()
    for _ in range(data.draw(st.integers(0, 25))):
        chaos.step()
    chaos.finish()


@slow
@given(st.data(), open_plans(), st.sampled_from([1, 3, 10**6]), st.sampled_from([1, 2, 10**6]))
def test_any_run_that_opens_blocks_folds_repeats_and_ends(
    data: st.DataObject, plan: list[Block], events: int, dispatched: int
) -> None:
    # The kernel runs empty groups, too.
    assert {type(error).__name__ for error in check_plan(Plan(workflow="w", blocks=plan))} <= {"DefinitionError"}
    chaos = Chaos(data, plan, Limits(events=events, dispatched=dispatched))

    chaos.check()
    for _ in range(data.draw(st.integers(0, 25))):
        chaos.step()
    chaos.finish()


@slow
@given(st.data(), st.one_of(blocks(), open_plans()))
def test_an_input_that_comes_twice_changes_nothing(data: st.DataObject, plan: list[Block]) -> None:
    chaos = Chaos(data, plan, Limits())
    driver = chaos.driver

    for _ in range(data.draw(st.integers(0, 15))):
        value = chaos.an_input()
        if value is None:
            continue
        driver.give(value)
        chaos.take_back()
        driver.settle()
        # An operator's word may be meant twice: the next stop is released, what failed again is retried again.
        if isinstance(value, (inp.Release, inp.Retry, inp.Rewind, inp.Undo, inp.UndoStep)):
            continue
        # The first cancel ended the run, the second one parks what follows.
        if isinstance(value, inp.Cancel) and driver.run.unwindings:
            continue
        # Where a child's value is being fetched, another end of it may be a later one: it is fetched once more.
        if isinstance(value, inp.ChildEnded) and not value.result and driver.step(value.at).tasked:
            continue
        before = digest(driver.run)
        again = driver.give(value)
        assert digest(driver.run) == before
        assert not again.events
        assert not again.tasks


def answers(task: Task, seed: int, calm: bool) -> tuple[str, bool]:
    """An outcome that depends on the step only, not on when it is asked."""
    mixed = crc32(f"{task.address} {task.attempt} {seed}".encode()) % 11
    return ("failed" if mixed in (0, 3) and not calm else "ok"), mixed % 3 != 0


def play(plan: list[Block], seed: int, limits: Limits, newest: bool, calm: bool = False) -> Driver:
    """Run to the end with fixed outcomes: oldest task first, or newest first."""
    driver = Driver(*plan, constants=CONSTANTS, breakpoints=LABELS, limits=limits)
    driver.settle()
    for _ in range(1000):
        if driver.tasks:
            task = list(driver.tasks.values())[-1 if newest else 0]
            how, value = answers(task, seed, calm)
            added = []
            if not calm and how == "ok" and task.call.purpose == "step" and task.action == "act" and seed % 2:
                added = adding(Step(id=f"x{task.number}", action="added"), into=None if seed % 3 else "")
            if how == "ok":
                driver.give(driver.outcome(task, value, added=added))
            else:
                driver.give(driver.failed(task))
        elif driver.run.status in OUTCOMES:
            break
        for name in SIGNALS:
            driver.give(inp.Signal(name))
        for label in LABELS:
            driver.give(inp.Release(label))
    assert driver.run.status in OUTCOMES
    return driver


def facts(driver: Driver) -> dict[str, Any]:
    run = driver.run
    found: dict[str, Any] = {
        state.node.address: (state.status, state.by_condition, state.result) for state in run.states
    }
    return {**found, "run": run.status}


@slow
@given(blocks(), st.integers(0, 1000))
def test_bounds_and_the_order_of_completion_change_no_outcome_and_no_address(plan: list[Block], seed: int) -> None:
    wide = play(plan, seed, Limits(dispatched=10**6, events=10**6), newest=False)
    narrow = play(plan, seed, Limits(dispatched=1, events=1), newest=False)
    backwards = play(plan, seed, Limits(), newest=True)

    assert facts(narrow) == facts(wide)
    assert facts(backwards) == facts(wide)


@slow
@given(open_plans(calm=True), st.integers(0, 1000))
def test_what_blocks_open_depends_on_no_bound_and_no_order(plan: list[Block], seed: int) -> None:
    """As long as nothing fails: a failure cancels what happens to run beside it."""
    wide = play(plan, seed, Limits(dispatched=10**6, events=10**6), newest=False, calm=True)
    narrow = play(plan, seed, Limits(dispatched=1, events=1), newest=False, calm=True)
    backwards = play(plan, seed, Limits(), newest=True, calm=True)

    assert facts(narrow) == facts(wide)
    assert facts(backwards) == facts(wide)
    assert wide.run.status == "succeeded"
    for driver in (wide, narrow, backwards):
        driver.check()


@slow
@given(st.one_of(blocks(plain=True), open_plans(calm=True)), st.integers(0, 1000), st.booleans())
def test_a_cancelled_run_ends_and_a_retry_of_all_of_it_runs_on(plan: list[Block], seed: int, hard: bool) -> None:
    driver = Driver(*plan, constants=CONSTANTS, limits=Limits(dispatched=2, events=3))
    driver.settle()
    for _ in range(seed % 5):
        if driver.tasks:
            driver.give(driver.outcome(driver.tasks[min(driver.tasks)], True))
    if driver.run.status != RUNNING:
        return

    def yes(task: Task) -> inp.Outcome:
        return driver.outcome(task, True)

    driver.give(inp.Cancel(hard=hard))
    driver.finish(yes)

    assert driver.run.status == "cancelled"
    driver.check()
    decision = driver.give(inp.Retry())
    if not decision.refusals:
        driver.finish(yes)
        assert driver.run.status == "succeeded"
    driver.check()
