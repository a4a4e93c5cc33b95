"""Why a step that may start does not: each lack of capacity by its name, on real stores."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.story import WORKER, Story
from tests.runtime.story import step as plain
from tests.stores_kit import empty_store, kinds

from treadle import App, Queue, Registry, connect, step, workflow
from treadle.core import inputs as inp
from treadle.core.commands import Call, Task
from treadle.core.plan import Placement
from treadle.runtime.run import Run
from treadle.runtime.why import CODES, Reason
from treadle.store.base import SessionRow, TaskRow
from treadle.store.queues import Bucket, QueueChange, QueueLimits, QueueRow

registry = Registry()
gates: dict[str, asyncio.Event] = {}


@step(name="cap:hold", registry=registry, queue="slow", key="host")
async def hold(gate: str, host: str) -> str:
    await gates.setdefault(gate, asyncio.Event()).wait()
    return host


@step(name="cap:loose", registry=registry)
async def loose(gate: str) -> str:
    await gates.setdefault(gate, asyncio.Event()).wait()
    return gate


@workflow(name="cap:two", registry=registry)
def two(gate: str):
    """Two steps of one key; the second one waits for the capacity that the first one takes."""
    return [hold.options(id=name, priority=priority).bind(gate, "here") for name, priority in (("a", 1), ("b", 0))]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    gates.clear()


@pytest.fixture(params=kinds("memory", "sqlite", "postgres", "nats"))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with empty_store(request, tmp_path) as url:
        yield url


def opened(gate: str) -> None:
    gates.setdefault(gate, asyncio.Event()).set()


async def reason_of(run: Run[Any], at: str, code: str) -> Reason:
    """The reason of that code, as soon as it holds."""
    while True:
        for reason in await run.why(at):
            if reason.code == code and reason.tense == "now":
                return reason
        await asyncio.sleep(0.005)


async def codes_of(run: Run[Any], at: str) -> list[str]:
    return [reason.code for reason in await run.why(at) if reason.tense == "now"]


async def test_a_full_queue_is_named_with_those_who_fill_it(url: str) -> None:
    async with connect(url, registry=registry, worker_id="w1", queues=[Queue("slow", concurrency=1)]) as app:
        run = await app.start(two, "g", id="one")
        reason = await reason_of(run, "b", "queue_full")

        assert (reason.kind, reason.on) == ("capacity", ["one/a"])
        assert reason.message.startswith("queue 'slow' executes 1 of 1 at a time: one/a by w1 (")
        assert await codes_of(run, "b") == ["queue_full"]
        opened("g")
        await run.result(timeout=30)


async def test_a_full_key_is_named_with_those_who_fill_it(url: str) -> None:
    async with connect(url, registry=registry, worker_id="w1", queues=[Queue("slow", key_concurrency=1)]) as app:
        run = await app.start(two, "g", id="one")
        reason = await reason_of(run, "b", "key_full")

        assert reason.on == ["one/a"]
        assert reason.message.startswith("key 'here' of queue 'slow' executes 1 of 1 at a time: one/a by w1 (")
        assert await codes_of(run, "b") == ["key_full"]
        opened("g")
        await run.result(timeout=30)


@pytest.mark.parametrize(("limits", "code"), [({"rate": "1/h"}, "queue_rate"), ({"key_rate": "1/h"}, "key_rate")])
async def test_a_rate_tells_when_it_allows_the_next_start(url: str, limits: Any, code: str) -> None:
    async with connect(url, registry=registry, queues=[Queue("slow", **limits)]) as app:
        run = await app.start(two, "g")
        reason = await reason_of(run, "b", code)

        assert "allows its next start at " in reason.message
        assert reason.until is not None
        assert 3500 < reason.until - (await run.inspect()).now <= 3600
        assert await codes_of(run, "b") == [code]
        await app.change_queue(QueueChange(name="slow", override=QueueLimits()))
        await reason_of(run, "b", "running")
        opened("g")
        await run.result(timeout=30)


async def test_a_paused_queue_is_named_until_it_goes_on(url: str) -> None:
    async with connect(url, registry=registry) as app:
        await app.change_queue(QueueChange(name="slow", paused=True))
        run = await app.start(two, "g")
        reason = await reason_of(run, "b", "queue_paused")

        assert reason.message == "queue 'slow' is paused; `treadle queues resume slow`"
        assert await codes_of(run, "b") == ["queue_paused"]
        await app.change_queue(QueueChange(name="slow", paused=False))
        await reason_of(run, "b", "running")
        opened("g")
        await run.result(timeout=30)


async def test_slots_that_are_all_taken_are_named(url: str) -> None:
    app: App
    async with connect(url, registry=registry, worker_id="w1", slots=1) as app:
        run = await app.start(two, "g")
        reason = await reason_of(run, "b", "busy")

        assert reason.message == "waits in queue 'slow': all slots of w1 are busy"
        opened("g")
        await run.result(timeout=30)


async def test_a_worker_that_does_not_execute_it_and_a_delay_are_named(url: str) -> None:
    async with connect(url, registry=registry, worker=False) as app:
        run = await app.start(two, "g")
        late = await app.enqueue(loose.bind("h"), delay="1h")

        assert await codes_of(run, "b") == ["no_process", "no_worker"]
        assert await codes_of(late, "loose") == ["no_process", "delay", "no_worker"]


# -- from the facts of one moment ------------------------------------------------------------------------------------


def seen(story: Story, **row: Any) -> list[Reason]:
    queue = QueueRow(name="default", **row)
    return story.why("a", queues={"default": queue})


def test_all_limits_that_forbid_a_start_are_named_and_busy_workers_are_not() -> None:
    story = Story(plain("a"))
    limits = QueueLimits(concurrency=2, rate=0.5, burst=1)

    found = seen(story, defined=limits, running=3, paused=True, bucket=Bucket(0.0, story.now))

    assert [reason.code for reason in found if reason.tense == "now"] == ["queue_paused", "queue_full", "queue_rate"]
    assert found[1].message == "queue 'default' executes 3 of 2 at a time"
    assert found[2].until == story.now + 2.0
    assert {reason.code for reason in found} <= CODES.keys()


def test_a_limit_that_leaves_room_is_no_reason() -> None:
    story = Story(plain("a"))
    limits = QueueLimits(concurrency=2, rate=0.5, burst=1, key_concurrency=1)

    found = seen(story, defined=limits, running=1, bucket=Bucket(0.0, story.now - 2))

    assert [reason.code for reason in found if reason.tense == "now"] == ["busy"]


def test_limits_are_no_reason_for_what_is_not_due_or_held() -> None:
    delayed, held = Story(plain("a", delay=30.0)), Story(plain("a"))
    held.give(inp.Pause())

    for story, codes in ((delayed, ["delay"]), (held, ["pause", "pause"])):
        found = seen(story, paused=True)
        assert [reason.code for reason in found if reason.tense == "now"] == codes


def test_a_target_that_nobody_who_executes_the_action_offers_is_named() -> None:
    story = Story(plain("a", placement=Placement("target", target="gpu")))
    other = SessionRow(id="s3", worker="beta", wake="", beat=1, waits=0, actions=["elsewhere"], targets=["beta", "gpu"])

    placed, missing = (reason for reason in story.why("a", WORKER, other) if reason.tense == "now")

    assert (placed.code, placed.message) == ("placement", "is to run on 'gpu'")
    assert missing.code == "target_missing"
    assert missing.message == (
        "no living worker that executes 'do' offers the target 'gpu'; beta offers it and does not execute that action"
    )


def test_what_holds_a_full_queue_is_cut_short() -> None:
    story = Story(plain("a"))
    rows = [
        TaskRow(
            Task("k", n, f"s{n}", 1, 1, "do", "default", 0, 0.0, Call(), run_id="r"),
            session="s1", worker="alpha", started_at=story.now - 1,
        )
        for n in range(5)
    ]  # fmt: skip
    queue = QueueRow(name="default", defined=QueueLimits(concurrency=9), running=9)

    (reason, *_) = story.why("a", queues={"default": queue}, holders={("default", ""): rows})

    assert reason.message == (
        "queue 'default' executes 9 of 9 at a time: r/s0 by alpha (1.0 s), r/s1 by alpha (1.0 s), "
        "r/s2 by alpha (1.0 s), r/s3 by alpha (1.0 s), r/s4 by alpha (1.0 s) and 4 more"
    )
