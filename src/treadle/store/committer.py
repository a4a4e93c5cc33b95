"""The one committer of all stores: groups what waits, writes it in one transaction, and answers in bulk.

Operations are carried out in the order they are submitted; appends that stand next to each other go into one
`Store.commit`. There is no timer: a group is what has gathered while the last one was being written. All answers
of a group reach the event loop by one call. Two drivers: `ThreadDriver` has a thread of its own, `InlineDriver`
runs on the event loop (memory, simulation).

The committer also renews the session, on its own thread, so that a blocked event loop does not lose its lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec

from treadle.core.commands import Task
from treadle.errors import LeaseLostError, StoreError, StoreFullError
from treadle.ports import Clock, Wakeups
from treadle.store.base import Answer, Append, Renewal, Store
from treadle.store.offers import Offer

_log = logging.getLogger("treadle.store")

T = TypeVar("T")
Then = Callable[[Any, BaseException | None], None]


class Work(msgspec.Struct, eq=False, gc=False):
    """What waits for the committer, an append or any other call on the store; then also what came of it."""

    append: Append | None
    function: Callable[[Store], Any] | None
    then: Then
    value: Any = None
    error: BaseException | None = None


# Appends of one transaction: above this the latency of the first one in the group would grow for no gain.
GROUP = 2000


class Driver(Protocol):
    """Where the committer's work is done."""

    def start(self, committer: Committer) -> None:
        """Begin; called once on the event loop."""
        ...

    def begin(self, append: Append, then: Then) -> bool:
        """Commit an append that has no company, if the event loop can do so itself, now; called there."""
        ...

    def wake(self) -> None:
        """Something was submitted. Called on the event loop."""
        ...

    async def stop(self) -> None:
        """Finish what was submitted, then end."""
        ...


class Bell(Protocol):
    """What the thread of a `ThreadDriver` sleeps in; it is entered by that thread."""

    def __enter__(self) -> object: ...

    def __exit__(self, *exc: object) -> object: ...

    def ring(self) -> None:
        """End the wait, or the next one if nobody waits; from any thread."""
        ...

    def wait(self, seconds: float) -> None:
        """Sleep until it rings, at most so long."""
        ...


