"""Hooks: what is told of boundaries, by whom, in which order, and that nothing comes of their errors."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from treadle import (
    Boundary,
    Hooks,
    Permanent,
    Registry,
    Retry,
    UsageError,
    connect,
    context,
    group,
    or_default,
    step,
    workflow,
)
from treadle.runtime.hooks import NAMES, overridden
from treadle.runtime.observers import Observers

registry = Registry()


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/hooks.db?sync=normal"


@step(registry=registry, name="hooks:double")
async def double(value: int) -> int:
    return 2 * value


@step(registry=registry, name="hooks:shout")
def shout(text: bytes, times: int = 1) -> bytes:
    return text.upper() * times


@step(registry=registry, name="hooks:fail")
async def fail(value: int) -> int:
    raise Permanent(f"no {value}", code="refused")


@step(registry=registry, name="hooks:falter", retry=Retry(attempts=2, initial=0))
async def falter(value: int) -> int:
    if context().attempt == 1:
        raise ValueError("not yet")
    return value


@step(registry=registry, name="hooks:grow")
async def grow(value: int) -> int:
    context().add(double.options(id="more").bind(value))
    return value


@workflow(registry=registry, name="hooks:one")
def one(value: int) -> int:
    return double.bind(value)


class Everything(Hooks):
    """Notes all that it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Boundary]] = []
        self.names: list[str] = []
        for name in NAMES:
            setattr(self, name, lambda boundary, name=name: self._note(name, boundary))

    def _note(self, name: str, boundary: Boundary) -> None:
        self.told.append((name, boundary))
        self.names.append(f"{name} {boundary.address}".rstrip())

    def of(self, name: str) -> list[Boundary]:
        return [boundary for told, boundary in self.told if told == name]


async def run_of(url: str, flow: Any, *args: Any, hooks: list[Hooks], **options: Any) -> str:
    async with connect(url, registry=registry, hooks=hooks) as app:
        run = await app.start(flow, *args, **options)
        return (await run.wait(timeout=20)).status


async def test_all_boundaries_of_a_step_are_told_in_order(url: str) -> None:
    hooks = Everything()

    await run_of(url, one, 4, hooks=[hooks], id="one-1")

    assert hooks.names == [
        "run_started",
        "step_started double",
        "attempt_started double",
        "attempt_ended double",
        "step_ended double",
        "run_ended",
    ]
    assert {(told.run_id, bool(told.run_key), told.time > 0) for _, told in hooks.told} == {("one-1", True, True)}
    started, ended = hooks.of("step_started")[0], hooks.of("step_ended")[0]
    assert (started.block, started.action, started.workflow) == ("step", "hooks:double", "hooks:one")
    assert dict(started.arguments) == {"value": 4}
    assert (ended.outcome, ended.result, ended.attempt, ended.generation) == ("succeeded", 8, 1, 1)
    [attempt] = hooks.of("attempt_ended")
    assert (attempt.result, attempt.worker != "", attempt.workflow) == (8, True, "")
    assert (hooks.of("run_ended")[0].outcome, hooks.of("run_ended")[0].result) == ("succeeded", 8)


async def test_values_are_of_the_functions_own_types_whatever_their_size(url: str) -> None:
    @workflow(registry=registry, name="hooks:big")
    def big(text: bytes) -> bytes:
        return shout.bind(text, times=400)

    hooks = Everything()

    await run_of(url, big, b"x" * 1000, hooks=[hooks])

    assert dict(hooks.of("attempt_started")[0].arguments) == {"text": b"x" * 1000, "times": 400}
    for name in ("attempt_ended", "step_ended", "run_ended"):
        assert hooks.of(name)[0].result == b"X" * 400_000


async def test_a_retry_is_another_attempt_of_the_same_step(url: str) -> None:
    @workflow(registry=registry, name="hooks:faltering")
    def faltering() -> int:
        return falter.bind(7)

    hooks = Everything()

    await run_of(url, faltering, hooks=[hooks])

    assert hooks.names.count("step_started falter") == hooks.names.count("step_ended falter") == 1
    assert [told.attempt for told in hooks.of("attempt_started")] == [1, 2]
    first, second = hooks.of("attempt_ended")
    assert first.failure is not None
    assert (first.outcome, first.failure.message) == ("failed", "not yet")
    assert (second.outcome, second.result, hooks.of("step_ended")[0].attempt) == ("succeeded", 7, 2)


async def test_failures_and_skips_are_ends_too(url: str) -> None:
    @workflow(registry=registry, name="hooks:failing")
    def failing() -> int:
        return double.bind(fail.bind(3))

    hooks = Everything()

    assert await run_of(url, failing, hooks=[hooks]) == "failed"

    failed, skipped = hooks.of("step_ended")
    assert failed.failure is not None
    assert (failed.outcome, failed.failure.code, failed.failure.message) == ("failed", "refused", "no 3")
    assert (skipped.address, skipped.outcome, skipped.causes, skipped.attempt) == ("double", "skipped", ["fail"], 0)
    assert "step_started double" not in hooks.names
    assert (hooks.of("run_ended")[0].outcome, hooks.of("run_ended")[0].causes) == ("failed", ["fail"])


async def test_groups_are_scopes_and_their_path_is_in_the_address(url: str) -> None:
    @workflow(registry=registry, name="hooks:grouped")
    def grouped() -> int:
        with group("outer"), group("inner"):
            value = double.bind(1)
        with group("later", after="outer"):
            return double.bind(or_default(value, 0))

    hooks = Everything()

    await run_of(url, grouped, hooks=[hooks])

    scopes = [name for name in hooks.names if name.startswith("scope")]
    assert scopes == [
        "scope_started outer",
        "scope_started outer/inner",
        "scope_ended outer/inner",
        "scope_ended outer",
        "scope_started later",
        "scope_ended later",
    ]
    assert "step_ended outer/inner/double" in hooks.names
    assert {told.block for told in hooks.of("scope_ended")} == {"group"}


