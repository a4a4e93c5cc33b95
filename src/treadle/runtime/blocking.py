"""The synchronous client: the same application on an event loop in a thread of its own.

Every method of `App` and `Run` is there under its name and blocks until it is done; only `App.copy_to`, which needs two
applications on one loop, is not: the shell has `treadle store copy`. Works in plain programs, in
threads, and in notebooks whose own loop is running.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from treadle.authoring.durations import Duration
from treadle.core.documents import Document
from treadle.core.effects import Artifact
from treadle.core.events import AnyEvent
from treadle.runtime.artifacts import ArtifactStream
from treadle.runtime.client import App
from treadle.runtime.collecting import DEFAULT_AGE, Collected
from treadle.runtime.cycles import Cycle
from treadle.runtime.dead_letters import Letter, LetterAnswer
from treadle.runtime.html import snapshot_html
from treadle.runtime.inspection import Snapshot
from treadle.runtime.outcomes import StepOutcome
from treadle.runtime.retention import Removal
from treadle.runtime.run import Run
from treadle.runtime.run_analysis import RunAnalysis
from treadle.runtime.targets import Targets
from treadle.runtime.undo import UndoEntry
from treadle.runtime.why import Reason
from treadle.store.base import Health, RunRow, SessionRow
from treadle.store.queues import QueueChange, QueueRow

R = TypeVar("R")
T = TypeVar("T")


class _LoopThread:
    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="treadle-loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(wait(), self.loop).result()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class BlockingApp:
    """`App` for synchronous programs; made by `with connect(url) as app`."""

    def __init__(self, open_app: Callable[[], Awaitable[App]]) -> None:
        self._thread = _LoopThread()
        try:
            self._app = self._thread.call(open_app())
        except BaseException:
            self._thread.stop()
            raise

    @property
    def hook_failures(self) -> int:
        """How often a hook of this application has raised."""
        return self._app.hook_failures

    def start(self, workflow: Any, *args: Any, **kwargs: Any) -> BlockingRun[Any]:
        """Start a run; see `App.start`."""
        return BlockingRun(self._thread, self._thread.call(self._app.start(workflow, *args, **kwargs)))

    def enqueue(self, value: R, **options: Any) -> BlockingRun[R]:
        """Run one call without a workflow; see `App.enqueue`."""
        return BlockingRun(self._thread, self._thread.call(self._app.enqueue(value, **options)))

    def trigger(self, workflow: Any, *args: Any, **kwargs: Any) -> BlockingRun[Any]:
        """Ask for a run of a workflow that collects triggers; see `App.trigger`."""
        return BlockingRun(self._thread, self._thread.call(self._app.trigger(workflow, *args, **kwargs)))

    def run(self, id: str, type: Any = Any) -> BlockingRun[Any]:
        """The handle of a run by its id."""
        return BlockingRun(self._thread, self._app.run(id, type))

    def find(self, prefix: str) -> list[RunRow]:
        """The runs whose id or key starts with `prefix`."""
        return self._thread.call(self._app.find(prefix))

    def runs(self, **query: Any) -> list[RunRow]:
        """Runs, newest first; see `App.runs`."""
        return self._thread.call(self._app.runs(**query))

    def dead(self, limit: int = 100, **query: Any) -> list[Letter]:
        """Steps that failed for good, newest first; see `App.dead`."""
        return self._thread.call(self._app.dead(limit, **query))

    def requeue(self, letters: Iterable[Letter]) -> list[LetterAnswer]:
        """Let dead letters run again; see `App.requeue`."""
        return self._thread.call(self._app.requeue(letters))

    def purge(self, letters: Sequence[Letter]) -> list[LetterAnswer]:
        """Delete the failed runs of dead letters; see `App.purge`."""
        return self._thread.call(self._app.purge(letters))

    def sessions(self) -> list[SessionRow]:
        """Live sessions."""
        return self._thread.call(self._app.sessions())

    def check(self) -> Health:
        """Integrity and configuration of the store."""
        return self._thread.call(self._app.check())

    def run_once(self, limit: int | None = None) -> Cycle:
        """One cycle; see `App.run_once`."""
        return self._thread.call(self._app.run_once(limit))

    def work(
        self, *, max_cycles: int | None = None, until_idle: bool | Duration = False, limit: int | None = None
    ) -> Cycle:
        """Cycles whenever there is something to do; see `App.work`."""
        return self._thread.call(self._app.work(max_cycles=max_cycles, until_idle=until_idle, limit=limit))

    def gc(self, **rule: Any) -> Removal:
        """Delete closed runs; see `App.gc`."""
        return self._thread.call(self._app.gc(**rule))

    def queues(self) -> list[QueueRow]:
        """Queues that have limits or tasks; see `App.queues`."""
        return self._thread.call(self._app.queues())

    def change_queue(self, change: QueueChange) -> bool:
        """Change what is stored of a queue; see `App.change_queue`."""
        return self._thread.call(self._app.change_queue(change))

    def set_targets(self, targets: Targets) -> None:
        """Execute steps that are placed on these from now on; see `App.set_targets`."""
        self._thread.call(self._app.set_targets(targets))

    def backup(self, path: str | os.PathLike[str]) -> Path:
        """Copy the store; see `App.backup`."""
        return self._thread.call(self._app.backup(path))

    def collect(self, older_than: Duration = DEFAULT_AGE, *, dry_run: bool = False) -> Collected:
        """Remove artifacts and large values that no run names; see `App.collect`."""
        return self._thread.call(self._app.collect(older_than, dry_run=dry_run))

    def drain(self, grace_seconds: float | None = None) -> bool:
        """Take no new attempts and wait for those that run."""
        return self._thread.call(self._app.drain(grace_seconds))

    def close(self) -> None:
        """End the session and its thread."""
        try:
            self._thread.call(self._app.close())
        finally:
            self._thread.stop()


class BlockingRun(Generic[R]):
    """`Run` for synchronous programs."""

    def __init__(self, thread: _LoopThread, run: Run[R]) -> None:
        self._thread = thread
        self._run = run

    def __repr__(self) -> str:
        return repr(self._run)

    def _repr_html_(self) -> str:
        """What a notebook shows: the run as it is now."""
        return snapshot_html(self.inspect())

    @property
    def id(self) -> str:
        """The run's id."""
        return self._run.id

    def row(self) -> RunRow:
        """The run's row as it is now."""
        return self._thread.call(self._run.row())

    def wait(self, timeout: float | None = None) -> RunRow:
        """Wait until the run has its outcome."""
        return self._thread.call(self._run.wait(timeout))

    def result(self, timeout: float | None = None) -> R:
        """Wait for the run's result; see `Run.result`."""
        return self._thread.call(self._run.result(timeout))

    def step(self, id: str, *, type: Any = Any, timeout: float | None = None) -> Any:
        """Wait for one step's value; see `Run.step`."""
        return self._thread.call(self._run.step(id, type=type, timeout=timeout))

    def outcome(self, step: str, *, type: Any = Any) -> StepOutcome:
        """What a step gave; see `Run.outcome`."""
        return self._thread.call(self._run.outcome(step, type=type))

    def artifacts(self, step: str = "") -> list[Artifact]:
        """The artifacts of the run, or of one step."""
        return self._thread.call(self._run.artifacts(step))

    def open(self, id: str, *, step: str = "") -> ArtifactStream:
        """The bytes of one of the run's artifacts; see `Run.open`."""
        return self._thread.call(self._run.open(id, step=step))

    def inspect(self) -> Snapshot:
        """Everything about the run, in one consistent read."""
        return self._thread.call(self._run.inspect())

    def analysis(self) -> RunAnalysis:
        """The run's graph, with the times that its steps took."""
        return self._thread.call(self._run.analysis())

    def why(self, step: str | None = None) -> list[Reason]:
        """Why the run, or one step, is not going on."""
        return self._thread.call(self._run.why(step))

    def receipt(self, context: Mapping[str, str] | None = None) -> Document:
        """The plan with what happened, as a document; see `Run.receipt`."""
        return self._thread.call(self._run.receipt(context))

    def events(self, *, after: int = 0, follow: bool = False) -> Iterator[tuple[int, float, AnyEvent]]:
        """The journal; see `Run.events`."""
        iterator = self._run.events(after=after, follow=follow)
        while True:
            try:
                yield self._thread.call(anext(iterator))
            except StopAsyncIteration:
                return

    def signal(self, name: str, payload: Any = None, *, transaction: Any = None) -> bool:
        """Deliver a signal; see `Run.signal`."""
        return self._thread.call(self._run.signal(name, payload, transaction=transaction))

    def pause(self) -> str:
        """Hold the run."""
        return self._thread.call(self._run.pause())

    def resume(self) -> None:
        """Lift the hold."""
        self._thread.call(self._run.resume())

    def cancel(self, *, hard: bool = False, unwind: bool = False, transaction: Any = None) -> None:
        """Stop the run; see `Run.cancel`."""
        self._thread.call(self._run.cancel(hard=hard, unwind=unwind, transaction=transaction))

    def release(self, label: str) -> int:
        """Release the steps that stand at breakpoints of this label."""
        return self._thread.call(self._run.release(label))

    def retry(self, step: str | None = None) -> list[str]:
        """Reopen failed or cancelled steps."""
        return self._thread.call(self._run.retry(step))

    def rewind(self, step: str, *, keep: bool = False) -> list[str]:
        """Reopen a settled step and all that depends on it; see `Run.rewind`."""
        return self._thread.call(self._run.rewind(step, keep=keep))

    def undo_stack(self, *, to: str = "") -> list[UndoEntry]:
        """What `undo` would undo now, in that order."""
        return self._thread.call(self._run.undo_stack(to=to))

    def undo(self, *, to: str = "") -> bool:
        """Undo what the settled run has done; see `Run.undo`."""
        return self._thread.call(self._run.undo(to=to))

    def retry_undo(self, step: str = "") -> None:
        """Try the undo of a step again."""
        self._thread.call(self._run.retry_undo(step))

    def skip_undo(self, step: str) -> None:
        """Give up the undo of a step."""
        self._thread.call(self._run.skip_undo(step))

    def park_undo(self, step: str) -> None:
        """Put the undo of a step aside."""
        self._thread.call(self._run.park_undo(step))

    def delete(self) -> None:
        """Remove a closed run wholly."""
        self._thread.call(self._run.delete())
