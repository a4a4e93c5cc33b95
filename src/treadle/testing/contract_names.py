# ruff: noqa: D102 - a test's name is the promise
"""The store contract: names that one run at a time holds, and the lines of those that wait for them."""

from __future__ import annotations

import pytest

from treadle.core.inputs import AnyInput, Cancel, Turn, decode_input
from treadle.store.base import Store
from treadle.testing.contract_kit import OTHER, RUN, MakeStore, Party, append_of, key_of, report_of, start_of, task_of

_THIRD = key_of(3)


def _inputs(store: Store, key: str) -> list[AnyInput]:
    return [decode_input(value.body) for value in store.inbox(key)]


class NamesContract:
    """Appends enter and leave the lines of names in their own transactions."""

    def test_a_name_is_taken_by_one_run(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")

        (first,) = one.commit(start_of(RUN, names=[("n", "take")]))
        (second,) = two.commit(start_of(OTHER, names=[("n", "take")]))
        (other,) = two.commit(start_of(_THIRD, names=[("m", "take")]))

        assert (first.status, list(first.told)) == ("committed", [])
        assert (second.status, second.holder, second.leased, second.queued) == ("held", RUN, [], 0)
        assert other.status == "committed"
        assert two.store.load(OTHER) is None
        assert two.store.line("n") == one.store.line("n") == [RUN]
        assert one.store.inbox(RUN) == []

    def test_a_run_that_is_there_takes_no_name_of_another(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(RUN, names=[("n", "take")])
        one.start(OTHER)

        (answer,) = one.commit(append_of(OTHER, 1, names=[("n", "take")]))
        (again,) = one.commit(append_of(RUN, 1, names=[("n", "take")]))

        assert (answer.status, answer.holder, again.status) == ("held", RUN, "committed")
        assert one.row(OTHER).version == 1
        assert one.store.line("n") == [RUN]

    def test_a_name_is_taken_once_in_a_group(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")

        answers = one.commit(
            start_of(RUN, names=[("n", "take")]), start_of(OTHER, names=[("n", "take")]), start_of(_THIRD)
        )

        assert [answer.status for answer in answers] == ["committed", "held", "committed"]

    def test_what_is_held_ends_no_task_and_makes_no_run(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        (task,) = one.start(RUN, tasks=[task_of(RUN, 1)], slots=1, names=[("n", "take")]).leased

        (answer,) = one.commit(start_of(OTHER, names=[("n", "take")], report=report_of(task)))

        assert answer.status == "held"
        assert [row.task.number for row in one.load().tasks] == [1]
        assert one.store.inbox(RUN) == []

    def test_an_id_that_is_taken_goes_before_a_name(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(RUN, id="x", names=[("n", "take")])

        (answer,) = one.commit(start_of(OTHER, id="x", names=[("n", "take")]))

        assert answer.status == "exists"

    def test_the_first_in_a_line_is_told_at_once(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")

        answer = one.start(RUN, names=[("n", "line")])

        assert answer.told == [RUN]
        assert _inputs(one.store, RUN) == [Turn(name="n")]

    def test_the_next_in_line_is_told_when_the_one_before_it_leaves(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(RUN, names=[("n", "take")])
        two.start(OTHER, names=[("n", "line")])
        two.start(_THIRD, names=[("n", "line")])
        assert _inputs(two.store, OTHER) == _inputs(two.store, _THIRD) == []

        answer = one.append(names=[("n", "leave")], status="succeeded")

        assert answer.told == [OTHER]
        assert _inputs(two.store, OTHER) == [Turn(name="n")]
        assert _inputs(two.store, _THIRD) == []
        assert one.store.line("n") == [OTHER, _THIRD]

    def test_one_that_leaves_from_the_middle_of_a_line_moves_nobody(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(RUN, names=[("n", "take")])
        one.start(OTHER, names=[("n", "line")])
        one.start(_THIRD, names=[("n", "line")])

        assert not one.append(OTHER, names=[("n", "leave")], status="cancelled").told
        assert one.append(RUN, names=[("n", "leave")], status="succeeded").told == [_THIRD]
        assert _inputs(one.store, OTHER) == []

    def test_entering_again_changes_nothing(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(RUN, names=[("n", "take")])
        one.start(OTHER, names=[("n", "line")])

        answers = [one.append(names=[("n", verb)]) for verb in ("take", "line", "replace")]
        leaves = one.append(OTHER, names=[("m", "leave")])

        assert [(answer.status, list(answer.told)) for answer in [*answers, leaves]] == [("committed", [])] * 4
        assert one.store.line("n") == [RUN, OTHER]
        assert _inputs(one.store, OTHER) == []

    def test_one_that_replaces_has_all_before_it_cancelled(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(RUN, names=[("n", "take")])
        one.start(OTHER, names=[("n", "line")])

        answer = one.start(_THIRD, names=[("n", "replace")])

        assert answer.told == [RUN, OTHER]
        assert _inputs(one.store, RUN) == _inputs(one.store, OTHER) == [Cancel(hard=True)]
        assert _inputs(one.store, _THIRD) == []
        assert one.store.line("n") == [RUN, OTHER, _THIRD]

    def test_a_run_that_leaves_and_enters_is_told_again(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(RUN, names=[("n", "line")])
        one.append(names=[("n", "leave")], status="succeeded", consumed=[one.store.inbox(RUN)[0].id])

        answer = one.append(names=[("n", "line")])

        assert answer.told == [RUN]
        assert _inputs(one.store, RUN) == [Turn(name="n")]

    @pytest.mark.parametrize("reopened", [False, True])
    def test_names_outlive_the_process_that_took_them(self, make_store: MakeStore, reopened: bool) -> None:
        store = make_store()
        one = Party(store, "one")
        one.start(RUN, names=[("n", "take")])
        store.bury("one")
        other = make_store() if reopened else store

        (answer,) = Party(other, "two").commit(start_of(OTHER, names=[("n", "take")]))

        assert answer.status == "held"

    def test_a_deleted_run_leaves_all_lines(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(RUN, names=[("n", "take"), ("m", "take")])
        one.start(OTHER, names=[("n", "line")])
        one.append(status="succeeded")

        assert one.store.delete(RUN) == "deleted"

        assert one.store.line("n") == [OTHER]
        assert one.store.line("m") == []
        assert _inputs(one.store, OTHER) == [Turn(name="n")]

    def test_several_names_are_taken_together_or_not_at_all(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(RUN, names=[("n", "take")])

        (answer,) = one.commit(start_of(OTHER, names=[("m", "take"), ("n", "take")]))

        assert (answer.status, answer.holder) == ("held", RUN)
        assert one.store.line("m") == []
