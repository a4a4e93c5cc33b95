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
        for number in append.unsettled:
            self.steps.pop(number, None)
        self.steps.update({row.number: row for row in append.steps})
        for address, undo in append.undos:
            for row in [row for row in self.steps.values() if row.address == address]:
                self.steps[row.number] = msgspec.structs.replace(row, undo=undo)
