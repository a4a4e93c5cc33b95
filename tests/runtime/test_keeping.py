"""What is kept of a store: retention of closed runs, and backups that can be worked with."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from treadle import (
    DefinitionError,
    Registry,
    Retention,
    RunNotFoundError,
    StoreError,
    UsageError,
    connect,
    step,
    workflow,
)
from treadle.runtime.retention import EVERY_SECONDS
from treadle.store.blobs import DirectoryBlobs
from treadle.testing import ManualClock

registry = Registry()
DAY = 24 * 3600.0


@step(registry=registry, name="keep:one")
async def one(value: str) -> str:
    return value


@step(registry=registry, name="keep:fails")
async def fails() -> str:
    raise ValueError("no")


@workflow(registry=registry, name="keep:good")
def good(value: str) -> str:
    return one.bind(value)


@workflow(registry=registry, name="keep:bad")
def bad() -> str:
    return fails.bind()


@workflow(registry=registry, name="keep:parent")
def parent() -> list[str]:
    return [good.bind("child"), good.detached.bind("apart")]


@workflow(registry=registry, name="keep:waits")
def waits() -> str:
    return one.options(signals=["go"]).bind("x")


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/keeping.db?sync=normal"


async def ids(app: Any) -> list[str]:
    return sorted(row.id for row in await app.runs())


async def test_old_closed_runs_go_and_nothing_else(url: str) -> None:
    clock = ManualClock()
    async with connect(url, registry=registry, clock=clock) as app:
        for number in range(3):
            await (await app.start(good, "old", id=f"old-{number}")).wait(20)
        await (await app.start(bad, id="bad")).wait(20)
        open_run = await app.start(waits, id="open")
        clock.advance(40 * DAY)
        await (await app.start(good, "new", id="new")).wait(20)

        before = await ids(app)
        planned = await app.gc(older_than="30d", dry_run=True)
        assert await ids(app) == before
        assert sorted(row.id for row in planned.deleted) == ["bad", "old-0", "old-1", "old-2"]

        some = await app.gc(older_than="30d", keep=2, status=["succeeded"])
        # The newest of the workflow are `new` and one of the old ones: ids of one millisecond have no order.
        assert len(some.deleted) == 2
        assert {row.id for row in some.deleted} < {"old-0", "old-1", "old-2"}
        assert len(await ids(app)) == 4

        rest = await app.gc(older_than="30d")
        assert len(rest.deleted) == 2
        assert await ids(app) == ["new", "open"]
        with pytest.raises(RunNotFoundError):
            await app.run("old-0").row()
        await open_run.signal("go")
        assert await open_run.result(20) == "x"


async def test_called_runs_go_with_their_caller_and_never_alone(url: str) -> None:
    clock = ManualClock()
    async with connect(url, registry=registry, clock=clock) as app:
        run = await app.start(parent, id="parent")
        _, detached = await run.result(20)
        await app.run(detached).wait(20)
        [child] = [row for row in await app.runs(workflow="keep:good") if row.id != detached]
        clock.advance(40 * DAY)

        kept = await app.gc(older_than="30d", keep=1)
        assert sorted(row.id for row in kept.deleted) in ([], [detached])
        assert child.id in await ids(app)

        gone = await app.gc(older_than="30d")
        assert "parent" in [row.id for row in gone.deleted]
        assert await ids(app) == []


async def test_an_application_can_delete_by_and_by(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/keeping.db?sync=normal"
    clock = ManualClock()
    async with connect(url, registry=registry, clock=clock) as app:
        await (await app.start(good, "old", id="old")).wait(20)
    clock.advance(2 * DAY)

    async with connect(url, registry=registry, clock=clock, retention=Retention(older_than="1d")) as app:
        async with asyncio.timeout(20):
            while await ids(app):
                await asyncio.sleep(0.01)
    assert EVERY_SECONDS > 60


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"older_than": "soon"}, "older_than"),
        ({"keep": -1}, "keep=-1: a number from 0"),
        ({"status": ["running"]}, "only closed runs are deleted"),
    ],
)
async def test_a_retention_that_makes_no_sense_is_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        connect("memory://", retention=Retention(**rule))
    async with connect("memory://", registry=registry) as app:
        with pytest.raises(DefinitionError, match=message):
            await app.gc(**rule)


async def test_a_backup_of_a_busy_store_is_a_store_that_goes_on(tmp_path: Path) -> None:
    large = "x" * 400_000
    async with connect(f"sqlite:///{tmp_path}/live.db?sync=normal", registry=registry) as app:
        assert await (await app.start(good, large, id="large")).result(20) == large
        waiting = await app.start(waits, id="waiting")
        busy = [await app.start(good, str(number)) for number in range(20)]

        made = await app.backup(tmp_path / "copies" / "backup.db")

        assert made.is_file()
        with pytest.raises(UsageError, match="exists; a backup replaces nothing"):
            await app.backup(made)
        for run in busy:
            await run.wait(20)
        await waiting.cancel()

    assert [path.name for path in made.parent.iterdir()] == ["backup.db", "backup.db-blobs"] or sorted(
        path.name for path in made.parent.iterdir()
    ) == ["backup.db", "backup.db-blobs"]
    async with connect(f"sqlite:///{made}", registry=registry, create=False) as copy:
        assert (await copy.check()).problems == []
        assert await copy.run("large", str).result(20) == large
        run = copy.run("waiting", str)
        # It was open when the copy was made, whatever became of the original.
        await run.signal("go")
        assert await run.result(20) == "x"


async def test_a_backup_has_what_it_names_though_that_is_deleted_and_collected_meanwhile(tmp_path: Path) -> None:
    large = "x" * 400_000
    async with connect(f"sqlite:///{tmp_path}/live.db?sync=normal", registry=registry) as app:
        run = await app.start(good, large, id="large")
        assert await run.result(20) == large
        reader: Any = app._node.reader
        loop = asyncio.get_running_loop()

        async def lose() -> None:
            """The run is deleted, and its blobs are as old as they must be to go."""
            await run.delete()
            for path in (tmp_path / "live.db-blobs").glob("*/*"):
                os.utime(path, (0, 0))
            assert (await app.collect("2h")).removed > 0

        class Meanwhile:
            """The reader; after the file is copied, and before anything else is done, somebody else is at work."""

            def __getattr__(self, name: str) -> Any:
                return getattr(reader, name)

            def backup(self, path: str) -> None:
                reader.backup(path)
                app._node.reader = reader
                losing.append(asyncio.run_coroutine_threadsafe(lose(), loop))

        losing: list[Any] = []
        beside = app._node.beside

        async def after_that(work: Any) -> Any:
            if losing:
                await asyncio.wrap_future(losing.pop())
            return await beside(work)

        app._node.reader = Meanwhile()
        app._node.beside = after_that
        made = await app.backup(tmp_path / "backup.db")
        app._node.beside = beside
        assert not losing

    async with connect(f"sqlite:///{made}", registry=registry, create=False) as copy:
        assert (await copy.check()).problems == []
        assert await copy.run("large", str).result(20) == large


def test_a_copy_of_blobs_leaves_alone_what_is_being_written(tmp_path: Path) -> None:
    blobs, copy = DirectoryBlobs(tmp_path / "blobs"), tmp_path / "copy"
    first = blobs.put(b"first")
    writer = blobs.writer()
    writer.write(b"second")

    blobs.copy_to(str(copy))
    second = writer.finish()

    assert blobs.get(second) == b"second"
    assert DirectoryBlobs(copy).get(first) == b"first"
    with pytest.raises(KeyError):
        DirectoryBlobs(copy).get(second)
    blobs.remove(first, time.time() + 60)
    blobs.copy_to(str(copy))
    assert [DirectoryBlobs(copy).get(digest) for digest in (first, second)] == [b"first", b"second"]


async def test_a_backup_that_was_cut_off_is_made_whole(tmp_path: Path) -> None:
    async with connect(f"sqlite:///{tmp_path}/live.db?sync=normal", registry=registry) as app:
        await (await app.start(good, "x" * 400_000, id="large")).result(20)
        folder = tmp_path / "backup.db-blobs"
        folder.mkdir()
        (folder / ".new-1-1-1").write_bytes(b"half")

        await app.backup(tmp_path / "backup.db")
    async with connect(f"sqlite:///{tmp_path}/backup.db", registry=registry, create=False) as copy:
        assert await copy.run("large", str).result(20) == "x" * 400_000


async def test_a_store_without_backups_says_so(tmp_path: Path) -> None:
    async with connect("memory://", registry=registry) as app:
        with pytest.raises(UsageError, match="no backup"):
            await app.backup(tmp_path / "backup.db")
    assert list(tmp_path.iterdir()) == []


async def test_a_backup_that_fails_leaves_no_file(tmp_path: Path) -> None:
    async with connect(f"sqlite:///{tmp_path}/live.db?sync=normal", registry=registry) as app:
        target = tmp_path / "copies" / "backup.db"
        target.parent.mkdir()
        # A folder where the copy would be written.
        (target.parent / "backup.db.part").mkdir()

        with pytest.raises(StoreError, match=r"backup\.db"):
            await app.backup(target)

    assert not target.exists()
