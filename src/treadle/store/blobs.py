"""Large payloads and artifacts by content: a directory of files, or a dictionary.

A blob is named by the SHA-256 of its bytes, so writing it twice is harmless and reading it back can be checked.
`put`, and `finish` of a writer, return only when the blob would survive a power cut: a run's journal may name it from
then on. Both make a blob that is there already as young as a new one, and only old blobs are ever removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import os
import re
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from treadle.errors import StoreCorruptError, StoreError, StoreFullError, StoreReadOnlyError

_PREFIX = "sha256:"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TEMPORARY = ".new-"
_CONDEMNED = ".old-"
# Larger writes cost the kernel several times as much for each byte.
_PIECE = 256 * 1024
# So many chunks may be written and not hashed yet: what one thread waits for the processor, the other can make good.
_UNHASHED = 4
# What was written is sent to the disk by portions of this size, so that the sync at the end has little left to do.
_PORTION = 8 * 1024 * 1024

# Not on macOS.
_FADVISE = getattr(os, "posix_fadvise", None)
_DONTNEED: int = getattr(os, "POSIX_FADV_DONTNEED", 0)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def digest_of(data: bytes) -> str:
    """The name of a blob with these bytes."""
    return _PREFIX + hashlib.sha256(data).hexdigest()


def now() -> float:
    """The time by which blobs are young or old: that of the file system, or of whatever keeps them."""
    return time.time()  # noqa: TID251 - compared with the times of files, which no Clock gives


class HeldWriter:
    """A blob that is being written; its bytes are held until they are whole."""

    def __init__(self, blobs: WholeBlobs) -> None:
        self._blobs = blobs
        self._parts = io.BytesIO()

    def write(self, data: bytes) -> None:
        """Add bytes at the end."""
        self._parts.write(data)

    def finish(self) -> str:
        """Store, and return the digest."""
        return self._blobs.put(self._parts.getvalue())

    def abort(self) -> None:
        """Forget what was written."""
        self._parts = io.BytesIO()


class WholeBlobs:
    """What blobs have in common that are written and read whole."""

    __slots__ = ()

    def put(self, data: bytes) -> str:
        """Store and return the digest."""
        raise NotImplementedError

    def get(self, digest: str) -> bytes:
        """The bytes.

        Raises:
            KeyError: no such blob.
        """
        raise NotImplementedError

    def writer(self) -> HeldWriter:
        """Begin a blob."""
        return HeldWriter(self)

    def open(self, digest: str) -> BinaryIO:
        """The bytes as a stream.

        Raises:
            KeyError: no such blob.
        """
        return io.BytesIO(self.get(digest))


class MemoryBlobs(WholeBlobs):
    """Blobs that live as long as the process."""

    __slots__ = ("_blobs", "_written", "now")

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self._written: dict[str, float] = {}
        self.now = now

    def put(self, data: bytes) -> str:
        """Store and return the digest."""
        digest = digest_of(data)
        self._blobs.setdefault(digest, bytes(data))
        self._written[digest] = self.now()
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes.

        Raises:
            KeyError: no such blob.
        """
        return self._blobs[digest]

    def uri(self, digest: str) -> str:
        """Where the blob is: in the memory of this process."""
        return f"memory:{digest}"

    def renew(self, digest: str) -> bool:
        """Make the blob as young as a new one; False if it is gone."""
        if digest not in self._blobs:
            return False
        self._written[digest] = self.now()
        return True

    def old(self, before: float) -> Iterator[tuple[str, int]]:
        """Digest and size of the blobs that were neither written nor renewed since."""
        return iter([(digest, len(self._blobs[digest])) for digest, at in self._written.items() if at < before])

    def remove(self, digest: str, before: float) -> bool:
        """Remove the blob, if it is still as old as that."""
        if self._written.get(digest, before) >= before:
            return False
        del self._blobs[digest], self._written[digest]
        return True


