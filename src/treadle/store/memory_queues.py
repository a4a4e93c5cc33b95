"""Waiting tasks of `MemoryStore`: the queues, the lines in them, and the limits that hold tasks back.

Where things are
- A waiting task is in exactly one of: a line of its queue (`memory_lines`); the heap of tasks that are not due, by
  time; or its run's `parked` list, if a claim met it while its run was held. Lifting the hold puts parked tasks back,
  so a hold costs nothing until a claim meets its tasks, and then once for each.
- Leased tasks of queues with limits are counted where a lease begins and where it ends, and nowhere else.
- A task that ends while it waits is marked `gone`. It leaves its heap when it comes to the top, or when as many
  have gone as are left: the cost of an end stays constant and the heaps stay small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush
from typing import Protocol

import msgspec

from treadle.core.commands import Task
from treadle.store.memory_lines import Entry, Item, Line
from treadle.store.offers import Offer
from treadle.store.queues import (
    NO_LIMITS,
    Bucket,
    QueueChange,
    QueueLimits,
    allows,
    full_at,
    length_of_turn,
    next_start,
    refill,
    spend,
)

# Up to so many ended entries may stay in the heaps whatever their size.
_STALE_AT_LEAST = 1024


Timed = list[tuple[float, int, Entry]]


class Run(Protocol):
    """What a run has to do with waiting."""

    hold: int
    parked: list[Entry]


class Key:
    """A key of a queue: its leased tasks, what its rate allows, and whether a claim found it full."""

    __slots__ = ("bucket", "closed", "running")

    def __init__(self) -> None:
        self.running = 0
        self.bucket: Bucket | None = None
        self.closed = False


class Queue:
    """A queue with its lines, and what is stored of its limits."""

    __slots__ = (
        "bucket",
        "defined",
        "keys",
        "limits",
        "lines",
        "most",
        "name",
        "opened",
        "override",
        "paused",
        "running",
        "shares",
        "turns",
        "version",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[tuple[str, str], Line] = {}
        self.defined: QueueLimits | None = None
        self.override: QueueLimits | None = None
        self.limits = NO_LIMITS
        self.paused = False
        self.version = 0
        self.running = 0
        self.bucket: Bucket | None = None
        self.keys: dict[str, Key] = {}
        # By priority: the turn of what was leased last; by priority and key: the key's next turn.
        self.turns: dict[int, float] = {}
        self.shares: dict[tuple[int, str], float] = {}
        self.most = _STALE_AT_LEAST
        # Something that held its tasks back no longer does.
        self.opened = False

    def change(self, change: QueueChange) -> bool:
        """Take over what is to change; False if nothing does."""
        before = (self.defined, self.override, self.paused)
        if change.defined is not msgspec.UNSET:
            self.defined = change.defined
        if change.override is not msgspec.UNSET:
            self.override = change.override
        if change.paused is not msgspec.UNSET:
            self.paused = change.paused
        if before == (self.defined, self.override, self.paused):
            return False
        self.version += 1
        self.limits = self.override or self.defined or NO_LIMITS
        return True

    def count(self, leased: list[Entry]) -> None:
        """Begin anew under other limits; `leased` are the queue's leased tasks."""
        limits = self.limits
        buckets = {name: key.bucket for name, key in self.keys.items() if key.bucket is not None and limits.key_rate}
        self.running = len(leased)
        self.opened = True
        self.keys = {name: Key() for name in buckets}
        for name, bucket in buckets.items():
            self.keys[name].bucket = bucket
        for key in [entry.task.key for entry in leased if entry.task.key and limits.by_key]:
            self.keys.setdefault(key, Key()).running += 1
        if not limits.rate:
            self.bucket = None
        if not limits.fair:
            self.turns, self.shares = {}, {}

    def buckets(self) -> dict[str, Bucket]:
        """What its rates allow: by key, and of the queue itself ("")."""
        found = {"": self.bucket, **{name: key.bucket for name, key in self.keys.items()}}
        return {name: msgspec.structs.replace(bucket) for name, bucket in found.items() if bucket is not None}

    def is_open(self) -> bool:
        """Whether it is not paused and has room for another leased task, whatever its rate says."""
        most = self.limits.concurrency
        return not self.paused and (not most or self.running < most)

    def has_room(self, now: float) -> bool:
        """Whether another task may be leased."""
        if not self.is_open():
            return False
        limits = self.limits
        if not limits.rate:
            return True
        # A look at the bucket leaves it as it is: where states are replicated, not all look at the same time.
        return allows(refill(self.bucket, limits.rate, limits.burst, now), limits.rate)

    def turn_of(self, task: Task) -> float:
        """The turn of a task that comes in, which moves its key's next one back."""
        if not self.limits.fair:
            return 0.0
        place = (task.priority, task.key)
        latest = self.turns.get(task.priority, 0.0)
        turn = max(latest, self.shares.get(place, 0.0))
        if len(self.shares) > self.most:
            # Who has had no more than others is as one who was never there.
            self.shares = {one: share for one, share in self.shares.items() if share > self.turns.get(one[0], 0.0)}
            self.most = max(_STALE_AT_LEAST, 2 * len(self.shares))
        self.shares[place] = turn + length_of_turn(self.limits, task.key)
        return turn


