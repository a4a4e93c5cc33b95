"""Bugs that the simulation found, each as the smallest scenario that shows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from treadle.authoring.decorators import step, workflow
from treadle.authoring.registry import Registry
from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.apply import new_state
from treadle.core.decide import Limits, decide, start
from treadle.core.graph import Graph
from treadle.core.inputs import encode_input
from treadle.core.plan import Fragment, Group, Plan, Step
from treadle.core.tables import LIVE
from treadle.errors import LeaseLostError, StoreUnavailableError
from treadle.ports import Environment
from treadle.runtime import sweeper
from treadle.runtime.builtins import with_builtins
from treadle.runtime.client import App
from treadle.runtime.clock import RandomIds, SystemClock
from treadle.runtime.node import Node, Settings
from treadle.runtime.owned import Owned, Pending
from treadle.runtime.threads import ThreadPool
from treadle.runtime.wakeups import NoWakeups
from treadle.store.base import Append, InboxInput
from treadle.store.blobs import MemoryBlobs
from treadle.store.committer import Committer, InlineDriver
from treadle.store.memory import MemoryData, MemoryStore

registry = Registry()
executed: list[str] = []
gate: dict[str, asyncio.Event] = {}


@step(registry=registry, name="regressions:note")
async def note(name: str) -> str:
    executed.append(name)
    return name


@step(registry=registry, name="regressions:wait")
async def wait(name: str) -> str:
    executed.append(name)
    await gate[name].wait()
    return name


@step(registry=registry, name="regressions:large")
async def large(name: str) -> str:
    return name * 3000


@workflow(registry=registry, name="regressions:calling")
def calling(name: str) -> str:
    return one.bind(name)


@workflow(registry=registry, name="regressions:one")
def one(name: str) -> str:
    return note.bind(name)


@workflow(registry=registry, name="regressions:held")
def held(name: str) -> str:
    return wait.bind(name)


@workflow(registry=registry, name="regressions:long")
def long(name: str) -> str:
    text = wait.bind(name)
    for _ in range(12):
        text = note.bind(text)
    return text


@workflow(registry=registry, name="regressions:big")
def big(name: str) -> str:
    return note.bind(large.bind(name))


class Grouping(InlineDriver):
    """Never answers inside the call that asks, as a thread never does."""

    def start(self, committer: Committer) -> None:
        super().start(committer)
        self.idle = False

    def _work(self) -> None:
        self.idle = not self.stopped
        super()._work()
        self.idle = False


class LosesAnswers(MemoryStore):
    """A store whose next call of a name takes effect (or, `before`, does not) and raises."""

    __slots__ = ("before", "losing")

    def __init__(self, data: MemoryData, *losing: str, before: bool = False) -> None:
        super().__init__(data)
        self.losing = list(losing)
        self.before = before

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in ("losing", "data", "before") or name not in self.losing:
            return found

        def lose(*args: Any, **named: Any) -> Any:
            self.losing.remove(name)
            if not self.before:
                found(*args, **named)
            raise StoreUnavailableError(f"the answer of {name} is lost")

        return lose


async def direct(function: Callable[[], Any]) -> Any:
    return function()


@asynccontextmanager
async def node_on(data: MemoryData, store: MemoryStore | None = None, **settings: Any) -> AsyncIterator[App]:
    node = Node(
        Environment(
            clock=SystemClock(),
            ids=RandomIds(),
            threads=ThreadPool(2),
            wakeups=NoWakeups(),
            store=store if store is not None else MemoryStore(data),
        ),
        driver=lambda: Grouping(renew_seconds=1.0),
        blobs=MemoryBlobs(),
        registry=with_builtins(registry),
        settings=Settings(**{"slots": 4, "threads": 2, "sweep_seconds": 0.02, **settings}),
        in_reader=direct,
    )
    await node.open()
    app = App(node, lambda: None)
    try:
        yield app
    finally:
        await app.close()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def nothing_executed() -> None:
    executed.clear()
    gate.clear()


# -- answers that are lost -------------------------------------------------------------------------------------------


async def test_a_task_leased_by_a_commit_whose_answer_was_lost_is_executed_once_in_a_slot() -> None:
    data = MemoryData()
    async with node_on(data, LosesAnswers(data, "commit")) as app:
        run = await app.start(one, "a", id="r")

        assert await run.result(timeout=10) == "a"
        assert executed == ["a"]
        await until(lambda: app._node.slots.free() == app._node.slots.size)


async def test_a_task_leased_by_a_claim_whose_answer_was_lost_is_executed() -> None:
    data = MemoryData()
    async with node_on(data, worker=False) as starter:
        await starter.start(one, "a", id="r")
        async with node_on(data, LosesAnswers(data, "claim")) as app:
            assert await app.run("r").result(timeout=10) == "a"
            assert executed == ["a"]
            await until(lambda: app._node.slots.free() == app._node.slots.size)


async def test_a_run_whose_giving_back_failed_is_decided_by_the_session_that_the_store_takes_for_its_owner() -> None:
    data = MemoryData()
    async with node_on(data) as app:
        run = await app.start(held, "a", id="r")
        key = await run.key()
        gate["a"] = asyncio.Event()
        await until(lambda: data.runs[key].owner is not None)
        # The engine has forgotten the run; the store has not.
        app._node.engine.runs.clear()

        MemoryStore(data).post([InboxInput("i1", key, encode_input(inp.Signal(name="s")))])

        await until(lambda: not data.runs[key].inbox)
        gate["a"].set()
        assert await run.result(timeout=10) == "a"
        assert executed == ["a"]


async def test_what_is_asked_of_a_session_that_has_ended_is_refused_and_waits_for_nothing() -> None:
    data = MemoryData()
    async with node_on(data) as app:
        committer = app._node.committer
        await committer.stop()

        with pytest.raises(LeaseLostError):
            await asyncio.wait_for(committer.call(lambda store: store.sessions()), 5)
        with pytest.raises(LeaseLostError):
            await asyncio.wait_for(app.start(one, "a"), 5)


async def test_what_is_asked_of_an_engine_whose_session_was_lost_is_answered() -> None:
    data = MemoryData()
    async with node_on(data) as app:
        run = await app.start(held, "a", id="r")
        gate["a"] = asyncio.Event()
        await until(lambda: executed)
        engine = app._node.engine
        told: list[BaseException | None] = []

        # Between the loss of one session and the beginning of the next.
        engine.close()
        MemoryStore(data).bury(app._node.session)
        key = await run.key()
        engine.runs[key].in_flight = []
        engine.give(key, inp.Pause(), lambda _refusal, error, _events: told.append(error))

        await until(lambda: told)
        assert isinstance(told[0], LeaseLostError)


async def test_a_payload_that_cannot_be_read_now_is_no_failure_of_the_step() -> None:
    data = MemoryData()
    async with node_on(data) as app:
        app._node.payloads._reader = LosesAnswers(data, "payloads")
        run = await app.start(big, "a", id="r")

        assert await run.result(timeout=10) == "a" * 3000


# -- runs that another session took ------------------------------------------------------------------------------------


async def test_an_outcome_that_means_nothing_to_a_stale_owner_reaches_the_present_one() -> None:
    data = MemoryData()
    async with node_on(data) as old, node_on(data, worker=False) as new:
        run = await old.start(held, "a", id="r")
        gate["a"] = asyncio.Event()
        await until(lambda: executed)

        await new._node.engine.acquire(await run.key(), steal=True)
        gate["a"].set()

        assert await new.run("r").result(timeout=10) == "a"


async def test_a_run_that_its_thief_left_behind_is_decided_by_the_owner_before_it() -> None:
    data = MemoryData()
    async with node_on(data) as app:
        run = await app.start(held, "a", id="r")
        key = await run.key()
        gate["a"] = asyncio.Event()
        await until(lambda: executed)
        # A thief came and died.
        data.free(data.runs[key])
        MemoryStore(data).post([InboxInput("i1", key, encode_input(inp.Signal(name="s")))])

        await until(lambda: not data.runs[key].inbox)
        gate["a"].set()
        assert await run.result(timeout=10) == "a"


async def test_who_awaits_a_run_of_this_session_hears_of_its_end_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "LOOK_SECONDS", 0.05)
    data = MemoryData()
    async with node_on(data, worker=False) as old, node_on(data) as new:
        run = await old.start(one, "a", id="r")
        awaited = asyncio.create_task(run.result())
        await new._node.engine.acquire(await run.key(), steal=True)
        new._node.look_for_tasks()

        assert await asyncio.wait_for(awaited, 10) == "a"


async def test_a_caller_that_gives_up_takes_nothing_from_the_others() -> None:
    data = MemoryData()
    async with node_on(data) as app, node_on(data) as other:
        run = await app.start(one, "a", id="r")
        await run.result(timeout=10)
        engine = other._node.engine
        key = await run.key()

        impatient, patient = engine.acquire(key), engine.acquire(key)
        impatient.cancel()

        assert await asyncio.wait_for(patient, 5) == ""


async def test_two_who_send_a_signal_at_once_are_told_apart() -> None:
    data = MemoryData()
    async with node_on(data) as app:
        run = await app.start(held, "a", id="r")
        gate["a"] = asyncio.Event()
        await until(lambda: executed)
        key = await run.key()
        told: list[list[ev.AnyEvent]] = []

        owned = app._node.engine.runs[key]
        owned.in_flight = []
        for number in range(2):
            value = inp.Signal(name="s", value=f"={number}")
            app._node.engine._give(owned, Pending(value, "", [], lambda _refusal, _error, events: told.append(events)))
        owned.in_flight = None
        app._node.engine._decide(owned)

        await until(lambda: len(told) == 2)
        assert [len(events) for events in told] == [1, 0]
        gate["a"].set()


# -- sessions --------------------------------------------------------------------------------------------------------


async def test_the_elected_sweeper_that_dies_is_found_dead_by_the_others() -> None:
    data = MemoryData()
    async with node_on(data) as app:
        ghost = MemoryStore(data)
        row = MemoryStore(data).sessions()[0]
        ghost.open_session(type(row)("ghost", "w", "", 0, 0, []))
        # Whoever holds the role died with it.
        data.elected[sweeper.ROLE] = data.sessions["ghost"]
        app._node.sweeper.lease_seconds = 0.05

        def is_gone() -> bool:
            # Renewed more often than such a lease asks for; a store that takes no renewals buries nobody.
            ghost.renew(app._node.session)
            return "ghost" not in data.sessions

        await until(is_gone)
        await until(lambda: data.elected[sweeper.ROLE].id == app._node.session)
        assert list(data.sessions) == [app._node.session]


async def test_an_input_whose_wake_up_was_lost_is_found_at_the_next_round() -> None:
    data = MemoryData()
    async with node_on(data) as app:
        run = await app.start(held, "a", id="r")
        gate["a"] = asyncio.Event()
        await until(lambda: executed)
        key = await run.key()

        MemoryStore(data).post([InboxInput("i1", key, encode_input(inp.Cancel()))])

        await until(lambda: not data.runs[key].inbox)
        gate["a"].set()
        assert (await run.wait(10)).status == "cancelled"


async def test_an_input_that_is_read_while_its_run_is_given_back_is_decided_once() -> None:
    data = MemoryData()
    async with node_on(data) as app:
        engine = app._node.engine
        tell = engine.on_committed
        sent: list[str] = []

        def committed(owned: Owned, append: Append) -> None:
            if append.release and append.status in LIVE and not sent:
                # The run waits for the one that it calls, and only for that.
                sent.append(append.key)
                store = MemoryStore(data)
                store.post([InboxInput("i1", append.key, encode_input(inp.Signal("s")))])
                engine.inboxes._got(append.key, store.inbox(append.key), None)
            if tell is not None:
                tell(owned, append)

        engine.on_committed = committed
        run = await app.start(calling, "a")

        assert await run.result(timeout=10) == "a"
        assert sent == [await run.key()]
        caused = [event async for _, _, event in run.events() if event.cause == "i1"]
        assert [type(event) for event in caused] == [ev.SignalReceived]


async def test_a_task_whose_wake_up_was_lost_is_found_at_the_next_round() -> None:
    data = MemoryData()
    async with node_on(data) as app, node_on(data, worker=False) as starter:
        await asyncio.sleep(0.05)
        run = await starter.start(one, "a", id="r")

        await until(lambda: executed)
        assert await run.result(timeout=10) == "a"
        assert app._node.slots.free() <= app._node.slots.size


async def test_an_attempt_that_is_cancelled_before_its_first_step_gives_its_slot_back() -> None:
    data = MemoryData()
    async with node_on(data) as app:
        node = app._node
        start_attempt = node.worker.start

        def start_and_stop(tasks: Sequence[Any]) -> None:
            start_attempt(tasks)
            for task in tasks:
                node.worker.interrupt(task.run, task.number)

        node._execute = start_and_stop
        run = await app.start(one, "a", id="r")
        await until(lambda: not node.worker.active)
        await run.wait(timeout=10)

        assert executed == []
        await until(lambda: node.slots.free() == node.slots.size)


async def test_a_call_that_is_cancelled_before_its_first_step_gives_its_slot_back() -> None:
    data = MemoryData()
    async with node_on(data) as app:
        node = app._node
        start_attempt = node.worker.start

        def start_and_stop(tasks: Sequence[Any]) -> None:
            start_attempt(tasks)
            for task in tasks:
                node.worker.interrupt(task.run, task.number)

        node._execute = start_and_stop
        run = await app.start(calling, "a", id="r")
        await run.wait(timeout=10)

        assert executed == []
        await until(lambda: node.slots.free() == node.slots.size)


async def test_what_an_interrupt_ends_waits_for_the_decision_after_the_commit() -> None:
    data = MemoryData()
    async with node_on(data, limits=Limits(events=2)) as app:
        run = await app.start(long, "a", id="r")
        gate["a"] = asyncio.Event()
        await until(lambda: executed)
        committer = app._node.committer
        append = committer.append
        under_way: list[int] = [0]
        most: list[int] = []

        def counted(one: Any, then: Any, **named: Any) -> None:
            def answered(answer: Any, error: Any) -> None:
                under_way[0] -= 1
                then(answer, error)

            under_way[0] += 1
            most.append(under_way[0])
            append(one, answered, **named)

        committer.append = counted  # type: ignore[assignment,method-assign]  # it only counts
        await run.cancel(hard=True)
        await run.wait(timeout=10)

        assert set(most) == {1}


# -- the core ----------------------------------------------------------------------------------------------------------


def test_a_cancel_settles_a_group_inside_a_group_that_never_opened() -> None:
    inner = Group(id="inner", blocks=[Step(id="c", action="x")])
    outer = Group(id="outer", blocks=[inner, Step(id="b", action="x")], after_any=("a",))
    plan = Plan(workflow="w", blocks=[Step(id="a", action="x"), outer])
    run = new_state("k", "r", Graph(plan), [], [])
    start(run, now=1.0, limits=Limits())

    decide(run, [(inp.Cancel(hard=True), "")], now=2.0, limits=Limits())

    assert run.status == "cancelled"


def test_a_step_that_its_rewound_adder_brings_back_after_a_cancel_is_cancelled() -> None:
    run = new_state("k", "r", Graph(Plan(workflow="w", blocks=[Step(id="a", action="x")])), [], [])
    added = (Fragment(blocks=[Step(id="k", action="x")]),)
    start(run, now=1.0, limits=Limits())

    def ask(value: inp.AnyInput) -> None:
        decide(run, [(value, "")], now=2.0, limits=Limits())

    ask(inp.Outcome(number=1, generation=1, attempt=1, added=added))
    brought = run.at("a/k")
    assert brought is not None
    ask(inp.Outcome(number=brought.node.number, generation=1, attempt=1))
    ask(inp.Rewind(at="a"))
    ask(inp.Cancel())
    ask(inp.Outcome(number=1, generation=2, attempt=2, added=added))

    assert run.status == "cancelled"
    assert brought.status == "cancelled"
