"""Copies of stores: nothing of any run is lost, open runs end in the copy, and a cut-off copy is made whole."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.nats_kit import new_name
from tests.runtime.copying_target import counted, paged, registry, signalled

from treadle import (
    App,
    Batch,
    ConflictError,
    Encryption,
    MissingKeyError,
    Projection,
    StoreUnavailableError,
    connect,
    context,
    step,
    workflow,
)
from treadle.ports import Clock, Environment, PayloadCodec
from treadle.runtime.builtins import with_builtins
from treadle.runtime.clock import RandomIds, SystemClock
from treadle.runtime.copying import allow_the_same
from treadle.runtime.node import Node, Settings
from treadle.runtime.threads import ThreadPool
from treadle.runtime.wakeups import NoWakeups
from treadle.store.base import Store
from treadle.store.blob_port import Blobs
from treadle.store.blobs import MemoryBlobs
from treadle.store.committer import InlineDriver
from treadle.store.memory import MemoryStore
from treadle.store.projection import HostsProjections
from treadle.store.queues import Bucket, QueueChange, QueueLimits
from treadle.store.sqlite import SqliteStore
from treadle.testing import ManualClock
from treadle.testing.faulty_store import FaultyStore

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which a process was killed while it executed a step."""
    folder = tmp_path_factory.mktemp("source")
    url = f"sqlite:///{folder}/source.db"
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.copying_target", url, str(folder / "marker")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    return folder / "source.db"


@pytest.fixture
def source(killed: Path, tmp_path: Path) -> str:
    for path in killed.parent.iterdir():
        if path.name.startswith("source.db") and path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    shutil.copytree(killed.parent / "source.db-blobs", tmp_path / "source.db-blobs")
    return f"sqlite:///{tmp_path}/source.db"


async def end_all(app: App) -> None:
    """Let every open run have what it waits for, and see its end."""
    assert await app.run("sizes").result() == 302_011
    assert (await app.run("undone").row()).unwound == "fully"
    # The signal that came before the copy was kept; the breakpoint label is armed and has no step.
    assert await app.run("paused").result() == 3
    await app.run("held").resume()
    for run in ("held", "waiting"):
        await app.run(run).signal("go")
        assert await app.run(run).result() == 3
    (child,) = await app.runs(parent=await app.run("parent").key())
    await app.run(child.id).signal("go")
    assert await app.run("parent").result() == 3
    # The attempt that died with its process was lost, and is made again.
    assert await app.run("dying").result() == "attempt 2"
    assert (await app.run("later").row()).status == "running"


async def on(
    store: Store,
    blobs: Blobs | None = None,
    *,
    worker: bool = False,
    codec: PayloadCodec | None = None,
    clock: Clock | None = None,
) -> App:
    """An application on a store that is open."""
    clock, ids = clock or SystemClock(), RandomIds()
    environment = Environment(clock=clock, ids=ids, threads=ThreadPool(1), wakeups=NoWakeups(), store=store)

    async def read(function: Callable[[], Any]) -> Any:
        return function()

    node = Node(
        environment,
        driver=lambda: InlineDriver(renew_seconds=5.0),
        blobs=blobs or MemoryBlobs(),
        registry=with_builtins(registry),
        settings=Settings(worker=worker, codec=codec),
        in_reader=read,
    )
    await node.open()
    return App(node, lambda: None)


