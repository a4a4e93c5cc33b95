"""Triggers: each goes into the window that is open for it, or opens one. The kernel's side is `core.windows`.

Who sends a trigger looks for the run that holds the window's name, and asks it; the answer comes from its journal. If
nobody holds the name, or the window has just closed, a run is made that holds it, in one append with the trigger. The
window is looked up before the trigger's own name: a trigger that an earlier window has taken is then found by its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from treadle.authoring.triggers import Triggering
from treadle.core.inputs import Trigger
from treadle.core.windows import trigger_name
from treadle.errors import DefinitionError, RunNotFoundError, StoreUnavailableError
from treadle.runtime.requests import request
from treadle.runtime.run import Run
from treadle.runtime.starting import Start, begin

if TYPE_CHECKING:
    from treadle.runtime.node import Node


async def send_trigger(node: Node, trigger: Triggering, id: str, about: Start) -> Run[Any]:
    """Have a trigger taken, durably; gives the run that has it. One that is made for it is started as `about` says."""
    if node.payloads.codec is not None and "/" in trigger.window.name:
        raise DefinitionError(
            "the key of a window is read from arguments, which the payload codec encodes, and stores have to read it;"
            " leave key= out, or use a store without a codec"
        )
    ids, reader = node.environment.ids, node.reader
    window = trigger.window.name
    # One that has no id is sent once.
    name = id or ids.key()
    while True:
        open_ = await node.read(lambda: reader.line(window))
        known = await node.read(lambda: reader.line(trigger_name(window, id))) if id else []
        if known:
            return Run[Any](node, known[0], trigger.planned.result, known[0])
        if open_:
            if await _ask(node, open_[0], trigger, name, keep=bool(id)):
                return Run[Any](node, open_[0], trigger.planned.result, open_[0])
            continue
        key = ids.key()
        start = msgspec.structs.replace(about, key=key, window=trigger.window, trigger=id)
        answer = await begin(node, trigger.planned, start)
        if answer.status == "committed":
            return Run[Any](node, key, trigger.planned.result, key)
        if answer.status != "held":
            raise StoreUnavailableError(f"the trigger was not taken ({answer.status}); try again")


async def _ask(node: Node, key: str, trigger: Triggering, name: str, *, keep: bool) -> bool:
    """Give a trigger to the run of a window; False if that is closed, or gone."""
    args = [await node.payloads.place(text, None) for text in trigger.texts]
    try:
        refusal, _events = await request(node, key, Trigger(name=name, args=args, keep=keep))
    except RunNotFoundError:
        return False
    return refusal is None
