"""Where a SQLite store lives: store URLs, and places where SQLite's locks cannot be trusted."""

from __future__ import annotations

import os
import re
import sys
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from treadle.errors import StoreError, StoreUrlError

Sync = Literal["full", "normal"]

_SHAPE = "write sqlite:///relative/path.db or sqlite:////absolute/path.db"
_FLAGS = {"1": True, "true": True, "0": False, "false": False}
# Record locks and the shared memory of the WAL do not work, or not between machines, on these.
_NETWORK_TYPES = frozenset({"nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs"})
_ESCAPED = re.compile(r"\\([0-7]{3})")


class Location(NamedTuple):
    """A parsed store URL."""

    path: str
    sync: Sync = "full"
    unsafe_network: bool = False


def parse_url(url: str) -> Location:
    """Read a `sqlite:` URL; the path is percent-decoded.

    Raises:
        StoreUrlError: it is not one, or has an option that is not known.
    """
    parts = urlsplit(url)
    if parts.scheme != "sqlite":
        raise StoreUrlError(f"{url!r} is not a SQLite URL; {_SHAPE}")
    # The first slash ends the (empty) host: three slashes before a relative path, four before an absolute one.
    if parts.netloc or not url.startswith("sqlite:///"):
        raise StoreUrlError(f"{url!r} names a host; {_SHAPE}")
    path = unquote(parts.path[1:])
    if not path:
        raise StoreUrlError(f"{url!r} names no file; {_SHAPE}")
    if path.startswith(":memory:"):
        raise StoreUrlError(f"{url!r}: a database in memory has no second connection; use the memory store")
    if parts.fragment:
        raise StoreUrlError(f"{url!r} has a fragment; write # in a path as %23")
    if "\0" in path:
        raise StoreUrlError(f"{url!r} has a null character in its path")
    sync: Sync = "full"
    unsafe_network = False
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "sync" and value in ("full", "normal"):
            sync = "full" if value == "full" else "normal"
        elif name == "unsafe_network" and value in _FLAGS:
            unsafe_network = _FLAGS[value]
        else:
            raise StoreUrlError(
                f"{url!r}: option {name}={value} is not known; there are sync=full, sync=normal and unsafe_network=1"
            )
    return Location(path, sync, unsafe_network)


def refuse_network(path: str, mounts: str = "/proc/mounts") -> None:
    """Raise if the path lies on a network file system, where this can be told (on Linux).

    Raises:
        StoreError: it does.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    place = os.path.realpath(path)
    best, kind = "", ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        mount = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[1])
        inside = place == mount or place.startswith(mount.rstrip("/") + "/")
        # A later mount on the same point hides the earlier one.
        if inside and len(mount) >= len(best):
            best, kind = mount, fields[2]
    if kind in _NETWORK_TYPES:
        raise StoreError(
            f"{path} lies on a network file system ({kind} at {best}), where SQLite's locks cannot be trusted;"
            " use a local disk, or ?unsafe_network=1 if only one machine ever opens it"
        )
