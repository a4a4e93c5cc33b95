"""Dead letters: steps that failed for good, of runs and of single calls alike, and what operators do with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import msgspec

from treadle.authoring import codec
from treadle.authoring.durations import Duration, seconds_of
from treadle.core.tables import FAILED
from treadle.errors import ConflictError, RunError
from treadle.runtime.node import Node
from treadle.runtime.run import Run
from treadle.store.base import RunRow, StepRow

Letter = tuple[RunRow, StepRow]


class LetterAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one dead letter, or of one run of theirs; `refused` says why nothing was done."""

    run: str
    # The letter's step; empty where the whole run is meant.
    step: str = ""
    # What runs again: the step and what was skipped because of it.
    reopened: list[str] = []
    deleted: bool = False
    refused: str = ""


class DeadLetters:
    """The part of an application that is about dead letters."""

    _node: Node

    async def dead(
        self,
        limit: int = 100,
        *,
        run: str = "",
        workflow: str = "",
        code: str = "",
        older_than: Duration | None = None,
    ) -> list[Letter]:
        """Steps that failed for good, newest first, with their runs.

        `run` (an id or a key), `workflow` and the failure's `code` must match where they are given; `older_than` leaves
        out what failed in that time. The whole text of an error is at `Run.account(step.detail)`.
        """
        reader = self._node.reader
        latest = None
        if older_than is not None:
            latest = self._node.environment.clock.now() - seconds_of(older_than, "older_than")

        def wanted(row: RunRow, step: StepRow) -> bool:
            return (
                (not run or run in (row.id, row.key))
                and (not workflow or row.workflow == workflow)
                and (not code or step.code == code)
                and (latest is None or step.finished_at <= latest)
            )

        # What matches may lie behind any number of others: read on until there is enough, or no more.
        count = limit
        while True:
            rows = await self._node.read(partial(reader.dead, count))
            found = [pair for pair in rows if wanted(*pair)]
            if len(found) >= limit or len(rows) < count:
                return found[:limit]
            count *= 8

    async def requeue(self, letters: Iterable[Letter]) -> list[LetterAnswer]:
        """Let dead letters run again, with what was skipped because of them; one answer each.

        The attempts count on, the budgets of retry policies begin anew, and a deadline of the run is lifted. A letter
        that somebody else has requeued or deleted meanwhile is refused, and the others go on.
        """
        answers: list[LetterAnswer] = []
        for row, step in letters:
            try:
                reopened = await self._handle(row).retry(step.address)
            except RunError as error:
                answers.append(LetterAnswer(run=row.id, step=step.address, refused=str(error)))
            else:
                answers.append(LetterAnswer(run=row.id, step=step.address, reopened=reopened))
        return answers

    async def purge(self, letters: Sequence[Letter]) -> list[LetterAnswer]:
        """Delete the failed runs of dead letters, with all that is stored of them; one answer for each run.

        A run that goes on, or succeeded all the same, is kept: its other results are still of use.
        """
        answers: list[LetterAnswer] = []
        for row in {row.key: row for row, _ in letters}.values():
            refused = ""
            if row.status != FAILED:
                refused = f"run {row.id!r} is {row.status}; delete it by its id if that is meant"
            else:
                try:
                    await self._handle(row).delete()
                except (RunError, ConflictError) as error:
                    refused = str(error)
            answers.append(LetterAnswer(run=row.id, deleted=not refused, refused=refused))
        return answers

    def _handle(self, row: RunRow) -> Run[Any]:
        # By its key: an id may be the prefix of another.
        return Run[Any](self._node, row.key, codec.adapter(Any), row.key)
