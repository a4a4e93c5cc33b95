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

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from treadle.core.commands import Call, Task
from treadle.core.inputs import AnyInput, Look, Lost, Turn
from treadle.errors import LeaseLostError
from treadle.store.base import Append, Loaded, Postponement, SessionRow, Store
from treadle.store.queues import MOST_AHEAD_SECONDS, QueueChange, QueueLimits
from treadle.testing.contract_kit import NOW, Slots, append_of, head_of, key_of, report_of, signal_of, start_of
from treadle.testing.store_model_answers import ACTIONS, LIVE, NAMES, QUEUES, RUNS, STEPS, TARGETS, ModelAnswers
from treadle.testing.store_model_data import ModelRun, ModelTask
from treadle.testing.store_model_limits import LIMITS, ModelLimits

_chance = st.sampled_from([True, False, False, False])
_offers = st.builds(
    Slots,
    st.integers(0, 4),
    st.sampled_from([("act",), ("act", "other"), ("other",)]),
    st.sampled_from([(), (), ("gpu",), ("gpu", "disk")]),
)


class StoreModel(ModelAnswers, RuleBasedStateMachine):
    """Drives a store and its model together; subclass it with `make_handles`."""

    def make_handles(self) -> list[Store]:
        """Two open handles on one new, empty data."""
        raise NotImplementedError

    @contextmanager
    def telling_of_room(self, store: Store) -> Generator[None, None, None]:
        """If what waited under a limit may start after what is done inside, the store must have told so."""
        bool(store.made_room)
        before = {id(model): model for model in self.stopped()}
        yield
        free = [model for model in self.admitted() if id(model) in before]
        assert store.made_room or not free, f"nobody was told that {free} may start"

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
        self.lines: dict[str, list[str]] = {name: [] for name in NAMES}
        self.tombstones: list[str] = []
        self.alive: dict[str, Store] = {}
        self.buried: dict[str, Store] = {}
        self.elected = ""
        self.tokens: set[int] = set()
        # Tasks as they were leased; reports are drawn from them, long after they ended too.
        self.given: list[tuple[str, Task]] = []
        self.limits = ModelLimits(self.runs)
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
        store.open_session(SessionRow(name, f"worker-{name}", f"wake-{name}", 0, 0, list(ACTIONS)))
        self.alive[name] = store

    @precondition(lambda self: len(self.alive) > 1)
    @rule(data=st.data())
    def bury(self, data: st.DataObject) -> None:
        """A process dies, and another one finds out."""
        name = data.draw(st.sampled_from(list(self.alive)))
        store = self.alive.pop(name)
        handle = data.draw(st.sampled_from(self.handles))
        with self.changing(), self.telling_of_room(handle):
            expected: dict[str, list[AnyInput]] = {}
            owned = [run.key for run in self.runs.values() if run.owner == name]
            for run in self.runs.values():
                for number, model in list(run.tasks.items()):
                    if model.session == name:
                        task = run.tasks.pop(number).task
                        lost = Lost(
                            number=number,
                            generation=task.generation,
                            attempt=task.attempt,
                            session=name,
                            progress=model.progress,
                        )
                        expected.setdefault(run.key, []).append(lost)
            for key in owned:
                run = self.runs[key]
                run.owner = ""
                if run.status in LIVE and not run.inbox and key not in expected:
                    expected[key] = [Look(session=name)]
            self.elected = "" if self.elected == name else self.elected

            touched = handle.bury(name)

            for key, inputs in expected.items():
                self.adopt(self.runs[key], inputs)
            wait = {key for key in {*expected, *owned} if self.runs[key].inbox}
            assert len(touched) == len(set(touched))
            assert set(touched) == wait
            self.buried[name] = store

    @rule(seconds=st.sampled_from([-2.0, 0.5, 1.0, 5.0]))
    def pass_time(self, seconds: float) -> None:
        """Time goes on, or the next caller's clock is behind."""
        # A clock that is far behind is another story, told in the contract.
        self.now = max(self.now + seconds, self.latest - MOST_AHEAD_SECONDS / 2)
        self.latest = self.limits.furthest = max(self.latest, self.now)

    @rule(name=st.sampled_from(QUEUES), limits=st.sampled_from(LIMITS), paused=_chance, data=st.data())
    def set_limits(self, name: str, limits: QueueLimits, paused: bool, data: st.DataObject) -> None:
        """A program defines a queue, an operator pauses it or lets it go on."""
        store = data.draw(st.sampled_from(self.handles))
        with self.telling_of_room(store):
            changed = self.limits.set(name, limits, paused)

            answers = store.set_queues([QueueChange(name=name, defined=limits, paused=paused)], self.now)

            assert answers == [changed]

    @precondition(lambda self: len(self.runs) < RUNS)
    @rule(data=st.data(), offer=_offers)
    def start(self, data: st.DataObject, offer: Slots) -> None:
        """A run is made, or its id or key is taken."""
        self.keys += 1
        key = key_of(self.keys)
        if self.keys > 1 and data.draw(_chance, "old key"):
            key = data.draw(st.sampled_from([*self.runs, *self.tombstones]))
        id = f"id-{data.draw(st.integers(0, RUNS), 'id')}"
        fields = self.draw_fields(data, key, id)
        name = ""
        called, asked = data.draw(st.booleans(), "called"), data.draw(_chance, "asked for")
        if called and self.runs:
            parent = data.draw(st.sampled_from([*self.runs]), "parent")
            fields["head"] = head_of(key, id=id, parent=f"{parent}/step", detached=data.draw(_chance, "detached"))
            fields["plan"] = b"{}"
        if asked and self.given:
            # As a worker does whose step calls a run.
            name, task = data.draw(st.sampled_from(self.given[-12:]), "task")
            lease = task.lease + data.draw(_chance, "wrong")
            fields["report"] = report_of(task, lease=lease, payloads=[(f"d{task.number}", b"%d" % task.number)])
        self.commit(data, [start_of(key, id=id, **fields)], offer, name if name in self.alive else "")

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), offer=_offers)
    def append(self, data: st.DataObject, offer: Slots) -> None:
        """One to three appends are committed, of any runs, some of them stacked, some out of date."""
        appends: list[Append] = []
        for _ in range(data.draw(st.integers(1, 3), "appends")):
            key = data.draw(st.sampled_from([*self.runs, *self.tombstones]), "run")
            stacked = sum(1 for append in appends if append.key == key)
            version = self.runs[key].version if key in self.runs else 1
            wrong = data.draw(st.sampled_from([0, 0, 0, 0, 0, -1, 1]), "wrong")
            fields = self.draw_fields(data, key, self.runs[key].id if key in self.runs else "gone")
            # Each input is decided once; of one that comes again under its id meanwhile no append knows yet.
            decided = {id for append in appends if append.key == key for id in append.consumed}
            fields["consumed"] = [id for id in fields["consumed"] if id not in decided]
            appends.append(append_of(key, max(0, version + stacked + wrong), **fields))
        self.commit(data, appends, offer)

    @rule(data=st.data(), offer=_offers)
    def claim(self, data: st.DataObject, offer: Slots) -> None:
        """A worker claims; what it gets is the best of what waits and may start."""
        name = self.draw_session(data)
        slots = offer.free()
        claimed, due = self.alive[name].claim(name, offer, self.now)

        with self.changing():
            assert len(claimed) <= slots
            for task in claimed:
                model = self.runs[task.run].tasks[task.number]
                rivals = list(self.claimable(offer))
                assert model in rivals, f"{task} was claimed, which may not be"
                assert self.limits.may_admit(task, self.now), f"{task} was claimed above a limit"
                rivals = [other for other in rivals if self.limits.must_admit(other.task, self.now)]
                assert self.limits.is_first(model, rivals), f"{task} was claimed before its turn"
                self.lease(name, model, task)
            left = [model for model in self.claimable(offer) if self.limits.must_admit(model.task, self.now)]
            assert len(claimed) == slots or not left, f"{left} were not claimed by free slots"
            # What was due once need not be waited for again by a clock that is behind.
            times = [model.task.not_before for model in self.waiting(offer) if model.task.not_before > self.latest]
            assert due is None or due > self.now, due
            assert not times or (due is not None and due <= min(times)), (due, times)
            slow = [self.limits.next_start(model.task, self.now) for model in self.claimable(offer)]
            starts = [time for time in slow if time is not None]
            assert len(claimed) == slots or not starts or (due is not None and due <= min(starts) + 0.01), (due, starts)
            anybody = Slots(9, ACTIONS, TARGETS)
            open_ = [model for model in self.claimable(anybody) if self.limits.must_admit(model.task, self.now)]
            assert self.alive[name].made_room or not any(model.task.queue in self.limits.queues for model in open_)

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

        with self.telling_of_room(self.alive[name]):
            answers = self.alive[name].report(name, [report])

            assert [answer.done for answer in answers] == [live]
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

        with self.telling_of_room(self.alive[name]):
            answers = self.alive[name].postpone(name, [item], self.now)

            assert answers == [live and model is not None and not model.interrupt and not model.last]
            if answers == [True] and run is not None and model is not None:
                self.ages += 1
                again = msgspec.structs.replace(model.task, lease=0, not_before=item.not_before, call=call)
                run.tasks[task.number] = ModelTask(again, self.ages, progress=model.progress)

    @precondition(lambda self: self.given)
    @rule(data=st.data(), wrong=_chance)
    def progress(self, data: st.DataObject, wrong: bool) -> None:
        """A worker tells how far a task is, perhaps too late; then it asks what it holds."""
        name, task = data.draw(st.sampled_from(self.given[-12:]))
        if name not in self.alive:
            return
        text = f"={self.now}"
        lease = task.lease + 1 if wrong else task.lease
        run = self.runs.get(task.run)
        model = run.tasks.get(task.number) if run else None

        self.alive[name].progress(name, [(task.run, task.number, lease, text)])
        held = self.alive[name].leased(name)

        if model is not None and model.session == name and model.lease == lease:
            model.progress = text
        own = [model.lease for run in self.runs.values() for model in run.tasks.values() if model.session == name]
        assert sorted(task.lease for task in held) == sorted(own)

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
        closed_ones = [run.key for run in self.runs.values() if not run.tasks and run.status not in LIVE]
        likely = data.draw(st.booleans(), "closed")
        key = data.draw(st.sampled_from(closed_ones if closed_ones and likely else [*self.runs, *self.tombstones]))
        run = self.runs.get(key)
        below = self.awaited(key)
        closed = all(not one.tasks and one.status not in LIVE for one in map(self.runs.__getitem__, below))
        expected = "missing" if run is None else "deleted" if closed else "open"

        assert data.draw(st.sampled_from(self.handles)).delete(key) == expected

        if expected == "deleted":
            turns: dict[str, list[AnyInput]] = {}
            for one in below:
                del self.runs[one]
                self.tombstones.append(one)
            for name, line in self.lines.items():
                first = line[:1]
                line[:] = [one for one in line if one not in below]
                if line and line[:1] != first:
                    turns.setdefault(line[0], []).append(Turn(name=name))
            for one, inputs in turns.items():
                self.adopt(self.runs[one], inputs)

    def awaited(self, key: str) -> list[str]:
        """A run and all below it that are waited for, if it is there."""
        below = [key] if key in self.runs else []
        for one in below:
            below += [run.key for run in self.runs.values() if run.awaited_by == one]
        return below

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
            lambda: store.claim(name, Slots(9, ACTIONS), self.now),
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
            found = (row.id, row.version, row.status, row.unwound, row.hold, row.owner, row.leased)
            assert found == (run.id, run.version, run.status, run.unwound, run.hold, run.owner, leased)
        assert {name: store.line(name) for name in NAMES} == self.lines
        waiting = sorted(
            (task for run in self.runs.values() for task in run.tasks.values() if not task.session),
            key=ModelTask.order,
        )
        listed = [(row.task.run, row.task.number) for row in self.handles[-1].waiting()]
        assert listed == [(task.task.run, task.task.number) for task in waiting]

    def teardown(self) -> None:
        """At the end every run is read whole, from every handle, and the store looks itself over."""
        with ExitStack() as stack:
            handles: list[Store] = getattr(self, "handles", [])
            for store in handles:
                stack.callback(store.close)
            for store in handles if self.sound else ():
                self.read_all(store)

    def read_all(self, store: Store) -> None:
        """Compare all that can be read with the model."""
        for run in self.runs.values():
            loaded = store.load(run.key)
            assert loaded is not None
            self.compare(run, loaded)
            assert store.find(run.id) == [run.key]
            assert store.payloads(run.key, [f"d{n}" for n in range(STEPS)]) == run.payloads
            for number in range(STEPS):
                assert store.step(run.key, f"step-{number}").step == run.steps.get(number)
            for version in range(1, run.version + 1):
                assert store.committed(run.key, version) == run.rows[version - 1][1]
        for key in self.tombstones:
            assert store.load(key) is None
            assert store.inbox(key) == []
        for row in store.queues(self.now):
            own = [task for run in self.runs.values() for task in run.tasks.values() if task.task.queue == row.name]
            due = [task for task in own if not task.session and task.task.not_before <= self.now]
            assert (row.running, row.waiting) == (sum(1 for task in own if task.session), len(due))
            assert row.waiting + row.delayed + row.running == len(own)
            assert row.limits == self.limits.of(row.name)
            held = {(found.task.run, found.task.number) for found in store.holders(row.name, limit=1000)}
            assert held == {(task.task.run, task.task.number) for task in own if task.session}
        assert {row.id for row in store.sessions()} == set(self.alive)
        assert store.check().problems == []

    def compare(self, run: ModelRun, loaded: Loaded) -> None:
        """Whether a loaded run is the model's."""
        found = (loaded.head.key, loaded.head.id, loaded.version, loaded.status, loaded.hold, loaded.owner)
        assert found == (run.key, run.id, run.version, run.status, run.hold, run.owner)
        assert loaded.rows == run.rows
        assert loaded.inbox == run.inbox
        tasks = {
            row.task.number: (row.session, row.interrupt, row.progress, msgspec.structs.astuple(row.task))
            for row in loaded.tasks
        }
        assert tasks == {
            number: (
                model.session,
                model.interrupt,
                model.progress,
                msgspec.structs.astuple(msgspec.structs.replace(model.task, lease=model.lease)),
            )
            for number, model in run.tasks.items()
        }
