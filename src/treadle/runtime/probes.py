"""Probes: attempts whose function is asked again until its value is true.

A value that is not true yet puts the attempt's task back into the store, to wait for the next probe: nothing is
journaled, no slot is held meanwhile, and any worker may make the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import msgspec

from treadle.core.commands import Call, Task
from treadle.core.inputs import Outcome, encode_input
from treadle.errors import LeaseLostError, StoreError
from treadle.ports import Clock
from treadle.runtime.engine import RETRY_SECONDS, Engine
from treadle.runtime.posts import tell
from treadle.store.base import InboxInput, Postponement, Report, Store
from treadle.store.committer import Committer


def next_probe(task: Task, now: float) -> tuple[Call, float] | None:
    """What the task waits with after a probe that said "not yet", and until when; None if its time is up.

    The last probe is made at the deadline or after it, so whatever came true in time is seen.
    """
    poll = task.call.poll
    assert poll is not None
    at = now + poll.interval
    if poll.deadline:
        if now >= poll.deadline:
            return None
        at = min(at, poll.deadline)
    return msgspec.structs.replace(task.call, poll=msgspec.structs.replace(poll, probes=poll.probes + 1)), at


class Postponer:
    """Puts the tasks of one session back, each until it is certain what became of it."""

    def __init__(
        self,
        *,
        session: str,
        committer: Committer,
        engine: Engine,
        clock: Clock,
        on_due: Callable[[float], None],
    ) -> None:
        self._session = session
        self._committer = committer
        self._engine = engine
        self._clock = clock
        self._on_due = on_due
        self._loop = asyncio.get_running_loop()
        self._leases: set[tuple[str, int, int]] = set()

    def knows(self, task: Task) -> bool:
        """Whether this very lease is being given back: its attempt is not to be started, whatever the store says."""
        return (task.run, task.number, task.lease) in self._leases

    def postpone(self, task: Task, call: Call, at: float) -> None:
        """Let the task wait until `at`, with another call."""
        self._give_back(task, Postponement(task.run, task.number, task.lease, at, call))

    def give_up(self, task: Task) -> None:
        """End a task that the store has fenced: its run is being cancelled, or it is no longer this session's."""
        self._give_back(task, None)

    def _give_back(self, task: Task, item: Postponement | None) -> None:
        self._leases.add((task.run, task.number, task.lease))
        cancelled = Outcome(
            number=task.number,
            generation=task.generation,
            attempt=task.attempt,
            lease=task.lease,
            session=self._session,
            status="cancelled",
        )
        report = Report(
            task.number, task.lease, InboxInput(f"probe:{task.lease}", task.run, encode_input(cancelled)), ()
        )
        self._submit(item, report)

    def _submit(self, item: Postponement | None, report: Report) -> None:
        self._committer.submit(partial(self._write, item, report), partial(self._written, item, report))

    def _write(self, item: Postponement | None, report: Report, store: Store) -> bool:
        """On the committer's thread: whether the run has to look at its inbox now."""
        if item is not None and store.postpone(self._session, [item], self._clock.now())[0]:
            return False
        # Its run is being cancelled, and nothing of it begins anew; or the lease is gone, and this does nothing.
        return store.report(self._session, [report])[0].done

    def _written(self, item: Postponement | None, report: Report, ended: bool, error: BaseException | None) -> None:
        if isinstance(error, StoreError) and not isinstance(error, LeaseLostError) and not self._engine.closed:
            # If it took effect, trying again finds the lease gone.
            self._loop.call_later(RETRY_SECONDS, self._submit, item, report)
        else:
            self._leases.discard((report.input.key, report.number, report.lease))
        if ended:
            tell(self._engine, [report.input.key])
        elif item is not None:
            self._on_due(item.not_before)
