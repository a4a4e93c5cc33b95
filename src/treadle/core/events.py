"""Events: the facts of a run's journal, in the past tense.

A stored kind never changes its meaning; an unknown kind stops the load. Times are seconds since the epoch.
`at` is an address, `cause` the id of the inbox input that led to the event. Payloads are handles: `=` and JSON text for
a small one, `@` and the digest of a payload row, `#` of a blob; before it `!` and a key id if a codec has encoded it.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import msgspec

from treadle.core.effects import Effects
from treadle.core.plan import Block, Move
from treadle.core.values import NULL as NULL
from treadle.core.values import Arg as Arg
from treadle.core.values import ArgList as ArgList
from treadle.core.values import ArgMap as ArgMap
from treadle.core.values import Failure as Failure
from treadle.core.values import Handle as Handle
from treadle.core.values import Items as Items
from treadle.core.values import Pick as Pick
from treadle.core.values import Window as Window
from treadle.core.values import kind_of as kind_of


class Event(msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True, kw_only=True, gc=False):
    """The root of all events."""

    cause: str = ""


class RunStarted(Event, frozen=True, tag="run_started"):
    """The run began; its plan, constants and labels are in the head. No step starts before `not_before`.

    `depth` counts the runs that called each other down to this one; `parent` (key and address) waits for its outcome.
    `singleton` is a name that it is in the line of until it is closed; `trigger` is the first that its `window` took.
    """

    at: str = ""
    not_before: float = 0.0
    depth: int = 0
    parent: str = ""
    on_failure: str = ""
    singleton: str = ""
    window: Window | None = None
    trigger: str = ""


class StepsAdded(Event, frozen=True, tag="steps_added"):
    """A step (`by`) added blocks to the scope `into`; those that a rewind had removed there come back.

    `aliases` are further names in that scope (segments) of steps that the run held already by their dedup key.
    `worker` executed it, and is named where any of the blocks is to run there.
    """

    by: str
    into: str
    blocks: list[Block]
    constants: list[Handle] = []
    aliases: dict[str, str] = {}
    worker: str = ""


class StepsReady(Event, frozen=True, tag="steps_ready"):
    """No fence holds these steps; they wait until the run may have more tasks in the store."""

    at: list[str]


class StepDispatched(Event, frozen=True, tag="step_dispatched"):
    """An attempt may start, not before `not_before` (0: at once); `deadline` is when a step that is polled gives up."""

    at: str
    attempt: int = 1
    generation: int = 1
    not_before: float = 0.0
    deadline: float = 0.0


class ChildStarted(Event, frozen=True, tag="child_started"):
    """The attempt has made the run that the step calls, or has found it; the step waits for its end."""

    at: str
    attempt: int
    child: str
    id: str = ""
    session: str = ""
    token: int = 0
    started_at: float = 0.0
    worker: str = ""


class PrepareDispatched(Event, frozen=True, tag="prepare_dispatched"):
    """The first half of a step with undo may start. `number` counts what workers were asked beside attempts."""

    at: str
    number: int = 1
    generation: int = 1
    not_before: float = 0.0


class StepPrepared(Event, frozen=True, tag="step_prepared"):
    """The step's undo state is known, once and for all of this generation; its action may be dispatched."""

    at: str
    attempt: int
    state: Handle = NULL
    session: str = ""
    token: int = 0
    started_at: float = 0.0


class StepSucceeded(Event, frozen=True, tag="step_succeeded"):
    """The step's last attempt succeeded with `result`.

    `patch` are variables of the Phases block around, set when its row has succeeded. `items` are what the evaluation
    of a gather's items found. `effects` is what it has made beside its value. `worker` is the id of the session's
    worker, told by the first event of a run that names the session.
    """

    at: str
    attempt: int
    result: Handle = NULL
    session: str = ""
    token: int = 0
    started_at: float = 0.0
    patch: dict[str, Handle] | None = None
    items: Items | None = None
    effects: Effects | None = None
    worker: str = ""


class AttemptFailed(Event, frozen=True, tag="attempt_failed"):
    """An attempt failed and the step goes on: another attempt follows, or its run is being cancelled.

    `progress` is what it reported last, here and in the events of other attempts that did not succeed.
    """

    at: str
    attempt: int
    failure: Failure
    session: str = ""
    token: int = 0
    started_at: float = 0.0
    progress: str = ""


