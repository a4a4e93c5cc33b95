"""Events out: CloudEvents by callback and webhook, at least once and in order, whatever dies or does not answer."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import itertools
import json
import re
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.tls_kit import Authority

from treadle import (
    Encryption,
    EventCallback,
    Permanent,
    Registry,
    RunFailedError,
    Secret,
    StoreUrlError,
    UsageError,
    Webhook,
    connect,
    step,
    workflow,
)
from treadle.runtime import events_out
from treadle.runtime.event_sinks import DeliveryError, EventSink
from treadle.runtime.webhooks import signature

TARGET = Path(__file__).with_name("events_target.py")
KEY = base64.b64encode(b"k" * 32).decode()
registry = Registry()


@step(registry=registry, name="out:say")
async def say(text: str) -> str:
    if text == "bad":
        raise Permanent("it is bad")
    return text


@workflow(registry=registry, name="out:two")
def two(text: str) -> str:
    return say.options(id="second").bind(say.options(id="first").bind(text))


@workflow(registry=registry, name="out:one")
def one(text: str) -> str:
    return say.options(id="only").bind(text)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/app.db?sync=normal"


class Receiver:
    """A real HTTP server on one port, that can be ended and begun again, and answers as it is told."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self.requests: list[tuple[dict[str, str], bytes]] = []
        # What it answers next, before it answers 204 again.
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.port = 0
        self._server: ThreadingHTTPServer | None = None
        self.begin()

    def begin(self) -> None:
        own = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                body = self.rfile.read(length)
                if len(body) < length:
                    # The sender died; a request that is cut off was not received.
                    return
                own.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
                status, headers = own.answers.pop(0) if own.answers else (204, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        if self._context is not None:
            # The handshake is the handler's business, so that one that fails holds up nobody.
            self._server.socket = self._context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def end(self) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        where = "http://127.0.0.1" if self._context is None else "https://localhost"
        return f"{where}:{self.port}/hook?from=treadle"

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in list(self.requests)]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.end()


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("io.treadle.").removesuffix(".v1") for event in events]


def check_order(events: list[dict[str, Any]]) -> None:
    """The first time that each is seen, events of a run come in the order of its journal."""
    first = {event["id"]: event for event in reversed(events)}
    seen: dict[str, list[str]] = {}
    for event in sorted(first.values(), key=lambda event: events.index(event)):
        seen.setdefault(event["partitionkey"], []).append(event["sequence"])
    assert all(sequences == sorted(sequences) for sequences in seen.values())


# -- what an event is --------------------------------------------------------------------------------------------------


async def test_events_of_a_journal_are_cloudevents(url: str) -> None:
    async with connect(url, registry=registry) as app:
        trace = f"00-{'ab' * 16}-{'cd' * 8}-01"
        run = await app.start(two, "hello", id="r 1", labels={"team": "a"}, trace=trace)
        await run.result()
        found = [event async for event in run.cloud_events()]
        again = [event async for event in run.cloud_events(after=1)]
        key = await run.key()

    for event in found:
        assert event["specversion"] == "1.0"
        assert all(re.fullmatch(r"[a-z0-9]{1,20}", name) for name in event)
        assert event["source"]
        assert event["subject"] == "r 1"
        assert event["partitionkey"] == key
        assert event["traceparent"] == trace
        assert event["datacontenttype"] == "application/json"
        assert event["time"].endswith("Z")
        assert datetime.fromisoformat(event["time"]).tzinfo is not None
        json.dumps(event)
    assert len({event["id"] for event in found}) == len(found)
    assert [event["sequence"] for event in found] == sorted(event["sequence"] for event in found)
    assert again == [event for event in found if event["data"]["version"] > 1]
    assert kinds(found)[0] == "run_started"
    assert kinds(found)[-1] == "run_settled"
    [done] = [event for event in found if event["data"].get("at") == "second" and "succeeded" in event["type"]]
    assert done["data"]["result"] == {"value": "hello"}
    assert done["data"]["run"] == {"id": "r 1", "key": key, "workflow": "out:two", "labels": {"team": "a"}}


