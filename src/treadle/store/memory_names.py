"""Names and their lines in `MemoryStore` (promise 13)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from treadle.core.inputs import Cancel, Turn, encode_input
from treadle.store.base import Append, InboxInput

if TYPE_CHECKING:
    from treadle.store.memory_data import MemoryData, StoredRun


def holder_of(data: MemoryData, append: Append) -> str:
    """The key of another run that holds a name which the append wants to take; empty if there is none."""
    for name, verb in append.names:
        line = data.lines.get(name)
        if verb == "take" and line and append.key not in line:
            return line[0]
    return ""


def change_names(data: MemoryData, run: StoredRun, changes: Sequence[tuple[str, str]]) -> list[str]:
    """Let a run enter and leave lines; the keys of the runs that got inputs by that."""
    told: list[str] = []
    for name, verb in changes:
        line = data.lines.setdefault(name, [])
        first = line[0] if line else ""
        if verb == "leave":
            if run.key in line:
                line.remove(run.key)
                run.names.remove(name)
        elif run.key not in line:
            if verb == "replace":
                for key in line:
                    body = encode_input(Cancel(hard=True))
                    data.put_input(data.runs[key], InboxInput(f"replaced:{run.key}:{run.version}", key, body))
                told += line
            line.append(run.key)
            run.names.append(name)
        if verb not in ("take", "note") and line and line[0] != first:
            put_turn(data, data.runs[line[0]], name)
            told.append(line[0])
        if not line:
            del data.lines[name]
    return list(dict.fromkeys(told))


def put_turn(data: MemoryData, run: StoredRun, name: str) -> None:
    """Tell a run that it is the first in a line."""
    data.put_input(run, InboxInput(f"turn:{run.version}:{name}", run.key, encode_input(Turn(name=name))))
