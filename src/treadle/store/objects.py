"""Blobs in object stores: S3, Google Cloud Storage, Azure Blob Storage, and what speaks their protocols.

The one place that imports obstore. Credentials and endpoints come from where each service's own tools look for them
(environment, files, instance roles), or from `options`. An object is named by its content, and its last change is its
age. A writer spools to a local file, since the name is known only at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Generator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from treadle.errors import (
    MissingExtraError,
    StoreCorruptError,
    StoreError,
    StoreReadOnlyError,
    StoreUnavailableError,
    StoreUrlError,
)
from treadle.store.blobs import digest_of, now

# Of the URLs that the client knows.
SCHEMES: Final = frozenset({"s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl"})
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
# What is kept in memory of a blob that is being written.
_SPOOL: Final = 4 * 1024 * 1024
# An object that is older is written again when it is needed again: there is no other way to make it young everywhere.
_YOUNG_SECONDS: Final = 600.0
_CONCURRENT_PARTS: Final = 4
# Before a service is said to be unreachable.
_RETRY_SECONDS: Final = 20


def _obstore() -> Any:
    try:
        import obstore
    except ImportError:
        raise MissingExtraError("artifacts in an object store need obstore; install `treadle[objects]`") from None
    return obstore


class ObjectWriter:
    """A blob on its way to an object store."""

    def __init__(self, blobs: ObjectBlobs) -> None:
        self._blobs = blobs
        self._hash = hashlib.sha256()
        self._file = tempfile.SpooledTemporaryFile(_SPOOL)  # noqa: SIM115 - closed by finish or abort

    def write(self, data: bytes) -> None:
        """Add bytes at the end."""
        self._hash.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise StoreError(f"an artifact on its way to {self._blobs.url} cannot be spooled: {error}") from error

    def finish(self) -> str:
        """Upload, and return the digest."""
        digest = f"sha256:{self._hash.hexdigest()}"
        try:
            if not self._blobs.renew(digest):
                self._file.seek(0)
                self._blobs.upload(digest, self._file)
        finally:
            self._file.close()
        return digest

    def abort(self) -> None:
        """Forget what was written."""
        self._file.close()


class _ObjectFile:
    """An object that is being read, as one streamed answer."""

    def __init__(self, blobs: ObjectBlobs, answer: Any) -> None:
        self._blobs = blobs
        self._parts = iter(answer.stream(min_chunk_size=1024 * 1024))
        self._left = b""

    def read(self, size: int = -1) -> bytes:
        """Up to so many of the next bytes."""
        parts = [self._left]
        have = len(self._left)
        while size < 0 or have < size:
            with self._blobs.errors():
                part = next(self._parts, None)
            if part is None:
                break
            parts.append(bytes(part))
            have += len(part)
        data = b"".join(parts)
        if size < 0:
            size = len(data)
        self._left = data[size:]
        return data[:size]

    def close(self) -> None:
        """The connection goes with the answer."""
        self._parts = iter(())


class ObjectBlobs:
    """Blobs as objects `PREFIX/ab/cdef...` of one bucket."""

    def __init__(self, store: Any, url: str) -> None:
        self.url = url.rstrip("/")
        self._obstore = _obstore()
        self._store = store

    @classmethod
    def from_url(cls, url: str, **options: Any) -> ObjectBlobs:
        """The blobs below a URL: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`.

        `options` go to the service's client as they are, such as `endpoint` or `region`.

        Raises:
            StoreUrlError: the URL is of no service that is known, or lacks something.
            MissingExtraError: obstore is not installed.
        """
        scheme = url.partition("://")[0]
        if scheme not in SCHEMES:
            raise StoreUrlError(
                f"{url!r} names no place for artifacts; use a directory, s3://bucket/prefix, gs://bucket/prefix or "
                "az://container/prefix"
            )
        obstore = _obstore()
        retries = {"max_retries": 3, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)}
        try:
            return cls(obstore.store.from_url(url, retry_config=retries, **options), url)
        except (obstore.exceptions.BaseError, ValueError, TypeError) as error:
            raise StoreUrlError(f"{url!r} cannot be used for artifacts: {_said(error)}") from error

    def put(self, data: bytes) -> str:
        """Store and return the digest."""
        digest = digest_of(data)
        if not self.renew(digest):
            self.upload(digest, data)
        return digest

    def upload(self, digest: str, content: Any) -> None:
        """Make an object of bytes, a file or a stream."""
        with self.errors():
            self._obstore.put(self._store, _key(digest), content, max_concurrency=_CONCURRENT_PARTS)

    def get(self, digest: str) -> bytes:
        """The bytes, which are checked against the digest.

        Raises:
            KeyError: no such blob.
            StoreCorruptError: the object was changed since it was written.
        """
        data = self.open(digest).read()
        if digest_of(data) != digest:
            raise StoreCorruptError(f"{self.uri(digest)} does not have the content that its name says")
        return data

    def writer(self) -> ObjectWriter:
        """Begin a blob."""
        return ObjectWriter(self)

    def open(self, digest: str) -> _ObjectFile:
        """The bytes as a stream.

        Raises:
            KeyError: no such blob.
        """
        if _DIGEST.fullmatch(digest) is None:
            raise KeyError(digest)
        with self.errors(digest):
            return _ObjectFile(self, self._obstore.get(self._store, _key(digest)))

    def uri(self, digest: str) -> str:
        """The URL of the object."""
        return f"{self.url}/{_key(digest)}"

    def renew(self, digest: str) -> bool:
        """Make the object as young as a new one; False if it is gone."""
        at = self._changed_at(digest)
        if at is None:
            return False
        if now() - at > _YOUNG_SECONDS:
            with self.errors():
                answer = self._obstore.get(self._store, _key(digest))
                # By a file of ours: the client cannot read from itself while it writes.
                with tempfile.SpooledTemporaryFile(_SPOOL) as file:
                    for part in answer.stream(min_chunk_size=1024 * 1024):
                        file.write(part)
                    file.seek(0)
                    self.upload(digest, file)
        return True

    def old(self, before: float) -> Iterator[tuple[str, int]]:
        """Digest and size of the objects that were neither written nor renewed since."""
        with self.errors():
            for batch in self._obstore.list(self._store):
                for found in batch:
                    digest = "sha256:" + found["path"].replace("/", "")
                    if _DIGEST.fullmatch(digest) and found["last_modified"].timestamp() < before:
                        yield digest, found["size"]

    def remove(self, digest: str, before: float) -> bool:
        """Remove the object, if it is still as old as that."""
        at = self._changed_at(digest)
        if at is None or at >= before:
            return False
        with self.errors():
            self._obstore.delete(self._store, _key(digest))
        return True

    def _changed_at(self, digest: str) -> float | None:
        try:
            with self.errors(digest):
                found: datetime = self._obstore.head(self._store, _key(digest))["last_modified"]
        except KeyError:
            return None
        return found.astimezone(UTC).timestamp()

    @contextlib.contextmanager
    def errors(self, digest: str = "") -> Generator[None, None, None]:
        """Let the client's errors leave as ours; that an object is not there is a KeyError where one is named."""
        kinds = self._obstore.exceptions
        try:
            yield
        except FileNotFoundError as error:
            # The client raises it for an object and for a bucket alike.
            if digest:
                raise KeyError(digest) from None
            raise StoreUnavailableError(f"{self.url} is not there: {_said(error)}; check the URL") from error
        except (kinds.PermissionDeniedError, kinds.UnauthenticatedError, PermissionError) as error:
            raise StoreReadOnlyError(f"{self.url} refuses the access: {_said(error)}; check the credentials") from error
        except (kinds.BaseError, OSError) as error:
            raise StoreUnavailableError(
                f"{self.url} cannot be reached or does not answer as it should: {_said(error)}; try again"
            ) from error


def _key(digest: str) -> str:
    name = digest.removeprefix("sha256:")
    return f"{name[:2]}/{name[2:]}"


def _said(error: BaseException) -> str:
    """What a client's error says, without what it adds for its own developers."""
    return str(error).partition("\n\nDebug source")[0]