@pytest.mark.parametrize("target", ["sqlite", "memory"])
async def test_every_run_goes_on_in_the_copy(source: str, target: str, tmp_path: Path) -> None:
    store = MemoryStore() if target == "memory" else SqliteStore(tmp_path / "target.db")
    store.open()
    blobs = MemoryBlobs()
    copied: list[str] = []
    async with await on(store, blobs) as new, connect(source, registry=registry, worker=False) as old:
        report = await old.copy_to(new, copied.append)

        rows = await old.runs()
        assert report.differing == {}
        # One that the source has decided something of meanwhile is copied again.
        assert sorted(set(copied)) == sorted(row.id for row in rows) == sorted(row.id for row in await new.runs())
        assert (report.runs, report.open) == (9, sum(row.status == "running" for row in rows))
        assert (report.blobs > 0, report.payloads > 0) == (True, True)
        again = await old.copy_to(new)
        assert (again.events, again.tasks, again.inputs, again.runs) == (0, 0, 0, report.runs)
    async with await on(store, blobs, worker=True) as new:
        await end_all(new)
        assert (await new.check()).problems == []
    store.close()


@pytest.mark.postgres
@pytest.mark.nats
async def test_open_runs_move_from_server_to_server_and_back_into_a_file(
    source: str, nats_url: str, postgres_server: Any, tmp_path: Path
) -> None:
    from tests.postgres_kit import empty_schema, shared_server, url_of

    with empty_schema() as schema:
        urls = [source, url_of(shared_server(), schema), nats_url, f"sqlite:///{tmp_path}/last.db"]
        for one, other in itertools.pairwise(urls):
            async with (
                connect(one, registry=registry, worker=False) as old,
                connect(other, registry=registry, worker=False) as new,
            ):
                report = await old.copy_to(new)
                open_ = sum(row.status in ("running", "unwinding") for row in await new.runs())
                assert (report.differing, report.runs, report.open) == ({}, 9, open_)
        async with connect(urls[-1], registry=registry) as last:
            await end_all(last)
            assert (await last.check()).problems == []


@pytest.mark.parametrize("codec", [None, Encryption({"k1": bytes(32)})], ids=["plain", "encrypted"])
@pytest.mark.parametrize("count", [1, 9, 900], ids=["inline", "row", "blob"])
async def test_what_a_value_refers_to_is_copied_when_the_run_that_made_it_is_deleted(
    codec: Encryption | None, count: int
) -> None:
    source, target, blobs, copies = MemoryStore(), MemoryStore(), MemoryBlobs(), MemoryBlobs()
    async with await on(source, blobs, worker=True, codec=codec) as old:
        maker = await old.start(paged, "kept")
        made = await maker.result()
        assert await (await old.start(counted, [made] * count)).result() == count
        await maker.delete()

    async with await on(source, blobs, codec=codec) as old, await on(target, copies, codec=codec) as new:
        await old.copy_to(new)

    assert copies.get(made.digest) == blobs.get(made.digest)


async def test_a_copy_of_encoded_values_needs_their_keys() -> None:
    source, target = MemoryStore(), MemoryStore()
    async with await on(source, worker=True, codec=Encryption({"k1": bytes(32)})) as old:
        await (await old.start(counted, [])).result()

    async with await on(source) as old, await on(target) as new:
        with pytest.raises(MissingKeyError, match="k1"):
            await old.copy_to(new)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
async def test_a_copy_that_is_cut_off_at_any_call_is_made_whole_by_another(before: bool) -> None:
    source = MemoryStore()
    async with await on(source) as old:
        await old.start(signalled, id="open")
        paused = await old.start(signalled, id="paused")
        await paused.signal("go", "x" * 2000)
        await paused.pause()
        await (await old.start(signalled, id="over")).cancel()
        target = MemoryStore()
        for nth in itertools.count(1):
            faulty = FaultyStore(target, 10**9, before=before)
            async with await on(faulty) as new:
                faulty._counter.nth = len(faulty.calls) + nth
                with contextlib.suppress(StoreUnavailableError):
                    await old.copy_to(new)
                if not faulty.fired:
                    break
            async with await on(target) as new:
                report = await old.copy_to(new)
                assert report.differing == {}
                assert sorted(row.id for row in await new.runs()) == ["open", "over", "paused"]
                for run in ("open", "paused", "over"):
                    assert (await new.run(run).load()).rows == (await old.run(run).load()).rows
            target = MemoryStore()
        assert nth > 5


