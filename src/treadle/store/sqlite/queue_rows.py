"""What operators see of the queues of a SQLite store. It reads all tasks of a queue, so it may be slow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treadle.store.queues import Bucket, KeyRow, QueueRow
from treadle.store.rows import key_rows, queue_rows
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
_BUCKETS = "SELECT b.key, b.allowance, b.at FROM buckets b JOIN queues q ON q.n = b.queue WHERE q.name = ?"

All = Callable[[str, tuple[Any, ...]], list[Record]]


def read_queues(read: All, now: float) -> list[QueueRow]:
    """Queues that were defined, or that have tasks, by name."""
    return queue_rows(read(_QUEUES, ()), read(_TASKS, (now,)))


def read_keys(read: All, queue: str, key: str | None, limit: int) -> list[KeyRow]:
    """Keys of a queue's tasks, those with the most waiting ones first, or one of them."""
    return key_rows(read(_KEYS, (queue, key, limit)), read(_BUCKETS, (queue,)), key)


def read_buckets(read: All, queue: str) -> dict[str, Bucket]:
    """What is stored of what a queue's rates allow."""
    return {key: Bucket(allowance, at) for key, allowance, at in read(_BUCKETS, (queue,))}
