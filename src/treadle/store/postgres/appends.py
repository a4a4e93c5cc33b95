"""Appends: how a group of decisions becomes rows, in one transaction and one round trip.

The way taken first believes what an append says of its run: that it is at `expect`, owned by the session and not held;
and that no other tasks wait before its own than waited at the last commit. The server writes the group only if all of
that is so. If it is not, the runs are read, those appends that may take effect are sent again, and the server checks
once more: nothing is locked between the two, so a rival only makes it happen again.

Appends that concern queues with limits lock those first (`limits`), so they are two round trips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from treadle.core.inputs import Revoked, encode_input
from treadle.core.tables import RUNNING
from treadle.errors import StoreUnavailableError
from treadle.store.base import Answer, Append, Report
from treadle.store.ledger import Gate
from treadle.store.offers import Offer
from treadle.store.postgres import names
from treadle.store.postgres.append_functions import END_TASK, STEER
from treadle.store.postgres.arrays import big, bigs, chunks, ints, small, storable, texts, truth
from treadle.store.postgres.connection import GuestError, RaisedError, Statement, TakenBackError
from treadle.store.postgres.dropping import Dropped, make_place
from treadle.store.postgres.functions import BEHIND, FENCED, HELD, LATE
from treadle.store.postgres.giving import Gifts
from treadle.store.postgres.group import NOBODY, AppendedRun, Group, Locked
from treadle.store.postgres.limits import Entry, GatedError, Limits, RedefinedError
from treadle.store.postgres.schema import LEASED
from treadle.store.postgres.tokens import OwnSession, RunNumbers
from treadle.store.projection import Opened, fitting

# Cached numbers of runs; beyond this the cache starts anew.
_CACHED_RUNS = 200_000
# How often a group is sent that rivals keep changing under it.
_TRIES = 20
# How often the server is asked to confirm what waits. Between sessions there is no order to keep, so after that the
# group goes by what it was told last.
_CONFIRMATIONS = 3
_NUMBER = 987_654_321
_FULL = "full"
_NOBODY = Dropped([], [])


class Appends:
    """Writes groups of appends through one link. It remembers what it has met of runs, plans, and tasks that wait."""

    def __init__(self, limits: Limits) -> None:
        self.link = limits.link
        self.schema = limits.schema
        self.limits = limits
        self.numbers: dict[str, int] = {}
        # Of the other sessions: what any of them waits for, as the last commit saw it; None is not known.
        self.waits: int | None = None
        self._holds: dict[str, int] = {}
        self._plans: set[str] = set()
        self._ceilings: dict[str, float] = {}
        self._new_numbers = RunNumbers()
        # Decodes the records that projections take.
        self.opened: Opened | None = None

    def write(self, own: OwnSession, appends: Sequence[Append], offer: Offer | None) -> list[Answer]:
        """Commit the appends, in order; those that change what others may do go by themselves."""
        answers: list[Answer] = []
        group: list[Append] = []
        for append in appends:
            if _is_alone(append) or (self.limits.gates and self._measured(append)):
                if group:
                    answers += self._write(own, group, offer)
                    group = []
                answers += self._write(own, [append], offer)
            else:
                group.append(append)
        if group:
            answers += self._write(own, group, offer)
        return answers

    def forget_waiting(self) -> None:
        """Tasks that waited were claimed: believe that none do."""
        self._ceilings.clear()

    def learn(self, key: str, n: int) -> None:
        """The number of a run."""
        if len(self.numbers) > _CACHED_RUNS:
            self.numbers.clear()
        self.numbers[key] = n

    def forget(self, key: str) -> None:
        """A run was deleted."""
        self.numbers.pop(key, None)
        self._holds.pop(key, None)
        self._plans.clear()

    # -- one transaction -------------------------------------------------------------------------------

    def _write(self, own: OwnSession, appends: Sequence[Append], offer: Offer | None) -> list[Answer]:
        return fitting(appends, offer, lambda taken: self._write_all(own, taken, offer))

    def _write_all(self, own: OwnSession, appends: Sequence[Append], offer: Offer | None) -> list[Answer]:
        if not appends:
            return []
        writing = _Writing(appends, offer, self._believe(appends), self._concerns_limits(appends))
        for _ in range(_TRIES):
            if writing.runs is None:
                writing.verdicts, writing.runs = self._examine(own, appends)
            if not writing.accepted():
                return [verdict for verdict in writing.verdicts if verdict is not None]
            answers = self._attempt(own, writing)
            if answers is not None:
                return answers
        raise StoreUnavailableError(f"{self.link.location.shown}: runs changed again and again; try again")

    def _attempt(self, own: OwnSession, writing: _Writing) -> list[Answer] | None:
        """Send the group once; None if it is to be sent again."""
        accepted = writing.accepted()
        try:
            said, detail, raised, group = self._try(own, accepted, writing)
        except BaseException as error:
            self.link.abandon()
            writing.reset()
            if isinstance(error, RedefinedError):
                self.limits.read()
                writing.locks = self._concerns_limits(writing.appends)
            elif isinstance(error, GatedError):
                writing.locks = True
            elif not isinstance(error, TakenBackError):
                raise
            return None
        if said == "done":
            self.limits.forget((append.key, number) for append in accepted for number in append.ended)
            self._settled(group, int(detail))
            written = iter(group.answers)
            return [next(written) if verdict is None else verdict for verdict in writing.verdicts]
        writing.reset()
        return self._refused(own, writing, said, detail, raised, group)

    def _refused(
        self, own: OwnSession, writing: _Writing, said: str, detail: str, raised: bool, group: Group
    ) -> list[Answer] | None:
        """What follows from a refusal, of which nothing was written."""
        appends = writing.appends
        if said == FENCED:
            return [Answer("fenced")]
        if said == LATE:
            return [answer for append in appends for answer in self._write(own, [append], writing.offer)]
        if said == _FULL:
            # Of an append that something else forbids, that is what is told.
            verdicts, _ = self._examine(own, appends)
            on_full = self.limits.gates[detail].limits.on_full
            return [verdict or Answer("full", queue=detail, on_full=on_full) for verdict in verdicts]
        if said == HELD:
            verdicts, _ = self._examine(own, appends)
            return [verdict or Answer("held", holder=detail) for verdict in verdicts]
        if said == BEHIND:
            # Found out behind what the append itself does to waiting tasks, it would be found so again before that.
            writing.asked = _CONFIRMATIONS if raised else writing.asked + 1
            found = [NOBODY if text == "-" else float(text) for text in detail.split(",")]
            self._ceilings.update(zip(group.asked, found, strict=True))
        else:
            writing.runs = None
            self._plans.clear()
        return None

    def _try(self, own: OwnSession, appends: Sequence[Append], writing: _Writing) -> tuple[str, str, bool, Group]:
        """Send the group; what came of it, its detail, and whether the server told so by an error."""
        offer, runs = writing.offer, writing.runs
        assert runs is not None
        verifies = writing.asked < _CONFIRMATIONS
        locked = self._lock(own, appends, offer) if writing.locks else None
        out: Gate | Dropped = _NOBODY
        if locked is not None and (full := self._full(appends[0], locked)):
            out = make_place(self.limits.call, self.schema, appends[0], full)
            if isinstance(out, Dropped):
                # What fell due for the first look did so once.
                numbers = self.limits.definitions.numbers
                out.places.extend((numbers[n], key) for n, key in locked.facts.touched)
                locked = self._lock(own, appends, offer, out)
        group = Group(self.limits, own, runs, offer, self._ceilings, locked)
        if locked is not None:
            said, detail = (_FULL, out.name) if isinstance(out, Gate) else self._forbidden(appends, locked)
            if said:
                self.link.abandon()
                return said, detail, True, group
        group.build(appends, self._plans)
        alone = _is_alone(appends[0])
        gifts = Gifts(self.link, appends, self.opened) if any(append.given for append in appends) else None
        may_answer = not alone and locked is None and gifts is None
        at = max(append.time for append in appends)
        statements = [group.statement(self.schema, at, verifies=verifies, may_answer=may_answer)]
        if alone:
            statements = self._around(group, appends[0], statements)
        last = len(statements) - 1
        if gifts is not None:
            statements += gifts.statements
        try:
            answers = self.limits.end(locked.facts, statements, at) if locked else self.limits.call(*statements)
        except RaisedError as error:
            return error.code, error.detail, True, group
        except GuestError as error:
            assert gifts is not None
            raise gifts.unfit(error) from error
        told = [] if isinstance(out, Gate) else out.runs
        if appends[0].names and (others := answers[last]):
            told = list(dict.fromkeys([*told, *others.decode().split(",")]))
            answers[last] = None
        group.answers[0].told = told
        answer = next(value for value in answers if value is not None and value != b"").decode()
        said, _, detail = answer.partition(" ")
        return (BEHIND if said == "behind" else said), detail, False, group

    # -- queues with limits ----------------------------------------------------------------------------

    def _concerns_limits(self, appends: Sequence[Append]) -> bool:
        """Whether appends change tasks of queues with limits, as far as it is known here."""
        gates = self.limits.gates
        return bool(gates) and (
            _is_alone(appends[0])
            or any(task.queue in gates for append in appends for task in append.tasks)
            or self.limits.concerns((append.key, number) for append in appends for number in append.ended)
        )

    def _measured(self, append: Append) -> list[Gate]:
        """The queues that must have a place to wait, if a run is to be made."""
        gates = self.limits.gates
        found = {task.queue: gates[task.queue] for task in append.tasks if task.queue in gates}
        return [gate for gate in found.values() if gate.limits.length] if append.head is not None else []

    def _lock(
        self, own: OwnSession, appends: Sequence[Append], offer: Offer | None, out: Dropped | None = None
    ) -> Locked:
        """Begin a transaction on the queues with limits that the appends concern, or see what is so without `out`."""
        first, gates = appends[0], self.limits.gates
        entry = Entry(measured=self._measured(first), gates=[] if out is None else list(out.places))
        for append in appends:
            for task in append.tasks:
                if task.queue in gates:
                    entry.gates.append((gates[task.queue], storable(task.key)))
                entry.places.setdefault((append.key, task.number), False)
            entry.places.update({(append.key, number): True for number in append.ended})
        if first.report is not None:
            entry.places[first.report.input.key, first.report.number] = True
        if first.hold is not None or first.revoke or first.interrupts:
            entry.whole.append(first.key)
            entry.places.update({(first.key, number): True for number in first.interrupts})
        at = max(append.time for append in appends)
        entered, facts = self.limits.enter(own, entry, at=at, offer=offer, begins=out is None)
        for gate, key in [] if out is None else out.places:
            facts.touch(gate.n, key)
        return Locked(entered, facts, offer, at)

    def _full(self, append: Append, locked: Locked) -> list[Gate]:
        """The queues in which the due tasks of a run that is to be made have no place to wait."""
        due = {task.queue for task in append.tasks if task.not_before <= append.time}
        measured = [gate for gate in self._measured(append) if gate.name in due]
        return [gate for gate in measured if locked.lengths[gate.n] >= gate.limits.length]

    def _forbidden(self, appends: Sequence[Append], locked: Locked) -> tuple[str, str]:
        """Why a group cannot be written as it is, and the detail; empty if it can."""
        ended = [(append.key, number) for append in appends for number in append.ended]
        if len(appends) > 1 and any(place in locked.stored and locked.stored[place].state != LEASED for place in ended):
            # They held others back until their turn came.
            return LATE, ""
        return "", ""

    def _around(self, group: Group, append: Append, commit: list[Statement]) -> list[Statement]:
        """What an append does to tasks that are there comes before it, the end of another run's task after it."""
        own, run = group.own, group.runs[append.key]
        hold = append.hold if run.made is None else None
        statements = list(commit)
        if append.revoke or append.interrupts or hold is not None:
            text = encode_input(Revoked(numbers=[_NUMBER])).decode().replace(str(_NUMBER), "*")
            values = {
                "me": big(own.n),
                "link": small(own.link),
                "definitions": small(self.limits.definitions.version),
                "locked": None if group.locked is None else bigs(group.locked.facts.locked),
                "keyed": bigs(self.limits.definitions.keyed),
                "of_run": big(run.n),
                "new_hold": None if hold is None else big(hold),
                "ended": ints(append.ended) if append.ended else None,
                "takes_all_back": truth(append.revoke),
                "takes_back": ints(append.interrupts) if append.interrupts else None,
                "input_id": f"revoked:{append.expect + 1}".encode(),
                "input_text": text.encode(),
                "interrupts": ints(append.interrupts) if append.interrupts else None,
            }
            statements.insert(0, (STEER.text(self.schema), [values[name] for name in STEER.names], STEER.types))
        if append.report is not None:
            statements.append(self._end_task(group, append.report))
        return names.around(self.schema, run.n, append, statements) if append.names else statements

    def _end_task(self, group: Group, report: Report) -> Statement:
        values = {
            "me": big(group.own.n),
            "locked": None if group.locked is None else bigs(group.locked.facts.locked),
            "of_key": report.input.key.encode(),
            "of_number": small(report.number),
            "token": big(report.lease),
            "input_id": report.input.id.encode(),
            "input_body": report.input.body,
            "digests": texts([digest for digest, _ in report.payloads]) if report.payloads else None,
            "bodies": chunks([body for _, body in report.payloads]) if report.payloads else None,
        }
        return END_TASK.text(self.schema), [values[name] for name in END_TASK.names], END_TASK.types

    def _settled(self, group: Group, waits: int) -> None:
        """The group is durable: what it says of runs, plans and waiting tasks is so."""
        self.waits = waits
        self.limits.remember(group.leased)
        if group.asked:
            self._ceilings = group.ceilings
        for run in group.runs.values():
            if run.made is not None:
                self.learn(run.key, run.n)
                assert run.made.head is not None
                self._plans.add(run.made.head.plan)
            if run.hold:
                self._holds[run.key] = run.hold
            elif run.hold_was:
                self._holds.pop(run.key, None)

    # -- which appends may take effect -----------------------------------------------------------------

    def _believe(self, appends: Sequence[Append]) -> dict[str, AppendedRun] | None:
        """The runs as the appends say they are; None if they contradict each other or a run is not known."""
        runs: dict[str, AppendedRun] = {}
        numbers, holds = self.numbers, self._holds
        for append in appends:
            key = append.key
            run = runs.get(key)
            if run is not None:
                if append.head is not None or run.version != append.expect or run.release:
                    return None
            elif append.head is None:
                n = numbers.get(key)
                if n is None:
                    return None
                hold = holds.get(key, 0)
                run = runs[key] = AppendedRun(key, n, append.expect, hold, append.expect, hold, append.status)
            elif append.expect == 0:
                run = runs[key] = self._new_run(append)
            else:
                return None
            run.take(append)
        return runs

    def _new_run(self, append: Append) -> AppendedRun:
        n = self._new_numbers.take(self.link)
        return AppendedRun(append.key, n, 0, 0, 0, 0, RUNNING, made=append)

    def _examine(
        self, own: OwnSession, appends: Sequence[Append]
    ) -> tuple[list[Answer | None], dict[str, AppendedRun]]:
        """Read the runs; the answers are None for those appends that may take effect."""
        stored = self._read(own, appends)
        answers: list[Answer | None] = []
        runs: dict[str, AppendedRun] = {}
        for append in appends:
            run = runs.get(append.key) or stored.runs.get(append.key)
            status = stored.status(append, run)
            if status is not None:
                answers.append(Answer(status))
                continue
            if run is None:
                assert append.head is not None
                run = self._new_run(append)
                stored.ids.add(append.head.id)
            runs[append.key] = run
            run.take(append)
            answers.append(None)
        return answers, runs

    def _read(self, own: OwnSession, appends: Sequence[Append]) -> _Stored:
        """What the store holds of that which the appends name."""
        keys = sorted({append.key for append in appends})
        heads = [append.head.id for append in appends if append.head is not None]
        report = appends[0].report
        token = (report.input.key, report.number, report.lease, own.n) if report is not None else ("", 0, 0, 0)
        rows, tombs, taken, live = self.link.read(
            ("SELECT key, n, version, hold, status, owner FROM @runs WHERE key = ANY (%s)", (keys,)),
            ("SELECT key FROM @tombstones WHERE key = ANY (%s)", (keys,)),
            ("SELECT id FROM @runs WHERE id = ANY (%s)", (heads,)),
            (
                "SELECT 1 FROM @tasks t JOIN @runs r ON r.n = t.run WHERE r.key = %s AND t.number = %s AND t.lease = %s"
                " AND t.session = %s AND t.state = 3 AND t.interrupt = 0",
                token,
            ),
        )
        runs: dict[str, AppendedRun] = {}
        for key, n, version, hold, status, owner in rows:
            # One of another owner looks released: nothing can be appended to it.
            runs[key] = AppendedRun(key, n, version, hold, version, hold, status, release=owner != own.n)
            self.learn(key, n)
        return _Stored(runs, {key for (key,) in tombs}, {id for (id,) in taken}, bool(live))