async def test_what_went_on_in_the_source_is_added(source: str, tmp_path: Path) -> None:
    target = f"sqlite:///{tmp_path}/target.db"
    async with (
        connect(target, registry=registry, worker=False) as new,
        connect(source, registry=registry, worker=False) as old,
    ):
        await old.copy_to(new)
        await old.run("held").resume()
        await old.run("waiting").signal("go")
        await old.run("later").cancel()
        await old.run("later").wait()
        await old.run("undone").rewind("acts")

        report = await old.copy_to(new)

        assert (report.differing, report.events > 0) == ({}, True)
    async with connect(target, registry=registry) as new:
        assert await new.run("waiting").result() == 3
        assert (await new.run("later").row()).status == "cancelled"
        assert (await new.run("undone").wait()).status == "failed"
        acts = (await new.run("undone").inspect()).step("acts")
        assert acts is not None
        assert acts.generation == 2


async def test_a_run_that_waits_has_its_deadline_in_the_copy(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("source", "target")]
    clock = ManualClock()
    source, target = (partial(connect, url, registry=registry, clock=clock) for url in urls)
    names = ["waits", "ends", "lifted", "over"]
    async with source(worker=False) as old:
        for name in names:
            await old.start(signalled, id=name, deadline="60s")
        await old.run("over").cancel()
    # Done again it finds all as it was, though every process that opens the target takes on the runs in it.
    for times in range(3):
        async with source(worker=False) as old, target(worker=False) as new:
            while any([(await old.run(name).load()).inbox for name in names]):
                await old._node.sweeper.refresh()
                await old._node.committer.call(lambda _store: None)
            await new._node.sweeper.refresh()
            report = await old.copy_to(new)
            again = await old.copy_to(new)
            assert (report.differing, report.open, again.inputs) == ({}, 3, 0)
            assert (report.inputs == 3) == (times == 0)
            await new._node.sweeper.refresh()
            assert (await new.run("waits").load()).rows == (await old.run("waits").load()).rows

    async with target(worker="cycles") as new:
        await new.run("ends").signal("go")
        await new.run("lifted").cancel()
        await new.run("lifted").wait()
        await new.run("lifted").retry()
        await new.work(until_idle=True)
        clock.advance(60)
        await new.work(until_idle=True)

        statuses = [(await new.run(name).row()).status for name in names]
        assert statuses == ["failed", "succeeded", "running", "cancelled"]
        assert [(await new.run(name).load()).inbox for name in names] == [[]] * 4
        assert (await new.check()).problems == []


async def test_a_target_that_went_on_by_itself_is_told(source: str) -> None:
    async with (
        connect("memory://", registry=registry, worker=False) as new,
        connect(source, registry=registry, worker=False) as old,
    ):
        await old.copy_to(new)
        await new.run("held").cancel()

        report = await old.copy_to(new)

        assert report.differing["held"] == "has another journal"


async def test_nobody_may_work_on_either_store(source: str) -> None:
    async with (
        connect("memory://", registry=registry) as new,
        connect(source, registry=registry, worker_id="busy"),
        connect(source, registry=registry, worker=False) as old,
    ):
        with pytest.raises(ConflictError, match="busy work on the source; stop them"):
            await old.copy_to(new)


async def test_an_id_that_is_taken_in_the_target_is_refused(source: str) -> None:
    async with connect("memory://", registry=registry) as new, connect(source, registry=registry, worker=False) as old:
        await new.start(signalled, id="held")
        with pytest.raises(ConflictError, match="another run of the id 'held'"):
            await old.copy_to(new)


