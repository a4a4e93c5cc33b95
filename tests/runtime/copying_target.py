"""A program that starts runs of every kind on a store, and is killed in the middle of them by a test."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from treadle import FROM_DATA, Artifact, Registry, connect, context, gather, step, workflow

registry = Registry()


@step(registry=registry, name="copy:big")
async def big(size: int) -> str:
    return "x" * size


@step(registry=registry, name="copy:length")
async def length(text: str) -> int:
    return len(text)


@step(registry=registry, name="copy:total")
async def total(values: list[int], extra: int = FROM_DATA) -> int:
    return sum(values) + extra


@step(registry=registry, name="copy:fails")
async def fails() -> None:
    raise ValueError("it broke")


@step(registry=registry, name="copy:page")
async def page(text: str) -> Artifact:
    return await context().artifact("page.txt", text)


@step(registry=registry, name="copy:count")
async def count(pages: list[Artifact]) -> int:
    return len(pages)


def take_back(result: object) -> None:
    """Nothing is left of it."""


@step(registry=registry, name="copy:acts", undo=take_back)
async def acts() -> str:
    return "done"


@step(registry=registry, name="copy:dies", lost_limit=2)
async def dies(marker: str) -> str:
    """Takes its process with it, the first time."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return f"attempt {context().attempt}"


@workflow(registry=registry, name="copy:sizes")
def sizes(counts: list[int]) -> int:
    return total.bind(gather(counts, lambda size: length.bind(big.bind(size))))


@workflow(registry=registry, name="copy:paged")
def paged(text: str) -> Artifact:
    return page.bind(text)


@workflow(registry=registry, name="copy:counted")
def counted(pages: list[Artifact]) -> int:
    return count.bind(pages)


@workflow(registry=registry, name="copy:undone", on_failure="unwind")
def undone() -> None:
    fails.options(after=acts.bind()).bind()


@workflow(registry=registry, name="copy:signalled")
def signalled() -> int:
    return length.options(signals="go").bind(big.bind(3))


@workflow(registry=registry, name="copy:parent")
def parent() -> int:
    return signalled.options(id="child").bind()


@workflow(registry=registry, name="copy:dying")
def dying(marker: str) -> str:
    return dies.bind(marker)


async def main(url: str, marker: str) -> None:
    async with connect(url, registry=registry) as app:
        run = await app.start(sizes, [10, 2_000, 300_000], id="sizes", data={"extra": 1}, labels={"kind": "x"})
        await run.result()
        await (await app.start(undone, id="undone")).wait()
        await app.start(signalled, id="waiting")
        await app.start(parent, id="parent")
        await app.start(sizes, [1, 2], id="later", data={"extra": 1}, delay="1h")
        paused = await app.start(signalled, id="paused", breakpoints=["x"])
        await paused.signal("go")
        await (await app.start(signalled, id="held")).pause()
        await app.run("waiting").step("big")
        async for _ in app.run("parent").changes():
            if len(await app.runs(parent=await app.run("parent").key())) == 1:
                break
        await (await app.start(dying, marker, id="dying")).wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
