# ruff: noqa: D102 - a test's name is the promise
"""The store contract: limits of queues, rates, definitions, and targets."""

from __future__ import annotations

from contextlib import closing

import pytest

from treadle.core.commands import Call
from treadle.store.base import Postponement
from treadle.store.queues import Bucket, QueueChange, QueueLimits, refill
from treadle.testing.contract_keys import limited, row_of, tasks_of
from treadle.testing.contract_kit import (
    NOW,
    OTHER,
    RUN,
    MakeStore,
    Party,
    Slots,
    append_of,
    key_of,
    numbers,
    report_of,
    start_of,
    task_of,
)


class ConcurrencyContract:
    """No more tasks of a queue are leased than it may have; whatever ends a lease makes room."""

    def test_no_more_tasks_are_handed_over_than_the_queue_may_have(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, concurrency=2)

        answer = one.start(tasks=[task_of(RUN, number) for number in range(5)], slots=9)

        assert numbers(answer.leased) == [0, 1]
        assert answer.queued == 3
        assert row_of(one).running == 2

    def test_no_more_tasks_are_claimed_than_the_queue_may_have(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        limited(one, concurrency=3)
        one.start(tasks=[task_of(RUN, number) for number in range(6)])

        assert numbers(one.claim(2)) == [0, 1]
        assert numbers(two.claim(9)) == [2]
        assert one.claim(9) == two.claim(9) == []

    def test_all_sessions_and_handles_share_the_limit(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        limited(two, concurrency=1)

        assert numbers(one.start(tasks=[task_of(RUN, 1)], slots=5).leased) == [1]
        assert two.start(OTHER, tasks=[task_of(OTHER, 1)], slots=5).leased == []

    def test_an_append_that_ends_a_task_makes_room_for_its_own(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, concurrency=1)
        one.start(tasks=[task_of(RUN, 1)], slots=5)

        for number in range(2, 9):
            assert numbers(one.append(ended=[number - 1], tasks=[task_of(RUN, number)], slots=5).leased) == [number]

    def test_an_append_a_report_a_postponement_and_a_burial_make_room(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        limited(one, concurrency=1)
        one.start(tasks=[task_of(RUN, number) for number in range(5)])
        assert numbers(one.claim(9)) == [0]

        one.append(ended=[0])
        assert one.store.made_room
        (second,) = one.claim(9)
        assert one.report(report_of(second)) == [True]
        assert one.store.made_room
        (third,) = two.claim(9)
        item = Postponement(RUN, third.number, third.lease, NOW + 60, Call())
        assert two.store.postpone("two", [item], NOW) == [True]
        assert two.store.made_room
        assert numbers(two.claim(9)) == [3]
        one.store.bury("two")
        assert one.store.made_room
        assert numbers(one.claim(9)) == [4]
        assert one.claim(9) == []

    def test_room_is_told_of_by_a_handle_that_heard_of_the_limit_as_an_append_was_refused(
        self, make_store: MakeStore
    ) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, number) for number in range(2)])
        (first,) = two.claim(1)
        limited(one, concurrency=1)

        assert two.commit(start_of(OTHER, id=f"run-{RUN}"))[0].status == "exists"
        assert two.report(report_of(first)) == [True]

        assert two.store.made_room

    def test_a_task_that_is_replaced_makes_room_for_the_one_in_its_place(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, concurrency=1)
        one.start(tasks=[task_of(RUN, 1)], slots=1)

        answer = one.append(tasks=[task_of(RUN, 1, attempt=2)], slots=1)

        assert numbers([*answer.leased, *one.claim(1)]) == [1]
        assert row_of(one).running == 1

    def test_limits_that_a_session_meets_first_in_a_sweep_are_kept_like_others(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)])
        limited(two, concurrency=1)
        one.store.sweep("one", NOW)
        (task,) = one.claim(2)
        bool(one.store.made_room)

        one.report(report_of(task))

        assert one.store.made_room

    def test_no_room_is_made_where_nothing_waits_for_it(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, concurrency=2)
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2), task_of(RUN, 3, queue="free")], slots=3)

        one.append(ended=[1])
        assert not one.store.made_room
        one.start(OTHER, tasks=[task_of(OTHER, 1, not_before=NOW + 5)])
        one.append(ended=[2, 3])
        assert not one.store.made_room

    def test_a_claim_tells_that_it_left_tasks_for_which_there_is_room(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, concurrency=3)
        one.start(tasks=[task_of(RUN, number) for number in range(9)])

        assert numbers(one.claim(2)) == [0, 1]
        assert one.store.made_room
        assert numbers(one.claim(2)) == [2]
        assert not one.store.made_room

    def test_a_full_queue_holds_no_other_back_and_takes_no_slot(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, name="full", concurrency=1)
        one.start(OTHER, tasks=[task_of(OTHER, number, queue="full", priority=9) for number in range(50)])
        assert numbers(one.claim(1)) == [0]

        answer = one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2, queue="full"), task_of(RUN, 3)], slots=1)

        assert numbers(answer.leased) == [1]
        assert [(task.queue, task.number) for task in one.claim(4)] == [("default", 3)]

    def test_priority_decides_who_gets_the_room(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, concurrency=1)
        one.start(tasks=[task_of(RUN, number, priority=number) for number in range(3)])

        assert numbers(one.claim(9)) == [2]
        one.append(ended=[2])
        assert numbers(one.claim(9)) == [1]

    def test_what_a_held_run_has_to_wait_for_is_not_held_back_by_it(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, concurrency=1)
        one.start(OTHER, tasks=[task_of(OTHER, 1)], hold=1)

        assert numbers(one.start(tasks=[task_of(RUN, 1)], slots=1).leased) == [1]
        one.append(OTHER, hold=0)
        assert one.claim(1) == []
        one.append(ended=[1])
        assert [task.run for task in one.claim(1)] == [OTHER]


