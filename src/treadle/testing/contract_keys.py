# ruff: noqa: D102 - a test's name is the promise
"""The store contract: limits of keys, and the turns that keys take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from treadle.core.commands import Task
from treadle.store.queues import QueueChange, QueueLimits, QueueRow
from treadle.testing.contract_kit import NOW, OTHER, RUN, MakeStore, Party, Slots, key_of, numbers, task_of


def limited(party: Party, *, name: str = "default", now: float = NOW, **limits: Any) -> None:
    """Define the limits of a queue."""
    party.store.set_queues([QueueChange(name=name, defined=QueueLimits(**limits))], now)
    # Said once, and not of interest here.
    bool(party.store.made_room)


def row_of(party: Party, name: str = "default", *, now: float = NOW) -> QueueRow:
    """The row of a queue that is there."""
    return next(row for row in party.store.queues(now) if row.name == name)


def tasks_of(run: str, keys: Sequence[str], **fields: Any) -> list[Task]:
    """A task for each key, numbered from 1."""
    return [task_of(run, number, key=name, **fields) for number, name in enumerate(keys, 1)]


class KeysContract:
    """Each key of a queue has its own limits; one that is full holds no other back."""

    def test_each_key_has_its_own_room(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, key_concurrency=1)

        answer = one.start(tasks=tasks_of(RUN, ["a", "a", "b", "b", "c"]), slots=9)

        assert sorted(numbers(answer.leased)) == [1, 3, 5]
        assert one.claim(9) == []
        one.append(ended=[3])
        assert one.store.made_room
        assert numbers(one.claim(9)) == [4]

    def test_room_for_a_key_is_told_of_though_no_claim_has_met_the_task_that_waits(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one", actions=["act", "other"])
        limited(one, key_concurrency=1)
        late = task_of(RUN, 2, key="a", action="other", not_before=NOW + 1)
        one.start(tasks=[task_of(RUN, 1, key="a"), late], slots=1)
        one.start(OTHER, tasks=[task_of(OTHER, 1)])
        # It is due by now, and the first task that waits keeps the new one waiting.
        assert one.append(OTHER, tasks=[task_of(OTHER, 2)], time=NOW + 2, slots=1).leased == []
        bool(one.store.made_room)

        one.append(ended=[1], time=NOW + 2)

        assert one.store.made_room

    def test_claims_pass_over_keys_that_are_full(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        limited(one, key_concurrency=2)
        one.start(tasks=tasks_of(RUN, ["a", "a", "a", "a", "b", "b", "b"]))

        assert numbers(one.claim(3)) == [1, 2, 5]
        assert numbers(two.claim(9)) == [6]
        assert two.claim(9) == []

    def test_tasks_of_one_key_go_by_priority_and_age(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, key_concurrency=1)
        one.start(tasks=[task_of(RUN, number, key="a", priority=number % 2) for number in range(1, 6)])
        order: list[int] = []

        for _ in range(5):
            (task,) = one.claim(9)
            order.append(task.number)
            one.append(ended=[task.number])

        assert order == [1, 3, 5, 2, 4]

    def test_a_task_without_a_key_is_not_held_back_by_keys(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, key_concurrency=1)
        one.start(tasks=tasks_of(RUN, ["", "", "a", "", "a"]))

        assert sorted(numbers(one.claim(9))) == [1, 2, 3, 4]

    def test_a_key_has_a_rate_of_its_own(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, key_rate=1.0, key_burst=1)
        one.start(tasks=tasks_of(RUN, ["a", "a", "b", "a", "b"]))

        assert sorted(numbers(one.claim(9))) == [1, 3]
        assert one.claim(9, now=NOW + 0.5) == []
        assert one.next_due(now=NOW + 0.5) == pytest.approx(NOW + 1, abs=0.01)
        assert sorted(numbers(one.claim(9, now=NOW + 1))) == [2, 5]
        assert one.claim(9, now=NOW + 1.5) == []
        assert numbers(one.claim(9, now=NOW + 2)) == [4]

    def test_what_is_handed_over_counts_for_its_key(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, key_concurrency=1, key_rate=1.0, key_burst=5)
        one.start(tasks=tasks_of(RUN, ["a"]), slots=9)

        assert one.start(OTHER, tasks=tasks_of(OTHER, ["a", "a"]), slots=9).leased == []
        one.append(ended=[1])
        assert [task.run for task in one.claim(9)] == [OTHER]

    def test_a_new_task_goes_behind_those_of_its_key(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, key_concurrency=1)
        one.start(OTHER, tasks=tasks_of(OTHER, ["a", "a"]), slots=1)

        answer = one.append(OTHER, ended=[1], tasks=[task_of(OTHER, 3, key="a")], slots=9)

        assert answer.leased == []
        assert numbers(one.claim(9)) == [2]

    def test_a_key_whose_first_task_nobody_here_executes_is_not_stopped_by_it(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, key_concurrency=1)
        one.start(
            tasks=[
                task_of(RUN, 1, key="a", action="foreign"),
                task_of(RUN, 2, key="a", target="elsewhere"),
                task_of(RUN, 3, key="a"),
                task_of(RUN, 4, key="a"),
            ]
        )

        assert numbers(one.claim(9)) == [3]

    def test_a_task_of_a_held_run_or_one_that_ends_lets_the_next_of_its_key_go(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, key_concurrency=1)
        one.start(OTHER, tasks=tasks_of(OTHER, ["a", "b"]))
        one.start(key_of(3), tasks=tasks_of(key_of(3), ["a", "b"]))
        one.start(tasks=tasks_of(RUN, ["a", "b", "a"]))
        one.append(OTHER, hold=1)
        one.append(key_of(3), ended=[1], revoke=True)

        assert [(task.run, task.number) for task in one.claim(9)] == [(RUN, 1), (RUN, 2)]
        one.append(OTHER, hold=0)
        one.append(ended=[1, 2])
        assert [(task.run, task.number) for task in one.claim(9)] == [(OTHER, 1), (OTHER, 2)]

    def test_a_task_that_falls_due_waits_for_its_key(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, key_concurrency=1)
        one.start(tasks=[task_of(RUN, 1, key="a"), task_of(RUN, 2, key="a", not_before=NOW + 1)], slots=1)

        assert one.claim(9, now=NOW + 2) == []
        one.append(ended=[1])
        assert numbers(one.claim(9, now=NOW + 2)) == [2]

    def test_the_keys_of_a_queue_are_listed(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, key_concurrency=1, key_rate=1.0, key_burst=4)
        one.start(tasks=tasks_of(RUN, ["a", "a", "b", "", "a"]))
        one.claim(2)

        first, second = one.store.queue_keys("default")

        assert (first.key, first.waiting, first.running) == ("a", 2, 1)
        assert (second.key, second.waiting, second.running) == ("b", 0, 1)
        assert first.bucket is not None
        assert first.bucket.allowance == 3.0
        assert one.store.queue_keys("default", key="b") == [second]
        (nobody,) = one.store.queue_keys("default", key="z")
        assert (nobody.waiting, nobody.running, nobody.bucket) == (0, 0, None)

    def test_who_holds_the_leases_of_a_key_is_listed(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, key_concurrency=2)
        one.start(tasks=tasks_of(RUN, ["a", "a", "b", "", "a"]))
        one.claim(9)

        assert sorted(row.task.number for row in one.store.holders("default", key="a")) == [1, 2]
        assert [row.task.key for row in one.store.holders("default", key="a")] == ["a", "a"]
        assert [row.task.key for row in one.store.holders("default", key="b")] == ["b"]
        assert one.store.holders("default", key="z") == []


class ClocksContract:
    """What stores promise that several machines share, whose clocks differ by less than a minute."""

    def test_a_clock_that_is_ahead_does_not_fill_the_bucket_of_another(self, make_store: MakeStore) -> None:
        one, ahead = Party(make_store(), "one"), Party(make_store(), "two")
        limited(one, key_rate=1.0)
        one.start(tasks=tasks_of(RUN, "aaa"))
        assert len(one.claim(9)) == 1

        # It may execute none of these, but it looks, and by its own time the key's bucket is full.
        ahead.store.claim("two", Slots(9, ["foreign"]), NOW + 50)

        assert one.claim(9, now=NOW + 0.1) == []
        assert len(one.claim(9, now=NOW + 1.1)) == 1


class TurnsContract:
    """In a fair queue keys take turns, by their weights."""

    def order(self, party: Party, count: int) -> str:
        """The keys of the tasks that are claimed one by one."""
        return "".join(task.key for _ in range(count) for task in party.claim(1))

    def test_a_key_with_many_tasks_does_not_keep_another_waiting(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, fair=True)
        one.start(tasks=tasks_of(RUN, "a" * 50))
        one.start(OTHER, tasks=tasks_of(OTHER, "bbb"))

        first = self.order(one, 8)

        assert Counter(first) == {"a": 5, "b": 3}
        assert "aaa" not in first[:6]

    def test_keys_get_shares_by_their_weights(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, fair=True, weights={"a": 3.0})
        one.start(tasks=tasks_of(RUN, "ab" * 40))

        found = Counter(self.order(one, 40))

        assert abs(found["a"] - 30) <= 3

    def test_who_comes_late_gets_its_share_from_then_on(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, fair=True)
        one.start(tasks=tasks_of(RUN, "a" * 50))
        self.order(one, 20)

        one.start(OTHER, tasks=tasks_of(OTHER, "b" * 50))

        found = Counter(self.order(one, 20))
        assert abs(found["a"] - found["b"]) <= 2

    def test_priority_goes_before_fairness(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, fair=True)
        one.start(tasks=[*tasks_of(RUN, "aaab"), task_of(RUN, 9, key="a", priority=1)])

        assert numbers(one.claim(1)) == [9]

    def test_a_keys_own_tasks_go_by_age(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, fair=True, weights={"b": 2.0})
        one.start(tasks=tasks_of(RUN, "ababababab"))

        found = one.claim(10)

        for key in "ab":
            own = [task.number for task in found if task.key == key]
            assert own == sorted(own)

    def test_what_is_handed_over_counts_for_its_keys_share(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, fair=True)
        one.start(tasks=tasks_of(RUN, "a" * 6), slots=6)

        one.start(OTHER, tasks=tasks_of(OTHER, "aabb"))

        assert self.order(one, 4)[0] == "b"

    def test_a_fair_queue_and_others_do_not_starve_each_other(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, name="fair", fair=True)
        one.start(OTHER, tasks=[task_of(OTHER, number) for number in range(200)])
        found: list[str] = []

        for number in range(1, 21):
            key = key_of(number + 10)
            # Always a key that was never served.
            one.start(key, tasks=[task_of(key, 1, queue="fair", key=f"k{number}"), task_of(key, 2, queue="fair")])
            found += [task.queue for task in one.claim(1)]

        assert 5 <= found.count("fair") <= 15

    def test_fairness_holds_among_keys_that_may_start(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, fair=True, key_concurrency=1)
        one.start(tasks=tasks_of(RUN, "aaaabbbbc"))

        first = one.claim(9)

        assert sorted(task.key for task in first) == ["a", "b", "c"]

    def test_a_queue_that_is_fair_no_more_goes_by_age_for_what_falls_due_later_too(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        limited(one, fair=True)
        one.start(tasks=[task_of(RUN, number, key="a", not_before=NOW + 5.0) for number in (1, 2, 3)])
        one.start(OTHER, tasks=[task_of(OTHER, 4, key="b", not_before=NOW + 5.0)])

        limited(one)

        assert numbers(one.claim(9, now=NOW + 6.0)) == [1, 2, 3, 4]
