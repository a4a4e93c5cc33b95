"""Artifacts end to end: what steps store, who reads it, what of it counts, and what may be removed."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.stores_kit import empty_store, kinds

from treadle import (
    Artifact,
    ArtifactNotFoundError,
    Permanent,
    PlanBuilder,
    Planned,
    Registry,
    Retry,
    RunFailedError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    UsageError,
    connect,
    context,
    step,
    workflow,
)
from treadle.runtime.client import App
from treadle.runtime.collecting import sweep
from treadle.store.blob_port import BlobWriter
from treadle.store.blobs import DirectoryBlobs, MemoryBlobs

BIG = os.urandom(3 * 1024 * 1024 + 17)


@pytest.fixture(params=kinds("memory", "sqlite", "postgres"))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with empty_store(request, tmp_path) as url:
        yield url


@step(name="art:page")
async def page(text: str) -> Artifact:
    made: Artifact = await context().artifact("page.html", text, metadata={"from": "test"})
    return made


@step(name="art:read")
async def read(made: Artifact) -> str:
    async with context().open(made) as stream:
        return (await stream.content()).decode()


@step(name="art:many")
def many(path: str) -> list[Artifact]:
    own = context()
    chunks: Iterator[bytes] = iter([BIG[:5], BIG[5:]])
    return [
        own.artifact("a.bin", BIG).result(),
        own.artifact("b", Path(path)).result(),
        own.artifact("c.json", io.BytesIO(BIG)).result(),
        own.artifact("d.tar.gz", chunks, kind="backup", id="mine").result(),
    ]


@step(name="art:read_in_thread")
def read_in_thread(made: list[Artifact]) -> list[str]:
    digests: list[str] = []
    for one in made:
        with context().open(one) as stream:
            digest = hashlib.sha256()
            for chunk in stream:
                digest.update(chunk)
            digests.append(digest.hexdigest())
    return digests


@step(name="art:stream")
async def stream_in() -> Artifact:
    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(BIG), 700_000):
            yield BIG[start : start + 700_000]

    made: Artifact = await context().artifact("stream", parts())
    return made


@step(name="art:forgotten")
async def forgotten() -> str:
    context().artifact("one.txt", "one")
    context().artifact("two.txt", "two")
    return "done"


@step(name="art:fails")
async def fails() -> None:
    await context().artifact("lost.txt", "lost")
    raise Permanent("no", code="no")


@step(name="art:twice")
async def twice() -> None:
    await context().artifact("one", b"1", id="same")
    await context().artifact("two", b"2", id="same")


def alone(function: Any, id: str = "s") -> Planned:
    """A plan of one step."""
    builder = PlanBuilder("alone")
    builder.output(builder.step(id, function))
    return builder.build()


@workflow
def pages(text: str):
    return read.bind(page.options(id="page").bind(text))


@workflow
def files(path: str):
    return read_in_thread.bind(many.options(id="many").bind(path))


async def test_an_artifact_is_read_by_the_step_that_gets_its_reference(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(pages, "<p>ü</p>")

        assert await run.result() == "<p>ü</p>"
        [made] = await run.artifacts()
        assert (made.id, made.name, made.kind, made.content_type) == (
            "page:artifact:001",
            "page.html",
            "text",
            "text/html",
        )
        assert (made.size, made.step, made.metadata) == (len("<p>ü</p>".encode()), "page", {"from": "test"})
        async with await run.open(made.id) as stream:
            assert stream.artifact == made
            assert await stream.content() == "<p>ü</p>".encode()


async def test_bytes_paths_files_and_chunks_are_stored_alike(url: str, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(BIG)
    async with connect(url) as app:
        run = await app.start(files, str(tmp_path / "source"))

        assert await run.result() == [hashlib.sha256(BIG).hexdigest()] * 4
        made = await run.artifacts("many")
        assert [(one.id, one.kind, one.content_type) for one in made] == [
            ("many:artifact:001", "bin", "application/octet-stream"),
            ("many:artifact:002", "artifact", "application/octet-stream"),
            ("many:artifact:003", "json", "application/json"),
            ("mine", "backup", "application/gzip"),
        ]
        assert {one.digest for one in made} == {f"sha256:{hashlib.sha256(BIG).hexdigest()}"}
        assert [one.size for one in made] == [len(BIG)] * 4


async def test_an_async_generator_is_streamed(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(alone(stream_in))

        made = await run.result()

        assert (made.size, made.digest) == (len(BIG), f"sha256:{hashlib.sha256(BIG).hexdigest()}")


async def test_a_write_that_a_step_did_not_wait_for_is_waited_for(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(alone(forgotten, "f"))

        await run.result()

        assert [one.name for one in await run.artifacts()] == ["one.txt", "two.txt"]


async def test_what_a_failed_attempt_has_made_does_not_count(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(alone(fails, "f"))

        with pytest.raises(RunFailedError):
            await run.result()

        assert await run.artifacts() == []
        outcome = await run.outcome("f")
        assert (outcome.status, outcome.artifacts, outcome.value) == ("failed", (), None)
        assert outcome.failure is not None
        assert (outcome.failure.code, outcome.failure.message) == ("no", "no")
        with pytest.raises(ArtifactNotFoundError):
            await run.open("f:artifact:001")


async def test_one_id_twice_in_a_step_is_refused(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(alone(twice, "t"))

        with pytest.raises(RunFailedError, match="has an artifact 'same' already"):
            await run.result()


HOSTILE = ["../../etc/passwd", "/abs", "a:b", "a", "a:b:c", "..", "con", "x" * 400, "ü\\ü", "%2e%2e"]


@step(name="art:hostile")
def hostile() -> list[Artifact]:
    return [context().artifact(name, name, id=name).result() for name in HOSTILE]


async def test_hostile_names_neither_collide_nor_leave_the_directory(tmp_path: Path) -> None:
    async with connect(f"sqlite:///{tmp_path}/in/app.db?sync=normal") as app:
        run = await app.start(alone(hostile, "../h"))
        await run.result()

        for name in HOSTILE:
            async with await run.open(name) as stream:
                assert (await stream.content()).decode() == name
    found = {path.parts[len(tmp_path.parts)] for path in tmp_path.rglob("*")}
    assert found == {"in"}


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("", {}, "artifact name"),
        ("a\x00b", {}, "artifact name"),
        ("a", {"id": "x\ny"}, "artifact id"),
        ("a", {"metadata": {"n": 1}}, "metadata"),
    ],
)
async def test_bad_arguments_are_refused(name: str, options: dict[str, object], text: str) -> None:
    registry = Registry()

    @step(name="art:bad", registry=registry)
    def bad() -> None:
        with pytest.raises(UsageError, match=text):
            context().artifact(name, b"", **options)  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(UsageError, match="content is bytes, text"):
            context().artifact("a", 3)  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(UsageError, match="binary mode"):
            context().artifact("a", io.StringIO("text"))  # type: ignore[arg-type]  # wrong on purpose

    async with connect("memory://", registry=registry) as app:
        await (await app.start(alone(bad))).result()


# -- the store of artifacts fails -------------------------------------------------------------------------------------


class Broken(MemoryBlobs):
    """Fails so many writes."""

    def __init__(self, error: StoreError, times: int) -> None:
        super().__init__()
        self.error = error
        self.times = times

    def put(self, data: bytes) -> str:
        if self.times:
            self.times -= 1
            raise self.error
        return super().put(data)


@pytest.mark.parametrize("error", [StoreFullError("the disk is full"), StoreUnavailableError("no route")])
async def test_an_attempt_that_cannot_store_its_artifact_is_tried_again(error: StoreError) -> None:
    async with connect("memory://", artifacts=Broken(error, 2), retry=Retry(attempts=5, initial="1ms")) as app:
        run = await app.start(pages, "at last")

        assert await run.result() == "at last"
        failed = [event async for _, _, event in run.events() if type(event).__name__ == "AttemptFailed"]
        assert [event.failure.code for event in failed] == [error.code] * 2  # type: ignore[union-attr]  # they are


async def test_a_full_store_fails_the_step_when_its_attempts_are_used_up() -> None:
    broken = Broken(StoreFullError("the disk is full"), -1)
    async with connect("memory://", artifacts=broken, retry=Retry(attempts=2, initial="1ms")) as app:
        run = await app.start(pages, "never")

        with pytest.raises(RunFailedError, match="the disk is full"):
            await run.result()


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = DirectoryBlobs(tmp_path / "blobs")
    writer: BlobWriter = blobs.writer()
    writer.write(b"begin")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreFullError, match="free some space"):
        writer.finish()

    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


async def test_changed_bytes_are_noticed_by_whoever_reads_them(tmp_path: Path) -> None:
    async with connect(f"sqlite:///{tmp_path}/app.db?sync=normal") as app:
        run = await app.start(pages, "right")
        await run.result()
        [made] = await run.artifacts()
        file = next(path for path in (tmp_path / "app.db-blobs").rglob("*") if path.is_file())
        file.write_bytes(b"wrong")

        async with await run.open(made.id) as stream:
            with pytest.raises(StoreCorruptError, match="does not have the content"):
                await stream.content()
        file.unlink()
        async with await run.open(made.id) as stream:
            with pytest.raises(StoreError, match="is this the artifact store"):
                await stream.content()


# -- removal ----------------------------------------------------------------------------------------------------------


@step(name="art:large")
async def large(size: int) -> str:
    return "x" * size


@workflow
def large_and_page(text: str):
    return [large.options(id="large").bind(400_000), page.options(id="page").bind(text)]


@workflow
def taken(made: Artifact):
    return read.bind(made)


async def collected(app: App) -> int:
    # As if everything that is there now were old.
    return (await sweep(app._node, time.time() + 1)).removed


async def test_only_what_no_run_needs_is_removed(url: str) -> None:
    async with connect(url) as app:
        first = await app.start(large_and_page, "shared")
        await first.result()
        second = await app.start(large_and_page, "shared")
        values = await second.result()
        other = await app.start(pages, "own")
        await other.result()

        assert await collected(app) == 0
        await first.delete()
        assert await collected(app) == 0
        await other.delete()
        assert await collected(app) == 1
        assert await second.result() == values
        async with await second.open("page:artifact:001") as stream:
            assert await stream.content() == b"shared"
        await second.delete()
        assert await collected(app) == 2
        assert await collected(app) == 0


async def test_a_reference_in_another_runs_value_keeps_the_artifact(url: str) -> None:
    async with connect(url) as app:
        maker = await app.start(pages, "handed over")
        await maker.result()
        [made] = await maker.artifacts()
        taker = await app.start(taken, made)
        await taker.result()
        await maker.delete()

        assert await collected(app) == 0
        await taker.delete()
        assert await collected(app) == 1


async def test_what_is_young_stays(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(pages, "young")
        await run.result()
        await run.delete()

        assert (await app.collect("2h")).removed == 0
        with pytest.raises(UsageError, match="longer age"):
            await app.collect("10m")


def test_a_blob_that_is_renewed_while_it_is_removed_stays(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path)
    digest = blobs.put(b"needed")
    past = time.time() - 1000
    file = next(path for path in tmp_path.rglob("*") if path.is_file())
    os.utime(file, (past, past))
    assert list(blobs.old(past + 1)) == [(digest, 6)]

    assert blobs.renew(digest)
    assert not blobs.remove(digest, past + 1)
    assert blobs.get(digest) == b"needed"

    os.utime(file, (past, past))
    assert blobs.remove(digest, past + 1)
    assert not blobs.renew(digest)


def test_what_a_collector_that_died_had_put_aside_comes_back(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path)
    digest = blobs.put(b"needed")
    file = next(path for path in tmp_path.rglob("*") if path.is_file())
    file.rename(file.with_name(f".old-{file.name}"))

    list(blobs.old(0.0))

    assert blobs.get(digest) == b"needed"


async def test_old_artifacts_of_a_long_attempt_are_renewed_before_it_ends(tmp_path: Path) -> None:
    renewed: list[str] = []

    class Watched(MemoryBlobs):
        def renew(self, digest: str) -> bool:
            renewed.append(digest)
            return super().renew(digest)

    from treadle.runtime.artifacts import Making

    time_now = [0.0]

    async def beside(function):
        return function()

    blobs = Watched()
    making = Making("s", blobs, beside, lambda: time_now[0])
    made = making.write(making.named("a", b"1", "", "", "", None), b"1")
    await making.settled()
    assert renewed == []
    time_now[0] = 3600.0
    assert await making.settled() == (made,)
    assert renewed == [made.digest]
    blobs.remove(made.digest, time.time() + 10)
    with pytest.raises(StoreError, match="no longer in the store"):
        await making.settled()
    assert asyncio.get_running_loop().is_running()
