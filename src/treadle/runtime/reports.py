"""Reports: outcomes of attempts whose runs other sessions decide, handed to the store as many at once as have gathered.

The store's answer tells who decides each run, and where that one is woken: nothing else is asked for it. Where nobody
does, this session takes the run.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from treadle.core.inputs import Outcome, encode_input
from treadle.errors import StoreError
from treadle.runtime.payloads import Row
from treadle.store.base import InboxInput, Report, Reported, Store

if TYPE_CHECKING:
    from treadle.runtime.engine import Engine

# Reports of one call.
_MOST = 500
# The reports that were written, what became of each, and the error where nothing is known of that.
_Found = tuple[list[Report], list[Reported], StoreError | None]


class Reports:
    """What an engine reports. All methods but `_write` are for the event loop's thread."""

    def __init__(self, engine: Engine, retry_seconds: float) -> None:
        self._engine = engine
        self._retry_seconds = retry_seconds
        self._waiting: deque[Report] = deque()
        # A call is on its way that takes what has gathered.
        self._called = False

    def add(self, key: str, outcome: Outcome, rows: list[Row]) -> None:
        """End a task whose run another session decides."""
        item = InboxInput(self._engine.ids.key(), key, encode_input(outcome))
        self._add([Report(outcome.number, outcome.lease, item, rows)])

    def _add(self, reports: list[Report]) -> None:
        self._waiting.extend(reports)
        self._call()

    def _call(self) -> None:
        if self._waiting and not self._called:
            self._called = True
            self._engine.committer.submit(self._write, self._written)

    def _write(self, store: Store) -> _Found:
        """On the committer's thread."""
        # Cleared before looking: what is added after the look is taken by the next call.
        self._called = False
        reports: list[Report] = []
        while self._waiting and len(reports) < _MOST:
            reports.append(self._waiting.popleft())
        try:
            answers = store.report(self._engine.session, reports) if reports else []
        except StoreError as error:
            return reports, [], error
        self._engine.committer.ring(answer.wake for answer in answers if answer.session != self._engine.session)
        return reports, answers, None

    def _written(self, found: _Found | None, _error: BaseException | None) -> None:
        engine = self._engine
        if found is None:
            # The committer has ended.
            return
        reports, answers, refusal = found
        if refusal is not None:
            if not engine.closed:
                engine.later(self._retry_seconds, self._add, reports)
            return
        for report, answer in zip(reports, answers, strict=True):
            engine.reported(report, decided=answer.session not in ("", engine.session) or not answer.done)
        self._call()
