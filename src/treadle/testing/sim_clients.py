"""What simulated operators and clients ask of runs, and what they are told."""

from __future__ import annotations

from typing import Any, Final

from treadle.errors import RunNotPausedError, TreadleError
from treadle.runtime.client import App
from treadle.runtime.run import Run
from treadle.testing.invariants import ANSWERS, DELETED, Fail, Watch
from treadle.testing.sim_codec import inline_text
from treadle.testing.sim_oracle import Told
from treadle.testing.sim_workload import LABELS, SIGNALS, Act

# How old a closed run is when it may be deleted for its age, in seconds.
_AGE: Final = 10


class Desk:
    """Does what acts say, and keeps what comes of it."""

    def __init__(self, watch: Watch, told: list[Told], fail: Fail) -> None:
        self._watch = watch
        self._told = told
        self._fail = fail
        # Ids of runs that an operator has deleted.
        self.deleted: set[str] = set()

    async def ask(self, act: Act, id_: str, run: Run[Any], key: str, step: str = "") -> None:
        """One request of an operator; `id_` is the run that he means, `step` one to wait for."""
        match act.what:
            case "signal":
                await self._signal(act, run, key)
            case "retry_one" | "rewind" | "rewind_keep" | "undo_to" | "retry_undo" | "skip_undo" | "park_undo":
                await self._reopen(act, run, key)
            case "delete":
                await self._delete(id_, run, key)
            case "await":
                await self.await_result(run, key)
            case "await_step":
                await self._await_step(run, key, step)
            case _:
                await self._simple(act, run)

    async def _simple(self, act: Act, run: Run[Any]) -> None:
        match act.what:
            case "cancel" | "cancel_hard" | "cancel_unwind":
                await run.cancel(hard=act.what == "cancel_hard", unwind=act.what == "cancel_unwind")
            case "release":
                await run.release(LABELS[int(act.number * len(LABELS))])
            case "resume":
                await self._resume(run)
            case "inspect":
                await run.inspect()
                await run.why()
                await run.undo_stack()
            case _:
                await getattr(run, act.what)()

    async def _resume(self, run: Run[Any]) -> None:
        stored = self._watch.journals[await run.key()].run
        hold = stored.hold
        try:
            await run.resume()
        except RunNotPausedError:
            # Each pause has a number of its own.
            if hold and hold == stored.hold:
                self._fail(ANSWERS, f"{run.id} was paused all the time, and its resume was told that it is not")
            raise

    async def _signal(self, act: Act, run: Run[Any], key: str) -> None:
        name = SIGNALS[int(act.number * len(SIGNALS))]
        first = await run.signal(name, act.name)
        stored = self._watch.journals[key].signals
        if name not in stored or (first and inline_text(stored[name]) != f'"{act.name}"'):
            self._fail(ANSWERS, f"signal {name} to {run.id} was answered {first}; stored {stored}")

    async def _reopen(self, act: Act, run: Run[Any], key: str) -> None:
        journal = self._watch.journals[key]
        steps = list(journal.settled)
        if journal.stuck and act.what in ("retry_undo", "skip_undo", "park_undo"):
            steps = list(journal.stuck)
        if steps:
            at = steps[int(act.number * len(steps))]
            match act.what:
                case "retry_one":
                    await run.retry(at)
                case "rewind" | "rewind_keep":
                    await run.rewind(at, keep=act.what == "rewind_keep")
                case "undo_to":
                    await run.undo(to=at)
                case _:
                    await getattr(run, act.what)(at)

    async def _delete(self, id_: str, run: Run[Any], key: str) -> None:
        await run.delete()
        self.deleted.add(id_)
        if key in self._watch.data.runs:
            self._fail(DELETED, f"{id_} was deleted and is there")

    async def sweep_old(self, app: App) -> None:
        """Have runs deleted that were closed some seconds ago."""
        removal = await app.gc(older_than=_AGE, keep=1)
        for row in removal.deleted:
            self.deleted.add(row.id)
            journal = self._watch.journals[row.key]
            if row.key in self._watch.data.runs:
                self._fail(DELETED, f"{row.id} was deleted and is there")
            _, ahead = self._watch.limits.clocks()
            is_called = bool(row.parent) and not journal.run.head.detached
            if journal.is_open or is_called or row.updated_at > ahead - _AGE:
                self._fail(DELETED, f"{row.id} was deleted for its age: {row}, at {ahead}")

    async def await_result(self, run: Run[Any], key: str) -> None:
        """Wait for a run's result, and note it."""
        try:
            value = await run.result()
        except TreadleError as error:
            self._told.append(Told("result", key, None, error))
            raise
        self._told.append(Told("result", key, value, None))

    async def _await_step(self, run: Run[Any], key: str, at: str) -> None:
        try:
            value = await run.step(at, timeout=500)
        except TreadleError as error:
            self._told.append(Told("step", key, None, error, at))
            raise
        self._told.append(Told("step", key, value, None, at))
