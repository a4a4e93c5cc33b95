"""The store port: what the runtime asks of a place where runs live. This page is its specification.

A `Store` is synchronous and is called by one thread at a time (the committer's); `reader()` gives a second,
read-only handle for another thread. Several processes may each have a Store on the same data.

Words
- A **run** has a key (a UUIDv7), a user's id, a head (`RunHead`), a journal of rows numbered by `version`
  (1, 2, ...), a status, a hold (0: free), and at most one **owner**: the session that decides it.
- A **task** is a dispatched attempt. It waits, or is leased to a session with a **token** (`lease`), a number
  that the store never gives twice. A run has at most one task of a step number.
- A **session** is one life of a process. Its leases (runs it owns, tasks it holds) live exactly as long as it:
  `bury` ends a session and in one transaction turns each of its leased tasks into a `core.inputs.Lost` input of
  its run, frees the runs it owned, and puts a `core.inputs.Look` input into those of them that are not settled and have
  no other input: their last decision may have left something. A buried session can write nothing any more
  (`LeaseLostError`).
- The **inbox** of a run holds inputs that wait for its decider, each with a unique id; adding one with an id that
  is there changes nothing. An append that decides inputs consumes them in its transaction.

Promises
1. `commit` takes many appends and answers for each. Appends of different runs never undo each other; within
   the call they are applied in order. An append is applied wholly or not at all.
2. An append is **committed** only if the run is at `expect` and is owned by the session (or the append makes
   the run: `head` set, and neither key nor id exist: else **exists**). Otherwise it is a **conflict**. A run
   that was deleted answers **refused**.
3. When `commit` returns, what it says is durable by the store's declared durability. When it raises, nothing
   of it is known: each append's `commit_id` tells by `committed(key, version)` whether it took effect.
4. A task of an append is leased to the offering session at once when it is due, its run is not held, the
   session can execute its action, names its target (if it has one), has a free slot, the limits of its queue leave
   room (promise 10), and no waiting due task of its queue would be claimed before it (higher priority, or same and
   older); otherwise it waits for `claim`. Claims go by priority, then age.
5. A task is leased to one session at a time. `report` ends a leased task only with its token and puts the
   outcome into the run's inbox in the same transaction; with another token it does nothing and says so.
   `postpone` lets a leased task wait again, as the youngest of its queue: likewise with its token only, and not
   after an append has interrupted it or has taken back the waiting tasks of its run. Nothing of it is journaled.
   An append's own `report` goes by the same rule: where it may not take effect, nothing of the append does
   (**fenced**). So no run is made on behalf of a task that is no longer wanted.
6. `end`ing tasks by an append frees them with whatever lease they had.
7. Held runs (`hold` != 0) have no task claimed or handed over. `revoke` in an append takes back all waiting
   tasks of its run and puts one `core.inputs.Revoked` input with their numbers into its inbox (none: no input);
   `interrupts` do so with those of the tasks they name that wait.
8. `delete` removes a closed run wholly: nothing of it is reachable by its id or key; its key's tombstone
   answers later appends and reports. The children that a run waits for (all that are not detached) go with it,
   however deep; while one of them is open, the run is not closed.
9. What was left undone by a process that died is found by `sweep`: dead sessions are the caller's finding;
   runs without an owner that have inbox inputs are the store's.
10. **Limits** of queues (`store.queues`) are facts of the store; one rule, in the transaction that leases, holds for
   claims and for what appends hand over. A task is leased only if its queue is not paused, fewer than `concurrency`
   tasks of the queue and `key_concurrency` of its key are leased, and `rate` and `key_rate` allow a start. What is
   counted are leases: whatever ends one (a report, an append, a postponement, a burial) makes room, and nothing else
   has to. Each lease, of any attempt, evaluation or undo, takes 1 of its buckets' allowance. A bucket is full at its
   first use; it is refilled by the time of the append or the `now` of the claim, never above the burst, never
   backwards (one that is more than a minute ahead of that time begins anew), and it outlives the process; on a store
   of several machines no other clock that is less than a minute ahead fills it. In a `fair`
   queue the keys with waiting tasks of one priority take turns: each gets its weight's share of the leases, none is
   passed over for ever, and a key's own tasks go by age. One that waited for nothing has saved up nothing. A task
   that must wait holds no other back: not one of another key, not one of another queue, and it takes no slot; a
   claim's price does not grow with the number of those that wait so. Free slots and a task that may start mean that a
   claim leases one, and no queue waits for another for ever.
11. `claim` also gives the time when a rate allows the next start for a task that waits for it now, if that is earlier
   than the next one that falls due. `made_room` tells of a `commit`, `report`, `postpone`, `bury` and
   `set_queues` whether a waiting task may start now that could not before, because its queue or key was full or
   paused; and of a `claim` whether a queue with limits has room for a task that waits and was not taken. It is said
   once: True is for all calls since it was asked last. True may be said too often, and never too rarely. Whoever is
   told claims, or wakes those who wait for tasks.
12. A run with a due task for a queue in which `length` due tasks wait already is not made (**full**, with the policy
   of the queue), unless that is `drop_oldest` and runs that only wait there make place: as many of the oldest, by
   their keys, as leave fewer than `length`, or none and the run is not made. Each gets a hard `core.inputs.Cancel`,
   with the id `dropped:KEY` of the new run, and what waits of it is taken back as by `revoke`, before the new tasks
   come. A run only waits if it is running, no run has called it, it has no tasks but first attempts that wait in
   this queue, none of its steps is settled, and its inbox holds nothing but looks. Whether a settlement counts that
   an append has taken back since is the store's choice. Tasks of runs that were made are never refused.
13. A run may be in the **line** of a name; the first run in it holds the name. `Append.names` changes that, in its
   order: `take` enters the line only if nobody else is in it, and else nothing of the append does (**held**); `line`
   goes to its end; `replace` does so too and puts a hard `core.inputs.Cancel` into the inboxes of the others in it;
   `note` goes to its end for the record only; `leave` goes out. Who is in the line already stays where it is. Who
   becomes the first by `line` or `replace`, or since those before left, gets a `core.inputs.Turn` input in the same
   transaction. A deletion leaves all lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from treadle.core.commands import Call, Task
from treadle.core.effects import Given
from treadle.core.events import AnyEvent
from treadle.core.tables import NONE, RUNNING
from treadle.core.values import Window
from treadle.store.offers import Offer
from treadle.store.queues import REJECT, Bucket, KeyRow, QueueChange, QueueRow

FORMAT = 1
# Payloads up to this many bytes of JSON ride in the event; up to the second they are rows; larger ones are blobs.
INLINE_BYTES = 1024
ROW_BYTES = 256 * 1024


class RunHead(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What is fixed when a run is made. `format` is the lowest kernel that may decide it."""

    key: str
    id: str
    workflow: str
    plan: str
    constants: list[str] = []
    # Breakpoint labels that are armed for this run.
    breakpoints: Sequence[str] = ()
    labels: dict[str, str] = {}
    # What people call the run, and what else they are to see of it; neither means anything to Treadle.
    name: str = ""
    metadata: dict[str, str] = {}
    # The run whose step called this one, and the step's address: `KEY/ADDRESS`.
    parent: str = ""
    input_hash: str = ""
    created_at: float = 0.0
    # A name that the run holds, or whose line it is in, until it is closed (promise 13).
    singleton: str = ""
    # The triggers that it collects before its work begins, and the name of the first ("" for none).
    window: Window | None = None
    trigger: str = ""
    # The run's data as one object (a handle, "" for none), and the names in it; whether the run is a dry run.
    data: str = ""
    data_names: Sequence[str] = ()
    dry_run: bool = False
    # No step starts before it, and no attempt begins or goes on after that (0: never).
    not_before: float = 0.0
    deadline: float = 0.0
    # The trace that the run is a part of, as a W3C `traceparent`; "" for none.
    trace: str = ""
    # The parent does not wait for this run, and does not stop it.
    detached: bool = False
    # How many runs called each other down to this one.
    depth: int = 0
    # A head that does not say it has the first one, whoever reads it.
    format: int = 1
    # What a failure does, if it is not what the plan says.
    on_failure: str = ""


