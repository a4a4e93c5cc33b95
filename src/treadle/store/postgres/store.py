"""The PostgreSQL store: any number of processes on any number of machines, on one schema of a database.

Sessions are known by their renewals alone: no machine can tell of another whether a process of it lives. A writer that
has lost its connection may have left a transaction on its way, which the server carries out later, or not at all. So
each new connection counts its sessions' `link` up before it does anything else, which waits for such a transaction to
end, and makes one that has not begun come to nothing. After that, what is read is what became of it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from treadle.core.commands import Task
from treadle.core.inputs import Look, Lost, encode_input
from treadle.core.tables import LIVE
from treadle.errors import LeaseLostError, StoreError, StoreUnavailableError
from treadle.store.base import (
    WAITS_CHANGES,
    WAITS_TASKS,
    Acquired,
    Answer,
    Append,
    InboxInput,
    Postponement,
    Renewal,
    Report,
    Reported,
    SessionRow,
    Swept,
)
from treadle.store.joined import JoinedInput, JoinedStart
from treadle.store.offers import Offer
from treadle.store.postgres.append_functions import POST
from treadle.store.postgres.appends import Appends
from treadle.store.postgres.arrays import big, bigs, chunks, ints, small, storable, texts, truth, truths
from treadle.store.postgres.blobs import PostgresBlobs
from treadle.store.postgres.connection import Record
from treadle.store.postgres.definitions import set_queues
from treadle.store.postgres.deletion import delete_run
from treadle.store.postgres.ending import postpone, report
from treadle.store.postgres.functions import Function
from treadle.store.postgres.health import describe_durability, settings_of
from treadle.store.postgres.joining import join, join_input
from treadle.store.postgres.limits import Entry, Facts, Limits, SessionLostError
from treadle.store.postgres.location import Location, parse_url
from treadle.store.postgres.projections import PostgresProjections
from treadle.store.postgres.reader import TASK_COLUMNS, PostgresReader
from treadle.store.postgres.schema import prepare
from treadle.store.postgres.task_functions import ACQUIRE, ELECT, INBOXES, PROGRESS, RELEASE, RENEW
from treadle.store.postgres.tokens import OwnSession
from treadle.store.postgres.waiting import Claim, look
from treadle.store.postgres.wakeups import NotifyWakeups
from treadle.store.projection import Opened
from treadle.store.queues import QueueChange
from treadle.store.rows import task_of

T = TypeVar("T")

_decode_inboxes = msgspec.json.Decoder(list[tuple[str, str, bytes]]).decode
_decode_interrupts = msgspec.json.Decoder(list[tuple[str, int, int]]).decode


class PostgresStore(PostgresReader):
    """A store in one schema of a PostgreSQL database. See `store.base` for the promises.

    `kernel` is the version that sessions, and so journal rows, are marked with. `durability` is known once it is open.
    """

    def __init__(self, location: Location, *, kernel: str = "0.1.0") -> None:
        super().__init__(location, name="treadle")
        self.kernel = kernel
        self.durability = "PostgreSQL"
        # Decodes records on their way into projections, where values are encoded; set before the store is opened.
        self.opened: Opened | None = None
        self._schema = self._link.schema
        self._ready = False
        self._blobs = PostgresBlobs(location)
        self._own: dict[str, OwnSession] = {}
        self._limits = Limits(self._link, self._schema)
        self._appends = Appends(self._limits)
        # When queues were served last, for claims where they take turns.
        self._served: dict[str, int] = {}
        # The last claim took all that there were slots for: more is likely to wait, so that is not asked first.
        self._expects = False
        self._link.on_connect = self._fence

    @classmethod
    def from_url(cls, url: str, *, kernel: str = "0.1.0") -> PostgresStore:
        """The store that a URL names: `postgresql://user@host/database?schema=treadle`.

        Raises:
            StoreUrlError: the URL is not of that form, or an option of it has no meaning.
        """
        return cls(parse_url(url), kernel=kernel)

    # -- connecting ------------------------------------------------------------------------------------

    def open(self, *, create: bool = True) -> None:
        """Connect, and make or migrate the schema; opening an open store does nothing."""
        if self._ready:
            return
        try:
            prepare(self._link, create=create)
            self.durability = describe_durability(settings_of(self._link))
        except BaseException:
            self._link.close()
            raise
        self._appends.opened = self.opened
        self._ready = True

    def projections(self) -> PostgresProjections:
        """A handle for projections in this store, for any thread, with a connection of its own."""
        return PostgresProjections(self.location, hosted=True, opened=self.opened)

    def positions(self) -> PostgresProjections:
        """How far followers have got in the journals, in a table of the store; with a connection of its own."""
        return self.projections()

    def close(self) -> None:
        """End the connection; bury its sessions first."""
        self._own.clear()
        self._ready = False
        self._blobs.close()
        # It may be opened again.
        self._link.close()

    def blobs(self) -> PostgresBlobs:
        """Where large values go: a table of the store. They are closed with it."""
        return self._blobs

    def wakeups(self, name: str) -> NotifyWakeups:
        """Wake-ups between the sessions of this store; `name` is of letters, digits and dashes, and nobody else's."""
        return NotifyWakeups(self.location, name)

    def join(self, transaction: Any, start: JoinedStart) -> str | Awaitable[str]:
        """Write a start through a psycopg connection of the caller, sync or async."""
        return join(self._schema, transaction, start)

    def join_input(self, transaction: Any, given: JoinedInput) -> str | Awaitable[str]:
        """Put an input into an inbox through a psycopg connection of the caller, sync or async."""
        return join_input(self._schema, transaction, given)

    def reader(self) -> PostgresReader:
        """A handle for reads on another thread, with a connection of its own."""
        return PostgresReader(self.location)

    def _fence(self) -> None:
        """A new connection: what an earlier one left under way is over after this."""
        for own in self._own.values():
            found = self._link.all(
                "UPDATE @sessions SET link = link + 1 WHERE n = %s AND NOT ended RETURNING link", (own.n,)
            )
            # An ended session is found out by whatever is asked of it next.
            own.link = found[0][0] if found else own.link

    # -- sessions --------------------------------------------------------------------------------------

    def _as(self, session: str, work: Callable[[OwnSession], T]) -> T:
        """Do what is done for a living session.

        Raises:
            LeaseLostError: it was buried, or was never there; nothing was written.
        """
        known = self._own.get(session)
        if known is not None:
            try:
                return work(known)
            except SessionLostError:
                # Ended, or another handle of this session has connected since.
                pass
        try:
            return work(self._adopted(session))
        except SessionLostError as error:
            raise LeaseLostError(_lost(session)) from error

    def _adopted(self, session: str) -> OwnSession:
        found = self._link.all("SELECT n, link, queues FROM @sessions WHERE id = %s AND NOT ended", (session,))
        if not found:
            self._own.pop(session, None)
            raise LeaseLostError(_lost(session))
        ((n, link, queues),) = found
        self._limits.known(queues)
        own = self._own.get(session)
        if own is None or own.n != n:
            own = self._own[session] = OwnSession(session, n, link)
        own.link = link
        return own

    def _call(self, function: Function, own: OwnSession, *values: bytes | None) -> bytes:
        (answer,) = self._link.call(
            (function.text(self._schema), [big(own.n), small(own.link), *values], function.types)
        )
        if answer is None or answer == b"lost":
            raise SessionLostError
        return answer

    def open_session(self, session: SessionRow) -> None:
        """Enter a session.

        Raises:
            StoreError: a session of this id lives already.
        """
        found = self._link.all(
            "INSERT INTO @sessions (n, id, ended, link, beat, waits, worker, wake, actions, info, targets, kernel,"
            # Under a lock, so that no queue is defined anew without the session's row telling so.
            " queues) SELECT nextval('@numbers'), %s, false, 0, %s, %s, %s, %s, %s, %s, %s, %s, m.queues"
            " FROM (SELECT queues FROM @meta FOR SHARE) m"
            " ON CONFLICT (id) WHERE NOT ended DO NOTHING RETURNING n, queues",
            (
                session.id,
                session.beat,
                session.waits,
                storable(session.worker),
                session.wake,
                json.dumps(session.actions),
                json.dumps(session.info),
                json.dumps(session.targets),
                self.kernel,
            ),
        )
        if not found:
            raise StoreError(f"a session {session.id} lives already; take a new session id")
        ((n, queues),) = found
        self._own[session.id] = OwnSession(session.id, n, 0)
        self._limits.known(queues)
        self._appends.waits = None

    def renew(self, session: str, waits: int | None = None) -> Renewal:
        """Count the beat up; interrupts are told again until their attempt has ended."""
        answer = self._as(session, lambda own: self._call(RENEW, own, None if waits is None else small(waits)))
        return Renewal(_decode_interrupts(answer))

    def set_targets(self, session: str, targets: Sequence[str]) -> None:
        """Change what the session's row says of its targets."""
        self._as(session, lambda own: self._set_targets(own, json.dumps(list(targets))))

    def _set_targets(self, own: OwnSession, targets: str) -> None:
        sql = "UPDATE @sessions SET targets = %s WHERE n = %s AND link = %s AND NOT ended"
        if not self._link.run(sql, (targets, own.n, own.link)):
            raise SessionLostError

    def set_queues(self, changes: Sequence[QueueChange], now: float) -> list[bool]:
        """Change the limits of queues; what waits in them is lined up anew."""
        return set_queues(self._limits, changes, now) if changes else []

    @property
    def made_room(self) -> bool:
        """Whether a task may start that could not before, since this was asked last."""
        room, self._limits.room = self._limits.room, False
        return room

    def dead_sessions(self) -> list[str]:
        """None: whether a process of another machine is gone is told by its renewals alone."""
        return []

    def bury(self, session: str) -> list[str]:
        """End a session; burying it twice changes nothing."""
        keys: list[str] = self._link.repeated(lambda: self._end_session(session))
        self._own.pop(session, None)
        self._appends.waits = None
        return keys

    def _end_session(self, session: str) -> list[str]:
        link = self._link
        # Waits for what the session has under way; after that it begins nothing any more.
        found = link.all(
            "UPDATE @sessions SET ended = true, wake = '', actions = '[]', info = '{}'"
            " WHERE id = %s AND NOT ended RETURNING n, queues",
            (session,),
        )
        if not found:
            return []
        ((n, queues),) = found
        self._limits.known(queues)
        facts = self._lock_queues_of(n) if self._limits.gates else None
        leased = link.all(
            "SELECT run, number, generation, attempt, lease, progress FROM @tasks WHERE state = 3 AND session = %s"
            " ORDER BY run, number FOR UPDATE",
            (n,),
        )
        runs = [record[0] for record in leased]
        link.run("DELETE FROM @tasks WHERE state = 3 AND session = %s", (n,))
        if facts is not None:
            self._limits.settle(facts, None)
        self._enter_lost(session, leased)
        link.run(
            "INSERT INTO @inbox (run, id, body) SELECT r.n, %s, %s FROM ("
            "SELECT n FROM @runs WHERE owner = %s AND status = ANY (%s) ORDER BY n FOR KEY SHARE"
            ") r WHERE NOT EXISTS (SELECT 1 FROM @inbox i WHERE i.run = r.n) ON CONFLICT DO NOTHING",
            (f"look:{session}", encode_input(Look(session=session)), n, sorted(LIVE)),
        )
        link.run("DELETE FROM @roles WHERE session = %s", (n,))
        touched = link.all(
            "SELECT r.key FROM (SELECT DISTINCT run FROM @inbox) i JOIN @runs r ON r.n = i.run"
            " WHERE r.owner = %s OR r.n = ANY (%s) ORDER BY r.n",
            (n, runs),
        )
        return [key for (key,) in touched]

    def _lock_queues_of(self, n: int) -> Facts:
        """Lock the queues with limits of a session's leased tasks, which are about to be lost."""
        found = self._link.all(
            "SELECT r.key, t.number FROM @tasks t JOIN @runs r ON r.n = t.run"
            " WHERE t.state = 3 AND t.session = %s AND t.gate <> 0",
            (n,),
        )
        entry = Entry(places=dict.fromkeys(found, True))
        entered, facts = self._limits.enter(None, entry, at=None, begins=False)
        for task in entered.tasks:
            facts.end(task.gate, task.key, task.state)
        return facts

    def _enter_lost(self, session: str, leased: Sequence[Record]) -> None:
        if leased:
            bodies = [
                encode_input(
                    Lost(number=number, generation=generation, attempt=attempt, session=session, progress=progress)
                )
                for _, number, generation, attempt, _, progress in leased
            ]
            self._link.run(
                "INSERT INTO @inbox (run, id, body) SELECT * FROM unnest(%s::bigint[], %s::text[], %s::bytea[])"
                " ON CONFLICT DO NOTHING",
                ([record[0] for record in leased], [f"lost:{record[4]}" for record in leased], bodies),
            )

    def elect(self, role: str, session: str) -> bool:
        """Hold the role, if no living session holds it."""
        return self._as(session, lambda own: self._call(ELECT, own, role.encode())) == b"held"

    def wakes(self, session: str, *, tasks: bool, keys: Sequence[str]) -> list[str]:
        """Addresses, each once; sessions that wait for changes are always among them."""
        wanted = WAITS_CHANGES | (WAITS_TASKS if tasks else 0)
        waits = self._appends.waits
        if not keys and waits is not None and not waits & wanted:
            return []
        found = self._all(
            "SELECT DISTINCT s.wake FROM @sessions s WHERE NOT s.ended AND s.id <> %s AND s.wake <> '' AND"
            " (s.waits & %s <> 0 OR s.n IN (SELECT r.owner FROM @runs r WHERE r.key = ANY (%s)))",
            (session, wanted, list(keys)),
        )
        return [wake for (wake,) in found]

    # -- appends and tasks -----------------------------------------------------------------------------

    def commit(self, session: str, appends: Sequence[Append], offer: Offer | None) -> list[Answer]:
        """Commit appends; one answer each, in order. If it raises, the caller resets the offer."""
        if not appends:
            self._as(session, lambda own: look(self._limits, own, 0.0))
            return []
        return self._as(session, lambda own: self._appends.write(own, appends, offer))

    def claim(self, session: str, offer: Offer, now: float) -> tuple[list[Task], float | None]:
        """Lease due tasks, over all queues by priority, then age."""
        later: float | None = None
        if not (self._expects and offer.free()):
            due, later = self._as(session, lambda own: look(self._limits, own, now))
            if not due:
                self._appends.forget_waiting()
                return [], later
        claimed, due_at = self._as(session, lambda own: self._claim(own, offer, now))
        self._expects = bool(claimed) and offer.full()
        if claimed:
            self._appends.forget_waiting()
        return claimed, min((time for time in (due_at, later) if time is not None), default=None)

    def _claim(self, own: OwnSession, offer: Offer, now: float) -> tuple[list[Task], float | None]:
        claim = Claim(self._limits, own, offer, now)
        claimed = claim.take(self._served)
        self._limits.room = self._limits.room or claim.left_room
        return claimed, claim.due

    def leased(self, session: str) -> list[Task]:
        """All tasks leased to the session."""
        found = self._all(
            f"SELECT {TASK_COLUMNS} FROM @tasks t JOIN @runs r ON r.n = t.run JOIN @sessions s ON s.n = t.session"
            " WHERE t.state = 3 AND s.id = %s AND NOT s.ended ORDER BY t.lease",
            (session,),
        )
        if not found:
            self._as(session, lambda own: look(self._limits, own, 0.0))
        return [task_of(record) for record in found]

    def report(self, session: str, reports: Sequence[Report]) -> list[Reported]:
        """End leased tasks whose token is live."""
        return self._as(session, lambda own: report(self._limits, own, reports))

    def postpone(self, session: str, items: Sequence[Postponement], now: float) -> list[bool]:
        """Let tasks whose token is live wait again."""
        return self._as(session, lambda own: postpone(self._limits, own, items, now))

    def progress(self, session: str, items: Sequence[tuple[str, int, int, str]]) -> None:
        """Set the progress text of tasks whose token is live."""
        values = [
            texts([key for key, _, _, _ in items]),
            ints([number for _, number, _, _ in items]),
            bigs([lease for _, _, lease, _ in items]),
            texts([storable(text) for _, _, _, text in items]),
        ]
        self._as(session, lambda own: self._call(PROGRESS, own, *values))

    # -- inboxes and owners ----------------------------------------------------------------------------

    def post(self, inputs: Sequence[InboxInput]) -> list[bool]:
        """Insert inputs; one that is there already stays as it is."""
        if not inputs:
            return []
        values = [
            texts([value.key for value in inputs]),
            texts([value.id for value in inputs]),
            chunks([value.body for value in inputs]),
        ]
        (answer,) = self._link.call((POST.text(self._schema), values, POST.types))
        return truths(answer or b"", len(inputs))

    def owned_inboxes(self, session: str) -> dict[str, list[InboxInput]]:
        """What waits in the inboxes of runs that the session owns, by run, oldest first."""
        statement = (INBOXES.text(self._schema), [session.encode()], INBOXES.types)
        try:
            (answer,) = self._link.call(statement)
        except StoreUnavailableError:
            if self._link.is_open:
                raise
            # The connection had died before; that is noticed only by using it.
            (answer,) = self._link.call(statement)
        inboxes: dict[str, list[InboxInput]] = {}
        for key, id, body in _decode_inboxes(answer or b"[]"):
            inboxes.setdefault(key, []).append(InboxInput(id, key, body))
        return inboxes

    def acquire(self, session: str, key: str, *, steal: bool = False) -> Acquired | None:
        """Own the run if nobody alive does, or with `steal`."""
        answer = self._as(session, lambda own: self._call(ACQUIRE, own, key.encode(), truth(steal))).decode()
        said, _, holder = answer.partition(" ")
        if said == "none":
            return None
        if said == "held":
            return Acquired(None, holder)
        loaded = self.load(key)
        # Deleted since, or taken by another one: whoever asks for it again is told.
        return None if loaded is None else Acquired(loaded, session)

    def release(self, session: str, keys: Sequence[str]) -> None:
        """Give runs back; those of others are left alone."""
        self._as(session, lambda own: self._call(RELEASE, own, texts(keys)))

    def sweep(self, session: str, now: float) -> Swept:
        """Find runs that nobody alive decides although they have inputs. Nothing is changed."""
        _, later = self._as(session, lambda own: look(self._limits, own, now))
        found = self._all(
            "SELECT r.key FROM (SELECT DISTINCT run FROM @inbox) i JOIN @runs r ON r.n = i.run"
            " WHERE NOT EXISTS (SELECT 1 FROM @sessions s WHERE s.n = r.owner AND NOT s.ended) ORDER BY r.n"
        )
        return Swept([key for (key,) in found], later)

    def delete(self, key: str) -> Literal["deleted", "missing", "open"]:
        """Remove a closed run and those below it, leaving the tombstones of their keys."""
        answer, gone = delete_run(self._link, key)
        for forgotten in gone:
            self._appends.forget(forgotten)
        return answer


def _lost(session: str) -> str:
    return f"session {session} was declared dead; its runs and tasks went to others, nothing was written"
