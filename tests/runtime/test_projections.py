"""Records and projections end to end: applied once, with the outcome or behind it, whatever fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.runtime.test_anomalies import drive, insistently, registry

from treadle import (
    DefinitionError,
    EncodeError,
    Permanent,
    PlanBuilder,
    Planned,
    Projection,
    ProjectionError,
    Retry,
    RunFailedError,
    SchemaVersionError,
    StoreUrlError,
    UsageError,
    connect,
    context,
    step,
    workflow,
)
from treadle.runtime.client import App
from treadle.runtime.projections import Live
from treadle.store.base import Store
from treadle.store.postgres import PostgresProjections, PostgresStore, parse_url
from treadle.store.projection import ProjectionDatabase
from treadle.store.sqlite import SqliteProjections, SqliteStore

TABLE = "CREATE TABLE pages (url TEXT PRIMARY KEY, status INTEGER NOT NULL, seen INTEGER NOT NULL DEFAULT 1)"
# In words that SQLite and PostgreSQL share.
APPLY = (
    "INSERT INTO pages (url, status) VALUES (:key, CAST(:data ->> 'status' AS INTEGER))"
    " ON CONFLICT (url) DO UPDATE SET status = excluded.status, seen = pages.seen + 1"
)


@dataclass
class Page:
    status: int


def pages(url: str = "") -> Projection:
    made = Projection("pages", migrations=[TABLE], url=url)
    made.collection("page", APPLY, type=Page)
    return made


POSTGRES = pytest.mark.postgres
# The store, and the database of the projection if that is another one.
HOSTED = ["sqlite", pytest.param("postgres", marks=POSTGRES)]
_FOLLOWED = [
    "sqlite+sqlite",
    "memory",
    pytest.param("sqlite+postgres", marks=POSTGRES),
    pytest.param("memory+postgres", marks=POSTGRES),
    pytest.param("postgres+sqlite", marks=POSTGRES),
    pytest.param("postgres+postgres", marks=POSTGRES),
    pytest.param("nats+postgres", marks=[POSTGRES, pytest.mark.nats]),
]


def url_for(request: pytest.FixtureRequest, stack: ExitStack, kind: str, path: Path) -> str:
    if kind == "postgres":
        request.getfixturevalue("postgres_server")
        from tests.postgres_kit import empty_schema, new_schema, shared_server, url_of

        return url_of(shared_server(), stack.enter_context(empty_schema() if path.stem == "app" else new_schema()))
    if kind == "nats":
        return str(request.getfixturevalue("nats_url"))
    return "memory://" if kind == "memory" else f"sqlite:///{path}?sync=normal"


@pytest.fixture(params=[*HOSTED, *_FOLLOWED])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The store's URL, and the projection's."""
    store, _, own = request.param.partition("+")
    with ExitStack() as stack:
        url = url_for(request, stack, store, tmp_path / "app.db")
        yield url, url_for(request, stack, own, tmp_path / "pages.db") if own else ""