class RateContract:
    """A rate is a bucket: full at first, refilled by time, shared by all and kept by the store."""

    def test_a_burst_may_start_at_once_and_then_one_after_the_other(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, rate=2.0, burst=3)
        one.start(tasks=[task_of(RUN, number) for number in range(9)])

        assert numbers(one.claim(9)) == [0, 1, 2]
        assert one.claim(9) == []
        assert numbers(one.claim(9, now=NOW + 0.5)) == [3]
        assert one.claim(9, now=NOW + 0.75) == []
        assert numbers(one.claim(9, now=NOW + 1.5)) == [4, 5]

    def test_a_hand_over_takes_from_the_same_bucket(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, rate=1.0, burst=2)

        answer = one.start(tasks=[task_of(RUN, number) for number in range(3)], slots=9)

        assert numbers(answer.leased) == [0, 1]
        assert one.claim(9) == []
        assert numbers(one.claim(9, now=NOW + 1)) == [2]

    def test_a_claim_tells_when_the_next_may_start(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, rate=0.1, burst=1)
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)], slots=9)

        due = one.next_due(now=NOW + 1)

        assert due == pytest.approx(NOW + 10, abs=0.01)
        assert numbers(one.claim(9, now=NOW + 10)) == [2]
        assert one.next_due(now=NOW + 10) is None

    def test_a_rate_for_which_nothing_waits_is_no_time_to_wake_at(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, rate=1.0, burst=1)
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2, action="foreign")], slots=9)

        assert one.next_due() is None

    def test_a_new_attempt_takes_from_the_bucket_too(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, rate=1.0, burst=1)
        one.start(tasks=[task_of(RUN, 1)], slots=1)

        assert one.append(ended=[1], tasks=[task_of(RUN, 1, attempt=2)], slots=1).leased == []

    def test_a_long_rest_saves_up_no_more_than_the_burst(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, rate=5.0, burst=2)
        one.start(tasks=[task_of(RUN, number) for number in range(9)])
        one.claim(9)

        assert len(one.claim(9, now=NOW + 3600)) == 2

    def test_time_that_runs_backwards_adds_nothing(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, rate=1.0, burst=1)
        one.start(tasks=[task_of(RUN, number) for number in range(9)])
        one.claim(9, now=NOW + 10)

        assert one.claim(9, now=NOW) == one.claim(9, now=NOW + 5) == one.claim(9, now=NOW + 10.5) == []
        assert len(one.claim(9, now=NOW + 11)) == 1

    def test_a_clock_that_was_set_back_does_not_stop_the_queue(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, rate=1.0, burst=1)
        one.start(tasks=[task_of(RUN, number) for number in range(9)])
        one.claim(9, now=NOW + 3600)

        assert len(one.claim(9, now=NOW)) == 1
        assert one.claim(9, now=NOW + 0.5) == []
        assert len(one.claim(9, now=NOW + 1)) == 1

    def test_the_bucket_is_the_stores(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, rate=1.0, burst=1)
        one.start(tasks=[task_of(RUN, number) for number in range(9)], slots=9)

        two = Party(make_store(), "two")

        assert two.claim(9) == []
        assert len(two.claim(9, now=NOW + 1)) == 1

    def test_the_rate_and_the_concurrency_both_hold(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, rate=1.0, burst=2, concurrency=1)
        one.start(tasks=[task_of(RUN, number) for number in range(9)])

        assert numbers(one.claim(9)) == [0]
        assert one.next_due() is None
        one.append(ended=[0])
        assert numbers(one.claim(9)) == [1]
        one.append(ended=[1])
        assert one.claim(9) == []
        assert one.next_due() == pytest.approx(NOW + 1, abs=0.01)


