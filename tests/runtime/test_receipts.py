"""Receipts of real runs: what each tells of outcomes, attempts, values and of what was done to the run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from treadle import (
    App,
    Document,
    Registry,
    Retry,
    connect,
    context,
    dump_document,
    load_document,
    planned_of,
    save_document,
    signal_value,
    step,
    workflow,
)
from treadle.core import events as ev
from treadle.core.documents import Fact, Value, hash_of, moment, tree_of
from treadle.runtime.inspection import snapshot_of
from treadle.runtime.receipts import receipt_of
from treadle.runtime.replaying import replay

registry = Registry()
gates: dict[str, asyncio.Event] = {}


@step(name="receipt:add", registry=registry)
async def add(a: float, b: float = 1.0) -> float:
    return a + b


@step(name="receipt:flaky", registry=registry, retry=Retry(attempts=2, initial=0.0))
async def flaky(until: int) -> int:
    if context().attempt < until:
        raise ValueError(f"attempt {context().attempt}")
    return until


@step(name="receipt:big", registry=registry)
async def big(size: int) -> str:
    return "x" * size


@step(name="receipt:more", registry=registry)
async def more(count: int) -> int:
    context().add(*[add.options(id=f"a{index}").bind(float(index)) for index in range(count)])
    return count


@step(name="receipt:wait", registry=registry)
async def wait(name: str) -> None:
    await gates[name].wait()


@workflow(name="receipt:sums", registry=registry)
def sums(n: int) -> Any:
    return {"sum": add.bind(add.bind(n), 10.0), "n": n}


@workflow(name="receipt:fails", registry=registry)
def fails() -> Any:
    return add.bind(flaky.bind(3))


@workflow(name="receipt:retries", registry=registry)
def retries() -> Any:
    return flaky.bind(2)


@workflow(name="receipt:bigs", registry=registry)
def bigs(text: str, size: int) -> Any:
    return [add.options(id="uses").bind(1, 2), big.bind(size), text]


@workflow(name="receipt:grows", registry=registry)
def grows() -> Any:
    return more.bind(2)


@workflow(name="receipt:waits", registry=registry)
def waits(name: str) -> Any:
    return add.options(id="after", after=wait.bind(name)).bind(signal_value("go"))


@pytest.fixture(params=["memory", "sqlite"])
async def app(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[App]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/app.db?sync=normal"
    async with connect(url, registry=registry) as opened:
        yield opened


def sound(document: Document, tmp_path: Path) -> None:
    """The receipt is sealed, and survives being written and read."""
    for name in ("r.json", "r.yaml"):
        assert load_document(save_document(document, tmp_path / name)) == document
    assert document.hash == hash_of(tree_of(document))


async def test_a_receipt_tells_outcomes_values_and_counts(app: App, tmp_path: Path) -> None:
    run = await app.start(sums, 3, id="one", labels={"team": "a"})
    await run.result()

    document = await run.receipt({"commit": "abc"})

    sound(document, tmp_path)
    record = document.run
    assert record is not None
    assert (record.id, record.key, record.status, record.labels) == ("one", await run.key(), "succeeded", {"team": "a"})
    assert record.plan == (await run.load()).head.plan
    assert document.constants == [3, {"$treadle": ["float", "10.0"]}, 3]
    assert record.result == Value(value={"sum": {"$treadle": ["float", "14.0"]}, "n": 3})
    assert [(s.address, s.status, len(s.attempts)) for s in record.steps] == [
        ("add", "succeeded", 1),
        ("add-2", "succeeded", 1),
    ]
    assert record.steps[0].result == Value(value={"$treadle": ["float", "4.0"]})
    assert record.summary.outcomes == {"succeeded": 2}
    assert record.summary.actions == {"receipt:add": 2}
    assert (record.summary.standing, record.summary.attempts) == (2, 2)
    assert record.finished_at is not None
    assert document.provenance.context == {"commit": "abc"}
    assert document.provenance.code.keys() == {"receipt:add"}


async def test_a_failed_run_has_a_receipt_with_every_attempt(app: App, tmp_path: Path) -> None:
    run = await app.start(fails, id="bad")
    await run.wait()

    document = await run.receipt()

    sound(document, tmp_path)
    assert document.run is not None
    failed, skipped = document.run.steps
    assert [(a.number, a.outcome, a.failure.message if a.failure else "") for a in failed.attempts] == [
        (1, "failed", "attempt 1"),
        (2, "failed", "attempt 2"),
    ]
    assert all(a.started_at and a.ended_at and a.started_at <= a.ended_at and a.session for a in failed.attempts)
    assert failed.failure is not None
    assert failed.failure.type == "ValueError"
    assert (skipped.status, skipped.skip_reason, skipped.skip_causes, skipped.attempts) == (
        "skipped",
        "upstream",
        ["flaky"],
        [],
    )
    assert document.run.failures == ["flaky"]
    assert document.run.result is None
    assert document.run.summary.standing == 0


async def test_a_retried_attempt_is_told_and_the_step_stands(app: App) -> None:
    run = await app.start(retries)
    await run.result()

    document = await run.receipt()

    assert document.run is not None
    assert [a.outcome for a in document.run.steps[0].attempts] == ["failed", "succeeded"]
    assert document.run.summary.standing == 1


async def test_large_values_are_named_by_their_digest_and_arguments_are_whole(app: App, tmp_path: Path) -> None:
    run = await app.start(bigs, "t" * 300_000, 5000)
    await run.result()

    document = await run.receipt()

    sound(document, tmp_path)
    assert document.run is not None
    [large] = [s.result for s in document.run.steps if s.address == "big"]
    assert large is not None
    assert large.digest.startswith("sha256:")
    assert document.run.result is not None
    assert len(document.run.result.digest) == len("sha256:") + 64
    assert "t" * 300_000 in document.constants
    assert planned_of(document, registry=registry, reset=True).constants == bigs.plan("t" * 300_000, 5000).constants


async def test_added_steps_are_part_of_the_receipt_and_not_of_the_plan(app: App, tmp_path: Path) -> None:
    run = await app.start(grows)
    await run.result()
    async for _ in run.changes():
        if (await run.row()).status != "running":
            break

    document = await run.receipt()

    sound(document, tmp_path)
    assert document.run is not None
    assert [block.id for block in document.blocks] == ["more"]
    assert [(a.by, [block.id for block in a.blocks]) for a in document.run.added] == [("more", ["a0", "a1"])]
    assert document.run.added[0].constants == [
        Value(value={"$treadle": ["float", "0.0"]}),
        Value(value={"$treadle": ["float", "1.0"]}),
    ]
    assert {s.address: s.added_by for s in document.run.steps} == {"more": "", "more/a0": "more", "more/a1": "more"}


async def test_an_open_run_has_a_receipt_of_what_it_is_so_far(app: App, tmp_path: Path) -> None:
    gates["gate"] = asyncio.Event()
    run = await app.start(waits, "gate")
    await run.signal("go", {"b": b"x"})
    await run.pause()

    early = await run.receipt()
    gates["gate"].set()
    await run.resume()
    await run.cancel()
    await run.wait()
    late = await run.receipt()

    sound(early, tmp_path)
    assert early.run is not None
    assert late.run is not None
    assert early.run.status in ("pausing", "paused")
    assert early.run.finished_at is None
    assert [fact.kind for fact in early.run.facts] == ["signal_received", "paused"]
    signal = early.run.facts[0]
    assert signal.about == {"name": "go", "value": {"value": {"b": {"$treadle": ["bytes", "eA=="]}}}}
    assert [fact.kind for fact in late.run.facts] == ["signal_received", "paused", "resumed", "cancel_requested"]
    assert late.run.version > early.run.version


async def test_a_rewound_step_counts_once_and_keeps_its_attempts(app: App) -> None:
    run = await app.start(sums, 1)
    await run.result()
    await run.rewind("add-2")
    await run.result()

    document = await run.receipt()

    assert document.run is not None
    again = document.run.steps[1]
    assert [(a.number, a.generation) for a in again.attempts] == [(1, 1), (2, 2)]
    assert document.run.summary.standing == 2
    [reopened] = document.run.facts
    assert (reopened.kind, reopened.about["at"], reopened.about["rewind"]) == ("steps_reopened", ["add-2"], True)


def test_the_blocking_client_has_receipts() -> None:
    with connect("memory://", registry=registry) as app:
        run = app.start(sums, 3)
        run.result()

        assert run.receipt().is_receipt


class Undone(ev.Event, frozen=True, tag="step_undone"):
    """As the kernel of a run with undo tells it."""

    at: str
    number: int = 1


class Prepared(ev.Event, frozen=True, tag="step_prepared"):
    at: str
    state: str
    token: int = 2**61


class Unwound(ev.Event, frozen=True, tag="unwound"):
    at: str = ""
    fully: bool = False


class Decided(ev.Event, frozen=True, tag="decision_made"):
    at: str
    rule: str
    patch: dict[str, str]


async def test_undone_work_never_counts_as_standing(app: App, tmp_path: Path) -> None:
    run = await app.start(sums, 1)
    await run.result()
    loaded = await run.load()
    told = replay(loaded)
    later: list[Any] = [
        Prepared(at="add", state='={"kept":1.0}'),
        Decided(at="rows", rule="heal", patch={"count": "=2"}),
        Undone(at="add"),
        Unwound(),
    ]
    told.events += [(5.0, event) for event in later]

    written = (await run.receipt()).provenance
    document = receipt_of(loaded, told, snapshot_of(loaded, told, [], 9.0), ["1", "10.0", "1"], written)

    sound(document, tmp_path)
    assert document.run is not None
    assert [s.undo for s in document.run.steps] == ["undone", "none"]
    assert document.run.summary.standing == 1
    assert document.run.summary.outcomes == {"undone": 1, "succeeded": 1}
    assert document.run.unwound == "partly"
    assert document.run.undo == [
        Fact(
            kind="step_prepared",
            time=moment(5.0),
            at="add",
            about={"state": {"value": {"kept": {"$treadle": ["float", "1.0"]}}}},
        ),
        Fact(kind="step_undone", time=moment(5.0), at="add"),
        Fact(kind="unwound", time=moment(5.0)),
    ]
    assert [(d.at, d.about) for d in document.run.decisions] == [
        ("rows", {"rule": "heal", "patch": {"count": {"value": 2}}})
    ]


async def test_two_receipts_of_one_state_differ_in_their_time_alone(app: App) -> None:
    run = await app.start(sums, 1)
    await run.result()

    one, two = await run.receipt(), await run.receipt()

    texts = [dump_document(document) for document in (one, two)]
    differing = [line for line in texts[0].splitlines() if line not in texts[1].splitlines()]
    assert {line.split('"')[1] for line in differing} == {"created_at", "hash"}
