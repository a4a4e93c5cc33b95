"""The oracle: reads the journals alone, computes what they should say, and compares.

Slots are resolved here a second time, by a few lines that know nothing of the core's own resolution.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from treadle.core import events as ev
from treadle.core.apply import apply
from treadle.core.children import child_key
from treadle.core.events import Arg, ArgList, ArgMap, Handle, Pick, decode_events
from treadle.core.graph import Graph, Node
from treadle.core.plan import (
    Const,
    Data,
    Given,
    Index,
    Item,
    LaneValue,
    ListOf,
    MapOf,
    PhaseInfo,
    Predicate,
    Ref,
    SignalValue,
    StateValue,
    Triggers,
    decode_plan,
)
from treadle.core.state import RunState, StepState, settled
from treadle.core.tables import RUNNING, SUCCEEDED, UNWINDING
from treadle.core.undo import UNFINISHED
from treadle.core.values import bare
from treadle.errors import InternalError
from treadle.runtime.folding import state_of
from treadle.runtime.payloads import chunks_of, joined
from treadle.store.base import StepRow
from treadle.testing.invariants import ANSWERS, BLOCKS, CALLS, EFFECTS, FOLD, RESULTS, ROWS, Fail, Journal
from treadle.testing.sim_blocks import back_value, cell_value, rule_truth, yielded
from treadle.testing.sim_codec import decoded, inline_text
from treadle.testing.sim_conduct import Shelf, effects_fault, truth_of, value_of
from treadle.testing.sim_steps import EFFECTIVE, OWN
from treadle.testing.sim_undo import UndoOracle
from treadle.testing.sim_walks import UNKNOWN, Blocks, stable


class Oracle:
    """Judges one run's journal."""

    def __init__(self, journal: Journal, blobs: Shelf, fail: Fail) -> None:
        self.journal = journal
        self.run = journal.run
        self.blobs = blobs
        self.fail = fail
        self._undo = UndoOracle(fail)
        self._values: dict[Handle, Any] = {}
        # Step number -> its arguments at its last dispatch.
        self._arguments: dict[int, dict[str, Any] | None] = {}
        # Step number -> what its condition must be, by the values that there were when it was asked for.
        self._conditions: dict[int, Any] = {}
        self.state: RunState | None = None
        # Outcomes of steps that call a run: address, the child's key, outcome, value.
        self.called: list[tuple[str, str, str, Any]] = []
        # Values of all outcomes that the run ever had, in order.
        self.outcomes: list[tuple[str, Any]] = []
        # Address -> all results that the step ever had.
        self.results: dict[str, list[Any]] = {}
        # Successes of steps that give records, with the names of their conducts.
        self.made: list[tuple[ev.StepSucceeded, str]] = []
        self.blocks = Blocks(self.resolve, self.value, self.assembled, fail)

    def judge(self) -> None:
        """Fold the journal event by event, and check each."""
        head = self.run.head
        state = state_of(head, Graph(decode_plan(self.run.plan)))
        self.state = state
        for row in self.run.rows:
            state.now = row.time
            events = decode_events(row.events) if isinstance(row.events, str) else row.events
            for event in events:
                try:
                    self._before(state, event)
                    self.blocks.before(state, event)
                    apply(state, event)
                except (InternalError, AssertionError, LookupError) as error:
                    self.fail(FOLD, f"{head.id}@{row.version} {event}: {error!r}")
                    return
                self._after(state, event)
                self._undo.after(state, event)
                try:
                    self.blocks.after(state, event)
                except (AssertionError, LookupError) as error:
                    self.fail(BLOCKS, f"{head.id}@{row.version} {event}: {error!r}")
                    return
                self._note_value(event)
            state.version = row.version
        self._rows(state)

    def _note_call(self, state: RunState, event: ev.AnyEvent) -> None:
        if not isinstance(event, ev.StepSucceeded | ev.StepFailed):
            return
        step = state.step_at(event.at)
        if step is None or step.spec.child is None:
            return
        key = child_key(state.key, event.at, step.generation)
        if isinstance(event, ev.StepSucceeded):
            self.called.append((event.at, key, "succeeded", self.value(event.result)))
        elif event.failure.code == "child_failed":
            self.called.append((event.at, key, "failed", None))
        elif event.failure.code == "child_cancelled":
            self.called.append((event.at, key, "cancelled", None))

    def _before(self, state: RunState, event: ev.AnyEvent) -> None:
        self._note_call(state, event)
        if isinstance(event, ev.StepSucceeded):
            step = state.step_at(event.at)
            assert step is not None
            arguments = self._arguments.get(step.node.number)
            found = self.value(event.result)
            self.results.setdefault(event.at, []).append(found)
            if arguments is not None and not self._is_right(step, event, found, arguments):
                text = f"{state.run_id} {event.at}: {_cut(found)} for {_cut(arguments)}"
                self.fail(RESULTS, text)
            if arguments is not None and "conduct" in arguments and step.spec.action in EFFECTIVE:
                self.made.append((event, arguments["conduct"]["name"]))
                fault = effects_fault(arguments["conduct"], event.effects, event.at, self.value)
                if fault:
                    self.fail(EFFECTS, f"{state.run_id} {event.at}: {fault}")
        elif isinstance(event, ev.EvaluationAsked):
            step = state.step_at(event.at)
            assert step is not None
            self._conditions.pop(step.node.number, None)
            if step.spec.when is not None and step.condition is not True:
                # A path that leads to nothing: the condition must fail, so it must not be evaluated.
                with suppress(LookupError, TypeError):
                    self._conditions[step.node.number] = self._truth(state, step)
        elif isinstance(event, ev.StepsReopened):
            for at in (*event.at, *event.removed):
                self._conditions.pop(state.number_of(at) or 0, None)
        elif isinstance(event, ev.ConditionEvaluated):
            step = state.step_at(event.at)
            assert step is not None
            self._condition(state, step, event)

    def _is_right(self, step: StepState, event: ev.StepSucceeded, found: Any, arguments: dict[str, Any]) -> bool:
        """Whether a step gave what its function gives; only those of the simulation's own workload are known."""
        if step.spec.action in ("sim:cell", "sim:sure-cell"):
            patch = {name: self.value(handle) for name, handle in (event.patch or {}).items()}
            return (found, patch) == cell_value(event.at, stable(arguments["cell"]))
        if step.spec.action == "sim:back":
            return bool(found == back_value(event.at, stable(arguments["told"])))
        if step.spec.action == "sim:rule":
            return found is rule_truth(stable(arguments["row"]))
        if step.spec.action == "sim:spring":
            return bool(found == yielded(arguments["conduct"], arguments["values"]))
        if step.spec.action in ("sim:truth", "sim:heavy-truth"):
            return found is truth_of(arguments["value"], arguments["salt"])
        return step.spec.action not in OWN or found == value_of(arguments["conduct"], arguments["values"])

    def _condition(self, state: RunState, step: StepState, event: ev.ConditionEvaluated) -> None:
        number = step.node.number
        expected = self._conditions.pop(number) if number in self._conditions else self._truth(state, step)
        if expected is not UNKNOWN and event.value is not expected:
            self.fail(RESULTS, f"{state.run_id} {event.at}: its condition is {expected}, not {event.value}")

    def _truth(self, state: RunState, step: StepState) -> Any:
        """What a step's condition is as the run stands."""
        when = step.spec.when
        assert when is not None
        if not isinstance(when, Predicate):
            return self.resolve(state, step.node, when)
        slots = {name: self.resolve(state, step.node, slot) for name, slot in when.slots.items()}
        return truth_of(slots["value"], slots["salt"]) if when.name in OWN else UNKNOWN

    def _after(self, state: RunState, event: ev.AnyEvent) -> None:
        if isinstance(event, ev.StepDispatched):
            step = state.step_at(event.at)
            assert step is not None
            try:
                self._arguments[step.node.number] = {
                    name: self.resolve(state, step.node, slot) for name, slot in step.spec.slots.items()
                }
            except (LookupError, TypeError):
                # A path that leads to nothing: the attempt must fail, which its event shows.
                self._arguments[step.node.number] = None
        elif isinstance(event, ev.RunSettled):
            try:
                self.outcomes.append((event.outcome, self.assembled(event.result)))
            except LookupError:
                self.outcomes.append((event.outcome, None))

    def _note_value(self, event: ev.AnyEvent) -> None:
        """Values of blocks are answers too."""
        ended: list[str] = event.addresses() if isinstance(event, ev.IterationsSettled) else []
        if isinstance(event, ev.ScopeSettled) and event.outcome == SUCCEEDED:
            ended = [event.at]
        for at in ended:
            self.results.setdefault(at, []).append(self.blocks.values.get(at))

    # -- values --------------------------------------------------------------------------------------------------

    def value(self, handle: Handle) -> Any:
        """The value behind a handle."""
        if handle not in self._values:
            text = self._text(handle)
            chunks = chunks_of(text)
            if chunks is not None:
                text = joined([self._text(chunk) for chunk in chunks.chunks])
            self._values[handle] = msgspec.json.decode(text)
        return self._values[handle]

    def _text(self, handle: Handle) -> str:
        where = bare(handle)
        if where[0] == "=":
            return inline_text(handle)
        return decoded(self.run.payloads[where[1:]] if where[0] == "@" else self.blobs.ever(where[1:])).decode()

    def assembled(self, arg: Arg) -> Any:
        """The value of an argument."""
        if isinstance(arg, str):
            return self.value(arg)
        if isinstance(arg, Pick):
            value = self.value(arg.value)
            for part in arg.path:
                value = value[part]
            return value
        if isinstance(arg, ArgList):
            return [self.assembled(item) for item in arg.items]
        assert isinstance(arg, ArgMap)
        return {key: self.assembled(item) for key, item in arg.items.items()}

    def resolve(self, state: RunState, node: Node, slot: Any) -> Any:
        """The value of a slot as the run stands.

        Raises:
            LookupError, TypeError: there is none, and no default.
        """
        constants = node.constants if node.constants is not None else state.constants
        match slot:
            case Const():
                return self.value(constants[slot.index])
            case Ref():
                number = node.refs[slot.step]
                if number >= 0 and (upstream := state.states[number]).status == SUCCEEDED:
                    return _part(self.blocks.result(upstream), slot.path)
                return self._default(constants, slot)
            case SignalValue():
                return self.value(state.signals[slot.name])
            case Triggers():
                return [self.value(handle) for handle in state.constants]
            case Data():
                return self.value(state.data)[slot.name]
            case ListOf():
                return [self.resolve(state, node, item) for item in slot.items]
            case MapOf():
                return self._map(state, node, slot)
            case _:
                return self._of_place(state, node, constants, slot)

    def _of_place(self, state: RunState, node: Node, constants: list[Handle], slot: Any) -> Any:
        """The value of a slot that depends on where its reader stands."""
        match slot:
            case Item() | Index():
                item, index = self.blocks.item(state, node, slot.level)
                return index if isinstance(slot, Index) else _part(item, slot.path)
            case StateValue() | LaneValue():
                return self._variable(state, node, constants, slot)
            case PhaseInfo(fact=fact):
                return self.blocks.told(state, node, fact)
            case Given(value=arg):
                return self.assembled(arg)
            case _:
                raise AssertionError(slot)

    def _map(self, state: RunState, node: Node, slot: MapOf) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in slot.items.items():
            try:
                found[key] = self.resolve(state, node, item)
            except LookupError:
                if not slot.partial:
                    raise
        return found

    def _default(self, constants: list[Handle], slot: Ref | StateValue | LaneValue) -> Any:
        if slot.default < 0:
            raise LookupError(slot)
        return self.value(constants[slot.default])

    def _variable(self, state: RunState, node: Node, constants: list[Handle], slot: StateValue | LaneValue) -> Any:
        try:
            if isinstance(slot, StateValue):
                value = self.blocks.variable(state, node, slot.name)
            else:
                value = self.blocks.lane(state, node, slot.lane)
        except LookupError:
            return self._default(constants, slot)
        return _part(value, slot.path)

    # -- rows ------------------------------------------------------------------------------------------------------

    def _rows(self, state: RunState) -> None:
        """Compare the rows beside the journal with it."""
        run = self.run
        if state.states and run.unwound != state.root.unwound and state.status != UNWINDING:
            self.fail(ROWS, f"{state.run_id}: stored {run.unwound!r}; journal {state.root.unwound!r}")
        if run.status != (state.status or RUNNING) or (run.hold != state.hold and state.status == RUNNING):
            text = f"{state.run_id}: stored {run.status}, hold {run.hold}; journal {state.status}, hold {state.hold}"
            self.fail(ROWS, text)
        for step in state.steps():
            row = run.steps.get(step.node.number)
            if not settled(step):
                if row is not None and not step.removed:
                    self.fail(
                        ROWS, f"{state.run_id} {step.node.address} is {step.status} and has a row of {row.status}"
                    )
            elif row is None:
                # A step that its rewound adder did not add again is taken back without an event of its own.
                if not (step.status == "skipped" and step.finished_at == 0):
                    self.fail(ROWS, f"{state.run_id} {step.node.address} is {step.status} and has no row")
            elif (row.status, row.result, row.generation, row.attempt) != (
                step.status,
                step.result,
                step.generation,
                step.attempt,
            ) or _undo_differs(row, step):
                self.fail(ROWS, f"{state.run_id} {step.node.address}: {row}, journal {step.status} {step.result}")


