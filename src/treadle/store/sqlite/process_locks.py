"""Proof of life by record locks: each session has a file that its process keeps locked until it exits.

The operating system frees a POSIX record lock when its process dies, however it dies, so a session whose lock is
free is dead at once, without a lease time to wait for. Two traps of these locks shape this module: a process
loses a lock when it closes ANY descriptor of that file, and its own locks never stop itself. So a file of a
session of this process is opened once, and never probed. A forked child holds none of its parent's locks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sys
from urllib.parse import quote

from treadle.errors import StoreError, StoreReadOnlyError

if sys.platform != "win32":
    import fcntl

_MAX_NAME = 200

# Descriptors of the locked files of this process, by path.
_own: dict[str, int] = {}


def host_name() -> str:
    """The name under which this machine's locks are known."""
    return socket.gethostname()


class ProcessLocks:
    """The session files beside one database."""

    def __init__(self, database: str) -> None:
        self.directory = os.path.realpath(database) + "-sessions"

    def path(self, session: str) -> str:
        """The session's file."""
        name = quote(session, safe="")
        if len(name) > _MAX_NAME or name.strip(".") == "":
            name = "sha256-" + hashlib.sha256(session.encode()).hexdigest()
        return os.path.join(self.directory, name)

    def hold(self, session: str) -> None:
        """Lock the session's file until this process ends or `drop`s it.

        Raises:
            StoreError: another process holds it, or it cannot be made.
        """
        if sys.platform == "win32":
            return
        path = self.path(session)
        if path in _own:
            raise StoreError(f"session {session} is open in this process already; take a new session id")
        try:
            os.makedirs(self.directory, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StoreReadOnlyError(f"{path} cannot be made ({error}); check the permissions") from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            raise StoreError(f"session {session} is open in another process; take a new session id") from error
        _own[path] = file

    def drop(self, session: str) -> None:
        """Forget an ended session: its file goes, whichever process held it."""
        path = self.path(session)
        # Gone already, or not ours to remove: an ended session's file means nothing.
        with contextlib.suppress(OSError):
            os.unlink(path)
        file = _own.pop(path, None)
        if file is not None:
            os.close(file)

    def is_dead(self, session: str) -> bool:
        """Whether the session's process is known to be gone."""
        if sys.platform == "win32":
            return False
        path = self.path(session)
        if path in _own:
            return False
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            # Shared, so that two processes that probe do not take each other for the holder.
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(file)
        return True


def _after_fork() -> None:
    # Closing them here frees nothing of the parent's: record locks are the process's, and are not inherited.
    for file in _own.values():
        os.close(file)
    _own.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
