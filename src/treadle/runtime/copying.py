"""Copies of stores: every run, those in flight included, goes from one store to another of any kind.

A run is its journal. The copy appends the same rows with the same versions, commit ids and times, in one commit a run,
and with the last row what the journal does not hold: payloads, step rows, waiting tasks, the hold. Inputs that wait
follow. Done again, after a crash or because the source went on, it adds what is new: rows that are there are compared,
never written twice. Queues get the limits, operators' words and pauses of the source, and
what their rates have used up. Nobody may work on either store meanwhile; what this process itself still decides in the
source, such as attempts that died with their process, is caught by passes until one finds nothing new.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial

import msgspec
from msgspec import UNSET

from treadle.core.deadlines import is_awaited
from treadle.core.effects import Given
from treadle.core.events import (
    StepCancelled,
    StepFailed,
    StepSkipped,
    StepSucceeded,
    TriggerReceived,
    decode_events,
)
from treadle.core.inputs import Look, encode_input
from treadle.core.tables import LIVE, RUNNING
from treadle.core.values import bare
from treadle.core.windows import trigger_name
from treadle.errors import ConflictError, ProjectionError, StoreUnavailableError
from treadle.runtime.alarms import MARK
from treadle.runtime.artifacts import store_content
from treadle.runtime.naming import Named
from treadle.runtime.node import Node
from treadle.store.base import Append, InboxInput, Loaded, RunHead, RunQuery, RunRow, SessionRow, StepRow, Store
from treadle.store.projection import recorded
from treadle.store.queues import Bucket, QueueChange, QueueLimits, QueueRow, refill

_SETTLED = (StepSucceeded, StepFailed, StepSkipped, StepCancelled)
# Seconds between looks at sessions that may be dead, and between passes.
_LOOK_SECONDS = 0.2
_PASSES = 20
# Of a burst: by so much may what a rate allows differ, worked out at different times.
_ROUNDING = 1e-6
_PAGE = 200


class CopyReport(msgspec.Struct, kw_only=True):
    """What a copy found and did. `differing` names runs and queues that are not the same in both stores, and how."""

    runs: int = 0
    # Of these: still open.
    open: int = 0
    events: int = 0
    payloads: int = 0
    blobs: int = 0
    tasks: int = 0
    inputs: int = 0
    # Queues whose limits or pauses were changed in the target.
    queues: int = 0
    differing: dict[str, str] = {}


class _Parts(msgspec.Struct):
    """A run as it is read for the copy."""

    row: RunRow
    loaded: Loaded
    steps: list[StepRow]
    payloads: list[tuple[str, bytes]]
    named: Named
    # The lines that it is in, by their names.
    lines: dict[str, list[str]] = {}


async def copy_store(source: Node, target: Node, progress: Callable[[str], None] | None = None) -> CopyReport:
    """Copy all runs, then compare what is in both stores. `progress` is told the id of each run that was copied.

    Raises:
        ConflictError: somebody works on one of the stores, or a run of that id but another key is in the target.
        MissingKeyError: an encoded value may name blobs, and the source's application does not have its key.
        ProjectionError: a projection in the target does not take a record.
        StoreUnavailableError: the target does not take a run; do it again.
    """
    for node, what in ((source, "source"), (target, "target")):
        await _alone(node, what)
    report = CopyReport()
    # Runs of the source were taken on there, so none of them is refused here for a queue that is full.
    await _copy_queues(source, target, lengths=False)
    for _ in range(_PASSES):
        report.runs = report.open = 0
        report.differing = {}
        news = False
        async for row, lines in _in_order(source):
            parts = await _read(source, row)
            parts.lines = lines
            report.runs += 1
            report.open += row.status in LIVE
            if await _copy_run(source, target, parts, report):
                news = True
                if progress is not None:
                    progress(row.id)
            elif (difference := await _difference(source, target, parts)) is not None:
                report.differing[row.id] = difference
        if not news:
            report.queues = await _copy_queues(source, target, lengths=True)
            report.differing |= await _differing_queues(source, target)
            return report
        await asyncio.sleep(_LOOK_SECONDS)
    raise ConflictError("the source goes on while it is being copied; stop what works on it, then copy again")


async def _copy_queues(source: Node, target: Node, *, lengths: bool) -> int:
    """Let the queues of the target be limited and paused as those of the source; how many were changed.

    Without `lengths` those that the source limits so have no limit of their length for a while; others stay as they
    are.
    """
    rows = await _queues(source)
    if lengths:
        changes = [
            QueueChange(
                name=row.name,
                defined=row.defined or UNSET,
                override=row.override,
                paused=row.paused,
                # As they are stored: what they allow at a time goes by the clocks of those who work, not by this one.
                buckets=await source.read(partial(source.reader.buckets, row.name)),
            )
            for row in rows.values()
        ]
    else:
        changes = [
            QueueChange(name=row.name, override=msgspec.structs.replace(row.limits, length=0))
            for row in rows.values()
            if row.limits.length
        ]
    now = target.environment.clock.now()
    return sum(await target.committer.call(lambda store: store.set_queues(changes, now))) if changes else 0


async def _queues(node: Node) -> dict[str, QueueRow]:
    """The queues that were ever defined or paused."""
    rows = await node.read(partial(node.reader.queues, node.environment.clock.now()))
    return {row.name: row for row in rows if row.version}


async def _differing_queues(source: Node, target: Node) -> dict[str, str]:
    there = await _queues(target)
    found: dict[str, str] = {}
    for name, row in (await _queues(source)).items():
        if name not in there or (there[name].limits, there[name].paused) != (row.limits, row.paused):
            found[f"queue {name}"] = "has other limits"
            continue
        one, other = [await node.read(partial(node.reader.buckets, name)) for node in (source, target)]
        if not allow_the_same(one, other, row.limits, target.environment.clock.now()):
            found[f"queue {name}"] = "has used up something else of its rates"
    return found


def allow_the_same(one: dict[str, Bucket], other: dict[str, Bucket], limits: QueueLimits, now: float) -> bool:
    """Whether buckets allow the same at a time: each store refills them, and forgets full ones, when it looks."""
    for key in one | other:
        rate, burst = (limits.key_rate, limits.key_burst) if key else (limits.rate, limits.burst)
        allowed = [refill(buckets.get(key), rate, burst, now).allowance for buckets in (one, other)]
        if abs(allowed[0] - allowed[1]) > _ROUNDING * burst:
            return False
    return True


async def _runs(node: Node) -> AsyncIterator[RunRow]:
    after = ""
    while rows := await node.read(partial(node.reader.runs, RunQuery(after=after, limit=_PAGE))):
        for row in rows:
            yield row
        after = rows[-1].key


async def _in_order(node: Node) -> AsyncIterator[tuple[RunRow, dict[str, list[str]]]]:
    """All runs with the lines that they are in, each behind those that are before it there."""
    reader = node.reader
    seen: set[str] = set()
    async for row in _runs(node):
        ahead = [row]
        lines = await _lines(node, row)
        for line in lines.values():
            rows = [await node.read(partial(reader.run, key)) for key in line[: line.index(row.key)]]
            ahead[-1:-1] = [one for one in rows if one is not None]
        for one in ahead:
            if one.key not in seen:
                seen.add(one.key)
                yield one, lines if one is row else await _lines(node, one)


async def _lines(node: Node, row: RunRow) -> dict[str, list[str]]:
    """The lines that a run is in, by their names."""
    # Besides the one it was started with, a run may hold the name of its own id, for those that wait behind it.
    names = [f"id:{row.id}"]
    found = await node.read(partial(node.reader.head, row.key))
    if found is not None:
        names += [found[0].singleton, *await _window_names(node, found[0])]
    lines = {name: await node.read(partial(node.reader.line, name)) for name in dict.fromkeys(names) if name}
    return {name: line for name, line in lines.items() if row.key in line}


async def _window_names(node: Node, head: RunHead) -> list[str]:
    """The names that a window may hold: its own, and for good those of its named triggers."""
    if head.window is None:
        return []
    name, after = head.window.name, 0
    names = [name, trigger_name(name, head.trigger)]
    while rows := await node.read(partial(node.reader.rows, head.key, after, _PAGE)):
        after = rows[-1][0]
        for _version, _commit, _time, text in rows:
            found = decode_events(text)
            names += [trigger_name(name, event.name) for event in found if isinstance(event, TriggerReceived)]
    return names


async def _alone(node: Node, what: str) -> None:
    """Wait until the sessions that died are known to be dead; a living one is refused."""
    clock = node.environment.clock
    until = clock.monotonic() + 2 * node.settings.lease_seconds
    others: list[SessionRow] = []
    while clock.monotonic() < until:
        sessions = await node.read(node.reader.sessions)
        alive, others = others, [one for one in sessions if one.id != node.session]
        if not others:
            return
        before = {one.id: one.beat for one in alive}
        if any(one.beat > before.get(one.id, one.beat) for one in others):
            break
        await asyncio.sleep(_LOOK_SECONDS)
    names = ", ".join(sorted({one.worker for one in others}))
    raise ConflictError(f"{names} work on the {what}; stop them, then copy")


async def _read(node: Node, row: RunRow) -> _Parts:
    loaded = await node.read(partial(node.reader.load, row.key))
    now = await node.read(partial(node.reader.run, row.key))
    if loaded is None or now is None:
        raise ConflictError(f"run {row.id!r} was deleted while it was being copied; copy again")
    if busy := [task for task in loaded.tasks if task.session]:
        raise ConflictError(
            f"step {busy[0].task.address!r} of run {row.id!r} is being executed; stop the workers first"
        )
    named = Named()
    named.head(loaded.head)
    named.scan(item.body.decode() for item in loaded.inbox)
    named.scan(text for _version, _commit, _time, text in loaded.rows)
    steps: list[StepRow] = []
    for at in _addresses(loaded):
        found = await node.read(partial(node.reader.step, row.key, at))
        if found.step is not None:
            steps.append(found.step)
            named.scan([msgspec.json.encode(found.step).decode()])
    wanted = [where[1:] for where in map(bare, named.handles) if where.startswith("@")]
    payloads = await node.read(partial(node.reader.payloads, row.key, wanted))
    return _Parts(now, loaded, steps, sorted(payloads.items()), named)


def _addresses(loaded: Loaded) -> list[str]:
    """The steps that a journal gives an outcome, each once."""
    events = (event for _version, _commit, _time, text in loaded.rows for event in decode_events(text))
    return list(dict.fromkeys(event.at for event in events if isinstance(event, _SETTLED)))


async def _copy_run(source: Node, target: Node, parts: _Parts, report: CopyReport) -> bool:
    """Bring the target's run up to what was read; False if it was there already."""
    row, loaded = parts.row, parts.loaded
    there = await target.read(partial(target.reader.load, row.key))
    if there is None:
        found = await target.read(partial(target.reader.find, row.id))
        others = [await target.read(partial(target.reader.run, key)) for key in found]
        if any(one is not None and one.id == row.id for one in others):
            raise ConflictError(
                f"the target has another run of the id {row.id!r}; delete one of them, or copy elsewhere"
            )
    news = False
    done = there.version if there is not None else 0
    if done < loaded.version:
        await parts.named.look_inside(source, row.key)
        for digest in parts.named.digests:
            await _copy_blob(source, target, digest, report)
        settled = await _settled(target, there)
        waiting = {item.id for item in _inputs(source, loaded)}
        await target.committer.call(lambda store: _append(store, target.session, parts, there, settled, waiting))
        report.events += sum(len(decode_events(text)) for version, _, _, text in loaded.rows if version > done)
        report.payloads += len(parts.payloads)
        report.tasks += len(loaded.tasks)
        news = True
    known: set[str] = {item.id for item in there.inbox} if there is not None else set()
    if inputs := [item for item in _inputs(source, loaded) if item.id not in known]:
        # One that was decided meanwhile is in the journal; coming twice, it changes nothing.
        await target.committer.call(lambda store: store.post(inputs))
        report.inputs += len(inputs)
        news = True
    return news