async def test_what_a_step_adds_has_boundaries_and_is_no_scope(url: str) -> None:
    @workflow(registry=registry, name="hooks:growing")
    def growing() -> int:
        return grow.bind(5)

    hooks = Everything()

    await run_of(url, growing, hooks=[hooks])

    assert {"step_started grow/more", "step_ended grow/more"} <= set(hooks.names)
    assert not hooks.of("scope_started")
    assert not hooks.of("scope_ended")


async def test_a_rewound_step_starts_and_ends_again_in_its_generation(url: str) -> None:
    hooks = Everything()
    async with connect(url, registry=registry, hooks=[hooks]) as app:
        run = await app.start(one, 4)
        await run.wait()
        await run.rewind("double")
        await run.wait()

    assert [told.generation for told in hooks.of("step_started")] == [1, 2]
    assert [told.generation for told in hooks.of("step_ended")] == [1, 2]
    assert len(hooks.of("run_started")) == 1
    assert len(hooks.of("run_ended")) == 2


async def test_hooks_are_called_in_the_order_of_registration_and_awaited(url: str) -> None:
    order: list[str] = []

    class First(Hooks):
        async def step_ended(self, step: Boundary) -> None:
            order.append("first begins")
            await asyncio.sleep(0)
            order.append("first ends")

    class Second(Hooks):
        def step_ended(self, step: Boundary) -> None:
            order.append("second")

        async def run_ended(self, run: Boundary) -> None:
            order.append("run")

    await run_of(url, one, 1, hooks=[First(), Second()])

    assert order == ["first begins", "first ends", "second", "run"]


@pytest.mark.parametrize("error", [ValueError("hook"), SystemExit(3), asyncio.CancelledError()])
async def test_an_exception_in_a_hook_is_logged_and_counted_and_nothing_else(
    url: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Hooks):
        def attempt_started(self, attempt: Boundary) -> None:
            raise error

        async def step_ended(self, step: Boundary) -> None:
            raise error

    after = Everything()
    with caplog.at_level(logging.ERROR, "treadle.hooks"):
        async with connect(url, registry=registry, hooks=[Broken(), after]) as app:
            run = await app.start(one, 4, id="one-1")
            assert await run.result(timeout=20) == 8

    assert app.hook_failures == 2
    assert len(after.told) == 6
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert all("one-1 double" in text for text in texts)
    assert "step_ended" in texts[1]


async def test_the_process_that_decides_tells_of_steps_and_the_one_that_executes_of_attempts(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/two.db?sync=normal"
    deciding, executing = Everything(), Everything()
    async with connect(url, worker=False, registry=registry, hooks=[deciding]) as client:
        run = await client.start(one, 4)
        async with connect(url, registry=registry, hooks=[executing]):
            assert await run.result(timeout=20) == 8

    assert deciding.names == ["run_started", "step_started double", "step_ended double", "run_ended"]
    assert executing.names == ["attempt_started double", "attempt_ended double"]


async def test_a_process_without_the_functions_tells_plain_values(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/plain.db?sync=normal"
    own = Registry()

    @workflow(registry=own, name="hooks:plain")
    def plain() -> bytes:
        return shout.bind(b"ab")

    told = Everything()
    async with connect(url, worker=False, registry=own, hooks=[told]) as client:
        run = await client.start(plain)
        async with connect(url, registry=registry):
            assert await run.result(timeout=20) == b"AB"

    assert told.of("step_ended")[0].result == b"AB"
    assert dict(told.of("step_started")[0].arguments) == {"text": b"ab"}


async def test_nothing_is_made_for_hooks_where_there_are_none(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(Observers, "__init__", lambda *_given, **_named: made.append("observers"))

    async with connect(url, registry=registry) as app:
        await (await app.start(one, 4)).result()
        node = app._node

        assert node.observers is None
        assert node.engine.on_committed is None
        assert node.worker._finish == node._finished
    assert made == []


async def test_only_what_is_overridden_is_made(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ends(Hooks):
        def __init__(self) -> None:
            self.told: list[str] = []

        def run_ended(self, run: Boundary) -> None:
            self.told.append(run.outcome)

    hooks = Ends()
    queued: list[str] = []
    async with connect(url, registry=registry, hooks=[hooks]) as app:
        observers = app._node.observers
        assert observers is not None
        put = observers._queue.put_nowait

        def counted(item: Any) -> None:
            queued.append(item[0].name)
            put(item)

        monkeypatch.setattr(observers._queue, "put_nowait", counted)
        await (await app.start(one, 4)).result()

    assert hooks.told == ["succeeded"]
    assert queued == ["run_ended"]
    assert overridden(hooks) == ["run_ended"]


async def test_leaving_the_application_waits_for_its_hooks(url: str) -> None:
    gate = asyncio.Event()
    ended: list[str] = []

    class Slow(Hooks):
        async def run_ended(self, run: Boundary) -> None:
            await gate.wait()
            ended.append(run.outcome)

    async with connect(url, registry=registry, hooks=[Slow()]) as app:
        assert await (await app.start(one, 4)).result() == 8
        assert ended == []
        asyncio.get_running_loop().call_soon(gate.set)

    assert ended == ["succeeded"]


@pytest.mark.parametrize("wrong", [Hooks(), Hooks, print, None])
def test_what_would_never_be_told_anything_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="run_started"):
        connect("memory://", hooks=[wrong])
