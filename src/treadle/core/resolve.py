"""Slots to arguments: Refs, constants and signals replaced by the handles of their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from treadle.core.events import NULL, Arg, ArgList, ArgMap, Handle, Pick
from treadle.core.graph import Node
from treadle.core.plan import Const, ListOf, Ref, SignalValue, Slot
from treadle.core.state import RunState
from treadle.core.tables import SUCCEEDED
from treadle.errors import InternalError


def resolve_args(run: RunState, node: Node, slots: dict[str, Slot]) -> dict[str, Arg]:
    """The arguments of a step whose needs are settled."""
    constants = node.constants if node.constants is not None else run.constants
    args: dict[str, Arg] = {}
    for name, slot in slots.items():
        if type(slot) is Const:
            args[name] = constants[slot.index]
        elif type(slot) is Ref:
            upstream = run.states[node.refs[slot.step]]
            # The plain case of `_resolve_ref`.
            if upstream.status == SUCCEEDED and not slot.path:
                args[name] = upstream.result
            else:
                args[name] = _resolve_ref(run, node.refs, constants, slot)
        else:
            args[name] = _resolve(run, node.refs, constants, slot)
    return args


def _resolve(run: RunState, refs: Mapping[str, int], constants: list[Handle], slot: Slot) -> Arg:
    if isinstance(slot, Const):
        return constants[slot.index]
    if isinstance(slot, Ref):
        return _resolve_ref(run, refs, constants, slot)
    if isinstance(slot, SignalValue):
        return run.signals.get(slot.name, NULL)
    if isinstance(slot, ListOf):
        return ArgList(
            [
                _resolve_ref(run, refs, constants, item) if type(item) is Ref else _resolve(run, refs, constants, item)
                for item in slot.items
            ]
        )
    return ArgMap({key: _resolve(run, refs, constants, item) for key, item in slot.items.items()})


def _resolve_ref(run: RunState, refs: Mapping[str, int], constants: list[Handle], ref: Ref) -> Arg:
    upstream = run.states[refs[ref.step]]
    if upstream.status == SUCCEEDED:
        return Pick(upstream.result, ref.path) if ref.path else upstream.result
    if ref.default >= 0:
        return constants[ref.default]
    raise InternalError(f"run {run.run_id!r}: {ref.step!r} is {upstream.status}; its result was required")


def is_inline(arg: Arg) -> bool:
    """Whether the core can see the value of an argument: it rides in the event."""
    handle = arg.value if isinstance(arg, Pick) else arg
    return isinstance(handle, str) and handle.startswith("=")


def truth_of(arg: Arg) -> bool | None:
    """The bool behind an argument; None if it is not one, or not at hand."""
    if not is_inline(arg):
        return None
    handle, path = (arg.value, arg.path) if isinstance(arg, Pick) else (arg, ())
    assert isinstance(handle, str)
    if not path:
        return True if handle == "=true" else False if handle == "=false" else None
    value: Any = msgspec.json.decode(handle[1:])
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value if isinstance(value, bool) else None


def resolve_output(run: RunState) -> tuple[Arg, list[str]]:
    """The run's result, and the addresses of required steps of it that did not succeed."""
    output = run.graph.plan.output
    if output is None:
        return NULL, []
    refs = run.graph.output_refs
    missing: dict[str, None] = {}
    _missing(run, output, missing)
    if missing:
        return NULL, list(missing)
    return _resolve(run, refs, run.constants, output), []


def _missing(run: RunState, slot: Slot, missing: dict[str, None]) -> None:
    if isinstance(slot, Ref):
        upstream = run.states[run.graph.output_refs[slot.step]]
        if slot.default < 0 and upstream.status != SUCCEEDED:
            missing[upstream.node.address] = None
    elif isinstance(slot, ListOf):
        for item in slot.items:
            _missing(run, item, missing)
    elif not isinstance(slot, (Const, SignalValue)):
        for item in slot.items.values():
            _missing(run, item, missing)
