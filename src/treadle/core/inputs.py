"""Inputs: everything that can happen to a run. Each is small data; in the inbox it is stored as JSON."""

from __future__ import annotations

from functools import cache
from typing import Literal

import msgspec

from treadle.core.effects import Effects, Write
from treadle.core.events import NULL, Failure, Handle, Items
from treadle.core.plan import Fragment


class Input(msgspec.Struct, frozen=True, tag_field="input", omit_defaults=True, kw_only=True, gc=False):
    """The root of all inputs."""


class Outcome(Input, frozen=True, tag="outcome"):
    """An attempt ended in its worker.

    `status` is succeeded, failed or cancelled (it was interrupted). `verdict` steers a failure: empty leaves it
    to the step's policy, `retry` uses the default policy where the step has none, `final` ends it;
    `delay` (seconds) overrides the back-off.
    """

    number: int
    generation: int
    attempt: int
    lease: int = 0
    session: str = ""
    worker: str = ""
    started_at: float = 0.0
    status: str = "succeeded"
    result: Handle = NULL
    failure: Failure | None = None
    verdict: str = ""
    delay: float | None = None
    added: tuple[Fragment, ...] = ()
    # Variables of the Phases block around that it sets; the items that an evaluation of a gather's items found.
    patch: dict[str, Handle] | None = None
    items: Items | None = None
    # What it has made beside its value.
    effects: Effects | None = None
    # Statements that take effect with it.
    writes: tuple[Write, ...] = ()
    # What an attempt that did not succeed reported last, for the next one.
    progress: str = ""


class Lost(Input, frozen=True, tag="lost"):
    """The session that held the attempt died (written by the store when it buries a session)."""

    number: int
    generation: int
    attempt: int
    session: str
    # What the attempt reported last.
    progress: str = ""


class ChildStarted(Input, frozen=True, tag="child_started"):
    """The run that the step at `at` calls was made, or is there (written with the report of the attempt)."""

    at: str
    child: str
    id: str
    # The attempt that found it; 0: whichever is live.
    attempt: int = 0
    detached: bool = False
    lease: int = 0
    session: str = ""
    worker: str = ""
    started_at: float = 0.0


class ChildEnded(Input, frozen=True, tag="child_ended"):
    """A child run has its outcome (written by the child's last append).

    `result` is a handle that any run can read; it is empty if the value has to be fetched. `undoes` tells whether the
    child may have done something that can be undone.
    """

    at: str
    child: str
    outcome: str
    result: Handle = ""
    failure: Failure | None = None
    undoes: bool = False


class Unwind(Input, frozen=True, tag="unwind"):
    """The run that called this one undoes the call: undo all that was done, and tell the caller, by this number.

    `again` also takes on what did not undo before.
    """

    number: int
    again: bool = False


class ChildAsked(Input, frozen=True, tag="child_asked"):
    """The run that the step at `at` has called was asked to undo what it did (written with the end of the attempt)."""

    at: str
    child: str
    attempt: int
    session: str = ""


class ChildUnwound(Input, frozen=True, tag="child_unwound"):
    """A child run says how much of what it did is undone (`fully`, `partly`, "": there was nothing of that kind).

    `number` is that of the question; `failure` tells why something stands.
    """

    at: str
    child: str
    number: int
    unwound: str = ""
    failure: Failure | None = None


class Revoked(Input, frozen=True, tag="revoked"):
    """Waiting tasks were taken back by a cancel (written by the store)."""

    numbers: list[int]


class Look(Input, frozen=True, tag="look"):
    """The session that decided the run died: there may be something left to decide (written by the store)."""

    session: str = ""


class AddSteps(Input, frozen=True, tag="add_steps"):
    """A live attempt adds steps at once. `attempt` and `generation` name it; 0 is whichever is live."""

    number: int
    fragment: Fragment
    generation: int = 0
    attempt: int = 0
    worker: str = ""


class Signal(Input, frozen=True, tag="signal"):
    """The payload of a named signal."""

    name: str
    value: Handle = NULL


class Pause(Input, frozen=True, tag="pause"):
    """Hold the run."""


class Resume(Input, frozen=True, tag="resume"):
    """Lift the hold."""


class Cancel(Input, frozen=True, tag="cancel"):
    """Stop the run; `hard` also ends what runs; `unwind` then undoes what the run has done.

    For a run that is being unwound: park the undos that are left, unless `unwind` asks for them.
    """

    hard: bool = False
    unwind: bool = False


class TakeName(Input, frozen=True, tag="take_name"):
    """Somebody wants to wait until the run is closed: let it hold a name until then."""

    name: str


class Turn(Input, frozen=True, tag="turn"):
    """The run is the first in the line of a name now (written by the store)."""

    name: str


class Trigger(Input, frozen=True, tag="trigger"):
    """A trigger for the run's window: the run's constants from now on, or one more of them.

    `keep` has its name held by the run for good, so that it never counts again.
    """

    name: str
    args: list[Handle]
    keep: bool = False


class Release(Input, frozen=True, tag="release"):
    """Release the breakpoints of a label."""

    label: str


class Retry(Input, frozen=True, tag="retry"):
    """Reopen a failed or cancelled step (or, without `at`, all of them) and what was skipped because of it."""

    at: str = ""


class Rewind(Input, frozen=True, tag="rewind"):
    """Reopen a settled step and all that depends on it, as the next generation.

    What they have done is undone first; `keep` leaves it as it is.
    """

    at: str
    keep: bool = False


class Undo(Input, frozen=True, tag="undo"):
    """Undo what a settled run has done; with `to`, only what ended after that step."""

    to: str = ""


class UndoStep(Input, frozen=True, tag="undo_step"):
    """Retry, skip or park the undo of a step; a retry without `at` is of all undos that did not undo."""

    verb: Literal["retry", "skip", "park"]
    at: str = ""


AnyInput = (
    Outcome
    | Lost
    | ChildStarted
    | ChildEnded
    | Unwind
    | ChildAsked
    | ChildUnwound
    | Revoked
    | Look
    | AddSteps
    | Signal
    | Pause
    | Resume
    | Cancel
    | TakeName
    | Turn
    | Trigger
    | Release
    | Retry
    | Rewind
    | Undo
    | UndoStep
)

_encoder = msgspec.json.Encoder()


@cache
def _decoder() -> msgspec.json.Decoder[AnyInput]:
    return msgspec.json.Decoder(AnyInput)


def encode_input(value: AnyInput) -> bytes:
    """The inbox form of an input."""
    return _encoder.encode(value)


def decode_input(data: bytes) -> AnyInput:
    """The input of an inbox row."""
    value: AnyInput = _decoder().decode(data)
    return value
