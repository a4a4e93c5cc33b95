"""Adding steps at once, for an attempt that goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from treadle.core import inputs as inp
from treadle.core.commands import Refusal, Task
from treadle.core.plan import Fragment
from treadle.errors import DefinitionError, DuplicateStepError, StoreUnavailableError
from treadle.runtime.exchange import RETRY_SECONDS, place_fragments
from treadle.runtime.requests import request

if TYPE_CHECKING:
    from treadle.runtime.node import Node


async def add_now(node: Node, task: Task, fragments: Sequence[Fragment]) -> None:
    """Add steps for a live attempt at once."""
    for fragment in await place_fragments(node.payloads, fragments, None, task.run):
        value = inp.AddSteps(
            number=task.number,
            generation=task.generation,
            attempt=task.attempt,
            fragment=fragment,
            worker=node.name,
        )
        refusal = await _add(node, task.run, value)
        if refusal is not None:
            kind = DuplicateStepError if refusal.code == DuplicateStepError.code else DefinitionError
            raise kind(refusal.message)


async def _add(node: Node, key: str, value: inp.AddSteps) -> Refusal | None:
    """Have steps added, again and again while the store does not answer: the same steps twice are once."""
    while True:
        try:
            refusal, _events = await request(node, key, value)
        except StoreUnavailableError:
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return refusal
