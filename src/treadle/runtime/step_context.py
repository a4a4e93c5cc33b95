"""What a running step can ask: the real form of `authoring.context.StepContext`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Generator
from typing import TYPE_CHECKING

import msgspec

from treadle.authoring.builder import Additions
from treadle.core.commands import Task
from treadle.core.plan import Fragment
from treadle.errors import StepInterrupt, UsageError

if TYPE_CHECKING:
    from treadle.runtime.worker import Worker


class _Done:
    """An awaitable that is done."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


_DONE = _Done()
_log = logging.getLogger("treadle.step")


class RunningStep(msgspec.Struct, eq=False):
    """The context of one attempt. Usable from the step's own thread or task."""

    _worker: Worker
    _task: Task
    _cancelled: bool = False
    _progress: str = ""
    _additions: Additions | None = None
    _logger: logging.LoggerAdapter[logging.Logger] | None = None
    # What the step adds when it succeeds.
    fragments: list[Fragment] = []

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self._task.run_id

    @property
    def run_key(self) -> str:
        """The key of the run."""
        return self._task.run

    @property
    def step(self) -> str:
        """The step's address."""
        return self._task.address

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self._task.attempt

    @property
    def generation(self) -> int:
        """1, and one more for each rewind of the step."""
        return self._task.generation

    @property
    def probe(self) -> int:
        """The number of this probe, from 1; 0 for a step that is not polled."""
        poll = self._task.call.poll
        return poll.probes + 1 if poll is not None else 0

    @property
    def idempotency_key(self) -> str:
        """Equal for all attempts of the step, new after a rewind; give it to services that deduplicate."""
        return f"{self._task.run}/{self._task.address}/{self._task.generation}"

    @property
    def worker(self) -> str:
        """The id of the worker that executes the attempt."""
        return self._worker.name

    @property
    def cancelled(self) -> bool:
        """Whether the attempt was interrupted or timed out; what it returns no longer counts."""
        return self._cancelled

    def check_cancelled(self) -> None:
        """Raise StepInterrupt if the attempt was interrupted; for long loops in threads."""
        if self._cancelled:
            raise StepInterrupt

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry run, step and attempt."""
        if self._logger is None:
            extra = {"run_id": self.run_id, "step": self.step, "attempt": self.attempt}
            self._logger = logging.LoggerAdapter(_log, extra)
        return self._logger

    @property
    def last_progress(self) -> str:
        """What this attempt reported last."""
        return self._progress

    def progress(self, text: str) -> None:
        """Show a progress text in the task's row until the attempt ends. Not journaled."""
        self._progress = text
        worker, task = self._worker, self._task
        worker.to_loop(lambda: worker.steps.progress(task, text))

    def add(self, *bounds: object, into: object = None, now: bool = False) -> Awaitable[None]:
        """Add planned steps to the run: when this step succeeds (in the same commit), or at once with `now`.

        `into` names a scope that contains this step ("root", an address, a planned step); by default they live
        below this step. With `now` an async step awaits the result; in a thread the call returns when it is done.

        Raises:
            DefinitionError: the steps are wrong or contradict what is there; nothing of this call was added.
            StepInterrupt: the attempt no longer counts.
        """
        self.check_cancelled()
        if self._task.call.purpose != "step":
            raise UsageError("a condition cannot add steps")
        if self._additions is None:
            self._additions = Additions(self._task.address)
        found = self._additions.add(bounds, into)
        fragments = [Fragment(blocks=item.blocks, constants=item.constants, into=item.into) for item in found]
        if now:
            return self._worker.add_now(self._task, fragments)
        self.fragments += fragments
        return _DONE

    def cancel(self) -> None:
        """Mark the attempt as interrupted."""
        self._cancelled = True
