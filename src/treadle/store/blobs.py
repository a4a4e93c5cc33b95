"""Large payloads by content: a directory of files, or a dictionary.

A blob is named by the SHA-256 of its bytes, so writing it twice is harmless and reading it back can be checked.
`put` returns only when the blob would survive a power cut: a run's journal may name it from then on.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import re
import threading
from collections.abc import Generator

from treadle.errors import StoreCorruptError, StoreError, StoreFullError, StoreReadOnlyError

_PREFIX = "sha256:"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TEMPORARY = ".new-"

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def digest_of(data: bytes) -> str:
    """The name of a blob with these bytes."""
    return _PREFIX + hashlib.sha256(data).hexdigest()


class MemoryBlobs:
    """Blobs that live as long as the process."""

    __slots__ = ("_blobs",)

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    def put(self, data: bytes) -> str:
        """Store and return the digest."""
        digest = digest_of(data)
        self._blobs.setdefault(digest, bytes(data))
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes.

        Raises:
            KeyError: no such blob.
        """
        return self._blobs[digest]


class DirectoryBlobs:
    """Blobs as files of one directory, `ab/cdef...` for the digest `sha256:abcdef...`.

    Any number of processes and threads may use one directory. A file appears whole or not at all: it is written
    under another name, synced, and renamed. What a crash leaves of it starts with `.new-` and may be removed
    while nothing runs.
    """

    __slots__ = ("_numbers", "path")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._numbers = itertools.count()

    def put(self, data: bytes) -> str:
        """Store and return the digest; on return the blob is on disk.

        Raises:
            StoreFullError: no room is left; nothing was stored.
            StoreReadOnlyError: the directory cannot be written.
        """
        digest = digest_of(data)
        shard, target = self._place(digest)
        with self._errors():
            if not os.path.exists(target):
                self._make_shard(shard)
                self._write(shard, target, data)
            # Also for a blob that was there: whoever wrote it may not have come so far, and may die before.
            _sync_directory(shard)
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes, which are checked against the digest.

        Raises:
            KeyError: no such blob.
            StoreCorruptError: the file was changed since it was written.
        """
        if _DIGEST.fullmatch(digest) is None:
            # Also what keeps a forged digest inside the directory.
            raise KeyError(digest)
        _, target = self._place(digest)
        with self._errors():
            try:
                with open(target, "rb") as file:
                    data = file.read()
            except FileNotFoundError:
                raise KeyError(digest) from None
        if digest_of(data) != digest:
            raise StoreCorruptError(f"blob {target} does not have the content that its name says; restore a backup")
        return data

    def copy_to(self, path: str) -> None:
        """Copy all blobs to another directory; durable when this returns. See `store.base.CopiedBlobs`."""
        other = DirectoryBlobs(path)
        with self._errors():
            for shard in sorted(os.listdir(self.path)) if os.path.isdir(self.path) else ():
                for name in sorted(os.listdir(os.path.join(self.path, shard))):
                    if not name.startswith(_TEMPORARY):
                        other.put(self.get(_PREFIX + shard + name))

    def _place(self, digest: str) -> tuple[str, str]:
        name = digest.removeprefix(_PREFIX)
        shard = os.path.join(self.path, name[:2])
        return shard, os.path.join(shard, name[2:])

    def _make_shard(self, shard: str) -> None:
        if not os.path.isdir(shard):
            os.makedirs(shard, exist_ok=True)
            _sync_directory(self.path)

    def _write(self, shard: str, target: str, data: bytes) -> None:
        name = f"{_TEMPORARY}{os.getpid()}-{threading.get_ident()}-{next(self._numbers)}"
        temporary = os.path.join(shard, name)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    @contextlib.contextmanager
    def _errors(self) -> Generator[None, None, None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise StoreFullError(
                    f"no room is left for blobs in {self.path}; free some space, then go on"
                ) from error
            if error.errno in _DENIED:
                raise StoreReadOnlyError(
                    f"blobs in {self.path} are out of reach: {error}; check the permissions"
                ) from error
            raise StoreError(f"blobs in {self.path}: {error}") from error


def _sync_directory(path: str) -> None:
    """Make the names in a directory durable, where a directory can be opened (not on Windows)."""
    try:
        directory = os.open(path, os.O_RDONLY)
    except PermissionError:
        if os.name == "nt":
            return
        raise
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
