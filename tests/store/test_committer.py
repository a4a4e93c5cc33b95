"""The committer: what it keeps of commits that have failed."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest

from treadle.errors import StoreUnavailableError
from treadle.runtime.wakeups import NoWakeups
from treadle.store.base import Answer, Append, Store
from treadle.store.committer import Committer, InlineDriver

APPEND = Append(key="0" * 32, expect=1, commit_id=1, time=1.0, events=[], status="running")


class LostError(StoreUnavailableError):
    """An error that can be followed."""


class Broken:
    """A store that does not answer."""

    made_room = False

    def __init__(self) -> None:
        self.errors: list[weakref.ref[LostError]] = []

    def commit(self, _session: str, _appends: list[Append], _offer: object) -> list[Answer]:
        """Fail."""
        error = LostError("no answer")
        self.errors.append(weakref.ref(error))
        raise error


@pytest.mark.parametrize("alone", [True, False])
async def test_nothing_is_left_of_commits_that_have_failed(alone: bool) -> None:
    store = Broken()
    committer = Committer(cast(Store, store), "me", None, NoWakeups(), InlineDriver(renew_seconds=60))
    told: list[str] = []

    def teller(number: int) -> Callable[[Any, BaseException | None], None]:
        return lambda answer, error: told.append(f"{number} {answer.status} {type(error).__name__}")

    for number in range(3):
        committer.append(APPEND, teller(number), alone=alone)
        await asyncio.sleep(0)
    await committer.stop()
    gc.collect()

    assert told == [f"{number} doubt LostError" for number in range(3)]
    assert len(store.errors) == 3
    assert [error() for error in store.errors] == [None] * 3