@pytest.fixture
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Store]]:
    """A new store of a kind."""
    with contextlib.ExitStack() as stack:

        def new(kind: str) -> Store:
            store: Store
            if kind == "memory":
                store = MemoryStore()
            elif kind == "sqlite":
                store = SqliteStore(tmp_path / f"{len(list(tmp_path.iterdir()))}.db")
            elif kind == "nats":
                from treadle.store.nats import NatsStore

                server = request.getfixturevalue("nats_server")
                store = NatsStore.from_url(f"{server.url}/{new_name()}")
            else:
                request.getfixturevalue("postgres_server")
                from tests.postgres_kit import empty_schema, shared_server, url_of

                from treadle.store.postgres import PostgresStore

                store = PostgresStore.from_url(url_of(shared_server(), stack.enter_context(empty_schema())))
            store.open()
            stack.callback(store.close)
            return store

        yield new


KINDS = [
    "memory",
    "sqlite",
    pytest.param("postgres", marks=pytest.mark.postgres),
    pytest.param("nats", marks=pytest.mark.nats),
]


@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("new", KINDS)
async def test_limits_words_of_operators_and_pauses_go_along(make: Callable[[str], Store], old: str, new: str) -> None:
    source, target = make(old), make(new)
    limits = QueueLimits(concurrency=2, rate=0.5, burst=3, key_rate=2.0, fair=True, weights={"a": 2.0}, length=9)
    source.set_queues(
        [
            QueueChange(name="programs", defined=limits),
            QueueChange(name="both", defined=limits, override=QueueLimits(concurrency=7)),
            QueueChange(name="operators", paused=True),
        ],
        0.0,
    )
    target.set_queues([QueueChange(name="both", override=QueueLimits(rate=1.0), paused=True)], 0.0)
    target.set_queues([QueueChange(name="own", paused=True)], 0.0)

    async with await on(source) as one, await on(target) as other:
        report = await one.copy_to(other)
        again = await one.copy_to(other)

        def told(store: Store) -> list[Any]:
            return [(row.name, row.defined, row.override, row.paused) for row in store.queues(0.0)]

        assert told(target) == sorted([*told(source), ("own", None, None, True)])
    assert (report.queues, report.differing) == (3, {})
    assert (again.differing, told(target)[-2:]) == ({}, told(target)[-2:])


@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("new", KINDS)
async def test_what_rates_have_used_up_goes_along(make: Callable[[str], Store], old: str, new: str) -> None:
    source, target = make(old), make(new)
    clock = ManualClock()
    limits = QueueLimits(rate=0.001, burst=10, key_rate=0.01, key_burst=3)
    used = {
        "": Bucket(2.5, clock.now() - 1),
        "a": Bucket(1.0, clock.now()),
        # By the clock of another machine, which is ahead.
        "b": Bucket(0.0, clock.now() + 20),
        "full": Bucket(3.0, clock.now() - 30),
    }

    async with await on(source, clock=clock) as one, await on(target, clock=clock) as other:
        source.set_queues([QueueChange(name="rated", defined=limits, buckets=used)], clock.now())
        assert (await one.copy_to(other)).differing == {}
        assert {**target.buckets("rated"), "full": used["full"]} == used
        clock.advance(30)
        assert (await one.copy_to(other)).differing == {}
        # What was used up in the target is not what was used up in the source.
        there = target.buckets("rated")
        target.set_queues([QueueChange(name="rated", buckets={**there, "a": Bucket(0.5, clock.now())})], clock.now())
        assert (await one.copy_to(other)).differing == {}
        assert target.buckets("rated")["a"] == used["a"]


@pytest.mark.parametrize(("name", "allowance"), [("", 2.4), ("a", 0.9), ("new", 0.0)])
def test_buckets_that_allow_something_else_differ(name: str, allowance: float) -> None:
    limits = QueueLimits(rate=0.001, burst=10, key_rate=0.01, key_burst=3)
    one = {"": Bucket(2.5, 100.0), "a": Bucket(1.0, 100.0)}
    later = {"": Bucket(2.501, 101.0), "a": Bucket(1.01, 101.0), "full": Bucket(2.99, 100.0)}

    assert allow_the_same(one, later, limits, 101.0)
    assert not allow_the_same(one, one | {name: Bucket(allowance, 100.0)}, limits, 101.0)


