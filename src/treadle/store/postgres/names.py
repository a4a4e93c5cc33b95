"""Names and the lines of runs in PostgreSQL (promise 13): functions beside those that write appends.

Both go with `commit_1` in one transaction: `hold_names_1` before it, so that names are locked before rows of runs, and
`change_names_1` after it, when the run is there.
"""

from __future__ import annotations

from collections.abc import Sequence

from treadle.core.inputs import Cancel, Turn, encode_input
from treadle.store.base import Append
from treadle.store.postgres.arrays import big, chunks, texts
from treadle.store.postgres.connection import Link, Statement
from treadle.store.postgres.functions import HELD, Function

LINE = "SELECT r.key FROM @names l JOIN @runs r ON r.n = l.run WHERE l.name = %s ORDER BY l.place"

_LOCK = """
    PERFORM pg_advisory_xact_lock('@names'::regclass::integer, hashtext(u.name))
    FROM (SELECT DISTINCT u.name FROM unnest(names) AS u (name) ORDER BY 1) AS u;
"""

HOLD_NAMES = Function(
    "hold_names_1",
    """
    of_run bigint
    names text[]
    verbs text[]
    """,
    "void",
    f"""
    {_LOCK}
    FOR place IN 1 .. cardinality(names) LOOP
        IF verbs[place] = 'take' AND NOT EXISTS (
            SELECT 1 FROM @names l WHERE l.name = names[place] AND l.run = of_run
        ) THEN
            SELECT r.key INTO holder FROM @names l JOIN @runs r ON r.n = l.run
            WHERE l.name = names[place] ORDER BY l.place LIMIT 1;
            IF FOUND THEN RAISE EXCEPTION 'held' USING ERRCODE = '{HELD}', DETAIL = holder; END IF;
        END IF;
    END LOOP;
    """,
    declare="holder text;",
)

# Gives the keys of the runs that got inputs, with commas between.
CHANGE_NAMES = Function(
    "change_names_1",
    """
    of_run bigint
    names text[]
    verbs text[]
    turns bytea[]
    cancel bytea
    """,
    "text",
    f"""
    {_LOCK}
    SELECT r.key, r.version INTO own_key, own_version FROM @runs r WHERE r.n = of_run;
    FOR i IN 1 .. cardinality(names) LOOP
        SELECT l.run INTO was FROM @names l WHERE l.name = names[i] ORDER BY l.place LIMIT 1;
        IF NOT FOUND THEN was := 0; END IF;
        IF verbs[i] = 'leave' THEN
            DELETE FROM @names l WHERE l.name = names[i] AND l.run = of_run;
        ELSIF NOT EXISTS (SELECT 1 FROM @names l WHERE l.name = names[i] AND l.run = of_run) THEN
            IF verbs[i] = 'replace' THEN
                FOR other IN SELECT r.n, r.key FROM @names l JOIN @runs r ON r.n = l.run
                    WHERE l.name = names[i] ORDER BY l.place
                LOOP
                    INSERT INTO @inbox (run, id, body)
                    VALUES (other.n, 'replaced:' || own_key || ':' || own_version, cancel) ON CONFLICT DO NOTHING;
                    told := told || other.key;
                END LOOP;
            END IF;
            INSERT INTO @names (name, place, run)
            SELECT names[i], coalesce(max(l.place), 0) + 1, of_run FROM @names l WHERE l.name = names[i];
        END IF;
        SELECT r.n, r.key, r.version INTO other FROM @names l JOIN @runs r ON r.n = l.run
        WHERE l.name = names[i] ORDER BY l.place LIMIT 1;
        IF FOUND AND verbs[i] NOT IN ('take', 'note') AND other.n <> was THEN
            INSERT INTO @inbox (run, id, body)
            VALUES (other.n, 'turn:' || other.version || ':' || names[i], turns[i]) ON CONFLICT DO NOTHING;
            told := told || other.key;
        END IF;
    END LOOP;
    RETURN array_to_string(told, ',');
    """,
    declare="was bigint; other record; own_key text; own_version integer; told text[] := '{}';",
)

MIGRATION = (
    """
CREATE TABLE @names (
    name text NOT NULL,
    place integer NOT NULL,
    run bigint NOT NULL,
    PRIMARY KEY (name, place)
);
CREATE INDEX ON @names (run);
""",
)


def around(schema: str, n: int, append: Append, commit: list[Statement]) -> list[Statement]:
    """The statements of an append that changes names; the last one gives the keys of those who are told."""
    names = texts([name for name, _ in append.names])
    verbs = texts([verb for _, verb in append.names])
    holds = (HOLD_NAMES.text(schema), [big(n), names, verbs], HOLD_NAMES.types)
    return [holds, *commit, _change(schema, n, append.names)]


def _change(schema: str, n: int, changes: Sequence[tuple[str, str]]) -> Statement:
    values = [
        big(n),
        texts([name for name, _ in changes]),
        texts([verb for _, verb in changes]),
        chunks([encode_input(Turn(name=name)) for name, _ in changes]),
        encode_input(Cancel(hard=True)),
    ]
    return CHANGE_NAMES.text(schema), values, CHANGE_NAMES.types


def lock_names(link: Link, runs: Sequence[int]) -> None:
    """Lock the names of runs that are to be deleted, before their rows."""
    link.all(
        "SELECT pg_advisory_xact_lock('@names'::regclass::integer, hashtext(l.name))"
        " FROM (SELECT DISTINCT name FROM @names WHERE run = ANY (%s) ORDER BY 1) AS l",
        (list(runs),),
    )


def leave_all(link: Link, runs: Sequence[int]) -> None:
    """Let runs that are deleted leave all lines."""
    for run, name in link.all("SELECT run, name FROM @names WHERE run = ANY (%s) ORDER BY name, place", (list(runs),)):
        body = encode_input(Turn(name=name))
        link.all("SELECT @change_names_1(%s, ARRAY[%s::text], ARRAY['leave'], ARRAY[%s::bytea], '')", (run, name, body))
