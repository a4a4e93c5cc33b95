"""Blobs: content addressing, whole files or none, and clear errors."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from treadle.errors import StoreCorruptError, StoreError, StoreFullError, StoreReadOnlyError
from treadle.store.blob_port import Blobs
from treadle.store.blobs import DirectoryBlobs, MemoryBlobs
from treadle.store.nats import NatsStore


@pytest.fixture(
    params=[
        "memory",
        "directory",
        pytest.param("postgres", marks=pytest.mark.postgres),
        pytest.param("nats", marks=pytest.mark.nats),
    ]
)
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Blobs]:
    if request.param == "nats":
        store = NatsStore.from_url(request.getfixturevalue("nats_url"))
        store.open()
        yield store.blobs()
        store.close()
    elif request.param == "postgres":
        yield from postgres_blobs(request.getfixturevalue("postgres_server"))
    else:
        yield MemoryBlobs() if request.param == "memory" else DirectoryBlobs(tmp_path / "deep" / "blobs")


def postgres_blobs(server: Any) -> Iterator[Blobs]:
    # Imported here, since neither may exist for this platform.
    from tests.postgres_kit import empty_schema, url_of

    from treadle.store.postgres import PostgresStore

    with empty_schema() as schema:
        store = PostgresStore.from_url(url_of(server, schema))
        store.open()
        yield store.blobs()
        store.close()


def files_of(path: Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000], ids=["empty", "small", "large"])
def test_what_was_put_is_got_back_by_the_hash_of_its_content(blobs: Blobs, data: bytes) -> None:
    digest = blobs.put(data)

    assert digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert blobs.get(digest) == data


def test_the_same_content_twice_is_one_blob(blobs: Blobs, tmp_path: Path) -> None:
    assert blobs.put(b"same") == blobs.put(b"sa" + b"me")
    assert len(files_of(tmp_path)) <= 1


@pytest.mark.parametrize(
    "digest",
    ["sha256:" + "0" * 64, "", "sha256:", "sha256:../../etc/passwd", "md5:abc", "sha256:" + "A" * 64, "0" * 64],
)
def test_an_unknown_or_forged_digest_is_a_key_error(blobs: Blobs, digest: str) -> None:
    with pytest.raises(KeyError):
        blobs.get(digest)


def test_the_directory_is_sharded_and_holds_no_temporary_files(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path)

    name = blobs.put(b"1").removeprefix("sha256:")

    assert files_of(tmp_path) == [f"{name[:2]}/{name[2:]}"]


def test_another_handle_on_the_directory_sees_the_blob(tmp_path: Path) -> None:
    digest = DirectoryBlobs(tmp_path).put(b"shared")

    assert DirectoryBlobs(str(tmp_path)).get(digest) == b"shared"


def test_threads_may_put_the_same_content_at_once(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path)
    data = os.urandom(100_000)
    start = threading.Barrier(8)
    failures: list[Exception] = []

    def put() -> None:
        try:
            start.wait()
            blobs.put(data)
        except Exception as error:  # noqa: BLE001 - told by the assert below
            failures.append(error)

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(files_of(tmp_path)) == 1


def test_a_changed_file_is_never_returned(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path)
    digest = blobs.put(b"true")
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    file.write_bytes(b"false")

    with pytest.raises(StoreCorruptError, match="does not have the content"):
        blobs.get(digest)


def test_a_long_blob_is_what_was_written_whatever_becomes_of_the_buffer(blobs: Blobs) -> None:
    parts = [os.urandom(1024 * 1024) for _ in range(9)] + [b"a short end"]
    buffer = bytearray(1024 * 1024)
    fixed, changing = blobs.writer(), blobs.writer()

    for part in parts:
        fixed.write(part)
        buffer[: len(part)] = part
        changing.write(memoryview(buffer)[: len(part)])  # type: ignore[arg-type]  # any buffer will do
    digests = {fixed.finish(), changing.finish()}

    assert digests == {f"sha256:{hashlib.sha256(b''.join(parts)).hexdigest()}"}
    assert blobs.get(digests.pop()) == b"".join(parts)


def test_a_long_blob_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    writer = DirectoryBlobs(tmp_path).writer()

    for _ in range(9):
        writer.write(bytes(1024 * 1024))
    writer.abort()

    assert list(tmp_path.iterdir()) == []


def test_the_content_is_on_disk_before_its_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(file: int) -> None:
        calls.append("fsync")
        fsync(file)

    def note_replace(source: str, target: str) -> None:
        calls.append("rename")
        replace(source, target)

    blobs = DirectoryBlobs(tmp_path)
    blobs.put(b"makes the directory, perhaps")
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)

    blobs.put(b"data")
    first = [call for call in calls if call]
    calls.clear()
    blobs.put(b"data")

    assert first[-3:] == ["fsync", "rename", "fsync"]
    assert calls == ["fsync"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StoreFullError),
        (errno.EDQUOT, StoreFullError),
        (errno.EROFS, StoreReadOnlyError),
        (errno.EIO, StoreError),
    ],
)
def test_a_failed_write_leaves_nothing_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StoreError]
) -> None:
    blobs = DirectoryBlobs(tmp_path)

    def fail(file: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(kind, match=str(tmp_path)) as caught:
            blobs.put(b"data")

    assert type(caught.value) is kind
    assert files_of(tmp_path) == []
    assert blobs.get(blobs.put(b"data")) == b"data"


def test_a_file_in_the_place_of_the_directory_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("in the way")

    with pytest.raises(StoreError, match="blobs"):
        DirectoryBlobs(tmp_path / "blobs").put(b"data")


def test_old_blobs_are_listed_and_go_unless_they_are_young_again(blobs: Blobs) -> None:
    digest, other = blobs.put(b"x" * 10_000), blobs.put(b"other")
    # Whatever clock the blobs go by, it is not a minute away.
    past, future = time.time() - 60, time.time() + 60

    assert list(blobs.old(past)) == []
    assert sorted(blobs.old(future)) == sorted([(digest, 10_000), (other, 5)])
    assert not blobs.remove(digest, past)
    assert blobs.get(digest) == b"x" * 10_000
    assert blobs.remove(digest, future)
    assert not blobs.remove(digest, future)
    assert not blobs.renew(digest)
    assert list(blobs.old(future)) == [(other, 5)]
    assert blobs.put(b"x" * 10_000) == digest
    assert blobs.renew(digest)


@pytest.mark.postgres
def test_whoever_writes_a_blob_in_postgresql_again_or_renews_it_keeps_it(postgres_server: Any) -> None:
    from tests.postgres_kit import empty_schema, query, url_of

    from treadle.store.postgres import PostgresStore

    with empty_schema() as schema:
        store = PostgresStore.from_url(url_of(postgres_server, schema))
        store.open()
        blobs = store.blobs()
        written, renewed, neither = (blobs.put(data) for data in (b"written", b"renewed", b"neither"))
        query(postgres_server, f"UPDATE {schema}.blobs SET at = at - 7200")
        before = time.time() - 3600

        assert blobs.put(b"written") == written
        assert blobs.renew(renewed)

        assert list(blobs.old(before)) == [(neither, 7)]
        assert [blobs.remove(digest, before) for digest in (written, renewed, neither)] == [False, False, True]
        store.close()
