"""The model behind `store_model`: what a store should hold, as plain data."""

from __future__ import annotations

import msgspec

from treadle.core.commands import Task
from treadle.store.base import InboxInput, StepRow


class ModelTask(msgspec.Struct):
    """A task as it should be stored."""

    task: Task
    age: int
    session: str = ""
    lease: int = 0
    interrupt: bool = False
    # It must not wait again.
    last: bool = False

    def order(self) -> tuple[int, int]:
        """What claims go by."""
        return -self.task.priority, self.age


class ModelRun(msgspec.Struct):
    """A run as it should be stored."""

    key: str
    id: str
    version: int = 0
    status: str = "running"
    hold: int = 0
    owner: str = ""
    rows: list[tuple[int, int, float, str]] = []
    inbox: list[InboxInput] = []
    tasks: dict[int, ModelTask] = {}
    payloads: dict[str, bytes] = {}
    steps: dict[int, StepRow] = {}
