# ruff: noqa: D102 - a test's name is the promise
"""The store contract: tasks, their hand-over and claims, reports."""

from __future__ import annotations

import msgspec
import pytest

from treadle.store.base import InboxInput, Report, Reported
from treadle.testing.contract_kit import (
    NOW,
    OTHER,
    RUN,
    MakeStore,
    Party,
    Slots,
    append_of,
    numbers,
    report_of,
    signal_of,
    start_of,
    task_of,
)


class HandOverContract:
    """An append's tasks go to the offering session at once, by the rules of promise 4."""

    def test_a_due_task_is_leased_to_the_session_that_offers_a_slot(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")

        answer = one.start(tasks=[task_of(RUN, 1)], slots=1)

        (task,) = answer.leased
        assert msgspec.structs.replace(task, lease=0) == task_of(RUN, 1)
        assert task.lease > 0
        assert answer.queued == 0
        (row,) = one.load().tasks
        assert (row.task, row.session, row.worker) == (task, "one", "worker-one")
        assert one.row().leased == 1

    def test_without_an_offer_every_task_waits(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")

        answer = one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)])

        assert (answer.leased, answer.queued) == ([], 2)
        assert one.waiting() == [(RUN, 1), (RUN, 2)]
        assert [(row.session, row.task.lease) for row in one.load().tasks] == [("", 0), ("", 0)]
        assert one.row().leased == 0

    def test_no_more_tasks_are_leased_than_there_are_free_slots(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")

        answer = one.start(tasks=[task_of(RUN, number) for number in range(1, 6)], slots=3)

        assert numbers(answer.leased) == [1, 2, 3]
        assert answer.queued == 2
        assert one.waiting() == [(RUN, 4), (RUN, 5)]

    def test_the_slots_of_a_commit_are_shared_by_its_appends_in_order(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")

        answers = one.commit(
            start_of(RUN, tasks=[task_of(RUN, 1), task_of(RUN, 2)]),
            start_of(OTHER, tasks=[task_of(OTHER, 1), task_of(OTHER, 2)]),
            slots=3,
        )

        assert [numbers(answer.leased) for answer in answers] == [[1, 2], [1]]
        assert [answer.queued for answer in answers] == [0, 1]

    def test_a_failed_append_uses_no_slot(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()

        answers = one.commit(
            append_of(RUN, 5, tasks=[task_of(RUN, 1)]), append_of(RUN, 1, tasks=[task_of(RUN, 2)]), slots=1
        )

        assert [numbers(answer.leased) for answer in answers] == [[], [2]]

    def test_a_task_that_is_not_due_waits(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")

        answer = one.start(tasks=[task_of(RUN, 1, not_before=NOW + 0.001), task_of(RUN, 2, not_before=NOW)], slots=2)

        assert numbers(answer.leased) == [2]
        assert answer.queued == 1

    def test_a_task_whose_action_the_session_cannot_execute_waits(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")

        answer = one.start(tasks=[task_of(RUN, 1, action="foreign"), task_of(RUN, 2)], slots=2)

        assert numbers(answer.leased) == [2]
        assert one.waiting() == [(RUN, 1)]

    def test_a_task_of_a_held_run_waits(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(hold=3)

        answer = one.append(tasks=[task_of(RUN, 1)], slots=1)

        assert (answer.leased, answer.queued) == ([], 1)

    def test_a_task_of_the_append_that_holds_its_run_waits(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")

        answer = one.start(tasks=[task_of(RUN, 1)], hold=1, slots=1)

        assert (answer.leased, answer.queued) == ([], 1)

    def test_a_task_of_the_append_that_lifts_the_hold_is_leased(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(hold=1)

        assert numbers(one.append(tasks=[task_of(RUN, 1)], hold=0, slots=1).leased) == [1]

    def test_a_task_waits_behind_an_older_one_of_its_queue(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(OTHER, tasks=[task_of(OTHER, 1)])

        answer = one.start(tasks=[task_of(RUN, 1)], slots=1)

        assert (answer.leased, answer.queued) == ([], 1)
        assert one.waiting() == [(OTHER, 1), (RUN, 1)]

    def test_a_task_waits_behind_none_that_its_own_append_ends_or_takes_back(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1)])

        ending = one.append(ended=[1], tasks=[task_of(RUN, 2)], slots=1)
        one.append(tasks=[task_of(RUN, 3)])
        taking_back = one.append(interrupts=[3], tasks=[task_of(RUN, 4)], slots=1)

        assert numbers(ending.leased) == [2]
        assert numbers(taking_back.leased) == [4]
        assert one.waiting() == []

    def test_a_task_waits_behind_one_of_higher_priority(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(OTHER, tasks=[task_of(OTHER, 1, priority=5)])

        assert one.start(tasks=[task_of(RUN, 1, priority=4)], slots=1).leased == []

    def test_a_task_goes_before_older_ones_of_lower_priority(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(OTHER, tasks=[task_of(OTHER, 1), task_of(OTHER, 2, priority=-3)])

        assert numbers(one.start(tasks=[task_of(RUN, 1, priority=1)], slots=1).leased) == [1]

    def test_tasks_of_other_queues_hold_nobody_back(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(OTHER, tasks=[task_of(OTHER, 1, queue="slow", priority=9)])

        assert numbers(one.start(tasks=[task_of(RUN, 1)], slots=1).leased) == [1]

    def test_a_waiting_task_that_is_not_due_holds_nobody_back(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(OTHER, tasks=[task_of(OTHER, 1, not_before=NOW + 1, priority=9)])

        assert numbers(one.start(tasks=[task_of(RUN, 1)], slots=1).leased) == [1]

    def test_a_waiting_task_that_fell_due_goes_before_a_new_one(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(OTHER, tasks=[task_of(OTHER, 1, not_before=NOW + 1)])

        assert one.start(tasks=[task_of(RUN, 1)], time=NOW + 1, slots=1).leased == []

    def test_a_waiting_task_of_a_held_run_holds_nobody_back(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(OTHER, tasks=[task_of(OTHER, 1, priority=9)], hold=1)

        assert numbers(one.start(tasks=[task_of(RUN, 1)], slots=1).leased) == [1]

    def test_a_leased_or_ended_task_holds_nobody_back(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(OTHER, tasks=[task_of(OTHER, 1, priority=9), task_of(OTHER, 2, priority=8)])
        assert numbers(two.claim(1)) == [1]
        one.append(OTHER, ended=[2])

        assert numbers(one.start(tasks=[task_of(RUN, 1)], slots=1).leased) == [1]

    def test_the_tasks_of_one_append_get_slots_in_claim_order(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")

        answer = one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2, priority=1), task_of(RUN, 3, priority=1)], slots=2)

        assert sorted(numbers(answer.leased)) == [2, 3]
        assert one.waiting() == [(RUN, 1)]

    def test_the_same_append_may_end_a_task_and_dispatch_its_step_again(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        first = one.start(tasks=[task_of(RUN, 1)], slots=1).leased[0]

        second = one.append(ended=[1], tasks=[task_of(RUN, 1, attempt=2)], slots=1).leased[0]

        assert second.attempt == 2
        assert second.lease != first.lease
        assert [row.task for row in one.load().tasks] == [second]
        assert one.report(report_of(first)) == [False]
        assert one.report(report_of(second)) == [True]

    def test_a_new_task_of_a_step_takes_the_place_of_its_old_one(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        (leased,) = one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)], slots=1).leased

        one.append(tasks=[task_of(RUN, 1, attempt=2), task_of(RUN, 2, attempt=2)])

        assert one.report(report_of(leased)) == [False]
        assert [(task.number, task.attempt) for task in one.claim(9)] == [(1, 2), (2, 2)]
        assert one.store.bury("one") == [RUN]
        assert len(one.store.inbox(RUN)) == 2

    def test_handed_over_tasks_carry_all_that_a_worker_needs(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        tasks = [task_of(RUN, n, queue="q/1", priority=-7, generation=3, attempt=12) for n in (1, 2)]

        handed = one.start(tasks=tasks, slots=1).leased[0]
        (claimed,) = two.claim()

        for task, number in ((handed, 1), (claimed, 2)):
            expected = task_of(RUN, number, queue="q/1", priority=-7, generation=3, attempt=12)
            assert msgspec.structs.replace(task, lease=0) == expected


class ClaimsContract:
    """Waiting tasks are claimed by priority, then age, each by one session."""

    def test_claims_go_by_priority_then_by_age(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(OTHER, tasks=[task_of(OTHER, 1), task_of(OTHER, 2, priority=2)])
        one.start(tasks=[task_of(RUN, 1, priority=2), task_of(RUN, 2), task_of(RUN, 3, priority=-1)])
        order = [(OTHER, 2), (RUN, 1), (OTHER, 1), (RUN, 2), (RUN, 3)]

        assert two.waiting() == order
        assert [(task.run, task.number) for task in two.claim(2)] == order[:2]
        assert [(task.run, task.number) for task in one.claim(9)] == order[2:]

    def test_equal_tasks_are_claimed_oldest_first(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, number) for number in (5, 3, 9, 1)])
        one.append(tasks=[task_of(RUN, number) for number in (2, 8)])

        claimed = [numbers(one.claim(1))[0] for _ in range(6)]

        assert claimed == [5, 3, 9, 1, 2, 8]

    def test_a_claim_takes_no_more_than_the_free_slots(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, number) for number in range(1, 101)])

        assert one.claim(0) == []
        assert numbers(one.claim(70)) == list(range(1, 71))
        assert numbers(one.claim(70)) == list(range(71, 101))
        assert one.claim(70) == []

    def test_a_claim_takes_only_actions_that_the_session_can_execute(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, 1, action="other", priority=9), task_of(RUN, 2), task_of(RUN, 3)])

        assert numbers(one.claim(9)) == [2, 3]
        assert numbers(two.claim(9, actions=["none", "other"])) == [1]

    def test_a_foreign_action_is_never_offered_a_slot(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, number, action="other") for number in range(1, 50)])
        one.append(tasks=[task_of(RUN, 99)])
        slots = Slots(1)

        claimed, _ = one.store.claim("one", slots, NOW)

        assert numbers(claimed) == [99]
        assert slots.taken == ["default:act"]

    def test_claims_reach_every_queue(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, number, queue=f"q{number}") for number in range(1, 8)])

        assert sorted(numbers(one.claim(9))) == [1, 2, 3, 4, 5, 6, 7]

    def test_a_queue_that_the_offer_refuses_keeps_its_tasks_and_holds_no_other_back(
        self, make_store: MakeStore
    ) -> None:
        class OneOfQueueA(Slots):
            def take(self, action: str, queue: str, most: int = 1) -> int:
                if queue == "a":
                    most = 0 if "a:act" in self.taken else 1
                return super().take(action, queue, most)

        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, n, queue="a", priority=1) for n in (1, 2, 3)])
        one.append(tasks=[task_of(RUN, n, queue="b") for n in (4, 5)])

        claimed, _ = one.store.claim("one", OneOfQueueA(9), NOW)

        assert sorted(numbers(claimed)) == [1, 4, 5]
        assert one.waiting() == [(RUN, 2), (RUN, 3)]

    def test_a_task_is_leased_to_one_session_at_a_time(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, 1)])

        assert numbers(two.claim(5)) == [1]
        assert one.claim(5) == []
        assert one.waiting() == []
        assert [(row.session, row.worker) for row in one.load().tasks] == [("two", "worker-two")]

    def test_a_step_that_one_append_asks_for_twice_has_its_last_task_only(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(slots=5, tasks=[task_of(RUN, 1), task_of(RUN, 2), task_of(RUN, 1, attempt=2)])

        assert sorted((task.number, task.attempt) for task in one.store.leased("one")) == [(1, 2), (2, 1)]
        assert sorted((row.task.number, row.task.attempt) for row in one.load().tasks) == [(1, 2), (2, 1)]
        assert one.claim(5) == []

    def test_a_token_is_never_given_twice(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        tokens = [task.lease for task in one.start(tasks=[task_of(RUN, n) for n in range(8)], slots=3).leased]
        tokens += [task.lease for party in (one, two) for task in party.claim(2)]
        two.store.bury("two")
        one.append(ended=list(range(8)), status="failed")
        one.store.delete(RUN)
        three = Party(make_store(), "three")

        tokens += [task.lease for task in three.start(OTHER, tasks=[task_of(OTHER, 1)], slots=1).leased]
        three.append(OTHER, ended=[1], tasks=[task_of(OTHER, 1)])
        tokens += [task.lease for task in one.claim(1)]

        assert len(tokens) == len(set(tokens)) == 9
        assert min(tokens) > 0

    def test_a_task_is_not_claimed_before_its_time(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1, not_before=NOW + 10), task_of(RUN, 2, not_before=NOW + 5)])

        assert one.claim(5, now=NOW + 4.999) == []
        assert numbers(one.claim(5, now=NOW + 5)) == [2]
        assert numbers(one.claim(5, now=NOW + 60)) == [1]

    @pytest.mark.parametrize("slots", [0, 1, 2])
    def test_a_claim_after_one_that_filled_its_slots_tells_what_falls_due(
        self, make_store: MakeStore, slots: int
    ) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2), task_of(RUN, 3, not_before=NOW + 7)])
        assert numbers(one.claim(1)) == [1]

        claimed, due = one.store.claim(one.id, Slots(slots), NOW)

        assert (numbers(claimed), due) == ([2][:slots], NOW + 7)

    def test_a_node_whose_clock_is_behind_does_not_claim_what_is_due_for_another(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, 1, not_before=NOW + 10), task_of(RUN, 2)])
        assert one.claim(0, now=NOW + 20) == []
        assert one.start(OTHER, tasks=[task_of(OTHER, 1)], slots=1, time=NOW + 20).leased == []

        assert sorted(numbers(two.claim(5))) == [1, 2]
        assert [(task.run, task.number) for task in two.claim(5, now=NOW + 10)] == [(RUN, 1)]

    def test_a_claim_says_when_the_next_task_falls_due(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1, not_before=NOW + 9), task_of(RUN, 2, not_before=NOW + 7.5)])

        assert one.next_due() == NOW + 7.5
        assert one.next_due(now=NOW + 8) == NOW + 9
        assert one.next_due(now=NOW + 10) is None
        assert one.waiting() == []
        assert one.next_due(now=NOW) is None

    def test_the_next_time_forgets_tasks_that_ended(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1, not_before=NOW + 1), task_of(RUN, 2, not_before=NOW + 2)])

        one.append(ended=[1])

        assert one.next_due() == NOW + 2
        assert one.store.sweep("one", NOW).due_at == NOW + 2

    def test_a_sweep_says_when_the_next_task_falls_due(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1)])
        assert one.store.sweep("one", NOW).due_at is None

        one.append(tasks=[task_of(RUN, 2, not_before=NOW + 3)])

        assert one.store.sweep("one", NOW).due_at == NOW + 3

    def test_a_task_keeps_its_age_while_it_waits_for_its_time(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1, not_before=NOW + 5)])
        one.append(tasks=[task_of(RUN, 2), task_of(RUN, 3, not_before=NOW + 1)])

        assert numbers(one.claim(5, now=NOW + 6)) == [1, 2, 3]

    def test_ended_tasks_are_free_whatever_lease_they_had(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2), task_of(RUN, 3)])
        (leased,) = two.claim(1)

        one.append(ended=[1, 2, 77])

        assert [row.task.number for row in one.load().tasks] == [3]
        assert two.report(report_of(leased)) == [False]
        assert numbers(two.claim(9)) == [3]
        assert two.store.bury("two") == [RUN]
        assert one.row().leased == 0

    def test_many_tasks_come_and_go_without_a_trace(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, number, not_before=NOW + number % 3) for number in range(3000)])

        one.append(ended=list(range(0, 3000, 2)))
        claimed = numbers(one.claim(1000, now=NOW + 5))
        one.append(revoke=True)

        assert claimed == list(range(1, 2000, 2))
        assert one.waiting() == []
        assert len(one.load().tasks) == 1000
        assert one.store.check().problems == []


