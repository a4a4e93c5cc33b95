# ruff: noqa: D102 - a test's name is the promise
"""The store contract: what an append does to other runs, and runs that belong to others."""

from __future__ import annotations

from typing import Any

import pytest

from treadle.core.commands import Task
from treadle.store.base import Append, RunQuery
from treadle.testing.contract_kit import (
    NOW,
    OTHER,
    RUN,
    MakeStore,
    Party,
    append_of,
    head_of,
    key_of,
    report_of,
    signal_of,
    start_of,
    task_of,
)

_THIRD = key_of(3)


def _child(key: str, parent: str = RUN, **fields: Any) -> Append:
    """The append that makes a run called by another one."""
    detached = fields.pop("detached", False)
    return start_of(key, head=head_of(key, parent=f"{parent}/step", detached=detached), **fields)


def _leased(party: Party) -> Task:
    (task,) = party.start(tasks=[task_of(RUN, 1)], slots=1).leased
    return task


class CallsContract:
    """An append that makes a run may end the task that asked for it; any append may tell other runs."""

    def test_a_run_is_made_and_the_task_that_asked_for_it_is_ended_together(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        task = _leased(one)
        report = report_of(task, payloads=[("d", b"1")])

        (answer,) = one.commit(_child(OTHER, report=report))

        assert answer.status == "committed"
        assert one.load().tasks == []
        assert one.store.inbox(RUN) == [report.input]
        assert one.store.payloads(RUN, ["d"]) == {"d": b"1"}
        assert one.load(OTHER).head.parent == f"{RUN}/step"
        assert one.report(report) == [False]

    @pytest.mark.parametrize("trouble", ["token", "session", "interrupt", "revoke", "ended"])
    def test_no_run_is_made_for_a_task_that_is_no_longer_wanted(self, make_store: MakeStore, trouble: str) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        task = _leased(one)
        report = report_of(task, lease=task.lease + (trouble == "token"))
        if trouble in ("interrupt", "revoke", "ended"):
            changes: dict[str, dict[str, Any]] = {
                "interrupt": {"interrupts": [1]},
                "revoke": {"revoke": True},
                "ended": {"ended": [1]},
            }
            one.append(**changes[trouble])
        before = one.store.load(RUN)

        maker = two if trouble == "session" else one
        (answer,) = maker.commit(_child(OTHER, report=report))

        assert (answer.status, answer.leased, answer.queued) == ("fenced", [], 0)
        assert one.store.load(OTHER) is None
        assert one.store.find(f"run-{OTHER}") == []
        assert one.store.load(RUN) == before

    def test_a_run_that_is_there_ends_no_task(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        task = _leased(one)
        one.start(OTHER)

        (answer,) = one.commit(_child(OTHER, report=report_of(task)))

        assert answer.status == "exists"
        assert [row.task.number for row in one.load().tasks] == [1]
        assert one.store.inbox(RUN) == []

    def test_runs_are_made_for_several_tasks_in_one_call(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        first, second = one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)], slots=2).leased

        answers = one.commit(
            _child(OTHER, report=report_of(first)),
            append_of(RUN, 1),
            _child(_THIRD, report=report_of(second, lease=7)),
        )

        assert [answer.status for answer in answers] == ["committed", "committed", "fenced"]
        assert [row.task.number for row in one.load().tasks] == [2]

    def test_an_append_posts_into_the_inboxes_of_other_runs(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start()
        two.start(OTHER)
        posts = [signal_of(OTHER, "i1"), signal_of(key_of(99), "i2"), signal_of(OTHER, "i3")]

        one.append(posts=posts)
        one.append(posts=[signal_of(OTHER, "i1", "again")])

        assert one.store.inbox(OTHER) == [posts[0], posts[2]]
        assert list(two.store.owned_inboxes("two")) == [OTHER]

    def test_an_append_without_effect_posts_nothing(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()
        one.start(OTHER)

        answers = one.commit(
            append_of(RUN, 5, posts=[signal_of(OTHER, "i1")]), append_of(RUN, 1, posts=[signal_of(OTHER, "i2")])
        )

        assert [answer.status for answer in answers] == ["conflict", "committed"]
        assert [value.id for value in one.store.inbox(OTHER)] == ["i2"]

    def test_a_run_that_is_posted_to_and_owned_by_nobody_is_found_by_a_sweep(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(OTHER, release=True)

        one.start(posts=[signal_of(OTHER, "i1")])

        assert one.store.sweep("one", NOW).stranded == [OTHER]

    def test_the_runs_that_a_run_has_called_are_listed(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()
        one.commit(_child(OTHER), _child(_THIRD, OTHER))

        assert [row.key for row in one.store.runs(RunQuery(parent=RUN))] == [OTHER]
        assert [row.key for row in one.store.runs(RunQuery(parent=OTHER))] == [_THIRD]
        assert one.store.runs(RunQuery(parent=_THIRD)) == []
        assert (one.row().parent, one.row(OTHER).parent) == ("", f"{RUN}/step")

    def test_a_run_is_open_while_one_below_it_is(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()
        one.commit(_child(OTHER), _child(_THIRD, OTHER))
        one.settle()
        one.settle(OTHER)

        assert one.store.delete(RUN) == "open"
        assert one.store.delete(OTHER) == "open"

        one.settle(_THIRD)
        assert one.store.delete(RUN) == "deleted"
        assert one.store.runs(RunQuery()) == []
        assert [one.store.delete(key) for key in (OTHER, _THIRD)] == ["missing", "missing"]
        (answer,) = one.commit(_child(OTHER))
        assert answer.status == "refused"
        assert one.store.check().problems == []

    def test_a_detached_run_stays_when_its_parent_is_deleted(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()
        one.commit(_child(OTHER, detached=True))
        one.settle()

        assert one.store.delete(RUN) == "deleted"

        assert one.row(OTHER).status == "running"

    def test_a_child_may_be_deleted_by_itself(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()
        one.commit(_child(OTHER, status="succeeded"))

        assert one.store.delete(OTHER) == "deleted"

        one.settle()
        assert one.store.delete(RUN) == "deleted"