class Waiting:
    """All tasks that wait, and the limits of their queues. Every method is called with the data's lock held."""

    __slots__ = (
        "fading",
        "limited",
        "opening",
        "parked",
        "queues",
        "runs",
        "served",
        "stale",
        "stale_limit",
        "timed",
        "turn",
    )

    def __init__(self, runs: Mapping[str, Run]) -> None:
        self.runs = runs
        self.queues: dict[str, Queue] = {}
        # Those of them that were ever defined.
        self.limited: dict[str, Queue] = {}
        self.timed: Timed = []
        # Keys of runs that have parked tasks; and of others, that had some.
        self.parked: dict[str, None] = {}
        # When keys, by queue, may start again by their rate; and when their buckets are full and need not be kept.
        self.opening: list[tuple[float, str, str]] = []
        self.fading: list[tuple[float, str, str]] = []
        # When queues were served last, in turns of their own; kept while there are fair ones.
        self.served: dict[str, int] = {}
        self.turn = 0
        self.stale = 0
        self.stale_limit = _STALE_AT_LEAST

    def queue(self, name: str) -> Queue:
        """The queue of that name."""
        found = self.queues.get(name)
        if found is None:
            found = self.queues[name] = Queue(name)
        return found

    # -- coming and going ------------------------------------------------------------------------------

    def enqueue(self, entry: Entry, now: float) -> None:
        """Let an entry wait: until it is due, or in its line."""
        task = entry.task
        if task.not_before > now:
            heappush(self.timed, (task.not_before, entry.age, entry))
            return
        queue = self.queue(task.queue)
        line = queue.lines.get((task.action, task.target))
        if line is None:
            line = queue.lines[task.action, task.target] = Line()
        line.push((-task.priority, entry.turn, entry.age, entry), task.key if queue.limits.by_key else "")

    def promote(self, now: float) -> None:
        """Move the tasks that are due by now into their lines, and open the keys whose time has come."""
        timed = self.timed
        while timed and (timed[0][0] <= now or timed[0][2].gone):
            entry = heappop(timed)[2]
            if not entry.gone:
                self.enqueue(entry, now)
        while self.opening and self.opening[0][0] <= now:
            _, name, key = heappop(self.opening)
            self._open(self.limited[name], key)

    def fade(self, now: float) -> None:
        """Forget the buckets of keys that are full by now.

        It is not done in passing, since what is promoted when depends on who has looked.
        """
        while self.fading and self.fading[0][0] <= now:
            _, name, key = heappop(self.fading)
            self._forget(self.limited[name], key, now)

    def head(self, queue: Queue, line: Line, now: float) -> Item | None:
        """The first entry of a line that may be claimed now; those above it go where they belong."""
        ready = line.ready
        while ready:
            first = ready[0]
            entry = first[3]
            if not entry.gone:
                run = self.runs[entry.task.run]
                if run.hold:
                    run.parked.append(entry)
                    self.parked[entry.task.run] = None
                elif entry.task.not_before > now:
                    # Another node's clock is ahead and moved it here: for this one it is not due.
                    heappush(self.timed, (entry.task.not_before, entry.age, entry))
                elif queue.limits.by_key and not self.may_start(queue, entry.task.key, now):
                    line.fall_back()
                    continue
                else:
                    return first
            line.pop()
        return None

    def is_behind(self, task: Task, now: float, offer: Offer) -> bool:
        """Whether a waiting task of the same queue would be claimed by this session before a new `task`."""
        if (self.timed and self.timed[0][0] <= now) or (self.opening and self.opening[0][0] <= now):
            self.promote(now)
        queue = self.queues.get(task.queue)
        if queue is None:
            return False
        for (action, target), line in queue.lines.items():
            if not line.ready or (target and target not in offer.targets()):
                continue
            first = self.head(queue, line, now)
            # All that wait are older, so an equal priority goes before it.
            if (
                first is not None
                and first[0] <= -task.priority
                and (action == task.action or action in offer.actions())
            ):
                return True
        return False

    def gone(self, entry: Entry) -> None:
        """A waiting entry has ended."""
        entry.gone = True
        self.stale += 1
        if self.stale > self.stale_limit:
            self._drop_stale()

    def _drop_stale(self) -> None:
        """Rebuild the heaps without the entries that are gone; paid for by as many ends as were left before."""
        self.timed = [item for item in self.timed if not item[2].gone]
        heapify(self.timed)
        lines = (line for queue in self.queues.values() for line in queue.lines.values())
        left = len(self.timed) + sum(line.drop_stale() for line in lines)
        self.stale = 0
        self.stale_limit = max(_STALE_AT_LEAST, left)

    def next_due(self) -> float | None:
        """When the next waiting task falls due or the next key opens. Call it after `promote`."""
        timed, opening = self.timed, self.opening
        while timed and timed[0][2].gone:
            heappop(timed)
        if not opening:
            return timed[0][0] if timed else None
        return min(timed[0][0], opening[0][0]) if timed else opening[0][0]

    # -- limits ----------------------------------------------------------------------------------------

    def may_start(self, queue: Queue, key: str, now: float) -> bool:
        """Whether a key has room for another leased task; if it has none it is closed until it has."""
        found = queue.keys.get(key)
        if found is None or not key:
            return True
        limits = queue.limits
        if limits.key_concurrency and found.running >= limits.key_concurrency:
            found.closed = True
            return False
        if not limits.key_rate:
            return True
        bucket = refill(found.bucket, limits.key_rate, limits.key_burst, now)
        if allows(bucket, limits.key_rate):
            return True
        if not found.closed:
            found.closed = True
            heappush(self.opening, (next_start(bucket, limits.key_rate, now), queue.name, key))
        return False

    def admits(self, task: Task, now: float) -> bool:
        """Whether the limits of its queue leave room for a task."""
        queue = self.limited.get(task.queue)
        return queue is None or (
            queue.has_room(now) and (not queue.limits.by_key or self.may_start(queue, task.key, now))
        )

    def started(self, entry: Entry, now: float) -> None:
        """An entry was leased, and some queue has limits."""
        task = entry.task
        if self.by_turns():
            self.turn += 1
            self.served[task.queue] = self.turn
        queue = self.limited.get(task.queue)
        if queue is None:
            return
        queue.running += 1
        limits = queue.limits
        if limits.rate:
            queue.bucket = refill(queue.bucket, limits.rate, limits.burst, now)
            spend(queue.bucket)
        if limits.fair and entry.turn > queue.turns.get(task.priority, 0.0):
            queue.turns[task.priority] = entry.turn
        if not task.key or not limits.by_key:
            return
        key = queue.keys.setdefault(task.key, Key())
        key.running += 1
        if limits.key_rate:
            bucket = refill(key.bucket, limits.key_rate, limits.key_burst, now)
            spend(bucket)
            self.keep_bucket(queue, task.key, bucket)

    def keep_bucket(self, queue: Queue, name: str, bucket: Bucket) -> None:
        """Keep the bucket of a key until it is full again."""
        key = queue.keys.setdefault(name, Key())
        if key.bucket is None:
            heappush(self.fading, (bucket.at, queue.name, name))
        key.bucket = bucket

    def adopt(self, entry: Entry) -> None:
        """Count an entry that is leased already."""
        queue = self.limited.get(entry.task.queue)
        if queue is not None:
            queue.running += 1
            if entry.task.key and queue.limits.by_key:
                queue.keys.setdefault(entry.task.key, Key()).running += 1

    def ended(self, entry: Entry) -> None:
        """A leased entry of a queue with limits is leased no more."""
        task = entry.task
        queue = self.limited[task.queue]
        was_open = queue.is_open()
        queue.running -= 1
        # What fell due since the last claim has met no limit yet, so nothing is known of it.
        queue.opened = queue.opened or bool(self.timed) or (not was_open and queue.is_open())
        key = queue.keys.get(task.key)
        if key is not None and task.key:
            # A task that nobody has met since it fell due may wait for it without the key being closed.
            queue.opened = queue.opened or key.running == queue.limits.key_concurrency
            key.running -= 1
            if key.closed:
                self._open(queue, task.key)
            if not key.running and key.bucket is None:
                del queue.keys[task.key]

    def _open(self, queue: Queue, name: str) -> None:
        key = queue.keys.get(name)
        if key is None or not key.closed:
            return
        key.closed = False
        queue.opened = True
        for line in queue.lines.values():
            line.open(name)

    def _forget(self, queue: Queue, name: str, now: float) -> None:
        """Keep the bucket of a key no longer if it is full by any clock."""
        limits = queue.limits
        key = queue.keys.get(name)
        if key is None or key.bucket is None or not limits.key_rate:
            return
        if (at := full_at(key.bucket, limits.key_rate, limits.key_burst)) > now:
            heappush(self.fading, (at, queue.name, name))
            return
        key.bucket = None
        if not key.running and not key.closed:
            del queue.keys[name]

    def is_full(self, name: str, now: float) -> bool:
        """Whether as many due tasks wait in a queue as may."""
        queue = self.limited.get(name)
        if queue is None or not queue.limits.length:
            return False
        self.promote(now)
        return self._length(queue, queue.limits.length, now) >= queue.limits.length

    def _length(self, queue: Queue, most: int, now: float) -> int:
        """How many due tasks wait in a queue; exact where it is not below `most`."""
        held = self._held(queue.name)
        if sum(line.size() for line in queue.lines.values()) + len(held) < most:
            return 0
        return len(self.waiting_in(queue, now))

    def waiting_in(self, queue: Queue, now: float) -> list[Entry]:
        """The due tasks that wait in a queue."""
        items = (item for line in queue.lines.values() for item in line.items())
        entries = [*self._held(queue.name), *(item[3] for item in items)]
        # A clock that was ahead may have moved here what is not due yet.
        return [entry for entry in entries if not entry.gone and entry.task.not_before <= now]

    def _held(self, name: str) -> list[Entry]:
        """The tasks of a queue that are parked."""
        self.parked = {key: None for key in self.parked if key in self.runs and self.runs[key].parked}
        return [entry for key in self.parked for entry in self.runs[key].parked if entry.task.queue == name]

    def left_room(self, now: float | None) -> bool:
        """Whether a queue was opened since this was asked last, and a task that may start waits in it.

        Without a time rates are not asked.
        """
        found = False
        for queue in self.limited.values():
            if queue.opened:
                queue.opened = False
                found = found or self.has_work(queue, now)
        return found

    def has_work(self, queue: Queue, now: float | None) -> bool:
        """Whether a task waits in a queue with limits that may be leased now."""
        if now is None:
            return queue.is_open() and (bool(self.timed) or any(line.ready for line in queue.lines.values()))
        self.promote(now)
        return queue.has_room(now) and any(self.head(queue, line, now) for line in queue.lines.values())

    def set_limits(self, changes: Iterable[QueueChange], leased: Iterable[Entry], now: float) -> list[bool]:
        """Change what is stored of queues; whether each was changed."""
        entries = list(leased)
        answers: list[bool] = []
        for change in changes:
            queue = self.queue(change.name)
            changed = queue.change(change)
            kept = change.kept(queue.limits)
            refilled = kept is not None and kept != queue.buckets()
            answers.append(changed or refilled)
            if changed:
                self.limited[queue.name] = queue
                self._begin_anew(queue, [entry for entry in entries if entry.task.queue == queue.name], now)
            if kept is not None and refilled:
                self._put_buckets(queue, kept)
        return answers

    def _put_buckets(self, queue: Queue, buckets: dict[str, Bucket]) -> None:
        """Let the rates of a queue allow this, and nothing else."""
        queue.opened = True
        queue.bucket = buckets.get("")
        for name, key in list(queue.keys.items()):
            key.bucket = None
            self._open(queue, name)
            if not key.running:
                del queue.keys[name]
        for name, bucket in buckets.items():
            if name:
                self.keep_bucket(queue, name, bucket)

    def _begin_anew(self, queue: Queue, leased: list[Entry], now: float) -> None:
        """Line up by the limits that hold now, and count by them."""
        lines, queue.lines = queue.lines, {}
        queue.count(leased)
        if not queue.limits.fair:
            for entry in (*(item[2] for item in self.timed), *self._held(queue.name)):
                if entry.task.queue == queue.name:
                    entry.turn = 0.0
        for line in lines.values():
            for item in line.items():
                entry = item[3]
                if not entry.gone:
                    entry.turn = entry.turn if queue.limits.fair else 0.0
                    self.enqueue(entry, now)

    # -- claims ----------------------------------------------------------------------------------------

    def candidates(self, offer: Offer, now: float, dues: list[float]) -> Iterator[Entry]:
        """Take out what the offer takes, in claim order; each is to be leased before the next is asked for.

        `dues` gets the times at which queues may go on by their rate.
        """
        actions = frozenset(offer.actions())
        targets = frozenset(("", *offer.targets()))
        firsts: list[tuple[float, int, int, str, _Heads]] = []
        by_turns = self.by_turns()
        for queue in self.queues.values():
            heads = _Heads(self, queue, now, dues)
            for (action, target), line in queue.lines.items():
                if line.ready and action in actions and target in targets:
                    heads.look(line)
            if heads.go_on():
                heappush(firsts, self._rank(heads, by_turns))
        while firsts:
            heads = heappop(firsts)[-1]
            line = heads.items[0][-1]
            entry = line.ready[0][3]
            heappop(heads.items)
            # The answer depends on action and queue alone: if it is no, the rest of this line waits.
            if offer.take(entry.task.action, entry.task.queue):
                line.pop()
                yield entry
                heads.look(line)
            if heads.go_on():
                heappush(firsts, self._rank(heads, by_turns))

    def by_turns(self) -> bool:
        """Whether queues take turns, since one of them is fair."""
        return any(queue.limits.fair for queue in self.limited.values())

    def _rank(self, heads: _Heads, by_turns: bool) -> tuple[float, int, int, str, _Heads]:
        """What queues go by: priority, then age. Where a fair one serves young tasks first, they take turns instead."""
        priority, _, age, _ = heads.items[0]
        name = heads.queue.name
        return priority, self.served.get(name, 0) if by_turns else 0, age, name, heads


