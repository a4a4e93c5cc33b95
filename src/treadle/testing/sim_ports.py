"""The ports of a simulated node: clock, ids, threads, wake-ups, the committer's driver, the reader's thread."""

from __future__ import annotations

import asyncio
import contextvars
import io
import random
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from treadle.errors import StoreError
from treadle.runtime.clock import uuid7
from treadle.store.base import Append
from treadle.store.blob_port import BlobFile
from treadle.store.committer import Committer, Then, deliver
from treadle.testing.sim_conduct import Shelf
from treadle.testing.sim_faults import Faults
from treadle.testing.sim_loop import LIFE, Life, NodeCrashed, SimLoop

T = TypeVar("T")
# The virtual world begins at this wall-clock time (2030-01-01), far from the machine's own.
EPOCH = 1_893_456_000.0


class SimClock:
    """A clock with skew; `jump` sets its wall time, `rate` is how fast its monotonic time runs."""

    def __init__(self, loop: SimLoop, skew: float, rate: float) -> None:
        self._loop = loop
        self._skew = skew
        self._rate = rate
        self._offset = 1000.0 * rate

    def now(self) -> float:
        """Wall time, with skew and jumps."""
        return round(EPOCH + self._loop.time() + self._skew, 6)

    def monotonic(self) -> float:
        """Never runs back."""
        return self._offset + self._loop.time() * self._rate

    def jump(self, seconds: float) -> None:
        """Somebody set the machine's clock."""
        self._skew += seconds


class SimIds:
    """Ids from the node's own stream of random numbers."""

    def __init__(self, clock: SimClock, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng

    def key(self) -> str:
        """A UUIDv7."""
        return uuid7(int(self._clock.now() * 1000), self._rng.getrandbits(74))

    def number(self) -> int:
        """A positive 62-bit number."""
        return self._rng.getrandbits(62) | 1


class SimThreads:
    """Runs a sync step at one virtual instant, some time after it was submitted; at most `size` at a time."""

    def __init__(self, loop: SimLoop, rng: random.Random, size: int) -> None:
        self._loop = loop
        self._rng = rng
        self._free = size
        self._waiting: list[Callable[[], None]] = []
        self._closed = False

    def submit(self, function: Callable[[], None]) -> None:
        """Run it soon."""
        if self._free > 0:
            self._free -= 1
            self._start(function)
        else:
            self._waiting.append(function)

    def _start(self, function: Callable[[], None]) -> None:
        rng = self._rng
        seconds = rng.random() * (0.05 if rng.random() < 0.8 else 4.0)
        self._loop.call_later(seconds, self._run, function)

    def _run(self, function: Callable[[], None]) -> None:
        function()
        self._go_on()

    def _go_on(self) -> None:
        """A thread is free."""
        if self._waiting:
            self._start(self._waiting.pop(0))
        else:
            self._free += 1

    def close(self, *, wait: bool) -> None:
        """Take no more."""
        self._closed = True


class SimNetwork:
    """Carries datagrams between sessions; each may be lost, doubled or late."""

    def __init__(self, loop: SimLoop, faults: Faults) -> None:
        self._loop = loop
        self._faults = faults
        self._listeners: dict[str, tuple[Callable[[], None], contextvars.Context]] = {}

    def listen(self, address: str, on_wake: Callable[[], None]) -> None:
        """Deliver datagrams to this address from now on, in the caller's context."""
        self._listeners[address] = (on_wake, contextvars.copy_context())

    def leave(self, address: str) -> None:
        """Deliver nothing to this address any more."""
        self._listeners.pop(address, None)

    def send(self, sender: str, address: str) -> None:
        """Carry one datagram."""
        for seconds in self._faults.datagram(f"{sender}>{address}"):
            self._loop.call_later(seconds, self._arrive, address, context=contextvars.Context())

    def _arrive(self, address: str) -> None:
        found = self._listeners.get(address)
        if found is not None:
            on_wake, context = found
            self._loop.call_soon(on_wake, context=context)


class SimWakeups:
    """A node's end of the network."""

    def __init__(self, network: SimNetwork, name: str) -> None:
        self._network = network
        self._name = name
        self.address = f"sim:{name}"

    async def open(self, on_wake: Callable[[], None]) -> None:
        """Listen."""
        self._network.listen(self.address, on_wake)

    def send(self, address: str) -> None:
        """Send one datagram."""
        self._network.send(self._name, address)

    def close(self) -> None:
        """Hear nothing more."""
        self._network.leave(self.address)


class SimDriver:
    """The committer's thread: each group of work happens after a delay, and its answers come after another.

    While a group is slow nothing else of this thread happens, the session's renewal included: a disk that hangs
    costs the session its lease.
    """

    def __init__(self, loop: SimLoop, faults: Faults, name: str, renew_seconds: float) -> None:
        self._loop = loop
        self._faults = faults
        self._name = name
        self._renew_seconds = renew_seconds
        self._busy = False
        self._due = False
        self._ended = False
        # Answers are delivered in the order of the work.
        self._last = 0.0
        self._answers: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._stopping: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, committer: Committer) -> None:
        """Set the renewal's timer."""
        self._committer = committer
        self._timer = self._loop.call_later(self._renew_seconds, self._renewal_due)

    def begin(self, append: Append, then: Then) -> bool:
        """Do nothing on the event loop: its work is a thread's."""
        return False

    def wake(self) -> None:
        """Something was submitted. Nobody hears it once the thread has ended."""
        if not self._busy and not self._ended:
            self._begin()

    def _renewal_due(self) -> None:
        if self._ended:
            return
        self._due = True
        if self._stopping is None:
            self._timer = self._loop.call_later(self._renew_seconds, self._renewal_due)
        if not self._busy:
            self._begin()

    def _begin(self) -> None:
        self._busy = True
        self._loop.call_later(self._faults.delay(f"{self._name}.work"), self._work)

    def _work(self) -> None:
        committer = self._committer
        try:
            if committer.items:
                answers = committer.work()
                self._post(deliver, answers)
                committer.announce()
            if self._due:
                self._due = False
                self._post(committer.on_renewal, *committer.renew())
        except NodeCrashed:
            return
        if committer.items or self._due:
            self._begin()
            return
        self._busy = False
        if self._stopping is not None:
            self._ended = True
            if not self._stopping.done():
                self._post(self._stopping.set_result, None)

    def _post(self, function: Callable[..., object], *args: object) -> None:
        self._last = max(self._last, self._loop.time() + self._faults.delay(f"{self._name}.answer"))
        # Timers of one instant run in no order of their own, so what they do is taken from a queue.
        self._answers.append((function, args))
        self._loop.call_at(self._last, self._answer)

    def _answer(self) -> None:
        function, args = self._answers.popleft()
        function(*args)

    async def stop(self) -> None:
        """Finish what was submitted, then end."""
        if self._stopping is None:
            self._stopping = self._loop.create_future()
        if self._timer is not None:
            self._timer.cancel()
        if not self._busy and not self._ended:
            self._begin()
        await asyncio.wait([self._stopping])


