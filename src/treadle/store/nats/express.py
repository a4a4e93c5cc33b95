"""Commits that the event loop's thread begins itself, and the loop of the connection answers: see `committer.Express`.

A commit that needs nothing but one message, and has no company, is written by the event loop's thread. The answer is
heard by whoever runs the connection's loop: at first the committer's thread, which waits in it anyway, and from then on
the event loop, which asks to be its host (`Loop.ask`). That spares the changes of threads, and what starting and
stopping a loop costs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from treadle.store.base import Answer, Append
from treadle.store.nats.log import Begun
from treadle.store.nats.loop import Loop
from treadle.store.nats.reader import Rooms
from treadle.store.nats.waves import Wave, append_op
from treadle.store.offers import Offer


class NatsExpress:
    """Begins one commit at a time."""

    def __init__(self, loop: Loop, rooms: Rooms, committed: Callable[[float], None]) -> None:
        self._loop = loop
        self._rooms = rooms
        # Told when something was committed, with its time.
        self._committed = committed
        self._begun: Begun | None = None
        self._wave: Wave

    def begin(
        self, session: str, append: Append, offer: Offer | None, answered: Callable[[Answer | None], None]
    ) -> bool:
        """Begin to commit an append, if that needs no waiting and no more than a message."""
        if append.head is not None or append.report is not None or append.payloads or not self._loop.step_in():
            return False
        try:
            begun = self._begin(session, append, offer, answered)
        finally:
            self._loop.step_out()
        if begun:
            self._loop.ask()
        return begun

    def _begin(
        self, session: str, append: Append, offer: Offer | None, answered: Callable[[Answer | None], None]
    ) -> bool:
        log = self._rooms.log
        if session not in log.machine.data.sessions:
            return False
        wave = Wave(log.machine, session, [append], offer)
        (takes,) = wave.takes
        if takes is not False:

            def told(result: object) -> None:
                answer = self._settled(result) if isinstance(result, Answer) else None
                self._loop.outside(partial(answered, answer))

            operation = append_op(session, append, takes)
            self._wave = wave
            self._begun = log.begin(self._rooms.location.journal(append.key), operation, told)
            if self._begun is not None:
                return True
        wave.settle([])
        return False

    def _settled(self, answer: Answer) -> Answer:
        self._wave.settle(answer.leased)
        self._committed(self._wave.appends[0].time)
        return answer

    def finish(self) -> Answer:
        """Wait for the answer to what was begun.

        Raises:
            StoreError: it is not known what came of it.
        """
        assert self._begun is not None
        result = self._loop.call(self._rooms.log.finish(self._begun))
        if isinstance(result, Exception):
            raise result
        return self._settled(result)
