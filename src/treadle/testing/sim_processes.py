"""Processes of steps in the simulation: the worker's side is the production code, its threads and processes are not.

A thread that waits for a process must let virtual time pass. So in worlds with such steps each sync step has a thread
of its own that runs while the loop waits for it, and the other way round: there is one order of all that happens. The
process executes its step's function by the production code too (`step_process.execute`), at one instant. It may die
before that instant and after it, before and after it has told what came of it; and so may its worker, while it lives.
"""

from __future__ import annotations

import contextvars
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from treadle.authoring.builder import Planned
from treadle.authoring.registry import Registry
from treadle.core.plan import Step
from treadle.runtime.step_process import Call, Remote, execute
from treadle.testing.sim_faults import Faults
from treadle.testing.sim_limits import changed
from treadle.testing.sim_loop import LIFE, Life, NodeCrashed, SimLoop
from treadle.testing.sim_ports import SimClock, SimThreads

# Of these steps so many are in processes.
_SHARES: Final = {"sim:toil": 0.8, "sim:work": 0.4}
_KILLED: Final = -9
_EXITED: Final = 3
# The lane that a thread is.
_here = threading.local()


class Apart:
    """What a world has of steps in processes of their own: nothing, in most of them."""

    def __init__(self, seed: int, registry: Registry, on: bool | None) -> None:
        # Drawn apart, so that the other worlds are what they were; a user's own steps are as they are.
        known = registry.get("sim:boxed") if "sim:boxed" in registry.names() else None
        drawn = random.Random(f"processes of {seed}").random() < 0.15
        own = [name for name in registry.names() if name != "sim:boxed" and registry.get(name).isolation is not None]
        self.on = bool(own) or (drawn and known is not None if on is None else on)
        self._seed = seed
        # How often a process dies, or its worker while it is at work.
        self._deaths = random.Random(f"deaths of {seed}").choice((0.1, 0.3, 0.6))
        self._lanes: list[Lane] = []

    def planned(self, planned: Planned, name: str) -> Planned:
        """The plan, with some of its steps in processes."""
        if not self.on:
            return planned
        rng = random.Random(f"{self._seed} {name} apart")

        def boxed(step: Step, _before: Sequence[Step]) -> Step:
            return replace(step, action="sim:boxed") if rng.random() < _SHARES.get(step.action, 0.0) else step

        return changed(planned, boxed)

    def threads(self, loop: SimLoop, rng: random.Random, size: int) -> SimThreads:
        """The threads of a node."""
        return LaneThreads(loop, rng, size, self._lanes) if self.on else SimThreads(loop, rng, size)

    def spawner(self, loop: SimLoop, faults: Faults, life: Life, clock: SimClock) -> Callable[[Any], SimProcess]:
        """What starts the processes of a node."""
        rng = random.Random(f"{self._seed} {life.name} processes")
        return lambda _isolation: SimProcess(loop, faults, life, clock, rng, self._deaths)

    def dissolve(self) -> None:
        """End the threads that wait for ever."""
        for lane in self._lanes:
            lane.drop()


class Lane:
    """A thread that runs only while the loop waits for it."""

    def __init__(self, function: Callable[[], None], on_end: Callable[[], None]) -> None:
        self._function = function
        self._on_end = on_end
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._ended = self._dropped = False
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)
        self._thread.start()

    def _run(self) -> None:
        _here.lane = self
        self._go.acquire()
        try:
            self._function()
        except BaseException as error:  # noqa: BLE001 - the loop is told
            self._error = error
        self._ended = True
        self._back.release()

    def step(self) -> None:
        """On the loop: let it run until it waits, or has ended."""
        if self._ended:
            return
        self._go.release()
        self._back.acquire()
        if self._ended:
            self._thread.join()
            self._on_end()
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """In the thread: let the loop go on, until it takes another step here."""
        if self._dropped:
            raise NodeCrashed
        self._back.release()
        self._go.acquire()
        if self._dropped:
            raise NodeCrashed

    def drop(self) -> None:
        """End it; what it still does counts no more."""
        self._dropped, self._on_end = True, _nothing
        while not self._ended:
            self._go.release()
            self._back.acquire()
        self._thread.join()


