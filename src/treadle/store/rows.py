"""Rows of stores that keep their data in tables, as what they stand for: tasks, runs, queues and keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from treadle.core.commands import Call, Task
from treadle.store.base import RunHead, RunRow, TaskRow
from treadle.store.ledger import decode_limits
from treadle.store.queues import Bucket, KeyRow, QueueRow

Row = Sequence[Any]

_decode_call = msgspec.json.Decoder(Call).decode
_decode_texts = msgspec.json.Decoder(dict[str, str]).decode
decode_head = msgspec.json.Decoder(RunHead).decode


def task_of(record: Row) -> Task:
    """The task whose fields are first in a record; its call is JSON."""
    run, number, address, generation, attempt, action, queue, priority, not_before, call, *rest = record[:14]
    return Task(
        run, number, address, generation, attempt, action, queue, priority, not_before, _decode_call(call), *rest
    )


def task_row(record: Row) -> TaskRow:
    """A task as stored: behind its fields its session, worker, time of the lease, interrupt and progress."""
    return TaskRow(task_of(record), record[14], record[15], record[16], record[17] == 1, record[18])


def run_row(record: Row) -> RunRow:
    """A run in a listing. Its labels and metadata are JSON objects, or empty text for none."""
    facts = list(record)
    for at in (7, -1):
        facts[at] = _decode_texts(facts[at]) if facts[at] else {}
    return RunRow(*facts)


def queue_rows(defined: Sequence[Row], used: Sequence[Row]) -> list[QueueRow]:
    """Queues that were defined, or that have tasks, by name.

    `defined` has name, definition, override, whether it is paused, version, allowance and time of the bucket; `used`
    has name, tasks due, tasks not due, tasks leased, and since when the oldest due one waits.
    """
    rows: dict[str, QueueRow] = {}
    for name, limits, override, paused, version, allowance, at in defined:
        rows[name] = QueueRow(
            name=name,
            defined=None if limits is None else decode_limits(limits),
            override=None if override is None else decode_limits(override),
            paused=bool(paused),
            version=version,
            bucket=None if at is None else Bucket(allowance, at),
        )
    for name, waiting, delayed, running, oldest_at in used:
        row = rows.setdefault(name, QueueRow(name=name))
        row.waiting, row.delayed, row.running, row.oldest_at = waiting, delayed, running, oldest_at or 0.0
    return [rows[name] for name in sorted(rows)]


def key_rows(found: Sequence[Row], buckets: Sequence[Row], key: str | None) -> list[KeyRow]:
    """Keys (with tasks that wait and that are leased) and their buckets; the one that was asked for is among them."""
    rows = [KeyRow(key=name, waiting=waiting, running=running) for name, waiting, running in found]
    if key is not None and not rows:
        rows = [KeyRow(key=key)]
    known = {name: Bucket(allowance, at) for name, allowance, at in buckets}
    for row in rows:
        row.bucket = known.get(row.key)
    return rows