class DefinitionsContract:
    """Limits are facts of the store, that programs define and operators change."""

    def test_what_was_defined_is_listed_with_what_goes_on(self, make_store: MakeStore) -> None:
        one, other = Party(make_store(), "one"), make_store()
        limits = QueueLimits(
            concurrency=2, rate=0.5, burst=4, key_rate=1.5, fair=True, weights={"a": 2.0}, length=7, on_full="wait"
        )
        one.store.set_queues([QueueChange(name="q", defined=limits)], NOW)
        one.start(tasks=[task_of(RUN, number, queue="q") for number in range(5)], time=NOW + 1)
        one.append(tasks=[task_of(RUN, 9, queue="q", not_before=NOW + 60), task_of(RUN, 8)])
        one.claim(1, now=NOW + 2)

        reader = other.reader()
        for store in (one.store, other, reader):
            plain, row = store.queues(NOW + 2)
            assert (row.name, row.defined, row.override, row.limits, row.paused) == ("q", limits, None, limits, False)
            assert (row.waiting, row.delayed, row.running) == (5 if plain.running else 4, 1, 1 - plain.running)
            assert row.version > 0
            assert row.oldest_at == NOW + 1
            assert (plain.name, plain.defined, plain.version, plain.limits) == ("default", None, 0, QueueLimits())
        reader.close()

    def test_who_holds_the_leases_of_a_queue_is_listed_the_first_one_first(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, number, queue="q" if number else "other") for number in range(5)])
        one.claim(3, now=NOW + 2)
        two.start(OTHER, tasks=[task_of(OTHER, 1, queue="q")])
        two.claim(1, now=NOW + 1)
        two.claim(1, now=NOW + 3)

        reader = two.store.reader()
        for store in (one.store, reader):
            rows = store.holders("q")
            assert [(row.task.run, row.task.number, row.worker) for row in rows] == [
                (RUN, 3, "worker-two"), (RUN, 1, "worker-one"), (RUN, 2, "worker-one"), (RUN, 4, "worker-two"),
            ]  # fmt: skip
            assert [row.started_at for row in rows] == [NOW + 1, NOW + 2, NOW + 2, NOW + 3]
            assert store.holders("q", limit=1) == rows[:1]
            assert store.holders("nobody") == []
        reader.close()
        one.append(ended=[1])
        assert [row.task.number for row in one.store.holders("q")] == [3, 2, 4]

    def test_the_same_definition_again_changes_nothing(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        change = QueueChange(name="q", defined=QueueLimits(concurrency=1))

        assert one.store.set_queues([change], NOW) == [True]
        before = one.store.queues(NOW)
        assert one.store.set_queues([change], NOW) == [False]

        assert one.store.queues(NOW) == before

    def test_the_last_definition_counts_and_an_operators_word_before_all(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        first, second, third = (QueueLimits(concurrency=number) for number in (1, 2, 3))

        one.store.set_queues([QueueChange(name="q", defined=first)], NOW)
        two.store.set_queues([QueueChange(name="q", defined=second)], NOW)
        assert row_of(one, "q").limits == second
        one.store.set_queues([QueueChange(name="q", override=third)], NOW)
        two.store.set_queues([QueueChange(name="q", defined=first)], NOW)
        assert row_of(one, "q").limits == third
        one.store.set_queues([QueueChange(name="q", override=None)], NOW)
        assert row_of(one, "q").limits == first

    def test_a_paused_queue_gives_nothing_until_it_is_resumed(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.store.set_queues([QueueChange(name="default", paused=True)], NOW)

        assert one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2, queue="free")], slots=9).leased != []
        assert one.claim(9) == []
        assert one.next_due() is None
        one.store.set_queues([QueueChange(name="default", paused=False)], NOW)
        assert one.store.made_room
        assert numbers(one.claim(9)) == [1]

    def test_limits_hold_for_tasks_that_waited_or_ran_before_they_were_defined(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=tasks_of(RUN, "aabbcc"))
        assert numbers(one.claim(1)) == [1]

        limited(two, key_concurrency=1)
        assert sorted(numbers(one.claim(9))) == [3, 5]
        limited(two, concurrency=4)
        assert numbers(two.claim(9)) == [2]
        limited(two)
        assert numbers(one.claim(9)) == [4, 6]

    def test_fewer_than_are_leased_are_waited_for(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, concurrency=3)
        one.start(tasks=[task_of(RUN, number) for number in range(6)], slots=9)

        limited(one, concurrency=1)

        one.append(ended=[0])
        assert one.claim(9) == []
        one.append(ended=[1, 2])
        assert numbers(one.claim(9)) == [3]

    def test_what_rates_allow_may_be_set_and_is_kept(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limits = QueueLimits(rate=1.0, burst=5, key_rate=0.5, key_burst=2)
        buckets = {"": Bucket(1.5, NOW), "a": Bucket(0.5, NOW - 1), "b": Bucket(0.0, NOW + 1)}
        one.store.set_queues([QueueChange(name="default", defined=limits, paused=True)], NOW)
        one.start(tasks=tasks_of(RUN, "abc"))

        (first,) = one.store.set_queues([QueueChange(name="default", paused=False, buckets=buckets)], NOW)
        (again,) = one.store.set_queues([QueueChange(name="default", buckets=one.store.buckets("default"))], NOW)

        found = one.store.buckets("default")
        assert (first, again, found[""]) == (True, False, Bucket(1.5, NOW))
        assert [refill(found[key], 0.5, 2, NOW + 1).allowance for key in "ab"] == [1.5, 0.0]
        with closing(one.store.reader()) as reader:
            assert reader.buckets("default") == found
        # A key opens by its own bucket, and the queue has room for one.
        assert [task.key for task in one.claim(9)] == ["a"]
        assert [task.key for task in one.claim(9, now=NOW + 1)] == ["c"]
        assert one.claim(9, now=NOW + 2) == []
        assert [task.key for task in one.claim(9, now=NOW + 3)] == ["b"]

    def test_buckets_go_with_those_that_are_set_and_with_their_rates(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, rate=1.0, key_rate=1.0)
        one.store.set_queues([QueueChange(name="default", buckets={"": Bucket(0.0, NOW), "a": Bucket(0.0, NOW)})], NOW)
        one.store.set_queues([QueueChange(name="default", buckets={"b": Bucket(0.5, NOW)})], NOW)

        assert one.store.buckets("default") == {"b": Bucket(0.5, NOW)}
        one.store.set_queues([QueueChange(name="default", defined=QueueLimits(), buckets={"": Bucket(0.0, NOW)})], NOW)
        assert one.store.buckets("default") == one.store.buckets("never") == {}

    def test_more_room_is_told_of(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, concurrency=1)
        one.start(tasks=[task_of(RUN, number) for number in range(6)], slots=9)

        one.store.set_queues([QueueChange(name="default", defined=QueueLimits(concurrency=4))], NOW)

        assert one.store.made_room
        assert len(one.claim(9)) == 3

    def test_a_run_for_a_queue_in_which_enough_wait_is_not_made(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, length=2, concurrency=1)
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)], slots=9)
        one.start(OTHER, tasks=[task_of(OTHER, 1), task_of(OTHER, 2, not_before=NOW + 60)], slots=9)

        (refused,) = one.commit(start_of(key_of(3), tasks=[task_of(key_of(3), 1)]), slots=9)
        free, late = one.commit(
            start_of(key_of(4), tasks=[task_of(key_of(4), 1, queue="free")]),
            start_of(key_of(5), tasks=[task_of(key_of(5), 1, not_before=NOW + 9)]),
        )

        assert (refused.status, refused.queue, refused.leased, refused.queued) == ("full", "default", [], 0)
        assert one.store.run(key_of(3)) is None
        assert (free.status, late.status) == ("committed", "committed")
        assert one.append(tasks=[task_of(RUN, 3)]).queued == 1
        one.append(ended=[1, 2, 3])
        one.claim(9)
        assert one.commit(start_of(key_of(3), tasks=[task_of(key_of(3), 1)]))[0].status == "committed"

    def test_who_finds_a_queue_full_is_told_what_its_limits_say_of_that(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, length=1, on_full="wait")
        limited(one, name="other", length=1)
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2, queue="other")])

        waits, rejects = one.commit(
            start_of(OTHER, tasks=[task_of(OTHER, 1)]),
            start_of(key_of(3), tasks=[task_of(key_of(3), 1, queue="other")]),
        )

        assert (waits.status, waits.queue, waits.on_full) == ("full", "default", "wait")
        assert (rejects.status, rejects.queue, rejects.on_full) == ("full", "other", "reject")

    def test_runs_of_one_call_fill_the_queue_for_those_behind(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, length=2)

        answers = one.commit(*(start_of(key_of(n), tasks=[task_of(key_of(n), 1)]) for n in range(1, 5)))

        assert [answer.status for answer in answers] == ["committed", "committed", "full", "full"]

    def test_tasks_of_a_held_run_count_for_the_length_after_a_claim_has_met_them(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.store.set_queues([QueueChange(name="default", defined=QueueLimits(length=2))], NOW)
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)], hold=1)
        assert one.claim(9) == []

        assert one.commit(start_of(OTHER, tasks=[task_of(OTHER, 1)]))[0].status == "full"
        one.append(ended=[1])
        assert one.commit(start_of(OTHER, tasks=[task_of(OTHER, 1)]))[0].status == "committed"


