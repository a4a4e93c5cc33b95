"""Slots to arguments: Refs, constants, signals, items and state replaced by the handles of their values."""

from __future__ import annotations

from typing import Any

import msgspec

from treadle.core.addresses import encode_id
from treadle.core.blocks import Spec
from treadle.core.events import NULL, Arg, ArgList, ArgMap, Handle, Items, Pick
from treadle.core.graph import NO_REFS, Node, link_output
from treadle.core.plan import (
    Body,
    Branch,
    Const,
    Data,
    Given,
    Group,
    Index,
    Item,
    LaneValue,
    ListOf,
    MapOf,
    Phase,
    Phases,
    Ref,
    SignalValue,
    Slot,
    StateValue,
    Triggers,
)
from treadle.core.progress import ChooseProgress, GatherProgress, PhasesProgress
from treadle.core.state import IterationState, RunState, ScopeState, settled
from treadle.core.tables import SUCCEEDED


class UnresolvedError(Exception):
    """A required value is not there; `blame` is the address of the block that did not give it, if it is one."""

    def __init__(self, message: str, blame: str = "") -> None:
        super().__init__(message)
        self.blame = blame


def resolve_args(run: RunState, node: Node, slots: dict[str, Slot]) -> dict[str, Arg]:
    """The arguments of a step whose needs are settled.

    Raises:
        UnresolvedError: a Ref to a row that was not executed, or a variable that is not set; both without a default.
    """
    constants = node.constants if node.constants is not None else run.constants
    args: dict[str, Arg] = {}
    for name, slot in slots.items():
        if type(slot) is Const:
            args[name] = constants[slot.index]
        elif type(slot) is Ref:
            number = node.refs[slot.step]
            # The plain case of `_resolve_ref`.
            if not slot.path and number >= 0 and (upstream := run.states[number]).status == SUCCEEDED:
                args[name] = upstream.result
            else:
                args[name] = _resolve_ref(run, node, constants, slot)
        elif (
            type(slot) is Item
            and not slot.level
            and not slot.path
            and (scope := node.scope) is not None
            and type(iteration := run.states[scope.number]) is IterationState
        ):
            # The plain case of `_resolve_item`.
            args[name] = _item_of(iteration)
        else:
            args[name] = _resolve(run, node, constants, slot)
    return args


def _item_of(iteration: ScopeState) -> Arg:
    """The item of an iteration."""
    progress = iteration.around.block
    assert isinstance(progress, GatherProgress)
    items = progress.items
    if type(items) is Items:
        chunk, place = divmod(iteration.index, items.size)
        return Pick(items.chunks[chunk], (place,))
    assert isinstance(items, list)
    return items[iteration.index]


def resolve(run: RunState, node: Node, slot: Slot) -> Arg:
    """The argument of one slot; see `resolve_args`."""
    return _resolve(run, node, node.constants if node.constants is not None else run.constants, slot)


def _resolve(run: RunState, node: Node, constants: list[Handle], slot: Slot) -> Arg:
    match slot:
        case Const():
            return constants[slot.index]
        case Ref():
            return _resolve_ref(run, node, constants, slot)
        case Item() | Index():
            return _resolve_item(run, node, slot)
        case StateValue() | LaneValue():
            return _resolve_variable(run, node, constants, slot)
        case ListOf():
            return ArgList(_resolve_items(run, node, constants, slot.items))
        case MapOf():
            return _resolve_map(run, node, constants, slot)
        case SignalValue() | Data() | Given():
            return _resolve_run_value(run, slot)
        case Triggers():
            return ArgList(list(run.constants))
        case _:
            return _phase_info(run, node, slot.fact)


def _resolve_items(run: RunState, node: Node, constants: list[Handle], slots: list[Slot]) -> list[Arg]:
    states, refs = run.states, node.refs
    found: list[Arg] = []
    for slot in slots:
        # The plain case of `_resolve_ref`, as in `resolve_args`: a join has as many as there are steps before it.
        if type(slot) is Ref and not slot.path and (number := refs[slot.step]) >= 0:
            upstream = states[number]
            if upstream.status == SUCCEEDED:
                found.append(upstream.result)
                continue
        found.append(_resolve(run, node, constants, slot))
    return found


