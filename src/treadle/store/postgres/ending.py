"""The ends of leases that no append makes: reports of outcomes, and tasks that are to wait again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from treadle.store.base import Postponement, Report, Reported
from treadle.store.postgres.arrays import big, bigs, chunks, floats, ints, real, small, texts, truths
from treadle.store.postgres.connection import Statement
from treadle.store.postgres.functions import Function
from treadle.store.postgres.limits import Entry, Facts, GatedError, Limits, StoredTask
from treadle.store.postgres.schema import DELAYED, LEASED, LINED, WAITING
from treadle.store.postgres.task_functions import POSTPONE, REPORT
from treadle.store.postgres.tokens import OwnSession

_encode = msgspec.json.Encoder().encode
_decode_reported = msgspec.json.Decoder(list[Reported]).decode

# Makes the statement, given what the transaction has locked, if it had to.
Ask = Callable[[Facts | None], Statement]


def report(limits: Limits, own: OwnSession, reports: Sequence[Report]) -> list[Reported]:
    """End leased tasks whose token is live."""
    payloads = [(place, *payload) for place, one in enumerate(reports, 1) for payload in one.payloads]
    tokens = [(one.input.key, one.number, one.lease) for one in reports]

    def ask(facts: Facts | None) -> Statement:
        return _statement(
            limits,
            own,
            REPORT,
            facts,
            texts([one.input.key for one in reports]),
            ints([one.number for one in reports]),
            bigs([one.lease for one in reports]),
            texts([one.input.id for one in reports]),
            chunks([one.input.body for one in reports]),
            ints([place for place, _, _ in payloads]),
            texts([digest for _, digest, _ in payloads]),
            chunks([body for _, _, body in payloads]),
        )

    def decide(facts: Facts, task: StoredTask) -> None:
        facts.end(task.gate, task.key, task.state)

    return _decode_reported(_end(limits, own, tokens, ask, decide, None) or b"[]")


def postpone(limits: Limits, own: OwnSession, items: Sequence[Postponement], now: float) -> list[bool]:
    """Let tasks whose token is live wait again."""
    tokens = [(item.key, item.number, item.lease) for item in items]
    turns: dict[tuple[str, int], float] = {}
    lined: set[tuple[str, int]] = set()

    def ask(facts: Facts | None) -> Statement:
        def state(item: Postponement) -> int:
            if item.not_before > now:
                return DELAYED
            return LINED if (item.key, item.number) in lined else WAITING

        return _statement(
            limits,
            own,
            POSTPONE,
            facts,
            real(now),
            texts([item.key for item in items]),
            ints([item.number for item in items]),
            bigs([item.lease for item in items]),
            floats([item.not_before for item in items]),
            ints([state(item) for item in items]),
            floats([turns.get((item.key, item.number), 0.0) for item in items]),
            texts([_encode(item.call).decode() for item in items]),
        )

    def decide(facts: Facts, task: StoredTask) -> None:
        gate = limits.definitions.numbers[task.gate]
        if task.interrupt == 0:
            facts.end(task.gate, task.key, task.state)
            if gate.limits.fair:
                turns[task.run, task.number] = facts.turn_of(gate, task.key, task.priority)
            if task.key and gate.limits.by_key:
                lined.add((task.run, task.number))

    return truths(_end(limits, own, tokens, ask, decide, now) or b"", len(tokens))


def _end(
    limits: Limits,
    own: OwnSession,
    tokens: Sequence[tuple[str, int, int]],
    ask: Ask,
    decide: Callable[[Facts, StoredTask], None],
    at: float | None,
) -> bytes | None:
    """The answer: ask once, or, if a task is of a queue with limits, under the lock of that queue."""
    places = [(run, number) for run, number, _ in tokens]

    def locked() -> list[bytes | None]:
        try:
            entered, facts = limits.enter(own, Entry(places=dict.fromkeys(places, True)), at=at)
            for task in entered.tasks:
                live = task.state == LEASED and task.session == own.n
                if live and (task.run, task.number, task.lease) in tokens:
                    decide(facts, task)
            return limits.end(facts, [ask(facts)], at)
        except BaseException:
            limits.link.abandon()
            raise

    if limits.concerns(places):
        answers = limits.again(locked)
    else:
        try:
            answers = limits.again(lambda: limits.call(ask(None)))
        except GatedError:
            answers = limits.again(locked)
    limits.forget(places)
    return answers[0]


def _statement(
    limits: Limits, own: OwnSession, function: Function, facts: Facts | None, *values: bytes | None
) -> Statement:
    locked = None if facts is None else bigs(facts.locked)
    head = [big(own.n), small(own.link), small(limits.definitions.version), locked]
    return function.text(limits.schema), [*head, *values], function.types
