"""A driver for the kernel: it answers tasks, keeps the journal, and compares states. No store, no clock, no code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Literal

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.apply import fold, new_state
from treadle.core.commands import Refusal, Task
from treadle.core.decide import Decision, Limits, decide, start
from treadle.core.events import Failure, decode_events, encode_events
from treadle.core.forgetting import forget, needs_all
from treadle.core.graph import Graph
from treadle.core.inputs import decode_input, encode_input
from treadle.core.plan import Block, Fragment, Plan, Ref, Step, Undo, decode_plan, encode_plan
from treadle.core.state import IterationState, RunState, ScopeState, StepState

HINTS = {"frontier", "ready", "signal_waiters", "cancel_at", "states", "graph", "own"}
WIDE = Limits(dispatched=10**9, events=10**9)


def digest(run: RunState) -> dict[str, Any]:
    """All facts of a run, as plain data; the hints of where to look next are left out."""
    found = {name: getattr(run, name) for name in RunState.__slots__ if name not in HINTS}
    found["children"] = {number: {k: n.number for k, n in c.items()} for number, c in run.children.items()}
    found["own"] = {number: scope.node.number for number, scope in run.own.items()}
    found["added_by"] = {number: added for number, added in run.added_by.items() if added}
    found["unwindings"] = list(run.unwindings)
    found["compensable"] = _plain(run.compensable)
    found["states"] = [_facts(state) for state in run.states]
    return found


def _facts(state: StepState | ScopeState) -> dict[str, Any]:
    facts = {name: getattr(state, name) for name in state.__struct_fields__ if name not in ("node", "around", "more")}
    facts["more"] = state.more or None
    if isinstance(state, ScopeState) and (unwinding := state.unwinding) is not None:
        facts["unwinding"] = (
            [step.node.address for step in unwinding.taken],
            [row.node.address for row in unwinding.rows],
            (unwinding.left, unwinding.rows_left, unwinding.running, sorted(unwinding.busy)),
            (unwinding.parked, unwinding.hard, unwinding.rewind, _plain(unwinding.row), _plain(unwinding.compensation)),
        )
    if isinstance(state, ScopeState):
        facts["compensates"] = _plain(state.compensates)
    facts["bad"] = list(facts.get("bad", ()))
    node = state.node
    # What an iteration's value refers to is looked up when it is first asked for.
    refs = None if isinstance(state, IterationState) else node.refs
    facts["node"] = (node.number, node.address, node.needs, refs, node.signals, node.optional, node.spec)
    facts["around"] = state.around.node.number
    if isinstance(state, ScopeState) and state.block is not None:
        facts["block"] = {name: _plain(getattr(state.block, name)) for name in state.block.__slots__}
    return facts


def _plain(value: Any) -> Any:
    """A fact of a block's progress; the states in it by their addresses."""
    if isinstance(value, StepState | ScopeState):
        return value.node.address
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


