"""The engine: owns runs, decides their inputs, commits the decisions and performs them.

One append of a run is in flight at a time; inputs that come meanwhile wait and are decided together when it is
answered. So a run's decisions form a line, a fan's outcomes are batched by themselves, and a failed append
leaves nothing stacked on it: the run is dropped, loaded again, and its inputs are decided anew.
Nothing leaves the process before its commit is durable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter

from treadle.core import inputs as inp
from treadle.core.commands import Refusal, Task
from treadle.core.deadlines import is_awaited
from treadle.core.decide import Decision, Limits, decide, start
from treadle.core.events import RunSettled
from treadle.core.forgetting import forget, needs_all
from treadle.core.inputs import AnyInput, decode_input
from treadle.core.plan import Plan
from treadle.core.singletons import Enters
from treadle.core.state import RunState
from treadle.core.tables import LIVE
from treadle.errors import InternalError, LeaseLostError, SchemaVersionError, StoreError, TreadleError
from treadle.ports import Clock, Ids
from treadle.runtime.alarms import Alarms
from treadle.runtime.appending import append_of, refused
from treadle.runtime.flights import FirstFlight, Flight
from treadle.runtime.folding import Graphs, fold_run, started_of, state_of
from treadle.runtime.hub import Hub
from treadle.runtime.inboxes import Inboxes
from treadle.runtime.owned import Owned, Pending, Waiter
from treadle.runtime.payloads import Row
from treadle.runtime.posts import tell
from treadle.runtime.reports import Reports
from treadle.store.base import FORMAT, Acquired, Answer, Append, Loaded, Report, RunHead
from treadle.store.committer import Committer, resolve

_log = logging.getLogger("treadle.engine")

# Seconds between tries while a store does not answer.
RETRY_SECONDS = 0.2
# What `decide` gets of one that waits.
_pair: Callable[[Pending], tuple[AnyInput, str]] = attrgetter("value", "cause")
_lease_of: Callable[[Pending], int] = attrgetter("lease")


def _unstored(items: Iterable[Pending]) -> list[Pending]:
    """Those that did not come through the inbox: the others come with the run again, or were decided."""
    return [item for item in items if not item.cause]


def _ignore(_value: object, _error: BaseException | None) -> None:
    """For calls whose failure the sweep makes good."""


class Engine:
    """Decides runs for one session. All methods are for the event loop's thread."""

    def __init__(
        self,
        *,
        session: str,
        committer: Committer,
        clock: Clock,
        ids: Ids,
        hub: Hub,
        limits: Limits,
        on_leased: Callable[[Sequence[Task]], None],
        on_adopted: Callable[[Task], None],
        on_queued: Callable[[], None],
        on_taken_back: Callable[[], None],
        on_interrupt: Callable[[str, int], None],
        on_lease_lost: Callable[[], None],
        is_executing: Callable[[Task], bool],
        on_committed: Callable[[Owned, Append], None] | None = None,
        on_given: Callable[[str], None] | None = None,
    ) -> None:
        self.session = session
        self.committer = committer
        self.clock = clock
        self.ids = ids
        self.hub = hub
        self.limits = limits
        self.on_leased = on_leased
        self.on_adopted = on_adopted
        self.on_queued = on_queued
        self.on_taken_back = on_taken_back
        self.on_interrupt = on_interrupt
        self.on_lease_lost = on_lease_lost
        self.is_executing = is_executing
        self.on_committed = on_committed
        self.on_given = on_given
        self.runs: dict[str, Owned] = {}
        self.graphs = Graphs()
        self._reports = Reports(self, RETRY_SECONDS)
        self.inboxes = Inboxes(self)
        self.alarms = Alarms(self)
        # Runs being acquired, with the inputs to decide then.
        self._acquiring: dict[str, tuple[list[asyncio.Future[str | None]], list[Pending]]] = {}
        # Leases whose outcome was handed over and is not durable yet: their attempts have ended, whatever the
        # store says. A store gives no lease's number twice.
        self._undelivered: set[int] = set()
        # Runs that only a newer kernel decides.
        self._newer: set[str] = set()
        # Leases whose outcome a projection does not take, and why: their attempts have failed.
        self._unfit: dict[int, str] = {}
        self._loop = asyncio.get_running_loop()
        self.closed = False
        # Commit ids count up from a random number: unique among all sessions, and cheap.
        self._commit_id = ids.number() >> 2

    # -- runs come and go --------------------------------------------------------------------------------------

    def start(
        self,
        head: RunHead,
        plan: Plan,
        encoded: bytes,
        rows: list[Row],
        then: Callable[[Answer, BaseException | None], None],
        report: Report | None = None,
        enters: Enters = "take",
    ) -> None:
        """Make a run; `then` gets the store's answer. `enters` is how it enters the line of its singleton, if any.

        For `report` see `Append`.
        """
        state = state_of(head, self.graphs.of(head.plan, encoded, plan))
        state.forgets = True
        owned = Owned(state, head)
        decision = start(state, now=self.clock.now(), limits=self.limits, started=started_of(head), enters=enters)
        self._commit_id += 1
        append = append_of(owned, decision, (), self._commit_id)
        append.head = head
        append.plan = encoded
        append.payloads = rows or ()
        append.report = report
        owned.in_flight = ()
        self.runs[head.key] = owned
        if head.deadline:
            self.alarms.set(head.key, head.deadline)
        self.committer.append(append, FirstFlight(self, owned, append, decision, then))

    def acquire(
        self, key: str, pending: Sequence[Pending] | None = None, *, steal: bool = False
    ) -> asyncio.Future[str | None]:
        """Own a run and decide what waits for it. Gives "" when owned, its owner's session, None for no run."""
        future: asyncio.Future[str | None] = self._loop.create_future()
        owned = self.runs.get(key)
        if owned is not None and not owned.closing:
            for item in pending or []:
                self._give(owned, item)
            future.set_result("")
            return future
        under_way = self._acquiring.get(key)
        if under_way is not None:
            # A future for each caller: one that gives up cancels its own only.
            under_way[0].append(future)
            under_way[1].extend(pending or [])
            return future
        self._acquiring[key] = ([future], list(pending or []))
        self.committer.submit(lambda store: store.acquire(self.session, key, steal=steal), partial(self._acquired, key))
        return future

    def _acquired(self, key: str, found: Acquired | None, error: BaseException | None) -> None:
        callers, waiting = self._acquiring.pop(key)
        owner = None if found is None else found.owner
        if error is None and found is not None and found.run is not None:
            try:
                self._take(found.run, waiting)
                owner = ""
            except TreadleError as failure:
                self.committer.submit(lambda store: store.release(self.session, [key]), _ignore)
                error = failure
                if isinstance(failure, SchemaVersionError):
                    self._newer.add(key)
        for caller in callers:
            resolve(caller, owner, error)

    async def rescue(self, key: str) -> None:
        """Own a run of which the store says that nobody owns it, although inputs wait for it."""
        owned = self.runs.get(key)
        if key in self._newer:
            return
        if owned is None or owned.closing:
            await self.acquire(key)
        elif owned.in_flight is None:
            # Another session took it from this one and died; an append would conflict, but nothing asks for one.
            self.drop(owned, [])

    def _take(self, loaded: Loaded, pending: list[Pending]) -> None:
        """Fold a run that the session owns now, adopt its leased tasks, and decide its inbox."""
        state = self.load(loaded)
        known = self.runs.get(loaded.head.key)
        owned = Owned(state, loaded.head)
        if known is not None:
            owned.pending, known.pending = _unstored(known.pending), ()
        self.runs[loaded.head.key] = owned
        if is_awaited(state):
            self.alarms.set(state.key, state.deadline)
        for item in loaded.inbox:
            if not self.alarms.is_mark(state, item):
                owned.add(Pending(decode_input(item.body), item.id, [], None))
        owned.pending = [*owned.pending, *pending]
        self._decide(owned, force=True)

    def load(self, loaded: Loaded, *, forgets: bool = True) -> RunState:
        """The state of a stored run.

        Raises:
            SchemaVersionError: a newer kernel wrote it.
        """
        head = loaded.head
        if head.format > FORMAT:
            raise SchemaVersionError(
                f"run {head.id!r} has format {head.format}, this Treadle decides up to {FORMAT}; upgrade it"
            )
        return fold_run(loaded, self.graphs.of(head.plan, loaded.plan), forgets=forgets)

    def adopt(self) -> None:
        """The answer of a commit or claim was lost: start what it leased to this session, if anything."""

        def got(tasks: list[Task], error: BaseException | None) -> None:
            if error is not None:
                if not self.closed:
                    self._loop.call_later(RETRY_SECONDS, self.adopt)
                return
            for task in tasks:
                # An attempt that has ended is still leased until its outcome is durable.
                if task.lease not in self._undelivered and not self.is_executing(task):
                    self.on_adopted(task)

        self.committer.submit(lambda store: store.leased(self.session), got)

    def drop(self, owned: Owned, undecided: Sequence[Pending]) -> None:
        """Forget a run whose state is void, load it again, and decide its inputs anew."""
        key = owned.state.key
        self.hub.ended(key, None)
        waiting = [*undecided, *owned.pending]
        owned.pending = ()
        if self.runs.get(key) is owned:
            del self.runs[key]
        self._reload(key, waiting)

    def _reload(self, key: str, waiting: Sequence[Pending]) -> None:
        waiting = _unstored(waiting)
        if self.closed:
            self._tell_lost(waiting)
            return
        future = self.acquire(key, waiting)

        def done(found: asyncio.Future[str | None]) -> None:
            error = found.exception()
            if error is None:
                owner = found.result()
                if owner is None:
                    for item in waiting:
                        self._tell(item, Refusal("run_not_found", "the run was deleted"), None)
                elif owner:
                    self._forward(key, waiting)
            elif isinstance(error, StoreError) and not isinstance(error, SchemaVersionError):
                self._loop.call_later(RETRY_SECONDS, self._reload, key, waiting)
            else:
                for item in waiting:
                    self._tell(item, None, error)

        future.add_done_callback(done)

    def _forward(self, key: str, waiting: Sequence[Pending]) -> None:
        """Another session owns the run now: its outcomes go to the inbox, operators are told to ask again."""
        for item in waiting:
            if isinstance(item.value, inp.Outcome):
                self._reports.add(key, item.value, item.rows)
            else:
                self._tell(item, Refusal("conflict", "another session decides the run now; ask again"), None)

    @property
    def busy(self) -> bool:
        """Whether something is to be decided, or waits for its commit."""
        return bool(self._acquiring) or any(o.in_flight is not None or o.pending or o.more for o in self.runs.values())

    def will_tell(self, key: str) -> bool:
        """Whether this engine decides the run and will tell the hub of its end."""
        owned = self.runs.get(key)
        return owned is not None and (owned.in_flight is not None or owned.state.status in LIVE)

    # -- inputs --------------------------------------------------------------------------------------------------

    def outcome(self, task: Task, outcome: inp.Outcome, rows: list[Row]) -> None:
        """A worker of this process ended an attempt."""
        self._undelivered.add(outcome.lease)
        owned = self.runs.get(task.run)
        if owned is None or owned.closing:
            self._reports.add(task.run, outcome, rows)
            return
        item = Pending(outcome, "", rows, None, outcome.lease)
        if owned.in_flight is not None:
            owned.add(item)
            return
        owned.pending = [*owned.pending, item]
        self._decide(owned)

    def give(self, key: str, value: AnyInput, waiter: Waiter | None) -> bool:
        """Decide an input if this engine owns the run; False if it does not."""
        owned = self.runs.get(key)
        if owned is None or owned.closing:
            return False
        self._give(owned, Pending(value, "", [], waiter))
        return True

    def _give(self, owned: Owned, item: Pending) -> None:
        if self.closed:
            # What is in flight of this run may never be answered.
            self._tell_lost([item])
            return
        owned.add(item)
        if owned.in_flight is None:
            self._decide(owned)

    def look_at(self, key: str) -> bool:
        """Let the deadline of a run pass, if this engine decides it and it still has one; whether it has one then."""
        owned = self.runs.get(key)
        if owned is None or owned.closing or not is_awaited(owned.state):
            return False
        self._give(owned, Pending(inp.Look(), "", [], None))
        return is_awaited(owned.state)

    def go_on(self, owned: Owned) -> None:
        """What was in flight is answered: read what came meanwhile, decide what waits."""
        if owned.in_flight is not None or self.runs.get(owned.state.key) is not owned:
            return
        if owned.unread:
            owned.unread = False
            self.inboxes.look(owned.state.key)
        elif owned.pending or owned.more:
            self._decide(owned, force=owned.more)

    def later(self, seconds: float, function: Callable[..., None], *arguments: object) -> None:
        """Call a function after a while."""
        self._loop.call_later(seconds, function, *arguments)

    def reported(self, report: Report, *, decided: bool) -> None:
        """The store has taken a report, or its token was not live; `decided` says that others decide its run."""
        self._undelivered.discard(report.lease)
        key = report.input.key
        if not decided and key not in self.runs:
            self.help(key)

    def help(self, key: str) -> None:
        """Decide a run if nobody else does, in the background."""
        self._loop.create_task(self._help(key))

    async def _help(self, key: str) -> None:
        try:
            await self.acquire(key)
        except TreadleError as error:
            _log.warning("run %s cannot be decided here: %s", key, error)

    # -- decide, commit, perform -----------------------------------------------------------------------------------

    def _decide(self, owned: Owned, *, force: bool = False) -> None:
        items = owned.pending
        if not items and not owned.more and not force:
            return
        state = owned.state
        if state.forgotten and needs_all(state, [item.value for item in items]):
            self._remember(owned)
            return
        owned.pending = ()
        owned.more = False
        try:
            # Pairs that live no longer than they are looked at.
            values: Iterable[tuple[AnyInput, str]] = map(_pair, items)
            if self._unfit:
                values = refused(values, self._unfit)
            decision = decide(state, values, now=self.clock.now(), limits=self.limits)
        except Exception as caught:  # noqa: BLE001 - a fault of the kernel holds its run; nothing else may suffer
            error = caught if isinstance(caught, InternalError) else InternalError(f"{type(caught).__name__}: {caught}")
            _log.critical("run %r is held, please report this: %s", state.run_id, error, exc_info=caught)
            self.runs.pop(state.key, None)
            for item in items:
                self._tell(item, None, error)
            return
        if not decision.events and not decision.ended and not any(item.cause for item in items):
            if items:
                owned.in_flight = items
                self._confirm(owned, items, decision)
            elif not state.tasks and state.status != "":
                self._let_go(owned)
            return
        self._commit_id += 1
        append = append_of(owned, decision, items, self._commit_id)
        if owned.head.deadline:
            self.alarms.unmark(state, append)
        owned.in_flight = items
        alone = state.tasks <= 1 and len(self.runs) == 1
        self.committer.append(append, Flight(self, owned, append, decision), alone=alone)

    def _remember(self, owned: Owned) -> None:
        """Load a run with all that its state has forgotten, and go on."""
        items, owned.pending = owned.pending, []
        owned.in_flight = items
        key = owned.state.key

        def got(loaded: Loaded | None, error: BaseException | None) -> None:
            owned.in_flight = None
            owned.pending = [*items, *owned.pending]
            if error is not None and not self.closed:
                self._loop.call_later(RETRY_SECONDS, self._decide, owned)
            elif error is not None:
                self._tell_lost(owned.pending)
            elif loaded is None or loaded.version != owned.state.version:
                self.drop(owned, [])
            else:
                owned.state = self.load(loaded, forgets=False)
                self._decide(owned)

        self.committer.submit(lambda store: store.load(key), got)

    def not_committed(self, flight: Flight, answer: Answer, error: BaseException | None) -> None:
        """An append had no effect."""
        owned, status = flight.owned, answer.status
        if error is not None:
            # The first time the node tells all who wait; who asked the old engine after that is told here.
            closed = self.closed
            self.on_lease_lost()
            if closed:
                self._tell_lost([*(owned.in_flight or ()), *owned.pending])
        elif status == "refused":
            items = owned.in_flight or ()
            owned.in_flight = None
            self.runs.pop(owned.state.key, None)
            for item in (*items, *owned.pending):
                if isinstance(item.value, inp.Outcome):
                    self._undelivered.discard(item.value.lease)
                self._tell(item, Refusal("run_not_found", f"run {owned.state.run_id!r} was deleted"), None)
        else:
            if status == "unfit":
                self._unfit[answer.unfit[0]] = answer.unfit[1]
            self.undecided(owned)

    def undecided(self, owned: Owned) -> None:
        """What was in flight had no effect: the run is loaded again, and its inputs are decided anew."""
        items = owned.in_flight or ()
        owned.in_flight = None
        self.drop(owned, items)

    def committed(self, flight: Flight, answer: Answer) -> None:
        """An append is durable."""
        owned, append = flight.owned, flight.append
        items = owned.in_flight or ()
        # Still in flight for those who are told now: an outcome that comes of it (an interrupted attempt) waits for
        # the decision below, else two appends would be on their way at once.
        owned.in_flight = ()
        if self.on_committed is not None:
            self.on_committed(owned, append)
        self._announce(append, flight.decision, answer, items)
        if owned.state.closed:
            forget(owned.state)
        owned.in_flight = None
        key = append.key
        if append.revoke or append.interrupts:
            self.on_taken_back()
        if append.release:
            if self.runs.get(key) is owned:
                del self.runs[key]
            if owned.pending or owned.unread or append.revoke or append.interrupts:
                waiting = owned.pending
                owned.pending = ()
                self._reload(key, waiting)
            return
        if append.revoke or append.interrupts:
            owned.unread = True
        if owned.pending or owned.more or owned.unread:
            self.go_on(owned)

    def _announce(self, append: Append, decision: Decision, answer: Answer, items: Sequence[Pending]) -> None:
        """What is durable leaves the engine: attempts start, callers and watchers are told."""
        key = append.key
        if answer.leased:
            self.on_leased(answer.leased)
        if append.hold == 0:
            # What waited under the hold may be claimed now, here and elsewhere.
            self.committer.submit(lambda _store: self.committer.notify(tasks=True, keys=()), _ignore)
        if answer.queued or append.hold == 0:
            self.on_queued()
        for number in decision.interrupts:
            self.on_interrupt(key, number)
        if items:
            self._perform(key, items, decision)
        if append.given and self.on_given is not None:
            self.on_given(key)
        if append.posts:
            tell(self, [post.key for post in append.posts])
        if answer.told:
            tell(self, answer.told)
        self.hub.changed(key)
        if append.status not in LIVE:
            ends = [event for event in append.events if type(event) is RunSettled]
            self.hub.ended(key, ends[-1] if ends else None)

    def _perform(self, key: str, items: Sequence[Pending], decision: Decision) -> None:
        self._undelivered.difference_update(map(_lease_of, items))
        for position, (begin, end) in decision.spans.items() if decision.spans else ():
            if (waiter := items[position].waiter) is not None:
                # What others asked in the same decision is not this one's answer.
                waiter(decision.refusals.get(position), None, decision.events[begin:end])

    def _tell(self, item: Pending, refusal: Refusal | None, error: BaseException | None) -> None:
        if item.waiter is not None:
            item.waiter(refusal, error, [])

    def _confirm(self, owned: Owned, items: Sequence[Pending], decision: Decision) -> None:
        """Nothing came of these inputs: believe that only if the state is still the run's.

        Another session may have taken the run and decided since; no append of ours has told us by its conflict.
        """
        state = owned.state

        def read(newer: int | None, error: BaseException | None) -> None:
            if error is not None:
                if not self.closed:
                    self._loop.call_later(RETRY_SECONDS, self._confirm, owned, items, decision)
                else:
                    self._tell_lost([*items, *owned.pending])
                return
            owned.in_flight = None
            if newer is not None:
                self.drop(owned, items)
                return
            self._perform(state.key, items, decision)
            if owned.pending or owned.unread:
                self.go_on(owned)
            elif not state.tasks and self.runs.get(state.key) is owned:
                self._let_go(owned)

        self.committer.submit(lambda store: store.committed(state.key, state.version + 1), read)

    def _tell_lost(self, items: Sequence[Pending]) -> None:
        for item in items:
            self._tell(item, None, LeaseLostError("the session was lost before this was decided; ask again"))

    def _let_go(self, owned: Owned) -> None:
        """Give back a run that was looked at and has nothing to decide, if it has no deadline."""
        if is_awaited(owned.state):
            return
        key = owned.state.key
        del self.runs[key]
        self.committer.submit(lambda store: store.release(self.session, [key]), _ignore)

    def resolve_doubt(self, flight: Flight, then: Callable[[bool], None]) -> None:
        """Find out whether an append took effect by reading its row, never by trying it again."""
        append = flight.append

        def read(commit_id: int | None, error: BaseException | None) -> None:
            if error is None:
                then(commit_id == append.commit_id)
            elif not self.closed:
                self._loop.call_later(RETRY_SECONDS, self.resolve_doubt, flight, then)
            else:
                # The session is lost and decides nothing any more; whoever waits for a start learns that.
                then(False)

        self.committer.submit(lambda store: store.committed(append.key, append.expect + 1), read)

    def close(self) -> None:
        """Take no more inputs."""
        self.closed = True
        self.alarms.close()
