"""The rows of a group of accepted appends, besides those of their runs: one final state each, sorted by key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from treadle.core.commands import NO_CALL, Task
from treadle.core.events import encode_events
from treadle.core.inputs import Revoked, encode_input
from treadle.store.base import Answer, Append, Report
from treadle.store.ledger import Gate
from treadle.store.offers import Offer
from treadle.store.projection import Opened
from treadle.store.sqlite.connection import Database
from treadle.store.sqlite.limits import Limits
from treadle.store.sqlite.projections import give
from treadle.store.sqlite.reader import STEP_FIELDS
from treadle.store.sqlite.schema import LEASED
from treadle.store.sqlite.tokens import OwnSession
from treadle.store.sqlite.waiting import NOBODY, anything_due, ceiling, promote

# Without blanks: for every row the driver hashes the whole text.
_INSERT_JOURNAL = "INSERT INTO journal(run,version,commit_id,time,session,events)VALUES(?,?,?,?,?,?)"
_INSERT_STEP = f"INSERT OR REPLACE INTO steps(run,{','.join(STEP_FIELDS)})VALUES(?{',?' * len(STEP_FIELDS)})"
_INSERT_TASK = (
    "INSERT OR REPLACE INTO tasks(run,number,state,session,lease,age,priority,not_before,started_at,"
    "generation,attempt,queue,action,address,call,gate,key,target,turn,interrupt,progress)"
    "VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,0,'')"
)
_DELETE_TASK = "DELETE FROM tasks WHERE run = ? AND number = ?"
_DELETE_LEASED = "DELETE FROM tasks WHERE run=? AND number=? AND state=3"
_DELETE_STEPS = "DELETE FROM steps WHERE run = ? AND number IN (SELECT value FROM json_each(?))"
_UPDATE_UNDO = "UPDATE steps SET undo = ? WHERE run = ? AND address = ?"
_DELETE_INPUT = "DELETE FROM inbox WHERE run = ? AND id = ?"
INSERT_INPUT = "INSERT OR IGNORE INTO inbox (run, id, body) VALUES (?, ?, ?)"
_POST_INPUT = "INSERT OR IGNORE INTO inbox (run, id, body) SELECT n, ?, ? FROM runs WHERE key = ?"
INSERT_PAYLOAD = "INSERT OR IGNORE INTO payloads (run, digest, body) VALUES (?, ?, ?)"
_INTERRUPT = "UPDATE tasks SET interrupt = 1 WHERE run = ? AND number = ? AND state = 3"
_FORBID_WAIT = "UPDATE tasks SET interrupt = 2 WHERE run = ? AND state = 3 AND interrupt = 0"

# Where `gate` is in the values of a task, with `key` behind it.
_GATE = 15

_encode = msgspec.json.Encoder().encode
_astuple = msgspec.structs.astuple

Values = tuple[Any, ...]


def _by_priority(task: Task) -> int:
    return -task.priority


class AppendedRun(msgspec.Struct, gc=False):
    """A run in a group: what its row held before (`..._was`), and what it holds after all of its appends."""

    key: str
    n: int
    version_was: int
    hold_was: int
    status_was: str
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


class Group:
    """The rows of accepted appends, besides those of the runs."""

    def __init__(
        self,
        con: Database,
        own: OwnSession,
        limits: Limits,
        runs: dict[str, AppendedRun],
        offer: Offer | None,
        opened: Opened | None = None,
    ) -> None:
        self.con = con
        self.own = own
        self.limits = limits
        self.runs = runs
        self.offer = offer
        self.opened = opened
        self.tasks: dict[tuple[int, int], Values] = {}
        self.interrupts: dict[tuple[int, int], None] = {}
        # Waiting tasks that some append of the group ends.
        self.late: set[tuple[int, int]] = set()
        # By queue: the priority up to which a new task would be claimed after one that waits.
        self.ceilings: dict[str, float] = {}
        self.waits: bool | None = None
        self.executable: frozenset[str] | None = None
        self.targets: Sequence[str] = () if offer is None else offer.targets()
        self.age = self.first_age = -1

    def write(self, appends: Sequence[Append]) -> list[Answer]:
        """Write all rows; one answer each."""
        runs = self.runs
        self._write_facts(appends)
        if self.limits.gates:
            self.limits.settle(appends[-1].time)
        # Whether an append may end tasks that another one of this group has made.
        stacked = len(runs) < len(appends)
        answers: list[Answer] = []
        for append in appends:
            if append.ended and (stacked or self.late):
                self._end_late(append)
            if append.hold is not None or append.revoke or append.interrupts or append.unwound is not None:
                self._steer(append)
            answers.append(self._dispatch(append, runs[append.key]) if append.tasks else Answer("committed"))
            if append.posts or append.report is not None:
                self._tell(append)
            if append.given:
                self._give(append)
        self._flush()
        return answers

    def _give(self, append: Append) -> None:
        n = self.runs[append.key].n
        ((run,),) = self.con.execute("SELECT id FROM runs WHERE n = ?", (n,)).fetchall()
        give(self.con, n, run, append, self.opened)

    def _flush(self) -> None:
        con = self.con
        if self.tasks:
            con.executemany(_INSERT_TASK, sorted(self.tasks.values()))
            if self.limits.keyed:
                self.limits.came(row[_GATE : _GATE + 2] for row in self.tasks.values())
            self.tasks.clear()
        if self.interrupts:
            con.executemany(_INTERRUPT, sorted(self.interrupts))
            self.interrupts.clear()
        if self.age != self.first_age:
            con.execute("UPDATE counters SET value = ? WHERE name = 'age'", (self.age,))
            self.first_age = self.age

    def _write_facts(self, appends: Sequence[Append]) -> None:
        """What does not depend on who gets a task: journal, ends, step rows, payloads, decided inputs."""
        runs = self.runs
        me = self.own.n
        journal: list[Values] = []
        ended: list[tuple[int, int]] = []
        # By run and step, the last one counts.
        steps: dict[int, Values] = {}
        for append in appends:
            n = runs[append.key].n
            journal.append((n, append.expect + 1, append.commit_id, append.time, me, encode_events(append.events)))
            if append.ended:
                ended += [(n, number) for number in append.ended]
            if append.unsettled:
                self._unsettle(n, append.unsettled, steps)
            for step in append.steps:
                steps[n << 32 | step.number] = (n, *_astuple(step))
        con = self.con
        journal.sort()
        con.executemany(_INSERT_JOURNAL, journal)
        if ended:
            self._end_leased(ended)
        if steps:
            con.executemany(_INSERT_STEP, sorted(steps.values()))
        self._write_rarer_facts(appends)

    def _write_rarer_facts(self, appends: Sequence[Append]) -> None:
        payloads: list[Values] = []
        consumed: list[Values] = []
        undos = False
        for append in appends:
            if append.payloads:
                n = self.runs[append.key].n
                payloads += [(n, *payload) for payload in append.payloads]
            if append.consumed:
                n = self.runs[append.key].n
                consumed += [(n, id) for id in append.consumed]
            if append.undos:
                undos = True
        if undos:
            self._write_undos(appends)
        if payloads:
            self.con.executemany(INSERT_PAYLOAD, payloads)
        if consumed:
            self.con.executemany(_DELETE_INPUT, consumed)

    def _write_undos(self, appends: Sequence[Append]) -> None:
        """Enter what is said of undos into the step rows, which are written."""
        undos: dict[tuple[int, str], str] = {}
        for append in appends:
            n = self.runs[append.key].n
            for step in append.steps:
                # A row that was made anew knows what its step's undo is.
                undos.pop((n, step.address), None)
            undos.update({(n, address): status for address, status in append.undos})
        self.con.executemany(_UPDATE_UNDO, [(status, *place) for place, status in sorted(undos.items())])

    def _tell(self, append: Append) -> None:
        """What an append does to other runs."""
        if append.posts:
            self.con.executemany(_POST_INPUT, [(post.id, post.body, post.key) for post in append.posts])
        if append.report is not None:
            self._report(append.report)

    def _report(self, report: Report) -> None:
        """End the leased task of another run; that its token is live was found in this transaction."""
        con = self.con
        ((n,),) = con.execute("SELECT n FROM runs WHERE key = ?", (report.input.key,))
        con.execute(_DELETE_LEASED, (n, report.number))
        con.execute(INSERT_INPUT, (n, report.input.id, report.input.body))
        if report.payloads:
            con.executemany(INSERT_PAYLOAD, [(n, digest, body) for digest, body in report.payloads])

    def _unsettle(self, n: int, numbers: Sequence[int], steps: dict[int, Values]) -> None:
        self.con.execute(_DELETE_STEPS, (n, _encode(list(numbers)).decode()))
        # Those of this group are not in the table yet.
        for number in numbers:
            steps.pop(n << 32 | number, None)

    def _end_leased(self, ended: list[tuple[int, int]]) -> None:
        """End tasks that are leased, which changes nothing for those that wait; find those that are not."""
        con = self.con
        ended.sort()
        before = con.total_changes()
        con.executemany(_DELETE_LEASED, ended)
        if con.total_changes() - before != len(ended):
            # Ended by a report or a burial, made by this group, or waiting. The last do hold others back until
            # their turn comes.
            sql = "SELECT 1 FROM tasks WHERE run = ? AND number = ?"
            self.late = {place for place in ended if con.execute(sql, place).fetchall()}

    def _end_late(self, append: Append) -> None:
        """End what waited, and what was made by an earlier append of this group."""
        n = self.runs[append.key].n
        places = [(n, number) for number in append.ended]
        if self.late.isdisjoint(places):
            for place in places:
                self._drop(place)
            return
        self._flush()
        self.con.executemany(_DELETE_TASK, places)
        if self.limits.gates:
            self.limits.settle(append.time)
        # Who waits now is to be found out again.
        self.ceilings.clear()
        self.waits = None

    def _drop(self, place: tuple[int, int]) -> None:
        """Forget a task of this group that is not written yet."""
        row = self.tasks.pop(place, None)
        if row is not None and row[_GATE] and row[2] == LEASED:
            self.limits.dropped(row[_GATE], row[_GATE + 1])

    def _steer(self, append: Append) -> None:
        run = self.runs[append.key]
        if append.hold is not None:
            # From here on what the row held before is of no use; this is what holds at this append.
            run.hold_was = append.hold
        if append.revoke or append.interrupts:
            self._revoke(run.n, append.expect + 1, None if append.revoke else append.interrupts)
        if append.unwound is not None:
            self.con.execute("UPDATE runs SET unwound = ? WHERE n = ?", (append.unwound, run.n))
        for number in append.interrupts:
            self.interrupts[run.n, number] = None

    def _revoke(self, n: int, version: int, only: Sequence[int] | None) -> None:
        """Take back the run's waiting tasks, or those of some numbers."""
        con = self.con
        which = "run = ? AND state < 3"
        values: list[int | str] = [n]
        if only is not None:
            which += " AND number IN (SELECT value FROM json_each(?))"
            values.append(_encode(list(only)).decode())
        found = con.execute(f"SELECT number FROM tasks WHERE {which}", values).fetchall()
        con.execute(f"DELETE FROM tasks WHERE {which}", values)
        if only is None:
            con.execute(_FORBID_WAIT, (n,))
        numbers = {number for (number,) in found}
        # Tasks of this group are not in the table yet.
        for place, row in list(self.tasks.items()):
            if place[0] == n and row[2] != LEASED and (only is None or place[1] in only):
                del self.tasks[place]
                numbers.add(place[1])
        if numbers:
            body = encode_input(Revoked(numbers=sorted(numbers)))
            con.execute(INSERT_INPUT, (n, f"revoked:{version}", body))

    def _dispatch(self, append: Append, run: AppendedRun) -> Answer:
        """Enter the append's tasks; those that would be claimed first are the first to get slots (promise 4)."""
        now = append.time
        n = run.n
        own = self.own
        tasks = append.tasks
        queued = 0
        if len(tasks) > 1:
            tasks = sorted(tasks, key=_by_priority)
        offer = None if run.hold_was else self.offer
        rows, gates = self.tasks, self.limits.gates
        call, text = NO_CALL, ""
        for task in tasks:
            place = (n, task.number)
            if place in rows:
                self._drop(place)
            gate = gates.get(task.queue) if gates else None
            turn = 0.0
            if gate is not None and gate.limits.fair:
                turn = self.limits.turn_of(gate, task.key, task.priority)
            due = task.not_before <= now
            if due and offer is not None and self._takes(task, gate, offer, now):
                task.lease = lease = own.token(self.con)
                state, session, age = LEASED, own.n, 0
                if gate is not None:
                    self.limits.started(gate, task.key, now, task.priority, turn)
            else:
                task.lease = lease = session = 0
                state = self.limits.state_of(task, due)
                age = self._next_age()
                queued += 1
            if task.call is not call:
                # Those of alike steps are one.
                call, text = task.call, _encode(task.call).decode()
            rows[place] = (
                n,
                task.number,
                state,
                session,
                lease,
                age,
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
                task.key,
                task.target,
                turn,
            )
            if self.interrupts:
                # An interrupt of the attempt before is none of this one's.
                self.interrupts.pop(place, None)
        # Most often all of them, and then the list itself: one fewer for the garbage collector to look at.
        return Answer("committed", [task for task in tasks if task.lease] if queued else tasks, queued)

    def _takes(self, task: Task, gate: Gate | None, offer: Offer, now: float) -> bool:
        """Whether a due task is leased at once; if it is not, others may have to wait behind it."""
        queue = task.queue
        if queue not in self.ceilings:
            self.ceilings[queue] = self._ceiling(queue, offer, now)
        if task.target and task.target not in self.targets:
            return False
        if gate is not None and not (self.limits.has_room(gate, now) and self.limits.may_start(gate, task.key, now)):
            return False
        # All that wait are older, so an equal priority goes before it.
        if task.priority > self.ceilings[queue] and offer.take(task.action, queue):
            return True
        self._raise_ceiling(task, offer)
        return False

    def _ceiling(self, queue: str, offer: Offer, now: float) -> float:
        con = self.con
        if self.waits is None:
            self.waits = anything_due(con, now)
            if self.waits:
                promote(con, self.limits, now)
        return ceiling(con, queue, offer, now) if self.waits else NOBODY

    def _raise_ceiling(self, task: Task, offer: Offer) -> None:
        if task.priority > self.ceilings[task.queue]:
            if self.executable is None:
                self.executable = frozenset(offer.actions())
            if task.action in self.executable:
                self.ceilings[task.queue] = task.priority

    def _next_age(self) -> int:
        if self.age < 0:
            ((value,),) = self.con.execute("SELECT value FROM counters WHERE name = 'age'")
            assert isinstance(value, int)
            self.age = self.first_age = value
        self.age += 1
        return self.age
