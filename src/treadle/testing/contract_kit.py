"""What the tests of the store contract are written with: sessions, slots, and small appends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

from treadle.core.commands import Call, Task
from treadle.core.events import RunStarted, SignalReceived
from treadle.core.inputs import Outcome, Signal, encode_input
from treadle.errors import LeaseLostError
from treadle.store.base import (
    Answer,
    Append,
    InboxInput,
    Loaded,
    Report,
    RunHead,
    RunRow,
    SessionRow,
    StepRow,
    Store,
)

# A factory of open handles: each call gives another handle on the same data.
MakeStore = Callable[[], Store]

NOW = 1_700_000_000.0


def key_of(number: int) -> str:
    """A run key, a UUIDv7; keys of higher numbers are newer."""
    return f"018bcfe5-{number:04x}-7000-8000-{number:012x}"


RUN = key_of(1)
OTHER = key_of(2)


class Slots:
    """An offer of `free` slots for some actions and targets; `taken` is what was handed over, in order."""

    def __init__(self, free: int, actions: Sequence[str] = ("act",), targets: Sequence[str] = ()) -> None:
        self._free = free
        self._actions = list(actions)
        self._targets = list(targets)
        self.taken: list[str] = []

    def take(self, action: str, queue: str, most: int = 1) -> int:
        """Use up slots, if there are any and the action is known."""
        found = min(self._free, most) if action in self._actions else 0
        self._free -= found
        self.taken += [f"{queue}:{action}"] * found
        return found

    def fits(self, task: Task) -> bool:
        """Whether the task is one for these actions and targets."""
        return task.action in self._actions and (not task.target or task.target in self._targets)

    def takes(self, task: Task) -> bool:
        """Whether the task fits, and there is a slot for it."""
        return self._free > 0 and self.fits(task)

    def free(self) -> int:
        """How many slots are left."""
        return self._free

    def room(self, action: str) -> int:
        """How many slots are left for an action."""
        return self._free if action in self._actions else 0

    def actions(self) -> Sequence[str]:
        """The known actions."""
        return self._actions

    def targets(self) -> Sequence[str]:
        """The targets whose tasks are taken."""
        return self._targets

    def full(self) -> bool:
        """Whether no slot is left."""
        return self._free < 1

    def mark(self) -> tuple[int, int]:
        """The present count."""
        return self._free, len(self.taken)

    def reset(self, mark: object) -> None:
        """Be as at the mark."""
        self._free, taken = cast("tuple[int, int]", mark)
        del self.taken[taken:]


def head_of(key: str, **fields: Any) -> RunHead:
    """The head of a run whose id is made from its key, unless `id` is given."""
    given: dict[str, Any] = {
        "id": f"run-{key}",
        "workflow": "flow",
        "plan": "sha256:plan",
        "created_at": NOW,
    }
    return RunHead(key=key, **(given | fields))


def task_of(run: str, number: int, /, **fields: Any) -> Task:
    """A task of a run; a due one of action `act` in the queue `default`, unless `fields` say otherwise."""
    given: dict[str, Any] = {
        "address": f"step-{number}",
        "generation": 1,
        "attempt": 1,
        "action": "act",
        "queue": "default",
        "priority": 0,
        "not_before": 0.0,
        "call": Call(args={"n": f"={number}"}),
        "run_id": f"run-{run}",
    }
    return Task(run=run, number=number, **(given | fields))


def step_of(number: int, **fields: Any) -> StepRow:
    """The row of a settled step."""
    given: dict[str, Any] = {
        "address": f"step-{number}",
        "action": "act",
        "status": "succeeded",
        "generation": 1,
        "attempt": 1,
        "result": "=1",
        "code": "",
        "message": "",
        "detail": "",
        "causes": "",
        "added_at": NOW,
        "ready_at": NOW,
        "dispatched_at": NOW,
        "started_at": NOW,
        "finished_at": NOW,
        "worker": "w",
    }
    return StepRow(number=number, **(given | fields))


def append_of(key: str, expect: int, **fields: Any) -> Append:
    """An append whose commit id tells its run and version apart from others."""
    given: dict[str, Any] = {
        "commit_id": commit_id_of(key, expect + 1),
        "time": NOW,
        "events": [SignalReceived(name=f"v{expect + 1}")],
        "status": "running",
    }
    return Append(key=key, expect=expect, **(given | fields))


def start_of(key: str, **fields: Any) -> Append:
    """The append that makes a run. `id` is the run's id, if it is to be another than `run-KEY`."""
    made: dict[str, Any] = {"id": fields.pop("id")} if "id" in fields else {}
    given: dict[str, Any] = {"head": head_of(key, **made), "plan": b'{"plan":1}', "events": [RunStarted()]}
    return append_of(key, 0, **(given | fields))


