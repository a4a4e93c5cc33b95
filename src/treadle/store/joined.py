"""What a store has besides, if runs can be started, and told something, in transactions of its users."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Final, Protocol, runtime_checkable

import msgspec

from treadle.store.base import InboxInput, RunHead

# The id of the input in the run's inbox, by which its journal tells who has decided it first.
JOINED: Final = "joined"


class JoinedStart(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it is to be made: its first row, and an input by which whoever finds it decides what follows."""

    head: RunHead
    plan: bytes
    # The JSON text of its first events, and their time and commit id.
    events: str
    time: float
    commit_id: int
    payloads: Sequence[tuple[str, bytes]]
    # As in `Append`.
    names: Sequence[tuple[str, str]]
    # The queues in which the run begins at once.
    queues: Sequence[str]
    look: InboxInput
    # The address of the session that is to be woken when the transaction is committed, "" for none.
    wake: str


class JoinedInput(msgspec.Struct, frozen=True):
    """An input for a run, and the address of the session that looks for the run if nobody decides it ("" for none)."""

    item: InboxInput
    wake: str


@runtime_checkable
class JoinsTransactions(Protocol):
    """A store that can write a start, and inputs, through a connection of the caller."""

    def join(self, transaction: Any, start: JoinedStart) -> str | Awaitable[str]:
        """Write the start: `made`, `exists` (the id is taken), or `held` or `full`.

        Behind a space follow the key of the holder, or the queue: `length` due tasks wait there, as far as this
        transaction sees. Nothing else is written; the transaction goes on whatever the answer is.

        Raises:
            UsageError: it is no connection to this store.
        """
        ...

    def join_input(self, transaction: Any, given: JoinedInput) -> str | Awaitable[str]:
        """Put an input into a run's inbox: `posted`, `missing` (there is no such run), or the outcome that it has.

        Raises:
            UsageError: it is no connection to this store.
        """
        ...