def _undo_differs(row: StepRow, step: StepState) -> bool:
    """Whether the row tells another end of the undo than the journal; one that goes on is not written."""
    undo = step.undo
    return undo is not None and undo.status not in UNFINISHED and undo.status != row.undo


def _part(value: Any, path: Iterable[str | int]) -> Any:
    for part in path:
        value = value[part]
    return value


class Told:
    """What a client was told of a run."""

    __slots__ = ("error", "key", "kind", "step", "value")

    def __init__(self, kind: str, key: str, value: Any, error: Exception | None, step: str = "") -> None:
        self.kind = kind
        self.key = key
        self.value = value
        self.error = error
        self.step = step


# The error that a run's outcome becomes for who awaits its result.
_OUTCOME_OF = {"RunFailedError": "failed", "RunCancelledError": "cancelled", "StepSkippedError": "succeeded"}


def judge(
    journals: Mapping[str, Journal], blobs: Shelf, told: Iterable[Told], gone: Container[str], fail: Fail
) -> Mapping[str, Oracle]:
    """Judge all journals, and compare what clients were told with them; gives the oracle of each run.

    `gone` are runs that were deleted; a world that began with a backup may never have seen their journals.
    """
    oracles: dict[str, Oracle] = {}
    for key, journal in journals.items():
        oracle = oracles[key] = Oracle(journal, blobs, fail)
        oracle.judge()
    for oracle in oracles.values():
        _check_calls(oracle, oracles, gone, fail)
    for one in told:
        _compare(one, oracles[one.key], fail)
    return oracles


