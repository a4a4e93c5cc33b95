"""Compensating phases, failing blocks and calls that are undone, end to end: in memory and on a SQLite file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from treadle import (
    App,
    Cell,
    Compensation,
    ConflictError,
    DefinitionErrors,
    NotCompensable,
    Patch,
    Phase,
    Phases,
    Registry,
    Retry,
    Run,
    connect,
    step,
    workflow,
)
from treadle.cli.receipt_text import render
from treadle.runtime.inspection import Snapshot
from treadle.runtime.report import render_report

log: list[str] = []
mood: dict[str, str] = {}
gates: dict[str, asyncio.Event] = {}


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    for kept in (log, mood, gates):
        kept.clear()
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/app.db?sync=normal"


def unmake(cell: Cell) -> None:
    log.append(f"unmake in {cell.phase}")


@step(name="comp:make", undo=unmake)
async def make(cell: Cell) -> Patch[str]:
    log.append(f"make in {cell.phase}")
    return Patch(f"made in {cell.phase}", {"made": [*cell.state["made"], cell.phase]})


@step(name="comp:fails")
async def fails() -> None:
    raise RuntimeError("the last phase fails")


@step(name="comp:remove")
async def remove(of: Compensation) -> None:
    log.append(f"remove {of.lanes['main']} of {of.state['made']}")
    if mood.get(of.phase) == "stuck":
        raise NotCompensable("it has been sold")
    if mood.get(of.phase) == "broken":
        raise RuntimeError("the drain is blocked")
    if of.phase in gates:
        await gates[of.phase].wait()


def deploy(**more: Any) -> Phases:
    return Phases(
        Phase("server", {"main": make}, compensate="remove server"),
        Phase("site", {"main": make}, compensate="remove site"),
        Phase("check", {"main": fails}, compensate="never"),
        compensations=[Phase(name, {"main": remove}) for name in ("remove server", "remove site", "never")],
        state={"made": []},
        id="deploy",
        **more,
    )


@workflow(name="comp:deploy")
def deploys() -> Any:
    return deploy().bind()


BACK = [
    "make in server",
    "make in site",
    "unmake in site",
    "unmake in server",
    "remove made in site of ['server', 'site']",
    "remove made in server of ['server']",
]


async def ended(app: App, flow: Any = deploys, *args: Any, **more: Any) -> Run[Any]:
    run = await app.start(flow, *args, **more)
    await run.wait(30)
    return run


def undos(snapshot: Snapshot) -> dict[str, str]:
    """The status of all undos, of steps and of rows."""
    found = {view.address: view.undo for view in snapshot.steps} | {view.address: view.undo for view in snapshot.scopes}
    return {at: undo for at, undo in found.items() if undo != "none"}


async def test_a_failed_block_is_undone_and_compensated_and_the_run_shows_it(url: str) -> None:
    async with connect(url) as app:
        run = await ended(app, id="r1")

        assert log == BACK
        row = await run.row()
        assert (row.status, row.unwound) == ("failed", "fully")
        snapshot = await run.inspect()
        assert undos(snapshot) == dict.fromkeys(
            ("deploy/server", "deploy/site", "deploy/server/main", "deploy/site/main"), "undone"
        )
        made = snapshot.scope("deploy/remove server")
        assert made is not None
        assert (made.kind, made.compensates, made.status) == ("compensation", "deploy/server", "succeeded")
        text = render_report(snapshot)
        assert "undo: 4 undone" in text
        assert "compensates deploy/site" in text


async def test_a_receipt_tells_of_compensations_and_counts_no_undone_work(url: str) -> None:
    mood["site"] = "broken"
    async with connect(url) as app:
        run = await ended(app)

        record = (await run.receipt()).run
        assert record is not None
        fates = [(one.row, one.by, one.status, one.executed) for one in record.compensations]
        assert fates == [
            ("deploy/server", "remove server", "undone", ["deploy/remove server"]),
            ("deploy/site", "remove site", "failed", ["deploy/remove site"]),
        ]
        failure = record.compensations[1].failure
        assert failure is not None
        assert "the drain is blocked" in failure.message
        assert record.unwound == "partly"
        kinds = [fact.kind for fact in record.undo if not fact.kind.startswith("undo_")]
        assert kinds[-3:] == ["compensation_opened", "phase_compensated", "unwound"]
        assert (record.summary.standing, record.summary.outcomes["undone"]) == (0, 2)
        assert {step.address for step in record.steps if step.compensated} == {"deploy/server/main"}
        page = render(await run.receipt())
        assert "deploy/server by remove server  undone  at deploy/remove server" in page


@workflow(name="comp:plain")
def plain() -> Any:
    return Phases(
        Phase("first", {"main": keep}, compensate="back"),
        Phase("last", {"main": fails}),
        compensations=[Phase("back", {"main": remove_any})],
    ).bind()


@step(name="comp:keep")
async def keep() -> str:
    return "kept"


@step(name="comp:remove-any")
async def remove_any() -> None:
    log.append("back")


async def test_work_of_a_compensated_phase_does_not_stand_although_its_steps_have_no_undo(url: str) -> None:
    async with connect(url) as app:
        run = await ended(app, plain)

        record = (await run.receipt()).run
        assert record is not None
        assert (record.summary.standing, record.summary.actions) == (0, {})
        assert record.summary.outcomes == {"undone": 1, "failed": 1, "succeeded": 1}
        assert [step.compensates for step in record.steps] == ["", "", "phases/first"]


async def test_what_is_being_compensated_is_explained(url: str) -> None:
    gates["site"] = asyncio.Event()
    async with connect(url) as app:
        run = await app.start(deploys)
        async for _ in run.changes():
            if (scope := (await run.inspect()).scope("deploy/site")) is not None and scope.undo == "running":
                break

        said = {(reason.step, reason.code): reason.message for reason in await run.why()}
        assert said["", "unwinding"] == "deploy is being unwound: 0 undos left of 2, 2 rows to be compensated"
        assert "it is being compensated by deploy/remove site" in said["deploy/site", "compensating"]
        assert "remove server compensates it when" in said["deploy/server", "undo"]
        assert ("deploy/remove site/main", "running") in said or ("deploy/remove site/main", "busy") in said
        gates["site"].set()
        await run.wait(30)
        [reason] = [reason for reason in await run.why("deploy/site") if reason.code == "undone"]
        assert reason.message == "it was compensated by remove site"


async def test_operators_steer_a_compensation_that_failed(url: str) -> None:
    mood["site"] = "broken"
    mood["server"] = "stuck"
    async with connect(url) as app:
        run = await ended(app)
        assert undos(await run.inspect())["deploy/server"] == "not_compensable"
        assert (await run.row()).unwound == "partly"

        await run.skip_undo("deploy/server")
        mood.clear()
        await run.retry_undo("deploy/site")
        await run.wait(30)

        assert undos(await run.inspect())["deploy/site"] == "undone"
        assert (await run.row()).unwound == "partly"
        await run.retry_undo()
        row = await run.wait(30)
        assert (row.status, row.unwound) == ("failed", "fully")
        assert [at for at in log if at.startswith("remove made in server")] == [BACK[-1], BACK[-1]]


async def test_a_run_is_started_with_another_word_for_failure(url: str) -> None:
    async with connect(url) as app:
        run = await ended(app, on_failure="stop")
        assert log == BACK[:2]

        stack = await run.undo_stack()
        assert [(entry.kind, entry.address, entry.undo) for entry in stack] == [
            ("step", "deploy/site/main", "comp:make:undo"),
            ("step", "deploy/server/main", "comp:make:undo"),
            ("row", "deploy/site", "remove site"),
            ("row", "deploy/server", "remove server"),
        ]
        await run.undo()
        row = await run.wait(30)
        assert log == BACK
        assert (row.status, row.unwound) == ("failed", "fully")


async def test_a_compensating_phase_is_checked_before_anything_runs() -> None:
    @step(name="comp:asks-for-a-cell", registry=Registry())
    async def asks(cell: Cell) -> None: ...

    @workflow(name="comp:wrong", registry=Registry())
    def wrong() -> Any:
        return Phases(
            Phase("a", {"main": keep}, compensate="b"),
            compensations=[Phase("b", {"main": asks}, detached={"d": keep}, retry=Retry(attempts=2), compensate="b")],
        ).bind()

    with pytest.raises(DefinitionErrors) as mistakes:
        wrong.plan()
    assert any("annotate it as Compensation" in str(mistake) for mistake in mistakes.value.exceptions)

    with pytest.raises(ExceptionGroup) as caught:
        await Phases(
            Phase("a", {"main": print}, compensate="b"),
            compensations=[Phase("b", {}, detached={"d": print}, retry=2, policy="p", compensate="b")],
        ).run()
    said = "\n".join(map(str, caught.value.exceptions))
    for word in ("policy=", "retry=", "compensate=", "detached="):
        assert f"the compensating phase 'b' has {word}" in said


# -- calls -------------------------------------------------------------------------------------------------------------


def unpay(amount: int) -> None:
    log.append(f"unpay {amount}")
    if mood.get("unpay") == "locked":
        raise RuntimeError("the bank is closed")


@step(name="comp:pay", undo=unpay)
async def pay(amount: int) -> int:
    log.append(f"pay {amount}")
    return amount


@workflow(name="comp:child")
def child(amount: int) -> int:
    return pay.options(id="second", after=pay.options(id="first").bind(amount)).bind(amount + 1)


@workflow(name="comp:grandparent", on_failure="unwind")
def family(amount: int) -> Any:
    paid = parent.options(id="call").bind(amount)
    return fails.options(id="end", after=paid).bind()


@workflow(name="comp:parent")
def parent(amount: int) -> int:
    return child.options(id="call").bind(amount)


async def test_the_undo_of_a_call_unwinds_the_runs_below(url: str) -> None:
    async with connect(url) as app:
        run = await ended(app, family, 5, id="f")

        assert log == ["pay 5", "pay 6", "unpay 6", "unpay 5"]
        for name in ("f", "f/call", "f/call/call"):
            assert (await app.run(name).row()).unwound == "fully"
        assert undos(await run.inspect()) == {"call": "undone"}
        assert (await app.run("f/call").row()).status == "succeeded"
        record = (await run.receipt()).run
        assert record is not None
        assert record.summary.standing == 0


async def test_an_undo_that_fails_in_a_child_is_retried_from_the_top(url: str) -> None:
    mood["unpay"] = "locked"
    async with connect(url) as app:
        run = await ended(app, family, 5, id="f")
        [call] = [view for view in (await run.inspect()).steps if view.address == "call"]
        assert call.undo == "failed"
        assert "'f/call'" in call.undo_reason
        assert (await run.row()).unwound == "partly"

        mood.clear()
        await run.retry_undo("call")
        row = await run.wait(30)

        assert row.unwound == "fully"
        assert (await app.run("f/call/call").row()).unwound == "fully"


async def test_a_child_is_kept_as_long_as_the_run_that_called_it(url: str) -> None:
    async with connect(url) as app:
        run = await ended(app, parent, 5, id="p")

        with pytest.raises(ConflictError, match=r"was called by run 'p', and goes with it"):
            await app.run("p/call").delete()
        await run.delete()
        assert await app.find("p/call") == []


async def test_a_child_that_is_gone_all_the_same_is_not_compensable(url: str) -> None:
    async with connect(url) as app:
        run = await ended(app, parent, 5, id="p")
        key = await app.run("p/call").key()
        node = app._node
        assert await node.committer.call(lambda store: store.delete(key)) == "deleted"

        await run.undo()
        row = await run.wait(30)

        [call] = (await run.inspect()).steps
        assert (row.unwound, call.undo) == ("partly", "not_compensable")
        assert "was deleted" in call.undo_reason
