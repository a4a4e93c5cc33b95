# ruff: noqa: D102 - a test's name is the promise
"""The store contract: runs that make place for new ones in full queues."""

from __future__ import annotations

from typing import Any

import pytest

from treadle.core.commands import Call, Polling
from treadle.core.inputs import Cancel, Revoked, decode_input
from treadle.testing.contract_keys import limited
from treadle.testing.contract_kit import (
    NOW,
    OTHER,
    RUN,
    MakeStore,
    Party,
    head_of,
    key_of,
    numbers,
    signal_of,
    start_of,
    step_of,
    task_of,
)


class DroppingContract:
    """In a full queue that drops the oldest, runs of which nothing has begun make place for a new one."""

    def test_the_oldest_run_that_only_waits_makes_place(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        dropping(one, length=2)
        for n in (1, 2):
            one.start(key_of(n), tasks=[task_of(key_of(n), 1)])

        answer = one.start(key_of(3), tasks=[task_of(key_of(3), 1)])

        assert (answer.told, answer.queued) == ([key_of(1)], 1)
        assert [decode_input(value.body) for value in one.store.inbox(key_of(1))] == [
            Cancel(hard=True),
            Revoked(numbers=[1]),
        ]
        assert one.store.inbox(key_of(1))[0].id == f"dropped:{key_of(3)}"
        assert one.waiting() == [(key_of(2), 1), (key_of(3), 1)]
        assert one.load(key_of(1)).tasks == []

    def test_as_many_runs_make_place_as_have_to(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        for n, count in ((1, 1), (2, 2), (3, 3)):
            one.start(key_of(n), tasks=[task_of(key_of(n), number) for number in range(count)])
        dropping(one, length=4)

        answer = one.start(key_of(4), tasks=[task_of(key_of(4), 1)])

        assert answer.told == [key_of(1), key_of(2)]
        assert len(one.waiting()) == 4

    @pytest.mark.parametrize("what", ["leased", "settled", "attempt", "generation", "probed", "elsewhere", "input"])
    def test_a_run_of_which_something_has_begun_makes_no_place(self, make_store: MakeStore, what: str) -> None:
        one = Party(make_store(), "one")
        dropping(one, length=2)
        tasks = [task_of(RUN, 1), task_of(RUN, 2)]
        if what == "attempt":
            tasks[0].attempt = 2
        elif what == "generation":
            tasks[0].generation = 2
        elif what == "probed":
            tasks[0].call = Call(poll=Polling(1.0, probes=1))
        elif what == "elsewhere":
            tasks.append(task_of(RUN, 3, queue="other"))
        one.start(tasks=[*tasks, task_of(RUN, 9)] if what == "leased" else tasks)
        if what == "leased":
            assert len(one.claim(1)) == 1
        elif what == "settled":
            one.append(steps=[step_of(7)])
        elif what == "input":
            one.store.post([signal_of(RUN, "go")])

        (full,) = one.commit(start_of(OTHER, tasks=[task_of(OTHER, 1)]))

        assert (full.status, full.queue, full.on_full) == ("full", "default", "drop_oldest")
        assert [value.id for value in one.store.inbox(RUN)] == (["go"] if what == "input" else [])
        assert one.store.run(OTHER) is None

    def test_a_look_at_a_run_is_no_beginning(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        dropping(one, length=1)
        two.start(tasks=[task_of(RUN, 1)])
        two.store.bury("two")
        assert [value.id for value in one.store.inbox(RUN)] == ["look:two"]

        assert one.start(OTHER, tasks=[task_of(OTHER, 1)]).told == [RUN]

    def test_a_run_that_another_has_called_makes_no_place(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        dropping(one, length=1)
        one.commit(start_of(RUN, head=head_of(RUN, parent=f"{OTHER}/step-1"), tasks=[task_of(RUN, 1)]))

        assert one.commit(start_of(key_of(3), tasks=[task_of(key_of(3), 1)]))[0].status == "full"

    def test_nothing_is_dropped_for_a_run_that_is_not_made(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        dropping(one, length=1)
        limited(one, name="other", length=1)
        one.start(RUN, tasks=[task_of(RUN, 1)], names=[("name", "take")])
        one.start(OTHER, tasks=[task_of(OTHER, 1, queue="other")])
        new = key_of(3)

        answers = one.commit(
            start_of(new, tasks=[task_of(new, 1), task_of(new, 2, queue="other")]),
            start_of(new, tasks=[task_of(new, 1)], names=[("name", "take")]),
            start_of(new, tasks=[task_of(new, 1)], id=f"run-{RUN}"),
        )

        assert [answer.status for answer in answers] == ["full", "held", "exists"]
        assert one.waiting() == [(RUN, 1), (OTHER, 1)]
        assert one.store.inbox(RUN) == []

    def test_what_is_not_due_goes_with_its_run_and_counts_for_no_length(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        dropping(one, length=1)
        late = key_of(3)
        one.start(late, tasks=[task_of(late, 1, not_before=NOW + 9)])
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2, not_before=NOW + 9)])

        answer = one.start(OTHER, tasks=[task_of(OTHER, 1)])

        assert answer.told == [RUN]
        assert decode_input(one.store.inbox(RUN)[1].body) == Revoked(numbers=[1, 2])
        assert len(one.load(late).tasks) == 1

    def test_the_next_task_of_a_key_comes_first_when_the_first_is_dropped(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        dropping(one, length=2, key_concurrency=1)
        for n in (1, 2):
            one.start(key_of(n), tasks=[task_of(key_of(n), 1, key="a", not_before=NOW + 1)])

        new = start_of(key_of(3), tasks=[task_of(key_of(3), 1, key="b")], time=NOW + 2)
        (answer,) = one.commit(new, slots=1)

        assert (answer.told, numbers(answer.leased)) == ([key_of(1)], [])
        assert [task.run for task in one.claim(9, now=NOW + 2)] == [key_of(2), key_of(3)]

    def test_who_makes_all_place_is_handed_the_task(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        dropping(one, length=1)
        one.start(tasks=[task_of(RUN, 1)])

        assert numbers(one.start(OTHER, tasks=[task_of(OTHER, 1)], slots=1).leased) == [1]

    def test_runs_of_one_call_drop_each_other(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        dropping(one, length=1)

        answers = one.commit(*(start_of(key_of(n), tasks=[task_of(key_of(n), 1)]) for n in (1, 2, 3)))

        assert [list(answer.told) for answer in answers] == [[], [key_of(1)], [key_of(2)]]
        assert one.waiting() == [(key_of(3), 1)]


def dropping(party: Party, **limits: Any) -> None:
    """Let a queue drop the oldest."""
    limited(party, on_full="drop_oldest", **limits)
