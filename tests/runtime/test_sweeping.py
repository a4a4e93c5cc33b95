"""Who is found dead: a session whose counter stands still while the store could be asked, and no other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from treadle.runtime.sweeper import Sweeper
from treadle.store.memory import MemoryStore
from treadle.testing.contract_kit import Party


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = 0.0

    def monotonic(self) -> float:
        return self.time

    def now(self) -> float:
        return self.time


def sweeper_of(clock: Clock) -> Any:
    committer = SimpleNamespace(notify=lambda **_: None)
    return Sweeper(
        session="one",
        committer=cast("Any", committer),
        clock=clock,
        engine=cast("Any", None),
        lease_seconds=10,
        sweep_seconds=1,
        on_due=lambda _: None,
    )


def test_a_session_that_stands_still_for_the_lease_time_is_buried() -> None:
    store, clock = MemoryStore(), Clock()
    sweeper = sweeper_of(clock)
    for name in ("one", "quiet", "lively"):
        Party(store, name)

    buried: list[str] = []
    for second in range(12):
        clock.time = float(second)
        store.renew("one")
        store.renew("lively")
        buried += sweeper._bury(store)[0]

    assert buried == ["quiet"]
    assert [row.id for row in store.sessions()] == ["one", "lively"]


def test_after_the_store_was_away_everybody_has_the_lease_time_again() -> None:
    store, clock = MemoryStore(), Clock()
    sweeper = sweeper_of(clock)
    for name in ("one", "other", "dead"):
        Party(store, name)
    assert sweeper._bury(store)[0] == []

    # Nobody could renew for a minute; this process is the first that can ask again.
    clock.time = 60.0
    assert sweeper._bury(store)[0] == []
    buried: list[str] = []
    for second in range(61, 72):
        clock.time = float(second)
        store.renew("one")
        store.renew("other")
        buried += sweeper._bury(store)[0]

    assert buried == ["dead"]


def test_nobody_is_buried_for_a_time_in_which_the_store_took_no_renewals() -> None:
    """A store that is full is read as ever: all stand still in it, whoever lives."""
    store, clock = MemoryStore(), Clock()
    sweeper = sweeper_of(clock)
    for name in ("one", "other", "dead"):
        Party(store, name)

    buried: list[str] = []
    for second in range(60):
        clock.time = float(second)
        buried += sweeper._bury(store)[0]
    # There is room again; the others may renew a little later than this session does.
    for second in range(60, 73):
        clock.time = float(second)
        store.renew("one")
        if second > 63:
            store.renew("other")
        buried += sweeper._bury(store)[0]

    assert buried == ["dead"]