class DirectoryWriter:
    """A blob of a directory that is being written, under a name that no reader looks for.

    Three things take about as long as each other: hashing, the copy into the kernel's cache, and the disk. A long
    blob has them done at the same time, by a second thread and by the kernel.
    """

    def __init__(self, blobs: DirectoryBlobs) -> None:
        self._blobs = blobs
        self._hash = hashlib.sha256()
        self._hasher: ThreadPoolExecutor | None = None
        self._unhashed: deque[Future[None]] = deque()
        self._size = 0
        # How much of it is on its way to the disk.
        self._sent = 0
        with blobs.errors():
            os.makedirs(blobs.path, exist_ok=True)
            self.path = os.path.join(blobs.path, blobs.temporary())
            self._file = open(self.path, "wb", buffering=0)  # noqa: SIM115 - closed by finish or abort

    def write(self, data: bytes) -> None:
        """Add bytes at the end; a buffer that may change is done with on return.

        Raises:
            StoreFullError: no room is left.
        """
        self._hash_or_begin(data)
        try:
            with self._blobs.errors():
                view = memoryview(data)
                while view:
                    # An unbuffered write may take less than it was given.
                    written = self._file.write(view[:_PIECE])
                    self._size += written
                    view = view[written:]
                self._send()
        finally:
            # Only an object of this type is sure to stay as it is.
            self._await_hashed(_UNHASHED if type(data) is bytes else 0)

    def _hash_or_begin(self, data: bytes) -> None:
        """Hash what is worth it on another core, while it is written."""
        if len(data) < 2 * _PIECE:
            self._await_hashed(0)
            self._hash.update(data)
            return
        if self._hasher is None:
            self._hasher = ThreadPoolExecutor(1, thread_name_prefix="treadle-hash")
        self._unhashed.append(self._hasher.submit(self._hash.update, data))

    def _await_hashed(self, but: int) -> None:
        """Wait until all chunks but so many are hashed."""
        while len(self._unhashed) > but:
            self._unhashed.popleft().result()

    def _send(self) -> None:
        """Let the disk begin with what was written; a hint, which changes nothing but the time."""
        if self._size - self._sent >= _PORTION and _FADVISE is not None:
            # Linux starts the write-back of pages that it is told are not needed; those that are not clean stay. Some
            # file systems take no advice.
            with contextlib.suppress(OSError):
                _FADVISE(self._file.fileno(), self._sent, self._size - self._sent, _DONTNEED)
            self._sent = self._size

    def _end_hasher(self) -> None:
        if self._hasher is not None:
            self._hasher.shutdown()
            self._hasher = None

    def finish(self) -> str:
        """Store, and return the digest; on return the blob is on disk."""
        try:
            with self._blobs.errors():
                os.fsync(self._file.fileno())
                self._file.close()
                self._await_hashed(0)
                digest = _PREFIX + self._hash.hexdigest()
                self._end_hasher()
                self._blobs.adopt(digest, self.path)
        except BaseException:
            self.abort()
            raise
        return digest

    def abort(self) -> None:
        """Remove what was written."""
        self._end_hasher()
        self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)


# Blobs are copied in pieces of this size.
_COPY_BYTES = 1024 * 1024