@step(registry=registry, name="copy:record")
async def record(first: int) -> None:
    for number in range(first, first + 500):
        context().record("row", str(number), {"n": number})


@workflow(registry=registry, name="copy:recorded")
def recorded(first: int) -> None:
    record.bind(first)
    record.bind(first + 250)


@pytest.mark.parametrize("new", [KINDS[1], KINDS[2]])
async def test_projections_of_the_target_get_the_records_of_runs_once(make: Callable[[str], Store], new: str) -> None:
    rows = Projection("rows", migrations=["CREATE TABLE rows (n TEXT PRIMARY KEY, seen INTEGER)"])
    rows.collection("row", "INSERT INTO rows VALUES (:key, 1) ON CONFLICT (n) DO UPDATE SET seen = rows.seen + 1")
    source, target = make("sqlite"), make(new)
    assert isinstance(target, HostsProjections)
    database = target.projections()
    database.define(rows.spec)

    def told() -> tuple[int, int]:
        ((found),) = database.query("SELECT count(*) AS rows, sum(seen) AS seen FROM rows")
        return int(found["rows"]), int(found["seen"])

    async with await on(source, worker=True) as one, await on(target) as other:
        await (await one.start(recorded, 0)).result()
        assert (await one.copy_to(other)).differing == {}
        assert told() == (750, 1000)
        await (await one.start(recorded, 10_000)).result()
        assert (await one.copy_to(other)).differing == {}
        assert told() == (1500, 2000)
        await one.copy_to(other)
        assert told() == (1500, 2000)
    database.rebuild(rows.spec)
    assert told() == (1500, 2000)
    database.close()


@step(registry=registry, name="copy:load")
async def load(rows: list[int]) -> list[int]:
    return rows


@workflow(registry=registry, name="copy:insert", triggers=Batch(4, "1h"))
def insert(rows: list[int]) -> list[int]:
    return load.bind(rows)


@pytest.mark.parametrize(("old", "new"), [("memory", "sqlite"), ("sqlite", "memory"), *zip(KINDS, KINDS, strict=True)])
async def test_windows_and_names_of_triggers_go_along(make: Callable[[str], Store], old: str, new: str) -> None:
    source, target = make(old), make(new)
    async with await on(source, worker=True) as one, await on(target) as other:
        closed = [await one.trigger(insert, number, id=f"old-{number}") for number in range(4)]
        assert await closed[0].result() == [0, 1, 2, 3]
        first = await one.trigger(insert, 5, id="first")
        await one.trigger(insert, 6)
        await one.trigger(insert, 7, id="third")
        report = await one.copy_to(other)

        assert report.differing == {}
        assert (await other.trigger(insert, 0, id="old-2")).id == closed[0].id
        assert (await other.trigger(insert, 7, id="third")).id == first.id
        assert (await other.trigger(insert, 8, id="last")).id == first.id
        assert (await other.trigger(insert, 9, id="next")).id != first.id
    async with await on(target, worker=True) as other:
        assert await other.run(first.id).result() == [5, 6, 7, 8]


async def test_runs_that_wait_in_a_queue_that_is_full_are_copied_all_the_same() -> None:
    source, target = MemoryStore(), MemoryStore()

    def change(length: int | None) -> None:
        override = None if length is None else QueueLimits(length=length)
        source.set_queues([QueueChange(name="default", defined=QueueLimits(length=2), override=override)], 0.0)

    async with await on(source) as old, await on(target) as new:
        for number in range(6):
            change(9)
            await old.start(signalled, id=f"run-{number}")
            change(None)

            assert (await old.copy_to(new)).differing == {}

        (row,) = target.queues(0.0)
        assert (row.waiting, row.limits) == (6, QueueLimits(length=2))
