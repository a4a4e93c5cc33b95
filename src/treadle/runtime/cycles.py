"""Cycles: an application that works only when it is asked to, for programs with a loop of their own.

One cycle takes up runs that nobody decides, executes what is due and what follows from it at once, and returns when
none of that is under way any more. Nothing is claimed between two cycles; the session stays alive all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from treadle.authoring.durations import Duration, seconds_of
from treadle.core import events as ev
from treadle.core.commands import Task
from treadle.core.events import AnyEvent, decode_events
from treadle.core.inputs import Outcome
from treadle.errors import LeaseLostError, StoreFullError, StoreUnavailableError, UsageError
from treadle.runtime.patience import RETRY_SECONDS, patiently

if TYPE_CHECKING:
    from treadle.runtime.node import Node

_log = logging.getLogger("treadle.cycles")
# The end of one attempt: run, address, number.
_Ended = tuple[str, str, int]
# How long a cycle waits at a time for what the engine tries again; short beside the time after which it does.
_PAUSE_SECONDS = 0.02
# The session was lost before the attempt's outcome was durable: it is made again, and counts there.
_VOID = "void"
# How an attempt ended (with a dispatch: the one before), by the event that says so.
_WORDS: dict[type[AnyEvent], str] = {
    ev.StepSucceeded: "succeeded",
    ev.AttemptFailed: "retried",
    ev.StepFailed: "failed",
    ev.StepCancelled: "cancelled",
    ev.AttemptEnded: "cancelled",
    ev.AttemptLost: _VOID,
    ev.StepDispatched: _VOID,
    ev.TriggerReceived: _VOID,
}


# What an attempt is live until.
_ENDS = (ev.StepSucceeded, ev.AttemptFailed, ev.StepFailed, ev.AttemptLost, ev.AttemptEnded)


class _Journal:
    """How far a journal is read, and the attempts that are live there, by step."""

    def __init__(self) -> None:
        self.version = 0
        self.live: dict[str, int] = {}


class Cycle(msgspec.Struct, frozen=True, kw_only=True):
    """What one cycle did. `processed` attempts ended in it, each in one of the four ways."""

    # Runs taken up because nobody decided them: their process died, or a wake-up was lost.
    refreshed: int = 0
    processed: int = 0
    succeeded: int = 0
    # Failed, and the step is tried again.
    retried: int = 0
    # Failed, and with it the step.
    failed: int = 0
    cancelled: int = 0
    # Runs that got their outcome here.
    runs: int = 0
    # When the next task falls due (seconds since the epoch): now, where the limit ended the cycle; None: none waits.
    due_at: float | None = None

    def __add__(self, other: Cycle) -> Cycle:
        """Both together."""
        counts = {
            name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__ if name != "due_at"
        }
        return Cycle(**counts, due_at=other.due_at)


class Cycles:
    """Drives one node. Made for nodes whose worker waits to be asked."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._running = asyncio.Lock()
        self._outcomes: dict[_Ended, str] = {}
        self._decided: dict[_Ended, str] = {}
        # Of the runs of the last cycle that others decide.
        self._journals: dict[str, _Journal] = {}
        self._runs = 0
        # Set by a wake-up, or when a task falls due, between two cycles.
        self.stirred = asyncio.Event()

    # -- what the node tells -----------------------------------------------------------------------------------------

    def ended(self, task: Task, outcome: Outcome) -> None:
        """The worker has ended an attempt."""
        if task.call.purpose == "step":
            self._outcomes[task.run, task.address, task.attempt] = outcome.status

    def committed(self, key: str, events: list[AnyEvent]) -> None:
        """This process has decided something."""
        for event in events:
            if isinstance(event, ev.RunSettled):
                self._runs += 1
            else:
                self._note(key, event)

    def _note(self, key: str, event: AnyEvent) -> None:
        word = _WORDS.get(type(event))
        if word is None:
            return
        if isinstance(event, ev.StepCancelled):
            # Of the step's attempts one at most has ended in this cycle without an outcome.
            for ended in self._outcomes:
                if ended[:2] == (key, event.at) and ended not in self._decided:
                    self._decided[ended] = word
        elif isinstance(event, ev.StepSucceeded | ev.AttemptFailed | ev.StepFailed):
            # One without a token is no attempt's own end.
            self._decided.setdefault((key, event.at, event.attempt), word if event.token else _VOID)
        elif isinstance(event, ev.StepDispatched | ev.TriggerReceived):
            # The attempt before it is over; if nothing has told of its end, it was taken back.
            self._decided.setdefault((key, event.at, event.attempt - 1), word)
        elif isinstance(event, ev.AttemptEnded | ev.AttemptLost):
            self._decided.setdefault((key, event.at, event.attempt), word)

    # -- one cycle ---------------------------------------------------------------------------------------------------

    async def run(self, limit: int | None) -> Cycle:
        """One cycle; of at most `limit` attempts.

        Raises:
            StoreError: the store does not answer; what is under way goes on, and the next cycle counts it.
        """
        if limit is not None and limit < 1:
            raise UsageError(f"limit={limit!r}: a number of attempts from 1, or None for all that are due")
        async with self._running:
            node = self._node
            self.stirred.clear()
            refreshed = await node.sweeper.refresh()
            node.slots.open(limit)
            try:
                due_at = await self._quiet()
            finally:
                node.slots.close()
            keys = dict.fromkeys(ended[0] for ended in self._outcomes)
            for key in keys:
                await self._learn(key)
            found = [self._decided.get(ended, status) for ended, status in self._outcomes.items()]
            words = [word for word in found if word != _VOID]
            cycle = Cycle(
                refreshed=refreshed,
                processed=len(words),
                succeeded=words.count("succeeded"),
                retried=words.count("retried"),
                failed=words.count("failed"),
                cancelled=words.count("cancelled"),
                runs=self._runs,
                due_at=due_at,
            )
            self._outcomes, self._decided, self._runs = {}, {}, 0
            self._journals = {key: journal for key, journal in self._journals.items() if key in keys}
            return cycle

    async def _quiet(self) -> float | None:
        """Take what is due until there is nothing, and nothing that this node began is under way.

        Gives when the next task falls due: now, if the limit of the cycle is used up.
        """
        node = self._node
        while True:
            await node.worker.drained()
            committer = node.committer
            done = committer.calls + committer.commits
            # Behind all that was handed over so far; its answers may lead to more.
            await committer.call(lambda _store: None)
            if self._is_busy():
                if not node.worker.active and committer.calls + committer.commits == done + 1:
                    # What has failed and is tried again in a moment: nothing on its way tells when.
                    await asyncio.sleep(_PAUSE_SECONDS)
                continue
            if node.slots.free() <= 0:
                return node.environment.clock.now()
            due_at = await node.claim_at_once()
            if not self._is_busy():
                return due_at

    def _is_busy(self) -> bool:
        node = self._node
        return bool(node.worker.active) or node.claiming or node.engine.busy

    async def _learn(self, key: str) -> None:
        """Read what others, who decide a run, make of the attempts that ended here; of each it says something."""
        node = self._node
        journal = self._journals.setdefault(key, _Journal())
        while any(ended[0] == key and ended not in self._decided for ended in self._outcomes):
            changed = node.hub.wait(key)
            try:
                rows = await patiently(partial(node.read, partial(node.reader.rows, key, journal.version)))
                for version, _commit, _time, text in rows:
                    journal.version = version
                    for event in decode_events(text):
                        self._read(journal, key, event)
                if not rows:
                    if await patiently(partial(node.read, partial(node.reader.run, key))) is None:
                        # It was deleted.
                        return
                    await asyncio.wait([changed], timeout=0.5)
            finally:
                node.hub.drop(key, changed)

    def _read(self, journal: _Journal, key: str, event: AnyEvent) -> None:
        live = journal.live
        if isinstance(event, ev.StepCancelled):
            # It names no attempt: it is about the one that was live then, if any.
            if (attempt := live.get(event.at)) is not None:
                self._decided.setdefault((key, event.at, attempt), "cancelled")
            return
        if isinstance(event, ev.StepDispatched | ev.TriggerReceived):
            live[event.at] = event.attempt
        elif isinstance(event, _ENDS):
            live.pop(event.at, None)
        self._note(key, event)

    # -- many cycles -------------------------------------------------------------------------------------------------

    async def work(self, *, max_cycles: int | None, until_idle: bool | Duration, limit: int | None) -> Cycle:
        """Cycles, one whenever there is something to do; what they did together."""
        patience = 0.0 if isinstance(until_idle, bool) else seconds_of(until_idle, "until_idle")
        clock = self._node.environment.clock
        total, count = Cycle(), 0
        while True:
            try:
                cycle = await self.run(limit)
            except (StoreUnavailableError, StoreFullError, LeaseLostError) as error:
                # As a worker in the background: the store comes back or has room, a new session begins by itself.
                _log.warning("a cycle failed, it is tried again: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            total, count = total + cycle, count + 1
            if max_cycles is not None and count >= max_cycles:
                return total
            if cycle.processed or cycle.refreshed:
                continue
            wait = None if cycle.due_at is None else max(cycle.due_at - clock.now(), 0.0)
            if until_idle is not False and (wait is None or wait > patience):
                return total
            await self._stir(wait)

    async def _stir(self, seconds: float | None) -> None:
        """Wait for a wake-up, or until a task falls due; a lost wake-up costs no more than the sweep's pause."""
        pause = self._node.settings.sweep_seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause if seconds is None else min(seconds, pause)):
                await self.stirred.wait()
