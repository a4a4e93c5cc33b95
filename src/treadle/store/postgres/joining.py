"""Starts and inputs in transactions of the caller: a call of a function of the schema, by the caller's own connection.

That of starts writes what an append writes that makes a run, but for tasks: these follow when the run is decided, by
whoever finds its input after the commit. NOTIFY is transactional, so whoever is to be woken is woken by the commit.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, cast

import msgspec

from treadle.core.inputs import Cancel, Turn, encode_input
from treadle.core.tables import LIVE
from treadle.errors import UsageError
from treadle.store.joined import JoinedInput, JoinedStart
from treadle.store.postgres.connection import AsyncConnection, SyncConnection
from treadle.store.postgres.functions import HELD, Function

START = Function(
    "start_2",
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
    queues text[]
    turns bytea[]
    cancel bytea
    wake text
    """,
    "text",
    f"""
    -- Without a lock: who claims from the queue does not wait for this transaction.
    SELECT q.name INTO holder FROM @queues q
    CROSS JOIN LATERAL (SELECT (coalesce(q.override, q.defined)::json ->> 'length')::bigint AS most OFFSET 0) l
    WHERE q.name = ANY (queues) AND l.most > 0 AND l.most <= (
        SELECT count(*) FROM (SELECT 1 FROM @tasks t WHERE t.gate = q.n AND t.state IN (-1, 0, 2) LIMIT l.most) w
    ) LIMIT 1;
    IF FOUND THEN RETURN 'full ' || holder; END IF;
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

# An input for a run that is there, also one that this transaction makes; and news of it, with the commit.
INPUT = Function(
    "join_input_1",
    """
    of_key text
    input_id text
    body bytea
    wake text
    """,
    "text",
    f"""
    -- Nobody deletes it meanwhile. It does not hold back who appends to it.
    SELECT r.n, r.status, (SELECT s.wake FROM @sessions s WHERE s.n = r.owner AND NOT s.ended) INTO n, said, owner
    FROM @runs r WHERE r.key = of_key FOR KEY SHARE OF r;
    IF NOT FOUND THEN RETURN 'missing'; END IF;
    IF said <> ALL ('{{{",".join(sorted(LIVE))}}}') THEN RETURN said; END IF;
    INSERT INTO @inbox (run, id, body) VALUES (n, input_id, body) ON CONFLICT DO NOTHING;
    wake := coalesce(owner, wake);
    IF wake <> '' THEN PERFORM pg_notify(wake, ''); END IF;
    RETURN 'posted';
    """,
    declare="n bigint; said text; owner text;",
)

_encode = msgspec.json.Encoder().encode


def join(schema: str, transaction: Any, start: JoinedStart) -> str | Awaitable[str]:
    """See `store.joined.JoinsTransactions`."""
    return _called(schema, transaction, START, _values(start))


def join_input(schema: str, transaction: Any, given: JoinedInput) -> str | Awaitable[str]:
    """See `store.joined.JoinsTransactions`."""
    item = given.item
    return _called(schema, transaction, INPUT, [item.key, item.id, item.body, given.wake])


def _called(schema: str, transaction: Any, function: Function, values: list[Any]) -> str | Awaitable[str]:
    if isinstance(transaction, SyncConnection):
        con = cast("Any", transaction)
        if not con.execute(*_known(schema)).fetchall()[0][0]:
            raise _stranger()
        return str(con.execute(_text(schema, function), values).fetchall()[0][0])
    if isinstance(transaction, AsyncConnection):
        return _awaited(schema, transaction, function, values)
    raise UsageError(
        f"transaction={transaction!r} is no psycopg connection; runs of this store are reached through one to its"
        " database"
    )


async def _awaited(schema: str, transaction: Any, function: Function, values: list[Any]) -> str:
    cursor = await transaction.execute(*_known(schema))
    if not (await cursor.fetchall())[0][0]:
        raise _stranger()
    cursor = await transaction.execute(_text(schema, function), values)
    return str((await cursor.fetchall())[0][0])


def _text(schema: str, function: Function) -> bytes:
    places = ", ".join(f"%s::{kind}" for kind in function.kinds)
    return f"SELECT {schema}{function.name}({places})".encode()


def _known(schema: str) -> tuple[bytes, list[Any]]:
    return b"SELECT to_regclass(%s) IS NOT NULL", [f"{schema}plans"]


def _stranger() -> UsageError:
    return UsageError(
        "the connection given as transaction= is to another database than the store's, or not allowed there"
    )


def _values(start: JoinedStart) -> list[Any]:
    head = start.head
    names = [name for name, _ in start.names]
    return [
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
        list(start.queues),
        [encode_input(Turn(name=name)) for name in names],
        encode_input(Cancel(hard=True)),
        start.wake,
    ]
