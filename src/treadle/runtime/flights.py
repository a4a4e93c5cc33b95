"""Appends in flight: who is called with the store's answer, and where that goes.

There is one for every decision, so they are structs outside the garbage collector: they refer to their run, and
nothing that they refer to refers to them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from treadle.core.decide import Decision
from treadle.runtime.owned import Owned
from treadle.store.base import Answer, Append

if TYPE_CHECKING:
    from treadle.runtime.engine import Engine


class Flight(msgspec.Struct, eq=False, gc=False):
    """An append of a run that goes on."""

    engine: Engine
    owned: Owned
    append: Append
    decision: Decision

    def __call__(self, answer: Answer, error: BaseException | None) -> None:
        """The store has answered."""
        if answer.status == "committed":
            self.engine.committed(self, answer)
        elif answer.status == "doubt":
            self.engine.resolve_doubt(self, self._resolved)
        else:
            self.engine.not_committed(self, answer, error)

    def _resolved(self, took_effect: bool) -> None:
        if took_effect:
            self.engine.committed(self, Answer("committed", queued=len(self.append.tasks)))
            self.engine.adopt()
        else:
            self.engine.undecided(self.owned)


class FirstFlight(Flight, eq=False, gc=False):
    """The append that makes a run; `then` gets the store's answer."""

    then: Callable[[Answer, BaseException | None], None]

    def __call__(self, answer: Answer, error: BaseException | None) -> None:
        """The store has answered."""
        if answer.status == "committed":
            # The caller hears of the run before anything that follows from it.
            self.then(answer, None)
            self.engine.committed(self, answer)
        elif answer.status == "doubt" and error is not None:
            self.engine.resolve_doubt(self, partial(self._made, error))
        else:
            self.engine.runs.pop(self.append.key, None)
            self.then(answer, error)

    def _made(self, error: BaseException, took_effect: bool) -> None:
        if took_effect:
            self(Answer("committed"), None)
            self.engine.adopt()
        else:
            self.engine.runs.pop(self.append.key, None)
            self.then(Answer("doubt"), error)