class DirectoryBlobs:
    """Blobs as files of one directory, `ab/cdef...` for the digest `sha256:abcdef...`.

    Any number of processes and threads may use one directory. A file appears whole or not at all: it is written
    under another name, synced, and renamed. What a crash leaves of it starts with `.new-`, and goes with the old
    blobs. A blob's age is its file's.
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
        if self.renew(digest):
            return digest
        writer = DirectoryWriter(self)
        try:
            writer.write(data)
        except BaseException:
            writer.abort()
            raise
        return writer.finish()

    def get(self, digest: str) -> bytes:
        """The bytes, which are checked against the digest.

        Raises:
            KeyError: no such blob.
            StoreCorruptError: the file was changed since it was written.
        """
        with self.open(digest) as file:
            data = file.read()
        if digest_of(data) != digest:
            raise StoreCorruptError(
                f"blob {self.uri(digest)} does not have the content that its name says; restore a backup"
            )
        return data

    def writer(self) -> DirectoryWriter:
        """Begin a blob."""
        return DirectoryWriter(self)

    def open(self, digest: str) -> BinaryIO:
        """The bytes as a stream.

        Raises:
            KeyError: no such blob.
        """
        if _DIGEST.fullmatch(digest) is None:
            # Also what keeps a forged digest inside the directory.
            raise KeyError(digest)
        with self.errors():
            try:
                return open(self._place(digest)[1], "rb", buffering=0)
            except FileNotFoundError:
                raise KeyError(digest) from None

    def uri(self, digest: str) -> str:
        """The URL of the blob's file."""
        return Path(os.path.abspath(self._place(digest)[1])).as_uri()

    def renew(self, digest: str) -> bool:
        """Make the blob as young as a new one, and sure to be on disk; False if it is gone."""
        shard, target = self._place(digest)
        with self.errors():
            try:
                os.utime(target)
            except FileNotFoundError:
                return False
            # Whoever wrote it may not have come so far, and may die before.
            _sync_directory(shard)
        return True

    def adopt(self, digest: str, path: str) -> None:
        """Make a whole and synced file of this directory the blob of that digest."""
        shard, target = self._place(digest)
        if not os.path.isdir(shard):
            os.makedirs(shard, exist_ok=True)
            _sync_directory(self.path)
        os.replace(path, target)
        _sync_directory(shard)

    def old(self, before: float) -> Iterator[tuple[str, int]]:
        """Digest and size of the blobs that were neither written nor renewed since.

        What crashes have left half-written goes on the way, once it is as old as that.
        """
        with self.errors():
            for entry in list(_entries(self.path)):
                if entry.is_dir():
                    yield from self._old_in(entry.path, entry.name, before)
                elif entry.name.startswith(_TEMPORARY) and entry.stat().st_mtime < before:
                    os.unlink(entry.path)

    def _all(self) -> Iterator[str]:
        """All blobs. Unlike `old` this leaves alone what is being written."""
        with self.errors():
            shards = [entry for entry in _entries(self.path) if entry.is_dir()]
            for shard in shards:
                for entry in list(_entries(shard.path)):
                    if entry.name.startswith(_CONDEMNED):
                        # Whoever was about to remove it finds it gone, and lets it be.
                        self._restore(entry.path, os.path.join(shard.path, entry.name.removeprefix(_CONDEMNED)))
                    digest = f"{_PREFIX}{shard.name}{entry.name.removeprefix(_CONDEMNED)}"
                    if _DIGEST.fullmatch(digest):
                        yield digest

    def _old_in(self, shard: str, name: str, before: float) -> Iterator[tuple[str, int]]:
        for entry in list(_entries(shard)):
            if entry.name.startswith(_CONDEMNED):
                self._restore(entry.path, os.path.join(shard, entry.name.removeprefix(_CONDEMNED)))
            elif entry.name.startswith(_TEMPORARY):
                os.unlink(entry.path)
            else:
                found = entry.stat()
                digest = f"{_PREFIX}{name}{entry.name}"
                if found.st_mtime < before and _DIGEST.fullmatch(digest):
                    yield digest, found.st_size

    def remove(self, digest: str, before: float) -> bool:
        """Remove the blob, if it is still as old as that.

        It is renamed first: a writer that comes meanwhile does not find it and writes it anew, and one that has
        renewed it before is seen by its age.
        """
        shard, target = self._place(digest)
        condemned = os.path.join(shard, _CONDEMNED + os.path.basename(target))
        with self.errors():
            try:
                os.replace(target, condemned)
                if os.stat(condemned).st_mtime >= before:
                    self._restore(condemned, target)
                    return False
                os.unlink(condemned)
            except FileNotFoundError:
                return False
        return True

    def _restore(self, condemned: str, target: str) -> None:
        """Take back what was to be removed; a collector that died has left it so."""
        if os.path.exists(target):
            os.unlink(condemned)
        else:
            os.replace(condemned, target)

    def temporary(self) -> str:
        """A file name that nobody else uses."""
        return f"{_TEMPORARY}{os.getpid()}-{threading.get_ident()}-{next(self._numbers)}"

    def copy_to(self, path: str) -> None:
        """Copy all blobs that are not there yet to another directory. See `store.copied.CopiedBlobs`."""
        other = DirectoryBlobs(path)
        for digest in self._all():
            # What is there is whole: a blob gets its name when it is.
            if os.path.exists(other._place(digest)[1]):
                continue
            # One that nobody needs may be collected meanwhile.
            with contextlib.suppress(KeyError), contextlib.closing(self.open(digest)) as source:
                writer = other.writer()
                try:
                    while data := source.read(_COPY_BYTES):
                        writer.write(data)
                    writer.finish()
                except BaseException:
                    writer.abort()
                    raise

    def _place(self, digest: str) -> tuple[str, str]:
        name = digest.removeprefix(_PREFIX)
        shard = os.path.join(self.path, name[:2])
        return shard, os.path.join(shard, name[2:])

    @contextlib.contextmanager
    def errors(self) -> Generator[None, None, None]:
        """Let errors of the file system leave as ours."""
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


def _entries(path: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            yield from entries
    except FileNotFoundError:
        return


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