class StepRow(msgspec.Struct, frozen=True, gc=False):
    """The settled state of a step, written once a settlement; `result` is a handle, empty unless it succeeded."""

    number: int
    address: str
    action: str
    status: str
    generation: int
    attempt: int
    result: str
    code: str
    message: str
    detail: str
    causes: str
    added_at: float
    ready_at: float
    dispatched_at: float
    started_at: float
    finished_at: float
    worker: str
    # The status of its undo; changed by `Append.undos`.
    undo: str = NONE


class InboxInput(msgspec.Struct, frozen=True):
    """An input that waits for a run's decider; `body` is an encoded `core.inputs` value."""

    id: str
    key: str
    body: bytes


class Report(msgspec.Struct, frozen=True):
    """A worker's outcome for a run that another session decides: ends the task, if the token is live."""

    number: int
    lease: int
    input: InboxInput
    payloads: Sequence[tuple[str, bytes]] = ()


class Reported(NamedTuple):
    """What became of a report: whether its token was live; the living session that decides the run, and its address.

    Both are "" where nobody decides it, or there is no such run.
    """

    done: bool
    session: str = ""
    wake: str = ""


class Append(msgspec.Struct, kw_only=True, gc=False):
    """One run's decision, to be committed. `expect` is the version it was decided on; its row gets `expect + 1`."""

    key: str
    expect: int
    commit_id: int
    time: float
    events: list[AnyEvent]
    # The run's outcome, "running" or "unwinding", as it is after the events, and as it was before them.
    status: str
    was: str = RUNNING
    # How much of what the run did is undone ("", "fully" or "partly"), if that changes.
    unwound: str | None = None
    # Set by the append that makes the run, with the encoded plan.
    head: RunHead | None = None
    plan: bytes | None = None
    tasks: Sequence[Task] = ()
    # Numbers of the steps whose task is over.
    ended: Sequence[int] = ()
    # Ids of the inbox inputs that were decided.
    consumed: Sequence[str] = ()
    payloads: Sequence[tuple[str, bytes]] = ()
    steps: Sequence[StepRow] = ()
    # Addresses of steps whose rows are to tell another status of their undo, after `steps` are written.
    undos: Sequence[tuple[str, str]] = ()
    # Numbers of steps whose step rows no longer hold (reopened steps).
    unsettled: Sequence[int] = ()
    # Numbers of the tasks whose attempt is to be interrupted; one that still waits is taken back (promise 7).
    interrupts: Sequence[int] = ()
    hold: int | None = None
    revoke: bool = False
    # Give the run back: nobody owns it afterwards.
    release: bool = False
    # A leased task of another run that this append ends, as `Store.report` does; if its token is not live, or it is to
    # be interrupted or its run's waiting tasks were taken back, the append is "fenced".
    report: Report | None = None
    # What goes to projections that live in the store, in this transaction; other stores leave it to their followers.
    given: Sequence[Given] = ()
    # Inputs for the inboxes of other runs; one for a run that is not there is dropped.
    posts: Sequence[InboxInput] = ()
    # What the run does in the lines of names, as (name, `take`, `note`, `line`, `replace` or `leave`); see promise 13.
    names: Sequence[tuple[str, str]] = ()


