"""The model behind `store_model`: what a store should hold, as plain data."""

from __future__ import annotations

import msgspec

from treadle.core.commands import Task
from treadle.store.base import Append, InboxInput, StepRow


class ModelTask(msgspec.Struct):
    """A task as it should be stored."""

    task: Task
    age: int
    session: str = ""
    lease: int = 0
    interrupt: bool = False
    # It must not wait again.
    last: bool = False
    progress: str = ""

    def order(self) -> tuple[int, int]:
        """What claims go by."""
        return -self.task.priority, self.age


class ModelRun(msgspec.Struct):
    """A run as it should be stored."""

    key: str
    id: str
    version: int = 0
    status: str = "running"
    unwound: str = ""
    # The run that has called it, if that waits for it.
    awaited_by: str = ""
    # Whether a run has called it, and whether any of its steps was ever settled.
    called: bool = False
    has_settled: bool = False
    hold: int = 0
    owner: str = ""
    rows: list[tuple[int, int, float, str]] = []
    inbox: list[InboxInput] = []
    tasks: dict[int, ModelTask] = {}
    payloads: dict[str, bytes] = {}
    steps: dict[int, StepRow] = {}

    def end_steps(self, append: Append) -> None:
        """Take over what an append says of settled steps and of undos."""
        self.unwound = self.unwound if append.unwound is None else append.unwound
        self.has_settled = self.has_settled or bool(append.steps)
        for number in append.unsettled:
            self.steps.pop(number, None)
        self.steps.update({row.number: row for row in append.steps})
        for address, undo in append.undos:
            for row in [row for row in self.steps.values() if row.address == address]:
                self.steps[row.number] = msgspec.structs.replace(row, undo=undo)

    def only_waits(self, queue: str, *, ever_settled: bool) -> bool:
        """Whether nothing of it has begun, and all that it has dispatched waits in one queue."""
        tasks = [model for model in self.tasks.values() if model.session or model.task.queue != queue]
        settled = self.has_settled if ever_settled else bool(self.steps)
        looks = all(value.id.startswith("look:") for value in self.inbox)
        return self.status == "running" and not self.called and not settled and not tasks and looks

    def waiting_in(self, queue: str, now: float) -> int:
        """How many due tasks of it wait in a queue."""
        waits = [model.task for model in self.tasks.values() if not model.session]
        return sum(task.queue == queue and task.not_before <= now for task in waits)
