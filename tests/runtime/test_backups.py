"""Backups at every instant: a copy is made between any two calls of the store, and is a store whose runs go on.

The parts of a backup (its passes over the blobs, and the copy of the file) come one after the other, and the work of
another session goes on between them: runs are started, executed, signalled, deleted, and their blobs collected. The
files are real, the time is virtual.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from treadle import Registry, RunNotFoundError, context, step, workflow
from treadle.ports import Environment
from treadle.runtime import collecting
from treadle.runtime.backup import backup
from treadle.runtime.builtins import with_builtins
from treadle.runtime.client import App
from treadle.runtime.node import Node, Settings
from treadle.runtime.wakeups import NoWakeups
from treadle.store.blobs import DirectoryBlobs
from treadle.store.committer import InlineDriver
from treadle.store.sqlite import SqliteStore
from treadle.testing.sim_loop import SimLoop
from treadle.testing.sim_ports import SimClock, SimIds, SimThreads

registry = with_builtins(Registry())


@step(name="backup:make", registry=registry)
async def make(name: str) -> str:
    await context().artifact(name, name.encode())
    return name


@step(name="backup:wait", registry=registry, signals=["go"])
async def wait(name: str) -> str:
    await context().artifact(f"{name} after", f"{name} after".encode())
    return f"{name} after"


@workflow(name="backup:work", registry=registry)
def work(name: str) -> str:
    return wait.bind(make.bind(name))


class Turns:
    """A store each of whose calls is a turn of somebody else first."""

    def __init__(self, inner: SqliteStore, turn: Callable[[], None]) -> None:
        self._inner = inner
        self._turn = turn

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found) or name in ("open", "reader", "close"):
            return found

        def call(*given: Any, **named: Any) -> Any:
            self._turn()
            return found(*given, **named)

        return call


class Pause:
    """Where a part of a backup waits for its turn."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Copying:
    """A backup that begins at one call of the store, and goes on with its next part every `gap` calls."""

    def __init__(self, live: Path, target: Path, begin: int, gap: int) -> None:
        self.begin, self.gap = begin, gap
        self.calls = 0
        self.done = False
        # The blobs that were there when it began: younger ones are too young to be collected before it ends.
        self.before: set[str] = set()
        # All that ever were: what looks like a name of one may be the hash of a plan.
        self.ever: set[str] = set()
        self._blobs = DirectoryBlobs(f"{live}-blobs")
        self._store = SqliteStore(str(live))
        self._parts: Coroutine[Any, Any, Path] | None = None
        self._target = target

    def turn(self) -> None:
        """A call of the store is about to be made."""
        self.calls += 1
        self.ever |= self.there()
        while not self.done and self.calls >= self.begin:
            self._step()
            self.begin += self.gap
            if self.gap:
                return

    def finish(self) -> None:
        """Nothing else goes on."""
        while not self.done:
            self._step()

    def there(self) -> set[str]:
        """The blobs that are there now."""
        return {digest for digest, _ in self._blobs.old(2**40)}

    @property
    def under_way(self) -> bool:
        """Whether it has begun, and not ended."""
        return self._parts is not None and not self.done

    def _step(self) -> None:
        if self._parts is None:
            self.before = self.there()
            self._store.open()
            node: Any = SimpleNamespace(
                reader=self._store.reader(),
                blobs=self._blobs,
                beside=_in_its_turn,
                read=_in_its_turn,
                environment=SimpleNamespace(clock=SimpleNamespace(monotonic=lambda: 0.0)),
            )
            self._parts = backup(node, self._target)
        try:
            self._parts.send(None)
        except StopIteration:
            self.done = True
            self._store.close()


async def _in_its_turn(function: Callable[[], Any]) -> Any:
    await Pause()
    return function()


