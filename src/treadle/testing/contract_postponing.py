# ruff: noqa: D102 - a test's name is the promise
"""The store contract: leased tasks that wait again."""

from __future__ import annotations

from treadle.core.commands import Call, Polling, Task
from treadle.core.inputs import Revoked, decode_input
from treadle.store.base import Postponement
from treadle.testing.contract_kit import NOW, OTHER, RUN, MakeStore, Party, numbers, report_of, task_of

_CALL = Call(args={"n": "=1"}, poll=Polling(interval=5.0, deadline=NOW + 60, probes=1))


def _postpone(party: Party, task: Task, *, at: float = NOW + 5, now: float = NOW, lease: int = 0) -> bool:
    item = Postponement(task.run, task.number, lease or task.lease, at, _CALL)
    return party.store.postpone(party.id, [item], now)[0]


class PostponingContract:
    """`postpone` lets a leased task wait again (promise 5)."""

    def test_a_postponed_task_waits_until_its_time_and_is_leased_under_a_new_token(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        (task,) = one.start(tasks=[task_of(RUN, 1)], slots=1).leased
        token = task.lease

        assert _postpone(one, task)

        assert one.row().leased == 0
        assert one.row().version == 1, "nothing is journaled"
        assert one.store.inbox(RUN) == []
        assert two.claim(9) == []
        (again,) = two.claim(9, now=NOW + 5)
        assert (again.number, again.attempt, again.not_before, again.call) == (1, 1, NOW + 5, _CALL)
        assert again.lease not in (0, token)

    def test_a_task_that_is_postponed_to_now_waits_as_the_youngest(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        (task,) = one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)], slots=1).leased
        one.start(OTHER, tasks=[task_of(OTHER, 1)])

        assert _postpone(one, task, at=NOW)

        assert one.waiting() == [(RUN, 2), (OTHER, 1), (RUN, 1)]
        assert [(claimed.run, claimed.number) for claimed in one.claim(9)] == [(RUN, 2), (OTHER, 1), (RUN, 1)]

    def test_a_claim_tells_when_a_postponed_task_falls_due(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        (task,) = one.start(tasks=[task_of(RUN, 1)], slots=1).leased

        _postpone(one, task, at=NOW + 7)

        assert one.next_due() == NOW + 7
        assert one.store.sweep("one", NOW).due_at == NOW + 7

    def test_the_progress_of_a_postponed_task_stays(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        (task,) = one.start(tasks=[task_of(RUN, 1)], slots=1).leased
        one.store.progress("one", [(RUN, 1, task.lease, "half")])

        _postpone(one, task)

        (row,) = one.load().tasks
        assert (row.progress, row.session, row.task.lease, row.started_at) == ("half", "", 0, 0.0)

    def test_only_the_live_token_postpones(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        (task,) = one.start(tasks=[task_of(RUN, 1)], slots=1).leased

        assert not _postpone(one, task, lease=task.lease + 1)
        assert not _postpone(two, task)
        assert one.load().tasks[0].session == "one"
        assert _postpone(one, task, at=NOW)
        assert not _postpone(one, task), "a second time changes nothing"
        (again,) = two.claim()
        assert not _postpone(one, task)
        assert two.report(report_of(again)) == [True]

    def test_a_task_that_is_to_be_interrupted_does_not_wait_again(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        (task,) = one.start(tasks=[task_of(RUN, 1)], slots=1).leased
        one.append(interrupts=[1])

        assert not _postpone(one, task)

        assert one.report(report_of(task)) == [True]

    def test_after_a_revoke_what_was_leased_does_not_wait_again(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        (task,) = one.start(tasks=[task_of(RUN, 1)], slots=1).leased
        one.append(revoke=True)

        assert not _postpone(one, task)

        assert one.store.renew("one").interrupts == []
        assert not one.load().tasks[0].interrupt
        assert one.report(report_of(task)) == [True]

    def test_what_waits_again_is_revoked_like_any_task(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        (task,) = one.start(tasks=[task_of(RUN, 1)], slots=1).leased
        _postpone(one, task)

        one.append(revoke=True)

        assert [decode_input(value.body) for value in one.store.inbox(RUN)] == [Revoked(numbers=[1])]

    def test_the_next_attempt_may_wait_again(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1)], slots=1)
        one.append(revoke=True)

        (task,) = one.append(ended=[1], tasks=[task_of(RUN, 1, attempt=2)], slots=1).leased

        assert _postpone(one, task)

    def test_a_postponed_task_of_a_held_run_waits_for_the_resume(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        (task,) = one.start(tasks=[task_of(RUN, 1)], slots=1).leased
        one.append(hold=1)

        assert _postpone(one, task, at=NOW)

        assert one.claim(9) == []
        one.append(hold=0)
        assert numbers(one.claim(9)) == [1]

    def test_a_postponed_task_has_no_holder_that_could_die(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, 1)])
        (task,) = two.claim()
        _postpone(two, task)

        assert two.store.bury("two") == []

        assert [row.task.number for row in one.load().tasks] == [1]

    def test_a_buried_session_postpones_nothing(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        (task,) = one.start(tasks=[task_of(RUN, 1)], slots=1).leased
        two.store.bury("one")

        assert one.is_refused(one.store.postpone, [Postponement(RUN, 1, task.lease, NOW, _CALL)], NOW)