async def _settled(target: Node, there: Loaded | None) -> dict[str, StepRow]:
    """The step rows that the target has of a run."""
    if there is None:
        return {}
    found = [await target.read(partial(target.reader.step, there.head.key, at)) for at in _addresses(there)]
    return {answer.step.address: answer.step for answer in found if answer.step is not None}


async def _copy_blob(source: Node, target: Node, digest: str, report: CopyReport) -> None:
    def copy() -> bool:
        try:
            file = source.blobs.open(digest)
        except KeyError:
            # A text of the user's that looks like a digest; a blob that is really lost was lost before.
            return False
        store_content(target.blobs, file)
        file.close()
        return True

    report.blobs += await source.read(copy)


def _inputs(source: Node, loaded: Loaded) -> list[InboxInput]:
    """The inputs that are to wait in the target: those of the source, and one that has a deadline pass there."""
    key = loaded.head.key
    inputs = [item for item in loaded.inbox if item.id != MARK]
    if loaded.head.deadline and is_awaited(source.engine.load(loaded)):
        inputs.append(InboxInput(MARK, key, encode_input(Look())))
    return inputs


def _append(
    store: Store,
    session: str,
    parts: _Parts,
    there: Loaded | None,
    settled: dict[str, StepRow],
    waiting: set[str],
) -> None:
    """Write the rows that the target does not have, and with the last one what the journal does not hold."""
    loaded = parts.loaded
    done = there.version if there is not None else 0
    if done:
        store.acquire(session, loaded.head.key, steal=True)
    appends = [
        Append(
            key=loaded.head.key,
            expect=version - 1,
            commit_id=commit,
            time=time,
            events=decode_events(text),
            status=RUNNING,
            was=there.status if there is not None and version == done + 1 else RUNNING,
            given=_given(text),
        )
        for version, commit, time, text in loaded.rows
        if version > done
    ]
    if there is None:
        appends[0].head, appends[0].plan = loaded.head, loaded.plan
    # With the first row, for what projections in the target take of it.
    appends[0].payloads = parts.payloads
    last = appends[-1]
    last.status, last.release = loaded.status, True
    last.unwound = parts.row.unwound
    last.hold = loaded.hold
    last.steps = [step for step in parts.steps if settled.get(step.address) != step]
    now = {step.number for step in parts.steps}
    last.unsettled = [step.number for step in settled.values() if step.number not in now]
    old = {found.task.number: found.task for found in there.tasks} if there is not None else {}
    new = {found.task.number: found.task for found in loaded.tasks}
    last.ended = [number for number, task in old.items() if new.get(number) != task]
    last.tasks = [task for number, task in new.items() if old.get(number) != task]
    before = [name for name in parts.lines if loaded.head.key not in store.line(name)]
    last.names = [(name, "line" if store.line(name) else "take") for name in before]
    if there is not None:
        last.consumed = [item.id for item in there.inbox if item.id not in waiting]
    answers = store.commit(session, appends, None)
    if bad := next((answer for answer in answers if answer.status != "committed"), None):
        if bad.status == "unfit":
            raise ProjectionError(f"run {loaded.head.id!r} cannot be copied: {bad.unfit[1]}")
        raise StoreUnavailableError(f"the target did not take run {loaded.head.id!r} ({bad.status}); copy again")