class QueueBell:
    """A bell that does nothing else."""

    def __init__(self) -> None:
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()

    def __enter__(self) -> QueueBell:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to end."""

    def ring(self) -> None:
        """End the wait, or the next one."""
        self._rings.put(None)

    def wait(self, seconds: float) -> None:
        """Sleep until it rings, at most so long."""
        with contextlib.suppress(queue.Empty):
            self._rings.get(timeout=seconds)


class Express(Protocol):
    """A store's way to commit an append that has no company, without the committer's thread: one at a time."""

    def begin(
        self, session: str, append: Append, offer: Offer | None, answered: Callable[[Answer | None], None]
    ) -> bool:
        """Begin a commit on the event loop, if that can be done without waiting.

        `answered` gets the answer, on the committer's thread while that is in its bell, or on the event loop; None:
        `finish` is to be asked.
        """
        ...

    def finish(self) -> Answer:
        """Wait for the answer to what was begun; on the committer's thread.

        Raises:
            StoreError: as `Store.commit` does.
        """
        ...


class Committer:
    """Submits operations to a store for one session. All methods are for the event loop's thread."""

    def __init__(self, store: Store, session: str, offer: Offer | None, wakeups: Wakeups, driver: Driver) -> None:
        self.store = store
        self.session = session
        self.offer = offer
        self.wakeups = wakeups
        self.driver = driver
        self.items: deque[Work] = deque()
        # Calls of the store that were no commits, and commits with the appends in them.
        self.calls = 0
        self.commits = 0
        self.appended = 0
        # Something was committed, and left tasks waiting, of which other sessions are not told yet.
        self._news = False
        self._queued = False
        # What was logged of a store without room, since it last had some.
        self._full = ""
        # Wakes others after a commit: set by the session while others may listen.
        self.on_renewal: Callable[[Renewal | None, BaseException | None], None] = lambda renewal, error: None
        # A queue with limits has room for tasks that waited. Told on the event loop, with the answers.
        self.on_room: Callable[[], None] = lambda: None
        self.waits = 0
        driver.start(self)

    def append(
        self, append: Append, then: Callable[[Answer, BaseException | None], None], *, alone: bool = False
    ) -> None:
        """Commit an append; `then` gets its answer (status `doubt` with the error if nothing is known).

        `alone` says that nothing else of this process is under way, so that waiting for company is vain.
        """
        if not (alone and not self.items and self.driver.begin(append, then)):
            self.items.append(Work(append, None, then))
            self.driver.wake()

    def submit(self, function: Callable[[Store], T], then: Callable[[T, BaseException | None], None]) -> None:
        """Call the store in order with the appends."""
        self.items.append(Work(None, function, then))
        self.driver.wake()

    def call(self, function: Callable[[Store], T]) -> asyncio.Future[T]:
        """As `submit`, as a future."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.submit(function, partial(resolve, future))
        return future

    async def stop(self) -> None:
        """Finish what was submitted, then end the driver. What is submitted later is answered with LeaseLostError."""
        await self.driver.stop()
        self.driver = _Ended(self)
        self.driver.wake()

    # -- the driver's side: any thread, one at a time -------------------------------------------------------------

    def work(self) -> list[Work]:
        """Carry out one group of what waits, to be delivered on the event loop."""
        done: list[Work] = []
        items = self.items
        group: list[Work] = []
        while items and len(group) < GROUP:
            function = items[0].function
            if function is None:
                group.append(items.popleft())
                continue
            if group:
                break
            work = items.popleft()
            done.append(work)
            self.calls += 1
            try:
                work.value = function(self.store)
            except Exception as error:  # noqa: BLE001 - whatever the call raised is the caller's answer
                work.error = error
        if group:
            answers, failure = self.commit([work.append for work in group if work.append is not None])
            for work, answer in zip(group, answers, strict=True):
                work.value, work.error = answer, failure
            done += group
        if self.store.made_room:
            done.append(Work(None, None, self._tell_room))
        return done

    def _tell_room(self, _value: object, _error: BaseException | None) -> None:
        self.on_room()

    def commit(self, appends: list[Append]) -> tuple[list[Answer], StoreError | None]:
        """Commit appends: an answer each, and why nothing is known of them, if so."""
        self.commits += 1
        self.appended += len(appends)
        offer = self.offer
        mark = offer.mark() if offer is not None else None
        try:
            answers = self.store.commit(self.session, appends, offer)
        except StoreError as error:
            return [self._failed(error, mark)] * len(appends), error
        if self.wakeups.address or self._full:
            self._committed(answers)
        return answers, None

    def _failed(self, error: StoreError, mark: object) -> Answer:
        if self.offer is not None:
            self.offer.reset(mark)
        if isinstance(error, StoreFullError) and str(error) != self._full:
            _log.warning("what is decided waits for room in the store: %s", error)
            self._full = str(error)
        return Answer("conflict" if isinstance(error, LeaseLostError) else "doubt")

    def _committed(self, answers: Iterable[Answer]) -> None:
        self._news = True
        self._full = ""
        for answer in answers:
            if answer.queued:
                self._queued = True

    def begin(
        self, express: Express, append: Append, then: Then, answered: Callable[[list[Work] | None], None]
    ) -> Callable[[], list[Work]] | None:
        """Begin a commit by a store's express, if it takes it; returns what finishes it.

        `answered` gets what is to be delivered on the event loop; None: it is to be finished. Called by the express.
        """
        offer = self.offer
        mark = offer.mark() if offer is not None else None

        def done(answer: Answer, error: StoreError | None) -> list[Work]:
            if error is None:
                self._committed([answer])
            told = [Work(append, None, then, answer, error)]
            if self.store.made_room:
                told.append(Work(None, None, self._tell_room))
            return told

        def finish() -> list[Work]:
            try:
                return done(express.finish(), None)
            except StoreError as error:
                return done(self._failed(error, mark), error)

        def ended(answer: Answer | None) -> None:
            answered(None if answer is None else done(answer, None))

        if not express.begin(self.session, append, offer, ended):
            return None
        self.commits += 1
        self.appended += 1
        return finish

    def announce(self) -> None:
        """Wake the sessions that wait for what `work` wrote; after its answers are on their way."""
        if self._news:
            queued, self._news, self._queued = self._queued, False, False
            if self.wakeups.address:
                self.notify(tasks=queued, keys=())

    def claim(self, store: Store, now: float) -> tuple[list[Task], float | None, bool, bool]:
        """Claim what the offer takes; for `submit`.

        Also says whether tasks may be left for want of slots, and whether a queue with limits has room for others.
        """
        offer = self.offer
        assert offer is not None
        mark = offer.mark()
        full, free = offer.full(), offer.free()
        try:
            tasks, due = store.claim(self.session, offer, now)
            # A slot that the event loop freed meanwhile hides that tasks were left for want of it. A claim that had
            # slots and took none has left nothing; else the hops of a chain, each freeing one, ask again and again.
            hidden = bool(tasks) and offer.free() > free - len(tasks)
            return tasks, due, full or offer.full() or hidden, store.made_room
        except StoreError:
            offer.reset(mark)
            raise

    def notify(self, *, tasks: bool, keys: Sequence[str]) -> None:
        """Wake the sessions that wait for what was just written."""
        if not self.wakeups.address:
            return
        try:
            addresses = self.store.wakes(self.session, tasks=tasks, keys=keys)
        except StoreError:
            # A wake-up is a hint; the sweep covers its loss.
            return
        self.ring(addresses)

    def ring(self, addresses: Iterable[str]) -> None:
        """Wake the sessions at these addresses, each once; those that cannot be woken have none."""
        if self.wakeups.address:
            for address in dict.fromkeys(addresses):
                if address:
                    self.wakeups.send(address)

    def renew(self) -> tuple[Renewal | None, BaseException | None]:
        """Renew the session now."""
        try:
            return self.store.renew(self.session, self.waits), None
        except StoreError as error:
            return None, error


def resolve(future: asyncio.Future[T], value: T, error: BaseException | None) -> None:
    """Tell whoever waits for a future, if nobody has given it up."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)