class AttemptLost(Event, frozen=True, tag="attempt_lost"):
    """The session that held the attempt died."""

    at: str
    attempt: int
    session: str = ""
    progress: str = ""


class AttemptEnded(Event, frozen=True, tag="attempt_ended"):
    """An attempt whose step was already settled reported late; kept as evidence, changes no outcome."""

    at: str
    attempt: int
    outcome: str
    session: str = ""


class StepFailed(Event, frozen=True, tag="step_failed"):
    """The step's last attempt failed, or (attempt 0) it could not be started."""

    at: str
    attempt: int
    failure: Failure
    session: str = ""
    token: int = 0
    started_at: float = 0.0
    progress: str = ""


class StepSkipped(Event, frozen=True, tag="step_skipped"):
    """The step will not run, for one of these reasons.

    - condition: its own condition is false;
    - upstream: because of `causes`;
    - removed: a rewind took it back, and the step that had added it (`causes`) did not add it again.

    `by_condition` tells whether the causes were themselves skipped by a condition: such a skip fails nothing.
    """

    at: str
    reason: str
    causes: list[str] = []
    by_condition: bool = False


class StepCancelled(Event, frozen=True, tag="step_cancelled"):
    """The step was cancelled with its run; `live`: its attempt still executes and will report late."""

    at: str
    live: bool = False
    progress: str = ""


class EvaluationAsked(Event, frozen=True, tag="evaluation_asked"):
    """A worker was asked for the value of the step's condition."""

    at: str
    number: int = 1


class ConditionEvaluated(Event, frozen=True, tag="condition_evaluated"):
    """The step's condition was evaluated, once and for all of this generation."""

    at: str
    value: bool


class KeyEvaluated(Event, frozen=True, tag="key_evaluated"):
    """A worker found the key that the step's queue goes by, for all attempts until the step is opened again."""

    at: str
    key: str


class SignalReceived(Event, frozen=True, tag="signal_received"):
    """The first signal of this name; later ones change nothing."""

    name: str
    value: Handle = NULL


class BreakpointReached(Event, frozen=True, tag="breakpoint_reached"):
    """A step stands at an armed breakpoint (`before` or `after`). Informational: the fence is computed."""

    at: str
    position: str
    labels: tuple[str, ...] = ()


class BreakpointReleased(Event, frozen=True, tag="breakpoint_released"):
    """The breakpoints of a label were released: steps that wait before, and steps held after."""

    label: str
    before: list[str] = []
    after: list[str] = []


class Paused(Event, frozen=True, tag="paused"):
    """No claim of this run is granted while `hold` stands."""

    hold: int


class Resumed(Event, frozen=True, tag="resumed"):
    """The hold was lifted."""


class NameTaken(Event, frozen=True, tag="name_taken"):
    """The run is in the line of a name until it is closed; if it `waits`, nothing of it starts before its turn."""

    name: str
    waits: bool = False


class TurnCame(Event, frozen=True, tag="turn_came"):
    """The runs before this one in the line of a name are closed."""

    name: str


class DeadlinePassed(Event, frozen=True, tag="deadline_passed"):
    """The run's deadline has passed: nothing of it begins any more, and what waits fails."""


class TriggerReceived(Event, frozen=True, tag="trigger_received"):
    """A trigger came into the run's window. With an `attempt` the time until which that waits begins anew."""

    at: str
    name: str
    args: list[Handle]
    attempt: int = 0
    not_before: float = 0.0


class CancelRequested(Event, frozen=True, tag="cancel_requested"):
    """Nothing new starts; `hard` also ends what runs; `unwind` undoes what the run has done when all has ended."""

    hard: bool = False
    unwind: bool = False


class StepsReopened(Event, frozen=True, tag="steps_reopened"):
    """An operator's retry or rewind reopened settled steps (and scopes); a rewind gives them the next generation."""

    at: list[str]
    rewind: bool = False
    # Steps and groups that a rewound step had added; they come back when they are added again.
    removed: list[str] = []
    # Groups that wait again for what they need before their content starts; blocks that go on where they were.
    scopes: list[str] = []
    # Blocks that begin their next entry; what the entry before holds is closed.
    restarted: list[str] = []


class ScopeOpened(Event, frozen=True, tag="scope_opened"):
    """What the group waits for is there; its content may start."""

    at: str


class ScopeSettled(Event, frozen=True, tag="scope_settled"):
    """A group, or all that a step added, has its outcome."""

    at: str
    outcome: str
    causes: list[str] = []
    by_condition: bool = False
    # What failed it, where that is no block in it.
    failure: Failure | None = None


