"""Claims: tasks that wait are leased in one transaction of two round trips, in batches.

The first asks for the tasks that come first and locks them; the offer says which of them the session takes; the second
leases those and ends the transaction. What the offer refuses depends on queue and action alone, so the next batch
leaves such pairs out. Tasks that another session has locked are passed over, so claims never wait for each other; but
queues with limits are locked as a whole, since what may start of them depends on all that was leased.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import msgspec

from treadle.core.commands import Task
from treadle.errors import StoreUnavailableError
from treadle.store.ledger import Gate
from treadle.store.offers import Offer
from treadle.store.postgres.arrays import big, bigs, ints, real, small, texts
from treadle.store.postgres.claim_functions import CANDIDATES, LEASE
from treadle.store.postgres.connection import RaisedError, Statement
from treadle.store.postgres.limits import BEGIN, COMMIT, Facts, Known, Limits, SessionLostError
from treadle.store.postgres.task_functions import LOOK
from treadle.store.postgres.tokens import OwnSession
from treadle.store.rows import task_of

# Tasks of one transaction: more would keep them locked for long while they are sent.
BATCH = 500
# How many tasks of a line of a queue with limits `candidates_3` looks at, at least.
_LOOK_AHEAD = 64
# What a queue without a limit of its own may lease at a time.
_ANY = 2**31 - 1


class _Candidate(NamedTuple):
    """A task that may be leased."""

    run: int
    number: int
    gate: int
    queue: str
    action: str
    target: str
    key: str
    priority: int
    turn: float
    age: int


class _Found(msgspec.Struct):
    """The answer of `candidates_3`."""

    tasks: list[_Candidate]
    later: float | None = None
    share: int = 0
    settles: bool = False
    seen: list[int] = []
    locked: list[int] = []
    touched: list[tuple[int, str]] = []
    facts: Known | None = None


_decode_found = msgspec.json.Decoder(_Found).decode
_decode_tasks = msgspec.json.Decoder(
    list[tuple[str, int, str, int, int, str, str, int, float, str, str, int, str, str]]
).decode


def look(limits: Limits, own: OwnSession, now: float) -> tuple[bool, float | None]:
    """Whether a claim could find tasks, and when the next one falls due or a key may start again."""
    values = [big(own.n), small(own.link), real(now)]
    (answer,) = limits.link.call((LOOK.text(limits.schema), values, LOOK.types))
    if answer is None or answer == b"lost":
        raise SessionLostError
    said, time, version = answer.decode().split(" ")
    limits.known(int(version))
    return said == "due", None if time == "-" else float(time)


class Claim:
    """One claim of a session; `due` is when a queue may go on by its rate, `left_room` as `Store.made_room` tells."""

    def __init__(self, limits: Limits, own: OwnSession, offer: Offer, now: float) -> None:
        self.limits = limits
        self.link = limits.link
        self.own = own
        self.offer = offer
        self.now = now
        self.due: float | None = None
        self.left_room = False
        # How many tasks of an action were asked for last.
        self.rooms: dict[str, int] = {}
        self._refused: dict[tuple[str, str], None] = {}

    def take(self, served: dict[str, int]) -> list[Task]:
        """Lease due tasks, over all queues by priority, then age.

        `served` tells when queues were served last. Where a fair one serves young tasks first, queues take turns
        instead, for else it might wait for others without end.
        """
        claimed: list[Task] = []
        # Without a slot it is still to be told what queues have room for.
        more = self.offer.free() > 0 or bool(self.limits.gates)
        while more:
            batch = self.limits.again(lambda: self._batch(min(self.offer.free(), BATCH), served))
            claimed += batch.leased
            more = not batch.is_last and self.offer.free() > 0
        return claimed

    def _batch(self, most: int, served: dict[str, int]) -> _Batch:
        mark = self.offer.mark()
        try:
            batch = self._begin(most)
            places = batch.choose(served)
            batch.leased = self._lease(batch, places)
        except BaseException:
            self.link.abandon()
            self.offer.reset(mark)
            raise
        self._refused |= batch.refused
        if batch.facts is not None:
            self._note(batch.due)
            self._note(batch.facts.opens_at)
            self.left_room = batch.facts.has_work(self.now)
        return batch

    def _begin(self, most: int) -> _Batch:
        """Lock what comes first."""
        limits = self.limits
        statement = self._candidates(most)
        _, answer = limits.call(BEGIN, statement)
        found = _decode_found(answer or b"")
        if found.settles:
            # Tasks fell due, or keys may start again: which of them come first is known when they are settled.
            facts = self._facts(found)
            settled, answer = limits.call(facts.settling(limits.schema, self.now), statement)
            facts.settled(settled or b"", self.now)
            self._note(facts.opens_at)
            found = _decode_found(answer or b"")
        self._note(found.later)
        return _Batch(self, most, found, self._facts(found) if found.facts is not None else None)

    def _note(self, time: float | None) -> None:
        """Something may start at that time."""
        if time is not None and (self.due is None or time < self.due):
            self.due = time

    def _facts(self, found: _Found) -> Facts:
        assert found.facts is not None
        facts = Facts(self.limits.definitions, found.facts, found.locked)
        for n, key in found.touched:
            facts.touch(n, key)
        return facts

    def _candidates(self, most: int) -> Statement:
        definitions = self.limits.definitions
        gates = list(definitions.gates.values())
        self.rooms = {action: min(self.offer.room(action), most) for action in self.offer.actions()}
        values = {
            "me": big(self.own.n),
            "link": small(self.own.link),
            "definitions": small(definitions.version),
            "at": real(self.now),
            "most": small(most),
            "executable": texts(list(self.rooms)),
            "action_rooms": ints(list(self.rooms.values())),
            "targets": texts(["", *self.offer.targets()]),
            "but_queue": texts([queue for queue, _ in self._refused]),
            "but_action": texts([action for _, action in self._refused]),
        }
        if gates:
            values |= {
                "gate_n": bigs([gate.n for gate in gates]),
                "gate_name": texts([gate.name for gate in gates]),
                "rooms": ints([0 if gate.paused else gate.limits.concurrency or _ANY for gate in gates]),
                "key_rooms": ints([_key_room(gate) for gate in gates]),
                "keyed": bigs(definitions.keyed),
            }
        return CANDIDATES.text(self.limits.schema), [values.get(name) for name in CANDIDATES.names], CANDIDATES.types

    def _lease(self, batch: _Batch, places: Sequence[tuple[int, int]]) -> list[Task]:
        """Lease what the open transaction has locked, and end it."""
        limits, statements = self.limits, []
        if places:
            values = [
                big(self.own.n),
                real(self.now),
                bigs([run for run, _ in places]),
                ints([number for _, number in places]),
                bigs([self.own.token(self.link) for _ in places]),
            ]
            statements = [(LEASE.text(limits.schema), values, LEASE.types)]
        try:
            if batch.facts is not None and (batch.facts.touched or batch.facts.ended):
                answers = limits.end(batch.facts, statements, self.now)
            else:
                # It may have moved tasks over that fell due.
                answers = limits.call(*statements, COMMIT)
        except RaisedError as error:
            raise StoreUnavailableError(f"{self.link.location.shown}: a claim was cut off; try again") from error
        leased = [task_of(record) for record in _decode_tasks(answers[0] or b"[]")] if places else []
        gates = limits.gates
        limits.remember((task.run, task.number) for task in leased if task.queue in gates)
        return leased


class _Batch:
    """The candidates of one transaction, and what is chosen of them."""

    def __init__(self, claim: Claim, most: int, found: _Found, facts: Facts | None) -> None:
        self.claim = claim
        self.facts = facts
        self.leased: list[Task] = []
        self.refused: dict[tuple[str, str], None] = {}
        self.due: float | None = None
        # Whether all that could be found was.
        self.is_last = True
        self._most = most
        self._gates = claim.limits.definitions.numbers
        self._queues: dict[str, list[_Candidate]] = {}
        # Tasks of queues without limits, by action, as many of each as may be sent.
        self._left: dict[str, int] = {}
        for task in found.tasks:
            self._queues.setdefault(task.queue, []).append(task)
            if not task.gate:
                self._left[task.action] = self._left.get(task.action, 0) + 1
        # Of these actions, and queues with limits, there may be more than were sent.
        self._cut_actions = {name for name, sent in self._left.items() if sent >= min(found.share, claim.rooms[name])}
        self._cut = {name for name, own in self._queues.items() if own[0].gate and len(own) >= min(most, _LOOK_AHEAD)}
        for own in self._queues.values():
            own.sort(key=_order, reverse=True)

    def choose(self, served: dict[str, int]) -> list[tuple[int, int]]:
        """The places of the tasks to lease, in order."""
        by_turns = any(gate.limits.fair for gate in self._gates.values())
        chosen: list[tuple[int, int]] = []
        firsts = [self._rank(name, served, by_turns) for name in list(self._queues) if self._go_on(name)]
        heapify(firsts)
        while firsts and len(chosen) < self._most:
            name = heappop(firsts)[-1]
            task = self._queues[name][-1]
            if self.claim.offer.take(task.action, name):
                self._queues[name].pop()
                chosen.append((task.run, task.number))
                if task.gate and self.facts is not None:
                    self.facts.lease(self._gates[task.gate], task.key, self.claim.now, task.priority, task.turn)
                if by_turns:
                    served[name] = max(served.values(), default=0) + 1
                if self._is_cut(task):
                    self.is_last = False
                    break
            else:
                # The answer depends on action and queue alone.
                self.refused[name, task.action] = None
                self._queues[name] = [other for other in self._queues[name] if other.action != task.action]
            if self._go_on(name):
                heappush(firsts, self._rank(name, served, by_turns))
            elif not self._queues[name] and name in self._cut:
                # The next one of this queue, which was not sent, may come before those of others.
                self.is_last = False
                break
        if len(chosen) == self._most or self.refused or (self.facts is not None and self.facts.touched):
            self.is_last = False
        return chosen

    def _is_cut(self, task: _Candidate) -> bool:
        """Whether the next task of an action, which was not sent, may come before those of others."""
        if task.gate:
            return False
        self._left[task.action] -= 1
        cut = self._left[task.action] == 0 and task.action in self._cut_actions
        return cut and self.claim.offer.room(task.action) > 0

    def _go_on(self, name: str) -> bool:
        """Whether another task of a queue may be taken; notes when one may, if it is the rate that forbids it."""
        own = self._queues[name]
        gate = self._gates.get(own[-1].gate) if own else None
        if gate is None or self.facts is None:
            return bool(own)
        facts, now = self.facts, self.claim.now
        while own and not facts.may_start(gate, own[-1].key, now):
            facts.touch(gate.n, own.pop().key)
        if not own:
            return False
        if facts.has_room(gate, now):
            return True
        time = facts.next_start(gate, now)
        if time is not None and (self.due is None or time < self.due):
            self.due = time
        return False

    def _rank(self, name: str, served: dict[str, int], by_turns: bool) -> tuple[int, int, int, str]:
        """What queues go by."""
        first = self._queues[name][-1]
        return -first.priority, served.get(name, 0) if by_turns else 0, first.age, name


def _order(task: _Candidate) -> tuple[int, float, int]:
    return -task.priority, task.turn, task.age


def _key_room(gate: Gate) -> int:
    """The most tasks of a key that may be leased at once."""
    limits = gate.limits
    return min(limits.key_concurrency or _ANY, limits.key_burst if limits.key_rate else _ANY)
