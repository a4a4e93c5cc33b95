"""Neglect in the simulation: every pending task, input and deadline has somebody who does something about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from treadle.core.tables import RUNNING
from treadle.runtime.node import Node
from treadle.store.memory_data import MemoryData
from treadle.store.memory_lines import Entry
from treadle.testing.invariants import OWNERS, PROGRESS, Watch
from treadle.testing.sim_limits import may_start
from treadle.testing.sim_shape import Host

# Who may hold a pending task or input without doing anything about it, in virtual seconds of trouble.
NEGLECT = 90.0
# Since when a task must have been due, whatever the clocks of nodes say.
_LATE = 120.0

Found = dict[tuple[str, ...], float]


class Neglect:
    """Looks at all that is pending, again and again, and finds what stays as it is."""

    def __init__(self, hosts: Sequence[Host], data: MemoryData, watch: Watch, time: Callable[[], float]) -> None:
        self.hosts = hosts
        self.data = data
        self.watch = watch
        self.time = time
        self._since: Found = {}

    def look(self) -> None:
        """See what has waited too long by now."""
        self.watch.check_store()
        seen: Found = {}
        alive = {host.node.session: host for host in self.hosts if host.node is not None}
        now = min(host.clock.now() for host in self.hosts)
        for run in self.data.runs.values():
            for entry in run.tasks.values():
                host = alive.get(entry.session)
                task = entry.task
                if entry.session and host is not None and host.node is not None:
                    if not host.node.worker.knows(task):
                        self._note(seen, ("lease", task.run, task.address, str(task.lease)), OWNERS, entry.session)
                elif not entry.session and not run.hold and task.not_before < now - _LATE and self._wanted(entry, now):
                    self._note(seen, self._name(entry), PROGRESS, "nobody")
            if run.inbox:
                own = run.owner.id if run.owner is not None else ""
                first = next(iter(run.inbox))
                self._note(seen, ("input", run.key, first), OWNERS, own)
            journal = self.watch.journals.get(run.key)
            if run.status == RUNNING and journal is not None and journal.has_deadline and journal.deadline < now:
                self._note(seen, ("deadline", run.key), PROGRESS, "nobody" if run.owner is None else run.owner.id)
        self._since = seen

    def _name(self, entry: Entry) -> tuple[str, ...]:
        """What must change: the task, or in a queue with limits, where others may go first, what was leased of it."""
        task = entry.task
        if task.queue not in self.data.waiting.limited:
            return "task", task.run, task.address, str(task.attempt)
        return "queue", task.queue, task.target, str(self.watch.limits.leased[task.queue])

    def _wanted(self, entry: Entry, now: float) -> bool:
        """Whether a node that may execute a task has room of all kinds, and its queue too."""
        return any(_takes(host.node, entry.task.target) for host in self.hosts) and may_start(self.data, entry, now)

    def _note(self, seen: Found, what: tuple[str, ...], name: str, holder: str) -> None:
        now = self.time()
        since = self._since.get(what, now)
        seen[what] = since
        if now - since > NEGLECT:
            self.watch.fail(
                name, f"{' '.join(what)} waits since {since:.3f}; {holder or 'nobody'} does nothing about it"
            )


def _takes(node: Node | None, target: str) -> bool:
    if node is None or not node.settings.worker or node.slots.full():
        return False
    if node.slots.actions() and node.slots.free() <= 0:
        # A cycle has used up its limit.
        return False
    return not target or target in node.slots.targets()