class _Heads:
    """The first tasks of a queue's lines, for one claim."""

    __slots__ = ("dues", "items", "now", "queue", "waiting")

    def __init__(self, waiting: Waiting, queue: Queue, now: float, dues: list[float]) -> None:
        self.waiting = waiting
        self.queue = queue
        self.now = now
        self.dues = dues
        self.items: list[tuple[float, float, int, Line]] = []

    def look(self, line: Line) -> None:
        """Take a line's first task in."""
        first = self.waiting.head(self.queue, line, self.now)
        if first is not None:
            heappush(self.items, (*first[:3], line))

    def go_on(self) -> bool:
        """Whether a task may be taken now."""
        queue = self.queue
        while self.items and queue.limits.by_key:
            # What was leased meanwhile may have closed the key of a line's first task.
            line = self.items[0][3]
            first = self.waiting.head(queue, line, self.now)
            if first is not None and first[:3] == self.items[0][:3]:
                break
            heappop(self.items)
            if first is not None:
                heappush(self.items, (*first[:3], line))
        if not self.items:
            return False
        if queue.name not in self.waiting.limited or queue.has_room(self.now):
            return True
        if queue.is_open():
            limits = queue.limits
            bucket = refill(queue.bucket, limits.rate, limits.burst, self.now)
            self.dues.append(next_start(bucket, limits.rate, self.now))
        return False
