"""Placement on real stores: several workers, each with targets of its own that may change while they work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.stores_kit import empty_store, kinds

from treadle import App, Registry, StoreUnavailableError, UsageError, connect, context, step, workflow
from treadle.runtime.run import Run

registry = Registry()
Urls = Callable[[], str]


@pytest.fixture(params=kinds("sqlite", "postgres", "nats"))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Stores that several workers share and that keep targets."""
    with empty_store(request, tmp_path) as url:
        yield url


@step(name="place:where", registry=registry)
async def where() -> list[str]:
    return [context().worker_id, context().target]


@step(name="place:adds", registry=registry)
async def adds() -> str:
    context().add(where.options(id="child", here=True).bind())
    return context().worker_id


@workflow(name="place:pair", registry=registry)
def pair():
    """Two steps near another, which waits for a signal that lets targets change between them."""
    first = where.options(id="first", on="gpu").bind()
    near = where.options(id="near", beside=first, signals=["go"]).bind()
    like = where.options(id="like", follow=first, signals=["go"]).bind()
    return [first, near, like]


@workflow(name="place:parent", registry=registry)
def parent():
    return adds.options(id="adds", on="gpu").bind()


@workflow(name="place:one", registry=registry)
def one(target: str):
    return where.options(id="one", on=target).bind()


def worker(url: str, name: str, **more: Any) -> Any:
    return connect(url, registry=registry, worker_id=name, **more)


def starter(url: str) -> Any:
    return connect(url, registry=registry, worker=False)


async def code_of(run: Run[Any], at: str, code: str) -> Any:
    """The reason of that code, as soon as it is there."""
    while True:
        for reason in await run.why(at):
            if reason.code == code and reason.tense == "now":
                return reason
        await asyncio.sleep(0.01)


async def test_near_means_the_worker_and_like_means_whoever_has_the_target_now(url: str) -> None:
    async with starter(url) as app, worker(url, "w1", targets=["gpu"]) as w1, worker(url, "w2") as w2:
        run = await app.start(pair, id="pair")
        assert await run.step("first") == ["w1", "gpu"]
        await w1.set_targets([])
        await w2.set_targets(["gpu"])
        await run.signal("go")

        assert await run.result(timeout=30) == [["w1", "gpu"], ["w1", "w1"], ["w2", "gpu"]]


async def test_a_step_that_is_added_to_run_here_runs_on_the_worker_that_added_it(url: str) -> None:
    async with starter(url) as app, worker(url, "w1", targets=["gpu"]), worker(url, "w2"):
        run = await app.start(parent, id="parent")

        assert await run.result(timeout=30) == "w1"
        assert await run.step("adds/child", timeout=30) == ["w1", "w1"]


async def test_a_worker_has_its_own_id_among_its_targets(url: str) -> None:
    async with starter(url) as app, worker(url, "w1"), worker(url, "w2"):
        for name in ("w1", "w2", "w1"):
            run = await app.start(one, name)
            assert await run.result(timeout=30) == [name, name]


async def test_a_missing_target_is_named_and_the_step_runs_when_it_appears(url: str) -> None:
    async with starter(url) as app, worker(url, "w1", targets=["cpu"]) as w1:
        run = await app.start(one, "gpu", id="one")
        reason = await code_of(run, "one", "target_missing")
        assert (reason.kind, reason.on) == ("capacity", ["gpu"])
        assert "offers the target 'gpu'" in reason.message
        assert "cpu, w1" in reason.message

        await w1.set_targets(["cpu", "gpu"])

        assert await run.result(timeout=30) == ["w1", "gpu"]
        view = await run.inspect()
        assert [(found.attempt, found.lost) for found in view.steps] == [(1, 0)]


async def test_a_worker_that_is_gone_keeps_its_steps_until_one_of_its_name_comes(url: str) -> None:
    async with starter(url) as app:
        async with worker(url, "w1", targets=["gpu"]):
            run = await app.start(pair, id="pair")
            await run.step("first")
        async with worker(url, "w2", targets=["gpu"]):
            await run.signal("go")
            assert await run.step("like", timeout=30) == ["w2", "gpu"]
            reason = await code_of(run, "near", "target_missing")
            placed = await code_of(run, "near", "placement")
            assert (reason.on, placed.message) == (
                ["w1"], "is to run where first was executed, on worker 'w1'",
            )  # fmt: skip
            # Another life of it, or whoever offers its name.
            async with worker(url, "w3", targets=["w1"]):
                assert (await run.result(timeout=30))[1] == ["w3", "w1"]


async def test_a_callable_is_asked_with_the_renewals_and_never_for_a_step(url: str) -> None:
    asked: list[int] = []
    offered: list[str] = []

    async def tell() -> list[str]:
        asked.append(1)
        return offered

    async with starter(url) as app, worker(url, "w1", targets=tell, lease=1.5):
        assert len(asked) == 1
        runs = [await app.start(one, "w1") for _ in range(50)]
        for run in runs:
            await run.result(timeout=30)
        assert len(asked) < 20
        waiting = await app.start(one, "gpu", id="one")
        await code_of(waiting, "one", "target_missing")

        offered.extend([" gpu ", "", "gpu"])

        assert await waiting.result(timeout=30) == ["w1", "gpu"]
        (row,) = [row for row in await app.sessions() if row.worker == "w1"]
        assert row.targets == ["w1", "gpu"]


async def test_a_callable_that_fails_leaves_what_was_offered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = True

    def tell() -> list[str]:
        if not good:
            raise OSError("no route")
        return ["gpu"]

    async with worker(f"sqlite:///{tmp_path}/a.db", "w1", targets=tell, lease=0.3) as app:
        good = False
        while "no route" not in caplog.text:
            await asyncio.sleep(0.01)
        run = await app.start(one, "gpu")
        assert await run.result(timeout=30) == ["w1", "gpu"]


async def test_targets_that_are_none_are_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    with pytest.raises(UsageError, match=r"'gpu' is no list of names; write \['gpu'\]"):
        worker(url, "w1", targets="gpu")
    with pytest.raises(UsageError, match="7 is no name"):
        worker(url, "w1", targets=[7])
    with pytest.raises(UsageError, match=r"callable given as targets=: None"):
        async with worker(url, "w1", targets=lambda: None):
            pass
    async with starter(url) as app:
        with pytest.raises(UsageError, match="worker=False"):
            await app.set_targets(["gpu"])
    async with worker(url, "w1") as app:
        with pytest.raises(UsageError, match="no list of names"):
            await app.set_targets("gpu")


async def test_targets_that_the_store_was_not_told_of_are_told_with_the_next_renewal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with worker(f"sqlite:///{tmp_path}/a.db", "w1", lease=0.3) as app:
        store = app._node.store
        told = store.set_targets

        def refuses(session: str, targets: Any) -> None:
            monkeypatch.setattr(store, "set_targets", told)
            raise StoreUnavailableError("not now")

        monkeypatch.setattr(store, "set_targets", refuses)
        with pytest.raises(StoreUnavailableError):
            await app.set_targets(["gpu"])
        while (await app.sessions())[0].targets != ["w1", "gpu"]:
            await asyncio.sleep(0.01)


async def test_in_one_process_a_step_knows_its_worker_and_target() -> None:
    app: App
    async with connect("memory://", registry=registry, worker_id="w1", targets=["gpu"]) as app:
        run = await app.start(pair)
        await run.signal("go")
        assert await run.result(timeout=30) == [["w1", "gpu"], ["w1", "w1"], ["w1", "gpu"]]
