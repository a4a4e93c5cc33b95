"""What an append would be handed now: foreseen in the state of a machine, which stays as it is."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

from treadle.store.base import Append
from treadle.store.memory import MemoryData
from treadle.store.memory_data import StoredRun
from treadle.store.memory_lines import Entry


def waiting_ended_by(append: Append, run: StoredRun) -> list[Entry]:
    """The waiting tasks of a run that an append ends, replaces or takes back."""
    numbers = {*append.ended, *append.interrupts, *(task.number for task in append.tasks)}
    return [entry for number, entry in run.tasks.items() if not entry.session and (append.revoke or number in numbers)]


@contextmanager
def without(data: MemoryData, entries: Sequence[Entry], now: float) -> Generator[None, None, None]:
    """Look at what waits as if these tasks were ended."""
    for entry in entries:
        entry.gone = True
    try:
        yield
    finally:
        for entry in entries:
            entry.gone = False
            if not _waits(data, entry):
                data.waiting.enqueue(entry, now)


def _waits(data: MemoryData, entry: Entry) -> bool:
    """Whether an entry is still where it waits: what is gone leaves when it is met."""
    waiting = data.waiting
    lines = waiting.queue(entry.task.queue).lines.values()
    parked = data.runs[entry.task.run].parked
    return (
        any(other is entry for other in parked)
        or any(item[-1] is entry for item in waiting.timed)
        or any(item[-1] is entry for line in lines for item in line.items())
    )
