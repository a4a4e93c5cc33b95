"""The same rows in raw commits on the same PostgreSQL server: what a store could do without an engine."""

from __future__ import annotations

import time

from treadle.bench.ceilings import CALL, EVENTS
from treadle.store.postgres.arrays import BIG_ARRAY, TEXT_ARRAY, bigs, texts
from treadle.store.postgres.connection import Link, Statement
from treadle.store.postgres.location import parse_url
from treadle.store.postgres.sql_text import named

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


def raw_inserts(url: str, table: str, statement: str, rows: list[tuple[str, str]]) -> float:
    """Seconds to carry out a statement for each (key, data), in one transaction of one call of a function."""
    link = Link(parse_url(url), name="treadle bench")
    schema = '"treadle_bench_raw"'
    body = named(statement, {"key": "treadle_keys[place]", "data": "treadle_datas[place]::jsonb"})
    try:
        link.script(f"DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}")
        link.script(table.replace("TABLE ", f"TABLE {schema}."))
        link.script(
            f"CREATE FUNCTION {schema}.apply(treadle_keys text[], treadle_datas text[]) RETURNS void LANGUAGE plpgsql"
            f" SET search_path = {schema} AS $x$ BEGIN FOR place IN 1 .. cardinality(treadle_keys) LOOP {body};"
            " END LOOP; END $x$"
        )
        values = [texts([key for key, _ in rows]), texts([data for _, data in rows])]
        began = time.perf_counter()
        link.call((f"SELECT {schema}.apply($1, $2)".encode(), values, [TEXT_ARRAY, TEXT_ARRAY]))
        return time.perf_counter() - began
    finally:
        link.script(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        link.close()


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
