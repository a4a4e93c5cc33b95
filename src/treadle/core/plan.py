"""The plan: the frozen graph of a workflow, as data.

A plan is a tree of blocks. It holds no constants: literal arguments are numbered (`Const`) and kept by the
run's head, so that runs that differ only in their input share one stored plan. A step's arguments are slots:
small templates over constants, results of other steps (`Ref`) and signals.

Lists that are empty in most steps are tuples of any length: an empty one is shared by all and costs nothing,
and its JSON Schema is that of a list.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec


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


class ListOf(msgspec.Struct, frozen=True, gc=False, tag="list", tag_field="slot"):
    """A list with slots among its items."""

    items: list[Slot]


class MapOf(msgspec.Struct, frozen=True, gc=False, tag="map", tag_field="slot"):
    """An object with slots among its values."""

    items: dict[str, Slot]


Slot = Const | Ref | SignalValue | ListOf | MapOf


class Predicate(msgspec.Struct, frozen=True, gc=False, tag="predicate", tag_field="slot"):
    """A registered function that decides whether a step runs; asked once, when all else is ready."""

    name: str
    slots: dict[str, Slot] = {}


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


class Child(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A step that is a run of its own: its action is the name of a workflow."""

    # The step succeeds with the child's id as soon as the child is made, and does not stop it.
    detached: bool = False


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
    # Seconds an attempt may take; None is without limit.
    timeout: float | None = None
    # Seconds from ready to the earliest start.
    delay: float = 0.0
    queue: str = "default"
    # Higher goes first.
    priority: int = 0
    when: Ref | SignalValue | Predicate | None = None
    signals: tuple[str, ...] = ()
    break_before: tuple[str, ...] = ()
    break_after: tuple[str, ...] = ()
    placement: Placement | None = None
    # A step added with a key that the run already holds is that step.
    dedup: str | None = None
    annotations: dict[str, str] = {}
    # How many lost attempts (their worker died) fail the step, so that a step that kills its worker ends.
    lost_limit: int = 3
    poll: Poll | None = None
    child: Child | None = None


class Group(msgspec.Struct, frozen=True, gc=False, tag="group", tag_field="block", kw_only=True, omit_defaults=True):
    """Named blocks that settle together."""

    id: str
    blocks: list[Step | Group] = []
    after: tuple[str, ...] = ()
    after_any: tuple[str, ...] = ()
    optional: bool = False


Block = Step | Group


class Plan(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A workflow's frozen graph. `output` makes the run's result from the steps'.

    `retry` is the policy of steps that have none of their own, those included that are added while the run goes on.
    """

    format: Literal["treadle.plan/1"] = "treadle.plan/1"
    workflow: str
    blocks: list[Step | Group]
    output: Slot | None = None
    retry: RetryPolicy | None = None


class Fragment(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Blocks that a step adds to its run, with their own constants (as handles).

    `into` is the address of the scope that gets them; None is the adder's own.
    """

    blocks: list[Step | Group]
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
