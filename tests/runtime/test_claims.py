"""What a claim says of tasks that it left: no freed slot may hide them, or they wait for the next sweep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from treadle.core.commands import Task
from treadle.runtime.slots import THREAD, Slots
from treadle.runtime.wakeups import NoWakeups
from treadle.store.base import Store
from treadle.store.committer import Committer, InlineDriver
from treadle.store.offers import Offer

ACTION = "flows:fetch"
TASK = cast(Task, object())


class Waiting:
    """A store in which tasks wait; `meanwhile` is what the event loop does while a claim is under way."""

    made_room = False

    def __init__(self, count: int, meanwhile: Callable[[], None]) -> None:
        self.count = count
        self.meanwhile = meanwhile

    def claim(self, _session: str, offer: Offer, _now: float) -> tuple[list[Task], float | None]:
        found: list[Task] = []
        while self.count and offer.take(ACTION, ""):
            self.count -= 1
            found.append(TASK)
        self.meanwhile()
        return found, None


def slots_of(size: int, taken: int) -> Slots:
    slots = Slots((5, size), [ACTION], lambda _: THREAD)
    for _ in range(taken):
        assert slots.take(ACTION, "")
    return slots


async def claimed(slots: Slots, store: Waiting) -> tuple[int, bool]:
    committer = Committer(cast(Store, store), "me", slots, NoWakeups(), InlineDriver(renew_seconds=60))
    tasks, _, left, _ = committer.claim(cast(Any, store), 0.0)
    await committer.stop()
    return len(tasks), left


@pytest.mark.parametrize("taken", [0, 1, 2])
async def test_a_slot_freed_during_a_claim_does_not_hide_that_tasks_were_left(taken: int) -> None:
    slots = slots_of(2, taken)
    store = Waiting(5, lambda: slots.put_back(THREAD))

    assert await claimed(slots, store) == (2 - taken, True)


async def test_a_claim_that_took_all_there_was_leaves_nothing() -> None:
    slots = slots_of(4, 1)

    assert await claimed(slots, Waiting(2, lambda: None)) == (2, False)


async def test_a_claim_that_found_nothing_has_left_nothing_whatever_was_freed_meanwhile() -> None:
    slots = slots_of(4, 1)

    assert await claimed(slots, Waiting(0, lambda: slots.put_back(THREAD))) == (0, False)
