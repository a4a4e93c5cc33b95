"""Properties of the kernel: random plans under random inputs, whatever order they come in."""

from __future__ import annotations

import os
from typing import Any
from zlib import crc32

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.core.kit import Driver, adding, digest

from treadle.core import inputs as inp
from treadle.core.analysis import check_plan
from treadle.core.commands import Task
from treadle.core.decide import Limits, decide
from treadle.core.events import Items, encode_events
from treadle.core.inputs import decode_input, encode_input
from treadle.core.plan import (
    Block,
    Body,
    Branch,
    Choose,
    Const,
    Gather,
    Group,
    Holds,
    Index,
    Item,
    LaneValue,
    ListOf,
    MapOf,
    Move,
    Phase,
    PhaseInfo,
    Phases,
    Plan,
    Predicate,
    Ref,
    RetryPolicy,
    Rule,
    SignalValue,
    StateValue,
    Step,
)
from treadle.core.state import ScopeState, counts_as_cancelled, is_bad, settled
from treadle.core.tables import OUTCOMES, RUNNING

MOVES: list[Move] = ["advance", "jump", "repeat", "stop"]
SIGNALS = ["go", "ok"]
LABELS = ["red", "blue"]
# Handles of the run head's constants.
CONSTANTS = [0, True, False, 5, [1, 2, 3], [], 3]
LIST, EMPTY, COUNT = 4, 5, 6

# Small in `make test`; a soak sets the variable.
EXAMPLES = int(os.environ.get("TREADLE_EXAMPLES", "150"))
slow = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


# -- random plans ----------------------------------------------------------------------------------------------------


