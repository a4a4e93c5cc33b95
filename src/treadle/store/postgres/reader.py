"""Reads of a PostgreSQL store: the `Reader` port over one connection, which the writing store extends."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from treadle.store.base import (
    Health,
    InboxInput,
    Loaded,
    RunHead,
    RunQuery,
    RunRow,
    SessionRow,
    StepAnswer,
    StepRow,
    TaskRow,
)
from treadle.store.postgres.connection import Link, Record
from treadle.store.postgres.definitions import BUCKETS
from treadle.store.postgres.health import examine
from treadle.store.postgres.location import Location
from treadle.store.postgres.names import LINE
from treadle.store.queues import Bucket, KeyRow, QueueRow
from treadle.store.rows import decode_head, key_rows, queue_rows, run_row, task_row

_FOUND_AT_MOST = 20
# No text of 512 bytes that starts with a prefix sorts behind the prefix and so many of the last character.
_LAST = "\U0010ffff" * 130

# An owner or holder counts while its session lives.
_OWNER = "coalesce((SELECT s.id FROM @sessions s WHERE s.n = r.owner AND NOT s.ended), '')"
_RUN_COLUMNS = (
    f"r.key, r.id, r.workflow, r.status, r.hold, r.version, {_OWNER}, r.labels, r.created_at, r.updated_at,"
    " (SELECT count(*) FROM @tasks t WHERE t.run = r.n AND t.state = 3), r.unwound, r.parent, r.name,"
    " r.metadata"
)
_RUN_WIDTH = len(RunRow.__struct_fields__)
TASK_COLUMNS = (
    "r.key, t.number, t.address, t.generation, t.attempt, t.action, t.queue, t.priority, t.not_before, t.call, r.id,"
    " t.lease, t.key, t.target, coalesce(s.id, ''), coalesce(s.worker, ''),"
    " CASE t.state WHEN 3 THEN t.started_at ELSE 0.0 END, t.interrupt, t.progress"
)
_HOLDER = "LEFT JOIN @sessions s ON s.n = t.session AND t.state = 3"
STEP_FIELDS = StepRow.__struct_fields__
_STEP_COLUMNS = ", ".join(f"s.{name}" for name in STEP_FIELDS)
# A null character is legal in JSON, and PostgreSQL refuses to read it.
_METADATA = "replace(r.metadata, '\\u0000', '\\ufffd')::json"
_SPEAKS_OF = (
    "(strpos(lower(r.id), {0}) > 0 OR strpos(lower(r.name), {0}) > 0 OR strpos(lower(r.workflow), {0}) > 0"
    f" OR (r.metadata <> '' AND EXISTS (SELECT 1 FROM json_each_text({_METADATA}) m WHERE strpos(lower("
    'm.value COLLATE "C"), {0}) > 0)))'
)
_DUE = "state < 3 AND not_before <= %s"
QUEUES = (
    "SELECT q.name, q.defined, q.override, q.paused, q.version, b.allowance, b.at"
    " FROM @queues q LEFT JOIN @buckets b ON b.queue = q.n AND b.key = ''"
)
TASKS = (
    f"SELECT queue, count(*) FILTER (WHERE {_DUE}), count(*) FILTER (WHERE state < 3 AND not_before > %s),"
    f" count(*) FILTER (WHERE state = 3), min(started_at) FILTER (WHERE {_DUE}) FROM @tasks GROUP BY queue"
)
KEYS = (
    "SELECT key, count(*) FILTER (WHERE state < 3) AS waiting, count(*) FILTER (WHERE state = 3) AS running"
    " FROM @tasks WHERE queue = %s AND key <> '' AND (%s::text IS NULL OR key = %s)"
    " GROUP BY key ORDER BY waiting DESC, running DESC, key LIMIT %s"
)
_LABEL_HASH = "hashtextextended({value}, hashtextextended({name}, 0))"


def _condition(query: RunQuery) -> tuple[list[str], list[Any]]:
    """What the rows of a query must fulfil, and the values for it."""
    where: list[str] = []
    values: list[Any] = []

    def want(sql: str, *given: str | float) -> None:
        where.append(sql)
        values.extend(given)

    speaks = _SPEAKS_OF.replace("{0}", 'lower(%s::text COLLATE "C")')
    for given, sql, found in (
        (query.status, "r.status = %s", (query.status,)),
        (query.workflow, "r.workflow = %s", (query.workflow,)),
        (query.id_prefix, "r.id BETWEEN %s AND %s", (query.id_prefix, query.id_prefix + _LAST)),
        (query.parent, "r.parent <> '' AND split_part(r.parent, '/', 1) = %s", (query.parent,)),
        # All that begins with the text and a slash; a zero is what follows the slash.
        (query.package, "r.workflow > %s AND r.workflow < %s", (query.package + "/", query.package + "0")),
        (query.text, speaks, (query.text,) * 4),
        (query.before, "r.updated_at < %s", (query.before,)),
        (query.after, "r.key < %s", (query.after,)),
    ):
        if given:
            want(sql, *found)
    for name, value in query.labels.items():
        hashes = f"{_LABEL_HASH.format(name='l.name', value='l.value')} = {_LABEL_HASH.format(name='%s', value='%s')}"
        labels = f"SELECT l.run FROM @labels l WHERE {hashes} AND l.name = %s AND l.value = %s"
        want(f"r.n IN ({labels})", value, name, name, value)
    for name, value in query.metadata.items():
        want(f"r.metadata <> '' AND ({_METADATA} ->> %s) = %s", name, value)
    return where, values


class PostgresReader:
    """Consistent reads of a PostgreSQL store. See `store.base.Reader`."""

    def __init__(self, location: Location, *, name: str = "treadle reader") -> None:
        self.location = location
        self._link = Link(location, name=name)

    def close(self) -> None:
        """Close the connection for good; a second time, or in a forked child, this does nothing."""
        self._link.end()

    def _all(self, sql: str, values: tuple[Any, ...] = ()) -> list[Record]:
        (found,) = self._link.read((sql, values))
        return found

    def _one(self, sql: str, values: tuple[Any, ...] = ()) -> Record | None:
        found = self._all(sql, values)
        return found[0] if found else None

    # -- runs ------------------------------------------------------------------------------------------

    def find(self, id_or_prefix: str) -> list[str]:
        """Keys of the runs with this id, or whose key or id starts with it, newest first."""
        last = id_or_prefix + _LAST
        exact, found = self._link.read(
            ("SELECT key FROM @runs WHERE id = %s", (id_or_prefix,)),
            (
                "SELECT key FROM @runs WHERE key BETWEEN %s AND %s"
                " UNION SELECT key FROM @runs WHERE id BETWEEN %s AND %s ORDER BY key DESC LIMIT %s",
                (id_or_prefix, last, id_or_prefix, last, _FOUND_AT_MOST),
            ),
        )
        return [key for (key,) in exact or found]

    def load(self, key: str) -> Loaded | None:
        """The whole run, or None."""
        n = "(SELECT n FROM @runs WHERE key = %s)"
        runs, rows, inbox, tasks = self._link.read(
            (
                f"SELECT h.head, p.body, r.version, r.status, r.hold, {_OWNER}"
                " FROM @runs r JOIN @heads h ON h.run = r.n JOIN @plans p ON p.n = r.plan WHERE r.key = %s",
                (key,),
            ),
            (f"SELECT version, commit_id, time, events FROM @journal WHERE run = {n} ORDER BY version", (key,)),
            (f"SELECT id, body FROM @inbox WHERE run = {n} ORDER BY seq", (key,)),
            (
                f"SELECT {TASK_COLUMNS} FROM @runs r JOIN @tasks t ON t.run = r.n {_HOLDER} WHERE r.key = %s"
                " ORDER BY t.number",
                (key,),
            ),
        )
        if not runs:
            return None
        ((head, plan, version, status, hold, owner),) = runs
        return Loaded(
            head=decode_head(head),
            plan=plan,
            version=version,
            status=status,
            hold=hold,
            owner=owner,
            rows=rows,
            inbox=[InboxInput(id, key, body) for id, body in inbox],
            tasks=[task_row(task) for task in tasks],
        )

    def head(self, key: str) -> tuple[RunHead, bytes] | None:
        """The head and the encoded plan of a run, or None."""
        record = self._one(
            "SELECT h.head, p.body FROM @runs r JOIN @heads h ON h.run = r.n JOIN @plans p ON p.n = r.plan"
            " WHERE r.key = %s",
            (key,),
        )
        return None if record is None else (decode_head(record[0]), record[1])

    def rows(self, key: str, after: int, limit: int = 1000) -> list[tuple[int, int, float, str]]:
        """Journal rows with a version above `after`, in order."""
        return self._all(
            "SELECT j.version, j.commit_id, j.time, j.events FROM @runs r JOIN @journal j ON j.run = r.n"
            " WHERE r.key = %s AND j.version > %s ORDER BY j.version LIMIT %s",
            (key, after, limit),
        )

    def run(self, key: str) -> RunRow | None:
        """The run's row, or None."""
        record = self._one(f"SELECT {_RUN_COLUMNS} FROM @runs r WHERE r.key = %s", (key,))
        return None if record is None else run_row(record)

    def runs(self, query: RunQuery) -> list[RunRow]:
        """Runs by key, newest first."""
        where, values = _condition(query)
        condition = f"WHERE {' AND '.join(where)}" if where else ""
        sql = f"SELECT {_RUN_COLUMNS} FROM @runs r {condition} ORDER BY r.key DESC LIMIT %s"
        return [run_row(record) for record in self._all(sql, (*values, query.limit))]

    # -- steps, tasks, payloads ------------------------------------------------------------------------

    def step(self, key: str, address: str) -> StepAnswer:
        """What is known of one step."""
        record = self._one(
            f"SELECT r.status, r.version, {_STEP_COLUMNS} FROM @runs r LEFT JOIN @steps s ON s.run = r.n"
            " AND hashtextextended(s.address, 0) = hashtextextended(%s, 0) AND s.address = %s WHERE r.key = %s",
            (address, address, key),
        )
        if record is None:
            return StepAnswer("", 0)
        return StepAnswer(record[0], record[1], None if record[2] is None else StepRow(*record[2:]))

    def dead(self, limit: int = 100) -> list[tuple[RunRow, StepRow]]:
        """Steps that failed for good, newest first."""
        found = self._all(
            f"SELECT {_RUN_COLUMNS}, {_STEP_COLUMNS} FROM @steps s JOIN @runs r ON r.n = s.run"
            " WHERE s.status = 'failed' ORDER BY s.finished_at DESC, r.key DESC, s.number DESC LIMIT %s",
            (limit,),
        )
        return [(run_row(record[:_RUN_WIDTH]), StepRow(*record[_RUN_WIDTH:])) for record in found]

    def payloads(self, key: str, digests: Iterable[str]) -> dict[str, bytes]:
        """Payload rows of a run by digest; missing ones are absent."""
        found = self._all(
            "SELECT p.digest, p.body FROM @runs r JOIN @payloads p ON p.run = r.n"
            " WHERE r.key = %s AND p.digest = ANY (%s)",
            (key, list(digests)),
        )
        return dict(found)

    def waiting(self, limit: int = 100) -> list[TaskRow]:
        """Tasks that wait, in claim order; those not due and those of held runs included."""
        found = self._all(
            f"SELECT {TASK_COLUMNS} FROM @tasks t JOIN @runs r ON r.n = t.run {_HOLDER}"
            " WHERE t.state < 3 ORDER BY t.priority DESC, t.age LIMIT %s",
            (limit,),
        )
        return [task_row(record) for record in found]

    def inbox(self, key: str) -> list[InboxInput]:
        """The inputs that wait, oldest first."""
        found = self._all(
            "SELECT i.id, i.body FROM @runs r JOIN @inbox i ON i.run = r.n WHERE r.key = %s ORDER BY i.seq", (key,)
        )
        return [InboxInput(id, key, body) for id, body in found]

    # -- the store -------------------------------------------------------------------------------------

    def sessions(self) -> list[SessionRow]:
        """All living sessions, oldest first."""
        found = self._all(
            "SELECT id, worker, wake, beat, waits, actions, info, targets FROM @sessions WHERE NOT ended ORDER BY n"
        )
        return [
            SessionRow(id, worker, wake, beat, waits, json.loads(actions), json.loads(info), json.loads(targets))
            for id, worker, wake, beat, waits, actions, info, targets in found
        ]

    def queues(self, now: float) -> list[QueueRow]:
        """Queues that were defined or have tasks, by name."""
        defined, used = self._link.read((QUEUES, ()), (TASKS, (now,) * 3))
        return queue_rows(defined, used)

    def queue_keys(self, queue: str, *, key: str | None = None, limit: int = 100) -> list[KeyRow]:
        """Keys of a queue's tasks, those with the most waiting ones first, or the one that is asked for."""
        found, buckets = self._link.read((KEYS, (queue, key, key, limit)), (BUCKETS, (queue,)))
        return key_rows(found, buckets, key)

    def buckets(self, queue: str) -> dict[str, Bucket]:
        """What is stored of what a queue's rates allow."""
        return {key: Bucket(allowance, at) for key, allowance, at in self._all(BUCKETS, (queue,))}

    def line(self, name: str) -> list[str]:
        """Keys of the runs in the line of a name."""
        return [key for (key,) in self._all(LINE, (name,))]

    def holders(self, queue: str, *, key: str | None = None, limit: int = 20) -> list[TaskRow]:
        """Leased tasks of a queue (or of one key in it), those that were leased first."""
        found = self._all(
            f"SELECT {TASK_COLUMNS} FROM @tasks t JOIN @runs r ON r.n = t.run {_HOLDER}"
            " WHERE t.state = 3 AND t.queue = %s AND (%s::text IS NULL OR t.key = %s)"
            " ORDER BY t.started_at, t.lease LIMIT %s",
            (queue, key, key, limit),
        )
        return [task_row(record) for record in found]

    def committed(self, key: str, version: int) -> int | None:
        """The commit id of the journal row of that version, None if there is none."""
        record = self._one(
            "SELECT j.commit_id FROM @runs r JOIN @journal j ON j.run = r.n WHERE r.key = %s AND j.version = %s",
            (key, version),
        )
        return None if record is None else record[0]

    def check(self) -> Health:
        """Examine the references between rows, and how the server is configured."""
        return examine(self._link)
