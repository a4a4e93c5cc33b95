"""A run that is driven by hand, for tests of what is shown of it: a journal, and tasks as a store would hold them."""

from __future__ import annotations

from typing import Any

from treadle.core import inputs as inp
from treadle.core.apply import new_state
from treadle.core.commands import Task
from treadle.core.decide import Decision, Limits, decide, start
from treadle.core.events import Failure, encode_events
from treadle.core.graph import Graph
from treadle.core.plan import Block, Plan, Ref, Step, encode_plan, plan_hash
from treadle.runtime.inspection import Snapshot, StepView, snapshot
from treadle.runtime.why import Reason, why
from treadle.runtime.why_capacity import Capacity
from treadle.store.base import InboxInput, Loaded, RunHead, SessionRow, TaskRow

WORKER = SessionRow(id="s1", worker="alpha", wake="", beat=1, waits=0, actions=["do", "other"])
OPERATOR = SessionRow(id="s2", worker="desk", wake="", beat=1, waits=0, actions=[])


class Story:
    """A run that is driven by hand: a journal, and the tasks as a store would hold them."""

    def __init__(
        self,
        *blocks: Block,
        breakpoints: tuple[str, ...] = (),
        limits: Limits | None = None,
        output: Any = None,
        labels: dict[str, str] | None = None,
    ) -> None:
        plan = Plan(workflow="demo", blocks=list(blocks), output=output)
        self.plan = encode_plan(plan)
        self.head = RunHead(
            key="0190-key",
            id="run-1",
            workflow="demo",
            plan=plan_hash(self.plan),
            constants=["=1", "=false"],
            breakpoints=list(breakpoints),
            labels=labels or {},
            created_at=100.0,
        )
        self.limits = limits or Limits()
        self.now = 100.0
        self.rows: list[tuple[int, int, float, str]] = []
        self.tasks: dict[int, TaskRow] = {}
        self.inbox: list[InboxInput] = []
        self.owner = "s1"
        self.run = new_state(self.head.key, self.head.id, Graph(plan), self.head.constants, list(breakpoints))
        self.commit(start(self.run, now=self.now, limits=self.limits))

    def commit(self, decision: Decision) -> Decision:
        if decision.events:
            self.run.version += 1
            self.rows.append((self.run.version, self.run.version, self.run.now, encode_events(decision.events)))
        for number in decision.ended:
            self.tasks.pop(number, None)
        for task in decision.tasks:
            self.tasks[task.number] = TaskRow(task)
        return decision

    def give(self, *inputs: inp.AnyInput, after: float = 1.0) -> Decision:
        self.now += after
        return self.commit(decide(self.run, [(value, "") for value in inputs], now=self.now, limits=self.limits))

    def task(self, at: str) -> Task:
        return next(row.task for row in self.tasks.values() if row.task.address == at)

    def lease(self, at: str, session: SessionRow = WORKER) -> None:
        self.now += 1.0
        row = self.tasks[self.task(at).number]
        row.session, row.worker, row.started_at = session.id, session.worker, self.now

    def end(self, at: str, status: str = "succeeded", **facts: Any) -> Decision:
        task = self.task(at)
        if not self.tasks[task.number].session:
            self.lease(at)
        row = self.tasks[task.number]
        return self.give(
            inp.Outcome(
                number=task.number,
                generation=task.generation,
                attempt=task.attempt,
                session=row.session,
                started_at=row.started_at,
                status=status,
                **facts,
            ),
        )

    def fail(self, at: str, message: str = "no", **facts: Any) -> Decision:
        return self.end(at, "failed", failure=Failure(code="error", message=message, type="ValueError"), **facts)

    def loaded(self) -> Loaded:
        return Loaded(
            head=self.head,
            plan=self.plan,
            version=self.run.version,
            status=self.run.status,
            hold=self.run.hold,
            owner=self.owner,
            rows=self.rows,
            inbox=self.inbox,
            tasks=list(self.tasks.values()),
        )

    def look(self, *sessions: SessionRow) -> Snapshot:
        return snapshot(self.loaded(), sessions or [WORKER], self.now)

    def step(self, at: str) -> StepView:
        view = self.look().step(at)
        assert view is not None
        return view

    def why(self, at: str | None = None, *sessions: SessionRow, **seen: Any) -> list[Reason]:
        return why(self.loaded(), Capacity(now=self.now, sessions=sessions or [WORKER], **seen), at)

    def codes(self, at: str | None = None, *sessions: SessionRow) -> list[str]:
        return [reason.code for reason in self.why(at, *sessions) if reason.tense == "now"]


def step(id: str, *refs: str, **options: Any) -> Step:  # the plan's own word
    slots: Any = {f"v{index}": Ref(ref) for index, ref in enumerate(refs)}
    return Step(id=id, action=options.pop("action", "do"), slots=slots, **options)