def names_from(names: list[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(names), max_size=2, unique=True).map(tuple) if names else st.just(())


@st.composite
def refs(draw: st.DrawFn, names: list[str]) -> Ref:
    return Ref(step=draw(st.sampled_from(names)), default=draw(st.sampled_from([-1, -1, 0])))


@st.composite
def steps(draw: st.DrawFn, id_: str, names: list[str], orders: list[str], plain: bool = False) -> Step:
    slots: dict[str, Any] = {}
    for n in range(draw(st.integers(0, 2)) if names else 0):
        ref = draw(refs(names))
        slots[f"p{n}"] = draw(st.sampled_from([ref, ref, ListOf([ref]), MapOf({"k": ref})]))
    when: Any = None
    if not plain and draw(st.integers(0, 4)) == 0:
        kinds: list[Any] = [Predicate(name="p"), SignalValue(name="go")]
        kinds += [Ref(step=draw(st.sampled_from(names)), default=draw(st.sampled_from([-1, 1, 2, 3])))] if names else []
        when = draw(st.sampled_from(kinds))
    if not plain and draw(st.integers(0, 7)) == 0:
        slots["s"] = SignalValue(name=draw(st.sampled_from(SIGNALS)))
    some = names_from(orders)
    rare: st.SearchStrategy[tuple[str, ...]] = st.sampled_from([(), (), (), (), ("red",), ("red", "blue")])
    return Step(
        id=id_,
        action="act",
        slots=slots,
        after=draw(some),
        after_any=draw(some),
        optional=draw(st.sampled_from([False, False, True])),
        when=when,
        signals=() if plain else draw(st.sampled_from([(), (), (), (), ("go",), ("go", "ok")])),
        break_before=() if plain else draw(rare),
        break_after=() if plain else draw(rare),
        retry=draw(st.sampled_from([None, None, RetryPolicy(attempts=2, initial=0.0)])),
        priority=draw(st.integers(0, 2)),
        delay=draw(st.sampled_from([0.0, 0.0, 5.0])),
        lost_limit=2,
    )


@st.composite
def blocks(draw: st.DrawFn, plain: bool = False, most: int = 7) -> list[Block]:
    found: list[Block] = []
    values: list[str] = []
    orders: list[str] = []
    for n in range(draw(st.integers(1, most))):
        if draw(st.integers(0, 3)) == 0:
            inner: list[Block] = []
            inside: list[str] = []
            for m in range(draw(st.integers(0, 3))):
                inner.append(draw(steps(f"i{m}", values + inside, orders + inside, plain)))
                inside.append(f"i{m}")
            some = names_from(orders)
            found.append(
                Group(id=f"g{n}", blocks=inner, after=draw(some), after_any=draw(some), optional=draw(st.booleans()))
            )
            orders.append(f"g{n}")
            values += [f"g{n}/{name}" for name in inside]
            orders += [f"g{n}/{name}" for name in inside]
        else:
            found.append(draw(steps(f"s{n}", values, orders, plain)))
            values.append(f"s{n}")
            orders += [f"s{n}", f"s{n}/"]
    return found


# -- random blocks that open their content while the run goes on ------------------------------------------------------


@st.composite
def conditions(draw: st.DrawFn, names: list[str], state: bool) -> Any:
    kinds: list[Any] = [Predicate(name="p"), Predicate(name="p", slots={"x": Const(0)})]
    kinds += [Holds(text="1 < 2"), Holds(text="1 > 2"), SignalValue(name="ok")]
    if names:
        name = draw(st.sampled_from(names))
        kinds += [Ref(step=name, default=1), Ref(step=name), Holds(text="r == true", slots={"r": Ref(step=name)})]
        kinds += [Holds(text="r", slots={"r": Ref(step=name, default=1)})]
    if state:
        kinds += [Holds(text="v == 1", slots={"v": StateValue(name="v")})]
        kinds += [Holds(text="n.step < 2", slots={"n": PhaseInfo()}), Predicate(name="p", slots={"i": PhaseInfo()})]
        kinds += [Holds(text="l == true", slots={"l": LaneValue(lane="c0", default=2)})]
    return draw(st.sampled_from(kinds))


class Place:
    """Where a block stands: what it may read besides its siblings' results."""

    def __init__(self, gathers: int = 0, rows: bool = False, calm: bool = False, depth: int = 2) -> None:
        self.gathers, self.rows, self.calm, self.depth = gathers, rows, calm, depth

    def into(self, *, gathers: int = 0, rows: bool = False) -> Place:
        return Place(self.gathers + gathers, self.rows or rows, self.calm, self.depth - 1)


@st.composite
def inner_steps(draw: st.DrawFn, id_: str, names: list[str], place: Place) -> Step:
    found = draw(steps(id_, names, names, plain=draw(st.sampled_from([True, True, place.calm]))))
    slots: list[Any] = []
    if place.gathers:
        slots += [Item(level=place.gathers - 1), Index()]
    if place.rows:
        slots += [PhaseInfo(), StateValue(name="v", default=0), LaneValue(lane="c0", default=0)]
        slots += [StateValue(name="missing")] if not place.calm and draw(st.integers(0, 9)) == 0 else []
    takes: bool = draw(st.booleans())
    if slots and takes:
        found.slots["own"] = draw(st.sampled_from(slots))
    return found


@st.composite
def bodies(draw: st.DrawFn, names: list[str], place: Place, least: int = 1) -> tuple[list[Block], Any]:
    """The blocks of a body, and an output."""
    found: list[Block] = []
    known: list[str] = []
    for n in range(draw(st.integers(least, 2))):
        id_ = f"d{place.depth}{n}"
        if place.depth > 0 and draw(st.integers(0, 3)) == 0:
            found.append(draw(openings(id_, names + known, place)))
        elif draw(st.integers(0, 5)) == 0:
            inside = draw(inner_steps("in", names + known, place))
            made = Group(id=id_, blocks=[inside], output=draw(st.sampled_from([None, Ref(step="in", default=0)])))
            found.append(made)
            if made.output is None:
                continue
        else:
            found.append(draw(inner_steps(id_, names + known, place)))
        known.append(id_)
    outputs: list[Any] = [None, *(Ref(step=name, default=d) for name in known for d in (-1, 0))]
    outputs += [Item()] if place.gathers else []
    return found, draw(st.sampled_from(outputs))


@st.composite
def gathers(draw: st.DrawFn, id_: str, names: list[str], place: Place) -> Gather:
    inside, output = draw(bodies(names, place.into(gathers=1)))
    items: list[Any] = [Const(LIST), Const(LIST), Const(EMPTY), ListOf([Const(0), Const(1)])]
    items += [Ref(step=draw(st.sampled_from(names)), default=LIST), Const(COUNT)] if names and not place.calm else []
    return Gather(
        id=id_,
        items=draw(st.sampled_from(items)),
        body=Body(blocks=inside, output=output),
        limit=draw(st.sampled_from([0, 0, 1, 2])),
        mode="all" if place.calm else draw(st.sampled_from(["any_error", "all", "first"])),
        optional=draw(st.sampled_from([False, False, True])),
    )


@st.composite
def chooses(draw: st.DrawFn, id_: str, names: list[str], place: Place) -> Choose:
    branches: list[Branch] = []
    count = draw(st.integers(1, 3))
    for n in range(count):
        inside, output = draw(bodies(names, place.into(), least=0))
        last = n == count - 1 and draw(st.booleans())
        when = None if last else draw(conditions(names, place.rows))
        branches.append(Branch(id=f"w{n}", when=when, blocks=inside, output=output))
    return Choose(id=id_, branches=branches, optional=draw(st.sampled_from([False, False, True])))


@st.composite
def rules(draw: st.DrawFn, place: Place, names: list[str]) -> tuple[Rule, ...]:
    found: list[Rule] = []
    for n in range(draw(st.integers(0, 2))):
        move = draw(st.sampled_from(MOVES))
        when = draw(conditions([name for name in names if not place.calm], True))
        found.append(Rule(id=f"r{n}", move=move, target="p0" if move == "jump" else "", when=when))
    return (*found, Rule(id="last", move="advance", when=draw(st.sampled_from([None, None, Predicate(name="p")]))))


@st.composite
def phases(draw: st.DrawFn, id_: str, names: list[str], place: Place) -> Phases:
    inner = place.into(rows=True)
    ruled = draw(st.booleans())
    rows: list[Phase] = []
    for n in range(draw(st.integers(1, 2))):
        cells: list[Block] = []
        before = [f"p{n - 1}/c0"] if n and rows[-1].blocks and isinstance(rows[-1].blocks[0], Step) else []
        for m in range(draw(st.integers(0, 3))):
            if inner.depth > 0 and draw(st.integers(0, 4)) == 0:
                cells.append(draw(openings(f"c{m}", names, inner)))
            else:
                cells.append(draw(inner_steps(f"c{m}", names + before, inner)))
        lanes = [cell.id for cell in cells]
        rows.append(
            Phase(
                id=f"p{n}",
                blocks=cells,
                detached=draw(names_from(lanes)) if draw(st.integers(0, 3)) == 0 else (),
                policy="pol" if ruled else "",
                retry=draw(st.sampled_from([None, RetryPolicy(attempts=2, initial=draw(st.sampled_from([0.0, 2.0])))])),
            )
        )
    return Phases(
        id=id_,
        phases=rows,
        policies={"pol": draw(rules(inner, names))} if ruled else {},
        otherwise=draw(st.sampled_from([None, Rule(id="else", move="stop")])) if ruled else None,
        start=draw(st.sampled_from(["", rows[-1].id])),
        step_limit=draw(st.sampled_from([1, 2, 4])),
        state={"v": Const(1)},
        on_conflict=draw(st.sampled_from(["last", "last", "error"])),
        on_finish=draw(st.sampled_from(["leave", "wait", "cancel"])),
        optional=draw(st.sampled_from([False, False, True])),
    )


def openings(id_: str, names: list[str], place: Place) -> st.SearchStrategy[Block]:
    return st.one_of(gathers(id_, names, place), chooses(id_, names, place), phases(id_, names, place))


@st.composite
def open_plans(draw: st.DrawFn, calm: bool = False) -> list[Block]:
    """A few steps and groups, blocks that open their content among and behind them, and steps that use those."""
    found: list[Block] = draw(blocks(plain=calm, most=2))
    names = [block.id for block in found if isinstance(block, Step)]
    for n in range(draw(st.integers(1, 2))):
        found.append(draw(openings(f"o{n}", names, Place(calm=calm))))
        names.append(f"o{n}")
    found.append(draw(steps("end", names, names, plain=calm)))
    return found


# -- random histories ------------------------------------------------------------------------------------------------


class Chaos:
    """Gives a run whatever may come, in any order, and checks after each decision what always holds."""

    def __init__(self, data: st.DataObject, plan: list[Block], limits: Limits) -> None:
        self.draw = data.draw
        self.driver = Driver(
            *plan, constants=CONSTANTS, breakpoints=self.draw(st.sampled_from([[], ["red"], LABELS])), limits=limits
        )
        self.past: list[inp.AnyInput] = []

    def answer(self, task: Task) -> inp.Outcome:
        driver = self.driver
        if task.call.purpose == "condition":
            kind = self.draw(st.sampled_from(["true", "true", "false", "number", "failed"]))
            if kind == "failed":
                return driver.failed(task)
            return driver.outcome(task, {"true": True, "false": False, "number": 3}[kind])
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
        return adding(*found, into=self.draw(st.sampled_from([None, ""])))

    def an_input(self) -> inp.AnyInput | None:
        driver = self.driver
        tasks = [driver.tasks[number] for number in sorted(driver.tasks)]
        kinds = ["outcome"] * 12 + ["past", "past", "signal", "signal", "release", "release", "retry", "rewind"]
        kinds += ["lost", "pause", "resume", "cancel", "hard", "add"]
        kind = self.draw(st.sampled_from(kinds))
        if kind == "past":
            return self.draw(st.sampled_from(self.past)) if self.past else None
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
                return inp.Rewind(self.draw(st.sampled_from(names)))
            case "pause":
                return inp.Pause()
            case "resume":
                return inp.Resume()
            case _:
                return inp.Cancel(hard=kind == "hard")

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
            numbers = [n for n in sorted(driver.tasks) if self.draw(st.booleans())]
            for number in numbers:
                del driver.tasks[number]
            driver.give(inp.Revoked(numbers), more=False)

    def check(self) -> None:
        """What holds in every state."""
        run = self.driver.run
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
            if driver.run.status in OUTCOMES and not driver.tasks:
                break
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
@given(st.data(), blocks())
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
        if isinstance(value, (inp.Release, inp.Retry, inp.Rewind)):
            continue
        before = digest(driver.run)
        again = driver.give(value)
        assert digest(driver.run) == before
        assert not again.events
        assert not again.tasks


def answers(task: Task, seed: int) -> tuple[str, bool]:
    """An outcome that depends on the step only, not on when it is asked."""
    mixed = crc32(f"{task.address} {task.attempt} {seed}".encode()) % 11
    return ("failed" if mixed in (0, 3) else "ok"), mixed % 3 != 0


def play(plan: list[Block], seed: int, limits: Limits, newest: bool) -> Driver:
    """Run to the end with fixed outcomes: oldest task first, or newest first."""
    driver = Driver(*plan, constants=CONSTANTS, breakpoints=LABELS, limits=limits)
    driver.settle()
    for _ in range(1000):
        if driver.tasks:
            task = list(driver.tasks.values())[-1 if newest else 0]
            how, value = answers(task, seed)
            added = []
            if how == "ok" and task.call.purpose == "step" and task.action == "act" and seed % 2:
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
@given(blocks(plain=True), st.integers(0, 1000), st.booleans())
def test_a_cancelled_run_ends_and_a_retry_of_all_of_it_runs_on(plan: list[Block], seed: int, hard: bool) -> None:
    driver = Driver(*plan, constants=CONSTANTS, limits=Limits(dispatched=2, events=3))
    driver.settle()
    for _ in range(seed % 5):
        if driver.tasks:
            driver.succeed(driver.tasks[min(driver.tasks)].address)
    if driver.run.status != RUNNING:
        return

    driver.give(inp.Cancel(hard=hard))
    driver.finish()

    assert driver.run.status == "cancelled"
    driver.check()
    decision = driver.give(inp.Retry())
    if not decision.refusals:
        driver.finish()
        assert driver.run.status == "succeeded"
    driver.check()
