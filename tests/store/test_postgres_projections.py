"""What is peculiar to projections in PostgreSQL; what all have in common is in `tests/runtime/test_projections.py`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.postgres_kit import empty_schema, new_schema, query, shared_server, url_of

from treadle import (
    PlanBuilder,
    Planned,
    Projection,
    ProjectionError,
    RunFailedError,
    SchemaVersionError,
    connect,
    context,
    step,
)
from treadle.errors import StoreError
from treadle.store.postgres import PostgresStore, schema
from treadle.store.postgres.projections import GIVES
from treadle.store.postgres.reader import PostgresReader
from treadle.store.postgres.sql_text import first_word, named, numbered

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "42-projections.py"
pytestmark = [pytest.mark.postgres, pytest.mark.usefixtures("postgres_server")]


@pytest.fixture
def store() -> Iterator[str]:
    with empty_schema() as name:
        yield url_of(shared_server(), name)


def see(store: str, sql: str) -> list[tuple[Any, ...]]:
    """What another tool sees."""
    return query(shared_server(), sql.replace("@", store.partition("schema=")[2].partition("&")[0]))


@step(name="pgproj:give")
async def give(records: list[Any]) -> None:
    for key, data in records:
        context().record("thing", key, data)


def giving(*records: tuple[str, Any]) -> Planned:
    builder = PlanBuilder("giving")
    builder.step("s", give, list(records))
    return builder.build()


def things(statement: str, *migrations: str) -> Projection:
    made = Projection("things", migrations=migrations or ["CREATE TABLE things (key text PRIMARY KEY, data jsonb)"])
    made.collection("thing", statement)
    return made


APPLY = "INSERT INTO things VALUES (:key, :data) ON CONFLICT (key) DO UPDATE SET data = excluded.data"


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("SELECT ?, '?', \"?\" -- ?\n, ?::int /* ? */", "SELECT $1, '?', \"?\" -- ?\n, $2::int /* ? */"),
        ("SELECT data ? 'x' FROM t WHERE n = $1", "SELECT data ? 'x' FROM t WHERE n = $1"),
        ("SELECT $q$ ? $q$, E'\\'?', a$1, ?", "SELECT $q$ ? $q$, E'\\'?', a$1, $1"),
    ],
)
def test_question_marks_stand_for_values_unless_numbers_do(written: str, sent: str) -> None:
    assert numbered(written) == sent


def test_names_behind_a_colon_are_parameters_and_casts_are_none() -> None:
    values = {"key": "$1", "data": "$2"}

    assert named("VALUES (:key, ':key', :data::text, x::key, :other)", values) == (
        "VALUES ($1, ':key', $2::text, x::key, :other)"
    )
    assert first_word(" -- INSERT\n /* x */ (select 1)") == "SELECT"


async def test_rows_come_with_the_types_of_the_driver(store: str) -> None:
    async with connect(store, projections=[things(APPLY)]) as app:
        await (await app.start(giving(("a", {"n": 1, "tags": ["x"]}), ("b", [1])))).result()
        own = app.projection("things")

        assert await own.query("SELECT key FROM things WHERE data ? 'n' AND key = $1", "a") == [{"key": "a"}]
        assert await own.query("SELECT key, data FROM things WHERE data @> ?::jsonb", '{"tags": ["x"]}') == [
            {"key": "a", "data": {"n": 1, "tags": ["x"]}}
        ]
        assert await own.query("SELECT ?::numeric AS n, ?::timestamptz AS t, NULL AS x", "1.50", "2026-01-02Z") == [
            {"n": Decimal("1.50"), "t": datetime(2026, 1, 2, tzinfo=UTC), "x": None}
        ]
        for wrong in ("SELECT 1; SELECT 2", "SELECT ?", "COMMIT", "SET search_path = public"):
            with pytest.raises(ProjectionError):
                await own.query(wrong, *([1, 2] if "?" in wrong else []))
        assert await own.query("SELECT count(*) AS n FROM things") == [{"n": 2}]


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("SELECT 1", "gives rows, or changes none"),
        (APPLY + " RETURNING key", "gives rows, or changes none"),
        ("TRUNCATE things", "none that changes or reads rows"),
        ("CREATE TABLE things_copy AS SELECT 1", "none that changes or reads rows"),
        ("DELETE FROM runs", "may change only tables called things"),
        ("WITH gone AS (DELETE FROM runs RETURNING 1) INSERT INTO things SELECT :key, :data", "may change only"),
        ("INSERT INTO things VALUES (:name, :data)", "cannot be used: syntax error"),
        ("INSERT INTO things VALUES (:key, :data, 1)", "more expressions than target columns"),
    ],
)
async def test_a_statement_for_records_is_checked_when_it_is_defined(store: str, statement: str, text: str) -> None:
    with pytest.raises(ProjectionError, match=text):
        async with connect(store, projections=[things(statement)]):
            pass
    assert see(store, "SELECT to_regclass('@.things')") == [(None,)]


async def test_what_only_the_commit_would_find_out_fails_the_step_that_did_it(store: str) -> None:
    strict = things(
        "INSERT INTO things VALUES (:key, :data ->> 'of')",
        "CREATE TABLE things (key text PRIMARY KEY, parent text REFERENCES things DEFERRABLE INITIALLY DEFERRED)",
    )
    async with connect(store, projections=[strict]) as app:
        bad = await app.start(giving(("a", {}), ("b", {"of": "nobody"})))
        good = [await app.start(giving((f"g{number}", {}))) for number in range(10)]

        with pytest.raises(RunFailedError, match=r"does not take record 'b' of 'thing'.*foreign key"):
            await bad.result()
        for run in good:
            await run.result()
        assert await app.projection("things").query("SELECT count(*) AS n FROM things") == [{"n": 10}]


async def test_a_record_that_jsonb_cannot_hold_fails_its_step(store: str) -> None:
    async with connect(store, projections=[things(APPLY)]) as app:
        with pytest.raises(RunFailedError, match="'things' does not take"):
            await (await app.start(giving(("a", "null \0")))).result()
        with pytest.raises(RunFailedError, match="'things' does not take"):
            await (await app.start(giving(("null \0", 1)))).result()
        await (await app.start(giving(("a", "ü")))).result()


@step(name="pgproj:write")
async def write(sql: str, values: list[Any]) -> None:
    context().projection("things").write(sql, *values)


async def test_values_of_writes_are_read_as_the_statement_wants_them(store: str) -> None:
    made = Projection("things", migrations=["CREATE TABLE things (i bigint, f float8, t text, b boolean, d date)"])

    def writing(*values: Any) -> Planned:
        builder = PlanBuilder("writing")
        builder.step("s", write, "INSERT INTO things VALUES (?, ?, ?, ?, ?)", list(values))
        return builder.build()

    async with connect(store, projections=[made]) as app:
        await (await app.start(writing(2**40, 0.1, "ü'", True, "2026-01-02"))).result()
        await (await app.start(writing(None, None, None, None, None))).result()
        for wrong in ((1.5, 1, "", True, None), (1, 1, "null \0", True, None), ("x", 1, "", True, None)):
            with pytest.raises(RunFailedError):
                await (await app.start(writing(*wrong))).result()

    assert see(store, "SELECT i, f, t, b, d::text FROM @.things ORDER BY i") == [
        (2**40, 0.1, "ü'", True, "2026-01-02"),
        (None,) * 5,
    ]


async def test_a_rebuild_makes_all_that_is_the_projections_anew_and_nothing_else(store: str) -> None:
    made = things(
        APPLY,
        "CREATE SEQUENCE things_numbers; CREATE TYPE things_kind AS ENUM ('a'); CREATE DOMAIN things_text AS text;"
        " CREATE TABLE things (key things_text PRIMARY KEY, data jsonb, kind things_kind,"
        " n bigint DEFAULT nextval('things_numbers'));"
        " CREATE VIEW things_view AS SELECT * FROM things; CREATE MATERIALIZED VIEW things_most AS TABLE things_view;"
        " CREATE FUNCTION things_count() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM things'",
    )
    async with connect(store, projections=[made]) as app:
        own = app.projection("things")
        await (await app.start(giving(("a", 1), ("b", 2)))).result()
        await own.execute("DELETE FROM things")

        await own.rebuild()

        assert await own.query("SELECT key, n, things_count() AS all FROM things_view ORDER BY n") == [
            {"key": "a", "n": 1, "all": 2},
            {"key": "b", "n": 2, "all": 2},
        ]
        see(store, "CREATE VIEW @.report AS SELECT count(*) FROM @.things")
        with pytest.raises(ProjectionError, match="'report' depends on projection 'things'"):
            await own.rebuild()
        see(store, "DROP VIEW @.report")
        assert len(await own.query("SELECT 1 AS x FROM things")) == 2
    see(store, "DROP VIEW @.things_view CASCADE; DROP TABLE @.things; DROP FUNCTION @.things_count();"
        " DROP SEQUENCE @.things_numbers; DROP TYPE @.things_kind; DROP DOMAIN @.things_text")  # fmt: skip


def test_the_example_runs_on_it_as_on_a_file(store: str, tmp_path: Path) -> None:
    told = [
        subprocess.run(
            [sys.executable, str(EXAMPLE), *urls], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
        ).stdout
        for urls in ([], [store])
    ]

    assert told[0] == told[1]
    assert "broken" in told[0]


async def test_a_store_is_made_where_followed_projections_are_and_does_not_know_them(tmp_path: Path) -> None:
    with new_schema() as name:
        url = url_of(shared_server(), name)
        made = Projection("things", migrations=["CREATE TABLE things (key text PRIMARY KEY, data jsonb)"], url=url)
        made.collection("thing", APPLY)
        async with connect(f"sqlite:///{tmp_path}/other.db", projections=[made]) as app:
            await (await app.start(giving(("a", 1)))).result()
            await app.projection("things").caught_up()
        async with connect(url) as app:
            await (await app.start(giving(("b", 1)))).result()
            assert (await app.check()).problems == []

        assert see(url, "SELECT key FROM @.things") == [("a",)]


async def test_a_name_that_the_server_would_cut_is_refused(store: str) -> None:
    name = "t" * 49
    with pytest.raises(ProjectionError, match="more than 48"):
        async with connect(store, projections=[Projection(name, migrations=["SELECT 1"])]):
            pass


def test_who_comes_late_opens_no_connection_that_nobody_would_close(store: str) -> None:
    opened = PostgresStore.from_url(store)
    opened.open()
    positions, reader = opened.positions(), PostgresReader(opened.location)
    positions.ready()
    assert reader.find("r") == []
    positions.close()
    reader.close()

    with pytest.raises(StoreError, match="was closed; open it again"):
        positions.position("sink", "r")
    with pytest.raises(StoreError, match="was closed; open it again"):
        reader.find("r")
    opened.close()
    # A store is opened again.
    opened.open()
    assert opened.find("r") == []
    opened.close()


async def test_programs_that_would_give_nothing_to_a_projection_refuse_its_store(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serves() -> int:
        return int(see(store, "SELECT serves FROM @.meta")[0][0])

    async with connect(store):
        assert serves() == schema.MADE_SERVES
    # As in a store that an older version has made.
    see(store, f"UPDATE @.meta SET serves = {schema.SERVES}")
    async with connect(store, projections=[things(APPLY)]):
        assert serves() == GIVES <= schema.VERSION

    see(store, "UPDATE @.meta SET version = version + 1, serves = version + 1")
    with pytest.raises(SchemaVersionError, match="newer Treadle"):
        PostgresStore.from_url(store).open()
    see(store, f"UPDATE @.meta SET version = {schema.VERSION}")