class TargetsContract:
    """A task with a target goes to sessions that name it; all others pass it by."""

    def test_a_task_with_a_target_is_handed_over_to_who_names_it(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        tasks = [task_of(RUN, 1, target="gpu"), task_of(RUN, 2, target="disk"), task_of(RUN, 3)]

        (answer,) = one.store.commit("one", [start_of(RUN, tasks=tasks)], Slots(9, targets=["disk"]))

        assert numbers(answer.leased) == [2, 3]
        assert answer.queued == 1

    def test_a_task_with_a_target_is_claimed_by_who_names_it(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, 1, target="gpu", priority=5), task_of(RUN, 2), task_of(RUN, 3, target="gpu")])

        assert numbers(one.claim(9)) == [2]
        claimed, _ = two.store.claim("two", Slots(9, targets=["other", "gpu"]), NOW)
        assert numbers(claimed) == [1, 3]
        assert [task.target for task in claimed] == ["gpu", "gpu"]

    def test_a_task_for_another_target_holds_nobody_back(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(OTHER, tasks=[task_of(OTHER, number, target="gpu", priority=9) for number in range(20)])

        assert numbers(one.start(tasks=[task_of(RUN, 1)], slots=1).leased) == [1]

    def test_a_task_waits_behind_one_that_the_session_may_take_by_its_target(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(OTHER, tasks=[task_of(OTHER, 1, target="gpu")])

        (answer,) = one.store.commit("one", [start_of(RUN, tasks=[task_of(RUN, 1)])], Slots(9, targets=["gpu"]))

        assert answer.leased == []

    def test_targets_are_facts_of_the_session_that_may_change(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one", targets=["a"]), Party(make_store(), "two")

        two.store.set_targets("two", ["b", "c"])

        assert [row.targets for row in one.store.sessions()] == [["a"], ["b", "c"]]
        one.store.bury("two")
        assert two.is_refused(two.store.set_targets, ["d"])

    def test_limits_and_targets_both_hold(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, key_concurrency=1)
        one.start(tasks=tasks_of(RUN, "aab", target="gpu"))

        claimed, _ = one.store.claim("one", Slots(9, targets=["gpu"]), NOW)

        assert numbers(claimed) == [1, 3]

    def test_a_conflicting_append_takes_nothing_from_any_limit(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, concurrency=1, rate=1.0, burst=1, key_concurrency=1)
        one.start()

        wrong, right = one.commit(
            append_of(RUN, 7, tasks=tasks_of(RUN, "a")), append_of(RUN, 1, tasks=tasks_of(RUN, "a")), slots=9
        )

        assert (wrong.status, numbers(right.leased)) == ("conflict", [1])
