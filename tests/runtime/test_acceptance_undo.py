"""Properties of undo over random plans: a failed run restores what it touched, a dry run changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from treadle import (
    Cell,
    Compensation,
    Patch,
    Phase,
    Phases,
    PlanBuilder,
    Planned,
    Registry,
    case,
    choose,
    connect,
    context,
    gather,
    holds,
    step,
    workflow,
)

registry = Registry()
PATHS = ("a", "b", "c", "d")
# What the steps change: texts by path.
disk: dict[str, str] = {}
slow = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def look(path: str) -> dict[str, str | None]:
    return {path: disk.get(path)}


def look_at_both(source: str, path: str) -> dict[str, str | None]:
    return {source: disk.get(source), path: disk.get(path)}


def put_back(state: dict[str, str | None]) -> None:
    if context().dry_run:
        return
    for path, text in state.items():
        if text is None:
            disk.pop(path, None)
        else:
            disk[path] = text


@step(name="prop:write", registry=registry, prepare=look, undo=put_back)
async def write(path: str, text: str) -> str:
    if not context().dry_run:
        disk[path] = disk.get(path, "") + text
        await asyncio.sleep(0)
    return path


@step(name="prop:remove", registry=registry, prepare=look, undo=put_back)
def remove(path: str) -> str:
    if not context().dry_run:
        disk.pop(path, None)
    return path


@step(name="prop:move", registry=registry, prepare=look_at_both, undo=put_back)
async def move(source: str, path: str) -> str:
    if not context().dry_run and source in disk:
        disk[path] = disk.pop(source)
    return path


@step(name="prop:fail", registry=registry)
def fail() -> None:
    raise ValueError("the end")


@step(name="prop:open", registry=registry)
def open_account(cell: Cell) -> Patch[str]:
    name = f"account {cell.state['owner']} {cell.step}"
    if not context().dry_run:
        disk[name] = "open"
    return Patch(name, {"last": name})


@step(name="prop:close", registry=registry)
def close_account(of: Compensation) -> None:
    if not context().dry_run:
        del disk[of.lanes["main"]]


@workflow(name="prop:below", registry=registry)
def below(path: str, text: str) -> Any:
    return move.options(id="then").bind(write.options(id="first").bind(path, text), "moved")


@st.composite
def plans(draw: st.DrawFn) -> Planned:
    """A few things that are done one after the other, each by itself or side by side in a block."""
    builder = PlanBuilder("prop", registry=registry, on_failure="unwind", undo_limit=draw(st.sampled_from([None, 1])))
    before: Any = None
    # Things that touch one path come one after the other; those that overlap touch different ones.
    for number in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["write", "remove", "move", "gather", "choose", "phases", "call", "side by side"]))
        path, other = draw(st.sampled_from(PATHS)), draw(st.sampled_from(PATHS))
        with builder:
            before = _place(kind, number, path, other, {"after": before} if before is not None else {})
    with builder:
        end = fail.options(after=before) if draw(st.booleans()) else fail
        end.options(id="end").bind()
    return builder.build()


def _place(kind: str, number: int, path: str, other: str, order: Any) -> Any:
    id_, text = f"s{number}", f"<{number}>"
    if kind == "remove":
        return remove.options(id=id_, **order).bind(path)
    if kind == "move":
        return move.options(id=id_, **order).bind(path, other)
    if kind == "gather":
        return gather([*PATHS], lambda item: write.options(id="w").bind(item, text), id=id_, limit=2, **order)
    if kind == "choose":
        way = case(holds("1 < 2"), lambda: write.options(id="w").bind(path, text), id="way")
        return choose(way, otherwise=lambda: remove.options(id="r").bind(path), id=id_, **order)
    if kind == "phases":
        block = Phases(
            Phase("account", {"main": open_account}, compensate="closing"),
            Phase("twice", {"main": open_account}, compensate="closing"),
            compensations=[Phase("closing", {"main": close_account})],
            state={"owner": ""},
            id=id_,
        )
        return block.bind(owner=id_, **order)
    if kind == "call":
        return below.options(id=id_, **order).bind(path, text)
    if kind == "side by side":
        return [write.options(id=f"{id_}{each}", **order).bind(each, text) for each in PATHS]
    return write.options(id=id_, **order).bind(path, text)


async def executed(planned: Planned, *, dry_run: bool = False, undo: bool = False) -> tuple[str, str]:
    async with connect("memory://", registry=registry) as app:
        run = await app.start(planned, id="r", dry_run=dry_run, on_failure="stop" if undo else None)
        row = await run.wait()
        if undo:
            stack = await run.undo_stack()
            assert await run.undo() == bool(stack)
            row = await run.wait()
        return row.status, row.unwound


before = st.dictionaries(st.sampled_from(PATHS), st.sampled_from(["x", "y"]))


def reset(content: dict[str, str]) -> None:
    disk.clear()
    disk.update(content)


@slow
@given(plans(), before)
def test_a_failed_run_that_unwinds_restores_what_it_touched(planned: Planned, content: dict[str, str]) -> None:
    reset(content)

    status, unwound = asyncio.run(executed(planned))

    assert status == "failed"
    assert disk == content, unwound
    assert unwound in ("fully", "")


@slow
@given(plans(), before)
def test_a_run_that_is_undone_later_restores_what_it_touched(planned: Planned, content: dict[str, str]) -> None:
    reset(content)

    asyncio.run(executed(planned, undo=True))

    assert disk == content


@slow
@given(plans(), before)
def test_a_dry_run_changes_nothing_also_where_it_unwinds(planned: Planned, content: dict[str, str]) -> None:
    reset(content)

    status, _ = asyncio.run(executed(planned, dry_run=True))

    assert status == "failed"
    assert disk == content


@slow
@given(plans(), before)
def test_asking_what_would_be_undone_changes_nothing(planned: Planned, content: dict[str, str]) -> None:
    reset(content)

    async def ask() -> None:
        async with connect("memory://", registry=registry) as app:
            run = await app.start(planned, id="r", on_failure="stop")
            await run.wait()
            left, version = dict(disk), (await run.row()).version
            one, two = await run.undo_stack(), await run.undo_stack()
            assert one == two
            assert disk == left
            assert (await run.row()).version == version

    asyncio.run(ask())
