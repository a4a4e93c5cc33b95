"""The plan: the frozen graph of a workflow, as data.

A plan is a tree of blocks. It holds no constants: literal arguments are numbered (`Const`) and kept by the
run's head, so that runs that differ only in their input share one stored plan. A step's arguments are slots:
small templates over constants, results of other steps (`Ref`) and signals.

Lists that are empty in most steps are tuples of any length: an empty one is shared by all and costs nothing,
and its JSON Schema is that of a list.
"""

from __future__ import annotations

import hashlib
from typing import ClassVar, Final, Literal

import msgspec

from treadle.core.values import Arg


class Const(msgspec.Struct, frozen=True, gc=False, tag="const", tag_field="slot"):
    """The n-th constant of the fragment that declares the slot."""

    index: int


class Ref(msgspec.Struct, frozen=True, gc=False, tag="ref", tag_field="slot", omit_defaults=True):
    """The result of another step, or a part of it.

    `step` is an address of encoded segments (`addresses.encode_id`): its first segment is looked up in the
    reader's own scope, then in the enclosing ones; `a/b` descends into group `a`.
    `default` is a constant's index, used where the step did not succeed; -1 means that the result is required.
    """

    step: str
    path: tuple[str | int, ...] = ()
    default: int = -1


class SignalValue(msgspec.Struct, frozen=True, gc=False, tag="signal", tag_field="slot"):
    """The payload of a signal; the step waits for it."""

    name: str


class Data(msgspec.Struct, frozen=True, gc=False, tag="data", tag_field="slot"):
    """The value of this name in the run's data; a run is not started without it."""

    name: str


class ListOf(msgspec.Struct, frozen=True, gc=False, tag="list", tag_field="slot"):
    """A list with slots among its items."""

    items: list[Slot]


class MapOf(msgspec.Struct, frozen=True, gc=False, tag="map", tag_field="slot", omit_defaults=True):
    """An object with slots among its values. `partial`: what is not there is left out."""

    items: dict[str, Slot]
    partial: bool = False


class Item(msgspec.Struct, frozen=True, gc=False, tag="item", tag_field="slot", omit_defaults=True):
    """The item of the gather around, or a part of it; `level` counts gathers outwards from the innermost (0)."""

    level: int = 0
    path: tuple[str | int, ...] = ()


class Index(msgspec.Struct, frozen=True, gc=False, tag="index", tag_field="slot", omit_defaults=True):
    """The number of the gather's item, from 0; `level` as in `Item`."""

    level: int = 0


class StateValue(msgspec.Struct, frozen=True, gc=False, tag="state", tag_field="slot", omit_defaults=True):
    """A variable of the Phases block around, as it was when the row began. `default` as in `Ref`."""

    name: str
    path: tuple[str | int, ...] = ()
    default: int = -1


class LaneValue(msgspec.Struct, frozen=True, gc=False, tag="lane", tag_field="slot", omit_defaults=True):
    """What a lane gave in the row that was executed before. `default` as in `Ref`."""

    lane: str
    path: tuple[str | int, ...] = ()
    default: int = -1


class PhaseInfo(msgspec.Struct, frozen=True, gc=False, tag="phase", tag_field="slot", omit_defaults=True):
    """What a cell, or a rule, is told of its place (see `core.resolve`), or one fact of it."""

    fact: str = ""


# The queue of what takes up no capacity, unless it is told to wait elsewhere: sleeps, calls, questions about keys.
UNLIMITED: Final = "treadle:unlimited"


class Given(msgspec.Struct, frozen=True, gc=False, tag="given", tag_field="slot"):
    """A value that the kernel itself gives. It is in no plan."""

    value: Arg


class Triggers(msgspec.Struct, frozen=True, gc=False, tag="triggers", tag_field="slot"):
    """The list of what the run's window has collected, in the order it came."""


Slot = (
    Const
    | Ref
    | SignalValue
    | Data
    | ListOf
    | MapOf
    | Item
    | Index
    | StateValue
    | LaneValue
    | PhaseInfo
    | Given
    | Triggers
)


class Predicate(msgspec.Struct, frozen=True, gc=False, tag="predicate", tag_field="slot"):
    """A registered function that decides whether a step runs; asked once, when all else is ready."""

    name: str
    slots: dict[str, Slot] = {}


class Holds(msgspec.Struct, frozen=True, gc=False, tag="holds", tag_field="slot"):
    """A condition as an expression over named values (`core.expressions`)."""

    text: str
    slots: dict[str, Slot] = {}