def _check_calls(oracle: Oracle, oracles: Mapping[str, Oracle], gone: Container[str], fail: Fail) -> None:
    """Compare what steps got from the runs that they called with what those gave."""
    for at, key, outcome, value in oracle.called:
        child = oracles.get(key)
        if child is None:
            if key not in gone:
                fail(CALLS, f"{oracle.run.head.id} {at} is {outcome} by run {key}, which never was")
        elif value is not None and isinstance(value, str) and value == child.run.head.id:
            # A detached call.
            continue
        elif (outcome, value) not in [(one, given if one == "succeeded" else None) for one, given in child.outcomes]:
            fail(CALLS, f"{oracle.run.head.id} {at} is {outcome} with {_cut(value)}; run {key} {_cut(child.outcomes)}")


def _compare(told: Told, oracle: Oracle, fail: Fail) -> None:
    name = oracle.run.head.id
    if told.kind == "result":
        if told.error is None and ("succeeded", told.value) not in oracle.outcomes:
            fail(ANSWERS, f"{name} gave {_cut(told.value)}; its outcomes are {_cut(oracle.outcomes)}")
        outcome = _OUTCOME_OF.get(type(told.error).__name__)
        if outcome is not None and outcome not in [one for one, _ in oracle.outcomes]:
            fail(ANSWERS, f"{name} was {told.error!r}; its outcomes are {_cut(oracle.outcomes)}")
    elif told.error is None and told.value not in oracle.results.get(told.step, []):
        fail(ANSWERS, f"step {told.step} of {name} gave {_cut(told.value)}, which it never had")


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) < 300 else text[:300] + "..."
