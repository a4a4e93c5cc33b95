"""What is written into a store's log: one message an operation, in msgpack.

An operation holds all that its effect depends on, time included, so that every replica that applies it comes to the
same state and to the same answer. An append's events are its journal text; with its step rows they are read back from
the log and are kept by no replica. Payloads and plans lie outside the log, and are written before what names them.

What operations mean never changes under a level (`LEVEL`). An operation, a field or a rule of the machine that older
processes do not know begins with a level of its own: it is written, and followed, only where the log has risen to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from treadle.core.commands import Call, Task
from treadle.store.base import InboxInput, Report, RunHead, SessionRow, StepRow
from treadle.store.queues import REJECT, QueueChange, QueueLimits

SCHEMA = 1
# Up to which level of operations and of the machine's rules this version can apply a log. A log begins with level 1.
# With level 2 came the policies of full queues, buckets that are set, and whether a run has settled steps.
LEVEL = 2


class Takes(msgspec.Struct, frozen=True, array_like=True):
    """What a session has room for: at most `counts` tasks of an action and queue.

    `actions` are all that it executes, `targets` those whose tasks it takes; None: as in its row.
    """

    counts: list[tuple[str, str, int]]
    actions: list[str] | None = None
    targets: list[str] | None = None

    @property
    def total(self) -> int:
        """For how many tasks there is room."""
        return sum(count for _, _, count in self.counts)


class Operation(msgspec.Struct, tag_field="op", omit_defaults=True, kw_only=True, gc=False):
    """Base of all operations; `session` asks for it, "" for those that anybody may ask for."""

    session: str = ""


class OpenOp(Operation, tag="open"):
    """A session begins, whose process can apply a log up to a level."""

    row: SessionRow
    level: int = 1


class LevelOp(Operation, tag="level"):
    """From here on the log has this level, if all living sessions can apply it."""

    level: int


class RenewOp(Operation, tag="renew"):
    """A session lives."""

    waits: int | None = None


class BuryOp(Operation, tag="bury"):
    """A session has ended."""

    dead: str


class ElectOp(Operation, tag="elect"):
    """A session wants a role."""

    role: str


class TargetsOp(Operation, tag="targets"):
    """A session takes the tasks of other targets."""

    targets: list[str]


class QueuesOp(Operation, tag="queues"):
    """Limits of queues change."""

    now: float
    changes: list[QueueChange]


class AppendOp(Operation, tag="append"):
    """As `store.base.Append`; `plan` is the digest of a stored plan, and `events` are journal text."""

    key: str
    expect: int
    commit_id: int
    time: float
    events: str
    status: str
    unwound: str | None = None
    head: RunHead | None = None
    plan: str = ""
    tasks: Sequence[Task] = ()
    takes: Takes | None = None
    ended: Sequence[int] = ()
    consumed: Sequence[str] = ()
    steps: Sequence[StepRow] = ()
    undos: Sequence[tuple[str, str]] = ()
    unsettled: Sequence[int] = ()
    interrupts: Sequence[int] = ()
    hold: int | None = None
    revoke: bool = False
    release: bool = False
    report: Report | None = None
    posts: Sequence[InboxInput] = ()
    names: Sequence[tuple[str, str]] = ()


class ClaimOp(Operation, tag="claim"):
    """A session takes waiting tasks that are due."""

    now: float
    takes: Takes


class ReportOp(Operation, tag="report"):
    """Leased tasks have ended; without payloads."""

    reports: list[Report]


class Wait(msgspec.Struct, frozen=True, array_like=True):
    """As `store.base.Postponement`."""

    key: str
    number: int
    lease: int
    not_before: float
    call: Call


class PostponeOp(Operation, tag="postpone"):
    """Leased tasks wait again."""

    now: float
    items: list[Wait]


class ProgressOp(Operation, tag="progress"):
    """Leased tasks tell how far they are."""

    items: list[tuple[str, int, int, str]]


class PostOp(Operation, tag="post"):
    """Inputs for inboxes."""

    inputs: list[InboxInput]


class AcquireOp(Operation, tag="acquire"):
    """A session wants to decide a run."""

    key: str
    steal: bool = False


class ReleaseOp(Operation, tag="release"):
    """A session gives runs back."""

    keys: list[str]


class DeleteOp(Operation, tag="delete"):
    """A closed run is removed, with those below it."""

    key: str


class ClearOp(Operation, tag="clear"):
    """A snapshot covers the log up to a message, and journals that were deleted before it are removed."""

    until: int


AnyOperation = (
    OpenOp
    | LevelOp
    | RenewOp
    | BuryOp
    | ElectOp
    | TargetsOp
    | QueuesOp
    | AppendOp
    | ClaimOp
    | ReportOp
    | PostponeOp
    | ProgressOp
    | PostOp
    | AcquireOp
    | ReleaseOp
    | DeleteOp
    | ClearOp
)


class JournalRow(msgspec.Struct):
    """What is read of an append when a journal is read."""

    expect: int
    commit_id: int
    time: float
    events: str
    steps: list[StepRow] = []
    undos: list[tuple[str, str]] = []
    unsettled: list[int] = []


def of_level_1(change: QueueChange) -> QueueChange:
    """A change of a queue without what processes of the first level do not know."""
    defined, override = change.defined, change.override
    if isinstance(defined, QueueLimits):
        defined = msgspec.structs.replace(defined, on_full=REJECT)
    if isinstance(override, QueueLimits):
        override = msgspec.structs.replace(override, on_full=REJECT)
    return msgspec.structs.replace(change, defined=defined, override=override, buckets=msgspec.UNSET)


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(AnyOperation).decode
decode_row = msgspec.msgpack.Decoder(JournalRow).decode