Condition = Ref | SignalValue | Predicate | Holds


class RetryPolicy(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """How often and when a failed attempt is tried again. Delays are in seconds."""

    # Attempts in all; 0 means without end.
    attempts: int = 5
    backoff: Literal["fixed", "linear", "exponential"] = "exponential"
    initial: float = 1.0
    factor: float = 2.0
    # No delay is longer than this.
    cap: float = 60.0
    # The part of a delay (0 to 1) that is spread, by a fraction fixed for each attempt.
    jitter: float = 0.0
    # Failure codes that are never tried again.
    never: tuple[str, ...] = ()

    def delay(self, failures: int, fraction: float = 0.0) -> float:
        """Seconds to wait after the `failures`-th failure; `fraction` (0 to 1) places it inside the jitter."""
        if failures <= 0 or self.initial <= 0:
            return 0.0
        if self.backoff == "exponential":
            try:
                raw = self.initial * self.factor ** (failures - 1)
            except OverflowError:
                raw = self.cap
        else:
            raw = self.initial * failures if self.backoff == "linear" else self.initial
        return min(raw, self.cap) * (1.0 - self.jitter * fraction)


class Poll(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A step that is asked again until its value is true. In seconds."""

    interval: float
    # Counted from when it is asked first; None is without end.
    timeout: float | None = None


class Placement(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Where a step may run: on a named target, with a step's worker, where a step was told to, or here."""

    mode: Literal["target", "with", "follow", "here"]
    target: str = ""
    step: str = ""


class Undo(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """How a step's effect is taken back: names of actions, all of which get the step's arguments by name.

    With `prepare` the step has two halves: its result, the undo state, is committed before the step's own action is
    dispatched. `action` and `reconcile` get it as `state`, and the step's result (null without one) as `result`.
    """

    action: str
    prepare: str = ""
    # Asked before the undo whether it is safe: a bool.
    reconcile: str = ""
    # Undos of one resource are made one at a time.
    resource: str = ""


class Child(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A step that is a run of its own: its action is the name of a workflow."""

    # The step succeeds with the child's id as soon as the child is made, and does not stop it.
    detached: bool = False
    # The breakpoints that are armed in the run that calls are armed in the child.
    breakpoints: bool = False


class Step(msgspec.Struct, frozen=True, gc=False, tag="step", tag_field="block", kw_only=True, omit_defaults=True):
    """A unit of work: an action's name, its slots, and the rules under which it runs."""

    id: str
    action: str
    slots: dict[str, Slot] = {}
    # Steps that must succeed first, and steps that must only be settled first. `a/` is all that `a` adds.
    after: tuple[str, ...] = ()
    after_any: tuple[str, ...] = ()
    # Its failure, or a skip that a failure caused, does not fail the scope.
    optional: bool = False
    retry: RetryPolicy | None = None
    # Seconds an attempt may take, and seconds in which it has to report its progress again; None is without limit.
    timeout: float | None = None
    progress_timeout: float | None = None
    # Seconds from ready to the earliest start.
    delay: float = 0.0
    queue: str = "default"
    # What its queue's limits by key go by: an expression over the arguments; empty for none.
    key: str = ""
    # Higher goes first.
    priority: int = 0
    when: Condition | None = None
    signals: tuple[str, ...] = ()
    break_before: tuple[str, ...] = ()
    break_after: tuple[str, ...] = ()
    placement: Placement | None = None
    # A step added with a key that the run already holds is that step.
    dedup: str | None = None
    annotations: dict[str, str] = {}
    # How many lost attempts (their worker died) fail the step, so that a step that kills its worker ends.
    lost_limit: int = 3
    undo: Undo | None = None
    poll: Poll | None = None
    child: Child | None = None


class Group(msgspec.Struct, frozen=True, gc=False, tag="group", tag_field="block", kw_only=True, omit_defaults=True):
    """Named blocks that settle together. `output` is its value for others, None: it has none."""

    id: str
    blocks: list[Block] = []
    output: Slot | None = None
    after: tuple[str, ...] = ()
    after_any: tuple[str, ...] = ()
    optional: bool = False


class Body(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """What is done for each item of a gather."""

    blocks: list[Block] = []
    output: Slot | None = None
    optional: ClassVar[bool] = False


class Gather(msgspec.Struct, frozen=True, gc=False, tag="gather", tag_field="block", kw_only=True, omit_defaults=True):
    """One body for each item of a list; its value is the list of the bodies' values, in the order of the items.

    It settles when `mode` is met: `all`: all items have settled, it fails if one did; `any_error`: likewise, but the
    first failure ends it and cancels the rest; `first`: the first success ends it, and is its value.
    """

    id: str
    items: Slot
    body: Body
    # Items under way at a time; 0: as many as the run may have tasks.
    limit: int = 0
    mode: Literal["any_error", "all", "first"] = "any_error"
    after: tuple[str, ...] = ()
    after_any: tuple[str, ...] = ()
    optional: bool = False


class Branch(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One way of a choose; without `when` it is the else."""

    id: str
    when: Condition | None = None
    blocks: list[Block] = []
    output: Slot | None = None
    optional: ClassVar[bool] = False


class Choose(msgspec.Struct, frozen=True, gc=False, tag="choose", tag_field="block", kw_only=True, omit_defaults=True):
    """The first branch whose condition holds, asked in order; none: it succeeds with null."""

    id: str
    branches: list[Branch]
    after: tuple[str, ...] = ()
    after_any: tuple[str, ...] = ()
    optional: bool = False


Move = Literal["advance", "jump", "loop_back", "repeat", "stop"]


class Rule(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One rule of a policy: where `when` holds (None: always), `move` is what follows."""

    id: str
    move: Move
    # The phase that jump and loop_back go to.
    target: str = ""
    when: Condition | None = None


class Phase(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One row: its blocks are the cells, one a lane, named by the lane. The row is a barrier."""

    id: str
    blocks: list[Block] = []
    # Lanes whose cell is started and not waited for.
    detached: tuple[str, ...] = ()
    policy: str = ""
    # How often the whole row is tried.
    retry: RetryPolicy | None = None
    # The compensating phase that runs when this phase is unwound after it had succeeded.
    compensate: str = ""
    optional: ClassVar[bool] = False
    output: ClassVar[None] = None


class Phases(msgspec.Struct, frozen=True, gc=False, tag="phases", tag_field="block", kw_only=True, omit_defaults=True):
    """Rows one after the other; after each row the phase's policy picks what follows. Its value is the final state."""

    id: str
    phases: list[Phase]
    # Ordered rules by the policy's name; the first that holds decides. Without any policy rows simply advance.
    policies: dict[str, tuple[Rule, ...]] = {}
    # What follows where no rule of a policy holds; None: that is an error.
    otherwise: Rule | None = None
    compensations: list[Phase] = []
    start: str = ""
    # Rows that may be executed.
    step_limit: int = 1000
    state: dict[str, Slot] = {}
    # What two cells of a row that set one variable mean: the later lane wins, or the row fails.
    on_conflict: Literal["last", "error"] = "last"
    # What becomes at the end of detached cells that still run.
    on_finish: Literal["leave", "wait", "cancel"] = "leave"
    output: Slot | None = None
    after: tuple[str, ...] = ()
    after_any: tuple[str, ...] = ()
    optional: bool = False


Block = Step | Group | Gather | Choose | Phases
# Blocks whose content is made while the run goes on, a scope at a time.
Opening = Gather | Choose | Phases


class Plan(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A workflow's frozen graph. `output` makes the run's result from the steps'.

    `retry` is the policy of steps that have none of their own, those included that are added while the run goes on.
    """

    format: Literal["treadle.plan/1"] = "treadle.plan/1"
    workflow: str
    blocks: list[Block]
    output: Slot | None = None
    retry: RetryPolicy | None = None
    # What a failed run does about what its steps have done; "": a Phases block that fails is unwound, all else stands.
    on_failure: Literal["stop", "unwind", ""] = ""
    # How many undos of one unwinding may run together; 0 is as many as the run may have tasks.
    undo_limit: int = 0


class Fragment(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Blocks that a step adds to its run, with their own constants (as handles).

    `into` is the address of the scope that gets them; None is the adder's own.
    """

    blocks: list[Block]
    constants: list[str] = []
    into: str | None = None


_encoder = msgspec.json.Encoder(order="deterministic")


def encode_plan(plan: Plan) -> bytes:
    """The plan's stored bytes; equal plans give equal bytes."""
    return _encoder.encode(plan)


def decode_plan(data: bytes) -> Plan:
    """The plan of stored bytes."""
    return msgspec.json.decode(data, type=Plan)


def plan_hash(encoded: bytes) -> str:
    """The content hash that names a stored plan."""
    return "sha256:" + hashlib.sha256(encoded).hexdigest()
