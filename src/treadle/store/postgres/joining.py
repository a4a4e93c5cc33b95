"""Starts in transactions of the caller: one call of a function of the schema, through the caller's own connection.

The function writes what an append writes that makes a run, but for tasks: these follow when the run is decided, by
whoever finds its input after the commit. NOTIFY is transactional, so whoever is to be woken is woken by the commit.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, cast

import msgspec

from treadle.core.inputs import Cancel, Turn, encode_input
from treadle.errors import UsageError
from treadle.store.joined import JoinedStart
from treadle.store.postgres.connection import AsyncConnection, SyncConnection
from treadle.store.postgres.functions import HELD, Function

START = Function(
    "start_1",
    """
    key text
    id text
    workflow text
    plan_hash text
    plan_body bytea
    labels text
    label_names text[]
    label_values text[]
    created double precision
    at double precision
    commit_id bigint
    parent text
    name text
    metadata text
    head text
    events text
    digests text[]
    bodies bytea[]
    look_id text
    look_body bytea
    names text[]
    verbs text[]
    turns bytea[]
    cancel bytea
    wake text
    """,
    "text",
    f"""
    -- The numbers of a range of its own, since none of a session's is at hand.
    n := nextval('@run_ranges') << 12;
    BEGIN
        PERFORM @hold_names_1(n, names, verbs);
    EXCEPTION WHEN SQLSTATE '{HELD}' THEN
        GET STACKED DIAGNOSTICS holder = PG_EXCEPTION_DETAIL;
        RETURN 'held ' || holder;
    END;
    PERFORM pg_advisory_xact_lock_shared('@plans'::regclass::integer, 1);
    INSERT INTO @plans (hash, body) VALUES (plan_hash, plan_body) ON CONFLICT (hash) DO NOTHING;
    INSERT INTO @runs (n, key, id, workflow, plan, status, unwound, hold, version, owner, labels, created_at,
        updated_at, parent, name, metadata)
    SELECT n, key, id, workflow, p.n, 'running', '', 0, 1, 0, labels, created, at, parent, name, metadata
    FROM @plans p WHERE p.hash = plan_hash
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN RETURN 'exists'; END IF;
    INSERT INTO @heads (run, head) VALUES (n, head);
    INSERT INTO @labels (run, name, value) SELECT n, * FROM unnest(label_names, label_values);
    INSERT INTO @journal (run, version, commit_id, time, session, events) VALUES (n, 1, commit_id, at, 0, events);
    INSERT INTO @payloads (run, digest, body) SELECT n, * FROM unnest(digests, bodies) ON CONFLICT DO NOTHING;
    INSERT INTO @inbox (run, id, body) VALUES (n, look_id, look_body);
    PERFORM @change_names_1(n, names, verbs, turns, cancel);
    IF wake <> '' THEN PERFORM pg_notify(wake, ''); END IF;
    RETURN 'made';
    """,
    declare="n bigint; holder text;",
)

_encode = msgspec.json.Encoder().encode


def join(schema: str, transaction: Any, start: JoinedStart) -> str | Awaitable[str]:
    """See `store.joined.JoinsTransactions`."""
    if isinstance(transaction, SyncConnection):
        con = cast("Any", transaction)
        if not con.execute(*_known(schema)).fetchall()[0][0]:
            raise _stranger()
        return str(con.execute(*_call(schema, start)).fetchall()[0][0])
    if isinstance(transaction, AsyncConnection):
        return _join(schema, transaction, start)
    raise UsageError(
        f"transaction={transaction!r} is no psycopg connection; runs of this store are started through one to its"
        " database"
    )


async def _join(schema: str, transaction: Any, start: JoinedStart) -> str:
    cursor = await transaction.execute(*_known(schema))
    if not (await cursor.fetchall())[0][0]:
        raise _stranger()
    cursor = await transaction.execute(*_call(schema, start))
    return str((await cursor.fetchall())[0][0])


def _known(schema: str) -> tuple[bytes, list[Any]]:
    return b"SELECT to_regclass(%s) IS NOT NULL", [f"{schema}plans"]


def _stranger() -> UsageError:
    return UsageError(
        "the connection given as transaction= is to another database than the store's, or not allowed there"
    )


def _call(schema: str, start: JoinedStart) -> tuple[bytes, list[Any]]:
    head = start.head
    names = [name for name, _ in start.names]
    values = [
        head.key,
        head.id,
        head.workflow,
        head.plan,
        start.plan,
        _encode(head.labels).decode() if head.labels else "",
        list(head.labels),
        list(head.labels.values()),
        head.created_at,
        start.time,
        start.commit_id,
        head.parent,
        head.name,
        _encode(head.metadata).decode() if head.metadata else "",
        _encode(head).decode(),
        start.events,
        [digest for digest, _ in start.payloads],
        [body for _, body in start.payloads],
        start.look.id,
        start.look.body,
        names,
        [verb for _, verb in start.names],
        [encode_input(Turn(name=name)) for name in names],
        encode_input(Cancel(hard=True)),
        start.wake,
    ]
    places = ", ".join(f"%s::{kind}" for kind in START.kinds)
    return f"SELECT {schema}start_1({places})".encode(), values