def _resolve_run_value(run: RunState, slot: SignalValue | Data | Given) -> Arg:
    """A value of the run as a whole."""
    if isinstance(slot, SignalValue):
        return run.signals.get(slot.name, NULL)
    if isinstance(slot, Given):
        return slot.value
    if slot.name not in run.data_names:
        raise UnresolvedError(f"the run was started without {slot.name!r} in its data")
    return Pick(run.data, (slot.name,))


def _resolve_map(run: RunState, node: Node, constants: list[Handle], slot: MapOf) -> Arg:
    found: dict[str, Arg] = {}
    for key, item in slot.items.items():
        try:
            found[key] = _resolve(run, node, constants, item)
        except UnresolvedError:
            if not slot.partial:
                raise
    return ArgMap(found)


def _resolve_ref(run: RunState, node: Node, constants: list[Handle], ref: Ref) -> Arg:
    number = node.refs[ref.step]
    status = "not executed"
    if number >= 0:
        upstream = run.states[number]
        status = upstream.status
        if status == SUCCEEDED:
            result = upstream.result
            if ref.path:
                return picked(result, ref.path) if type(result) is not str else Pick(result, ref.path)
            return result
    if ref.default >= 0:
        return constants[ref.default]
    at = run.states[number].node.address if number >= 0 else ref.step
    raise UnresolvedError(f"{at!r} is {status}, and its result is required", at)


def picked(arg: Arg, path: tuple[str | int, ...]) -> Arg:
    """A part of an argument.

    Raises:
        UnresolvedError: there is no such part, as far as the kernel can see.
    """
    for position, part in enumerate(path):
        items: Any
        if isinstance(arg, (ArgList, ArgMap)):
            items = arg.items
        elif isinstance(arg, Pick):
            return Pick(arg.value, arg.path + path[position:])
        else:
            return Pick(arg, path[position:])
        try:
            arg = items[part]
        except (LookupError, TypeError):
            raise UnresolvedError(f"the value has nothing at {part!r}") from None
    return arg


# -- where a node stands ---------------------------------------------------------------------------------------------


def _resolve_item(run: RunState, node: Node, slot: Item | Index) -> Arg:
    level = slot.level
    scope = node if not node.is_step else node.scope
    while scope is not None:
        around = scope.scope
        if isinstance(scope.spec, Body):
            if level == 0:
                iteration = run.states[scope.number]
                assert isinstance(iteration, IterationState)
                if isinstance(slot, Item):
                    item = _item_of(iteration)
                    return picked(item, slot.path) if slot.path else item
                return handle_of(iteration.index)
            level -= 1
        scope = around
    raise UnresolvedError("there is no gather around, so there is no item")


def phases_around(run: RunState, node: Node) -> tuple[ScopeState, ScopeState | None] | None:
    """The innermost Phases block around a node, with the row of it that the node lies in; None if there is none."""
    scope: Node | None = node
    while scope is not None:
        if isinstance(scope.spec, Phases):
            found = run.states[scope.number]
            assert isinstance(found, ScopeState)
            return found, None
        if isinstance(scope.spec, Phase):
            row = run.states[scope.number]
            assert isinstance(row, ScopeState)
            return row.around, row
        scope = scope.scope
    return None


def _resolve_variable(run: RunState, node: Node, constants: list[Handle], slot: StateValue | LaneValue) -> Arg:
    found = phases_around(run, node)
    values: dict[str, Arg] = {}
    if found is not None:
        block, row = found
        progress = block.block
        assert isinstance(progress, PhasesProgress)
        seen = progress if row is None or row.sight is None else row.sight
        values = seen.state if isinstance(slot, StateValue) else seen.previous
    name = slot.name if isinstance(slot, StateValue) else slot.lane
    if name in values:
        return picked(values[name], slot.path) if slot.path else values[name]
    if slot.default >= 0:
        return constants[slot.default]
    what = "variable" if isinstance(slot, StateValue) else "value of lane"
    raise UnresolvedError(f"there is no {what} {name!r}, and none is given as a default")