def deliver(done: list[Work]) -> None:
    """Tell those who wait what came of it, on the event loop."""
    for work in done:
        work.then(work.value, work.error)
        # An error knows the frames that it has passed, and one of those knows all of the group.
        work.error = None


class _Ended:
    """After the driver has ended: nothing is done any more, and nobody waits in vain."""

    def __init__(self, committer: Committer) -> None:
        self.committer = committer
        self.loop = asyncio.get_running_loop()

    def start(self, committer: Committer) -> None:
        """There is nothing to start."""

    def begin(self, append: Append, then: Then) -> bool:
        """Nothing is begun any more."""
        return False

    def wake(self) -> None:
        """Answer what was submitted."""
        # With the loop closed the program is ending, and nobody waits for answers any more.
        if not self.loop.is_closed():
            self.loop.call_soon(self._refuse)

    def _refuse(self) -> None:
        items = self.committer.items
        while items:
            work = items.popleft()
            error = LeaseLostError(
                f"session {self.committer.session} has ended, or its application was closed; nothing was written"
            )
            work.then(Answer("conflict") if work.append is not None else None, error)

    async def stop(self) -> None:
        """It has stopped."""


class ThreadDriver:
    """A writer thread; it sleeps in its bell and renews the session every `renew_seconds`."""

    def __init__(
        self, clock: Clock, *, renew_seconds: float, bell: Bell | None = None, express: Express | None = None
    ) -> None:
        self.clock = clock
        self.renew_seconds = renew_seconds
        self.bell: Bell = bell if bell is not None else QueueBell()
        self.express = express
        self.rung = False
        self.going = True
        # The thread does nothing with the store but to wait in its bell, or to renew the session.
        self.resting = False
        # What finishes a commit of the express that is under way: nothing else is done before it. Set and cleared on
        # the event loop.
        self.under_way: Callable[[], list[Work]] | None = None
        # It is to be finished by the thread.
        self.late = False

    def start(self, committer: Committer) -> None:
        """Start the thread."""
        self.committer = committer
        self.loop = asyncio.get_running_loop()
        self.home = threading.get_ident()
        self.thread = threading.Thread(target=self._run, name="treadle-committer", daemon=True)
        self.thread.start()

    def begin(self, append: Append, then: Then) -> bool:
        """Commit by the store's express, if it has one and the thread has nothing to do."""
        if self.express is None or not self.resting or self.under_way is not None or not self.going:
            return False
        self.under_way = self.committer.begin(self.express, append, then, self._answered)
        if self.late:
            # It was told before the thread could know what of.
            self.bell.ring()
        return self.under_way is not None

    def _answered(self, done: list[Work] | None) -> None:
        if done is None:
            self.late = True
            self.bell.ring()
            return
        if threading.get_ident() == self.home:
            self._deliver(done)
        else:
            self._post(self._deliver, done)
        self.committer.announce()

    def _deliver(self, done: list[Work]) -> None:
        self.under_way = None
        deliver(done)
        if self.committer.items or not self.going:
            self.wake()

    def wake(self) -> None:
        """Ring the bell, once until the thread has heard it."""
        if not self.rung:
            self.rung = True
            self.bell.ring()

    async def stop(self) -> None:
        """Let the thread finish what waits and end."""
        self.going = False
        self.bell.ring()
        await self.loop.run_in_executor(None, self.thread.join)

    def _run(self) -> None:
        with self.bell:
            self._serve()

    def _serve(self) -> None:
        committer = self.committer
        due = self.clock.monotonic() + self.renew_seconds
        while self.going or committer.items or self.under_way is not None:
            if not committer.items or self.under_way is not None:
                self.resting = True
                self.bell.wait(max(0.0, due - self.clock.monotonic()))
                self.resting = False
            # Cleared before looking at the items: one submitted after the look rings again.
            self.rung = False
            if self.late and self.under_way is not None:
                self.late = False
                self._post(self._deliver, self.under_way())
                committer.announce()
            while committer.items and self.under_way is None:
                self._post(deliver, committer.work())
                committer.announce()
                if self.clock.monotonic() >= due:
                    break
            if self.clock.monotonic() >= due:
                renewal, error = committer.renew()
                self._post(committer.on_renewal, renewal, error)
                due = self.clock.monotonic() + self.renew_seconds

    def _post(self, function: Callable[..., None], *args: object) -> None:
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            # The loop is closed: the process is ending, nobody waits for answers any more.
            return


