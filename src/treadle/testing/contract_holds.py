# ruff: noqa: D102 - a test's name is the promise
"""The store contract: holds, revokes and interrupts."""

from __future__ import annotations

from treadle.core.inputs import Revoked, decode_input
from treadle.testing.contract_kit import (
    NOW,
    OTHER,
    RUN,
    MakeStore,
    Party,
    append_of,
    key_of,
    numbers,
    report_of,
    start_of,
    task_of,
)


class HoldsContract:
    """A hold stops all claims of a run at once; a revoke takes its waiting tasks back (promise 7)."""

    def test_held_runs_have_no_task_claimed(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, 1, priority=9), task_of(RUN, 2)])
        one.start(OTHER, tasks=[task_of(OTHER, 1)])

        one.append(hold=4)

        assert one.row().hold == one.load().hold == 4
        assert [task.run for task in two.claim(9)] == [OTHER]
        assert one.claim(9) == []

    def test_a_lifted_hold_gives_the_tasks_back_at_their_old_place(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2, priority=1)])
        one.start(OTHER, tasks=[task_of(OTHER, 1)])
        one.append(hold=1)
        assert [task.run for task in one.claim(1)] == [OTHER]
        one.append(OTHER, tasks=[task_of(OTHER, 2)])
        one.append(hold=2)

        one.append(hold=0)

        expected = [(RUN, 2), (RUN, 1), (OTHER, 2)]
        assert [(task.run, task.number) for task in one.claim(9)] == expected

    def test_a_hold_leaves_leased_tasks_alone(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        (task,) = one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)], slots=1).leased

        one.append(hold=1)

        assert [row.session for row in one.load().tasks] == ["one", ""]
        assert one.store.renew("one").interrupts == []
        assert one.report(report_of(task)) == [True]

    def test_a_task_that_falls_due_in_a_held_run_waits_for_the_resume(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1, not_before=NOW + 1)], hold=1)
        assert one.claim(9, now=NOW + 2) == []

        one.append(hold=0, time=NOW + 2)

        assert numbers(one.claim(9, now=NOW + 2)) == [1]

    def test_tasks_of_a_held_run_still_count_as_waiting(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)], hold=1)
        assert one.claim(9) == []

        assert one.waiting() == [(RUN, 1), (RUN, 2)]
        one.append(ended=[1])
        assert one.waiting() == [(RUN, 2)]
        one.append(hold=0)
        assert numbers(one.claim(9)) == [2]

    def test_a_revoke_takes_back_waiting_tasks_and_tells_the_run_which(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        tasks = [task_of(RUN, 1), task_of(RUN, 5, not_before=NOW + 9), task_of(RUN, 3), task_of(RUN, 2)]
        (leased,) = one.start(tasks=tasks, slots=1).leased
        one.start(OTHER, tasks=[task_of(OTHER, 1)])

        one.append(revoke=True)

        (value,) = one.store.inbox(RUN)
        revoked = decode_input(value.body)
        assert isinstance(revoked, Revoked)
        assert sorted(revoked.numbers) == [2, 3, 5]
        assert [row.task.number for row in one.load().tasks] == [leased.number]
        assert one.waiting() == [(OTHER, 1)]
        assert list(one.store.owned_inboxes("one")) == [RUN]

    def test_a_revoke_of_a_held_run_takes_its_tasks_too(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1)], hold=1)
        assert one.claim(9) == []

        one.append(revoke=True)
        one.append(hold=0)

        assert one.load().tasks == []
        assert one.claim(9) == []

    def test_tasks_held_and_freed_within_one_call_keep_their_turn(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")

        answers = one.commit(
            start_of(RUN, hold=1, tasks=[task_of(RUN, 1)]), append_of(RUN, 1, hold=0, tasks=[task_of(RUN, 2)]), slots=1
        )

        assert [numbers(answer.leased) for answer in answers] == [[], []]
        assert numbers(one.claim(5)) == [1, 2]

    def test_a_task_that_is_revoked_and_then_ended_within_one_call_was_revoked(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)])

        one.commit(append_of(RUN, 1, revoke=True), append_of(RUN, 2, ended=[1]))

        assert [decode_input(value.body) for value in one.store.inbox(RUN)] == [Revoked(numbers=[1, 2])]

    def test_a_revoke_of_nothing_makes_no_input(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1)], slots=1)

        one.append(revoke=True)

        assert one.store.inbox(RUN) == []

    def test_two_revokes_make_two_inputs(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1)])
        one.append(revoke=True)
        one.append(tasks=[task_of(RUN, 2)])

        one.append(revoke=True)

        first, second = one.store.inbox(RUN)
        assert first.id != second.id
        assert [decode_input(v.body) for v in (first, second)] == [Revoked(numbers=[1]), Revoked(numbers=[2])]

    def test_interrupts_reach_the_session_that_holds_the_lease_by_its_renewals(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, number) for number in (1, 2, 3)])
        first, second = two.claim(2)

        one.append(interrupts=[2, 3, 99])

        assert one.store.renew("one").interrupts == []
        assert two.store.renew("two").interrupts == [(RUN, 2, second.lease)]
        assert two.store.renew("two").interrupts == [(RUN, 2, second.lease)], "a lost answer loses no interrupt"
        assert [row.interrupt for row in one.load().tasks][:2] == [False, True]
        assert two.report(report_of(second), report_of(first)) == [True, True]
        assert two.store.renew("two").interrupts == []

    def test_a_task_that_waits_is_taken_back_by_an_interrupt(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2), task_of(RUN, 3, not_before=NOW + 9)])

        one.append(interrupts=[1, 3, 99])

        assert [row.task.number for row in one.load().tasks] == [2]
        assert one.claim()
        assert one.store.renew("one").interrupts == []
        assert [decode_input(waiting.body) for waiting in one.store.inbox(RUN)] == [Revoked(numbers=[1, 3])]

    def test_the_next_attempt_is_not_interrupted(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1)], slots=1)
        one.append(interrupts=[1])

        one.append(ended=[1], tasks=[task_of(RUN, 1, attempt=2)], slots=1)

        assert one.store.renew("one").interrupts == []

    def test_a_hold_of_one_run_is_not_a_hold_of_many(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        keys = [key_of(number) for number in range(1, 30)]
        for index, key in enumerate(keys):
            one.start(key, tasks=[task_of(key, 1), task_of(key, 2)], hold=index % 2)

        assert sorted({task.run for task in one.claim(99)}) == keys[::2]
