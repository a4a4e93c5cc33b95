"""The store contract, second half: random histories of several sessions, each answer checked against a small model.

Two handles on one data serve two to three sessions at a time; sessions die and new ones come. The model says what
a store must answer, and follows it where the contract leaves a choice (which of two queues a claim serves first,
the ids of inputs that the store makes, whether a task that this session cannot execute holds others back).

A store is tested by subclassing `StoreModel` with `make_handles`:

    class MyModel(StoreModel):
        def make_handles(self) -> list[Store]: ...

    TestMyStore = MyModel.TestCase
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from treadle.core.commands import Call, Task
from treadle.core.events import encode_events
from treadle.core.inputs import AnyInput, Look, Lost, Revoked, decode_input
from treadle.errors import LeaseLostError
from treadle.store.base import Answer, Append, InboxInput, Loaded, Postponement, SessionRow, Store
from treadle.testing.contract_kit import NOW, Slots, append_of, key_of, report_of, signal_of, start_of, step_of, task_of
from treadle.testing.store_model_data import ModelRun, ModelTask

_ACTIONS = ("act", "other")
_QUEUES = ("default", "slow")
_RUNS = 4
_STEPS = 5

_chance = st.sampled_from([True, False, False, False])
_often = st.sampled_from([True, True, True, True, False])
_slots = st.integers(0, 4)
_offered = st.sampled_from([("act",), ("act", "other"), ("other",)])


class StoreModel(RuleBasedStateMachine):
    """Drives a store and its model together; subclass it with `make_handles`."""

    def make_handles(self) -> list[Store]:
        """Two open handles on one new, empty data."""
        raise NotImplementedError

    @contextmanager
    def changing(self) -> Generator[None, None, None]:
        """A failure inside leaves the model half changed: it is then not compared once more at the end."""
        self.sound = False
        yield
        self.sound = True

    @initialize()
    def begin(self) -> None:
        """Open the handles and the first two sessions."""
        self.handles = self.make_handles()
        self.sound = True
        self.now = self.latest = NOW
        self.keys = 0
        self.ages = 0
        self.inputs = 0
        self.names = 0
        self.runs: dict[str, ModelRun] = {}
        self.tombstones: list[str] = []
        self.alive: dict[str, Store] = {}
        self.buried: dict[str, Store] = {}
        self.elected = ""
        self.tokens: set[int] = set()
        # Tasks as they were leased; reports are drawn from them, long after they ended too.
        self.given: list[tuple[str, Task]] = []
        for _ in range(2):
            self.open_session()

    # -- what may happen -------------------------------------------------------------------------------

    @precondition(lambda self: len(self.alive) < 3)
    @rule()
    def open_session(self) -> None:
        """A process starts."""
        self.names += 1
        name = f"s{self.names}"
        store = self.handles[self.names % len(self.handles)]
        store.open_session(SessionRow(name, f"worker-{name}", f"wake-{name}", 0, 0, list(_ACTIONS)))
        self.alive[name] = store

    @precondition(lambda self: len(self.alive) > 1)
    @rule(data=st.data())
    def bury(self, data: st.DataObject) -> None:
        """A process dies, and another one finds out."""
        name = data.draw(st.sampled_from(list(self.alive)))
        store = self.alive.pop(name)
        with self.changing():
            expected: dict[str, list[AnyInput]] = {}
            owned = [run.key for run in self.runs.values() if run.owner == name]
            for run in self.runs.values():
                for number, model in list(run.tasks.items()):
                    if model.session == name:
                        task = run.tasks.pop(number).task
                        lost = Lost(number=number, generation=task.generation, attempt=task.attempt, session=name)
                        expected.setdefault(run.key, []).append(lost)
            for key in owned:
                run = self.runs[key]
                run.owner = ""
                if run.status == "running" and not run.inbox and key not in expected:
                    expected[key] = [Look(session=name)]
            self.elected = "" if self.elected == name else self.elected

            touched = data.draw(st.sampled_from(self.handles)).bury(name)

            for key, inputs in expected.items():
                self.adopt(self.runs[key], inputs)
            wait = {key for key in {*expected, *owned} if self.runs[key].inbox}
            assert len(touched) == len(set(touched))
            assert set(touched) == wait
            self.buried[name] = store

    @rule(seconds=st.sampled_from([-2.0, 0.5, 1.0, 5.0]))
    def pass_time(self, seconds: float) -> None:
        """Time goes on, or the next caller's clock is behind."""
        self.now += seconds
        self.latest = max(self.latest, self.now)

    @precondition(lambda self: len(self.runs) < _RUNS)
    @rule(data=st.data(), slots=_slots, actions=_offered)
    def start(self, data: st.DataObject, slots: int, actions: Sequence[str]) -> None:
        """A run is made, or its id or key is taken."""
        self.keys += 1
        key = key_of(self.keys)
        if self.keys > 1 and data.draw(_chance, "old key"):
            key = data.draw(st.sampled_from([*self.runs, *self.tombstones]))
        id = f"id-{data.draw(st.integers(0, _RUNS), 'id')}"
        self.commit(data, [start_of(key, id=id, **self.draw_fields(data, key, id))], slots, actions)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), slots=_slots, actions=_offered)
    def append(self, data: st.DataObject, slots: int, actions: Sequence[str]) -> None:
        """One to three appends are committed, of any runs, some of them stacked, some out of date."""
        appends: list[Append] = []
        for _ in range(data.draw(st.integers(1, 3), "appends")):
            key = data.draw(st.sampled_from([*self.runs, *self.tombstones]), "run")
            stacked = sum(1 for append in appends if append.key == key)
            version = self.runs[key].version if key in self.runs else 1
            wrong = data.draw(st.sampled_from([0, 0, 0, 0, 0, -1, 1]), "wrong")
            fields = self.draw_fields(data, key, self.runs[key].id if key in self.runs else "gone")
            appends.append(append_of(key, max(0, version + stacked + wrong), **fields))
        self.commit(data, appends, slots, actions)

    @rule(data=st.data(), slots=_slots, actions=_offered)
    def claim(self, data: st.DataObject, slots: int, actions: Sequence[str]) -> None:
        """A worker claims; what it gets is the best of what waits."""
        name = self.draw_session(data)
        claimed, due = self.alive[name].claim(name, Slots(slots, actions), self.now)

        with self.changing():
            assert len(claimed) <= slots
            for task in claimed:
                model = self.runs[task.run].tasks[task.number]
                rivals = [other for other in self.claimable(actions) if other.task.queue == task.queue]
                assert model in rivals, f"{task} was claimed, which may not be"
                assert min(rivals, key=ModelTask.order) is model, f"{task} was claimed before its turn"
                self.lease(name, model, task)
            if len(claimed) < slots:
                left = list(self.claimable(actions))
                assert not left, f"{left} were not claimed by free slots"
            # What was due once need not be waited for again by a clock that is behind.
            times = [model.task.not_before for model in self.waiting(actions) if model.task.not_before > self.latest]
            assert due is None or due > self.now, due
            assert not times or (due is not None and due <= min(times)), (due, times)

    @precondition(lambda self: self.given)
    @rule(data=st.data(), wrong=_chance)
    def report(self, data: st.DataObject, wrong: bool) -> None:
        """A worker reports what it was given, perhaps too late, twice, or with another token."""
        name, task = data.draw(st.sampled_from(self.given[-12:]))
        if name not in self.alive:
            return
        lease = task.lease + 1 if wrong else task.lease
        report = report_of(task, lease=lease, payloads=[(f"d{task.number}", b"%d" % task.number)])
        run = self.runs.get(task.run)
        model = run.tasks.get(task.number) if run else None
        live = model is not None and model.session == name and model.lease == lease

        answers = self.alive[name].report(name, [report])

        assert answers == [live]
        if live and run is not None:
            del run.tasks[task.number]
            run.payloads.update(report.payloads)
            self.post_to_model(run, report.input)

    @precondition(lambda self: self.given)
    @rule(data=st.data(), wrong=_chance, seconds=st.sampled_from([0.0, 1.0, 3.0]))
    def postpone(self, data: st.DataObject, wrong: bool, seconds: float) -> None:
        """A worker gives a task back to wait, perhaps too late, or with another token."""
        name, task = data.draw(st.sampled_from(self.given[-12:]))
        if name not in self.alive:
            return
        lease = task.lease + 1 if wrong else task.lease
        call = Call(args={"n": "=7"})
        item = Postponement(task.run, task.number, lease, self.now + seconds, call)
        run = self.runs.get(task.run)
        model = run.tasks.get(task.number) if run else None
        live = model is not None and model.session == name and model.lease == lease

        answers = self.alive[name].postpone(name, [item], self.now)

        assert answers == [live and model is not None and not model.interrupt and not model.last]
        if answers == [True] and run is not None and model is not None:
            self.ages += 1
            again = msgspec.structs.replace(model.task, lease=0, not_before=item.not_before, call=call)
            run.tasks[task.number] = ModelTask(again, self.ages)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), again=_chance)
    def post(self, data: st.DataObject, again: bool) -> None:
        """Someone sends an input, perhaps for the second time, perhaps to a run that is gone."""
        key = data.draw(st.sampled_from([*self.runs, *self.tombstones, key_of(9999)]))
        run = self.runs.get(key)
        if not again:
            self.inputs += 1
        value = signal_of(key, f"i{self.inputs}", f"name-{self.now}")

        assert data.draw(st.sampled_from(self.handles)).post([value]) == [run is not None]

        if run is not None:
            self.post_to_model(run, value)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), steal=_chance)
    def acquire(self, data: st.DataObject, steal: bool) -> None:
        """A session wants to decide a run."""
        name = self.draw_session(data)
        key = data.draw(st.sampled_from([*self.runs, *self.tombstones]))
        run = self.runs.get(key)

        acquired = self.alive[name].acquire(name, key, steal=steal)

        if run is None:
            assert acquired is None
            return
        assert acquired is not None
        if run.owner in {"", name} or steal:
            run.owner = name
            assert acquired.run is not None
            self.compare(run, acquired.run)
        else:
            assert acquired.run is None
        assert acquired.owner == run.owner

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """A session gives back what it owns of some runs."""
        name = self.draw_session(data)
        keys = data.draw(st.lists(st.sampled_from([*self.runs, *self.tombstones]), max_size=3, unique=True))

        self.alive[name].release(name, keys)

        for key in keys:
            if key in self.runs and self.runs[key].owner == name:
                self.runs[key].owner = ""

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """Someone deletes a run; it must be closed."""
        key = data.draw(st.sampled_from([*self.runs, *self.tombstones]))
        run = self.runs.get(key)
        expected = "missing" if run is None else "open" if run.tasks or run.status == "running" else "deleted"

        assert data.draw(st.sampled_from(self.handles)).delete(key) == expected

        if expected == "deleted":
            del self.runs[key]
            self.tombstones.append(key)

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        """A session renews, and learns what to interrupt."""
        name = self.draw_session(data)

        found = self.alive[name].renew(name).interrupts

        expected = [
            (run.key, number, task.lease)
            for run in self.runs.values()
            for number, task in run.tasks.items()
            if task.session == name and task.interrupt
        ]
        assert sorted(found) == sorted(expected)

    @rule(data=st.data())
    def elect(self, data: st.DataObject) -> None:
        """A session wants to sweep."""
        name = self.draw_session(data)
        self.elected = self.elected or name

        assert self.alive[name].elect("sweeper", name) == (self.elected == name)

    @rule(data=st.data())
    def sweep(self, data: st.DataObject) -> None:
        """The sweeper looks for runs that nobody decides, an owner for its own."""
        name = self.draw_session(data)
        waits = [run for run in self.runs.values() if run.inbox]

        stranded = self.alive[name].sweep(name, self.now).stranded
        owned = self.alive[name].owned_inboxes(name)

        assert sorted(stranded) == sorted(run.key for run in waits if not run.owner)
        assert sorted(owned) == sorted(run.key for run in waits if run.owner == name)

    @precondition(lambda self: self.buried)
    @rule(data=st.data())
    def write_from_the_grave(self, data: st.DataObject) -> None:
        """A buried session comes back and tries to write."""
        name = data.draw(st.sampled_from(list(self.buried)))
        store = self.buried[name]
        refused = 0
        for attempt in (
            lambda: store.commit(name, [start_of(key_of(8888))], None),
            lambda: store.claim(name, Slots(9, _ACTIONS), self.now),
            lambda: store.renew(name),
            lambda: store.report(name, [report_of(task) for _, task in self.given[-3:]]),
        ):
            try:
                attempt()
            except LeaseLostError:
                refused += 1
        assert refused == 4

    # -- what must be so -------------------------------------------------------------------------------

    @invariant()
    def runs_are_as_they_should_be(self) -> None:
        """The rows of all runs, and the tasks that wait, are those of the model."""
        store = self.handles[0]
        for run in self.runs.values():
            row = store.run(run.key)
            assert row is not None, run
            leased = sum(1 for task in run.tasks.values() if task.session)
            found = (row.id, row.version, row.status, row.hold, row.owner, row.leased)
            assert found == (run.id, run.version, run.status, run.hold, run.owner, leased)
        waiting = sorted(
            (task for run in self.runs.values() for task in run.tasks.values() if not task.session),
            key=ModelTask.order,
        )
        listed = [(row.task.run, row.task.number) for row in self.handles[-1].waiting()]
        assert listed == [(task.task.run, task.task.number) for task in waiting]

    def teardown(self) -> None:
        """At the end every run is read whole, from every handle, and the store looks itself over."""
        for store in getattr(self, "handles", []):
            if self.sound:
                self.read_all(store)
            store.close()

    def read_all(self, store: Store) -> None:
        """Compare all that can be read with the model."""
        for run in self.runs.values():
            loaded = store.load(run.key)
            assert loaded is not None
            self.compare(run, loaded)
            assert store.find(run.id) == [run.key]
            assert store.payloads(run.key, [f"d{n}" for n in range(_STEPS)]) == run.payloads
            for number in range(_STEPS):
                assert store.step(run.key, f"step-{number}").step == run.steps.get(number)
            for version in range(1, run.version + 1):
                assert store.committed(run.key, version) == run.rows[version - 1][1]
        for key in self.tombstones:
            assert store.load(key) is None
            assert store.inbox(key) == []
        assert {row.id for row in store.sessions()} == set(self.alive)
        assert store.check().problems == []

    def compare(self, run: ModelRun, loaded: Loaded) -> None:
        """Whether a loaded run is the model's."""
        found = (loaded.head.key, loaded.head.id, loaded.version, loaded.status, loaded.hold, loaded.owner)
        assert found == (run.key, run.id, run.version, run.status, run.hold, run.owner)
        assert loaded.rows == run.rows
        assert loaded.inbox == run.inbox
        tasks = {
            row.task.number: (row.session, row.interrupt, msgspec.structs.astuple(row.task)) for row in loaded.tasks
        }
        assert tasks == {
            number: (
                model.session,
                model.interrupt,
                msgspec.structs.astuple(msgspec.structs.replace(model.task, lease=model.lease)),
            )
            for number, model in run.tasks.items()
        }

    # -- the model -------------------------------------------------------------------------------------

    def draw_session(self, data: st.DataObject) -> str:
        """A living session."""
        return data.draw(st.sampled_from(list(self.alive)), "session")

    def draw_fields(self, data: st.DataObject, key: str, id: str) -> dict[str, Any]:
        """What an append does, beside its events."""
        number = st.integers(0, _STEPS - 1)
        numbers = st.lists(number, max_size=3, unique=True)
        run = self.runs.get(key)
        tasks: list[Task] = []
        for step in data.draw(numbers, "tasks"):
            fields = {
                "run_id": id,
                "priority": data.draw(st.integers(-1, 1), "priority"),
                "queue": data.draw(st.sampled_from(_QUEUES), "queue"),
                "action": data.draw(st.sampled_from(_ACTIONS), "action"),
                "not_before": data.draw(st.sampled_from([0.0, 0.0, self.now, self.now + 1, self.now + 3])),
            }
            tasks.append(task_of(key, step, **fields))
        waits = [value.id for value in run.inbox] if run else []
        settled = data.draw(numbers, "steps")
        return {
            "time": self.now,
            "tasks": tasks,
            # A number that has a task already may be dispatched again only when that one is ended.
            "ended": sorted({task.number for task in tasks} | set(data.draw(numbers, "ended"))),
            "consumed": [text for text in waits if data.draw(st.booleans(), "consume")],
            "steps": [
                step_of(n, attempt=self.ages, status=data.draw(st.sampled_from(["failed", "succeeded"])))
                for n in settled
            ],
            "unsettled": sorted(set(data.draw(numbers, "unsettled")) - set(settled)),
            "interrupts": sorted(set(data.draw(numbers, "interrupts")) - {task.number for task in tasks}),
            "payloads": [(f"d{n}", b"%d" % n) for n in data.draw(numbers, "payloads")],
            "hold": data.draw(st.sampled_from([None, None, None, 0, 0, 1, 2]), "hold"),
            "revoke": not tasks and data.draw(_chance, "revoke"),
            "release": data.draw(_chance, "release") and data.draw(_chance, "release"),
            "status": data.draw(st.sampled_from(["running", "running", "failed", "succeeded"]), "status"),
        }

    def commit(self, data: st.DataObject, appends: Sequence[Append], slots: int, actions: Sequence[str]) -> None:
        """Commit in the store and in the model; the answers must be the model's."""
        first = self.runs.get(appends[0].key)
        name = self.draw_session(data)
        if first is not None and first.owner and data.draw(_often, "by its owner"):
            name = first.owner
        offer = Slots(slots, actions)
        # Stores may set a task's lease in place.
        tasks = [[msgspec.structs.replace(task) for task in append.tasks] for append in appends]

        answers = self.alive[name].commit(name, appends, offer)

        with self.changing():
            assert len(answers) == len(appends)
            left = slots
            self.revoked: dict[str, list[AnyInput]] = {}
            for append, own_tasks, answer in zip(appends, tasks, answers, strict=True):
                expected = self.status_of(name, append)
                assert answer.status == expected, (append, answer, expected)
                if expected == "committed":
                    self.apply(name, append)
                    left = self.hand_over(name, append, own_tasks, answer, left, actions)
                    if append.release:
                        self.runs[append.key].owner = ""
                else:
                    assert (answer.leased, answer.queued) == ([], 0)
            for key, inputs in self.revoked.items():
                self.adopt(self.runs[key], inputs)
            assert offer.free() == left

    def status_of(self, name: str, append: Append) -> str:
        """What the answer to an append must be."""
        run = self.runs.get(append.key)
        if append.key in self.tombstones:
            return "refused"
        if append.head is not None:
            taken = run is not None or any(other.id == append.head.id for other in self.runs.values())
            return "exists" if taken else "committed"
        return "committed" if run and run.version == append.expect and run.owner == name else "conflict"

    def apply(self, name: str, append: Append) -> None:
        """Change the model by all of an append but its tasks."""
        if append.head is not None:
            self.runs[append.key] = ModelRun(key=append.key, id=append.head.id, owner=name)
        run = self.runs[append.key]
        run.version += 1
        run.status = append.status
        run.rows.append((run.version, append.commit_id, append.time, encode_events(append.events)))
        run.hold = run.hold if append.hold is None else append.hold
        run.inbox = [value for value in run.inbox if value.id not in append.consumed]
        run.payloads.update(append.payloads)
        for number in append.ended:
            run.tasks.pop(number, None)
        for number in append.unsettled:
            run.steps.pop(number, None)
        run.steps.update({row.number: row for row in append.steps})
        self.steer(run, append)

    def steer(self, run: ModelRun, append: Append) -> None:
        """Interrupt and take back tasks."""
        for number in append.interrupts:
            if number in run.tasks and run.tasks[number].session:
                run.tasks[number].interrupt = True
        if append.revoke:
            for task in run.tasks.values():
                task.last = True
        if append.revoke or append.interrupts:
            numbers = sorted(
                number
                for number, task in run.tasks.items()
                if not task.session and (append.revoke or number in append.interrupts)
            )
            for number in numbers:
                del run.tasks[number]
            if numbers:
                self.revoked.setdefault(run.key, []).append(Revoked(numbers=numbers))

    def hand_over(
        self,
        name: str,
        append: Append,
        tasks: Iterable[Task],
        answer: Answer,
        left: int,
        actions: Sequence[str],
    ) -> int:
        """Check who got the tasks of an append (promise 4); returns the slots that are left."""
        run = self.runs[append.key]
        leased = {task.number: task for task in answer.leased}
        queued = 0
        for task in sorted(tasks, key=lambda task: -task.priority):
            self.ages += 1
            model = run.tasks[task.number] = ModelTask(task, self.ages)
            ahead = [
                other
                for other in self.claimable(_ACTIONS)
                if other.task.queue == task.queue and other.order() < model.order()
            ]
            may = (
                left > 0
                and task.action in actions
                and task.not_before <= append.time
                and not run.hold
                and not any(other.task.action in actions for other in ahead)
            )
            given = leased.pop(task.number, None)
            if given is not None:
                assert may, f"{task} was handed over, which may not be"
                left -= 1
                self.lease(name, model, given)
            else:
                # It may stand behind a task that only other sessions can execute.
                assert not may or ahead, f"{task} was not handed over"
                queued += 1
        assert not leased
        assert answer.queued == queued
        return left

    def waiting(self, actions: Sequence[str]) -> Iterable[ModelTask]:
        """Tasks of free runs that wait for someone who can execute these actions."""
        for run in self.runs.values():
            if not run.hold:
                for task in run.tasks.values():
                    if not task.session and task.task.action in actions:
                        yield task

    def claimable(self, actions: Sequence[str]) -> Iterable[ModelTask]:
        """Those of them that are due."""
        return (task for task in self.waiting(actions) if task.task.not_before <= self.now)

    def lease(self, name: str, model: ModelTask, given: Task) -> None:
        """A task was given to a session."""
        assert given.lease > 0
        assert given.lease not in self.tokens, "a token was given twice"
        self.tokens.add(given.lease)
        expected = msgspec.structs.astuple(msgspec.structs.replace(model.task, lease=given.lease))
        assert msgspec.structs.astuple(given) == expected
        model.session, model.lease = name, given.lease
        self.given.append((name, msgspec.structs.replace(given)))

    def post_to_model(self, run: ModelRun, value: InboxInput) -> None:
        """Add an input unless it is there."""
        if all(other.id != value.id for other in run.inbox):
            run.inbox.append(value)

    def adopt(self, run: ModelRun, expected: Iterable[AnyInput]) -> None:
        """Take over inputs that the store made, with the ids that it gave them."""
        found = self.handles[0].inbox(run.key)
        new = found[len(run.inbox) :]
        assert found[: len(run.inbox)] == run.inbox
        made = [decode_input(value.body) for value in new]
        assert sorted(made, key=repr) == sorted(expected, key=repr)
        run.inbox += new