class ScopeStopped(Event, frozen=True, tag="scope_stopped"):
    """What lives in the scope is cancelled, since its outcome does not need it (failed, met) or somebody says so.

    That is cancelled; of a compensating phase also skipped, parked, and cancelling: what is executed comes to its end.
    """

    at: str
    reason: str


class ScopeAsked(Event, frozen=True, tag="scope_asked"):
    """A block asked a worker for what the kernel cannot see; the evaluation is a step of the block, `~` in front.

    `what` is items (of a gather), rule (of a policy), when (of a branch) or wait (before a row is tried again);
    `index` is the number of the rule or branch, `number` counts the block's questions.
    """

    at: str
    what: Literal["items", "rule", "when", "wait"]
    number: int
    index: int = 0
    delay: float = 0.0


class RowOpened(Event, frozen=True, tag="row_opened"):
    """A Phases block entered a phase for the `entry`-th time; `step` counts its rows from 0, a row tried again once."""

    at: str
    phase: str
    step: int
    entry: int = 1
    # The row before failed, and its phase is tried again.
    again: bool = False


class DecisionMade(Event, frozen=True, tag="decision_made"):
    """What follows a row: `move`, found by a rule of the phase's policy ("": there are no policies).

    `target` is the phase that follows, "" if the block ends. `overwritten` are variables that several cells had set.
    With a `failure` nothing follows: no rule held, one could not be evaluated, or the limit of rows is reached.
    """

    at: str
    step: int
    move: Move
    policy: str = ""
    rule: str = ""
    target: str = ""
    overwritten: list[str] = []
    failure: Failure | None = None


class IterationsOpened(Event, frozen=True, tag="iterations_opened"):
    """A gather opened the iterations of `count` items, from number `start`."""

    at: str
    start: int
    count: int


class IterationsSettled(Event, frozen=True, tag="iterations_settled"):
    """Iterations of a gather's n-th entry succeeded, each with the value that its body makes; one event for many."""

    at: str
    indexes: list[int]
    entry: int = 1

    def addresses(self) -> list[str]:
        """The addresses of the iterations."""
        base = self.at if self.entry == 1 else f"{self.at}#{self.entry}"
        return [f"{base}[{index}]" for index in self.indexes]


class BranchChosen(Event, frozen=True, tag="branch_chosen"):
    """A choose opened a branch; "": no condition held and there is no else."""

    at: str
    branch: str = ""


class RunSettled(Event, frozen=True, tag="run_settled"):
    """The run has its outcome. `result` is its output; `missing` are required steps of the output that did not run.

    `failures` are the addresses of what failed by itself, first one first; `faults` say why, for scopes among them.
    """

    outcome: str
    result: Arg = NULL
    missing: list[str] = []
    failures: list[str] = []
    faults: dict[str, Failure] = {}
    # `fully` or `partly`, if what the run had done was undone.
    unwound: str = ""


class UnwindingStarted(Event, frozen=True, tag="unwinding_started"):
    """What was done below the scope `at` is undone from now on.

    All of it that stands; with `to` only what ended after that step; with `only` that step's. `again` also takes
    undos that have failed or were skipped before. `rewind` is the step that is rewound when it is done.
    """

    at: str = ""
    reason: str = ""
    to: str = ""
    only: str = ""
    again: bool = False
    rewind: str = ""


class UndoDispatched(Event, frozen=True, tag="undo_dispatched"):
    """An attempt to undo the step may start, or (`check`) the question whether that is safe. For `number` see above."""

    at: str
    number: int = 1
    check: bool = False
    not_before: float = 0.0


class ChildAsked(Event, frozen=True, tag="child_asked"):
    """The run that the step has called was asked to undo what it did; its answer ends the step's undo."""

    at: str
    number: int
    session: str = ""


class UndoConfirmed(Event, frozen=True, tag="undo_confirmed"):
    """The step's `reconcile` found that its undo is safe; it is not asked again."""

    at: str
    number: int


class UndoAttemptFailed(Event, frozen=True, tag="undo_attempt_failed"):
    """An attempt to undo failed and another one follows."""

    at: str
    number: int
    failure: Failure
    session: str = ""


class UndoAttemptLost(Event, frozen=True, tag="undo_attempt_lost"):
    """The session that held the attempt to undo died."""

    at: str
    number: int
    session: str = ""


