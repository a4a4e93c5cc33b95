"""The invariants of a simulated world, and the oracle: what the journals must say.

While the simulation runs, each store call is followed by cheap checks (`Watch`), and each executed attempt is
noted. When all is over, `judge` reads the journals alone and computes what they should contain.

The names below are what a failure is reported under.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from treadle.authoring.context import StepContext
from treadle.core import events as ev
from treadle.core.addresses import child, encode_id
from treadle.core.commands import Task
from treadle.core.events import AnyEvent, decode_events
from treadle.core.opened import compensation_address
from treadle.core.tables import LIVE
from treadle.errors import StoreError
from treadle.store.base import Answer, Append
from treadle.store.memory_data import MemoryData, StoredRun, problems_of
from treadle.testing.sim_codec import report_of
from treadle.testing.sim_limits import LIMITED, PLACED, LimitWatch, misplaced
from treadle.testing.sim_loop import LIFE, Life

VERSIONS: Final = "versions increase by one and journal time never runs backwards"
STORE: Final = "the store's indexes agree, and every lease and owner is a living session"
TOKENS: Final = "a task is leased to one session at a time, under a token that is never given twice"
DURABLE: Final = "nothing leaves the process before its commit is durable"
ONCE: Final = "an attempt is executed at most once, and so is each of its probes"
CURRENT: Final = "only the current attempt may report, once, with the token of its lease"
OUTCOMES: Final = "a step has at most one outcome each time it is opened"
SIGNALS: Final = "a signal is delivered once"
INPUTS: Final = "a decision takes an input once"
ERRORS: Final = "a store error is never recorded as a result"
SLOTS: Final = "a slot's holder is a live attempt"
OWNERS: Final = "every pending task and input has a live owner or a future wake-up"
PROGRESS: Final = "free capacity and a runnable task mean progress"
CLOSED: Final = "when faults stop every run closes"
LEFTOVERS: Final = "a closed run leaves no task, input or lease"
DELETED: Final = "a deleted run leaves nothing reachable under its id"
FOLD: Final = "every prefix of the journal is a legal state"
RESULTS: Final = "a step's result is what its function gives for its inputs"
BLOCKS: Final = "a block opens what its plan says, and gives what its content gave"
EFFECTS: Final = "a success names what its step has made, and nothing that a run names is removed"
INSIDE: Final = "a scope with an outcome holds nothing that lives, and nothing starts in it"
ROWS: Final = "the stored status, hold and step rows are what the journal says"
ANSWERS: Final = "what a client was told is what the journal says"
CALLERS: Final = "no client waits for ever, and none gets an error that is not its own"
ORDER: Final = "undo respects its order"
UNDONE: Final = "a step acts after its undo state is stored, and an unwinding leaves no undo open"
HOOKS: Final = "a committed boundary is told once, by the process that committed it"
CALLS: Final = "a step that calls a run has the outcome of that run"
TURNS: Final = "of the runs of a singleton one at a time starts anything"
WINDOWS: Final = "a trigger counts once, in the window that was open, and a window gives what it has collected"
RECORDS: Final = "a projection has each record of each success once, in the order of its journal"
DEADLINES: Final = "no attempt begins after the deadline of its run, but what takes a row back"
JOINED: Final = "a run that joins a transaction is there with what else was written in it, or not at all"
COUNTED: Final = "what cycles have counted is what the journals say"
BACKED_UP: Final = "a backup is sound, has all blobs that it names, and its runs go on"
TRACE: Final = "equal seeds give equal traces"

NAMES: Final = (
    VERSIONS, STORE, TOKENS, DURABLE, ONCE, CURRENT, OUTCOMES, SIGNALS, INPUTS, ERRORS, SLOTS, OWNERS, PROGRESS, CLOSED,
    LEFTOVERS, DELETED, FOLD, LIMITED, PLACED, RESULTS, EFFECTS, BLOCKS, INSIDE, ROWS, ANSWERS, CALLERS, ORDER, UNDONE,
    HOOKS, CALLS, TURNS, WINDOWS, RECORDS, DEADLINES, JOINED, COUNTED, BACKED_UP, TRACE,
)  # fmt: skip

_STORE_ERRORS: Final[tuple[type[StoreError], ...]] = (StoreError, *StoreError.__subclasses__())
_STORE_CODES: Final = frozenset(kind.code for kind in _STORE_ERRORS)
# A whole check of the store after so many calls: cheap enough, and near enough to the cause.
_WHOLE_CHECK: Final = 16

Fail = Callable[[str, str], None]


class Execution:
    """One attempt's code that ran."""

    __slots__ = ("at", "attempt", "generation", "key", "life", "value")

    def __init__(self, key: str, at: str, generation: int, attempt: int, life: Life | None) -> None:
        self.key = key
        self.at = at
        self.generation = generation
        self.attempt = attempt
        self.life = life
        self.value: object = None


