"""Adding steps at once, for an attempt that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from treadle.core import inputs as inp
from treadle.core.commands import Refusal, Task
from treadle.core.plan import Fragment
from treadle.errors import DefinitionError, DuplicateStepError
from treadle.runtime.exchange import place_fragments
from treadle.runtime.patience import patiently
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
    """Have steps added, again and again while the store cannot: the same steps twice are once."""
    refusal, _events = await patiently(lambda: request(node, key, value))
    return refusal
