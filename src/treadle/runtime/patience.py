"""Waiting for a store that does not answer, or has no room: neither is the fault of a step."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from treadle.errors import StoreFullError, StoreUnavailableError

_log = logging.getLogger("treadle.worker")

T = TypeVar("T")

# Seconds between tries while the store does not answer.
RETRY_SECONDS = 0.2
# The same while it has no room: a try may send all of a large value.
FULL_SECONDS = 1.0


async def patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Do something with the store until it answers and has room; what is done twice must be as if done once.

    An attempt that takes too long by that has its own timeout.
    """
    told = False
    while True:
        try:
            return await work()
        except StoreUnavailableError:
            await asyncio.sleep(RETRY_SECONDS)
        except StoreFullError as error:
            if not told:
                told = True
                _log.warning("an attempt waits for room in the store: %s", error)
            await asyncio.sleep(FULL_SECONDS)
