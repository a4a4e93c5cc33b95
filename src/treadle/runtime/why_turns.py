"""Why a run waits for its turn: the runs before it in the lines that it is in, by their ids."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from msgspec.structs import replace

from treadle.runtime.reasons import Reason
from treadle.store.base import Reader


async def with_runs_before(
    read: Callable[[Callable[[], Any]], Awaitable[Any]], reader: Reader, key: str, reasons: Sequence[Reason]
) -> list[Reason]:
    """The reasons for a run; those that are about names tell the ids of the runs before it in their place."""
    names = dict.fromkeys(name for reason in reasons if reason.code == "singleton" for name in reason.on)
    if not names:
        return list(reasons)

    def before() -> list[str]:
        lines = [reader.line(name) for name in names]
        ahead = [other for line in lines if key in line for other in line[: line.index(key)]]
        rows = [reader.run(other) for other in dict.fromkeys(ahead)]
        return [row.id for row in rows if row is not None]

    ids: list[str] = await read(before)
    return [_named(reason, ids) if reason.code == "singleton" else reason for reason in reasons]


def _named(reason: Reason, ids: list[str]) -> Reason:
    if reason.step or not ids:
        return replace(reason, on=ids)
    more = f", with {len(ids) - 1} more before it" if len(ids) > 1 else ""
    return replace(reason, message=f"{reason.message} by {ids[0]}{more}", on=ids)