class _Writing(msgspec.Struct):
    """A group on its way: what is believed of its runs, and how it is sent."""

    appends: Sequence[Append]
    offer: Offer | None
    # None: they must be read.
    runs: dict[str, AppendedRun] | None
    # Whether it locks queues with limits.
    locks: bool
    # How often the server has corrected what is believed of waiting tasks.
    asked: int = 0
    # Why appends may not take effect; None for those that may.
    verdicts: Sequence[Answer | None] = ()
    mark: object = None

    def __post_init__(self) -> None:
        self.verdicts = [None] * len(self.appends)
        self.mark = None if self.offer is None else self.offer.mark()

    def accepted(self) -> list[Append]:
        """The appends that may take effect, as far as is known."""
        return [append for append, verdict in zip(self.appends, self.verdicts, strict=True) if verdict is None]

    def reset(self) -> None:
        """Give the slots back that were taken."""
        if self.offer is not None:
            self.offer.reset(self.mark)


class _Stored(NamedTuple):
    """Runs as their rows say, keys of deleted runs, ids that are taken, and whether the reported task is live."""

    runs: dict[str, AppendedRun]
    tombstones: set[str]
    ids: set[str]
    live: bool

    def status(
        self, append: Append, run: AppendedRun | None
    ) -> Literal["conflict", "exists", "refused", "fenced"] | None:
        """Why an append may not take effect, None if it may; `run` is as those before it leave it."""
        if run is not None and append.head is None:
            return "conflict" if run.version != append.expect or run.release else None
        if append.report is not None and not self.live:
            return "fenced"
        if append.key in self.tombstones:
            return "refused"
        if append.head is not None and (run is not None or append.head.id in self.ids):
            return "exists"
        return None if append.head is not None and append.expect == 0 else "conflict"


def _is_alone(append: Append) -> bool:
    steers = append.hold is not None or append.revoke or append.report is not None
    return steers or bool(append.interrupts) or bool(append.names)