class Answer(msgspec.Struct, gc=False):
    """What became of an append. `leased` are its tasks that the session got, with their tokens."""

    status: Literal["committed", "conflict", "exists", "refused", "fenced", "full", "held", "unfit", "doubt"]
    leased: Sequence[Task] = []
    # Tasks of this append that wait in the store (for wake-ups and `not_before` timers).
    queued: int = 0
    # The queue that is full, and what its limits say of such starts.
    queue: str = ""
    on_full: str = REJECT
    # The key of the run that holds the name of a "held" append; keys of the runs to which this one brought inputs:
    # those that have made place for it, then those that are in its names' lines.
    holder: str = ""
    told: Sequence[str] = ()
    # Of "unfit": the lease whose outcome a projection does not take, and why. Nothing of the append took effect.
    unfit: tuple[int, str] = (0, "")


class Postponement(msgspec.Struct, frozen=True):
    """A leased task that is to wait again until `not_before`, with `call` in place of what it has."""

    key: str
    number: int
    lease: int
    not_before: float
    call: Call


class Loaded(msgspec.Struct):
    """A run as stored, in one consistent read."""

    head: RunHead
    plan: bytes
    version: int
    status: str
    hold: int
    owner: str
    # (version, commit id, time, events as JSON text)
    rows: list[tuple[int, int, float, str]]
    inbox: list[InboxInput]
    tasks: list[TaskRow]


class TaskRow(msgspec.Struct):
    """A task as stored. `session` is empty while it waits."""

    task: Task
    session: str = ""
    worker: str = ""
    started_at: float = 0.0
    interrupt: bool = False
    progress: str = ""


class RunRow(msgspec.Struct):
    """A run in a listing. `leased` counts its tasks that a session executes now."""

    key: str
    id: str
    workflow: str
    status: str
    hold: int
    version: int
    owner: str
    labels: dict[str, str]
    created_at: float
    updated_at: float
    leased: int = 0
    # How much of what it did is undone: "", "fully" or "partly".
    unwound: str = ""
    # As in the head.
    parent: str = ""
    name: str = ""
    metadata: dict[str, str] = {}


