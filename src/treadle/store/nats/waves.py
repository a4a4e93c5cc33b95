"""Waves of a commit: appends that are written at once, since none of them depends on what another comes to.

What the answers will be is foreseen from the state that this process has seen. An append that would not take effect is
not written. Slots are taken for the tasks that would be handed over; when a wave is answered, those are given back
whose tasks went elsewhere, because others had written in between.
"""

from __future__ import annotations

from collections.abc import Sequence

from treadle.core.commands import Task
from treadle.store.base import Append
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
        self.takes: list[Takes | bool | None] = []
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
        taken = sum(count for takes in self.takes if isinstance(takes, Takes) for _, _, count in takes.counts)
        if self.offer is not None and len(tasks) < taken:
            self.offer.reset(self._mark)
            for task in tasks:
                self.offer.take(task.action, task.queue)
