"""What is peculiar to the NATS store: its servers, its log, and connections that break."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.nats_kit import Proxy, new_name

from treadle import PlanBuilder, Registry, connect, step
from treadle.errors import (
    ConflictError,
    InternalError,
    MissingExtraError,
    SchemaVersionError,
    StoreCorruptError,
    StoreError,
    StoreNotFoundError,
    StoreUnavailableError,
    StoreUrlError,
)
from treadle.runtime.node import Settings
from treadle.store.base import Append, InboxInput, SessionRow
from treadle.store.nats import NatsStore, wire
from treadle.store.nats.development import Node, free_ports, nodes_in
from treadle.store.nats.link import Link
from treadle.store.nats.location import parse_url
from treadle.store.nats.snapshots import encode_snapshot
from treadle.store.nats.streams import check_server
from treadle.testing.contract_kit import (
    NOW,
    OTHER,
    RUN,
    Party,
    append_of,
    key_of,
    numbers,
    report_of,
    signal_of,
    start_of,
    task_of,
)

pytestmark = pytest.mark.nats
# A time that no blob is younger than.
_FAR = 1e12

registry = Registry()


@step(name="nats:add", registry=registry)
async def add(value: int) -> int:
    return value + 1


def chain(length: int) -> Any:
    builder = PlanBuilder("chain", registry=registry)
    value: Any = 0
    for number in range(length):
        value = builder.step(f"s{number}", add, value)
    builder.output(value)
    return builder.build()


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def make(*settings: str, jetstream: tuple[str, ...] | None = ()) -> Node:
        node = Node(tmp_path / f"n{len(nodes)}", free_ports(1)[0], settings, jetstream=jetstream)
        nodes.append(node)
        node.start()
        node.wait()
        return node

    yield make
    for node in nodes:
        node.kill()


def run_on(store: Any, work: Any) -> Any:
    return store._loop.call(work)


def rooms_of(store: Any) -> Any:
    return store._rooms


# -- round trips ---------------------------------------------------------------------------------------


async def test_a_step_costs_the_same_few_round_trips_whatever_the_size_of_its_run(nats_url: str) -> None:
    costs: list[float] = []
    for length in (10, 100, 1000):
        async with connect(nats_url, registry=registry, lease=600) as app:
            link = rooms_of(app._node.store).link
            before = link.requests
            run = await app.start(chain(length))
            assert await run.result() == length
            costs.append((link.requests - before) / length)

    # One append a step; the rest is start, end, and the sweeper's look around once a second.
    assert costs[0] < 4
    assert costs[1] < 1.6
    assert costs[2] < 1.3


async def test_a_step_costs_no_more_however_many_processes_could_decide_it(nats_url: str) -> None:
    async with AsyncExitStack() as ends:
        busy, *idle = [
            await ends.enter_async_context(connect(nats_url, registry=registry, lease=600)) for _ in range(5)
        ]
        before = [rooms_of(app._node.store).link.requests for app in (busy, *idle)]
        run = await busy.start(chain(500))
        assert await run.result() == 500
        costs = [
            rooms_of(app._node.store).link.requests - count for app, count in zip((busy, *idle), before, strict=True)
        ]

    # All but a few are one append a step; the others look around once a second.
    assert costs[0] < 1.3 * 500
    assert max(costs[1:]) < 0.2 * 500


def test_an_append_that_nobody_interferes_with_is_one_round_trip(open_nats: Callable[..., NatsStore]) -> None:
    one = Party(open_nats(), "one")
    one.start(tasks=[task_of(RUN, 1)], slots=1)
    before = rooms_of(one.store).link.requests

    (answer,) = one.commit(append_of(RUN, 1, ended=[1], tasks=[task_of(RUN, 2)]), slots=1)

    assert numbers(answer.leased) == [2]
    assert rooms_of(one.store).link.requests == before + 1


# -- the log -------------------------------------------------------------------------------------------


def test_a_process_that_fell_behind_what_was_cleared_goes_on_from_the_snapshot(
    open_nats: Callable[..., NatsStore],
) -> None:
    ahead, behind = open_nats(), open_nats()
    one = Party(ahead, "one")
    one.start(tasks=[task_of(RUN, number) for number in (1, 2, 3)])
    one.claim(1)
    one.start(OTHER)
    one.settle(OTHER)
    ahead.delete(OTHER)

    run_on(ahead, ahead._rooms.log.store_snapshot())

    assert behind._rooms.log.applied < ahead._rooms.log.applied
    assert numbers(behind.claim(Party(behind, "two").id, _slots(9), one.row().created_at)[0]) == [2, 3]
    for store in (ahead, behind):
        run_on(store, store._rooms.log.follow())
    assert encode_snapshot(0, behind._rooms.log.machine) == encode_snapshot(0, ahead._rooms.log.machine)


def _slots(free: int) -> Any:
    from treadle.testing.contract_kit import Slots

    return Slots(free)


def test_a_deleted_run_leaves_no_message_behind(open_nats: Callable[..., NatsStore]) -> None:
    store = open_nats()
    one = Party(store, "one")
    one.start(payloads=[("d", b"x" * 2_000_000)], plan=b"p" * 700_000)
    one.settle()
    store.delete(RUN)

    run_on(store, store._rooms.log.store_snapshot())

    location = store.location
    for stream in (location.log, location.values):
        info = run_on(store, store._rooms.link.api(f"STREAM.INFO.{stream}", {"subjects_filter": ">"}))
        left = info["state"].get("subjects", {})
        assert not [subject for subject in left if RUN in subject], left


def test_a_large_snapshot_takes_the_place_of_the_one_before(open_nats: Callable[..., NatsStore]) -> None:
    store = open_nats()
    one = Party(store, "one")
    one.start()
    for number in range(3):
        one.store.post([InboxInput(f"i{number}", RUN, bytes([number]) * 700_000)])
        run_on(store, rooms_of(store).log.store_snapshot())

    request = {"subjects_filter": f"{store.location.snapshot}.>"}
    info = run_on(store, rooms_of(store).link.api(f"STREAM.INFO.{store.location.values}", request))
    # 2.1 MB in parts of half a megabyte.
    assert len(info["state"]["subjects"]) == 5
    assert open_nats().inbox(RUN) == one.store.inbox(RUN)


def test_an_append_that_lost_a_race_is_no_part_of_the_journal(open_nats: Callable[..., NatsStore]) -> None:
    one, two = Party(open_nats(), "one"), Party(open_nats(), "two")
    one.start()
    two.store.acquire("two", RUN, steal=True)

    # The first process has not seen that the run is stolen.
    (answer,) = one.commit(append_of(RUN, 1, status="failed"))
    two.append()

    assert answer.status == "conflict"
    assert [row[0] for row in one.load().rows] == [1, 2]
    assert two.row().status == "running"
    assert one.store.check().facts["appends without effect"] == "1"


def test_a_task_that_another_process_took_meanwhile_costs_no_slot(open_nats: Callable[..., NatsStore]) -> None:
    one, two = Party(open_nats(), "one"), Party(open_nats(), "two")
    one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)])
    run_on(two.store, rooms_of(two.store).log.follow())
    one.claim(1)
    offer = _slots(2)

    claimed, _ = two.store.claim("two", offer, one.row().created_at)

    assert numbers(claimed) == [2]
    assert offer.free() == 1


def test_stores_of_other_names_share_nothing(nats_server: Node, open_nats: Callable[..., NatsStore]) -> None:
    one = Party(open_nats(), "one")
    other = Party(open_nats(f"{nats_server.url}/{new_name()}"), "one")
    one.start()

    assert other.store.run(RUN) is None
    assert [row.id for row in other.store.sessions()] == ["one"]


def test_appends_of_many_runs_are_in_flight_together(open_nats: Callable[..., NatsStore]) -> None:
    one = Party(open_nats(), "one")
    keys = [key_of(number) for number in range(500)]

    answers = one.commit(*(start_of(key, tasks=[task_of(key, 1)]) for key in keys), slots=500)

    assert sum(len(answer.leased) for answer in answers) == 500
    assert one.store.check().problems == []


def test_every_field_of_an_append_is_in_its_operation() -> None:
    # Payloads and the plan are stored beside the log; the state needs no belief of what the status was; statements are
    # given only to a store that is a database itself.
    beside = {"payloads", "was", "given"}

    assert set(Append.__struct_fields__) - beside == set(wire.AppendOp.__struct_fields__) - {"session", "takes"}


# -- connections that break ----------------------------------------------------------------------------


def test_each_call_survives_a_connection_that_is_cut_anywhere_in_its_answer(
    nats_server: Node, open_nats: Callable[..., NatsStore]
) -> None:
    proxy = Proxy(nats_server.port)
    try:
        store = open_nats(f"nats://127.0.0.1:{proxy.port}/{new_name()}")
        for place, cut in enumerate(range(0, 700, 35), 1):
            one = Party(store, f"one-{place}")
            key = key_of(place)
            proxy.cut_after(cut)

            answer = one.start(key, tasks=[task_of(key, 1), task_of(key, 2)], slots=1, payloads=[("d", b"1" * 2000)])
            (task,) = answer.leased
            claimed = one.claim(1)
            reported = one.report(report_of(task), report_of(claimed[0]))
            posted = one.store.post([signal_of(key, "i")])
            one.append(key, consumed=["i"], status="succeeded")
            proxy.left = None

            assert (numbers([task]), numbers(claimed), reported, posted) == ([1], [2], [True, True], [True])
            loaded = one.load(key)
            assert [row[0] for row in loaded.rows] == [1, 2]
            assert len(loaded.inbox) == 2
            assert one.store.payloads(key, ["d"]) == {"d": b"1" * 2000}
        assert store.check().problems == []
    finally:
        proxy.close()


@pytest.mark.soak
async def test_a_server_that_is_killed_and_started_again_loses_nothing(start_node: Callable[..., Node]) -> None:
    node = start_node()
    restarts = 4
    async with connect(f"{node.url}/kept", registry=registry) as app:
        run = await app.start(chain(2000), id="long")
        pause = threading.Event()

        def disturb() -> None:
            for _ in range(restarts):
                pause.wait(0.3)
                node.kill()
                node.start()
                node.wait()

        thread = threading.Thread(target=disturb)
        thread.start()
        assert await run.result(timeout=120) == 2000
        thread.join()

        loaded = await run.load()
        assert [row[0] for row in loaded.rows] == list(range(1, loaded.version + 1))
        assert (await app.check()).problems == []


# -- wake-ups, permissions -----------------------------------------------------------------------------


async def test_a_worker_elsewhere_is_woken_and_need_not_look_around(nats_url: str) -> None:
    idle = Settings(sweep_seconds=3600)
    async with (
        connect(nats_url, registry=registry, settings=idle) as worker,
        connect(nats_url, registry=registry, settings=Settings(worker=False, sweep_seconds=3600)) as starter,
    ):
        for number in range(20):
            run = await starter.start(chain(3), id=f"r{number}")
            assert await run.result(timeout=20) == 3
        assert len(await worker.runs()) == 20


def test_the_permissions_that_the_how_to_names_are_enough(
    start_node: Callable[..., Node], open_nats: Callable[..., NatsStore]
) -> None:
    page = Path(__file__).parents[2].joinpath("docs", "how-to-nats-in-production.md").read_text(encoding="utf-8")
    rules = page.partition('publish: ["treadle.shop')[2].partition("```")[0]
    node = start_node(
        "authorization {",
        "  users: [{ user: me, password: secret, permissions: {",
        f'publish: ["treadle.shop{rules}',
        "  } }]",
        "}",
    )
    url = f"nats://me:secret@127.0.0.1:{node.port}/shop"
    one, two = Party(open_nats(url), "one"), Party(open_nats(url), "two")

    one.start(tasks=[task_of(RUN, 1)], payloads=[("d", b"1")])
    (task,) = two.claim()
    assert two.report(report_of(task)) == [True]
    one.settle()
    run_on(one.store, rooms_of(one.store).log.store_snapshot())

    assert two.store.delete(RUN) == "deleted"
    assert one.store.check().problems == []
    assert rooms_of(one.store).link.errors == []


def test_an_operation_that_cannot_be_applied_stops_nobody(open_nats: Callable[..., NatsStore]) -> None:
    one, two = Party(open_nats(), "one"), Party(open_nats(), "two")
    one.start()
    # The task that it is to end was never there, which no caller writes.
    broken = wire.AppendOp(
        session="one",
        key=RUN,
        expect=1,
        commit_id=1,
        time=NOW,
        events="[]",
        status="running",
        report=report_of(task_of(RUN, 99), lease=7),
    )

    (result,) = run_on(one.store, rooms_of(one.store).log.write([(rooms_of(one.store).location.journal(RUN), broken)]))

    assert isinstance(result, InternalError)
    one.append(status="succeeded")
    assert two.store.load(RUN) == one.load()


# -- blobs ---------------------------------------------------------------------------------------------


def test_a_blob_grows_old_and_is_removed_with_all_its_parts(open_nats: Callable[..., NatsStore]) -> None:
    store = open_nats()
    blobs = store.blobs()
    digests = {blobs.put(data): len(data) for data in (b"", b"small", b"x" * 1_500_000)}
    others = [blobs.put(b"%d" % number) for number in range(300)]

    assert list(blobs.old(0.0)) == []
    assert {*digests.items()} <= {*blobs.old(_FAR)}
    assert len(list(blobs.old(_FAR))) == 303
    assert not blobs.remove(others[0], 0.0)
    assert [blobs.remove(digest, _FAR) for digest in digests] == [True, True, True]

    assert not any(blobs.renew(digest) for digest in digests)
    assert blobs.get(others[7]) == b"7"
    info = run_on(store, rooms_of(store).link.api(f"STREAM.INFO.{store.location.values}"))
    assert info["state"]["messages"] == 2 * len(others)


def test_a_blob_that_is_renewed_or_put_again_while_it_is_removed_stays(open_nats: Callable[..., NatsStore]) -> None:
    store = open_nats()
    blobs, values = store.blobs(), rooms_of(store).values
    for again in (blobs.renew, lambda digest: blobs.put(b"kept" * 200_000)):
        digest = blobs.put(b"kept" * 200_000)
        (seen,) = run_on(store, values.heads(store.location.blob(digest)))

        again(digest)

        assert run_on(store, values.remove(seen)) is False
        assert blobs.get(digest) == b"kept" * 200_000


def test_a_removed_blob_is_not_renewed_by_who_saw_it_before(open_nats: Callable[..., NatsStore]) -> None:
    store = open_nats()
    digest = store.blobs().put(b"gone")
    subject = store.location.blob(digest)
    (seen,) = run_on(store, rooms_of(store).values.heads(subject))
    store.blobs().remove(digest, _FAR)

    with pytest.raises(ConflictError):
        run_on(store, rooms_of(store).link.publish([(subject, b"#{}", "late")], after=seen.seq))


# -- what cannot be opened -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nats:///name", "names no server"),
        ("nats://host:port/name", "is no host and port"),
        ("nats://host/a.b", "letters, digits"),
        ("nats://host/name?replicas=2", "one of 1, 3, 5"),
        ("nats://host/name?max_bytes=none", "a number above 0"),
        ("nats://host/name?storage=tape", "one of file, memory"),
        ("nats://host/name?speed=high", "option speed is not known"),
        ("nats://host/name#part", "has a fragment"),
        ("nats://host/name?monitor=host:8222", "as http://host:8222"),
        (f"nats://host/name?level={wire.LEVEL + 1}", "which should be one of 1, 2"),
    ],
)
def test_a_wrong_url_is_told_what_is_wrong(url: str, says: str) -> None:
    with pytest.raises(StoreUrlError, match=says):
        parse_url(url)


def test_a_url_may_name_several_servers_with_one_user() -> None:
    location = parse_url("nats://me:secret@a:1,b/store?replicas=3")

    assert location.servers == ("nats://me:secret@a:1", "nats://me:secret@b:4222")
    assert location.shown == "nats://a:1,nats://b:4222/store"
    assert (location.name, location.replicas) == ("store", 3)


def test_a_server_that_is_not_there_is_named(open_nats: Callable[..., NatsStore]) -> None:
    (port,) = free_ports(1)

    with pytest.raises(StoreUnavailableError, match=rf"no NATS server answers at nats://127.0.0.1:{port}"):
        open_nats(f"nats://127.0.0.1:{port}/name")


def test_wrong_credentials_are_told_apart_and_not_shown(
    start_node: Callable[..., Node], open_nats: Callable[..., NatsStore]
) -> None:
    node = start_node("authorization {", "  user: me", "  password: secret", "}")
    host = node.url.removeprefix("nats://")

    with pytest.raises(StoreUnavailableError, match="refuses the credentials") as caught:
        open_nats(f"nats://me:wrong-one@{host}/name")

    assert "wrong-one" not in str(caught.value)
    assert open_nats(f"nats://me:secret@{host}/name").sessions() == []


def test_a_server_without_jetstream_is_told_what_it_lacks(
    start_node: Callable[..., Node], open_nats: Callable[..., NatsStore]
) -> None:
    node = start_node(jetstream=None)

    with pytest.raises(StoreUnavailableError, match="JetStream is not enabled"):
        open_nats(f"{node.url}/name")


def test_a_server_that_is_too_old_is_refused() -> None:
    link = Link(parse_url("nats://host/name"))
    link.client = SimpleNamespace(connected_server_version=SimpleNamespace(major=2, minor=9))

    with pytest.raises(StoreError, match=r"is nats-server 2\.9; treadle needs 2\.11 or newer"):
        check_server(link)


def test_a_store_that_is_only_to_be_read_is_not_made(open_nats: Callable[..., NatsStore], nats_url: str) -> None:
    with pytest.raises(StoreNotFoundError, match="there is no store"):
        open_nats(create=False)

    open_nats()
    assert open_nats(create=False).find("x") == []


@pytest.mark.parametrize(
    ("metadata", "error"),
    [({"treadle.schema": "99"}, SchemaVersionError), ({}, StoreCorruptError)],
    ids=["newer", "foreign"],
)
def test_streams_that_are_not_ours_or_newer_are_left_alone(
    nats_server: Node,
    open_nats: Callable[..., NatsStore],
    nats_url: str,
    metadata: dict[str, str],
    error: type[StoreError],
) -> None:
    location = parse_url(nats_url)
    helper = open_nats(f"{nats_server.url}/{new_name()}")
    config = {"name": location.log, "subjects": [f"{location.prefix}.log.>"], "metadata": metadata}
    run_on(helper, helper._rooms.link.api(f"STREAM.CREATE.{location.log}", config))

    with pytest.raises(error):
        open_nats()


def test_replicas_need_as_many_servers(nats_url: str, open_nats: Callable[..., NatsStore]) -> None:
    with pytest.raises(StoreError, match="cannot keep 3 replicas"):
        open_nats(f"{nats_url}?replicas=3")


def test_without_its_client_the_extra_is_named(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nats.aio.client", None)
    store = NatsStore.from_url(nats_url)

    with pytest.raises(MissingExtraError, match=r"pip install 'treadle\[nats\]'"):
        store.open()


@pytest.mark.parametrize(
    ("setting", "says"),
    [((), "may lose the last 120 s"), (("sync_interval: always",), "on the disk of one server before it is answered")],
    ids=["default", "always"],
)
def test_a_store_says_which_durability_it_gives(
    start_node: Callable[..., Node], open_nats: Callable[..., NatsStore], setting: tuple[str, ...], says: str
) -> None:
    node = start_node(jetstream=setting)

    silent = open_nats(f"{node.url}/name")
    told = open_nats(f"{node.url}/name?monitor=http://127.0.0.1:{node.monitor}")

    assert "what its sync_interval allows" in silent.durability
    assert says in told.durability
    assert told.check().facts["durability"] == told.durability


def test_nodes_for_development_know_each_other(tmp_path: Path) -> None:
    nodes = nodes_in(tmp_path, 3)

    texts = [node.config.read_text() for node in nodes]

    assert all(text.count("nats://127.0.0.1:") == 3 for text in texts)
    assert len({node.port for node in nodes}) == 3


def test_a_session_row_is_what_was_opened(open_nats: Callable[..., NatsStore]) -> None:
    row = SessionRow("s", "w", "", 0, 0, ["act"])
    store = open_nats()
    store.open_session(row)

    assert store.sessions() == [row]


def test_a_store_is_closed_although_what_its_client_waits_for_is_cancelled(
    open_nats: Callable[..., NatsStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_nats()
    client = store._rooms.link.client
    close = client.close

    async def broken() -> None:
        await close()
        raise asyncio.CancelledError

    monkeypatch.setattr(client, "close", broken)

    store.close()

    assert client.is_closed
    assert not store._loop.thread.is_alive()