class Journal:
    """What was seen of one run's journal, as it was written."""

    def __init__(self, run: StoredRun) -> None:
        self.run = run
        self.version = 0
        self.time = 0.0
        # (address, generation) -> its dispatched attempts; open ones by address.
        self.dispatched: set[tuple[str, int, int]] = set()
        self.attempts: dict[str, int] = {}
        self.generations: dict[str, int] = {}
        self.open: dict[str, int] = {}
        # What the attempts that did not succeed reported last, and what those after them are to find.
        self.reports: dict[str, str] = {}
        self.handed: dict[tuple[str, int], str] = {}
        # The session that each step has succeeded in, or has called a run in.
        self.ran_on: dict[str, str] = {}
        # Steps whose child runs, and the keys of all children that ever were started.
        self.calls: set[str] = set()
        self.children: list[str] = []
        self.settled: dict[str, str] = {}
        self.added: set[str] = set()
        self.signals: dict[str, str] = {}
        # The version that has decided each input of the inbox last.
        self.causes: dict[str, int] = {}
        # Labels of breakpoints at which a step has stood.
        self.reached: set[str] = set()
        # Steps and rows whose undo is final and did not take their effect back.
        self.stuck: dict[str, None] = {}
        # What was dispatched beside attempts: address and number.
        self.asked: set[tuple[str, int]] = set()
        # Until something is reopened.
        self.deadline = run.head.deadline
        # Something is to come of it.
        self.has_deadline = self.deadline > 0
        # The phases that compensate rows, by address.
        self.compensations: set[str] = set()
        # The names whose turn the run waits for.
        self.awaits: dict[str, None] = {}
        self.is_open = True
        self.deleted = False