@pytest.fixture(params=HOSTED)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a store that projections can live in."""
    with ExitStack() as stack:
        yield url_for(request, stack, request.param, tmp_path / "app.db")


def raw(store: str, sql: str) -> list[tuple[Any, ...]]:
    """What another tool sees in the database of a store."""
    if store.startswith("sqlite"):
        with closing(apsw.Connection(store.partition("?")[0].removeprefix("sqlite:///"))) as con:
            return list(con.execute(sql))
    from tests.postgres_kit import query, shared_server

    schema = store.partition("schema=")[2].partition("&")[0]
    return query(shared_server(), sql.replace("FROM ", f"FROM {schema}."))


@step(name="proj:emit")
async def emit(count: int, first: int = 0) -> int:
    for number in range(first, first + count):
        context().record("page", f"/{number}", Page(200 + number))
    context().record("nobody", "x", [1])
    return count


@step(name="proj:flaky")
def flaky(needed: int) -> int:
    context().record("page", "/flaky", Page(context().attempt))
    if context().attempt < needed:
        raise OSError("not yet")
    return needed


@step(name="proj:wrong")
async def wrong(data: Any) -> None:
    context().record("page", "/wrong", data)


@step(name="proj:final")
async def final() -> None:
    context().record("page", "/final", Page(1))
    raise Permanent("no")


@workflow(name="proj:flow")
def flow(count: int):
    return emit.bind(count, emit.options(id="first").bind(count))


def alone(function: Any, *args: Any, id: str = "s") -> Planned:
    builder = PlanBuilder("alone")
    builder.output(builder.step(id, function, *args))
    return builder.build()


async def rows(app: Any) -> list[dict[str, Any]]:
    projection = app.projection("pages")
    await projection.caught_up()
    return await projection.query("SELECT * FROM pages ORDER BY url")  # type: ignore[no-any-return]  # it is one


async def test_records_of_successes_are_applied_once(places: tuple[str, str]) -> None:
    store, url = places
    async with connect(store, projections=[pages(url)], retry=Retry(attempts=5, initial="1ms")) as app:
        await (await app.start(alone(emit, 2))).result()
        await (await app.start(alone(flaky, 3))).result()
        with pytest.raises(RunFailedError):
            await (await app.start(alone(final))).result()

        assert await rows(app) == [
            {"url": "/0", "status": 200, "seen": 1},
            {"url": "/1", "status": 201, "seen": 1},
            {"url": "/flaky", "status": 3, "seen": 1},
        ]


@pytest.mark.parametrize("given", ["at first", "later"])
async def test_one_that_is_followed_into_the_stores_own_database_gets_its_records_once_too(
    host: str, given: str
) -> None:
    if given == "later":
        async with connect(host) as app:
            await (await app.start(alone(emit, 2))).result()
    async with connect(host, projections=[pages(host)]) as app:
        await (await app.start(alone(emit, 2 if given == "at first" else 1))).result()
        found = await rows(app)
        assert [row["seen"] for row in found] == ([1, 1] if given == "at first" else [2, 1])
        await app.projection("pages").rebuild()
        assert await rows(app) == found
    with pytest.raises(ProjectionError, match=r"'pages' is there already|cannot live in"):
        async with connect(host, projections=[pages()]):
            pass


async def test_the_outcome_tells_the_records(places: tuple[str, str]) -> None:
    store, url = places
    async with connect(store, projections=[pages(url)]) as app:
        run = await app.start(alone(emit, 1))
        await run.result()

        assert (await run.outcome("s")).records == (("page", "/0", {"status": 200}), ("nobody", "x", [1]))


async def test_many_records_are_applied_in_order(places: tuple[str, str]) -> None:
    store, url = places
    async with connect(store, projections=[pages(url)]) as app:
        await asyncio.gather(*[(await app.start(alone(emit, 3000))).result() for _ in range(3)])
        await app.projection("pages").caught_up()

        [counted] = await app.projection("pages").query("SELECT count(*) AS pages, sum(seen) AS seen FROM pages")
        assert counted == {"pages": 3000, "seen": 9000}


async def test_what_was_recorded_before_a_projection_is_there_comes_into_it(places: tuple[str, str]) -> None:
    store, url = places
    if store.startswith("memory"):
        pytest.skip("a store in memory does not outlive its application")
    async with connect(store) as app:
        await (await app.start(alone(emit, 2))).result()

    for _ in range(2):
        async with connect(store, projections=[pages(url)]) as app:
            assert [row["seen"] for row in await rows(app)] == [1, 1]


async def test_a_process_that_does_not_know_the_projection_applies_records_too(host: str) -> None:
    async with connect(host, projections=[pages()]):
        pass
    async with connect(host) as app:
        await (await app.start(alone(emit, 2))).result()

        assert raw(host, "SELECT url FROM pages ORDER BY url") == [("/0",), ("/1",)]


async def test_a_projection_is_rebuilt_from_the_journals(places: tuple[str, str]) -> None:
    store, url = places
    async with connect(store, projections=[pages(url)]) as app:
        await (await app.start(alone(emit, 3))).result()
        expected = await rows(app)
        projection = app.projection("pages")
        assert await projection.execute("DELETE FROM pages WHERE status > ?", 200) == 2

        await projection.rebuild()

        assert await rows(app) == expected


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [{"status": "many"}, [], {"state": 1}, None])
async def test_a_record_of_a_wrong_type_fails_its_step_for_good(data: Any) -> None:
    async with connect("memory://", projections=[pages()], retry=5) as app:
        run = await app.start(alone(wrong, data))

        with pytest.raises(RunFailedError, match="record of 'page' does not fit projection 'pages'"):
            await run.result()


async def test_records_without_names_or_too_large_are_refused() -> None:
    @step(name="proj:bad")
    async def bad() -> list[str]:
        said: list[str] = []
        for collection, key, data in (("", "k", 1), ("c", " ", 1), ("c", 3, 1), ("c", "k", "x" * 40_000)):
            try:
                context().record(collection, key, data)  # type: ignore[arg-type]  # wrong on purpose
            except EncodeError as error:
                said.append(str(error))
        return said

    async with connect("memory://") as app:
        run = await app.start(alone(bad))
        said = await run.result()

    assert [text[:31] for text in said] == [
        "the collection of a record is a",
        "the key of a record is a text t",
        "the key of a record is a text t",
        "record 'k' of 'c' has more than",
    ]


async def test_a_record_that_a_statement_refuses_fails_its_step_and_no_other(host: str) -> None:
    strict = Projection("pages", migrations=["CREATE TABLE pages (url TEXT PRIMARY KEY CHECK (url != '/1'))"])
    strict.collection("page", "INSERT INTO pages (url) VALUES (:key) ON CONFLICT DO NOTHING")
    async with connect(host, projections=[strict]) as app:
        refused = await app.start(alone(emit, 2))
        others = [await app.start(alone(emit, 1)) for _ in range(20)]

        with pytest.raises(RunFailedError, match=r"projection 'pages' does not take record '/1'.*(CHECK|check)"):
            await refused.result()
        for run in others:
            assert await run.result() == 1
        assert await app.projection("pages").query("SELECT url FROM pages") == [{"url": "/0"}]
        assert (await refused.outcome("s")).failure.code == "projection_refused"  # type: ignore[union-attr]  # it failed


async def test_a_migration_that_fails_changes_nothing(places: tuple[str, str]) -> None:
    store, url = places
    broken = Projection(
        "pages", migrations=[TABLE, "CREATE INDEX pages_x ON pages (status); CREATE TABLE pages (x INTEGER)"]
    )
    broken.collection("page", APPLY)
    broken = Projection(
        "pages", migrations=[TABLE, "CREATE INDEX pages_x ON pages (status); CREATE TABLE pages (x INTEGER)"], url=url
    )
    with pytest.raises(ProjectionError, match=r"migration 2 of projection 'pages' fails: .*already exists"):
        async with connect(store, projections=[broken]):
            pass
    async with connect(store, projections=[pages(url)]) as app:
        assert await rows(app) == []


@pytest.mark.parametrize(
    ("migration", "text"),
    [
        ("CREATE TABLE other (x INTEGER)", "makes 'other'"),
        ("DROP VIEW v_runs", "drops 'v_runs'|not authorized"),
        ("COMMIT", "fails: (not authorized|EXECUTE of transaction commands)"),
        ("DELETE FROM sessions", "fails: (not authorized|it changes rows of 'sessions')"),
        ("ATTACH 'x' AS y", "fails: (not authorized|syntax error)"),
    ],
)
async def test_migrations_leave_the_store_alone(host: str, migration: str, text: str) -> None:
    greedy = Projection("pages", migrations=[migration])
    async with connect(host) as app:
        # So that there is something to delete.
        assert await (await app.start(alone(emit, 1))).result() == 1
    with pytest.raises(ProjectionError, match=text):
        async with connect(host, projections=[greedy]):
            pass
    async with connect(host) as app:
        assert len(await app.runs()) == 1


@pytest.mark.parametrize("name", ["runs", "inbox", "v"])
@pytest.mark.parametrize("rebuild", [False, True])
async def test_names_of_other_tables_are_not_taken(host: str, name: str, rebuild: bool) -> None:
    taken = Projection(name, migrations=[f"CREATE TABLE {name}_x (x INTEGER)"])
    with pytest.raises(ProjectionError, match=f"projection '{name}' cannot live in .* is there already"):
        async with connect(host, projections=[taken], rebuild=rebuild):
            pass
    async with connect(host) as app:
        assert await app.runs() == []


async def test_projections_whose_tables_could_be_taken_for_each_others_do_not_live_together(
    places: tuple[str, str],
) -> None:
    store, url = places
    other = Projection("pages_more", migrations=["CREATE TABLE pages_more (x INTEGER)"], url=url)
    for given in ([pages(url), other], [other, pages(url)]):
        with pytest.raises(ProjectionError, match=r"cannot live in .*choose another name"):
            async with connect(store, projections=given):
                pass


async def test_a_changed_migration_and_older_code_are_refused(places: tuple[str, str]) -> None:
    store, url = places
    if store.startswith("memory"):
        pytest.skip("a store in memory does not outlive its application")
    newer = Projection("pages", migrations=[TABLE, "CREATE TABLE pages_more (x INTEGER)"], url=url)
    async with connect(store, projections=[newer]):
        pass
    with pytest.raises(SchemaVersionError, match="upgrade the package"):
        async with connect(store, projections=[pages(url)]):
            pass
    changed = Projection("pages", migrations=[TABLE + " ", "CREATE TABLE pages_more (x INTEGER)"], url=url)
    with pytest.raises(ProjectionError, match="migration 1 of projection 'pages' was changed"):
        async with connect(store, projections=[changed]):
            pass


@pytest.mark.parametrize("name", ["", "a b", "treadle_x", "sqlite_x", "v_runs", "ü"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(DefinitionError, match="no name for a projection"):
        Projection(name, migrations=[TABLE])


async def test_mistakes_in_projections_are_told_when_connecting() -> None:
    with pytest.raises(DefinitionError, match="two projections are called 'pages'"):
        connect("memory://", projections=[pages(), pages()])
    with pytest.raises(StoreUrlError, match="give it a sqlite:/// URL, or postgresql://"):
        async with connect("memory://", projections=[pages("mysql://x")]):
            pass
    wrong_sql = Projection("pages", migrations=[TABLE])
    wrong_sql.collection("page", "INSERT INTO nowhere VALUES (:key)")
    with pytest.raises(ProjectionError, match="the statement of 'pages' for 'page' cannot be used: no such table"):
        async with connect("memory://", projections=[wrong_sql]):
            pass
    async with connect("memory://", projections=[pages()]) as app:
        with pytest.raises(UsageError, match="no projection 'x' here; connect\\(\\) was given: pages"):
            app.projection("x")
        with pytest.raises(ProjectionError, match="query\\(\\) changes nothing"):
            await app.projection("pages").query("DELETE FROM pages")
        with pytest.raises(ProjectionError, match="no such column"):
            await app.projection("pages").query("SELECT absent FROM pages")


# -- projections inside steps, and writes with the outcome -------------------------------------------------------------


@step(name="proj:look")
async def look() -> list[Any]:
    mine = context().projection("pages")
    changed = await mine.execute("INSERT INTO pages (url, status) VALUES (?, ?)", "/own", 1)
    return [changed, await mine.query("SELECT url FROM pages")]


@step(name="proj:look_in_thread")
def look_in_thread() -> list[Any]:
    mine = context().projection("pages")
    changed = mine.execute("UPDATE pages SET status = status + ?", 1).result()
    return [changed, mine.query("SELECT status FROM pages").result()]


async def test_steps_query_and_change_projections(places: tuple[str, str]) -> None:
    store, url = places
    async with connect(store, projections=[pages(url)]) as app:
        assert await (await app.start(alone(look))).result() == [1, [{"url": "/own"}]]
        assert await (await app.start(alone(look_in_thread))).result() == [1, [{"status": 2}]]


@step(name="proj:transfer")
def transfer(amount: int) -> int:
    bank = context().projection("bank")
    bank.write("UPDATE bank SET money = money - ? WHERE owner = 'a'", amount)
    bank.write("UPDATE bank SET money = money + ? WHERE owner = 'b'", amount)
    if context().attempt == 1:
        raise OSError("after the writes were given")
    return amount


def bank() -> Projection:
    return Projection(
        "bank",
        migrations=[
            "CREATE TABLE bank (owner TEXT PRIMARY KEY, money INTEGER CHECK (money >= 0));"
            "INSERT INTO bank VALUES ('a', 100), ('b', 0)"
        ],
    )


async def test_a_steps_writes_and_its_outcome_are_one_transaction(host: str) -> None:
    policy = Retry(attempts=2, initial="1ms")
    async with connect(host, projections=[bank()], retry=policy) as app:
        await asyncio.gather(*[(await app.start(alone(transfer, 10))).result() for _ in range(8)])
        poor = await app.start(alone(transfer, 30))
        with pytest.raises(RunFailedError, match=r"(?i)check constraint"):
            await poor.result()

        assert await app.projection("bank").query("SELECT * FROM bank ORDER BY owner") == [
            {"owner": "a", "money": 20},
            {"owner": "b", "money": 80},
        ]


async def test_writes_need_the_stores_own_database(tmp_path: Path) -> None:
    async with connect("memory://", projections=[bank()], retry=2) as app:
        with pytest.raises(RunFailedError, match="not in the store's database"):
            await (await app.start(alone(transfer, 1))).result()


@step(name="proj:greedy")
def greedy(sql: str) -> None:
    context().projection("bank").write(sql)


@pytest.mark.parametrize(
    "sql", ["COMMIT", "DELETE FROM runs", "DELETE FROM nothing", "PRAGMA user_version = 3", "SELECT 1; SELECT 2"]
)
async def test_writes_change_the_projections_own_tables_only(host: str, sql: str) -> None:
    async with connect(host, projections=[bank()]) as app:
        with pytest.raises(RunFailedError, match="the statement"):
            await (await app.start(alone(greedy, sql))).result()
        assert len(await app.runs()) == 1


# -- whatever fails ----------------------------------------------------------------------------------------------------


@step(name="proj:count", registry=registry)
async def count(name: str) -> None:
    context().record("page", name, Page(context().attempt))
    if context().generation == 1 and context().attempt == 1 and name == "b":
        raise OSError("once")


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("kind", [*HOSTED, "sqlite+sqlite", pytest.param("sqlite+postgres", marks=POSTGRES)])
def test_records_are_applied_once_whichever_store_call_fails(
    request: pytest.FixtureRequest, tmp_path: Path, before: bool, kind: str
) -> None:
    host, _, own = kind.partition("+")
    stores: list[SqliteStore | PostgresStore] = []
    databases: list[ProjectionDatabase] = []
    stack = ExitStack()

    def make() -> Store:
        stack.close()
        url = url_for(request, stack, host, tmp_path / "app.db").replace("app.db", f"{nth}.db")
        stores.append((PostgresStore if host == "postgres" else SqliteStore).from_url(url))
        return stores[-1]

    def projections() -> dict[str, Live]:
        if own == "postgres":
            location = parse_url(url_for(request, stack, own, tmp_path / "pages.db"))
            database: ProjectionDatabase = PostgresProjections(location, hosted=False)
        else:
            database = SqliteProjections(":memory:", hosted=False) if own else stores[-1].projections()
        database.define(pages().spec)
        databases.append(database)
        return {"pages": Live(pages(), database, hosted=not own)}

    async def act(app: App) -> None:
        builder = PlanBuilder("counting", retry=2, registry=registry)
        first = builder.step("a", count, "a")
        builder.step("b", count.options(after=first), "b")
        planned = builder.build()
        await insistently(lambda: app.start(planned, id="run"))
        await insistently(app.run("run").wait)

    async def check(app: App) -> None:
        await insistently(app.projection("pages").caught_up)
        found = databases[-1].query("SELECT url, status, seen FROM pages ORDER BY url")
        assert found == [{"url": "a", "status": 1, "seen": 1}, {"url": "b", "status": 2, "seen": 1}]

    nth = 1
    while drive(make, nth, before=before, act=act, check=check, projections=projections):
        nth += 1
    stack.close()

    assert nth > 10


async def test_a_projection_that_comes_while_outcomes_are_committed_misses_none_and_gets_none_twice(host: str) -> None:
    async def define() -> None:
        async with connect(host, projections=[pages()], worker=False):
            pass

    async with connect(host) as app:
        given = 0

        async def give() -> None:
            nonlocal given
            given += 3
            await (await app.start(alone(emit, 3, given - 3))).result()

        await give()
        defining = asyncio.create_task(asyncio.to_thread(asyncio.run, define()))
        while not defining.done():
            await asyncio.gather(*[give() for _ in range(10)])
        await give()
        async with connect(host, projections=[pages()], worker=False) as other:
            found = await rows(other)

    assert given > 30
    assert len(found) == given
    assert {row["seen"] for row in found} == {1}


async def test_outcomes_that_another_session_reports_bring_their_records(host: str) -> None:
    # Lists that are rows of the store, and one that rides in the event.
    async with connect(host, projections=[pages()], worker=False) as client, connect(host):
        many, few = await client.start(alone(emit, 2000)), await client.start(alone(emit, 1, 5000))
        assert [await many.result(), await few.result()] == [2000, 1]

        found = await rows(client)

    assert len(found) == 2001
    assert {row["seen"] for row in found} == {1}
