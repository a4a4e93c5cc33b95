"""A run that an engine decides, and the inputs that wait for that."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from treadle.core.commands import Refusal
from treadle.core.events import AnyEvent
from treadle.core.inputs import AnyInput
from treadle.core.state import RunState
from treadle.runtime.payloads import Row
from treadle.store.base import RunHead

# Called with why the input was refused, or the error, or the events that the input led to by itself.
Waiter = Callable[[Refusal | None, BaseException | None, list[AnyEvent]], None]


class Pending(msgspec.Struct, eq=False, gc=False):
    """An input that waits for its run's decider."""

    value: AnyInput
    # The inbox id, "" if it did not come through the inbox.
    cause: str
    rows: list[Row]
    waiter: Waiter | None
    # Of an outcome of this process: the lease that it ends.
    lease: int = 0


class Owned:
    """A run that this engine decides."""

    __slots__ = ("closing", "head", "in_flight", "more", "pending", "state", "unread")

    def __init__(self, state: RunState, head: RunHead) -> None:
        self.state = state
        self.head = head
        # A list of its own only while something waits.
        self.pending: list[Pending] | tuple[Pending, ...] = ()
        # None while nothing is in flight.
        self.in_flight: Sequence[Pending] | None = None
        # The last decision was full; decide again.
        self.more = False
        # The inbox is to be read as soon as what is in flight is answered.
        self.unread = False
        # The append in flight gives the run back.
        self.closing = False

    def add(self, item: Pending) -> None:
        """Let an input wait."""
        if isinstance(self.pending, list):
            self.pending.append(item)
        else:
            self.pending = [item]