class SessionRow(msgspec.Struct):
    """A session as stored. `beat` is its renewal counter; `wake` its address for datagrams; `waits` what for."""

    id: str
    worker: str
    wake: str
    beat: int
    waits: int
    # Names of the actions it executes.
    actions: list[str]
    info: dict[str, Any] = {}
    # The targets whose tasks it takes, besides those that have none.
    targets: list[str] = []


# What a session waits for (bits of `SessionRow.waits`).
WAITS_TASKS = 1
WAITS_CHANGES = 2


class Renewal(msgspec.Struct):
    """The answer to a renewal: interrupts for leased attempts of this session, as (key, number, lease)."""

    interrupts: list[tuple[str, int, int]]


class Acquired(msgspec.Struct):
    """The answer to `acquire`: the run if the session owns it now, else its owner."""

    run: Loaded | None
    owner: str = ""


class Swept(msgspec.Struct):
    """What a sweep found: keys of runs without owner whose inbox waits, and the next time a task falls due."""

    stranded: list[str]
    due_at: float | None = None


class RunQuery(msgspec.Struct, frozen=True):
    """Which runs to list, newest first. `labels` must all match; `after` is the key of the last row seen."""

    status: str = ""
    workflow: str = ""
    labels: dict[str, str] = {}
    id_prefix: str = ""
    after: str = ""
    limit: int = 100
    # The key of the run whose steps called them.
    parent: str = ""
    # The package whose entrypoints they are runs of.
    package: str = ""
    # All of this metadata, exactly.
    metadata: dict[str, str] = {}
    # Nothing was decided of them since (seconds since the epoch); 0 is any time.
    before: float = 0.0
    # A part of their id, name, workflow or of a value of their metadata; ASCII letters in either case.
    text: str = ""


class StepAnswer(msgspec.Struct):
    """What is known of one step: its row once it is settled; `status` is the run's, empty if there is no run."""

    status: str
    version: int
    step: StepRow | None = None


class Health(msgspec.Struct):
    """What `check` found; `problems` is empty for a sound store. `facts` are for people."""

    problems: list[str]
    facts: dict[str, str]


class Reader(Protocol):
    """Consistent reads; every method is one snapshot."""

    def find(self, id_or_prefix: str) -> list[str]:
        """Keys of the runs with this id, or (if none) whose key or id starts with it; at most 20."""
        ...

    def load(self, key: str) -> Loaded | None:
        """The whole run, or None."""
        ...

    def head(self, key: str) -> tuple[RunHead, bytes] | None:
        """The head and the encoded plan of a run, or None: what never changes, at the same price for any run."""
        ...

    def rows(self, key: str, after: int, limit: int = 1000) -> list[tuple[int, int, float, str]]:
        """Journal rows with a version above `after`, in order."""
        ...

    def run(self, key: str) -> RunRow | None:
        """The run's row, or None."""
        ...

    def step(self, key: str, address: str) -> StepAnswer:
        """What is known of one step."""
        ...

    def runs(self, query: RunQuery) -> list[RunRow]:
        """Runs, newest first."""
        ...

    def dead(self, limit: int = 100) -> list[tuple[RunRow, StepRow]]:
        """Steps that failed for good, newest first."""
        ...

    def payloads(self, key: str, digests: Iterable[str]) -> dict[str, bytes]:
        """Payload rows of a run by digest; missing ones are absent."""
        ...

    def sessions(self) -> list[SessionRow]:
        """All sessions that were not buried or closed."""
        ...

    def waiting(self, limit: int = 100) -> list[TaskRow]:
        """Tasks that wait, in claim order."""
        ...

    def queues(self, now: float) -> list[QueueRow]:
        """Queues that were defined or have tasks, by name; may be slow."""
        ...

    def queue_keys(self, queue: str, *, key: str | None = None, limit: int = 100) -> list[KeyRow]:
        """Keys of a queue's tasks, those with the most waiting first (may be slow), or the one that is asked for."""
        ...

    def buckets(self, queue: str) -> dict[str, Bucket]:
        """What is stored of what its rates allow: by key, and of the queue itself ("")."""
        ...

    def line(self, name: str) -> list[str]:
        """Keys of the runs in the line of a name, the one that holds it first."""
        ...

    def holders(self, queue: str, *, key: str | None = None, limit: int = 20) -> list[TaskRow]:
        """Leased tasks of a queue (or of one key in it), those that were leased first; may be slow."""
        ...

    def committed(self, key: str, version: int) -> int | None:
        """The commit id of the journal row of that version, None if there is none."""
        ...

    def check(self) -> Health:
        """Integrity and configuration of the store; may be slow."""
        ...

    def close(self) -> None:
        """Free what the reader holds."""
        ...