async def test_values_that_are_encrypted_stay_so_in_events(url: str) -> None:
    got: list[dict[str, Any]] = []
    sink = EventCallback(got.append, name="all", kinds=["*"])
    async with connect(url, registry=registry, codec=Encryption({"k1": bytes(32)}), events=[sink]) as app:
        await (await app.start(two, "confidential")).result()
        await app.events_delivered()
    assert "confidential" not in json.dumps(got)
    assert {"key_id": "k1"} in [event["data"].get("result") for event in got]


# -- callbacks ---------------------------------------------------------------------------------------------------------


async def test_a_callback_gets_what_its_filters_let_through(url: str) -> None:
    got: dict[str, list[dict[str, Any]]] = {name: [] for name in ("usual", "failures", "labelled", "flow")}

    async def usual(event: dict[str, Any]) -> None:
        got["usual"].append(event)

    sinks = [
        EventCallback(usual, name="usual"),
        EventCallback(got["failures"].append, name="failures", kinds=["*_failed"]),
        EventCallback(got["labelled"].append, name="labelled", labels={"team": "a"}),
        EventCallback(got["flow"].append, name="flow", workflows=["out:one"], kinds=["run_settled"]),
    ]
    async with connect(url, registry=registry, events=sinks) as app:
        await (await app.start(two, "x", labels={"team": "b"})).result()
        await (await app.start(one, "y", labels={"team": "a", "more": "1"})).result()
        with pytest.raises(RunFailedError):
            await (await app.start(one, "bad")).result()
        await app.events_delivered()

    assert Counter(kinds(got["usual"])) == {"run_started": 3, "step_succeeded": 3, "step_failed": 1, "run_settled": 3}
    assert kinds(got["failures"]) == ["step_failed"]
    assert {event["data"]["run"]["labels"]["team"] for event in got["labelled"]} == {"a"}
    assert [event["data"]["outcome"] for event in got["flow"]] == ["succeeded", "failed"]
    check_order(got["usual"])


async def test_a_callback_that_raises_is_called_again_and_runs_go_on_meanwhile(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_out, "FIRST_SECONDS", 0.01)
    got: list[str] = []
    up = asyncio.Event()

    async def flaky(event: dict[str, Any]) -> None:
        got.append(event["id"])
        if not up.is_set():
            raise ValueError("not now")

    async with connect(url, registry=registry, events=[EventCallback(flaky, name="flaky")]) as app:
        runs = [await app.start(two, str(number)) for number in range(20)]
        assert [await run.result() for run in runs] == [str(number) for number in range(20)]
        while len(got) < 3:
            await asyncio.sleep(0.01)
        assert len(set(got)) == 1
        up.set()
        async with asyncio.timeout(20):
            await app.events_delivered()
    assert len(set(got)) == 20 * 4


PLACES = [
    "sqlite",
    pytest.param("postgres", marks=pytest.mark.postgres),
    pytest.param("nats", marks=pytest.mark.nats),
    pytest.param("sqlite+postgres", marks=pytest.mark.postgres),
    pytest.param("nats+sqlite", marks=pytest.mark.nats),
]