class StepUndone(Event, frozen=True, tag="step_undone"):
    """What the step had done was taken back."""

    at: str
    number: int
    session: str = ""
    started_at: float = 0.0


class UndoFailed(Event, frozen=True, tag="undo_failed"):
    """The last attempt to undo the step (or to compensate the row) failed; what it did stands, the rest goes on."""

    at: str
    failure: Failure
    session: str = ""


class UndoNotCompensable(Event, frozen=True, tag="undo_not_compensable"):
    """The step's undo said that this cannot be undone: what it had done stands, and that is known."""

    at: str
    failure: Failure
    session: str = ""


class UndoNotNeeded(Event, frozen=True, tag="undo_not_needed"):
    """The run that the step has called has done nothing that can be undone."""

    at: str


class CompensationOpened(Event, frozen=True, tag="compensation_opened"):
    """The row `at` is compensated: the compensating phase was entered for the `entry`-th time."""

    at: str
    phase: str
    entry: int = 1


class PhaseCompensated(Event, frozen=True, tag="phase_compensated"):
    """The compensating phase has succeeded: what the phase of the row `at` had done is taken back."""

    at: str


class UndoSkipped(Event, frozen=True, tag="undo_skipped"):
    """The undo is not made: its `reconcile` found it unsafe (`drift`), or an operator said so (`operator`)."""

    at: str
    reason: str


class UndoParked(Event, frozen=True, tag="undo_parked"):
    """The undo is put aside, by a cancel or by an operator: the next unwinding takes it on again."""

    at: str
    reason: str = ""


class UndoReopened(Event, frozen=True, tag="undo_reopened"):
    """An operator asked for an undo once more that had ended without undoing, while its unwinding goes on."""

    at: str


class UnwindingAsked(Event, frozen=True, tag="unwinding_asked"):
    """The run that had called this one undoes the call; it is told the end of that, by the number that it gave."""

    number: int


class UnwindingParked(Event, frozen=True, tag="unwinding_parked"):
    """A cancel stopped the run's unwinding: undos that run finish (`hard`: are interrupted), the rest is parked."""

    hard: bool = False


class Unwound(Event, frozen=True, tag="unwound"):
    """The unwinding of the scope is over; `fully`: nothing that could be undone stands below it."""

    at: str = ""
    fully: bool = True


class InputRefused(Event, frozen=True, tag="input_refused"):
    """An input from the inbox could not be applied; the run is unchanged."""

    code: str
    message: str = ""


class InputAccepted(Event, frozen=True, tag="input_accepted"):
    """An input from the inbox changed nothing, rightly (a second signal of a name, a cancel of a finished run)."""

    note: str = ""


AnyEvent = (
    RunStarted | StepsAdded | StepsReady | StepDispatched | PrepareDispatched | StepPrepared | ChildStarted
    | StepSucceeded | AttemptFailed | AttemptLost | AttemptEnded | StepFailed | StepSkipped | StepCancelled
    | EvaluationAsked | ConditionEvaluated | KeyEvaluated | SignalReceived | BreakpointReached | BreakpointReleased
    | Paused | Resumed | CancelRequested | StepsReopened | ScopeOpened | ScopeSettled | ScopeStopped | ScopeAsked
    | RowOpened | NameTaken | TurnCame | TriggerReceived | DecisionMade | IterationsOpened | IterationsSettled
    | BranchChosen | RunSettled | UnwindingStarted | UndoDispatched | ChildAsked | UndoConfirmed | UndoAttemptFailed
    | UndoAttemptLost | StepUndone | UndoFailed | UndoNotCompensable | UndoNotNeeded | CompensationOpened
    | PhaseCompensated | UndoSkipped | UndoParked | UndoReopened | UnwindingAsked | UnwindingParked | Unwound
    | InputRefused | InputAccepted | DeadlinePassed
)  # fmt: skip

_encoder = msgspec.json.Encoder()


@cache
def _decoder() -> msgspec.json.Decoder[list[AnyEvent]]:
    # To make one for so many kinds takes longer than to import the rest of the kernel.
    return msgspec.json.Decoder(list[AnyEvent])


def encode_events(events: list[AnyEvent]) -> str:
    """The journal text of one append."""
    return _encoder.encode(events).decode()


def decode_events(text: str | bytes) -> list[AnyEvent]:
    """The events of one journal row; msgspec.ValidationError for an unknown kind, which this kernel cannot decide."""
    return _decoder().decode(text)