class ReportsContract:
    """A report ends a leased task with its token, and only with it (promise 5)."""

    def test_a_report_with_the_live_token_ends_the_task_and_fills_the_inbox(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, 1)])
        (task,) = two.claim()
        report = report_of(task, payloads=[("sha256:r", b"[1]")])

        assert two.report(report) == [True]

        assert one.load().tasks == []
        assert one.load().inbox == [report.input]
        assert one.store.payloads(RUN, ["sha256:r"]) == {"sha256:r": b"[1]"}
        assert list(one.store.owned_inboxes("one")) == [RUN]

    def test_a_report_tells_who_decides_the_run_and_where_that_session_is_woken(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one", wake="there"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, number) for number in (1, 2, 3)])
        first, second, third = two.claim(3)

        assert two.store.report("two", [report_of(first)]) == [Reported(True, "one", "there")]
        assert two.store.report("two", [report_of(first)])[0].done is False
        two.store.bury("one")
        assert two.store.report("two", [report_of(second)]) == [Reported(True)]
        two.store.acquire("two", RUN)
        assert [(answer.done, answer.session) for answer in two.store.report("two", [report_of(third)])] == [
            (True, "two")
        ]

    def test_a_report_with_another_token_does_nothing_and_says_so(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)])
        (task,) = two.claim()

        wrong = [task.lease + 1000, 0, -1]
        answers = two.report(*(report_of(task, lease=lease, payloads=[("d", b"1")]) for lease in wrong))

        assert answers == [False, False, False]
        assert one.store.inbox(RUN) == []
        assert one.store.payloads(RUN, ["d"]) == {}
        assert [row.session for row in one.load().tasks] == ["two", ""]

    def test_the_token_of_one_task_does_not_end_another(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        first, second = one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)], slots=2).leased
        (other,) = one.start(OTHER, tasks=[task_of(OTHER, 1)], slots=1).leased

        assert one.report(report_of(first, lease=second.lease)) == [False]
        assert one.report(report_of(first, lease=other.lease)) == [False]
        assert one.store.inbox(RUN) == one.store.inbox(OTHER) == []

    def test_a_token_is_worth_nothing_in_another_sessions_hand(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        (task,) = one.start(tasks=[task_of(RUN, 1)], slots=1).leased

        assert two.report(report_of(task)) == [False]
        assert one.report(report_of(task)) == [True]

    def test_a_report_twice_is_applied_once(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        (task,) = one.start(tasks=[task_of(RUN, 1)], slots=1).leased

        assert one.report(report_of(task), report_of(task)) == [True, False]
        assert one.report(report_of(task)) == [False]
        assert len(one.store.inbox(RUN)) == 1

    def test_reports_of_one_call_are_answered_one_by_one(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        tasks = one.start(tasks=[task_of(RUN, number) for number in (1, 2, 3)], slots=3).leased
        one.append(ended=[2])

        assert one.report(*(report_of(task) for task in tasks)) == [True, False, True]
        expected = [f"outcome-{RUN}-{task.lease}" for task in (tasks[0], tasks[2])]
        assert [value.id for value in one.store.inbox(RUN)] == expected

    def test_a_report_to_a_held_run_is_taken(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        (task,) = one.start(tasks=[task_of(RUN, 1)], slots=1).leased
        one.append(hold=1)

        assert one.report(report_of(task)) == [True]

    def test_a_session_whose_answer_was_lost_can_ask_what_is_leased_to_it(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        (first,) = one.start(tasks=[task_of(RUN, number) for number in (1, 2, 3)], slots=1).leased
        two.claim(1)

        assert one.store.leased("one") == [first]
        assert numbers(two.store.leased("two")) == [2]
        one.append(ended=[1])
        assert one.store.leased("one") == []
        two.store.bury("one")
        assert one.is_refused(one.store.leased)

    def test_a_report_needs_no_owner_of_the_run(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, 1)], release=True)
        (task,) = two.claim()

        assert two.report(report_of(task)) == [True]
        assert one.store.sweep("one", NOW).stranded == [RUN]

    def test_a_report_whose_input_is_there_already_still_ends_the_task(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        (task,) = one.start(tasks=[task_of(RUN, 1)], slots=1).leased
        value = signal_of(RUN, "same")
        one.store.post([value])

        assert one.report(Report(1, task.lease, InboxInput("same", RUN, b"{}"))) == [True]
        assert one.store.inbox(RUN) == [value]
        assert one.load().tasks == []

    def test_progress_is_stored_for_the_live_token_only(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        (task,) = one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)], slots=1).leased

        one.store.progress("one", [(RUN, 1, task.lease, "50% of it"), (RUN, 2, 0, "no"), (OTHER, 1, 1, "no")])
        one.store.progress("one", [(RUN, 1, task.lease + 1, "no")])
        two.store.progress("two", [(RUN, 1, task.lease, "no")])

        assert [row.progress for row in one.load().tasks] == ["50% of it", ""]
        one.append(ended=[1], tasks=[task_of(RUN, 1, attempt=2)])
        assert [row.progress for row in one.load().tasks] == ["", ""]