def _given(text: str) -> list[Given]:
    """What a row's successes give to projections in the target."""
    if '"records":' not in text:
        return []
    return [Given(lease=0, at=at, records=(handle,)) for at, handle in recorded(text)]


async def _difference(source: Node, target: Node, parts: _Parts) -> str | None:
    """How the run in the target differs from what was read, if it does."""
    there = await target.read(partial(target.reader.load, parts.row.key))
    if there is None:
        return "is not there"
    loaded = parts.loaded
    if [(v, c, t, decode_events(e)) for v, c, t, e in there.rows] != [
        (v, c, t, decode_events(e)) for v, c, t, e in loaded.rows
    ]:
        return "has another journal"
    for name, line in parts.lines.items():
        if await target.read(partial(target.reader.line, name)) != line and line[-1] == loaded.head.key:
            return f"has other runs in the line of {name!r}"
    for name in ("head", "plan", "status", "hold"):
        if getattr(there, name) != getattr(loaded, name):
            return f"has another {name}"
    if _waiting(there) != _waiting(loaded):
        return "has other tasks"
    if {item.id for item in there.inbox} != {item.id for item in _inputs(source, loaded)}:
        return "has other inputs waiting"
    steps = [await target.read(partial(target.reader.step, parts.row.key, step.address)) for step in parts.steps]
    if [found.step for found in steps] != parts.steps:
        return "has other outcomes of steps"
    payloads = await target.read(partial(target.reader.payloads, parts.row.key, [name for name, _ in parts.payloads]))
    return None if sorted(payloads.items()) == parts.payloads else "has other payloads"


def _waiting(loaded: Loaded) -> list[bytes]:
    tasks = sorted((found.task for found in loaded.tasks), key=lambda task: task.number)
    return [msgspec.json.encode(msgspec.structs.replace(task, lease=0)) for task in tasks]
