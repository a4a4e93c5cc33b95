"""Queues with limits as one connection sees them: their definitions, and transactions that keep them.

A transaction that changes tasks of such queues is two round trips: `enter_1` locks the queues and tells the facts, the
rules decide in between (`store.ledger`), and the second writes what was decided and what `settle_1` needs to know. What
concerns no such queue does nothing of this; the session's row tells in passing that no queue was defined anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from treadle.errors import StoreUnavailableError
from treadle.store.ledger import Gate, Ledger, Place, in_force
from treadle.store.offers import Offer
from treadle.store.postgres.arrays import big, bigs, floats, ints, real, small, texts
from treadle.store.postgres.connection import Link, RaisedError, Statement, TakenBackError
from treadle.store.postgres.functions import GATED, LOST, REDEFINED
from treadle.store.postgres.limit_functions import ENTER, SETTLE
from treadle.store.postgres.schema import LEASED
from treadle.store.postgres.tokens import OwnSession
from treadle.store.queues import Bucket

T = TypeVar("T")

BEGIN: Statement = (b"BEGIN", (), ())
COMMIT: Statement = (b"COMMIT", (), ())
# How often a transaction is made again that rivals, or new definitions, have taken back.
_REPEATS = 10
# Those that others have ended are not forgotten; beyond this all are, which costs a round trip for each.
_REMEMBERED = 100_000


class SessionLostError(Exception):
    """The server does not take the session for alive, at least not with this connection."""


class GatedError(Exception):
    """A task of a queue with limits is concerned, which was not known before; nothing was written."""


class RedefinedError(Exception):
    """Queues were defined anew; nothing was written, and the definitions must be read again."""


class StoredTask(NamedTuple):
    """A task of a queue with limits, as a transaction finds it."""

    run: str
    number: int
    state: int
    gate: int
    key: str
    priority: int
    action: str
    target: str
    session: int
    lease: int
    interrupt: int


class Known(msgspec.Struct):
    """The answer of `facts_1`."""

    gates: list[tuple[int, int, float | None, float | None, bool]]
    keys: list[tuple[int, str, int, float | None, float | None]]
    turns: list[tuple[int, int, float]]
    shares: list[tuple[int, int, str, float]]


class Entered(msgspec.Struct):
    """The answer of `enter_1`."""

    facts: Known
    locked: list[int]
    tasks: list[StoredTask]
    touched: list[tuple[int, str]]
    ceilings: list[tuple[int, int | None]]
    lined: list[tuple[int, str, int | None]]
    lengths: list[tuple[int, int]]


class _Settled(msgspec.Struct):
    """The answer of `settle_1`."""

    changed: list[int]
    opens_at: float | None
    work: list[tuple[int, bool, bool]]


_decode_entered = msgspec.json.Decoder(Entered).decode
_decode_settled = msgspec.json.Decoder(_Settled).decode


class Definitions(msgspec.Struct):
    """All queues that were ever defined, as of a version."""

    version: int = 0
    gates: dict[str, Gate] = {}
    numbers: dict[int, Gate] = {}
    keyed: list[int] = []


class Facts(Ledger):
    """What a transaction found of the queues that it has locked, and what it changes of them."""

    def __init__(self, definitions: Definitions, known: Known, locked: Sequence[int]) -> None:
        super().__init__()
        self.definitions = definitions
        self.locked = list(locked)
        self.stored: dict[Place, Bucket] = {}
        # Whether tasks wait in front, and whether some fell due that no claim has met.
        self.work: dict[int, bool] = {}
        # When the first of the keys may start again that may not now.
        self.opens_at: float | None = None
        # How many leases have ended, and the keys of which tasks came, went or changed.
        self.ended: dict[int, int] = {}
        self.touched: dict[Place, None] = {}
        for n, count, allowance, at, work in known.gates:
            self.counts[n] = count
            self.work[n] = work
            if allowance is not None and at is not None:
                self.stored[n, ""] = Bucket(allowance, at)
        for n, key, count, allowance, at in known.keys:
            self.key_counts[n, key] = count
            if key and allowance is not None and at is not None:
                self.stored[n, key] = Bucket(allowance, at)
        self.turns.update({(n, priority): turn for n, priority, turn in known.turns})
        self.shares.update({(n, priority, key): turn for n, priority, key, turn in known.shares})
        self._stored_turns = self.turns.copy()
        self._stored_shares = self.shares.copy()

    def read_count(self, n: int) -> int:
        """See `Ledger`: all of a locked queue are known."""
        raise AssertionError(f"queue {n} was not locked")

    def read_key_count(self, place: Place) -> int:
        """See `Ledger`: all that a transaction concerns are known."""
        raise AssertionError(f"key {place} was not asked for")

    def read_bucket(self, place: Place) -> Bucket | None:
        """See `Ledger`."""
        return self.stored.get(place)

    def read_turn(self, n: int, priority: int) -> float:
        """See `Ledger`."""
        return 0.0

    def read_share(self, n: int, priority: int, key: str) -> float:
        """See `Ledger`."""
        return 0.0

    def touch(self, n: int, key: str) -> None:
        """A task of a key came, went, or changed."""
        if key and self.definitions.numbers[n].limits.by_key:
            self.touched[n, key] = None

    def end(self, n: int, key: str, state: int) -> None:
        """A stored task goes, or waits again."""
        self.touch(n, key)
        if state == LEASED:
            self.dropped(n, key)
            self.ended[n] = self.ended.get(n, 0) + 1

    def lease(self, gate: Gate, key: str, now: float, priority: int, turn: float) -> None:
        """A task is leased."""
        self.started(gate, key, now, priority, turn)
        self.touch(gate.n, key)
        self.ended[gate.n] = self.ended.get(gate.n, 0) - 1

    def settling(self, schema: str, at: float | None) -> Statement:
        """The statement that writes what was changed."""
        numbers = self.definitions.numbers
        opens = {place: self.key_opens_at(numbers[place[0]], place[1], at) for place in self.touched}
        kept = sorted({*self.spent, *(place for place, time in opens.items() if time is not None)})
        turns = sorted(item for item in self.turns.items() if item[1] != self._stored_turns.get(item[0], 0.0))
        shares = [share for share in self.shares_ahead() if share[3] != self._stored_shares.get(share[:3])]
        keys = list(self.touched)
        values = {
            "locked": bigs(self.locked),
            "at": None if at is None else real(at),
            "bucket_gate": bigs([n for n, _ in kept]),
            "bucket_key": texts([key for _, key in kept]),
            "bucket_allowance": floats([self.buckets[place].allowance for place in kept]),
            "bucket_at": floats([self.buckets[place].at for place in kept]),
            "bucket_full": floats([self.full_at(numbers[n], key) for n, key in kept]),
            "turn_gate": bigs([n for (n, _), _ in turns]),
            "turn_priority": ints([priority for (_, priority), _ in turns]),
            "turn": floats([turn for _, turn in turns]),
            "share_gate": bigs([n for n, _, _, _ in shares]),
            "share_priority": ints([priority for _, priority, _, _ in shares]),
            "share_key": texts([key for _, _, key, _ in shares]),
            "share_turn": floats([turn for _, _, _, turn in shares]),
            "key_gate": bigs([n for n, _ in keys]),
            "key_name": texts([key for _, key in keys]),
            "key_open": ints([int(self.may_start(numbers[n], key, at)) for n, key in keys]),
            "key_opens": floats([opens[place] or 0.0 for place in keys]),
        }
        return SETTLE.text(schema), [values[name] for name in SETTLE.names], SETTLE.types

    def settled(self, answer: bytes, at: float | None) -> bool:
        """Take over what the statement answered; whether there is room that was not there before."""
        numbers, found = self.definitions.numbers, _decode_settled(answer)
        keys = list(self.touched)
        self.opens_at = found.opens_at
        opened = any(self.has_room(numbers[keys[place - 1][0]], at) for place in found.changed)
        for n, work, late in found.work:
            self.work[n] = work
            gate, fewer = numbers[n], self.ended.get(n, 0)
            most = gate.limits.concurrency
            # It was full before, if so many fewer are leased now.
            was_full = most and self.counts[n] < most <= self.counts[n] + fewer
            opened = opened or bool(fewer > 0 and (late or (was_full and work and self.has_room(gate, at))))
        return opened

    def has_work(self, now: float) -> bool:
        """Whether a queue has room for a task that waits in front."""
        return any(work and self.has_room(self.definitions.numbers[n], now) for n, work in self.work.items())


class Entry(msgspec.Struct):
    """What a transaction asks `enter_1` for."""

    # Tasks that are there, by run and number, and whether the transaction ends them before it gives any out.
    places: dict[tuple[str, int], bool] = {}
    # Runs all of whose tasks may be concerned.
    whole: list[str] = []
    # The queues of tasks to come, with their keys.
    gates: list[tuple[Gate, str]] = []
    # Queues of which it is to be told how many tasks wait.
    measured: list[Gate] = []


class Limits:
    """The definitions of queues as this link knows them, and its transactions on queues with limits."""

    def __init__(self, link: Link, schema: str) -> None:
        self.link = link
        self.schema = schema
        self.definitions = Definitions()
        # Tasks of queues with limits that sessions of this link have leased, so that their end is made ready for.
        self.leased: set[tuple[str, int]] = set()
        # Whether room was made since it was asked last.
        self.room = False

    @property
    def gates(self) -> dict[str, Gate]:
        """The queues that were ever defined, by name."""
        return self.definitions.gates

    def known(self, version: int) -> None:
        """A session's row has told the version of the definitions."""
        if version != self.definitions.version:
            self.read()

    def read(self) -> None:
        """Read the definitions."""
        versions, rows = self.link.read(
            ("SELECT queues FROM @meta", ()), ("SELECT n, name, defined, override, paused FROM @queues ORDER BY n", ())
        )
        gates = [Gate(n, name, in_force(defined, override), paused) for n, name, defined, override, paused in rows]
        self.definitions = Definitions(
            versions[0][0],
            {gate.name: gate for gate in gates},
            {gate.n: gate for gate in gates},
            [gate.n for gate in gates if gate.limits.by_key],
        )

    def forget_definitions(self) -> None:
        """What was read of them may not have come to be."""
        self.definitions = Definitions(version=-1)

    def concerns(self, places: Iterable[tuple[str, int]]) -> bool:
        """Whether some of these tasks are known to be of queues with limits."""
        return bool(self.leased) and not self.leased.isdisjoint(places)

    # -- transactions ----------------------------------------------------------------------------------

    def again(self, work: Callable[[], T]) -> T:
        """Do the work of a transaction, again if its queues were defined anew or the server took it back.

        Raises:
            SessionLostError, GatedError: see there.
        """
        for _ in range(_REPEATS):
            try:
                return work()
            except RedefinedError:
                self.read()
            except TakenBackError:
                continue
        raise StoreUnavailableError(f"{self.link.location.shown}: queues changed again and again; try again")

    def call(self, *statements: Statement) -> list[bytes | None]:
        """As `Link.call`, with what is raised for sessions and queues."""
        try:
            return self.link.call(*statements)
        except RaisedError as error:
            if error.code == LOST:
                raise SessionLostError from error
            if error.code == REDEFINED:
                raise RedefinedError from error
            if error.code == GATED:
                raise GatedError from error
            raise

    def enter(
        self, own: OwnSession | None, entry: Entry, *, at: float | None, offer: Offer | None = None, begins: bool = True
    ) -> tuple[Entered, Facts]:
        """Begin a transaction on the queues of some tasks, which stay as they are until it ends."""
        places = list(entry.places)
        gates = {gate.n: None for gate, _ in entry.gates}
        values = {
            "me": None if own is None else big(own.n),
            "link": None if own is None else small(own.link),
            "definitions": small(self.definitions.version),
            "at": None if at is None else real(at),
            "keyed": bigs(self.definitions.keyed),
            "gates": bigs(list(gates)),
            "new_gate": bigs([gate.n for gate, _ in entry.gates]),
            "new_key": texts([key for _, key in entry.gates]),
            "of_key": texts([run for run, _ in places]),
            "of_number": ints([number for _, number in places]),
            "ends": ints([int(ends) for ends in entry.places.values()]),
            "whole": texts(entry.whole),
            "executable": None if offer is None else texts(list(offer.actions())),
            "targets": None if offer is None else texts(["", *offer.targets()]),
            "measured": bigs([gate.n for gate in entry.measured]),
            "most": ints([gate.limits.length for gate in entry.measured]),
        }
        statement = (ENTER.text(self.schema), [values[name] for name in ENTER.names], ENTER.types)
        (*_, answer) = self.call(BEGIN, statement) if begins else self.call(statement)
        entered = _decode_entered(answer or b"")
        facts = Facts(self.definitions, entered.facts, entered.locked)
        for n, key in entered.touched:
            facts.touch(n, key)
        return entered, facts

    def end(self, facts: Facts, statements: Sequence[Statement], at: float | None) -> list[bytes | None]:
        """Make the second round trip of a transaction, which ends it; the answers of the statements."""
        (*answers, settled, _) = self.call(*statements, facts.settling(self.schema, at), COMMIT)
        self.room = facts.settled(settled or b"", at) or self.room
        return answers

    def settle(self, facts: Facts, at: float | None) -> None:
        """Write what was changed, in a transaction that goes on."""
        (answer,) = self.call(facts.settling(self.schema, at))
        self.room = facts.settled(answer or b"", at) or self.room

    def remember(self, places: Iterable[tuple[str, int]]) -> None:
        """Some tasks of queues with limits are leased."""
        if len(self.leased) > _REMEMBERED:
            self.leased.clear()
        self.leased.update(places)

    def forget(self, places: Iterable[tuple[str, int]]) -> None:
        """Some tasks are leased no more."""
        if self.leased:
            self.leased.difference_update(places)