class InlineDriver:
    """Works on the event loop itself, one group an iteration."""

    def __init__(self, *, renew_seconds: float) -> None:
        self.renew_seconds = renew_seconds
        self.scheduled = False
        # Nothing is under way, and nothing has ended.
        self.idle = True
        self.stopped = False
        self.timer: asyncio.TimerHandle | None = None

    def start(self, committer: Committer) -> None:
        """Set the renewal's timer."""
        self.committer = committer
        self.loop = asyncio.get_running_loop()
        self.timer = self.loop.call_later(self.renew_seconds, self._renew)

    def begin(self, append: Append, then: Then) -> bool:
        """Commit it, unless something else is under way or has ended."""
        if not self.idle:
            return False
        self.idle = False
        committer = self.committer
        try:
            answers, error = committer.commit([append])
            then(answers[0], error)
            if committer.store.made_room:
                committer.on_room()
            if committer.wakeups.address:
                committer.announce()
        finally:
            self.idle = True
        if committer.items:
            self.wake()
        return True

    def wake(self) -> None:
        """Work in the next iteration of the loop."""
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon(self._work)

    def _work(self) -> None:
        self.scheduled = False
        # What was scheduled before the end finds nothing to do: the session may no longer be this one's.
        if not self.idle:
            return
        self.idle = False
        try:
            deliver(self.committer.work())
            self.committer.announce()
        finally:
            self.idle = not self.stopped
        if self.committer.items:
            self.wake()

    def _renew(self) -> None:
        renewal, error = self.committer.renew()
        self.committer.on_renewal(renewal, error)
        self.timer = self.loop.call_later(self.renew_seconds, self._renew)

    async def stop(self) -> None:
        """Work off what waits."""
        while self.committer.items:
            deliver(self.committer.work())
            self.committer.announce()
        self.stopped, self.idle = True, False
        if self.timer is not None:
            self.timer.cancel()
