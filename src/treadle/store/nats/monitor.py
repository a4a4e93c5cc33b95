"""What a server's monitoring port says, if the URL of the store names it: clients are not told such things."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

import msgspec

from treadle.store.nats.location import Location

_ANSWERS_WITHIN_SECONDS = 2


async def sync_interval(location: Location) -> float | None:
    """After how many seconds a server writes to its disk, 0 for at once; None if nobody says it."""

    def ask() -> float | None:
        try:
            config = msgspec.json.decode(_read(f"{location.monitor}/jsz?config=true"))["config"]
        except (OSError, KeyError, msgspec.DecodeError):
            return None
        return 0.0 if config.get("sync_always") else config.get("sync_interval", 0) / 1e9

    return await asyncio.get_running_loop().run_in_executor(None, ask) if location.monitor else None


async def complaint(location: Location) -> str:
    """What the server says to be wrong with itself; empty if nothing is, or nobody says it."""

    def ask() -> str:
        try:
            _read(f"{location.monitor}/healthz")
        except urllib.error.HTTPError as error:
            return str(msgspec.json.decode(error.read()).get("error", error.reason))
        except (OSError, msgspec.DecodeError):
            return ""
        return ""

    return await asyncio.get_running_loop().run_in_executor(None, ask) if location.monitor else ""


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=_ANSWERS_WITHIN_SECONDS) as answer:  # noqa: S310 - http
        return bytes(answer.read())