class SimReaderThread:
    """Runs a node's reads: each takes its snapshot after a delay and is delivered, stale, after another."""

    def __init__(self, loop: SimLoop, faults: Faults, life: Life) -> None:
        self._loop = loop
        self._faults = faults
        self._life = life

    async def run(self, function: Callable[[], Any]) -> Any:
        """Run a function there."""
        name = self._life.name
        await asyncio.sleep(self._faults.delay(f"{name}.read"))
        try:
            value = function()
        except NodeCrashed:
            # The node is dead: this coroutine never goes on.
            await self._loop.create_future()
            raise
        await asyncio.sleep(self._faults.delay(f"{name}.stale"))
        return value


class SimBlobs:
    """The shared place of large payloads, as one node reaches it."""

    def __init__(self, blobs: Shelf, faults: Faults, life: Life) -> None:
        self._blobs = blobs
        self._faults = faults
        self._life = life

    def put(self, data: bytes) -> str:
        """Store and return the digest."""
        return self._faults.call(self._life, "put_blob", lambda: self._blobs.put(data))

    def get(self, digest: str) -> bytes:
        """The bytes."""
        return self._faults.call(self._life, "get_blob", lambda: self._blobs.get(digest))

    def copy_to(self, path: str) -> None:
        """A backup copies all of them."""
        self._faults.call(self._life, "copy_blobs", lambda: self._blobs.copy_to(path))

    def writer(self) -> SimWriter:
        """Begin a blob."""
        return SimWriter(self)

    def open(self, digest: str) -> BlobFile:
        """The bytes as a stream."""
        return io.BytesIO(self.get(digest))

    def uri(self, digest: str) -> str:
        """Where the blob is."""
        return self._blobs.uri(digest)

    def renew(self, digest: str) -> bool:
        """Make the blob young."""
        return self._faults.call(self._life, "renew_blob", lambda: self._blobs.renew(digest))

    def old(self, before: float) -> list[tuple[str, int]]:
        """The blobs that are old."""
        return self._faults.call(self._life, "old_blobs", lambda: list(self._blobs.old(before)))

    def remove(self, digest: str, before: float) -> bool:
        """Remove an old blob."""
        return self._faults.call(self._life, "remove_blob", lambda: self._blobs.remove(digest, before))


class SimWriter:
    """A blob that a node is writing; each part may fail."""

    def __init__(self, blobs: SimBlobs) -> None:
        self._blobs = blobs
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Add bytes at the end."""
        self._parts.append(bytes(data))

    def finish(self) -> str:
        """Store, and return the digest."""
        return self._blobs.put(b"".join(self._parts))

    def abort(self) -> None:
        """Forget what was written."""
        self._parts.clear()


def living() -> bool:
    """Whether the present context is of no node, or of one that lives."""
    life = LIFE.get()
    return life is None or not life.dead


__all__ = [
    "EPOCH",
    "SimBlobs",
    "SimClock",
    "SimDriver",
    "SimIds",
    "SimNetwork",
    "SimReaderThread",
    "SimThreads",
    "SimWakeups",
    "StoreError",
    "living",
]