# What a cell is told of its place, and what a rule is (it stands outside of the rows) of what a row has left.
_OF_CELLS = ("phase", "index", "step", "entry", "state", "previous", "pending")
_OF_RULES = ("policy", "phase", "index", "step", "entry", "state", "lanes", "pending", "phases", "outcomes")
# What a compensating phase is told of the row that it compensates.
_OF_COMPENSATIONS = ("phase", "index", "step", "entry", "state", "lanes")


def _phase_info(run: RunState, node: Node, name: str) -> Arg:
    """One fact of what a cell or a rule is told, or all of them for ""; null for one that there is not."""
    found = phases_around(run, node)
    if found is None:
        raise UnresolvedError("there is no Phases block around")
    block, row = found
    progress = block.block
    assert isinstance(progress, PhasesProgress)
    names = _OF_RULES if row is None else _OF_COMPENSATIONS if row.takes_back is not None else _OF_CELLS
    if name:
        return _fact(run, progress, row, name) if name in names else NULL
    return ArgMap({each: _fact(run, progress, row, each) for each in names})


def outcomes_of(run: RunState, row: ScopeState) -> dict[str, str]:
    """What became of the cells of a row, by lane; `detached` of those that nobody waits for."""
    phase = row.node.spec
    assert isinstance(phase, Phase)
    found: dict[str, str] = {}
    for block in phase.blocks:
        cell = run.find(row.node, encode_id(block.id))
        assert cell is not None
        found[block.id] = "detached" if block.id in phase.detached else run.states[cell.number].status
    return found


def phase_ids(block: ScopeState) -> list[str]:
    """The ids of a block's phases, in their order."""
    spec = block.node.spec
    assert isinstance(spec, Phases)
    return [phase.id for phase in spec.phases]


def _fact(run: RunState, progress: PhasesProgress, row: ScopeState | None, name: str) -> Arg:
    sight = row.sight if row is not None else None
    seen = progress if sight is None else sight
    if name == "state":
        return ArgMap(seen.state)
    if name in ("previous", "lanes"):
        return ArgMap(seen.previous)
    if name == "pending":
        # By lane, those of earlier rows that have not ended.
        return handle_of(pending_of(run, progress) if sight is None else sight.pending)
    at = row if row is not None else progress.row
    if name in ("phases", "outcomes"):
        assert at is not None
        return handle_of(phase_ids(at.around) if name == "phases" else outcomes_of(run, at))
    if at is not None:
        at = at.takes_back or at
    if at is None or at.sight is None:
        return NULL
    if name == "step":
        return handle_of(at.index)
    if name == "entry":
        return handle_of(at.sight.entry)
    phase = at.node.spec
    assert isinstance(phase, Phase)
    if name == "index":
        # The block of the row that is told of: a row inside a compensating phase is told of that of another block.
        around = at.around.block
        assert isinstance(around, PhasesProgress)
        return handle_of(around.phases[phase.id].position)
    return handle_of(phase.policy if name == "policy" else phase.id)


def pending_of(run: RunState, progress: PhasesProgress) -> dict[str, int]:
    """Detached cells that have not ended, by lane."""
    counts: dict[str, int] = {}
    for cell in progress.background:
        if not settled(cell):
            lane = lane_of(cell.node.spec)
            counts[lane] = counts.get(lane, 0) + 1
    return counts


def lane_of(spec: Spec | None) -> str:
    """The lane of a cell: its id."""
    return getattr(spec, "id", "")


# -- values that the kernel sees -------------------------------------------------------------------------------------


def handle_of(value: object) -> Handle:
    """The handle of a small value that the kernel itself makes."""
    return f"={value}" if type(value) is int else "=" + msgspec.json.encode(value).decode()


def is_inline(arg: Arg) -> bool:
    """Whether the core can see the value of an argument: all of it rides in events."""
    if isinstance(arg, str):
        return arg.startswith("=")
    if isinstance(arg, Pick):
        return arg.value.startswith("=")
    items = arg.items if isinstance(arg, ArgList) else arg.items.values()
    return all(is_inline(item) for item in items)


