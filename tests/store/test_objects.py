"""Blobs in a bucket of S3, on an emulated service; and what is said when a service cannot be used."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from treadle import StoreCorruptError, StoreUnavailableError, StoreUrlError, connect, context, step, workflow
from treadle.core.effects import Artifact
from treadle.store import objects
from treadle.store.objects import ObjectBlobs

CREDENTIALS = {"region": "us-east-1", "access_key_id": "id", "secret_access_key": "key"}
BIG = os.urandom(12 * 1024 * 1024 + 5)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    import boto3  # type: ignore[import-untyped]  # it has no types

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="id", aws_secret_access_key="key"
    )
    client.create_bucket(Bucket="treadle")
    yield url
    server.stop()


@pytest.fixture
def blobs(endpoint: str, request: pytest.FixtureRequest) -> ObjectBlobs:
    return at(endpoint, request.node.name)


def at(endpoint: str, prefix: str, **options: Any) -> ObjectBlobs:
    return ObjectBlobs.from_url(
        f"s3://treadle/{prefix}", endpoint=endpoint, client_options={"allow_http": True}, **CREDENTIALS, **options
    )


def test_what_was_put_is_got_back(blobs: ObjectBlobs) -> None:
    digest = blobs.put(b"small")

    assert blobs.get(digest) == b"small"
    assert blobs.put(b"small") == digest
    assert blobs.uri(digest).startswith("s3://treadle/test_what_was_put")
    with pytest.raises(KeyError):
        blobs.get("sha256:" + "0" * 64)
    with pytest.raises(KeyError):
        blobs.open("sha256:../escape")


def test_a_large_blob_is_written_in_parts_and_read_in_parts(blobs: ObjectBlobs) -> None:
    writer = blobs.writer()
    for start in range(0, len(BIG), 1_000_000):
        writer.write(BIG[start : start + 1_000_000])
    digest = writer.finish()

    file = blobs.open(digest)
    found = b""
    while chunk := file.read(700_001):
        assert len(chunk) <= 700_001
        found += chunk
    assert found == BIG


def test_what_was_given_up_is_not_there(blobs: ObjectBlobs) -> None:
    writer = blobs.writer()
    writer.write(b"half")
    writer.abort()

    assert list(blobs.old(time.time() + 100)) == []


def test_only_old_objects_are_removed(blobs: ObjectBlobs) -> None:
    digest = blobs.put(b"young")
    later = time.time() + 100

    assert list(blobs.old(time.time() - 100)) == []
    assert not blobs.remove(digest, time.time() - 100)
    assert list(blobs.old(later)) == [(digest, 5)]
    assert blobs.remove(digest, later)
    assert not blobs.renew(digest)


def test_an_object_that_is_not_young_is_written_again(blobs: ObjectBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads: list[str] = []
    digest = blobs.put(b"kept")

    class Watched(ObjectBlobs):
        def upload(self, digest: str, content: Any) -> None:
            uploads.append(digest)
            super().upload(digest, content)

    blobs.__class__ = Watched
    assert blobs.renew(digest)
    assert uploads == []

    monkeypatch.setattr(objects, "now", lambda: datetime.now(UTC).timestamp() + 3600)

    assert blobs.renew(digest)
    assert uploads == [digest]
    assert blobs.get(digest) == b"kept"


def test_a_changed_object_is_noticed(blobs: ObjectBlobs) -> None:
    digest = blobs.put(b"right")
    blobs.upload(digest, b"wrong")

    with pytest.raises(StoreCorruptError):
        blobs.get(digest)


def test_a_service_that_does_not_answer_is_unavailable() -> None:
    blobs = at("http://127.0.0.1:9", "x")

    with pytest.raises(StoreUnavailableError, match=r"s3://treadle/x cannot be reached.*try again"):
        blobs.put(b"x")


def test_a_bucket_that_is_not_there_is_named(endpoint: str) -> None:
    blobs = ObjectBlobs.from_url("s3://absent/x", endpoint=endpoint, client_options={"allow_http": True}, **CREDENTIALS)

    with pytest.raises(StoreUnavailableError, match="s3://absent/x is not there"):
        blobs.upload("sha256:" + "0" * 64, b"x")


@pytest.mark.parametrize("url", ["ftp://host/x", "memory://", "s3://", "http://bucket/x"])
def test_a_url_of_no_service_is_refused(url: str) -> None:
    with pytest.raises(StoreUrlError):
        ObjectBlobs.from_url(url)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("gs://bucket/prefix", {"skip_signature": True}),
        ("az://container/prefix", {"account_name": "name", "account_key": "a2V5"}),
    ],
)
def test_other_services_are_reached_by_their_urls(url: str, options: dict[str, Any]) -> None:
    blobs = ObjectBlobs.from_url(url, **options)

    assert blobs.uri("sha256:" + "ab" * 32) == f"{url}/ab/{'ab' * 31}"


@step(name="objects:make")
async def make() -> Artifact:
    return await context().artifact("big.bin", BIG)


@step(name="objects:read")
def read(made: Artifact) -> int:
    with context().open(made) as stream:
        return len(stream.read())


@workflow(name="objects:flow")
def flow() -> int:
    return read.bind(make.bind())


async def test_a_run_keeps_its_artifacts_in_the_bucket(blobs: ObjectBlobs, tmp_path: Path) -> None:
    async with connect(f"sqlite:///{tmp_path}/runs.db?sync=normal", artifacts=blobs) as app:
        run = await app.start(flow)

        assert await run.result() == len(BIG)
        [made] = await run.artifacts()
        assert made.uri.startswith("s3://treadle/")
        assert not (tmp_path / "runs.db-blobs").exists()
