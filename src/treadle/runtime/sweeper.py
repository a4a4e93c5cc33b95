"""The sweeper: one elected session finds runs that nobody decides; all look for dead sessions. Safe done twice.

The dead one may be the elected one, so nobody leaves it to that one alone to find the dead. At each round a session
also looks for what a lost wake-up would have told it: inputs of its own runs, and tasks that wait.

A session is dead when the store knows that its process is gone, or when its renewal counter stands still for the
lease time on this process's own monotonic clock: no two machines' clocks are compared.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from treadle.errors import LeaseLostError, StoreError, TreadleError
from treadle.ports import Clock, Elector
from treadle.runtime.engine import Engine
from treadle.store.base import FORMAT, Store
from treadle.store.committer import Committer

_log = logging.getLogger("treadle.sweeper")
# Elected by each format of runs: what a newer kernel has made an older one leaves alone.
ROLE = f"sweeper/{FORMAT}"
# How often those who wait for a run of this session look at the run themselves.
LOOK_SECONDS = 5.0


class Sweeper:
    """Sweeps while it is elected."""

    def __init__(
        self,
        *,
        session: str,
        committer: Committer,
        clock: Clock,
        engine: Engine,
        lease_seconds: float,
        sweep_seconds: float,
        on_due: Callable[[float], None],
        elector: Elector | None = None,
    ) -> None:
        self.session = session
        self.committer = committer
        self.clock = clock
        self.engine = engine
        self.lease_seconds = lease_seconds
        self.sweep_seconds = sweep_seconds
        self.on_due = on_due
        self.elector = elector
        # Session -> (renewal counter, when it was first seen at that), this one included.
        self._seen: dict[str, tuple[int, float]] = {}
        self._looked = clock.monotonic()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Sweep at once, then at intervals."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Sweep no more."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        first = True
        looked = self.clock.monotonic()
        while True:
            try:
                await self._bury_the_dead()
                # The first sweep needs no election: a new process may be the only one alive.
                if await self._elected() or first:
                    await self.sweep()
                first = False
                self.engine.inboxes.look_around()
                self.engine.alarms.look()
                self.on_due(self.clock.now())
                if self.clock.monotonic() - looked >= LOOK_SECONDS:
                    looked = self.clock.monotonic()
                    # Who waits for this session to decide a run must hear if another session has taken it.
                    self.engine.hub.look()
            except LeaseLostError:
                return
            except StoreError as error:
                _log.warning("the sweep failed, it is tried again: %s", error)
            await asyncio.sleep(self.sweep_seconds)

    async def _elected(self) -> bool:
        if self.elector is None:
            return await self.committer.call(lambda store: store.elect(ROLE, self.session))
        try:
            return await self.elector.elected(ROLE, self.session)
        except Exception:  # noqa: BLE001 - the code of users; it must not end the rounds
            _log.exception("the elector failed; this session does not sweep")
            return False

    async def refresh(self) -> int:
        """Look for the dead and for stranded runs at once, without an election; how many runs were found so."""
        self.engine.alarms.look()
        return len({*await self._bury_the_dead(), *await self.sweep()})

    async def sweep(self) -> list[str]:
        """Decide stranded runs, once; their keys."""
        swept = await self.committer.call(lambda store: store.sweep(self.session, self.clock.now()))
        if swept.due_at is not None:
            self.on_due(swept.due_at)
        for key in swept.stranded:
            try:
                await self.engine.rescue(key)
            except StoreError:
                raise
            except TreadleError as error:
                _log.warning("run %s cannot be decided: %s", key, error)
        return swept.stranded

    async def _bury_the_dead(self) -> list[str]:
        dead, keys = await self.committer.call(self._bury)
        if dead:
            _log.info("buried dead sessions: %s", ", ".join(dead))
        return keys

    def _bury(self, store: Store) -> tuple[list[str], list[str]]:
        """On the committer's thread: find and bury the dead; also the runs that have inputs by that."""
        dead = [session for session in store.dead_sessions() if session != self.session]
        now = self.clock.monotonic()
        rows = store.sessions()
        patience = max(self.lease_seconds / 2, 3 * self.sweep_seconds)
        own = self._seen.get(self.session)
        if now - self._looked > patience:
            # The store was away, or this process slept: nobody could renew, or be seen to, so all get their time anew.
            self._seen.clear()
        elif own is not None and now - own[1] > patience:
            # The store takes no renewals, of a full disk say: those of others neither.
            self._seen = {self.session: own}
        self._looked = now
        seen: dict[str, tuple[int, float]] = {}
        for row in rows:
            beat, since = self._seen.get(row.id, (row.beat, now))
            if beat != row.beat:
                since = now
            seen[row.id] = (row.beat, since)
            if now - since >= self.lease_seconds and row.id not in (self.session, *dead):
                dead.append(row.id)
        self._seen = seen
        keys: list[str] = []
        for session in dead:
            keys += store.bury(session)
        if dead:
            self.committer.notify(tasks=True, keys=keys)
        return dead, keys
