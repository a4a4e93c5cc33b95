"""A group of appends as packed arrays: one final state a row, and who is offered its tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from treadle.core.commands import NO_CALL, Task
from treadle.core.events import encode_events
from treadle.store.base import Answer, Append, StepRow
from treadle.store.ledger import Gate
from treadle.store.offers import Offer
from treadle.store.postgres.append_functions import COMMIT
from treadle.store.postgres.arrays import (
    big,
    bigs,
    chunks,
    floats,
    ints,
    optional_ints,
    real,
    small,
    storable,
    texts,
    truth,
)
from treadle.store.postgres.connection import Link, Statement
from treadle.store.postgres.limits import Entered, Facts, Limits
from treadle.store.postgres.schema import DELAYED, LEASED, LINED, WAITING
from treadle.store.postgres.tokens import OwnSession

# Below every priority.
NOBODY = -float("inf")

_encode = msgspec.json.Encoder().encode
_encode_call = msgspec.json.Encoder().encode
_astuple = msgspec.structs.astuple

Values = tuple[Any, ...]
Pack = Callable[[Sequence[Any]], bytes]

# Columns of each part, in the order of the tuples that the group collects.
_RUNS: tuple[tuple[str, Pack], ...] = (
    ("run_n", bigs),
    ("run_was", ints),
    ("run_hold_was", bigs),
    ("run_version", ints),
    ("run_hold", bigs),
    ("run_status", texts),
    ("run_owner", bigs),
    ("run_time", floats),
)
_NEW: tuple[tuple[str, Pack], ...] = (
    ("new_n", bigs),
    ("new_key", texts),
    ("new_id", texts),
    ("new_workflow", texts),
    ("new_plan", texts),
    ("new_status", texts),
    ("new_hold", bigs),
    ("new_version", ints),
    ("new_owner", bigs),
    ("new_labels", texts),
    ("new_created", floats),
    ("new_time", floats),
    ("new_parent", texts),
    ("new_name", texts),
    ("new_metadata", texts),
    ("new_head", texts),
)
_JOURNAL: tuple[tuple[str, Pack], ...] = (
    ("journal_run", bigs),
    ("journal_version", ints),
    ("journal_commit", bigs),
    ("journal_time", floats),
    ("journal_events", texts),
)
_STEPS: tuple[tuple[str, Pack], ...] = (
    ("step_run", bigs),
    ("step_number", ints),
    ("step_address", texts),
    ("step_action", texts),
    ("step_status", texts),
    ("step_generation", ints),
    ("step_attempt", ints),
    ("step_result", texts),
    ("step_code", texts),
    ("step_message", texts),
    ("step_detail", texts),
    ("step_causes", texts),
    ("step_added", floats),
    ("step_ready", floats),
    ("step_dispatched", floats),
    ("step_started", floats),
    ("step_finished", floats),
    ("step_worker", texts),
    ("step_undo", texts),
)
_TASKS: tuple[tuple[str, Pack], ...] = (
    ("task_run", bigs),
    ("task_number", ints),
    ("task_state", ints),
    ("task_lease", bigs),
    ("task_priority", ints),
    ("task_not_before", floats),
    ("task_started", floats),
    ("task_generation", ints),
    ("task_attempt", ints),
    ("task_queue", texts),
    ("task_action", texts),
    ("task_address", texts),
    ("task_call", texts),
    ("task_gate", bigs),
    ("task_key", texts),
    ("task_target", texts),
    ("task_turn", floats),
)
# Where they are in the values of a task.
_STATE, _GATE, _KEY = 2, 13, 14
_ENDED: tuple[tuple[str, Pack], ...] = (("ended_run", bigs), ("ended_number", ints))
_UNSETTLED: tuple[tuple[str, Pack], ...] = (("unsettled_run", bigs), ("unsettled_number", ints))
_UNDOS: tuple[tuple[str, Pack], ...] = (("undo_run", bigs), ("undo_address", texts), ("undo_status", texts))
_PAYLOADS: tuple[tuple[str, Pack], ...] = (("payload_run", bigs), ("payload_digest", texts), ("payload_body", chunks))
_CONSUMED: tuple[tuple[str, Pack], ...] = (("consumed_run", bigs), ("consumed_id", texts))
_POSTS: tuple[tuple[str, Pack], ...] = (("post_key", texts), ("post_id", texts), ("post_body", chunks))
_PLANS: tuple[tuple[str, Pack], ...] = (("plan_hash", texts), ("plan_body", chunks))
_LABELS: tuple[tuple[str, Pack], ...] = (("label_run", bigs), ("label_name", texts), ("label_value", texts))
_UNWOUND: tuple[tuple[str, Pack], ...] = (("unwound_run", bigs), ("unwound", texts))


def _by_priority(task: Task) -> int:
    return -task.priority


class AppendedRun(msgspec.Struct, gc=False):
    """A run in a group: what its row is believed to hold (`..._was`), and what it holds after all of its appends."""

    key: str
    n: int
    version_was: int
    hold_was: int
    version: int
    hold: int
    status: str
    time: float = 0.0
    # Nobody owns it afterwards. For a run that another session owns this is so from the start.
    release: bool = False
    # The append that makes it.
    made: Append | None = None

    def take(self, append: Append) -> None:
        """Be as after the append."""
        self.version = append.expect + 1
        self.status = append.status
        self.time = append.time
        if append.hold is not None:
            self.hold = append.hold
        if append.release:
            self.release = True


class Locked:
    """Queues with limits that the transaction has locked: what it found of them."""

    def __init__(self, entered: Entered, facts: Facts, offer: Offer | None, now: float) -> None:
        self.facts = facts
        self.stored = {(task.run, task.number): task for task in entered.tasks}
        self.lengths = dict(entered.lengths)
        numbers = facts.definitions.numbers
        self.ceilings = {
            numbers[n].name: NOBODY if priority is None else float(priority) for n, priority in entered.ceilings
        }
        self._lined = {(n, key): priority for n, key, priority in entered.lined if priority is not None}
        self._offer = offer
        self._now = now

    def end(self, append: Append) -> None:
        """What an append does to tasks that are there, before its own come."""
        key = append.key
        for number in append.ended:
            self.replace(key, number)
        if append.report is not None:
            self.replace(append.report.input.key, append.report.number)
        if append.revoke or append.interrupts or append.hold is not None:
            self._steer(append)
        self._open()

    def replace(self, run: str, number: int) -> None:
        """A task that is there goes, or makes place for another one."""
        task = self.stored.pop((run, number), None)
        if task is not None:
            self.facts.end(task.gate, task.key, task.state)

    def comes(self, gate: Gate, key: str, priority: int) -> float:
        """A task comes in; its turn."""
        self.facts.touch(gate.n, key)
        return self.facts.turn_of(gate, key, priority) if gate.limits.fair else 0.0

    def _steer(self, append: Append) -> None:
        for (run, number), task in list(self.stored.items()):
            if run != append.key or task.state == LEASED:
                continue
            if append.revoke or number in append.interrupts:
                self.replace(run, number)
            elif append.hold == 0 and task.state != DELAYED:
                # Held until now, so no ceiling tells of it.
                self.facts.touch(task.gate, task.key)
                self._raise(task.gate, task.key, task.priority, task.action, task.target)

    def _raise(self, n: int, key: str, priority: int, action: str, target: str) -> None:
        """A task waits again, perhaps before those that come."""
        offer = self._offer
        if offer is None or action not in offer.actions() or target not in ("", *offer.targets()):
            return
        if key and self.facts.definitions.numbers[n].limits.by_key:
            self._lined[n, key] = max(priority, self._lined.get((n, key), priority))
        else:
            name = self.facts.definitions.numbers[n].name
            self.ceilings[name] = max(float(priority), self.ceilings.get(name, NOBODY))

    def _open(self) -> None:
        """Lined tasks of keys that may start now are claimed before those that come."""
        numbers = self.facts.definitions.numbers
        for (n, key), priority in list(self._lined.items()):
            gate = numbers[n]
            if self.facts.may_start(gate, key, self._now):
                self.ceilings[gate.name] = max(float(priority), self.ceilings.get(gate.name, NOBODY))


class Group:
    """Accepted appends, made into one statement.

    `ceilings` is what is believed of the tasks that wait, by queue: the priority up to which a new task would be
    claimed after one of them. Those that are not named are believed to have none. `asked` collects the queues whose
    belief the server must confirm. Of queues with limits all that matters is known (`facts`), since they are locked.
    """

    def __init__(
        self,
        limits: Limits,
        own: OwnSession,
        runs: dict[str, AppendedRun],
        offer: Offer | None,
        ceilings: dict[str, float],
        locked: Locked | None,
    ) -> None:
        self.link: Link = limits.link
        self.limits = limits
        self.own = own
        self.runs = runs
        self.locked = locked
        self.offer = offer
        self.believed = ceilings
        # As they are after the tasks of the appends so far.
        self.ceilings = dict(ceilings)
        self.asked: dict[str, None] = {}
        self.answers: list[Answer] = []
        # Tasks of queues with limits that the session has then.
        self.leased: set[tuple[str, int]] = set()
        self._values: dict[str, bytes] = {}
        self._executable: frozenset[str] | None = None
        self._targets: Sequence[str] = () if offer is None else offer.targets()

    def build(self, appends: Sequence[Append], plans: set[str]) -> None:
        """Work out all rows; bodies of `plans` are known to the store."""
        runs, me = self.runs, self.own.n
        # The hold that an append sets is set already where its rows are written (`steer_1`).
        sets_hold = appends[0].hold is not None
        there: list[Values] = []
        for run in runs.values():
            if run.made is None:
                hold_was = run.hold if sets_hold else run.hold_was
                owner = 0 if run.release else me
                there.append((run.n, run.version_was, hold_was, run.version, run.hold, run.status, owner, run.time))
        self._pack(_RUNS, sorted(there))
        self._add_new([run for run in runs.values() if run.made is not None], plans)
        self._add_facts(appends)
        self._add_rare(appends)
        self._add_tasks(appends)

    def statement(self, schema: str, at: float, *, verifies: bool, may_answer: bool) -> Statement:
        """The call that writes the group, if all is as believed."""
        values = self._values
        values["me"] = big(self.own.n)
        values["link"] = small(self.own.link)
        values["at"] = real(at)
        values["may_answer"] = truth(may_answer)
        values["definitions"] = small(self.limits.definitions.version)
        if self.locked is not None:
            values["locked"] = bigs(self.locked.facts.locked)
        if verifies and self.asked and self.offer is not None:
            queues = list(self.asked)
            found = [self.believed.get(queue, NOBODY) for queue in queues]
            values["queues"] = texts(queues)
            values["ceilings"] = optional_ints([None if value == NOBODY else int(value) for value in found])
            values["executable"] = texts(list(self.offer.actions()))
            values["targets"] = texts(["", *self._targets])
        return COMMIT.text(schema), [values.get(name) for name in COMMIT.names], COMMIT.types

    def _pack(self, columns: Sequence[tuple[str, Pack]], rows: Sequence[Values]) -> None:
        if rows:
            values = self._values
            for (name, pack), column in zip(columns, zip(*rows, strict=True), strict=True):
                values[name] = pack(column)

    # -- parts -----------------------------------------------------------------------------------------

    def _add_new(self, made: Sequence[AppendedRun], plans: set[str]) -> None:
        rows: list[Values] = []
        labels: list[Values] = []
        bodies: dict[str, bytes] = {}
        for run in made:
            assert run.made is not None
            head = run.made.head
            assert head is not None
            owner = 0 if run.release else self.own.n
            text = _encode(head.labels).decode() if head.labels else ""
            rows.append(
                (
                    run.n,
                    run.key,
                    head.id,
                    head.workflow,
                    head.plan,
                    run.status,
                    run.hold,
                    run.version,
                    owner,
                    text,
                    head.created_at,
                    run.time,
                    head.parent,
                    storable(head.name),
                    _encode(head.metadata).decode() if head.metadata else "",
                    _encode(head).decode(),
                )
            )
            labels += [(run.n, name, value) for name, value in head.labels.items()]
            if head.plan not in plans:
                bodies[head.plan] = run.made.plan or b""
        # By id, so that two groups that make the same runs meet at the first of them.
        rows.sort(key=_third)
        self._pack(_NEW, rows)
        self._pack(_LABELS, labels)
        self._pack(_PLANS, sorted(bodies.items()))

    def _add_facts(self, appends: Sequence[Append]) -> None:
        """What does not depend on who gets a task: journal, ends, step rows, payloads, decided inputs."""
        runs = self.runs
        journal: list[Values] = []
        ended: dict[tuple[int, int], None] = {}
        steps: dict[tuple[int, int], Values] = {}
        unsettled: dict[tuple[int, int], None] = {}
        payloads: dict[tuple[int, str], bytes] = {}
        for append in appends:
            n = runs[append.key].n
            journal.append((n, append.expect + 1, append.commit_id, append.time, encode_events(append.events)))
            for number in append.ended:
                ended[n, number] = None
            for number in append.unsettled:
                unsettled[n, number] = None
                steps.pop((n, number), None)
            for step in append.steps:
                steps[n, step.number] = (n, *_astuple(step))
            for digest, body in append.payloads:
                payloads.setdefault((n, digest), body)
        journal.sort()
        self._pack(_JOURNAL, journal)
        self._pack(_ENDED, sorted(ended))
        self._pack(_UNSETTLED, sorted(unsettled))
        self._pack(_STEPS, [_stored(step) for step in sorted(steps.values())])
        self._pack(_PAYLOADS, [(*place, body) for place, body in sorted(payloads.items())])

    def _add_rare(self, appends: Sequence[Append]) -> None:
        runs = self.runs
        consumed = sorted({(runs[append.key].n, id) for append in appends for id in append.consumed})
        self._pack(_CONSUMED, consumed)
        self._pack(_POSTS, [(post.key, post.id, post.body) for append in appends for post in append.posts])
        unwound = {runs[append.key].n: append.unwound for append in appends if append.unwound is not None}
        self._pack(_UNWOUND, sorted(unwound.items()))
        undos: dict[tuple[int, str], str] = {}
        for append in appends:
            n = runs[append.key].n
            if append.undos or undos:
                for step in append.steps:
                    # A row that was made anew knows what its step's undo is.
                    undos.pop((n, step.address), None)
                undos.update({(n, address): status for address, status in append.undos})
        self._pack(_UNDOS, [(*place, status) for place, status in sorted(undos.items())])

    # -- tasks -----------------------------------------------------------------------------------------

    def _add_tasks(self, appends: Sequence[Append]) -> None:
        rows: dict[tuple[int, int], Values] = {}
        stacked = len(self.runs) < len(appends)
        if self.locked is not None:
            for append in appends:
                self.locked.end(append)
            self.ceilings.update(self.locked.ceilings)
        for append in appends:
            run = self.runs[append.key]
            if stacked:
                # Those that an earlier append of this group has made.
                for number in append.ended:
                    self._drop(rows, (run.n, number))
                    self.leased.discard((append.key, number))
            self.answers.append(self._dispatch(append, run, rows) if append.tasks else Answer("committed"))
        self._pack(_TASKS, list(rows.values()))

    def _drop(self, rows: dict[tuple[int, int], Values], place: tuple[int, int]) -> None:
        """Forget a task of this group."""
        row = rows.pop(place, None)
        if row is not None and row[_GATE] and self.locked is not None:
            self.locked.facts.end(row[_GATE], row[_KEY], row[_STATE])

    def _dispatch(self, append: Append, run: AppendedRun, rows: dict[tuple[int, int], Values]) -> Answer:
        """Enter the append's tasks; those that would be claimed first are the first to get slots (promise 4)."""
        now, n = append.time, run.n
        tasks = append.tasks
        queued = 0
        call, text = NO_CALL, ""
        if len(tasks) > 1:
            tasks = sorted(tasks, key=_by_priority)
        held = run.hold_was if append.hold is None else append.hold
        offer = None if held else self.offer
        gates, locked = self.limits.gates, self.locked
        for task in tasks:
            # The youngest is the last, also if an earlier append of this group has dispatched the same step.
            self._drop(rows, (n, task.number))
            if locked is not None:
                locked.replace(append.key, task.number)
            gate = gates.get(task.queue) if gates else None
            key = storable(task.key)
            turn = 0.0
            if gate is not None and locked is not None:
                turn = locked.comes(gate, key, task.priority)
            due = task.not_before <= now
            if due and offer is not None and self._takes(task, gate, key, offer, now):
                task.lease = self.own.token(self.link)
                state = LEASED
                if gate is not None and locked is not None:
                    locked.facts.lease(gate, key, now, task.priority, turn)
                    self.leased.add((append.key, task.number))
            else:
                task.lease = 0
                state = DELAYED if not due else LINED if gate is not None and key and gate.limits.by_key else WAITING
                queued += 1
            if task.call is not call:
                # Those of alike steps are one.
                call, text = task.call, _encode_call(task.call).decode()
            rows[n, task.number] = (
                n,
                task.number,
                state,
                task.lease,
                task.priority,
                task.not_before,
                now,
                task.generation,
                task.attempt,
                task.queue,
                task.action,
                task.address,
                text,
                0 if gate is None else gate.n,
                key,
                task.target,
                turn,
            )
        return Answer("committed", [task for task in tasks if task.lease] if queued else tasks, queued)

    def _takes(self, task: Task, gate: Gate | None, key: str, offer: Offer, now: float) -> bool:
        """Whether a due task is leased at once; if it is not, others may have to wait behind it."""
        queue, ceilings = task.queue, self.ceilings
        if gate is None:
            self.asked[queue] = None
        elif not self._admits(gate, key, now):
            return False
        if task.target and task.target not in self._targets:
            return False
        # All that wait are older, so an equal priority goes before it.
        if task.priority > ceilings.get(queue, NOBODY):
            if offer.take(task.action, queue):
                return True
            if self._executable is None:
                self._executable = frozenset(offer.actions())
            if task.action in self._executable:
                ceilings[queue] = task.priority
        return False

    def _admits(self, gate: Gate, key: str, now: float) -> bool:
        locked = self.locked
        assert locked is not None, f"the queue {gate.name} was not locked"
        return locked.facts.has_room(gate, now) and locked.facts.may_start(gate, key, now)


def _third(row: Values) -> Any:
    return row[2]


# Places of what people and programs write, behind the number of the run.
_MESSAGE, _WORKER = (1 + StepRow.__struct_fields__.index(name) for name in ("message", "worker"))


def _stored(step: Values) -> Values:
    message, worker = step[_MESSAGE], step[_WORKER]
    if message or not worker.isascii():
        return (
            *step[:_MESSAGE],
            storable(message),
            *step[_MESSAGE + 1 : _WORKER],
            storable(worker),
            *step[_WORKER + 1 :],
        )
    return step
