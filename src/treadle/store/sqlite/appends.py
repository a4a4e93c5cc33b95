"""Appends: how a group of decisions becomes rows, in one transaction and with as few statements as can be.

The way taken first believes what an append says of its run: that it is at `expect`, owned by the session, not
held, and has the status `was`. The runs' rows are updated under that condition, all in one batch, and the number of
changed rows tells whether all of it was true. Only if it was not, the transaction starts again, reads the runs one by
one, and goes on with those appends that may take effect. Nothing is read back on the first way.

After that nothing but the disk can fail. Rows go in sorted by key, one final state each, so that a group touches
as few pages as possible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from treadle.core.tables import RUNNING
from treadle.errors import InternalError
from treadle.store.base import Answer, Append, Report
from treadle.store.ledger import Gate
from treadle.store.offers import Offer
from treadle.store.projection import Opened
from treadle.store.queues import DROP_OLDEST
from treadle.store.sqlite.connection import Database
from treadle.store.sqlite.dropping import Dropped, drop, oldest
from treadle.store.sqlite.group import AppendedRun, Group, Values
from treadle.store.sqlite.limits import Limits
from treadle.store.sqlite.names import change_names, holder_of
from treadle.store.sqlite.tokens import OwnSession
from treadle.store.sqlite.waiting import promote, unpark

# Cached numbers of runs; beyond this the cache starts anew.
_CACHED_RUNS = 200_000

_UPDATE = "UPDATE runs SET version=?,updated_at=? WHERE n=? AND version=? AND owner=? AND hold=? AND status=?"
# Apart, since a column that is set costs the upkeep of its indexes even if it keeps its value.
_UPDATE_ALL = (
    "UPDATE runs SET version = ?, updated_at = ?, hold = ?, status = ?, owner = ?"
    " WHERE n = ? AND version = ? AND owner = ? AND hold = ? AND status = ?"
)
_INSERT_RUN = (
    "INSERT OR IGNORE INTO runs (n, key, id, workflow, plan, status, hold, version, owner, labels, created_at,"
    " updated_at, parent, name, metadata) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15"
    " WHERE NOT EXISTS (SELECT 1 FROM tombstones WHERE key = ?2)"
)

_encode = msgspec.json.Encoder().encode


class Appends:
    """Writes groups of appends on one connection. It remembers the numbers of the runs it has met."""

    def __init__(self, con: Database) -> None:
        self.con = con
        self.limits = Limits(con)
        # Decodes the records that projections take.
        self.opened: Opened | None = None
        self.numbers: dict[str, int] = {}
        self._made: list[AppendedRun] = []
        # Runs that make place for the one that is examined.
        self._out: list[Dropped] = []

    def write(
        self, own: OwnSession, appends: Sequence[Append], offer: Offer | None, restart: Callable[[], None]
    ) -> list[Answer]:
        """Apply the appends in a transaction that is open; `restart` rolls it back and opens another."""
        self._made.clear()
        refusable = bool(self.limits.gates) and any(map(self._may_be_refused, appends))
        # A hold changes nothing for the tasks of an append that stands alone.
        single = len(appends) == 1
        apart = [
            append
            for append in appends
            if append.report or append.names or ((append.hold is not None or append.revoke) and not single)
        ]
        if refusable or apart:
            # What these change for the tasks of others depends on the order, so the rare group that has them is
            # written one by one.
            return [answer for append in appends for answer in self._write_examined(own, [append], offer)]
        runs = self._believe(appends)
        if runs is not None and self._write_runs(own, runs):
            return Group(self.con, own, self.limits, runs, offer, self.opened).write(appends)
        restart()
        self._made.clear()
        return self._write_examined(own, appends, offer)

    def _write_examined(self, own: OwnSession, appends: Sequence[Append], offer: Offer | None) -> list[Answer]:
        self._out = []
        answers, runs = self._examine(own, appends)
        accepted = [append for append, answer in zip(appends, answers, strict=True) if answer is None]
        if not self._write_runs(own, runs):
            raise InternalError("rows of runs changed inside a transaction that had locked the store")
        if self._out and accepted:
            drop(self.con, self._out, accepted[0].key)
            self.limits.settle(accepted[0].time)
        written = Group(self.con, own, self.limits, runs, offer, self.opened).write(accepted) if accepted else []
        for append, answer in zip(accepted, written, strict=True):
            if append.names or self._out:
                told = change_names(self.con, runs[append.key].n, append.key, append.names)
                answer.told = list(dict.fromkeys([*(run.key for run in self._out), *told]))
        done = iter(written)
        return [next(done) if answer is None else answer for answer in answers]

    def settled(self) -> None:
        """The transaction is durable: runs that it made have their numbers for good."""
        if len(self.numbers) > _CACHED_RUNS:
            self.numbers.clear()
        for run in self._made:
            self.numbers[run.key] = run.n
        self._made.clear()

    def number(self, key: str) -> int | None:
        """The number of a run, None if there is none."""
        n = self.numbers.get(key)
        if n is None:
            found = self.con.execute("SELECT n FROM runs WHERE key = ?", (key,)).fetchall()
            if found:
                n = self.numbers[key] = found[0][0]
        return n

    # -- which appends may take effect -----------------------------------------------------------------

    def _believe(self, appends: Sequence[Append]) -> dict[str, AppendedRun] | None:
        """The runs as the appends say they are; None if they contradict each other or a run is not there."""
        runs: dict[str, AppendedRun] = {}
        numbers = self.numbers
        for append in appends:
            key = append.key
            run = runs.get(key)
            if run is not None:
                if append.head is not None or run.version != append.expect or run.release:
                    return None
            elif append.head is None:
                n = numbers.get(key) or self.number(key)
                if n is None:
                    return None
                expect = append.expect
                hold = 0 if append.hold is None else append.hold
                runs[key] = AppendedRun(
                    key, n, expect, 0, append.was, expect + 1, hold, append.status, append.time, append.release
                )
                continue
            elif append.expect == 0:
                run = runs[key] = _new_run(append)
            else:
                return None
            run.take(append)
        return runs

    def _examine(
        self, own: OwnSession, appends: Sequence[Append]
    ) -> tuple[list[Answer | None], dict[str, AppendedRun]]:
        """Read each run; the answers are None for those appends that may take effect."""
        answers: list[Answer | None] = []
        runs: dict[str, AppendedRun] = {}
        ids: set[str] = set()
        for append in appends:
            run = runs.get(append.key) or self._stored(own, append.key)
            if run is not None and append.head is None:
                if run.version != append.expect or run.release:
                    answers.append(Answer("conflict"))
                    continue
                if append.names and (holder := holder_of(self.con, append)):
                    answers.append(Answer("held", holder=holder))
                    continue
            elif (refusal := self._refusal(own, append, run, ids)) is not None:
                answers.append(refusal)
                continue
            else:
                run = _new_run(append)
                assert append.head is not None
                ids.add(append.head.id)
            runs[append.key] = run
            run.take(append)
            answers.append(None)
        return answers, runs

    def _refusal(self, own: OwnSession, append: Append, run: AppendedRun | None, ids: set[str]) -> Answer | None:
        """Why an append may not make its run, None if it may; `ids` are those of the runs made before it."""
        head = append.head
        if append.report is not None and not self._may_report(own, append.report):
            return Answer("fenced")
        if self._exists("SELECT 1 FROM tombstones WHERE key = ?", append.key):
            return Answer("refused")
        if head is None:
            return Answer("conflict")
        if (
            run is not None
            or head.id in ids
            or self._exists("SELECT 1 FROM runs WHERE id = ? OR key = ?", head.id, append.key)
        ):
            return Answer("exists")
        if append.expect != 0:
            return Answer("conflict")
        if (full := self._full_queue(append)) is not None:
            return Answer("full", queue=full.name, on_full=full.limits.on_full)
        if append.names and (holder := holder_of(self.con, append)):
            return Answer("held", holder=holder)
        return None

    def _may_be_refused(self, append: Append) -> bool:
        """Whether an append makes a run that may find a queue full."""
        gates = self.limits.gates
        return append.head is not None and any(
            task.queue in gates and gates[task.queue].limits.length for task in append.tasks
        )

    def _full_queue(self, append: Append) -> Gate | None:
        """The queue in which the due tasks of a run that is to be made have no place to wait, if there is one.

        Where others make place for it, the run is to be the only one that is made: such appends go one by one.
        """
        limits = self.limits
        if not limits.gates or not self._may_be_refused(append):
            return None
        promote(self.con, limits, append.time)
        out: list[Dropped] = []
        for queue in dict.fromkeys(task.queue for task in append.tasks if task.not_before <= append.time):
            gate = limits.gates.get(queue)
            if gate is None or not limits.is_full(gate):
                continue
            found = oldest(self.con, gate) if gate.limits.on_full == DROP_OLDEST else None
            if found is None:
                return gate
            out += found
        self._out = out
        return None

    def _stored(self, own: OwnSession, key: str) -> AppendedRun | None:
        """The run as its row says; one of another owner looks released: nothing can be appended to it."""
        found = self.con.execute("SELECT n, version, hold, status, owner FROM runs WHERE key = ?", (key,)).fetchall()
        if not found:
            return None
        n, version, hold, status, owner = found[0]
        return AppendedRun(key, n, version, hold, status, version, hold, status, release=owner != own.n)

    def _may_report(self, own: OwnSession, report: Report) -> bool:
        return self._exists(
            "SELECT 1 FROM tasks t JOIN runs r ON r.n = t.run WHERE r.key = ? AND t.number = ? AND t.lease = ?"
            " AND t.session = ? AND t.state = 3 AND t.interrupt = 0",
            report.input.key,
            report.number,
            report.lease,
            own.n,
        )

    def _exists(self, sql: str, *values: str | int) -> bool:
        return bool(self.con.execute(sql, values).fetchall())

    # -- rows of runs ----------------------------------------------------------------------------------

    def _write_runs(self, own: OwnSession, runs: dict[str, AppendedRun]) -> bool:
        """Write the rows of the runs; False if one of them is not as believed."""
        plain: list[Values] = []
        whole: list[Values] = []
        made: list[AppendedRun] = []
        me = own.n
        for run in runs.values():
            if run.made is not None:
                made.append(run)
            elif run.release or run.status != run.status_was or run.hold != run.hold_was:
                owner = 0 if run.release else me
                whole.append(
                    (
                        run.version,
                        run.time,
                        run.hold,
                        run.status,
                        owner,
                        run.n,
                        run.version_was,
                        me,
                        run.hold_was,
                        run.status_was,
                    )
                )
            else:
                plain.append((run.version, run.time, run.n, run.version_was, me, run.hold_was, run.status_was))
        con = self.con
        before = con.total_changes()
        if plain:
            plain.sort(key=_third)
            con.executemany(_UPDATE, plain)
        if whole:
            whole.sort(key=_sixth)
            con.executemany(_UPDATE_ALL, whole)
        if con.total_changes() - before != len(plain) + len(whole):
            return False
        if whole:
            for run in runs.values():
                if run.hold_was and not run.hold:
                    unpark(con, self.limits, run.n)
        return self._insert_runs(me, made) if made else True

    def _insert_runs(self, me: int, made: list[AppendedRun]) -> bool:
        con = self.con
        ((n,),) = con.execute(
            "SELECT max(coalesce((SELECT max(n) FROM runs), 0), coalesce((SELECT max(n) FROM tombstones), 0))"
        )
        assert isinstance(n, int)
        plans = self._enter_plans(made)
        rows: list[Values] = []
        heads: list[tuple[int, str]] = []
        labels: list[tuple[str, str, int]] = []
        for run in made:
            assert run.made is not None
            head = run.made.head
            assert head is not None
            n += 1
            run.n = n
            owner = 0 if run.release else me
            text = _encode(head.labels).decode() if head.labels else ""
            rows.append(
                (
                    n,
                    run.key,
                    head.id,
                    head.workflow,
                    plans[head.plan],
                    run.status,
                    run.hold,
                    run.version,
                    owner,
                    text,
                    head.created_at,
                    run.time,
                    head.parent,
                    head.name,
                    _encode(head.metadata).decode() if head.metadata else "",
                )
            )
            heads.append((n, _encode(head).decode()))
            labels += [(name, value, n) for name, value in head.labels.items()]
        before = con.total_changes()
        con.executemany(_INSERT_RUN, rows)
        if con.total_changes() - before != len(rows):
            return False
        con.executemany("INSERT INTO heads (run, head) VALUES (?, ?)", heads)
        if labels:
            con.executemany("INSERT INTO labels (name, value, run) VALUES (?, ?, ?)", sorted(labels))
        self._made += made
        return True

    def _enter_plans(self, made: list[AppendedRun]) -> dict[str, int]:
        """Count the uses of the new runs' plans; their numbers by hash."""
        con = self.con
        uses: dict[str, int] = {}
        bodies: dict[str, bytes] = {}
        for run in made:
            assert run.made is not None
            assert run.made.head is not None
            name = run.made.head.plan
            uses[name] = uses.get(name, 0) + 1
            bodies[name] = run.made.plan or b""
        plans: dict[str, int] = {}
        for name, count in uses.items():
            found = con.execute("SELECT n FROM plans WHERE hash = ?", (name,)).fetchall()
            if found:
                plans[name] = found[0][0]
                con.execute("UPDATE plans SET uses = uses + ? WHERE n = ?", (count, plans[name]))
            else:
                con.execute("INSERT INTO plans (hash, uses, body) VALUES (?, ?, ?)", (name, count, bodies[name]))
                plans[name] = con.last_insert_rowid()
        return plans


def _new_run(append: Append) -> AppendedRun:
    return AppendedRun(append.key, 0, 0, 0, RUNNING, 0, 0, RUNNING, made=append)


def _third(row: Values) -> Any:
    return row[2]


def _sixth(row: Values) -> Any:
    return row[5]
