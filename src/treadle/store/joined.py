"""What a store has besides, if runs can be started in transactions of its users: `start` joins one that is open."""

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
    look: InboxInput
    # The address of the session that is to be woken when the transaction is committed, "" for none.
    wake: str


@runtime_checkable
class JoinsTransactions(Protocol):
    """A store that can write a start through a connection of the caller."""

    def join(self, transaction: Any, start: JoinedStart) -> str | Awaitable[str]:
        """Write the start: `made`, `exists` (the id is taken), or `held` and the key of the holder behind a space.

        Nothing else is written; the transaction goes on whatever the answer is.

        Raises:
            UsageError: it is no connection to this store.
        """
        ...
