"""Windows in the simulation: triggers that clients send, some of them twice, and the runs that collect them.

Each trigger has a value of its own, so it is known by that, also if it has no name. What a window must have collected,
and what its work must have given, is computed here from the events of its journal alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from treadle.authoring.decorators import workflow
from treadle.authoring.triggers import Batch, Debounce
from treadle.core import events as ev
from treadle.core.events import AnyEvent, Handle, decode_events
from treadle.core.windows import TIMER, WORK
from treadle.runtime.client import App
from treadle.store.memory_data import MemoryData, StoredRun
from treadle.testing.invariants import DURABLE, WINDOWS, Fail, Journal, Watch
from treadle.testing.sim_codec import encodes
from treadle.testing.sim_conduct import Shelf, value_of
from treadle.testing.sim_loop import Life
from treadle.testing.sim_oracle import Oracle
from treadle.testing.sim_steps import registry, work
from treadle.testing.sim_workload import Act

LATEST: Final = {"name": "latest", "sleep": 1.0}
BATCH: Final = {"name": "batch", "sleep": 1.0}
_OPERATIONS: Final = ("cancel", "cancel_hard", "pause", "resume", "delete", "retry", "rewind", "inspect", "inspect")


@workflow(registry=registry, name="sim:latest", triggers=Debounce(3.0, timeout=10.0))
def latest(value: str, lane: int = 0) -> Any:
    """The last of the triggers that come close to each other, none of which waits for more than ten seconds."""
    return work.options(id="first").bind(LATEST, [value])


@workflow(registry=registry, name="sim:apart", triggers=Debounce(6.0, key="lane"))
def apart(value: str, lane: int = 0) -> Any:
    """The last of them, by lanes."""
    return work.options(id="first").bind(LATEST, [value])


@workflow(registry=registry, name="sim:batch", triggers=Batch(3, 8.0))
def batch(values: list[str]) -> Any:
    """Up to three."""
    return work.options(id="first").bind(BATCH, values)


@workflow(registry=registry, name="sim:pair", triggers=Batch(2, 20.0, key="len(item) > 100"))
def pair(values: list[str]) -> Any:
    """Up to two, long ones and short ones apart."""
    return work.options(id="first").bind(BATCH, values)


WORKFLOWS: Final[Mapping[str, Any]] = {"latest": latest, "apart": apart, "batch": batch, "pair": pair}


class Send(msgspec.Struct):
    """A trigger: for what, when, from which machines, and under which id ("" for none; then it is sent once)."""

    name: str
    workflow: str
    at: float
    node: int
    value: str
    lane: int = 0
    id: str = ""
    # When and where it is sent again.
    again: Sequence[tuple[float, int]] = ()


class Windows:
    """What is triggered in a world, and what came of it."""

    def __init__(
        self,
        seed: int,
        seconds: float,
        nodes: int,
        watch: Watch,
        blobs: Shelf,
        fail: Fail,
        sends: Sequence[Send] | None = None,
        *,
        punctual: bool = False,
    ) -> None:
        self._watch = watch
        self._blobs = blobs
        self._data: MemoryData = watch.data
        self._fail = fail
        # No clock is wrong, so a window must not close too early.
        self._punctual = punctual
        rng = random.Random(f"windows of {seed}")
        drawn = sends is None and rng.random() < 0.25
        self.sends = list(sends or ()) if not drawn else _sends(rng, seconds, nodes, keyed=not encodes(seed))
        self.acts = _acts(rng, seconds, nodes) if drawn else []
        # By the value of a trigger: the run that has taken it, as a client was told.
        self.told: dict[str, str] = {}
        # Windows that take triggers, by name: the keys of their runs.
        self._open: dict[str, dict[str, None]] = {}

    # -- what goes on ------------------------------------------------------------------------------------------------

    def sending(self, send: Send) -> Callable[[App], Any]:
        """What a client does that sends a trigger."""

        async def work(app: App) -> None:
            arguments: list[Any] = [send.value]
            if send.workflow in ("latest", "apart"):
                arguments.append(send.lane)
            run = await app.trigger(WORKFLOWS[send.workflow], *arguments, id=send.id or None)
            key = await run.key()
            journal = self._watch.journals.get(key)
            if journal is None or send.value not in self._model(journal).came:
                self._fail(DURABLE, f"{send.name} was taken by run {key}, in which it is not stored")
            if self.told.setdefault(send.value, key) != key and self.told[send.value] in self._data.runs:
                self._fail(WINDOWS, f"{send.name} was taken by run {self.told[send.value]}, and by {key}")

        return work

    def missing(self) -> list[Send]:
        """The named triggers of which no client has heard yet that they were taken."""
        return [send for send in self.sends if send.id and send.value not in self.told]

    def runs(self) -> list[StoredRun]:
        """The runs that collect."""
        return [run for run in self._data.runs.values() if run.head.window is not None]

    def wrote(self, _life: Life | None, key: str, event: AnyEvent) -> None:
        """Watch that one window of a name is open at a time."""
        run = self._watch.journals[key].run
        window = run.head.window
        if window is None:
            return
        among = self._open.setdefault(window.name, {})
        match event:
            case ev.RunStarted():
                among[key] = None
            case ev.StepSucceeded(at=at) | ev.StepFailed(at=at) | ev.StepCancelled(at=at) if at == TIMER:
                among.pop(key, None)
            case ev.CancelRequested():
                among.pop(key, None)
            case _:
                pass
        if len(among) > 1:
            self._fail(WINDOWS, f"window {window.name} is open in the runs {list(among)}")

    # -- what must have come of it -------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Read the journals of all windows."""
        counted: dict[str, list[str]] = {}
        for key, journal in self._watch.journals.items():
            if journal.run.head.window is not None:
                for one in self._model(journal).came:
                    counted.setdefault(one, []).append(key)
        sent = {send.value: send for send in self.sends}
        for one, keys in counted.items():
            if one not in sent:
                self._fail(WINDOWS, f"runs {keys} have a trigger that was never sent: {one[:40]}")
            elif len([key for key in keys if key in self._data.runs]) > 1:
                self._fail(WINDOWS, f"{sent[one].name} counts in the runs {keys}")
        for one, key in self.told.items():
            if key not in counted.get(one, ()):
                self._fail(WINDOWS, f"{sent[one].name} was taken by run {key}, and counts in {counted.get(one)}")

    def _model(self, journal: Journal) -> _Model:
        """What a window is by its journal; what is wrong with that is reported."""
        values = Oracle(journal, self._blobs, self._fail)
        model = _Model(journal.run, values.value, self._fail, punctual=self._punctual)
        for row in journal.run.rows:
            for event in decode_events(row.events) if isinstance(row.events, str) else row.events:
                model.take(row.time, event)
        return model