class Watch:
    """Checks after every store call; also the observer of the step functions."""

    def __init__(self, data: MemoryData, fail: Fail, say: Callable[[str], None]) -> None:
        self.data = data
        self.fail = fail
        self.say = say
        self.journals: dict[str, Journal] = {}
        # Sessions by the life that entered them, and those whose end is known without waiting.
        self.sessions: dict[str, Life] = {}
        self.known_dead: list[str] = []
        # How many sessions a life has entered.
        self.entered: Counter[Life] = Counter()
        # Token -> (session, run, step number, attempt).
        self.tokens: dict[int, tuple[str, str, int, int]] = {}
        self.limits = LimitWatch(data, fail)
        self.executions: list[Execution] = []
        self.began_keys: set[tuple[str, str, int, int, int]] = set()
        self.calls = 0
        # What is read now was written before the store was copied: the lines of names may have been others then.
        self.looks_back = False
        # Told of each event with the life that has committed it, where that is known, and its run.
        self.on_written: Callable[[Life | None, str, AnyEvent], None] = lambda _life, _key, _event: None
        # Asked before a commit of records, and told of it.
        self.on_unfit: Callable[[Append, StoredRun | None], Answer | None] = lambda _append, _run: None
        # Told that a backup copies the store.
        self.on_backup: Callable[[str], None] = lambda _name: None
        self.on_given: Callable[[Append, StoredRun], None] = lambda _append, _run: None

    # -- the store's calls ---------------------------------------------------------------------------------------

    def opened(self, session: str, life: Life) -> None:
        """A life entered a session."""
        self.sessions[session] = life

    def crashed_sessions(self) -> list[str]:
        """What `dead_sessions` tells."""
        return [session for session in self.known_dead if session in self.data.sessions]

    def unfit(self, append: Append) -> Answer | None:
        """What a projection in the store refuses."""
        return self.on_unfit(append, self.data.runs.get(append.key))

    def given(self, append: Append) -> None:
        """What a projection in the store gets."""
        self.on_given(append, self.data.runs[append.key])

    def copied(self, name: str) -> None:
        """A backup copies the store."""
        self.on_backup(name)

    def deleting(self, key: str) -> None:
        """A run is about to be deleted: read the rest of its journal."""
        self.look(key)

    def leased(self, session: str, tasks: Sequence[Task]) -> None:
        """Tasks were given out."""
        for task in tasks:
            if task.lease in self.tokens:
                self.fail(TOKENS, f"token {task.lease} of {task.address} was given twice")
            self.tokens[task.lease] = (session, task.run, task.number, task.attempt)
        if tasks:
            self.limits.look(session, tasks)

    def made(self, append: Append, answer: Answer) -> None:
        """A run was made, perhaps in the place of others."""
        self.limits.made(append, answer)

    def wrote(self, life: Life, operation: str, keys: Sequence[str]) -> None:
        """A call took effect."""
        self.calls += 1
        if operation == "open_session":
            self.entered[life] += 1
        self.say(f"{life.name} {operation} {' '.join(self._short(key) for key in keys)}")
        for key in keys:
            self.look(key, life)
        if self.calls % _WHOLE_CHECK == 0 or operation in ("bury", "delete"):
            self.check_store()

    def _short(self, key: str) -> str:
        run = self.data.runs.get(key)
        return f"{run.head.id}@{run.version}" if run is not None else key

    def check_store(self) -> None:
        """The whole store."""
        for problem in problems_of(self.data):
            self.fail(STORE, problem)
        for key, journal in self.journals.items():
            if journal.deleted and key in self.data.runs:
                self.fail(DELETED, f"run {key} is there again")
        for run in self.data.runs.values():
            self.look(run.key)
            if self.data.ids.get(run.head.id) != run.key:
                self.fail(STORE, f"run {run.key} is not found by its id")

    def look(self, key: str, life: Life | None = None) -> None:
        """Read what is new in a run's journal, written by a life if one has just written."""
        run = self.data.runs.get(key)
        journal = self.journals.get(key)
        if run is None:
            if journal is not None and not journal.deleted:
                journal.deleted = True
                if key in self.data.inboxes or key in self.data.ids.values():
                    self.fail(DELETED, f"run {key} left an inbox or an id")
            return
        if journal is None:
            journal = self.journals[key] = Journal(run)
        if len(run.rows) < journal.version:
            self.fail(VERSIONS, f"the journal of {run.head.id} has lost rows")
        for row in run.rows[journal.version :]:
            if row.version != journal.version + 1:
                self.fail(VERSIONS, f"row {row.version} of {run.head.id} follows {journal.version}")
            if row.time < journal.time:
                self.fail(VERSIONS, f"row {row.version} of {run.head.id} is at {row.time}, before {journal.time}")
            journal.version = row.version
            journal.time = row.time
            events = decode_events(row.events) if isinstance(row.events, str) else row.events
            for event in events:
                self.say(f"  {run.head.id}@{row.version} {event}")
                self._event(journal, event)
                self.on_written(life, key, event)

    # -- the events, one by one ------------------------------------------------------------------------------------

    def _event(self, journal: Journal, event: AnyEvent) -> None:
        where = f"{journal.run.head.id}@{journal.version} {event}"
        self._caused(journal, event, where)
        if isinstance(event, ev.StepSucceeded | ev.ChildStarted) and event.session:
            journal.ran_on[event.at] = event.session
        match event:
            case ev.StepDispatched() | ev.TriggerReceived():
                self._dispatched(journal, event, where)
            case ev.StepSucceeded() | ev.AttemptFailed() | ev.StepFailed() | ev.AttemptLost():
                self._ended(journal, event, where)
            case ev.ChildStarted():
                self._called(journal, event, where)
            case ev.StepSkipped() | ev.StepCancelled():
                if isinstance(event, ev.StepCancelled):
                    self._reported(journal, event)
                journal.open.pop(event.at, None)
                journal.calls.discard(event.at)
                self._settle(journal, event.at, where)
            case ev.StepsReopened():
                journal.deadline, journal.has_deadline = 0.0, False
                self._open(journal, [*event.at, *event.removed])
                for at in [*event.at, *event.removed] if event.rewind else ():
                    journal.reports.pop(at, None)
            case ev.StepsAdded():
                added = [child(event.into, encode_id(block.id)) for block in event.blocks]
                journal.added.update(added)
                # Among them ones that their rewound adder adds again.
                self._open(journal, added)
            case _:
                self._of_run(journal, event, where)

    def _caused(self, journal: Journal, event: AnyEvent, where: str) -> None:
        """An input leads to events, or to the word that it led to nothing. One that is sent again may come again."""
        taken = event.cause and journal.causes.get(event.cause) == journal.version
        if taken and isinstance(event, ev.InputAccepted | ev.InputRefused):
            self.fail(INPUTS, f"{where}: this decision has taken it before")
        journal.causes[event.cause] = journal.version

    def _of_run(self, journal: Journal, event: AnyEvent, where: str) -> None:
        match event:
            case ev.SignalReceived():
                if event.name in journal.signals:
                    self.fail(SIGNALS, f"{where}: it came before")
                journal.signals[event.name] = event.value
            case ev.BreakpointReached():
                journal.reached.update(event.labels)
            case ev.UnwindingStarted():
                journal.is_open = True
            case ev.UndoFailed() | ev.UndoNotCompensable() | ev.UndoSkipped() | ev.UndoParked():
                journal.stuck[event.at] = None
            case ev.UndoReopened() | ev.StepUndone() | ev.PhaseCompensated():
                journal.stuck.pop(event.at, None)
            case ev.UndoDispatched() | ev.PrepareDispatched():
                journal.asked.add((event.at, event.number))
            case ev.RunSettled():
                if not journal.is_open:
                    self.fail(OUTCOMES, f"{where}: the run has an outcome")
                journal.is_open = False
            case _:
                self._waits(journal, event, where)

    def _waits(self, journal: Journal, event: AnyEvent, where: str) -> None:
        """What tells for whose turn a run waits, and which of its scopes take rows back."""
        if isinstance(event, ev.CancelRequested | ev.DeadlinePassed):
            journal.awaits.clear()
            journal.has_deadline = False
        elif isinstance(event, ev.CompensationOpened):
            journal.compensations.add(compensation_address(event.at, event.phase, event.entry))
        elif isinstance(event, ev.NameTaken) and event.waits:
            journal.awaits[event.name] = None
        elif isinstance(event, ev.TurnCame):
            journal.awaits.pop(event.name, None)
            # It may have left the line in the same transaction.
            if event.name in journal.run.names and self._is_behind(journal, event.name):
                self.fail(TURNS, f"{where}: it is the turn of {self.data.lines[event.name]}")

    def _is_behind(self, journal: Journal, name: str) -> bool:
        return not self.looks_back and self.data.lines[name][0] != journal.run.key

    def _dispatched(self, journal: Journal, event: ev.StepDispatched | ev.TriggerReceived, where: str) -> None:
        if isinstance(event, ev.TriggerReceived):
            if not event.attempt:
                return
            # The timer's attempt was taken back, and another one is dispatched.
            journal.open.pop(event.at, None)
        if event.attempt != journal.attempts.get(event.at, 0) + 1:
            self.fail(CURRENT, f"{where}: attempts count up by one")
        if event.at in journal.open:
            self.fail(CURRENT, f"{where}: an attempt is open")
        journal.calls.discard(event.at)
        journal.attempts[event.at] = event.attempt
        for name in journal.run.names:
            # Who has one of an id may have come behind others that began after it.
            if name.startswith("singleton:") and self._is_behind(journal, name):
                self.fail(TURNS, f"{where}: it is the turn of {self.data.lines[name]}")
        if journal.awaits:
            self.fail(TURNS, f"{where}: it waits for {list(journal.awaits)}")
        deadline = journal.deadline
        if 0 < deadline <= max(journal.time, event.not_before) and not _is_in(event.at, journal.compensations):
            self.fail(DEADLINES, f"{where}: at {journal.time} for {event.not_before}, and the deadline is {deadline}")
        journal.open[event.at] = event.attempt
        if isinstance(event, ev.StepDispatched):
            journal.generations[event.at] = event.generation
        journal.dispatched.add((event.at, journal.generations[event.at], event.attempt))
        journal.handed[event.at, event.attempt] = journal.reports.get(event.at, "")

    def _called(self, journal: Journal, event: ev.ChildStarted, where: str) -> None:
        if journal.open.pop(event.at, None) != event.attempt:
            self.fail(CURRENT, f"{where}: no such attempt is open")
        if event.child not in self.data.runs and event.child not in self.data.tombstones:
            self.fail(CALLS, f"{where}: there is no such child")
        journal.calls.add(event.at)
        journal.children.append(event.child)

    def _open(self, journal: Journal, steps: Sequence[str]) -> None:
        journal.is_open = True
        for at in steps:
            journal.settled.pop(at, None)

    def _ended(
        self,
        journal: Journal,
        event: ev.StepSucceeded | ev.AttemptFailed | ev.StepFailed | ev.AttemptLost,
        where: str,
    ) -> None:
        self._reported(journal, event)
        if not isinstance(event, ev.AttemptFailed | ev.AttemptLost):
            self._settle(journal, event.at, where)
        if isinstance(event, ev.StepFailed | ev.AttemptFailed) and event.failure.code in _STORE_CODES:
            self.fail(ERRORS, where)
        if event.attempt <= 0:
            return
        if event.at in journal.calls:
            # The outcome of the child; its attempt ended when the child was started.
            journal.calls.discard(event.at)
            return
        if isinstance(event, ev.StepFailed) and (event.failure.code == "lost" or event.at not in journal.attempts):
            # Said with the loss of its last attempt, or it had none.
            return
        if journal.open.pop(event.at, None) != event.attempt:
            self.fail(CURRENT, f"{where}: no such attempt is open")
        # A window that is full is over without its timer's report.
        is_full = isinstance(event, ev.StepSucceeded) and not event.token and journal.run.head.window is not None
        # One that nobody had claimed until the deadline was taken back.
        is_late = isinstance(event, ev.StepFailed) and not event.token and event.failure.code == "deadline"
        if not is_full and not is_late and not isinstance(event, ev.AttemptLost):
            session, key, _number, attempt = self.tokens.get(event.token, ("", "", 0, 0))
            if (session, key, attempt) != (event.session, journal.run.key, event.attempt):
                self.fail(CURRENT, f"{where}: the token is of {session} {key} attempt {attempt}")

    def _reported(
        self,
        journal: Journal,
        event: ev.StepSucceeded | ev.AttemptFailed | ev.StepFailed | ev.AttemptLost | ev.StepCancelled,
    ) -> None:
        if not isinstance(event, ev.StepSucceeded) and event.progress:
            journal.reports[event.at] = report_of(event.progress)

    def _settle(self, journal: Journal, at: str, where: str) -> None:
        if at in journal.settled:
            self.fail(OUTCOMES, f"{where}: it has the outcome of {journal.settled[at]}")
        journal.settled[at] = where

    # -- the step functions ------------------------------------------------------------------------------------------

    def began(self, step: StepContext) -> int:
        """An attempt's code starts."""
        # Where a key is missing it goes no further, and starts again elsewhere.
        report = step.last_progress
        key: str = step.idempotency_key.split("/", 1)[0]
        execution = Execution(key, step.step, step.generation, step.attempt, LIFE.get())
        self.executions.append(execution)
        self.say(f"{execution.life} runs {step.run_id} {step.step} {step.generation}.{step.attempt}")
        journal = self.journals.get(key)
        if journal is None or (step.step, step.generation, step.attempt) not in journal.dispatched:
            self.fail(DURABLE, f"{step.run_id} {step.step} attempt {step.attempt} runs before its dispatch is stored")
        if journal is not None and (text := misplaced(step, journal.ran_on, self.sessions, execution.life)):
            self.fail(PLACED, f"{step.run_id} {step.step} {step.attempt} {text}")
        own = (key, step.step, step.generation, step.attempt, step.probe)
        if own in self.began_keys:
            self.fail(ONCE, f"{step.run_id} {step.step} {step.generation}.{step.attempt} starts twice")
        self.began_keys.add(own)
        if journal is not None and report != journal.handed.get((step.step, step.attempt), ""):
            self.fail(RESULTS, f"{step.run_id} {step.step} {step.attempt} finds the report {report!r}; it was another")
        return len(self.executions) - 1

    def asked(self, step: StepContext, role: str, error: str) -> None:
        """The code of a prepare, reconcile or undo starts; `error` is what is wrong with what it was given."""
        self.say(f"{LIFE.get()} {role} {step.run_id} {step.step} {step.generation}.{step.attempt}")
        journal = self.journals.get(step.idempotency_key.split("/", 1)[0])
        if journal is None or (step.step, step.attempt) not in journal.asked:
            self.fail(DURABLE, f"{step.run_id} {step.step} {role} {step.attempt} runs before its dispatch is stored")
        if error:
            self.fail(RESULTS, f"{step.run_id} {step.step} {role}: {error}")

    def ended(self, number: int, value: object) -> None:
        """An attempt's code returns."""
        self.executions[number].value = value

    def added(self, step: StepContext, ids: list[str]) -> None:
        """Steps were added at once; the call came back, so they must be stored."""
        journal = self.journals.get(step.idempotency_key.split("/", 1)[0])
        if journal is None:
            return
        missing = [id_ for id_ in ids if encode_id(id_) not in {at.rpartition("/")[2] for at in journal.added}]
        if missing:
            self.fail(DURABLE, f"{step.run_id} {step.step} was told that {missing} are added; they are not stored")


def _is_in(at: str, scopes: Iterable[str]) -> bool:
    return any(at.startswith(f"{scope}/") for scope in scopes)


def leftovers(data: MemoryData) -> list[str]:
    """What closed runs left behind."""
    found: list[str] = []
    for run in data.runs.values():
        if run.status in LIVE:
            found.append(f"run {run.head.id} is still open")
        if run.tasks:
            found.append(f"run {run.head.id} ({run.status}) has tasks of steps {sorted(run.tasks)}")
        if run.inbox:
            found.append(f"run {run.head.id} ({run.status}) has inputs {list(run.inbox)}")
        # The names of triggers are kept for good.
        if lines := [name for name in run.names if not name.startswith("trigger:")]:
            found.append(f"run {run.head.id} ({run.status}) is in the lines of {lines}")
    return found
