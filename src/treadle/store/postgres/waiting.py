"""Claims: tasks that wait are leased in one transaction of two round trips, in batches.

The first asks for the tasks that come first and locks them; the offer says which of them the session takes; the second
leases those and ends the transaction. What the offer refuses depends on queue and action alone, so the next batch
leaves such pairs out. Tasks that another session has locked are passed over, so claims never wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from treadle.core.commands import Task
from treadle.errors import StoreUnavailableError
from treadle.store.base import Offer
from treadle.store.postgres.appends import SessionLostError
from treadle.store.postgres.arrays import big, bigs, ints, real, small, texts
from treadle.store.postgres.connection import Link, RaisedError, Statement
from treadle.store.postgres.reader import task_of
from treadle.store.postgres.task_functions import CANDIDATES, LEASE, LOOK
from treadle.store.postgres.tokens import OwnSession

# Tasks of one transaction: more would keep them locked for long while they are sent.
BATCH = 500
_BEGIN: Statement = (b"BEGIN", (), ())
_COMMIT: Statement = (b"COMMIT", (), ())
_ROLLBACK: Statement = (b"ROLLBACK", (), ())

_decode_places = msgspec.json.Decoder(list[tuple[int, int, str, str]]).decode
_decode_tasks = msgspec.json.Decoder(list[tuple[str, int, str, int, int, str, str, int, float, str, str, int]]).decode


def look(link: Link, schema: str, own: OwnSession, now: float) -> tuple[bool, float | None]:
    """Whether tasks are due, and when the next one falls due."""
    (answer,) = link.call((LOOK.text(schema), [big(own.n), small(own.link), real(now)], LOOK.types))
    said, _, time = (answer or b"").decode().partition(" ")
    if said == "lost":
        raise SessionLostError
    return said == "due", None if time == "-" else float(time)


def claim_tasks(link: Link, schema: str, own: OwnSession, offer: Offer, now: float) -> list[Task]:
    """Lease due tasks, over all queues by priority, then age."""
    claimed: list[Task] = []
    refused: dict[tuple[str, str], None] = {}
    executable = list(offer.actions())
    while (free := offer.free()) > 0:
        most = min(free, BATCH)
        values = [
            big(own.n),
            small(own.link),
            real(now),
            small(most),
            texts(executable),
            texts([queue for queue, _ in refused]),
            texts([action for _, action in refused]),
        ]
        found = _candidates(link, (CANDIDATES.text(schema), values, CANDIDATES.types))
        places: list[tuple[int, int]] = []
        before = len(refused)
        for run, number, queue, action in found:
            if (queue, action) not in refused:
                if offer.take(action, queue):
                    places.append((run, number))
                else:
                    refused[queue, action] = None
        claimed += _lease(link, schema, own, places, now)
        if len(found) < most and len(refused) == before:
            break
    return claimed


def _candidates(link: Link, statement: Statement) -> list[tuple[int, int, str, str]]:
    _, answer = link.call(_BEGIN, statement)
    if answer == b"lost":
        link.call(_ROLLBACK)
        raise SessionLostError
    return _decode_places(answer or b"[]")


def _lease(link: Link, schema: str, own: OwnSession, places: Sequence[tuple[int, int]], now: float) -> list[Task]:
    """Lease what the open transaction has locked, and end it."""
    if not places:
        # It may have moved tasks over that fell due.
        link.call(_COMMIT)
        return []
    values = [
        big(own.n),
        real(now),
        bigs([run for run, _ in places]),
        ints([number for _, number in places]),
        bigs([own.token(link) for _ in places]),
    ]
    try:
        answer, _ = link.call((LEASE.text(schema), values, LEASE.types), _COMMIT)
    except RaisedError as error:
        raise StoreUnavailableError(f"{link.location.shown}: a claim was cut off; try again") from error
    return [task_of(record) for record in _decode_tasks(answer or b"[]")]
