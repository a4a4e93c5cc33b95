# ruff: noqa: D102 - a test's name is the promise
"""The store contract: sessions, inboxes, owners, elections, wakes."""

from __future__ import annotations

import itertools
from functools import partial

import msgspec

from treadle.core.inputs import Look, Lost, decode_input
from treadle.store.base import WAITS_CHANGES, WAITS_TASKS, InboxInput, SessionRow
from treadle.testing.contract_kit import (
    NOW,
    OTHER,
    RUN,
    MakeStore,
    Party,
    Slots,
    append_of,
    key_of,
    lost_of,
    numbers,
    report_of,
    signal_of,
    snapshot,
    start_of,
    task_of,
)


class SessionsContract:
    """A session's leases live as long as it; a buried session can write nothing any more."""

    def test_an_open_session_is_listed_with_all_its_facts(self, make_store: MakeStore) -> None:
        one, other = make_store(), make_store()
        row = SessionRow("s", "host-1", "unix:/tmp/w", 0, WAITS_TASKS, ["a", "b"], {"pid": 7, "os": {"x": [1]}})

        one.open_session(row)

        assert one.sessions() == other.sessions() == [row]

    def test_a_renewal_counts_the_beat_up_and_may_say_what_the_session_waits_for(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one", waits=WAITS_CHANGES)
        first = one.store.sessions()[0]

        one.store.renew("one")
        second = one.store.sessions()[0]
        one.store.renew("one", WAITS_TASKS)
        third = one.store.sessions()[0]

        assert first.beat < second.beat < third.beat
        assert [row.waits for row in (first, second, third)] == [WAITS_CHANGES, WAITS_CHANGES, WAITS_TASKS]

    def test_a_buried_session_is_listed_no_more(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")

        two.store.bury("one")

        assert [row.id for row in one.store.sessions()] == ["two"]

    def test_a_buried_session_can_write_nothing_any_more(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        (task,) = one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)], slots=1).leased
        two.start(OTHER)
        two.store.bury("one")
        before = [snapshot(two.store.load(key)) for key in (RUN, OTHER)]
        store = one.store

        assert one.is_refused(store.commit, [append_of(RUN, 1)], None)
        assert one.is_refused(store.commit, [start_of(key_of(3))], Slots(1))
        assert one.is_refused(store.claim, Slots(5), NOW)
        assert one.is_refused(store.report, [report_of(task)])
        assert one.is_refused(store.renew)
        assert one.is_refused(partial(store.elect, "sweeper"))
        assert one.is_refused(store.acquire, RUN)
        assert one.is_refused(store.acquire, OTHER, steal=True)
        # These change nothing where they cannot raise.
        one.is_refused(store.progress, [(RUN, 1, task.lease, "text")])
        one.is_refused(store.release, [OTHER])

        assert [snapshot(two.store.load(key)) for key in (RUN, OTHER)] == before
        assert store.load(key_of(3)) is None

    def test_a_session_that_was_never_opened_can_write_nothing(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(release=True)
        stranger = Party.__new__(Party)
        stranger.store, stranger.id = one.store, "stranger"

        assert stranger.is_refused(one.store.commit, [start_of(OTHER)], None)
        assert stranger.is_refused(one.store.acquire, RUN)
        assert stranger.is_refused(one.store.renew)

    def test_burying_turns_each_leased_task_into_one_lost_input(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, 1, generation=2, attempt=4), task_of(RUN, 2), task_of(RUN, 3)])
        one.start(OTHER, tasks=[task_of(OTHER, 1)])
        first, _ = two.claim(2)
        assert numbers(one.claim(1)) == [3]
        two.store.progress("two", [(RUN, 1, first.lease, "half of it")])

        touched = one.store.bury("two")

        assert touched == [RUN]
        assert [decode_input(value.body) for value in one.store.inbox(RUN)] == [
            Lost(number=1, generation=2, attempt=4, session="two", progress="half of it"),
            Lost(number=2, generation=1, attempt=1, session="two"),
        ]
        assert one.store.inbox(OTHER) == []
        assert [(row.task.number, row.session) for row in one.load().tasks] == [(3, "one")]

    def test_burying_twice_changes_nothing(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, 1)])
        two.claim()
        one.store.bury("two")
        one.append(consumed=[value.id for value in one.store.inbox(RUN)])
        before = snapshot(one.load())

        assert one.store.bury("two") == []
        assert one.store.bury("never was") == []
        assert snapshot(one.load()) == before

    def test_a_step_lost_twice_makes_two_inputs(self, make_store: MakeStore) -> None:
        one, two, three = (Party(make_store(), name) for name in ("one", "two", "three"))
        one.start(tasks=[task_of(RUN, 1)])
        two.claim()
        one.store.bury("two")
        # The first is not consumed yet when the second comes.
        one.append(tasks=[task_of(RUN, 1, attempt=2)])
        three.claim()

        one.store.bury("three")

        lost = lost_of(one.store.inbox(RUN))
        assert len({value.id for value in lost}) == 2
        assert [decode_input(value.body) for value in lost] == [
            Lost(number=1, generation=1, attempt=1, session="two"),
            Lost(number=1, generation=1, attempt=2, session="three"),
        ]

    def test_burying_frees_the_runs_that_the_session_owned(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(RUN)
        one.start(OTHER)
        two.start(key_of(3))
        two.store.post([signal_of(RUN, "i")])

        two.store.bury("one")

        assert [two.row(key).owner for key in (RUN, OTHER, key_of(3))] == ["", "", "two"]
        assert sorted(two.store.sweep("two", NOW).stranded) == sorted([RUN, OTHER])
        acquired = two.store.acquire("two", OTHER)
        assert acquired is not None
        assert acquired.owner == "two"

    def test_a_running_run_of_a_buried_session_without_any_input_gets_one_to_be_looked_at(
        self, make_store: MakeStore
    ) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(RUN)
        one.start(OTHER)
        one.start(key_of(3), status="succeeded")
        one.store.release("one", [OTHER])

        two.store.bury("one")

        assert two.store.sweep("two", NOW).stranded == [RUN]
        [item] = two.store.inbox(RUN)
        assert decode_input(item.body) == Look(session="one")

    def test_burying_names_the_runs_it_touched_whose_inbox_waits(self, make_store: MakeStore) -> None:
        one, two, three = (Party(make_store(), name) for name in ("one", "two", "three"))
        one.start(RUN)
        two.start(OTHER, tasks=[task_of(OTHER, 1)])
        one.start(key_of(3))
        two.start(key_of(4))
        one.claim()
        two.store.post([signal_of(key_of(3), "i"), signal_of(key_of(4), "i")])

        touched = three.store.bury("one")

        assert sorted(touched) == [RUN, OTHER, key_of(3)]
        assert sorted(three.store.owned_inboxes("two")) == [OTHER, key_of(4)]

    def test_waiting_tasks_outlive_the_session_that_dispatched_them(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, 1)])

        two.store.bury("one")

        assert numbers(two.claim(5)) == [1]

    def test_a_session_may_bury_itself_when_it_ends(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, 1)], slots=1)

        assert one.store.bury("one") == [RUN]

        assert [row.id for row in two.store.sessions()] == ["two"]
        assert two.store.sweep("two", NOW).stranded == [RUN]

    def test_no_session_that_renews_is_known_to_be_dead(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        two.store.bury("two")

        assert one.store.dead_sessions() == []


class ElectionsContract:
    """A role has one living holder at a time."""

    def test_the_first_who_asks_holds_the_role_until_it_is_buried(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")

        asked = [p.store.elect("sweeper", p.id) for p in (one, two, one, two)]
        two.store.bury("one")
        after = two.store.elect("sweeper", "two")

        assert asked == [True, False, True, False]
        assert after

    def test_roles_are_independent(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")

        assert one.store.elect("sweeper", "one")
        assert two.store.elect("keeper", "two")
        assert not one.store.elect("keeper", "one")

    def test_burying_another_session_leaves_the_holder_alone(self, make_store: MakeStore) -> None:
        one, three = Party(make_store(), "one"), Party(make_store(), "three")
        Party(make_store(), "two")
        one.store.elect("sweeper", "one")

        three.store.bury("two")

        assert not three.store.elect("sweeper", "three")
        assert one.store.elect("sweeper", "one")


class InboxContract:
    """Inputs wait in their run's inbox, each once, until an append that decides them consumes them."""

    def test_inputs_are_read_back_oldest_first(self, make_store: MakeStore) -> None:
        one, other = Party(make_store(), "one"), make_store()
        one.start()
        values = [signal_of(RUN, text) for text in ("z", "a", "m", "0")]

        assert one.store.post(values[:2]) == [True, True]
        assert other.post(values[2:]) == [True, True]

        assert one.store.inbox(RUN) == one.load().inbox == other.inbox(RUN) == values

    def test_an_input_of_an_id_that_waits_changes_nothing(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()
        first, again = signal_of(RUN, "i", "first"), signal_of(RUN, "i", "again")

        assert one.store.post([first, again]) == [True, True]
        assert one.store.post([again]) == [True]

        assert one.store.inbox(RUN) == [first]

    def test_runs_do_not_share_input_ids(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(RUN)
        one.start(OTHER)

        one.store.post([signal_of(RUN, "i"), signal_of(OTHER, "i")])
        one.append(RUN, consumed=["i"])

        assert one.store.inbox(RUN) == []
        assert one.store.inbox(OTHER) == [signal_of(OTHER, "i")]

    def test_an_input_for_a_run_that_never_was_is_not_taken(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(RUN)

        assert one.store.post([signal_of(OTHER, "i"), signal_of(RUN, "i")]) == [False, True]
        assert one.store.inbox(OTHER) == []

    def test_inputs_are_taken_by_settled_and_held_runs_and_those_of_nobody(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(RUN, hold=1)
        one.start(OTHER, release=True)
        one.start(key_of(3))
        one.settle(key_of(3))

        assert one.store.post([signal_of(key, "i") for key in (RUN, OTHER, key_of(3))]) == [True] * 3

    def test_an_append_consumes_its_inputs_and_no_others(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()
        one.store.post([signal_of(RUN, text) for text in ("a", "b", "c")])

        one.append(consumed=["b", "unknown"])

        assert [value.id for value in one.store.inbox(RUN)] == ["a", "c"]

    def test_an_append_that_does_not_take_effect_consumes_nothing(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start()
        one.store.post([signal_of(RUN, "a")])

        assert one.commit(append_of(RUN, 5, consumed=["a"]))[0].status == "conflict"
        assert two.commit(append_of(RUN, 1, consumed=["a"]))[0].status == "conflict"

        assert [value.id for value in one.store.inbox(RUN)] == ["a"]

    def test_owned_inboxes_have_what_waits_oldest_first(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()
        one.start(OTHER)
        inputs = [signal_of(RUN, "z"), signal_of(OTHER, "m"), signal_of(RUN, "a")]
        one.store.post(inputs)

        assert one.store.owned_inboxes("one") == {RUN: [inputs[0], inputs[2]], OTHER: [inputs[1]]}

    def test_owned_inboxes_are_those_of_the_sessions_own_runs(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        keys = [key_of(number) for number in range(1, 5)]
        one.start(keys[0])
        one.start(keys[1])
        two.start(keys[2])
        two.start(keys[3], release=True)
        one.store.post([signal_of(key, "i") for key in keys[1:]])

        assert list(one.store.owned_inboxes("one")) == [keys[1]]
        assert list(one.store.owned_inboxes("two")) == [keys[2]]
        one.append(keys[1], consumed=["i"])
        assert list(one.store.owned_inboxes("one")) == []

    def test_payload_bytes_of_an_input_are_opaque(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()
        value = InboxInput("raw", RUN, bytes(range(256)))

        one.store.post([value])

        assert one.store.inbox(RUN) == [value]


class OwnersContract:
    """A run has at most one owner, who alone may append to it."""

    def test_a_run_of_nobody_is_acquired_and_loaded(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, 1)], release=True)
        two.store.post([signal_of(RUN, "i")])

        acquired = two.store.acquire("two", RUN)

        assert acquired is not None
        assert acquired.owner == "two"
        assert snapshot(acquired.run) == snapshot(two.load())
        assert two.load().owner == "two"
        assert two.commit(append_of(RUN, 1))[0].status == "committed"

    def test_a_run_of_another_session_is_not_acquired(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start()

        acquired = two.store.acquire("two", RUN)

        assert acquired is not None
        assert (acquired.run, acquired.owner) == (None, "one")
        assert one.commit(append_of(RUN, 1))[0].status == "committed"

    def test_a_session_acquires_its_own_run_again(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()

        for steal in (False, True):
            acquired = one.store.acquire("one", RUN, steal=steal)
            assert acquired is not None
            assert acquired.run is not None
            assert acquired.run.owner == "one"

    def test_a_stolen_run_answers_conflict_to_its_former_owner(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start()
        one.store.post([signal_of(RUN, "i")])

        acquired = two.store.acquire("two", RUN, steal=True)

        assert acquired is not None
        assert acquired.run is not None
        assert one.commit(append_of(RUN, 1))[0].status == "conflict"
        assert list(one.store.owned_inboxes("one")) == []
        assert list(two.store.owned_inboxes("two")) == [RUN]
        assert two.commit(append_of(RUN, 1))[0].status == "committed"

    def test_a_stolen_run_stays_with_the_thief_when_its_former_owner_dies(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start()
        two.store.acquire("two", RUN, steal=True)

        two.store.bury("one")

        assert two.row().owner == "two"

    def test_a_run_that_does_not_exist_is_not_acquired(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")

        assert one.store.acquire("one", RUN) is None
        assert one.store.acquire("one", RUN, steal=True) is None

    def test_a_released_run_is_nobodys_and_others_releases_change_nothing(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(RUN)
        one.start(OTHER)

        two.store.release("two", [RUN, key_of(9)])
        assert one.row(RUN).owner == "one"
        one.store.release("one", [RUN])

        assert [one.row(key).owner for key in (RUN, OTHER)] == ["", "one"]

    def test_the_append_that_gives_a_run_back_may_settle_it(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()

        one.append(status="succeeded", release=True)

        assert (one.row().owner, one.row().status) == ("", "succeeded")

    def test_tasks_of_an_append_that_gives_the_run_back_are_handed_over(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")

        answer = one.start(tasks=[task_of(RUN, 1)], release=True, slots=1)

        assert numbers(answer.leased) == [1]
        assert one.row().owner == ""

    def test_a_sweep_finds_the_runs_of_nobody_whose_inbox_waits(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        keys = [key_of(number) for number in range(1, 6)]
        for key in keys:
            one.start(key)
        one.store.release("one", keys[1:])
        one.store.post([signal_of(key, "i") for key in (keys[0], keys[2], keys[4])])

        assert sorted(two.store.sweep("two", NOW).stranded) == [keys[2], keys[4]]
        two.store.acquire("two", keys[2])
        assert two.store.sweep("two", NOW).stranded == [keys[4]]
        two.store.release("two", [keys[2]])
        assert sorted(two.store.sweep("two", NOW).stranded) == [keys[2], keys[4]]


class WakesContract:
    """Wake-ups go to sessions of others that wait: hints, each address once."""

    def test_sessions_that_wait_for_tasks_are_woken_for_tasks(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one", waits=WAITS_TASKS)
        Party(make_store(), "two", waits=WAITS_TASKS)
        Party(make_store(), "three", waits=0)
        Party(make_store(), "four", waits=WAITS_TASKS)

        assert sorted(one.store.wakes("one", tasks=True, keys=[])) == ["wake-four", "wake-two"]
        assert one.store.wakes("one", tasks=False, keys=[]) == []

    def test_sessions_that_wait_for_changes_are_always_woken(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one", waits=WAITS_CHANGES)
        two = Party(make_store(), "two")
        two.start()
        two.store.renew("two", WAITS_CHANGES | WAITS_TASKS)

        for tasks, keys in itertools.product((True, False), ([], [RUN])):
            assert one.store.wakes("one", tasks=tasks, keys=keys) == ["wake-two"]

    def test_the_owners_of_runs_are_woken_whatever_they_wait_for(self, make_store: MakeStore) -> None:
        one, two, three = (Party(make_store(), name) for name in ("one", "two", "three"))
        two.start(RUN)
        two.start(OTHER)
        three.start(key_of(3))
        one.start(key_of(4))
        three.start(key_of(5), release=True)

        keys = [RUN, OTHER, key_of(4), key_of(5), key_of(99)]

        assert one.store.wakes("one", tasks=False, keys=keys) == ["wake-two"]

    def test_buried_sessions_and_those_without_an_address_are_not_woken(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        two = Party(make_store(), "two", waits=WAITS_TASKS)
        Party(make_store(), "three", waits=WAITS_TASKS, wake="")
        two.start()
        one.store.bury("two")

        assert one.store.wakes("one", tasks=True, keys=[RUN]) == []

    def test_two_sessions_of_one_address_are_woken_once(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        for name in ("two", "three"):
            Party(make_store(), name, waits=WAITS_TASKS, wake="shared")

        assert one.store.wakes("one", tasks=True, keys=[]) == ["shared"]


class IsolationContract:
    """What a caller does to the objects it gave or got does not reach the store."""

    def test_rows_that_were_read_are_the_readers_own(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        given = SessionRow("mine", "w", "", 0, 0, ["act"])
        one.store.open_session(given)
        one.start(tasks=[task_of(RUN, 1)])
        before = snapshot(one.load())

        given.beat = 99
        loaded = one.load()
        loaded.tasks[0].task.lease = 99
        loaded.rows.clear()
        loaded.inbox.append(signal_of(RUN, "x"))
        for row in one.store.sessions():
            row.waits = 99
        one.row().labels["x"] = "y"

        assert snapshot(one.load()) == before
        assert [(row.beat, row.waits) for row in one.store.sessions()] == [(0, 0), (0, 0)]
        assert one.row().labels == {}

    def test_a_list_that_was_answered_is_the_callers_own(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()
        one.store.post([signal_of(RUN, "i")])

        for found in (one.store.inbox(RUN), one.store.owned_inboxes("one"), one.store.find(RUN)):
            found.clear()
        one.store.rows(RUN, 0).clear()

        assert len(one.store.inbox(RUN)) == len(one.store.find(RUN)) == len(one.store.rows(RUN, 0)) == 1
        assert list(one.store.owned_inboxes("one")) == [RUN]

    def test_loaded_runs_are_plain_data(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1)])

        loaded = one.load()

        assert msgspec.convert(msgspec.to_builtins(loaded), type(loaded)) == loaded