class Driver:
    """One run with its journal, its tasks as a store would have them, and the outcomes that tests give."""

    def __init__(
        self,
        *blocks: Block,
        output: Any = None,
        constants: Iterable[Any] = (),
        breakpoints: Iterable[str] = (),
        limits: Limits = WIDE,
        key: str = "k",
        begin: bool = True,
        on_failure: Literal["stop", "unwind", ""] = "",
        undo_limit: int = 0,
        started: ev.RunStarted | None = None,
        deadline: float = 0.0,
    ) -> None:
        made = Plan(workflow="w", blocks=list(blocks), output=output, on_failure=on_failure, undo_limit=undo_limit)
        plan = decode_plan(encode_plan(made))
        self.graph = Graph(plan)
        self.constants = [handle(value) for value in constants]
        self.breakpoints = list(breakpoints)
        self.key = key
        self.deadline = deadline
        self.limits = limits
        self.now = 1000.0
        # (version, time, journal text), as a store keeps it.
        self.rows: list[tuple[int, float, str]] = []
        self.events: list[ev.AnyEvent] = []
        self.tasks: dict[int, Task] = {}
        self.interrupted: list[int] = []
        # Inputs for other runs, by their keys.
        self.posts: list[tuple[str, inp.AnyInput]] = []
        self.hold = 0
        self.revoke = False
        self.last = Decision()
        self.run = self.empty()
        # The same run as an engine has it, which forgets what is closed.
        self.lean = self.empty()
        self.lean.forgets = True
        if begin:
            beginning = started or ev.RunStarted()
            first = start(self.run, now=self.now, limits=limits, started=beginning)
            self.commit(first)
            self._same(first, start(self.lean, now=self.now, limits=limits, started=beginning), anew=False)

    def empty(self) -> RunState:
        return new_state(
            self.key, "run-1", self.graph, self.constants, self.breakpoints, deadline=self.deadline, trace="t"
        )

    def folded(self) -> RunState:
        """The state that another process would load."""
        run = self.empty()
        for version, time, text in self.rows:
            fold(run, decode_events(text), version, time)
        return run

    def commit(self, decision: Decision) -> None:
        run = self.run
        self.last = decision
        if decision.events:
            run.version += 1
            self.rows.append((run.version, run.now, encode_events(decision.events)))
            self.events += decision.events
        for number in decision.ended:
            self.tasks.pop(number, None)
        if decision.hold is not None:
            self.hold = decision.hold
        if decision.revoke:
            self.revoke = True
        for task in decision.tasks:
            assert task.number not in self.tasks, f"two tasks of {task.address}"
            self.tasks[task.number] = task
        self.interrupted += decision.interrupts
        self.posts += decision.posts
        assert self.hold == run.hold
        assert run.tasks == len(self.tasks)

    def give(self, *values: inp.AnyInput, cause: str = "", more: bool = True) -> Decision:
        """Decide inputs as they come out of an inbox, and go on while there is more to do."""
        inputs = [(decode_input(encode_input(value)), cause) for value in values]
        first = self.decide(inputs)
        if more:
            self.settle()
        return first

    def settle(self) -> None:
        while self.last.more:
            self.decide([])

    def decide(self, inputs: list[tuple[inp.AnyInput, str]]) -> Decision:
        """Decide twice, by the run as it is and by one that has forgotten what is closed: both find the same."""
        if anew := needs_all(self.lean, [value for value, _ in inputs]):
            self.lean = self.folded()
        follows = self.lean.version == self.run.version
        decision = decide(self.run, inputs, now=self.now, limits=self.limits)
        self.commit(decision)
        if follows:
            self._same(decision, decide(self.lean, inputs, now=self.now, limits=self.limits), anew)
        return decision

    def _same(self, decision: Decision, lean: Decision, anew: bool) -> None:
        assert encode_events(lean.events) == encode_events(decision.events)
        assert lean.tasks == decision.tasks
        for name in ("ended", "posts", "refusals", "unsettled", "hold", "revoke"):
            assert getattr(lean, name) == getattr(decision, name), name
        if anew:
            # A run that was loaded anew tells again of attempts that a cancel has interrupted and that have not ended.
            assert set(decision.interrupts) <= set(lean.interrupts) <= set(self.interrupted)
        else:
            assert lean.interrupts == decision.interrupts
        assert [s.node.address for s in lean.settled] == [s.node.address for s in decision.settled]
        self.lean.version = self.run.version
        forget(self.lean)

    # -- what happened -----------------------------------------------------------------------------------

    def status(self, at: str = "") -> str:
        if not at:
            return self.run.status
        state = self.run.at(at)
        assert state is not None, at
        return state.status

    def statuses(self) -> dict[str, str]:
        return {state.node.address: state.status for state in self.run.steps()}

    def step(self, at: str) -> StepState:
        step = self.run.step_at(at)
        assert step is not None, at
        return step

    def scope(self, at: str) -> ScopeState:
        scope = self.run.at(at)
        assert isinstance(scope, ScopeState), at
        return scope

    def task(self, at: str) -> Task:
        return next(task for task in self.tasks.values() if task.address == at)

    def waiting(self) -> list[str]:
        """Addresses of the steps with a task."""
        return sorted(task.address for task in self.tasks.values())

    def args(self, at: str) -> dict[str, Any]:
        return {name: value_of(arg) for name, arg in self.task(at).call.args.items()}

    def kinds(self) -> list[str]:
        return [ev.kind_of(event) for event in self.events]

    def seen(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    # -- what happens ------------------------------------------------------------------------------------

    def outcome(self, at: str | Task, result: Any = None, **more: Any) -> inp.Outcome:
        task = self.task(at) if isinstance(at, str) else at
        more = {"session": "s1", "worker": "w1", **more}
        return inp.Outcome(
            number=task.number,
            generation=task.generation,
            attempt=task.attempt,
            lease=7,
            started_at=self.now,
            result=handle(result),
            **more,
        )

    def succeed(self, *names: str, result: Any = None, added: list[Fragment] | None = None, **more: Any) -> None:
        for at in names:
            self.give(self.outcome(at, result, added=added or [], **more))

    def failed(self, at: str | Task, code: str = "boom", message: str = "it broke", **more: Any) -> inp.Outcome:
        return self.outcome(at, status="failed", failure=Failure(code=code, message=message), **more)

    def fail(self, *names: str, **more: Any) -> None:
        for at in names:
            self.give(self.failed(at, **more))

    def lose(self, at: str) -> None:
        task = self.task(at)
        self.tasks.pop(task.number)
        self.give(inp.Lost(task.number, task.generation, task.attempt, "s1"))

    def revoked(self, *names: str) -> None:
        """The store takes back the tasks of these steps (all that wait, if none is named)."""
        numbers = [task.number for task in self.tasks.values() if not names or task.address in names]
        for number in numbers:
            del self.tasks[number]
        self.give(inp.Revoked(numbers))

    def signal(self, name: str, value: Any = None) -> None:
        self.give(inp.Signal(name, handle(value)))

    def refused(self, value: inp.AnyInput) -> Refusal:
        before = digest(self.run)
        decision = self.give(value)
        assert digest(self.run) == before, "a refused input changed the run"
        return decision.refusals[0]

    def finish(self, answer: Callable[[Task], inp.Outcome] | None = None) -> None:
        """Answer every task, in the order of their numbers, until none is left."""
        while self.tasks:
            task = self.tasks[min(self.tasks)]
            value = True if task.call.purpose in ("condition", "reconcile") else task.address
            self.give(answer(task) if answer is not None else self.outcome(task, value))

    def check(self) -> None:
        """The journal tells all: a folded state is the live one."""
        assert digest(self.folded()) == digest(self.run)


def handle(value: Any) -> str:
    return value if isinstance(value, str) and value[:1] in ("=", "@", "#") else "=" + json.dumps(value)


def value_of(arg: ev.Arg) -> Any:
    """The value of an argument whose handles are all inline."""
    if isinstance(arg, str):
        return json.loads(arg[1:]) if arg.startswith("=") else arg
    if isinstance(arg, ev.ArgList):
        return [value_of(item) for item in arg.items]
    if isinstance(arg, ev.ArgMap):
        return {key: value_of(item) for key, item in arg.items.items()}
    value = value_of(arg.value)
    for part in arg.path:
        value = value[part]
    return value


def step(id: str, *refs: str, **more: Any) -> Step:
    """A step that takes the results of `refs`; a name with `?` has constant 0 for default."""
    slots = {
        f"p{n}": Ref(step=name.rstrip("?"), default=0 if name.endswith("?") else -1) for n, name in enumerate(refs)
    }
    return Step(id=id, action=more.pop("action", "act"), slots={**slots, **more.pop("slots", {})}, **more)


PLAIN = Undo(action="undo")


def undoable(id: str, *refs: str, undo: Undo = PLAIN, **more: Any) -> Step:
    return step(id, *refs, undo=undo, **more)


def adding(*blocks: Block, constants: Iterable[Any] = (), into: str | None = None) -> list[Fragment]:
    return [Fragment(blocks=list(blocks), constants=[handle(value) for value in constants], into=into)]