def on_node(store: Any, blobs: DirectoryBlobs, act: Callable[[App, Node], Awaitable[None]]) -> None:
    """Do something with a production node, on virtual time."""
    loop = SimLoop(lambda: None)
    rng = random.Random(str(blobs.path))
    clock = SimClock(loop, 0.0, 1.0)

    async def read(function: Callable[[], Any]) -> Any:
        return function()

    async def main() -> None:
        store.open()
        environment = Environment(
            clock=clock, ids=SimIds(clock, rng), threads=SimThreads(loop, rng, 4), wakeups=NoWakeups(), store=store
        )
        node = Node(
            environment,
            driver=lambda: InlineDriver(renew_seconds=5.0),
            blobs=blobs,
            registry=registry,
            settings=Settings(),
            in_reader=read,
        )
        await node.open()
        app = App(node, lambda: None)
        await act(app, node)
        await app.close()
        store.close()

    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(main())
    finally:
        asyncio.set_event_loop(None)
        loop.dissolve()


def copied(folder: Path, begin: int, gap: int) -> int:
    """Let all of it happen, and work on with the copy; how many calls were made before the backup had to be ended."""
    folder.mkdir()
    live, target = folder / "live.db", folder / "copy.db"
    blobs = DirectoryBlobs(f"{live}-blobs")
    SqliteStore(str(live), sync="normal").open()
    copying = Copying(live, target, begin, gap)

    async def busy(app: App, node: Node) -> None:
        old = await app.start(work, "old", id="old")
        await old.signal("go")
        assert await old.result() == "old after"
        open_ = await app.start(work, "open", id="open")
        await old.delete()
        # The blobs of the deleted run are as old as they must be to go.
        for digest in copying.there():
            if not copying.under_way or digest in copying.before:
                os.utime(blobs._place(digest)[1], (0, 0))
        await app.collect("2h")
        young = await app.start(work, "young", id="young")
        await open_.signal("go")
        assert await open_.result() == "open after"
        await young.cancel(hard=True)

    on_node(Turns(SqliteStore(str(live), sync="normal"), copying.turn), blobs, busy)
    calls = copying.calls
    copying.finish()

    async def goes_on(app: App, node: Node) -> None:
        await _goes_on(app, node, copying.ever)

    on_node(SqliteStore(str(target)), DirectoryBlobs(f"{target}-blobs"), goes_on)
    return calls


def everywhere(folder: Path, gap: int, every: int) -> int:
    """Begin a backup at each so manieth call; how many calls there are."""
    begin = 1
    while copied(folder / str(begin), begin, gap) >= begin:
        begin += every
    return begin


async def _goes_on(app: App, node: Node, ever: set[str]) -> None:
    """What was copied is sound, has all that it names, and all that was open ends as it would have."""
    assert (await app.check()).problems == []
    for digest in await collecting._named(node):
        if digest in ever:
            node.blobs.get(digest)
    for name in ("old", "open", "young"):
        run = app.run(name, str)
        try:
            row = await run.row()
        except RunNotFoundError:
            continue
        if row.status == "running":
            await run.signal("go")
            assert await run.result() == f"{name} after"


@pytest.mark.parametrize("gap", [0, 1, 4, 1000])
def test_a_backup_between_any_two_calls_is_a_store_whose_runs_go_on(tmp_path: Path, gap: int) -> None:
    assert everywhere(tmp_path, gap, 1 if gap == 0 else 5) > 20


def test_blobs_that_are_copied_after_the_file_alone_are_found_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def late(node: Any, path: Any) -> Path:
        await node.read(lambda: node.reader.backup(str(path)))
        await node.beside(lambda: node.blobs.copy_to(f"{path}-blobs"))
        return Path(path)

    monkeypatch.setattr(f"{__name__}.backup", late)

    with pytest.raises(KeyError):
        everywhere(tmp_path, 4, 2)


def test_blobs_that_are_copied_before_the_file_alone_are_found_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def early(node: Any, path: Any) -> Path:
        await node.beside(lambda: node.blobs.copy_to(f"{path}-blobs"))
        await node.read(lambda: node.reader.backup(str(path)))
        return Path(path)

    monkeypatch.setattr(f"{__name__}.backup", early)

    with pytest.raises(KeyError):
        everywhere(tmp_path, 4, 2)
