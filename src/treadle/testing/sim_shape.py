"""What a simulated world is made of: its machines, their limits, and an ear for what the engine calls critical."""

from __future__ import annotations

import contextvars
import logging
import random

import msgspec

from treadle.authoring.conflicts import OnConflict
from treadle.core.decide import Limits
from treadle.runtime.client import App
from treadle.runtime.node import Node
from treadle.testing.invariants import FOLD, Fail
from treadle.testing.sim_conduct import fraction
from treadle.testing.sim_faults import Profile
from treadle.testing.sim_loop import Life
from treadle.testing.sim_ports import SimClock


class Shape(msgspec.Struct, kw_only=True):
    """What a world is made of; lists have an item a node."""

    nodes: int
    slots: list[int]
    threads: list[int]
    limits: Limits
    lease: float
    skews: list[float]
    # How long there is trouble.
    seconds: float
    inline: list[bool]
    # Whether each node executes steps; one of them always does.
    workers: list[bool]

    @classmethod
    def drawn(cls, rng: random.Random, profile: Profile) -> Shape:
        """A random one."""
        nodes = rng.choice((1, 2, 2, 3, 4))
        return cls(
            nodes=nodes,
            slots=[rng.choice((2, 3, 8)) for _ in range(nodes)],
            threads=[rng.choice((1, 2, 4)) for _ in range(nodes)],
            limits=Limits(dispatched=rng.choice((3, 5, 20)), events=rng.choice((5, 12, 50))),
            lease=rng.choice((3.0, 8.0, 15.0)),
            skews=[rng.choice((0.0, 0.0, 0.5, 30.0)) * (rng.random() - 0.5) for _ in range(nodes)],
            seconds=profile.seconds,
            inline=[rng.random() < 0.2 for _ in range(nodes)],
            workers=[index == 0 or rng.random() < 0.85 for index in range(nodes)],
        )


class Host:
    """A machine: it survives the crashes of its process."""

    def __init__(self, index: int, clock: SimClock) -> None:
        self.index = index
        self.clock = clock
        self.lives = 0
        self.life: Life | None = None
        self.node: Node | None = None
        self.app: App | None = None
        self.context: contextvars.Context | None = None


class Critical(logging.Handler):
    """A run that the engine holds because of a broken invariant is a finding."""

    def __init__(self, fail: Fail) -> None:
        super().__init__(logging.CRITICAL)
        self._fail = fail

    def emit(self, record: logging.LogRecord) -> None:
        """Report it."""
        self._fail(FOLD, record.getMessage())


def where(error: BaseException) -> str:
    """The files and lines that an error came through."""
    trace = error.__traceback__
    places: list[str] = []
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " ".join(places)


def singleton_of(at: float) -> str:
    """The name that the run holds which is started at a time; one for all workflows, "" for most."""
    return "singleton:s" if int(at * 1000) % 3 == 0 else ""


def conflict_of(at: float, host: int) -> OnConflict:
    """What a start at a time, from a machine, does about a run in its way."""
    luck = fraction("conflict", at, host)
    if luck < 0.15:
        return "reject"
    if singleton_of(at):
        return "reuse" if luck < 0.3 else "queue"
    return "queue" if luck < 0.3 else "reuse"
