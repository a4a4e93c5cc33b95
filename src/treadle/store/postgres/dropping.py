"""Runs that make place for new ones in PostgreSQL, in a queue that is full and drops the oldest (promise 12).

It is a part of the transaction that makes the new run, and that has locked the queue: so nothing that waits there is
claimed meanwhile. Each run is locked before it is looked at, so nothing else of it is dispatched either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from treadle.core.inputs import Cancel, Revoked, encode_input
from treadle.core.tables import RUNNING
from treadle.store.base import Append
from treadle.store.ledger import Gate
from treadle.store.postgres.arrays import big, small
from treadle.store.postgres.connection import Statement
from treadle.store.postgres.functions import Function
from treadle.store.queues import DROP_OLDEST, DROPPED

# Drop as many of the oldest runs as leave less than `most` due tasks in a queue: their keys and those of their tasks,
# as JSON; or nothing, if there are not enough of them.
DROP_OLDEST_RUNS = Function(
    "drop_oldest_1",
    """
    of_gate bigint
    most integer
    input_id text
    cancel bytea
    revoked_id text
    revoked text
    """,
    "text",
    f"""
    SELECT count(*) INTO length FROM @tasks t WHERE t.gate = of_gate AND t.gate <> 0 AND t.state IN (-1, 0, 2);
    FOR run IN
        SELECT r.n, r.key, w.count FROM (
            SELECT t.run, count(*) AS count FROM @tasks t
            WHERE t.gate = of_gate AND t.gate <> 0 AND t.state IN (-1, 0, 2) GROUP BY t.run
        ) w
        CROSS JOIN LATERAL (SELECT o.n, o.key FROM @runs o WHERE o.n = w.run OFFSET 0) r ORDER BY r.key
    LOOP
        EXIT WHEN length < most;
        PERFORM 1 FROM @runs r WHERE r.n = run.n FOR NO KEY UPDATE;
        PERFORM 1 FROM @runs r WHERE r.n = run.n AND r.status = '{RUNNING}' AND r.parent = '';
        CONTINUE WHEN NOT FOUND;
        PERFORM 1 FROM @tasks t WHERE t.run = run.n AND (
            t.gate <> of_gate OR t.state::integer = 3 OR t.attempt > 1 OR t.generation > 1
            OR coalesce((t.call::json #>> '{{poll,probes}}')::integer, 0) > 0
        ) LIMIT 1;
        CONTINUE WHEN FOUND;
        PERFORM 1 FROM @steps s WHERE s.run = run.n LIMIT 1;
        CONTINUE WHEN FOUND;
        PERFORM 1 FROM @inbox i WHERE i.run = run.n AND left(i.id, 5) <> 'look:' LIMIT 1;
        CONTINUE WHEN FOUND;
        gone := gone || run.n;
        names := names || run.key;
        length := length - run.count;
    END LOOP;
    IF length >= most THEN RETURN ''; END IF;
    FOREACH n IN ARRAY gone LOOP
        INSERT INTO @inbox (run, id, body) VALUES (n, input_id, cancel) ON CONFLICT DO NOTHING;
        WITH ended AS (DELETE FROM @tasks t WHERE t.run = n RETURNING t.number, t.key)
        SELECT array_agg(e.number ORDER BY e.number), array_agg(DISTINCT e.key) FILTER (WHERE e.key <> '')
        INTO numbers, keys FROM ended e;
        touched := touched || coalesce(keys, '{{}}');
        INSERT INTO @inbox (run, id, body)
        VALUES (n, revoked_id, convert_to(replace(revoked, '*', array_to_string(numbers, ',')), 'UTF8'))
        ON CONFLICT DO NOTHING;
    END LOOP;
    RETURN json_build_object('runs', to_json(names), 'keys', to_json(touched))::text;
    """,
    declare=(
        "length bigint; run record; n bigint; gone bigint[] := '{}'; names text[] := '{}'; numbers integer[];"
        " keys text[]; touched text[] := '{}';"
    ),
)

_NUMBER = 987_654_321


class _Answer(msgspec.Struct):
    runs: list[str]
    keys: list[str]


class Dropped(NamedTuple):
    """The keys of the runs that have made place, and the queues and keys of their tasks."""

    runs: list[str]
    places: list[tuple[Gate, str]]


_decode = msgspec.json.Decoder(_Answer).decode


def make_place(
    call: Callable[..., Sequence[bytes | None]], schema: str, append: Append, full: Sequence[Gate]
) -> Gate | Dropped:
    """Let runs make place for a new one in all queues that are full; or the first of those in which none do."""
    stubborn = next((gate for gate in full if gate.limits.on_full != DROP_OLDEST), None)
    if stubborn is not None:
        return stubborn
    found = Dropped([], [])
    for gate in full:
        (answer,) = call(_statement(schema, append.key, gate))
        if not answer:
            return gate
        said = _decode(answer)
        found.runs.extend(said.runs)
        found.places.extend((gate, key) for key in said.keys)
    return found


def _statement(schema: str, by: str, gate: Gate) -> Statement:
    values = {
        "of_gate": big(gate.n),
        "most": small(gate.limits.length),
        "input_id": f"{DROPPED}{by}".encode(),
        "cancel": encode_input(Cancel(hard=True)),
        "revoked_id": f"revoked:{by}".encode(),
        "revoked": encode_input(Revoked(numbers=[_NUMBER])).replace(str(_NUMBER).encode(), b"*"),
    }
    return (
        DROP_OLDEST_RUNS.text(schema),
        [values[name] for name in DROP_OLDEST_RUNS.names],
        DROP_OLDEST_RUNS.types,
    )
