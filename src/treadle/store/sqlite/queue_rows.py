"""What operators see of the queues of a SQLite store. It reads all tasks of a queue, so it may be slow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from treadle.store.queues import Bucket, KeyRow, QueueLimits, QueueRow
from treadle.store.sqlite.connection import Record

_QUEUES = """
SELECT q.name, q.defined, q.override, q.paused, q.version, b.allowance, b.at
FROM queues q LEFT JOIN buckets b ON b.queue = q.n AND b.key = ''
"""
_TASKS = """
SELECT queue, count(*) FILTER (WHERE state < 3 AND not_before <= ?1), count(*) FILTER (WHERE state < 3 AND
    not_before > ?1), count(*) FILTER (WHERE state = 3), min(started_at) FILTER (WHERE state < 3 AND not_before <= ?1)
FROM tasks GROUP BY queue
"""
_KEYS = """
SELECT key, count(*) FILTER (WHERE state < 3), count(*) FILTER (WHERE state = 3) FROM tasks
WHERE queue = ?1 AND key != '' AND (?2 IS NULL OR key = ?2) GROUP BY key ORDER BY 2 DESC, 3 DESC, 1 LIMIT ?3
"""
_BUCKET = "SELECT b.allowance, b.at FROM buckets b JOIN queues q ON q.n = b.queue WHERE q.name = ? AND b.key = ?"

_decode = msgspec.json.Decoder(QueueLimits).decode
All = Callable[[str, tuple[Any, ...]], list[Record]]


def read_queues(read: All, now: float) -> list[QueueRow]:
    """Queues that were defined, or that have tasks, by name."""
    rows: dict[str, QueueRow] = {}
    for name, defined, override, paused, version, allowance, at in read(_QUEUES, ()):
        rows[name] = QueueRow(
            name=name,
            defined=None if defined is None else _decode(defined),
            override=None if override is None else _decode(override),
            paused=bool(paused),
            version=version,
            bucket=None if at is None else Bucket(allowance, at),
        )
    for name, waiting, delayed, running, oldest_at in read(_TASKS, (now,)):
        row = rows.setdefault(name, QueueRow(name=name))
        row.waiting, row.delayed, row.running, row.oldest_at = waiting, delayed, running, oldest_at or 0.0
    return [rows[name] for name in sorted(rows)]


def read_keys(read: All, queue: str, key: str | None, limit: int) -> list[KeyRow]:
    """Keys of a queue's tasks, those with the most waiting ones first, or one of them."""
    rows = [
        KeyRow(key=name, waiting=waiting, running=running)
        for name, waiting, running in read(_KEYS, (queue, key, limit))
    ]
    if key is not None and not rows:
        rows = [KeyRow(key=key)]
    for row in rows:
        found = read(_BUCKET, (queue, row.key))
        row.bucket = Bucket(*found[0]) if found else None
    return rows
