"""Inboxes: the inputs that wait in the store for runs that this session decides.

One reading serves many wake-ups: while a question for inboxes is on its way the next one waits for its answer, and a
run's own inbox is read when the append that is in flight of it is answered. So inputs that come fast are decided
together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from treadle.core.inputs import decode_input
from treadle.runtime.owned import Owned, Pending
from treadle.store.base import InboxInput

if TYPE_CHECKING:
    from treadle.runtime.engine import Engine


class Inboxes:
    """What an engine reads of inboxes. All methods are for the event loop's thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # The question for inboxes is on its way; it is asked again after that.
        self._looking = self._looks_again = False

    def look(self, key: str) -> None:
        """Read the inbox of an owned run; at once, or when what is in flight is answered."""
        engine = self._engine
        owned = engine.runs.get(key)
        if owned is not None and owned.in_flight is not None:
            owned.unread = True
            return
        engine.committer.submit(lambda store: store.inbox(key), lambda items, error: self._got(key, items, error))

    def _got(self, key: str, items: list[InboxInput] | None, error: BaseException | None) -> None:
        owned = self._engine.runs.get(key)
        if owned is not None:
            # After an error the next round of the sweeper reads them; what waits here need not wait for that.
            self._take(owned, items if items is not None and error is None else [])

    def _take(self, owned: Owned, items: list[InboxInput]) -> None:
        known = {item.cause for item in owned.pending}
        known.update(item.cause for item in owned.in_flight or ())
        for item in items:
            if item.id not in known and not self._engine.alarms.is_mark(owned.state, item):
                owned.add(Pending(decode_input(item.body), item.id, [], None))
        self._engine.go_on(owned)

    def look_around(self) -> None:
        """A wake-up came: read the inboxes of all owned runs that have any input."""
        if self._looking:
            self._looks_again = True
            return
        self._looking = True
        engine = self._engine
        engine.committer.submit(lambda store: store.owned_inboxes(engine.session), self._found)

    def _found(self, inboxes: dict[str, list[InboxInput]] | None, error: BaseException | None) -> None:
        self._looking = False
        engine = self._engine
        for key, items in inboxes.items() if inboxes is not None and error is None else ():
            owned = engine.runs.get(key)
            if owned is not None:
                self._take(owned, items)
            else:
                # Given back by a call that failed: for the store this session still owns it, so nobody else may.
                engine.help(key)
        if self._looks_again:
            self._looks_again = False
            self.look_around()
