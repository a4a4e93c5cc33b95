"""What a store must answer: the model's side of `store_model`."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import msgspec
from hypothesis import strategies as st

from treadle.core.commands import Task
from treadle.core.events import encode_events
from treadle.core.inputs import AnyInput, Cancel, Revoked, Turn, decode_input
from treadle.store.base import Answer, Append, InboxInput, Store
from treadle.testing.contract_kit import Slots, key_of, signal_of, step_of, task_of
from treadle.testing.store_model_data import ModelRun, ModelTask
from treadle.testing.store_model_limits import ModelLimits

ACTIONS = ("act", "other")
QUEUES = ("default", "slow")
KEYS = ("", "a", "a", "b")
TARGETS = ("", "", "", "gpu", "disk")
LIVE = ("running", "unwinding")
RUNS = 4
STEPS = 5
NAMES = ("n", "m")
VERBS = ("take", "note", "line", "replace", "leave")

_chance = st.sampled_from([True, False, False, False])
_often = st.sampled_from([True, True, True, True, False])


class ModelAnswers:
    """The model, and what it says of the store's answers."""

    handles: list[Store]
    alive: dict[str, Store]
    runs: dict[str, ModelRun]
    # Name -> keys of the runs in its line.
    lines: dict[str, list[str]]
    tombstones: list[str]
    tokens: set[int]
    given: list[tuple[str, Task]]
    limits: ModelLimits
    # Inputs that the store makes in a commit, by the runs' keys.
    made: dict[str, list[AnyInput]]
    # Those that were posted in it, by run and id.
    posted: set[tuple[str, str]]
    sound: bool
    now: float
    ages: int

    def telling_of_room(self, store: Store) -> AbstractContextManager[None]:
        """See `store_model`."""
        raise NotImplementedError

    @contextmanager
    def changing(self) -> Generator[None, None, None]:
        """A failure inside leaves the model half changed: it is then not compared once more at the end."""
        self.sound = False
        yield
        self.sound = True

    def draw_session(self, data: st.DataObject) -> str:
        """A living session."""
        return data.draw(st.sampled_from(list(self.alive)), "session")

    def draw_fields(self, data: st.DataObject, key: str, id: str) -> dict[str, Any]:
        """What an append does, beside its events."""
        number = st.integers(0, STEPS - 1)
        numbers = st.lists(number, max_size=3, unique=True)
        run = self.runs.get(key)
        tasks: list[Task] = []
        for step in data.draw(numbers, "tasks"):
            fields = {
                "run_id": id,
                "priority": data.draw(st.integers(-1, 1), "priority"),
                "queue": data.draw(st.sampled_from(QUEUES), "queue"),
                "action": data.draw(st.sampled_from(ACTIONS), "action"),
                "key": data.draw(st.sampled_from(KEYS), "key"),
                "target": data.draw(st.sampled_from(TARGETS), "target"),
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
            "status": data.draw(st.sampled_from(["running", "running", "failed", "succeeded", "unwinding"]), "status"),
            "was": data.draw(st.sampled_from([run.status if run else "running", "running", "unwinding"]), "was"),
            "unwound": data.draw(st.sampled_from([None, None, None, "", "fully", "partly"]), "unwound"),
            "undos": [(f"step-{n}", data.draw(st.sampled_from(["undone", "failed"]))) for n in data.draw(numbers)],
            "posts": [self.draw_post(data) for _ in range(data.draw(st.sampled_from([0, 0, 0, 1, 2]), "posts"))],
            "names": data.draw(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VERBS)), max_size=2), "names")
            if data.draw(_chance, "named")
            else [],
        }

    def draw_post(self, data: st.DataObject) -> InboxInput:
        """An input for some run, which may be gone, under an id that may be there."""
        key = data.draw(st.sampled_from([*self.runs, *self.tombstones, key_of(9999)]), "post to")
        return signal_of(key, f"p{data.draw(st.integers(0, 20), 'post')}", f"posted-{self.now}")

    def commit(self, data: st.DataObject, appends: Sequence[Append], offer: Slots, name: str = "") -> None:
        """Commit in the store and in the model, by a session if one is named; the answers must be the model's."""
        first = self.runs.get(appends[0].key)
        name = name or self.draw_session(data)
        if first is not None and first.owner and data.draw(_often, "by its owner"):
            name = first.owner
        # Stores may set a task's lease in place.
        tasks = [[msgspec.structs.replace(task) for task in append.tasks] for append in appends]
        before = self.limits.counts()
        left = Slots(offer.free(), offer.actions(), offer.targets())

        with self.changing(), self.telling_of_room(self.alive[name]):
            answers = self.alive[name].commit(name, appends, offer)

            assert len(answers) == len(appends)
            self.made, self.posted = {}, set()
            for append, own_tasks, answer in zip(appends, tasks, answers, strict=True):
                out = self.crowded_out(append, answer)
                expected = self.status_of(name, append, is_full=isinstance(out, str))
                # Which of two hindrances is told is the store's choice.
                if answer.status == "fenced" and not self.may_report(name, append):
                    expected = "fenced"
                assert answer.status == expected, (append, answer, expected)
                assert answer.holder == (self.holder_of(append) if expected == "held" else "")
                if expected == "committed":
                    out = [] if isinstance(out, str) else out
                    self.drop(out)
                    self.apply(name, append)
                    self.change_names(append, answer, out)
                    self.hand_over(name, append, own_tasks, answer, left, len(appends) == 1)
                    if append.release:
                        self.runs[append.key].owner = ""
                else:
                    assert (answer.leased, answer.queued) == ([], 0)
            for key, inputs in self.made.items():
                self.adopt(self.runs[key], inputs)
            assert offer.free() == left.free()
            self.limits.check(before)

    def crowded_out(self, append: Append, answer: Answer) -> str | list[str]:
        """As `ModelLimits.crowded_out`; where the store has a choice, as it chose."""
        if append.head is None:
            return []
        if self.limits.is_vague(append):
            found = [key for key in answer.told if self.is_dropped(key, append.key)]
            queues = [task.queue for task in append.tasks]
            assert all(any(self.runs[key].only_waits(queue, ever_settled=False) for queue in queues) for key in found)
            return answer.queue if answer.status == "full" else found
        one, other = (self.limits.crowded_out(append, self.made, ever_settled=ever) for ever in (True, False))
        chosen = answer.status == "full" if isinstance(one, str) else list(answer.told)[: len(one)] == one
        return one if chosen else other

    def is_dropped(self, key: str, by: str) -> bool:
        """Whether the store says that a run has made place for another."""
        return any(value.id == f"dropped:{by}" for value in self.handles[0].inbox(key))

    def drop(self, keys: Sequence[str]) -> None:
        """Cancel runs that make place, and take back what waits of them."""
        for key in keys:
            run = self.runs[key]
            self.made.setdefault(key, []).extend([Cancel(hard=True), Revoked(numbers=sorted(run.tasks))])
            run.tasks.clear()

    def status_of(self, name: str, append: Append, *, is_full: bool) -> str:
        """What the answer to an append must be."""
        run = self.runs.get(append.key)
        if append.key in self.tombstones:
            return "refused"
        if append.head is not None:
            taken = run is not None or any(other.id == append.head.id for other in self.runs.values())
            if taken or is_full:
                return "exists" if taken else "full"
        elif not run or run.version != append.expect or run.owner != name:
            return "conflict"
        if not self.may_report(name, append):
            return "fenced"
        return "held" if self.holder_of(append) else "committed"

    def may_report(self, name: str, append: Append) -> bool:
        """Whether the task that an append ends is live and wanted, in the hands of this session."""
        if append.report is None:
            return True
        run = self.runs.get(append.report.input.key)
        model = run.tasks.get(append.report.number) if run else None
        live = model is not None and model.session == name and model.lease == append.report.lease
        return live and model is not None and not model.interrupt and not model.last

    def holder_of(self, append: Append) -> str:
        """The run that keeps an append from taking a name."""
        lines = (self.lines[name] for name, verb in append.names if verb == "take")
        return next((line[0] for line in lines if line and append.key not in line), "")

    def change_names(self, append: Append, answer: Answer, out: Sequence[str]) -> None:
        """Let the run of an append enter and leave lines (promise 13), after those that have made place for it."""
        told: list[tuple[str, AnyInput]] = []
        for name, verb in append.names:
            line = self.lines[name]
            before = line[:1]
            if verb == "leave" and append.key in line:
                line.remove(append.key)
            elif verb != "leave" and append.key not in line:
                told += [(key, Cancel(hard=True)) for key in line if verb == "replace"]
                line.append(append.key)
            if verb not in ("take", "note") and line and line[:1] != before:
                told.append((line[0], Turn(name=name)))
        # What one append says twice has one id.
        for key, value in dict.fromkeys(told):
            self.made.setdefault(key, []).append(value)
        assert list(answer.told) == list(dict.fromkeys([*out, *(key for key, _ in told)]))

    def apply(self, name: str, append: Append) -> None:
        """Change the model by all of an append but its tasks."""
        if append.head is not None:
            parent = "" if append.head.detached else append.head.parent.partition("/")[0]
            called = bool(append.head.parent)
            self.runs[append.key] = ModelRun(
                key=append.key, id=append.head.id, owner=name, awaited_by=parent, called=called
            )
        run = self.runs[append.key]
        run.version += 1
        run.status = append.status
        run.rows.append((run.version, append.commit_id, append.time, encode_events(append.events)))
        run.hold = run.hold if append.hold is None else append.hold
        run.inbox = [value for value in run.inbox if value.id not in append.consumed]
        run.payloads.update(append.payloads)
        for number in append.ended:
            run.tasks.pop(number, None)
        run.end_steps(append)
        self.steer(run, append)
        self.tell(append)

    def tell(self, append: Append) -> None:
        """What an append does to other runs."""
        posts = list(append.posts)
        if append.report is not None:
            caller = self.runs[append.report.input.key]
            del caller.tasks[append.report.number]
            caller.payloads.update(append.report.payloads)
            posts.append(append.report.input)
        for value in posts:
            target = self.runs.get(value.key)
            if target is None:
                continue
            there = {(value.key, other.id) for other in target.inbox} | self.posted
            if (value.key, value.id) not in there:
                self.posted.add((value.key, value.id))
                self.made.setdefault(value.key, []).append(decode_input(value.body))

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
                self.made.setdefault(run.key, []).append(Revoked(numbers=numbers))

    def hand_over(
        self, name: str, append: Append, tasks: Iterable[Task], answer: Answer, offer: Slots, alone: bool
    ) -> None:
        """Check who got the tasks of an append (promises 4 and 10), and use up the slots."""
        run = self.runs[append.key]
        leased = {task.number: task for task in answer.leased}
        queued = 0
        for task in sorted(tasks, key=lambda task: -task.priority):
            self.ages += 1
            model = run.tasks[task.number] = ModelTask(task, self.ages)
            ahead = [
                other
                for other in self.claimable(Slots(9, ACTIONS, offer.targets()))
                if other.task.queue == task.queue
                and other.order() < model.order()
                and self.limits.may_admit(other.task, append.time)
            ]
            may = (
                offer.takes(task)
                and task.not_before <= append.time
                and not run.hold
                and not any(other.task.action in offer.actions() for other in ahead)
            )
            given = leased.pop(task.number, None)
            if given is not None:
                assert may, f"{task} was handed over, which may not be"
                # What a later append of the call ends may have made the room already.
                assert self.limits.may_admit(task, append.time, counted=alone), f"{task} was given above a limit"
                assert offer.take(task.action, task.queue)
                self.lease(name, model, given)
            else:
                # It may stand behind a task that only other sessions can execute.
                must = self.limits.must_admit(task, append.time) and (alone or task.queue not in self.limits.queues)
                assert not may or not must or ahead, f"{task} was not handed over"
                queued += 1
        assert not leased
        assert answer.queued == queued

    def waiting(self, offer: Slots) -> Iterable[ModelTask]:
        """Tasks of free runs that wait for someone who offers these actions and targets."""
        for run in self.runs.values():
            if not run.hold:
                for task in run.tasks.values():
                    if not task.session and offer.fits(task.task):
                        yield task

    def claimable(self, offer: Slots) -> Iterable[ModelTask]:
        """Those of them that are due."""
        return (task for task in self.waiting(offer) if task.task.not_before <= self.now)

    def stopped(self) -> list[ModelTask]:
        """Tasks of any run that are due and that limits certainly keep waiting."""
        models = (model for run in self.runs.values() for model in run.tasks.values())
        due = (model for model in models if not model.session and model.task.not_before <= self.now)
        return [model for model in due if not self.limits.may_admit(model.task, self.now)]

    def admitted(self) -> list[ModelTask]:
        """Tasks of free runs that are due and that no limit keeps waiting."""
        models = self.claimable(Slots(9, ACTIONS, TARGETS))
        return [model for model in models if self.limits.must_admit(model.task, self.now)]

    def lease(self, name: str, model: ModelTask, given: Task) -> None:
        """A task was given to a session."""
        assert given.lease > 0
        assert given.lease not in self.tokens, "a token was given twice"
        self.tokens.add(given.lease)
        expected = msgspec.structs.astuple(msgspec.structs.replace(model.task, lease=given.lease))
        assert msgspec.structs.astuple(given) == expected
        model.session, model.lease = name, given.lease
        self.limits.started(given, self.now)
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
