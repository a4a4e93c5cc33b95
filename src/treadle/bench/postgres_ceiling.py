"""The same rows in raw commits on the same PostgreSQL server: what a store could do without an engine."""

from __future__ import annotations

import time

from treadle.bench.ceilings import CALL, EVENTS
from treadle.store.postgres.arrays import BIG_ARRAY, TEXT_ARRAY, bigs, texts
from treadle.store.postgres.connection import Link, Statement
from treadle.store.postgres.location import parse_url

_RUNS = "INSERT INTO @.runs SELECT n, 0, 'running' FROM generate_series(0, %d) n"
_SCHEMA = """
DROP SCHEMA IF EXISTS @ CASCADE; CREATE SCHEMA @;
CREATE TABLE @.runs (n bigint PRIMARY KEY, version bigint, status text) WITH (fillfactor = 60);
CREATE TABLE @.journal (run bigint, version bigint, commit_id bigint, time double precision, events text,
    PRIMARY KEY (run, version));
CREATE TABLE @.tasks (run bigint, number bigint, attempt integer, action text, session text, lease bigint, call text,
    PRIMARY KEY (run, number));
CREATE TABLE @.steps (run bigint, number bigint, address text, status text, result text, finished_at double precision,
    PRIMARY KEY (run, number));
"""
# One step's worth of rows, with the final state of each row written once.
_STATEMENTS = (
    "UPDATE @.runs r SET version = u.v FROM unnest($1, $2) u (n, v) WHERE r.n = u.n",
    "INSERT INTO @.journal SELECT u.n, u.v, 7, 1700000000.5, u.t FROM unnest($1, $2, $3) u (n, v, t)",
    "DELETE FROM @.tasks t USING unnest($1, $2) u (n, v) WHERE t.run = u.n AND t.number = u.v - 1",
    "INSERT INTO @.tasks SELECT u.n, u.v, 1, 'treadle.bench:bump', 's', 42, u.t FROM unnest($1, $2, $3) u (n, v, t)",
    "INSERT INTO @.steps SELECT u.n, u.v, 's17', 'succeeded', '=18', 1700000000.5 FROM unnest($1, $2) u (n, v)",
)


def raw_commits(url: str, steps: int, group: int) -> float:
    """Seconds to commit the rows of `steps` steps in groups: each group pipelined, one round trip and one commit."""
    link = Link(parse_url(url), name="treadle bench")
    schema = '"treadle_bench_raw"'
    try:
        link.script(_SCHEMA.replace("@", schema))
        link.script(_RUNS.replace("@", schema) % (group - 1))
        runs = bigs(range(group))
        events, calls = texts([EVENTS] * group), texts([CALL] * group)
        third = (None, events, None, calls, None)
        rounds = max(1, steps // group)
        began = time.perf_counter()
        for version in range(1, rounds + 1):
            versions = bigs([version] * group)
            statements: list[Statement] = []
            for text, column in zip(_STATEMENTS, third, strict=True):
                values = [runs, versions] if column is None else [runs, versions, column]
                types = [BIG_ARRAY, BIG_ARRAY, TEXT_ARRAY][: len(values)]
                statements.append((text.replace("@", schema).encode(), values, types))
            link.call(*statements)
        return (time.perf_counter() - began) * steps / (rounds * group)
    finally:
        link.script(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        link.close()