class LaneThreads(SimThreads):
    """Threads that may wait in the middle of a step."""

    def __init__(self, loop: SimLoop, rng: random.Random, size: int, lanes: list[Lane]) -> None:
        super().__init__(loop, rng, size)
        self._lanes = lanes

    def _run(self, function: Callable[[], None]) -> None:
        lane: Lane | None = None

        def ended() -> None:
            if lane is not None:
                self._lanes.remove(lane)
            self._go_on()

        lane = Lane(function, ended)
        self._lanes.append(lane)
        lane.step()


class SimProcess:
    """A process of steps. See `ports.StepProcess`."""

    def __init__(
        self, loop: SimLoop, faults: Faults, life: Life, clock: SimClock, rng: random.Random, deaths: float
    ) -> None:
        self._loop = loop
        self._faults = faults
        self._life = life
        self._rng = rng
        # What happens on the way to the worker happens in its process, and ends with it.
        self._worker = contextvars.copy_context()
        self._messages: deque[list[Any]] = deque()
        self._receiver: Lane | None = None
        self._code: int | None = None
        self._clock = clock
        self._deaths = deaths

    # -- what the worker does ----------------------------------------------------------------------------------------

    def send(self, *message: Any) -> None:
        """Take a call; the simulation's steps ask nothing, so there are no answers."""
        if self._code is not None:
            raise BrokenPipeError
        self._later(self._begin, msgspec.convert(message[1], Call))

    def receive(self) -> list[Any] | None:
        """Wait for a message."""
        while not self._messages:
            if self._code is not None:
                return None
            lane: Lane = _here.lane
            self._receiver = lane
            lane.wait()
        return self._messages.popleft()

    def kill(self) -> None:
        """End it."""
        self._die(_KILLED)

    def ended(self) -> int:
        """How it has ended."""
        self._die(_KILLED)
        assert self._code is not None
        return self._code

    # -- what the process does ---------------------------------------------------------------------------------------

    def _later(self, function: Callable[..., None], *arguments: Any) -> None:
        rng = self._rng
        seconds = rng.random() * (0.05 if rng.random() < 0.7 else 4.0)
        # In no node's context: it does not die with its worker.
        self._loop.call_later(seconds, self._unless_dead, function, *arguments, context=_nobody())

    def _unless_dead(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._code is None:
            function(*arguments)

    def _begin(self, call: Call) -> None:
        # A worker that is gone is noticed, as a rule at once.
        if self._life.dead and self._rng.random() < 0.7:
            self._die(0)
            return
        fault = "" if self._life.dead else self._faults.at_turn(self._life, "step_process", self._deaths)
        if fault == "error_before":
            self._die(_KILLED)
            return
        if fault == "crash_before":
            self._faults.kill(self._life, "before a step in a process begins")
        self._tell("began")
        self._later(self._execute, call, fault)

    def _execute(self, call: Call, fault: str) -> None:
        told: list[list[Any]] = []
        scope = self._worker.copy()
        # An async function gets a loop of its own, for which the thread of this one is no place.
        own = threading.Thread(target=scope.run, args=(execute, Remote(_Way(told), self._clock), call))
        own.start()
        own.join()
        if fault == "error_after":
            self._die(_EXITED)
            return
        if fault == "crash_after":
            self._faults.kill(self._life, "while a step of its process has ended")
        self._later(self._tell_all, told, fault)

    def _tell_all(self, told: list[list[Any]], fault: str) -> None:
        for message in told:
            self._tell(*message)
        if fault == "conflict":
            # It has told all, and has nothing to do.
            self._die(_KILLED)

    def _tell(self, *message: Any) -> None:
        self._messages.append(list(message))
        self._ring()

    def _die(self, code: int) -> None:
        if self._code is None:
            self._code = code
            self._ring()

    def _ring(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            self._worker.run(self._loop.call_soon, receiver.step)


class _Way:
    """Keeps what is sent."""

    def __init__(self, told: list[list[Any]]) -> None:
        self._told = told

    def send(self, *message: Any) -> None:
        """Keep it."""
        self._told.append(list(message))


def _nobody() -> contextvars.Context:
    context = contextvars.copy_context()
    context.run(LIFE.set, None)
    return context


def _nothing() -> None:
    """Nobody is told."""
