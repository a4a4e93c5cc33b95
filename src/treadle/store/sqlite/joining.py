"""Starts and inputs in transactions of the caller: rows written by the caller's own connection to the store's file.

The connection is one of `apsw`, as the store's own. The standard library's `sqlite3` is another copy of SQLite, and two
copies in one process corrupt a file that both have open: POSIX gives up all locks of a process on a file when any
descriptor of it is closed, and neither copy knows of the other's ("How To Corrupt An SQLite Database File", 2.2.1).

The connection holds the file's one lock for writing from here to its commit, and so keeps all others from writing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgspec

from treadle.core.tables import LIVE
from treadle.errors import UsageError
from treadle.store.joined import JoinedInput, JoinedStart
from treadle.store.ledger import in_force
from treadle.store.sqlite.limits import is_full
from treadle.store.sqlite.names import change_names, holder_of_names

_encode = msgspec.json.Encoder().encode


def join(path: str, transaction: Any, start: JoinedStart) -> str:
    """See `store.joined.JoinsTransactions`."""
    con = _checked(path, transaction)
    head = start.head
    # The lock for writing comes with the first write; what is read after it stays so.
    con.execute("UPDATE counters SET value = value WHERE name = 'age'")
    if start.queues and (full := _full(con, start.queues)):
        return f"full {full}"
    if holder := holder_of_names(con, head.key, start.names):
        return f"held {holder}"
    if con.execute("SELECT 1 FROM runs WHERE id = ? OR key = ?", (head.id, head.key)).fetchall():
        return "exists"
    ((n,),) = con.execute(
        "SELECT 1 + max(coalesce((SELECT max(n) FROM runs), 0), coalesce((SELECT max(n) FROM tombstones), 0))"
    ).fetchall()
    found = con.execute("SELECT n FROM plans WHERE hash = ?", (head.plan,)).fetchall()
    if found:
        con.execute("UPDATE plans SET uses = uses + 1 WHERE n = ?", found[0])
    else:
        con.execute("INSERT INTO plans (hash, uses, body) VALUES (?, 1, ?)", (head.plan, start.plan))
        found = con.execute("SELECT n FROM plans WHERE hash = ?", (head.plan,)).fetchall()
    con.execute(
        "INSERT INTO runs (n, key, id, workflow, plan, status, hold, version, owner, labels, created_at, updated_at,"
        " parent, name, metadata) VALUES (?, ?, ?, ?, ?, 'running', 0, 1, 0, ?, ?, ?, ?, ?, ?)",
        (
            n,
            head.key,
            head.id,
            head.workflow,
            found[0][0],
            _encode(head.labels).decode() if head.labels else "",
            head.created_at,
            start.time,
            head.parent,
            head.name,
            _encode(head.metadata).decode() if head.metadata else "",
        ),
    )
    con.execute("INSERT INTO heads (run, head) VALUES (?, ?)", (n, _encode(head).decode()))
    con.executemany(
        "INSERT INTO labels (name, value, run) VALUES (?, ?, ?)",
        sorted((name, value, n) for name, value in head.labels.items()),
    )
    con.execute(
        "INSERT INTO journal (run, version, commit_id, time, session, events) VALUES (?, 1, ?, ?, 0, ?)",
        (n, start.commit_id, start.time, start.events),
    )
    con.executemany(
        "INSERT OR IGNORE INTO payloads (run, digest, body) VALUES (?, ?, ?)",
        [(n, digest, body) for digest, body in start.payloads],
    )
    con.execute("INSERT INTO inbox (run, id, body) VALUES (?, ?, ?)", (n, start.look.id, start.look.body))
    change_names(con, n, head.key, start.names)
    return "made"


def join_input(path: str, transaction: Any, given: JoinedInput) -> str:
    """See `store.joined.JoinsTransactions`."""
    con, item = _checked(path, transaction), given.item
    con.execute("UPDATE counters SET value = value WHERE name = 'age'")
    found = con.execute("SELECT n, status FROM runs WHERE key = ?", (item.key,)).fetchall()
    if not found:
        return "missing"
    ((n, status),) = found
    if status not in LIVE:
        return str(status)
    con.execute("INSERT OR IGNORE INTO inbox (run, id, body) VALUES (?, ?, ?)", (n, item.id, item.body))
    return "posted"


def _full(con: Any, queues: Sequence[str]) -> str:
    """The first of the queues in which as many due tasks wait as may, empty if there is none."""
    for name in queues:
        for n, defined, override in con.execute("SELECT n, defined, override FROM queues WHERE name = ?", (name,)):
            if is_full(con, n, in_force(defined, override).length):
                return name
    return ""


def _checked(path: str, transaction: Any) -> Any:
    """The connection, if it is one to the store's file in which statements can be executed."""
    kind = type(transaction).__module__
    if kind == "sqlite3":
        raise UsageError(
            "transaction= is a connection of the standard library's sqlite3: that is another copy of SQLite than the"
            " store's, and two copies in one process corrupt a file that both have open; use apsw for this file"
        )
    if kind != "apsw" or not hasattr(transaction, "executemany"):
        raise UsageError(
            f"transaction={transaction!r} is no apsw connection; runs of this store are reached through one to its file"
        )
    rows = transaction.execute("PRAGMA database_list").fetchall()
    if not any(name == "main" and file and os.path.samefile(file, path) for _, name, file in rows):
        raise UsageError(f"the connection given as transaction= is to another file than the store's, {path}")
    return transaction