@pytest.fixture(params=PLACES)
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The store's URL, and the cursor's."""
    store, _, cursor = request.param.partition("+")
    with ExitStack() as stack:
        found: list[str] = []
        for kind, path in ((store, "app.db"), (cursor, "cursor.db")):
            if kind == "postgres":
                request.getfixturevalue("postgres_server")
                from tests.postgres_kit import empty_schema, new_schema, shared_server, url_of

                name = stack.enter_context(empty_schema() if path == "app.db" else new_schema())
                found.append(url_of(shared_server(), name))
            elif kind == "nats":
                found.append(str(request.getfixturevalue("nats_url")))
            else:
                found.append(f"sqlite:///{tmp_path}/{path}?sync=normal" if kind else "")
        yield found[0], found[1]


async def test_a_cursor_goes_on_where_it_was_and_a_new_one_begins_now_or_with_the_history(
    places: tuple[str, str],
) -> None:
    url, cursor = places
    got: list[dict[str, Any]] = []

    async def deliver(name: str, *, history: bool = False) -> list[str]:
        got.clear()
        sink = EventCallback(got.append, name=name, kinds=["run_settled"], history=history, cursor=cursor)
        async with connect(url, registry=registry, events=[sink]) as app:
            await (await app.start(one, "x")).result()
            await app.events_delivered()
        return [event["id"] for event in got]

    async with connect(url, registry=registry) as app:
        await (await app.start(one, "before")).result()
    first = await deliver("now")
    assert len(first) == 1
    async with connect(url, registry=registry) as app:
        await (await app.start(one, "between")).result()
    assert len(await deliver("now")) == 2
    assert len(await deliver("all", history=True)) == 5


async def test_cursors_of_names_that_begin_alike_and_of_any_text_lie_side_by_side(places: tuple[str, str]) -> None:
    url, cursor = places
    names = ["runs", "runs_x", 'any "text" at; all.>*', "x" * 200]
    got: dict[str, list[str]] = {name: [] for name in names}

    def sink(name: str) -> EventSink:
        return EventCallback(
            lambda event: got[name].append(event["id"]), name=name, cursor=cursor, kinds=["run_started", "run_settled"]
        )

    for _ in range(2):
        sinks = [sink(name) for name in names]
        async with connect(url, registry=registry, events=sinks) as app:
            await (await app.start(one, "x")).result()
            await app.events_delivered()

    assert [len(found) for found in got.values()] == [4] * 4


@pytest.mark.parametrize("kind", [PLACES[1], PLACES[2]])
async def test_a_run_that_is_deleted_takes_its_cursors_along(request: pytest.FixtureRequest, kind: str) -> None:
    with ExitStack() as stack:
        if kind == "postgres":
            request.getfixturevalue("postgres_server")
            from tests.postgres_kit import empty_schema, shared_server, url_of

            url = url_of(shared_server(), stack.enter_context(empty_schema()))
        else:
            url = str(request.getfixturevalue("nats_url"))
        sink = EventCallback(lambda event: None, name="all")
        async with connect(url, registry=registry, events=[sink]) as app:
            run = await app.start(one, "x")
            await run.result()
            await app.events_delivered()
            key = await run.key()
            store: Any = app._node.store
            positions = store.positions()
            before = positions.position("all", key)
            await run.delete()

            assert (before > 0, positions.position("all", key), positions.position("all", "")) == (True, 0, 1)
            positions.close()


async def test_one_of_several_processes_delivers_what_all_of_them_commit(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_out, "ELECT_SECONDS", 0.05)
    got: list[tuple[str, str]] = []

    def sink(who: str) -> EventSink:
        return EventCallback(lambda event: got.append((who, event["id"])), name="shared", kinds=["run_settled"])

    async with connect(url, registry=registry, events=[sink("a")]) as first:
        async with connect(url, registry=registry, events=[sink("b")]) as second:
            for app in (first, second, second):
                await (await app.start(one, "x")).result()
            async with asyncio.timeout(20):
                while len(got) < 3:
                    await asyncio.sleep(0.01)
        assert {who for who, _ in got} == {"a"}
        assert len(set(got)) == 3


async def test_nothing_is_kept_for_a_receiver_that_is_down_but_the_keys_of_some_runs(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_out, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(events_out, "MOST_NEWS", 5)
    got: list[str] = []
    up = asyncio.Event()

    async def down(event: dict[str, Any]) -> None:
        if not up.is_set():
            raise DeliveryError("down", 0.01)
        got.append(event["id"])

    sink = EventCallback(down, name="down", kinds=["run_settled"])
    async with connect(url, registry=registry, events=[sink]) as app:
        for number in range(30):
            await (await app.start(one, str(number))).result()
        assert app._node.feeds is not None
        assert len(app._node.feeds._feeds[0]._news) <= 5
        up.set()
        async with asyncio.timeout(20):
            await app.events_delivered()
    assert len(got) == len(set(got)) == 30


# -- webhooks ----------------------------------------------------------------------------------------------------------


def verify(headers: dict[str, str], body: bytes, key: str) -> bool:
    """As the scheme tells receivers to."""
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    made = base64.b64encode(hmac.new(base64.b64decode(key), signed, hashlib.sha256).digest()).decode()
    return any(
        hmac.compare_digest(given.split(",", 1)[1], made)
        for given in headers["webhook-signature"].split(" ")
        if given.startswith("v1,")
    )


def test_a_signature_is_that_of_the_scheme() -> None:
    # The example of the specification of Standard Webhooks.
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    assert signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


async def test_a_webhook_signs_with_all_its_secrets_and_sends_each_event_under_its_id(
    url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", f"whsec_{base64.b64encode(b'n' * 32).decode()}")
    secrets: list[str | Secret[str]] = [f"whsec_{KEY}", Secret.named("env:HOOK_SECRET")]
    sink = Webhook(receiver.url, secrets=secrets, headers={"x-team": "a"})
    async with connect(url, registry=registry, events=[sink]) as app:
        await (await app.start(two, "x")).result()
        await app.events_delivered()

    assert kinds(receiver.events()) == ["run_started", "step_succeeded", "step_succeeded", "run_settled"]
    for headers, body in receiver.requests:
        assert headers["content-type"] == "application/cloudevents+json; charset=utf-8"
        assert headers["webhook-id"] == json.loads(body)["id"]
        assert abs(int(headers["webhook-timestamp"]) - time.time()) < 300
        assert headers["x-team"] == "a"
        assert verify(headers, body, KEY)
        assert verify(headers, body, base64.b64encode(b"n" * 32).decode())
        assert not verify(headers, body + b" ", KEY)


async def test_a_webhook_goes_by_tls_to_a_receiver_that_proves_its_name_alone(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events_out, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(events_out, "LONGEST_SECONDS", 0.05)
    authority = Authority(tmp_path)
    right, wrong = Receiver(authority.server("localhost")), Receiver(authority.server("elsewhere"))

    async def deliver(receiver: Receiver, name: str) -> None:
        sink = Webhook(receiver.url, name=name, secrets=[KEY], kinds=["run_settled"])
        async with connect(url, registry=registry, events=[sink]) as app:
            await (await app.start(one, name)).result()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await app.events_delivered()

    try:
        await deliver(right, "stranger")
        assert "certificate verify failed: unable to get local issuer certificate" in caplog.text
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
        await deliver(wrong, "wrong")
        assert "Hostname mismatch" in caplog.text
        assert (right.requests, wrong.requests) == ([], [])

        await deliver(right, "stranger")
    finally:
        right.end()
        wrong.end()
    # What was held back comes as well.
    assert kinds(right.events()) == ["run_settled"] * 3
    assert all(verify(headers, body, KEY) for headers, body in right.requests)


async def test_errors_and_redirections_are_tried_again_and_a_wait_that_is_asked_for_is_kept(
    url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_out, "FIRST_SECONDS", 0.01)
    receiver.answers = [(500, {}), (302, {"location": "/elsewhere"}), (429, {"retry-after": "1"}), (404, {})]
    started = time.monotonic()
    async with connect(url, registry=registry, events=[Webhook(receiver.url, kinds=["run_started"])]) as app:
        await (await app.start(one, "x")).result()
        async with asyncio.timeout(20):
            await app.events_delivered()
    assert len({headers["webhook-id"] for headers, _ in receiver.requests}) == 1
    assert len(receiver.requests) == 5
    assert time.monotonic() - started >= 1


async def test_a_receiver_that_is_ended_and_begun_again_gets_all_events_in_order(
    url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_out, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(events_out, "LONGEST_SECONDS", 0.05)
    async with connect(url, registry=registry, events=[Webhook(receiver.url)]) as app:
        for number in range(5):
            await (await app.start(two, str(number))).result()
            receiver.end()
            await (await app.start(two, f"{number} again")).result()
            receiver.begin()
        async with asyncio.timeout(20):
            await app.events_delivered()
    events = receiver.events()
    assert len({event["id"] for event in events}) == 10 * 4
    check_order(events)


def test_a_process_that_is_killed_at_any_instant_loses_no_event(tmp_path: Path, receiver: Receiver) -> None:
    arguments = [sys.executable, str(TARGET), f"sqlite:///{tmp_path}/kill.db", receiver.url, "6", "15"]
    kills = 0
    for goal in itertools.count(40, 40):
        program = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        while program.poll() is None and len(receiver.requests) < goal:
            time.sleep(0.001)
        if program.poll() is not None:
            assert program.stdout is not None
            assert program.stdout.read() == "done\n"
            assert program.returncode == 0
            program.stdout.close()
            break
        program.kill()
        program.wait()
        assert program.stdout is not None
        program.stdout.close()
        kills += 1
    assert kills >= 3

    events = receiver.events()
    check_order(events)
    expected = asyncio.run(all_events(f"sqlite:///{tmp_path}/kill.db"))
    assert {event["id"]: event for event in events} == expected


async def all_events(url: str) -> dict[str, dict[str, Any]]:
    async with connect(url, worker=False) as app:
        rows = await app.runs()
        return {event["id"]: event for row in rows async for event in app.run(row.id).cloud_events()}


# -- mistakes ----------------------------------------------------------------------------------------------------------


async def test_a_sink_that_cannot_work_is_refused(tmp_path: Path) -> None:
    for wrong in ("ftp://x", "nonsense", "http://"):
        with pytest.raises(UsageError, match="http"):
            Webhook(wrong)
    for secret in ("short", f"whsec_{base64.b64encode(b'x' * 8).decode()}"):
        with pytest.raises(UsageError, match="24 bytes") as caught:
            Webhook("http://h/", secrets=[secret])
        assert secret not in str(caught.value)
    with pytest.raises(UsageError, match="no events of kind step_done"):
        EventCallback(print, name="x", kinds=["step_done"])
    with pytest.raises(UsageError, match="name"):
        EventCallback(print, name="")
    twice = [EventCallback(print, name="x"), EventCallback(print, name="x")]
    with pytest.raises(UsageError, match="two event sinks are called 'x'"):
        connect("memory://", events=twice)
    with pytest.raises(StoreUrlError, match="cursor"):
        async with connect("memory://", events=[EventCallback(print, name="x", cursor="mysql://x")]):
            pass


async def test_a_secret_that_is_not_there_keeps_the_event(url: str, receiver: Receiver) -> None:
    sink = Webhook(receiver.url, secrets=[Secret.named("env:NOT_THERE")], kinds=["run_settled"])
    async with connect(url, registry=registry, events=[sink]) as app:
        await (await app.start(one, "x")).result()
        await asyncio.sleep(0.05)
    assert receiver.requests == []
    async with connect(url, registry=registry, events=[Webhook(receiver.url, kinds=["run_settled"])]) as app:
        await app.events_delivered()
    assert kinds(receiver.events()) == ["run_settled"]


async def test_without_sinks_nobody_is_told_of_commits() -> None:
    async with connect("memory://", registry=registry) as app:
        node = app._node
        assert (node.feeds, node._told_of_commits()) == (None, None)
        await app.events_delivered()


async def test_what_is_committed_while_the_end_of_a_journal_is_read_is_delivered(url: str) -> None:
    got: list[str] = []
    sink = EventCallback(lambda event: got.append(event["type"]), name="all", kinds=["run_started", "run_settled"])
    async with connect(url, registry=registry, events=[sink]) as app, asyncio.timeout(5):
        assert app._node.feeds is not None
        feed: Any = app._node.feeds._feeds[0]
        bring, run = feed._bring, app.run("heard")

        async def slowly(key: str) -> Any:
            feed._bring = bring
            done = await bring(key)
            # The journal was read to its end, and nothing else of the delivery has happened yet.
            await run.signal("go")
            await run.result()
            return done

        feed._bring = slowly
        await app.start(heard, id="heard")
        while len(got) < 2:
            await asyncio.sleep(0.01)


@workflow(registry=registry, name="out:heard")
def heard() -> str:
    return say.options(id="only", signals="go").bind("x")
