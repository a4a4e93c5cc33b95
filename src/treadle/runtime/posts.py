"""Inputs from one run to another: written with the sender's decision, decided by whoever decides the receiver."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from treadle.core.decision import Decision
from treadle.core.inputs import encode_input
from treadle.store.base import InboxInput

if TYPE_CHECKING:
    from treadle.runtime.engine import Engine


def posts_of(key: str, version: int, decision: Decision) -> list[InboxInput]:
    """A decision's inputs for other runs; their ids are unique by the version that the decision makes."""
    return [
        InboxInput(f"{key}:{version}:{index}", receiver, encode_input(value))
        for index, (receiver, value) in enumerate(decision.posts)
    ]


def tell(engine: Engine, keys: Iterable[str]) -> None:
    """Inputs are in the inboxes of these runs: have them decided, by this session if nobody else does."""
    names = list(dict.fromkeys(keys))
    for key in names:
        owned = engine.runs.get(key)
        if owned is not None and not owned.closing:
            engine.inboxes.look(key)
        else:
            engine.acquire(key).add_done_callback(_read)
    committer = engine.committer
    committer.submit(lambda _store: committer.notify(tasks=False, keys=names), lambda _none, _error: None)


def _read(offered: asyncio.Future[str | None]) -> None:
    """Whoever owns the run was sent a wake-up; what failed here, the sweep makes good."""
    if not offered.cancelled():
        offered.exception()