class Store(Reader, Protocol):
    """The writing side. `session` is the id that `open_session` made; see the promises at the head."""

    durability: str

    @property
    def made_room(self) -> bool:
        """See promise 11."""
        ...

    def open(self, *, create: bool = True) -> None:
        """Connect, and make or migrate the schema.

        Raises:
            StoreError: of the kind that says what to do; nothing was changed.
        """
        ...

    def reader(self) -> Reader:
        """A handle for reads on another thread."""
        ...

    def open_session(self, session: SessionRow) -> None:
        """Enter a session."""
        ...

    def renew(self, session: str, waits: int | None = None) -> Renewal:
        """Count the session's beat up.

        Raises:
            LeaseLostError: the session was buried.
        """
        ...

    def set_targets(self, session: str, targets: Sequence[str]) -> None:
        """Change the targets that the session's row names; what it is given goes by its offers."""
        ...

    def set_queues(self, changes: Sequence[QueueChange], now: float) -> list[bool]:
        """Change what is stored of queues; whether each changed anything. What is leased stays leased."""
        ...

    def dead_sessions(self) -> list[str]:
        """Sessions known to be dead without waiting (their process is gone), if the store can tell."""
        ...

    def bury(self, session: str) -> list[str]:
        """End a session: its tasks become `lost` inputs, its runs are freed. Returns the keys with inputs now."""
        ...

    def elect(self, role: str, session: str) -> bool:
        """Make the session the holder of `role` if nobody alive (not buried) holds it; True if it holds it."""
        ...

    def commit(self, session: str, appends: Sequence[Append], offer: Offer | None) -> list[Answer]:
        """Commit appends; one answer each, in order.

        Raises:
            LeaseLostError: the session was buried; nothing was written.
            StoreError: nothing is known (promise 3).
        """
        ...

    def claim(self, session: str, offer: Offer, now: float) -> tuple[list[Task], float | None]:
        """Lease due waiting tasks that the offer takes; also the time when the next waiting task falls due."""
        ...

    def leased(self, session: str) -> list[Task]:
        """All tasks leased to the session: asked when the answer of a commit or claim was lost."""
        ...

    def report(self, session: str, reports: Sequence[Report]) -> list[Reported]:
        """End leased tasks, each if its token is live, and put their outcomes into the inboxes."""
        ...

    def postpone(self, session: str, items: Sequence[Postponement], now: float) -> list[bool]:
        """Let leased tasks wait again; False for one whose token is not live, or that must not begin anew."""
        ...

    def progress(self, session: str, items: Sequence[tuple[str, int, int, str]]) -> None:
        """Set the progress text of leased tasks, as (key, number, lease, text)."""
        ...

    def post(self, inputs: Sequence[InboxInput]) -> list[bool]:
        """Insert inbox inputs; False for a run that does not exist."""
        ...

    def inbox(self, key: str) -> list[InboxInput]:
        """The inputs that wait, oldest first."""
        ...

    def owned_inboxes(self, session: str) -> dict[str, list[InboxInput]]:
        """What waits in the inboxes of runs that the session owns, by key, oldest first; runs without are left out."""
        ...

    def acquire(self, session: str, key: str, *, steal: bool = False) -> Acquired | None:
        """Own the run if nobody does (or, with `steal`, in any case) and load it; None: no such run."""
        ...

    def release(self, session: str, keys: Sequence[str]) -> None:
        """Give runs back that have nothing to decide (those with inbox inputs show up in `sweep`)."""
        ...

    def sweep(self, session: str, now: float) -> Swept:
        """Find runs that nobody decides although they have inputs."""
        ...

    def wakes(self, session: str, *, tasks: bool, keys: Sequence[str]) -> list[str]:
        """Wake addresses of other sessions: those that wait for tasks or changes, and the owners of `keys`.

        As the session's last transaction saw them, unless there are `keys`: whoever began to wait later looks itself.
        """
        ...

    def delete(self, key: str) -> Literal["deleted", "missing", "open"]:
        """Remove a closed run; "open" if it has tasks or is not settled: nothing was removed."""
        ...
