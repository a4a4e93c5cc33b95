"""Reads of the in-process store: the `Reader` port over `MemoryData`, which the writing store extends."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from treadle.core.events import encode_events
from treadle.core.tables import FAILED
from treadle.store.base import (
    Health,
    Loaded,
    RunHead,
    RunQuery,
    RunRow,
    SessionRow,
    StepAnswer,
    StepRow,
    TaskRow,
)
from treadle.store.memory_data import MemoryData, StoredRun, TextRow, matches, problems_of, run_row
from treadle.store.memory_lines import Entry
from treadle.store.memory_queues import Queue
from treadle.store.queues import Bucket, KeyRow, QueueRow

_FOUND_AT_MOST = 20


class MemoryReader:
    """Consistent reads of a `MemoryData`. See `store.base.Reader`."""

    __slots__ = ("data", "durability")

    def __init__(self, data: MemoryData | None = None) -> None:
        self.data = MemoryData() if data is None else data
        self.durability = "process"

    def close(self) -> None:
        """There is nothing to close; the data lives on while a handle holds it."""

    def find(self, id_or_prefix: str) -> list[str]:
        """Keys of the runs with this id, or whose key or id starts with it, newest first."""
        data = self.data
        with data.lock:
            key = data.ids.get(id_or_prefix)
            if key is not None:
                return [key]
            found = [
                run.key
                for run in data.runs.values()
                if run.key.startswith(id_or_prefix) or run.head.id.startswith(id_or_prefix)
            ]
            return sorted(found, reverse=True)[:_FOUND_AT_MOST]

    def load(self, key: str) -> Loaded | None:
        """The whole run, or None."""
        with self.data.lock:
            run = self.data.runs.get(key)
            return None if run is None else self._load(run)

    def head(self, key: str) -> tuple[RunHead, bytes] | None:
        """The head and the encoded plan of a run, or None."""
        with self.data.lock:
            run = self.data.runs.get(key)
            return None if run is None else (run.head, run.plan)

    def _load(self, run: StoredRun) -> Loaded:
        return Loaded(
            head=run.head,
            plan=run.plan,
            version=run.version,
            status=run.status,
            hold=run.hold,
            owner=run.owner.id if run.owner else "",
            rows=self._rows(run, 0, run.version),
            inbox=list(run.inbox.values()),
            tasks=[self.data.task_row(entry) for entry in run.tasks.values()],
        )

    def _rows(self, run: StoredRun, after: int, limit: int) -> list[TextRow]:
        # The row of version n is at index n - 1: nothing cuts a journal but deletion.
        texts: list[TextRow] = []
        for index in range(max(after, 0), min(max(after, 0) + limit, run.version)):
            row = run.rows[index]
            if not isinstance(row.events, str):
                row.events = encode_events(row.events)
            texts.append((row.version, row.commit_id, row.time, row.events))
        return texts

    def rows(self, key: str, after: int, limit: int = 1000) -> list[TextRow]:
        """Journal rows with a version above `after`, in order."""
        with self.data.lock:
            run = self.data.runs.get(key)
            return [] if run is None else self._rows(run, after, limit)

    def run(self, key: str) -> RunRow | None:
        """The run's row, or None."""
        with self.data.lock:
            run = self.data.runs.get(key)
            return None if run is None else run_row(run)

    def step(self, key: str, address: str) -> StepAnswer:
        """What is known of one step."""
        with self.data.lock:
            run = self.data.runs.get(key)
            if run is None:
                return StepAnswer("", 0)
            return StepAnswer(run.status, run.version, run.by_address.get(address))

    def runs(self, query: RunQuery) -> list[RunRow]:
        """Runs by key, newest first."""
        with self.data.lock:
            found: list[RunRow] = []
            for key in sorted(self.data.runs, reverse=True):
                if len(found) >= query.limit:
                    break
                if (not query.after or key < query.after) and matches(run := self.data.runs[key], query):
                    found.append(run_row(run))
            return found

    def dead(self, limit: int = 100) -> list[tuple[RunRow, StepRow]]:
        """Steps that failed for good, newest first."""
        with self.data.lock:
            failed = [
                (row.finished_at, run.key, row.number, run, row)
                for run in self.data.runs.values()
                for row in run.steps.values()
                if row.status == FAILED
            ]
            failed.sort(key=lambda found: found[:3], reverse=True)
            return [(run_row(run), row) for *_, run, row in failed[:limit]]

    def payloads(self, key: str, digests: Iterable[str]) -> dict[str, bytes]:
        """Payload rows of a run by digest; missing ones are absent."""
        with self.data.lock:
            run = self.data.runs.get(key)
            if run is None:
                return {}
            return {digest: run.payloads[digest] for digest in digests if digest in run.payloads}

    def sessions(self) -> list[SessionRow]:
        """All living sessions, oldest first."""
        with self.data.lock:
            return [msgspec.structs.replace(own.row) for own in self.data.sessions.values()]

    def waiting(self, limit: int = 100) -> list[TaskRow]:
        """Tasks that wait, in claim order; those not due and those of held runs included."""
        with self.data.lock:
            entries = [entry for run in self.data.runs.values() for entry in run.tasks.values() if not entry.session]
            entries.sort(key=lambda entry: (-entry.task.priority, entry.age))
            return [self.data.task_row(entry) for entry in entries[:limit]]

    def queues(self, now: float) -> list[QueueRow]:
        """Queues that were defined, or that have tasks, by name."""
        with self.data.lock:
            rows: dict[str, QueueRow] = {}
            for queue in self.data.waiting.limited.values():
                rows[queue.name] = QueueRow(
                    name=queue.name,
                    defined=queue.defined,
                    override=queue.override,
                    paused=queue.paused,
                    version=queue.version,
                    bucket=None if queue.bucket is None else msgspec.structs.replace(queue.bucket),
                )
            for entry in self._entries():
                name = entry.task.queue
                row = rows.get(name) or rows.setdefault(name, QueueRow(name=name))
                if entry.session:
                    row.running += 1
                elif entry.task.not_before > now:
                    row.delayed += 1
                else:
                    row.waiting += 1
                    row.oldest_at = min(row.oldest_at or entry.since, entry.since)
            return sorted(rows.values(), key=lambda row: row.name)

    def queue_keys(self, queue: str, *, key: str | None = None, limit: int = 100) -> list[KeyRow]:
        """Keys of a queue's tasks, those with the most waiting ones first, or one of them."""
        with self.data.lock:
            rows: dict[str, KeyRow] = {} if key is None else {key: KeyRow(key=key)}
            stored = self.data.waiting.queues.get(queue)
            for entry in self._entries():
                name = entry.task.key
                if entry.task.queue != queue or not name or key not in (None, name):
                    continue
                row = rows.get(name) or rows.setdefault(name, KeyRow(key=name))
                if entry.session:
                    row.running += 1
                else:
                    row.waiting += 1
            for name, row in rows.items():
                row.bucket = _bucket_of(stored, name)
            return sorted(rows.values(), key=lambda row: (-row.waiting, -row.running, row.key))[:limit]

    def buckets(self, queue: str) -> dict[str, Bucket]:
        """What is stored of what a queue's rates allow."""
        with self.data.lock:
            stored = self.data.waiting.queues.get(queue)
            return {} if stored is None else stored.buckets()

    def holders(self, queue: str, *, key: str | None = None, limit: int = 20) -> list[TaskRow]:
        """Leased tasks of a queue (or of one key in it), those that were leased first."""
        with self.data.lock:
            found = [
                self.data.task_row(entry)
                for entry in self._entries()
                if entry.session and entry.task.queue == queue and key in (None, entry.task.key)
            ]
            return sorted(found, key=lambda row: (row.started_at, row.task.lease))[:limit]

    def _entries(self) -> list[Entry]:
        return [entry for run in self.data.runs.values() for entry in run.tasks.values()]

    def line(self, name: str) -> list[str]:
        """Keys of the runs in the line of a name."""
        with self.data.lock:
            return list(self.data.lines.get(name, ()))

    def committed(self, key: str, version: int) -> int | None:
        """The commit id of the journal row of that version, None if there is none."""
        with self.data.lock:
            run = self.data.runs.get(key)
            return run.rows[version - 1].commit_id if run is not None and 0 < version <= run.version else None

    def check(self) -> Health:
        """Compare the store's indexes with each other."""
        data = self.data
        with data.lock:
            facts = {
                "store": "memory",
                "durability": self.durability,
                "runs": str(len(data.runs)),
                "sessions": str(len(data.sessions)),
            }
            return Health(problems_of(data), facts)


def _bucket_of(queue: Queue | None, name: str) -> Bucket | None:
    key = None if queue is None else queue.keys.get(name)
    return None if key is None or key.bucket is None else msgspec.structs.replace(key.bucket)