def commit_id_of(key: str, version: int) -> int:
    """The commit id that `append_of` gives to a version of a run."""
    # Commit ids have 62 bits.
    return (1 << 61) + int(key[-12:], 16) * 100_000 + version


def signal_of(key: str, input_id: str, name: str = "go") -> InboxInput:
    """A signal for the inbox of a run."""
    return InboxInput(input_id, key, encode_input(Signal(name=name)))


def report_of(task: Task, **fields: Any) -> Report:
    """The report that a leased task succeeded."""
    outcome = Outcome(number=task.number, generation=task.generation, attempt=task.attempt, lease=task.lease)
    value = InboxInput(f"outcome-{task.run}-{task.lease}", task.run, encode_input(outcome))
    given: dict[str, Any] = {"number": task.number, "lease": task.lease, "input": value}
    return Report(**(given | fields))


class Party:
    """A session on a store's handle."""

    def __init__(self, store: Store, name: str, **fields: Any) -> None:
        self.store = store
        self.id = name
        given: dict[str, Any] = {
            "worker": f"worker-{name}",
            "wake": f"wake-{name}",
            "beat": 0,
            "waits": 0,
            "actions": ["act"],
        }
        store.open_session(SessionRow(id=name, **(given | fields)))

    def commit(self, *appends: Append, slots: int = 0, actions: Sequence[str] = ("act",)) -> list[Answer]:
        """Commit the appends in one call, offering slots."""
        return self.store.commit(self.id, appends, Slots(slots, actions) if slots else None)

    def start(self, key: str = RUN, *, slots: int = 0, **fields: Any) -> Answer:
        """Make a run, which must succeed."""
        (answer,) = self.commit(start_of(key, **fields), slots=slots)
        assert answer.status == "committed", answer
        return answer

    def append(self, key: str = RUN, *, slots: int = 0, **fields: Any) -> Answer:
        """Append to a run at its present version, which must succeed."""
        (answer,) = self.commit(append_of(key, self.row(key).version, **fields), slots=slots)
        assert answer.status == "committed", answer
        return answer

    def settle(self, key: str = RUN, status: str = "succeeded") -> None:
        """Give the run its outcome."""
        self.append(key, status=status)

    def claim(self, slots: int = 1, *, now: float = NOW, actions: Sequence[str] = ("act",)) -> list[Task]:
        """Claim up to `slots` tasks."""
        return self.store.claim(self.id, Slots(slots, actions), now)[0]

    def next_due(self, *, now: float = NOW) -> float | None:
        """What a claim says of the next task that falls due."""
        return self.store.claim(self.id, Slots(1), now)[1]

    def report(self, *reports: Report) -> list[bool]:
        """Report outcomes."""
        return [answer.done for answer in self.store.report(self.id, reports)]

    def row(self, key: str = RUN) -> RunRow:
        """The row of a run that exists."""
        row = self.store.run(key)
        assert row is not None
        return row

    def load(self, key: str = RUN) -> Loaded:
        """A run that exists."""
        loaded = self.store.load(key)
        assert loaded is not None
        return loaded

    def waiting(self) -> list[tuple[str, int]]:
        """Run and number of the waiting tasks, in claim order."""
        return [(row.task.run, row.task.number) for row in self.store.waiting()]

    def is_refused(self, call: Callable[..., object], *args: Any, **kwargs: Any) -> bool:
        """Whether a call with this session's id raises LeaseLostError."""
        try:
            call(self.id, *args, **kwargs)
        except LeaseLostError:
            return True
        return False


def numbers(tasks: Sequence[Task]) -> list[int]:
    """The tasks' numbers, in order."""
    return [task.number for task in tasks]


def snapshot(loaded: Loaded | None) -> Any:
    """A loaded run as comparable plain data."""
    return msgspec.to_builtins(loaded)


def lost_of(inputs: Sequence[InboxInput]) -> list[InboxInput]:
    """The inputs that say that an attempt was lost."""
    return [value for value in inputs if msgspec.json.decode(value.body)["input"] == "lost"]
