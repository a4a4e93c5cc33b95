"""Waves of a commit: appends that are written at once, since none of them depends on what another comes to.

What the answers will be is foreseen from the state that this process has seen. An append that would not take effect is
not written. Slots are taken for the tasks that would be handed over; when a wave is answered, those are given back
whose tasks went elsewhere, because others had written in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import msgspec

from treadle.core.commands import Task
from treadle.core.events import encode_events
from treadle.store.base import Append, Report
from treadle.store.nats import wire
from treadle.store.nats.machine import Machine
from treadle.store.nats.wire import Takes
from treadle.store.offers import Offer


def split(machine: Machine, appends: list[Append]) -> tuple[list[Append], list[Append]]:
    """The first wave of these appends, and the others."""
    keys: set[str] = set()
    ids: set[str] = set()
    leases: set[int] = set()
    for place, append in enumerate(appends):
        head, report = append.head, append.report
        if (
            append.key in keys
            or (head is not None and head.id in ids)
            or (report is not None and report.lease in leases)
        ):
            return appends[:place], appends[place:]
        keys.add(append.key)
        if head is not None:
            ids.add(head.id)
        if report is not None:
            leases.add(report.lease)
        if machine.steers(append):
            return appends[: place + 1], appends[place + 1 :]
    return appends, []


class Wave:
    """What is foreseen of the appends of a wave. `takes` is False for one that is refused."""

    def __init__(self, machine: Machine, session: str, appends: list[Append], offer: Offer | None) -> None:
        self.session = session
        self.appends = appends
        self.offer = offer
        self._mark = offer.mark() if offer is not None else None
        self._foresee(machine)

    def look_again(self, machine: Machine) -> None:
        """Foresee anew, from a state that is more recent."""
        if self.offer is not None:
            self.offer.reset(self._mark)
        self._foresee(machine)

    def _foresee(self, machine: Machine) -> None:
        self.refusals = [machine.refusal(self.session, append) for append in self.appends]
        self.takes: list[Takes | Literal[False] | None] = []
        queued: dict[str, list[tuple[int, str]]] = {}
        for append, refusal in zip(self.appends, self.refusals, strict=True):
            if refusal:
                self.takes.append(False)
            elif self.offer is None or not append.tasks:
                self.takes.append(None)
            else:
                self.takes.append(machine.hand_over(self.session, append, self.offer, queued))

    @property
    def accepted(self) -> list[Append]:
        """The appends that would take effect."""
        return [append for append, refusal in zip(self.appends, self.refusals, strict=True) if not refusal]

    def settle(self, tasks: Sequence[Task]) -> None:
        """The wave is answered: `tasks` are those that were handed over."""
        taken = sum(takes.total for takes in self.takes if isinstance(takes, Takes))
        if self.offer is not None:
            retake(self.offer, self._mark, taken, tasks)


def retake(offer: Offer, mark: object, taken: int, tasks: Sequence[Task]) -> None:
    """Give back the slots that were `taken` since `mark` for more tasks than came."""
    if len(tasks) < taken:
        offer.reset(mark)
        for task in tasks:
            offer.take(task.action, task.queue)


def hashed_plan(append: Append) -> str:
    """The digest of the plan of an append that makes a run."""
    assert append.head is not None
    return hashlib.sha256(append.plan or b"").hexdigest()


def without_payloads(report: Report) -> Report:
    """A report as an operation holds it."""
    return msgspec.structs.replace(report, payloads=()) if report.payloads else report


def append_op(session: str, append: Append, takes: Takes | None) -> wire.AppendOp:
    """An append as an operation."""
    return wire.AppendOp(
        session=session,
        key=append.key,
        expect=append.expect,
        commit_id=append.commit_id,
        time=append.time,
        events=encode_events(append.events),
        status=append.status,
        unwound=append.unwound,
        head=append.head,
        plan=hashed_plan(append) if append.head is not None else "",
        tasks=append.tasks,
        takes=takes,
        ended=append.ended,
        consumed=append.consumed,
        steps=append.steps,
        undos=append.undos,
        unsettled=append.unsettled,
        interrupts=append.interrupts,
        hold=append.hold,
        revoke=append.revoke,
        release=append.release,
        report=without_payloads(append.report) if append.report is not None else None,
        posts=append.posts,
        names=append.names,
    )