class _Model:
    """What one window is, by its events."""

    def __init__(self, run: StoredRun, value: Callable[[Handle], Any], fail: Fail, *, punctual: bool) -> None:
        assert run.head.window is not None
        self.run = run
        self.window = run.head.window
        self._value = value
        self._fail = fail
        self._punctual = punctual
        self.names: list[str] = []
        # The values of all triggers that came, and what the work is to be given.
        self.came: list[str] = []
        self.holds: list[Any] = []
        self._is_open = False
        self._began_at = self._due_at = 0.0

    def _wrong(self, text: str) -> None:
        self._fail(WINDOWS, f"window {self.run.head.id}: {text}")

    def take(self, time: float, event: AnyEvent) -> None:
        """The next event."""
        match event:
            case ev.RunStarted():
                self._is_open, self._began_at = True, time
                self._add(event.trigger, self.run.head.constants)
                window = self.window
                first = window.timeout if window.size else min(window.period, window.timeout or window.period)
                self._due_at = time + first
            case ev.TriggerReceived():
                self._received(time, event)
            case ev.StepSucceeded(at=at) if at == TIMER:
                self._closed(event)
            case ev.StepFailed(at=at) | ev.StepCancelled(at=at) if at == TIMER:
                self._is_open = False
            case ev.StepSucceeded(at=at) if at == WORK:
                found, expected = self._value(event.result), self._expected()
                if found != expected:
                    self._wrong(f"its work gave {found}, not {expected}, of {self.came}")
            case _:
                pass

    def _received(self, time: float, event: ev.TriggerReceived) -> None:
        window = self.window
        if not self._is_open:
            self._wrong(f"trigger {event.name} came when it was closed")
        if event.name in self.names:
            self._wrong(f"trigger {event.name} counts twice")
        self._add(event.name, event.args)
        if window.size:
            if len(self.came) > window.size:
                self._wrong(f"{len(self.came)} triggers; it takes {window.size}")
            return
        until = time + window.period
        if window.timeout:
            until = max(time, min(until, self._began_at + window.timeout))
        self._due_at = until
        if abs(event.not_before - until) > 1e-6:
            self._wrong(f"trigger {event.name} lets it wait until {event.not_before}, not {until}")

    def _closed(self, event: ev.StepSucceeded) -> None:
        self._is_open = False
        is_full = bool(self.window.size) and len(self.came) >= self.window.size
        if not event.token and not is_full:
            self._wrong(f"it is over with {len(self.came)} triggers, before its time")
        if event.token and self._punctual and event.started_at < self._due_at - 1e-6:
            self._wrong(f"it is over at {event.started_at}, before {self._due_at}")

    def _add(self, name: str, args: Iterable[Handle]) -> None:
        values = [self._value(handle) for handle in args]
        self.names.append(name)
        self.came.append(values[0])
        # Of a debounced one the last trigger has all parameters, the defaults included.
        self.holds = [*self.holds, *values] if self.window.size else values

    def _expected(self) -> dict[str, Any]:
        if self.window.size:
            return value_of(BATCH, self.holds)
        return value_of(LATEST, self.holds[:1])


def _sends(rng: random.Random, seconds: float, nodes: int, *, keyed: bool) -> list[Send]:
    found: list[Send] = []
    kinds = rng.sample(sorted(WORKFLOWS) if keyed else ["batch", "latest"], k=rng.choice((1, 2)))
    for number in range(rng.choice((3, 8, 20))):
        at, node = rng.random() * seconds, rng.randrange(nodes)
        if found and rng.random() < 0.5:
            # Close to another one.
            at = min(seconds, found[-1].at + rng.choice((0.0, 0.0, 1.0, 4.0)) * rng.random())
        name = f"trigger{number}"
        named = rng.random() < 0.7
        again: list[tuple[float, int]] = []
        for _ in range(rng.choice((0, 0, 1, 2)) if named else 0):
            # At the same instant from another place, or when the window may have closed.
            later = rng.choice((0.0, 0.0, 1.0, 15.0)) * rng.random()
            again.append((min(seconds, at + later), rng.randrange(nodes)))
        pad = "x" * rng.choice((0, 0, 0, 2_000, 20_000))
        value = f"{name}{pad}"
        id_ = rng.choice((name, f"{name}/ü")) if named else ""
        found.append(Send(name, rng.choice(kinds), at, node, value, rng.randrange(2), id_, again))
    return found


def _acts(rng: random.Random, seconds: float, nodes: int) -> list[Act]:
    return [
        Act(f"window{number}", rng.random() * seconds, rng.choice(_OPERATIONS), rng.randrange(nodes), 0, rng.random())
        for number in range(rng.choice((0, 0, 3, 6)))
    ]