def value_of(arg: Arg) -> Any:
    """The value of an argument that is inline.

    Raises:
        LookupError: a path leads to nothing in it.
    """
    if isinstance(arg, str):
        return msgspec.json.decode(arg[1:])
    if isinstance(arg, ArgList):
        return [value_of(item) for item in arg.items]
    if isinstance(arg, ArgMap):
        return {key: value_of(item) for key, item in arg.items.items()}
    value: Any = msgspec.json.decode(arg.value[1:])
    for part in arg.path:
        try:
            value = value[part]
        except TypeError:
            raise LookupError(part) from None
    return value


def list_of(arg: Handle | Pick) -> list[Arg] | None:
    """The items of a list that the kernel sees, as handles; None if it cannot see it, or it is no list."""
    if not is_inline(arg):
        return None
    try:
        # Kept as their texts, so that nothing is lost.
        text = arg[1:] if isinstance(arg, str) else msgspec.json.encode(value_of(arg))
        raws = msgspec.json.decode(text, type=list[msgspec.Raw])
    except (LookupError, msgspec.MsgspecError):
        return None
    return ["=" + bytes(raw).decode() for raw in raws]


def known_items(items: Arg) -> list[Arg] | None:
    """The items of a gather as far as the kernel sees them; None if a worker has to look."""
    if isinstance(items, ArgList):
        return items.items
    return list_of(items) if isinstance(items, (str, Pick)) else None


def truth_of(arg: Arg) -> bool | None:
    """The bool behind an argument; None if it is not one, or not at hand."""
    if isinstance(arg, str):
        return True if arg == "=true" else False if arg == "=false" else None
    if not is_inline(arg):
        return None
    try:
        value = value_of(arg)
    except LookupError:
        return None
    return value if isinstance(value, bool) else None


# -- values of scopes and of the run ---------------------------------------------------------------------------------


def scope_value(run: RunState, scope: ScopeState) -> Arg:
    """The value of a scope that succeeds.

    Raises:
        UnresolvedError: a step that its output requires did not succeed.
    """
    spec, progress = scope.node.spec, scope.block
    if progress is None:
        output = spec.output if isinstance(spec, (Body, Group, Branch)) else None
        if output is not None and scope.node.refs is NO_REFS:
            # An iteration that was cast; in most of them nobody asks.
            link_output(scope.node, output, run)
        return NULL if output is None else resolve(run, scope.node, output)
    if isinstance(progress, GatherProgress):
        return progress.value()
    if isinstance(progress, ChooseProgress):
        return progress.scope.result if progress.scope is not None else NULL
    return _phases_value(run, scope, progress)


def _phases_value(run: RunState, scope: ScopeState, progress: PhasesProgress) -> Arg:
    spec, node = scope.node.spec, scope.node
    assert isinstance(spec, Phases)
    if spec.output is None:
        return ArgMap(progress.state)
    # Its names mean the rows as they are at the end.
    inside = Node(node.number, node.address, node, None, constants=node.constants)
    link_output(inside, spec.output, run)
    return resolve(run, inside, spec.output)


def resolve_output(run: RunState) -> tuple[Arg, list[str]]:
    """The run's result, and the addresses of required steps of it that did not succeed."""
    output = run.graph.plan.output
    if output is None:
        return NULL, []
    missing: dict[str, None] = {}
    _missing(run, output, missing)
    if missing:
        return NULL, list(missing)
    return _resolve(run, run.root.node, run.constants, output), []


def _missing(run: RunState, slot: Slot, missing: dict[str, None]) -> None:
    if isinstance(slot, Ref):
        upstream = run.states[run.root.node.refs[slot.step]]
        if slot.default < 0 and upstream.status != SUCCEEDED:
            missing[upstream.node.address] = None
    elif isinstance(slot, ListOf):
        for item in slot.items:
            _missing(run, item, missing)
    elif isinstance(slot, MapOf):
        for item in slot.items.values():
            _missing(run, item, missing)
