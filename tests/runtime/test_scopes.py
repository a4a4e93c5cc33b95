"""What is shown of blocks that open their content while the run goes on: rows, iterations, branches."""

from __future__ import annotations

import msgspec
import pytest
from tests.runtime.story import Story, step

from treadle.core import inputs as inp
from treadle.core.plan import (
    Body,
    Branch,
    Choose,
    Const,
    Gather,
    Group,
    Holds,
    LaneValue,
    ListOf,
    Phase,
    Phases,
    Predicate,
    Ref,
    RetryPolicy,
    Rule,
    SignalValue,
)
from treadle.errors import StepNotFoundError
from treadle.runtime.inspection import Snapshot
from treadle.runtime.report import render_report, render_tree, scope_text
from treadle.runtime.why import CODES


def scan(count: int = 3, **options: object) -> Gather:
    body = Body(blocks=[step("fetch"), step("parse", "fetch")], output=Ref("parse"))
    return msgspec.structs.replace(Gather(id="scan", items=ListOf([Const(0)] * count), body=body), **options)


def deploy(**options: object) -> Phases:
    rules = (
        Rule(id="ok", move="advance", when=Holds("a == 1", {"a": LaneValue("a", default=1)})),
        Rule(id="asked", move="jump", target="install", when=Predicate("ask", {})),
        Rule(id="no", move="stop"),
    )
    plan = Phases(
        id="deploy",
        phases=[
            Phase(id="install", blocks=[step("a"), step("b"), step("bg")], detached=("bg",), policy="next"),
            Phase(id="verify", blocks=[step("v")], policy="next", retry=RetryPolicy(attempts=2, initial=3.0)),
            Phase(id="done", blocks=[step("d")], policy="next"),
        ],
        policies={"next": rules},
        state={"n": Const(0)},
    )
    return msgspec.structs.replace(plan, **options)


def route() -> Choose:
    yes = Branch(id="yes", when=Predicate("ask", {}), blocks=[step("go")])
    return Choose(id="route", branches=[yes, Branch(id="no", blocks=[step("halt")])])


def said(story: Story, at: str) -> list[tuple[str, str]]:
    return [(reason.code, reason.message) for reason in story.why(at) if reason.tense == "now"]


# -- the snapshot ------------------------------------------------------------------------------------------------------


def test_a_gather_is_shown_with_how_far_it_is_and_its_iterations_around_their_steps() -> None:
    story = Story(scan(5, limit=2, mode="all"))
    story.end("scan[0]/fetch")
    story.end("scan[0]/parse")
    story.fail("scan[1]/fetch")

    view = story.look()
    gather = view.scope("scan")

    assert gather is not None
    assert gather.gather is not None
    assert (gather.kind, gather.status, gather.gather.count, gather.gather.opened) == ("gather", "open", 5, 4)
    assert gather.gather.iterations == {"succeeded": 1, "failed": 1, "open": 2}
    assert [(s.address, s.kind, s.index, s.status, s.scope) for s in view.scopes[1:3]] == [
        ("scan[0]", "iteration", 0, "succeeded", "scan"),
        ("scan[1]", "iteration", 1, "failed", "scan"),
    ]
    assert (view.scopes[1].opened_at, view.scopes[1].finished_at) == (100.0, 104.0)
    assert [step.scope for step in view.steps[:3]] == ["scan[0]", "scan[0]", "scan[1]"]
    assert sum(view.counts.values()) == len(view.steps) == 8


def test_phases_are_shown_with_their_rows_decisions_state_and_detached_cells() -> None:
    story = Story(deploy())
    story.end("deploy/install/a", result="=1")
    story.end("deploy/install/b")

    view = story.look()
    block = view.scope("deploy")

    assert block is not None
    assert block.phases is not None
    assert (block.phases.phase, block.phases.step, block.phases.state) == ("verify", 1, {"n": "=1"})
    assert block.phases.pending == {"bg": 1}
    assert [(s.address, s.index, s.status) for s in view.scopes if s.kind == "row"] == [
        ("deploy/install", 0, "succeeded"),
        ("deploy/verify", 1, "open"),
    ]
    assert [(d.phase, d.step, d.move, d.rule, d.target, d.decided_at) for d in view.decisions] == [
        ("install", 0, "advance", "ok", "verify", 104.0)
    ]
    assert {step.address: step.detached for step in view.steps} == {
        "deploy/install/a": False,
        "deploy/install/b": False,
        "deploy/install/bg": True,
        "deploy/verify/v": False,
    }


def test_a_row_that_is_tried_again_says_so_and_its_failure_does_not_fail_the_run() -> None:
    story = Story(deploy(start="verify", policies={"next": (Rule(id="end", move="stop"),)}))
    story.fail("deploy/verify/v")
    before = story.look().failures[0]
    story.end("deploy/~wait")
    story.end("deploy/verify#2/v")

    view = story.look()

    assert view.status == "succeeded"
    assert [(s.address, s.again) for s in view.scopes if s.kind == "row"] == [
        ("deploy/verify", False),
        ("deploy/verify#2", True),
    ]
    assert (before.address, before.optional) == ("deploy/verify/v", False)
    assert [(f.address, f.optional) for f in view.failures] == [("deploy/verify/v", True)]
    assert "deploy/verify/v  error: no  (does not fail the run)" in render_report(view)


def test_evaluations_are_apart_from_the_steps_of_the_workflow() -> None:
    story = Story(route())
    asked = story.look()
    story.end("route/~when", result="=false")
    chosen = story.look()

    assert (asked.steps, [step.address for step in asked.evaluations]) == ([], ["route/~when"])
    assert asked.step("route/~when") is asked.evaluations[0]
    assert "evaluates a branch's condition" in render_report(asked)
    assert [scope.branch for scope in (*asked.scopes, *chosen.scopes)] == [None, "no", None]
    assert sum(chosen.counts.values()) == 1
    assert "~when" not in render_report(chosen)
    assert "~when" in render_report(chosen, whole=True)


def test_a_block_that_fails_by_itself_is_among_the_failures() -> None:
    story = Story(deploy(policies={"next": ()}, start="done"))
    story.end("deploy/done/d")

    view = story.look()

    assert view.status == "failed"
    assert [(f.address, f.code, f.attempt, f.finished_at) for f in view.failures] == [("deploy", "no_rule", 0, 102.0)]


def test_a_block_that_waits_is_among_what_is_blocked() -> None:
    story = Story(step("a"), scan(after=("a",)), Choose(id="c", branches=[Branch(id="b", when=SignalValue("go"))]))

    view = story.look()

    assert [(item.address, item.waiting_on, item.missing_signals) for item in view.blocked] == [
        ("scan", ["a"], []),
        ("c", [], ["go"]),
    ]
    assert view.signals[0].waiting == ["c"]
    assert "scan[]" in render_tree(view)


def test_a_failure_that_a_gather_can_do_without_does_not_fail_the_run() -> None:
    story = Story(scan(2, mode="first"))
    story.fail("scan[0]/fetch")
    story.end("scan[1]/fetch")
    story.end("scan[1]/parse")

    view = story.look()

    assert view.status == "succeeded"
    assert [(f.address, f.optional) for f in view.failures] == [("scan[0]/fetch", True)]


def test_a_snapshot_with_blocks_is_json_and_comes_back() -> None:
    story = Story(deploy(), scan(), route())
    story.end("deploy/install/a", result="=1")
    story.end("deploy/install/b")

    view = story.look()

    assert msgspec.json.decode(msgspec.json.encode(view), type=Snapshot) == view


# -- text --------------------------------------------------------------------------------------------------------------


def test_the_tree_shows_scopes_around_what_they_hold() -> None:
    story = Story(deploy(), Group(id="g", blocks=[step("x"), step("y", "x")]), step("z", after=("g",)))
    story.end("deploy/install/a", result="=1")
    story.end("deploy/install/b")

    assert render_tree(story.look()).splitlines() == [
        "Run run-1 [running]",
        "  ▷ deploy/  at verify (step 1)  pending: bg 1",
        "    ✓ deploy/install/  step 0",
        "      ✓ deploy/install/a  1.00s",
        "      ✓ deploy/install/b  1.00s",
        "      ⋯ deploy/install/bg  detached",
        "    ▷ deploy/verify/  step 1",
        "      ⋯ deploy/verify/v",
        "  ▷ g/",
        "    ⋯ g/x",
        "      · g/y",
        "  · z",
    ]


def test_the_report_has_the_decisions_and_the_state() -> None:
    story = Story(deploy())
    story.end("deploy/install/a", result="=1")
    story.end("deploy/install/b")

    lines = render_report(story.look()).splitlines()

    assert lines[3].split() == ["step", "status", "queue", "exec"]
    assert lines[4].split() == ["▷", "deploy/", "open", "at", "verify", "(step", "1)", "pending:", "bg", "1"]
    assert lines[5].split() == ["✓", "deploy/install/", "succeeded", "4.00s", "step", "0"]
    assert "  deploy: install (step 0) → verify  advance  by rule ok of next" in lines
    assert lines[lines.index("state of deploy:") + 1] == "  n = 1"


def test_of_many_iterations_those_that_matter_are_listed_and_the_rest_is_counted() -> None:
    story = Story(scan(1000, limit=200, mode="all"))
    for index in range(100):
        story.end(f"scan[{index}]/fetch")
        if index == 40:
            story.fail(f"scan[{index}]/parse")
        else:
            story.end(f"scan[{index}]/parse")

    view = story.look()
    lines = render_tree(view).splitlines()

    assert lines[1].endswith("opened 300 of 1,000 · 99 succeeded · 1 failed · 200 open")
    assert any("✗ scan[40]" in line for line in lines)
    assert lines[-1] == "    … 290 more iterations: 191 open · 99 succeeded"
    assert len(lines) < 40
    assert len(render_tree(view, whole=True).splitlines()) == 2 + 300 * 3


def test_of_many_rows_the_last_are_listed() -> None:
    again = (Rule(id="again", move="repeat"),)
    story = Story(deploy(start="done", policies={"next": again}))
    story.end("deploy/done/d")
    for number in range(2, 30):
        story.end(f"deploy/done#{number}/d")

    report = render_report(story.look())

    assert "… 20 more earlier rows: 20 succeeded" in report
    assert "▷ deploy/done#30/" in report
    assert "deploy/done#20/" not in report
    assert "  … 9 earlier" in report


def test_one_scope_can_be_shown_alone() -> None:
    story = Story(deploy(), scan(20))
    story.end("deploy/install/a", result="=1")
    story.end("deploy/install/b")
    view = story.look()
    iteration, block = view.scope("scan[19]"), view.scope("deploy")

    assert iteration is not None
    assert block is not None
    assert [line.split()[1] for line in scope_text(view, iteration).splitlines()[1:]] == [
        "scan[19]",
        "scan[19]/fetch",
        "scan[19]/parse",
    ]
    assert "state of deploy:" in scope_text(view, block)
    assert "scan" not in scope_text(view, block)


# -- why ---------------------------------------------------------------------------------------------------------------


def test_why_of_an_iteration_that_is_not_open_yet() -> None:
    story = Story(scan(5, limit=2))

    assert said(story, "scan[4]/fetch") == [
        ("iteration", "scan has opened 2 of 5 items, and item 4 is not one of them"),
        (
            "limit",
            "scan: opened 2 of 5 items; 2 are under way (its limit is 2), and the next follow as they end",
        ),
        ("content", "scan: waits for what it has opened: scan[0], scan[1]"),
    ]
    with pytest.raises(StepNotFoundError):
        story.why("scan[5]/fetch")
    with pytest.raises(StepNotFoundError):
        story.why("scan[4]/other")


def test_why_of_an_iteration_whose_items_are_not_there() -> None:
    story = Story(step("a"), Gather(id="scan", items=Ref("a"), body=Body(blocks=[step("x")])))
    waiting = said(story, "scan[0]/x")
    story.end("a", result="@0123456789")

    assert waiting == [("iteration", "the items of scan are not known yet"), ("needs", "scan: needs a (dispatched)")]
    assert said(story, "scan[0]/x")[1] == (
        "evaluation",
        "scan: its items are being looked at by a worker; ask why scan/~items is not done",
    )


def test_why_of_a_row_that_is_not_reached() -> None:
    story = Story(deploy())
    story.end("deploy/install/a", result="=1")
    story.end("deploy/install/b")

    assert said(story, "deploy/done/d")[0] == (
        "row",
        "deploy has not come to phase 'done'; it stands at verify (step 1)",
    )
    assert said(story, "deploy/verify#2")[0][0] == "row"
    with pytest.raises(StepNotFoundError):
        story.why("deploy/other/d")


def test_why_of_a_row_that_was_never_reached() -> None:
    story = Story(deploy(policies={"next": (Rule(id="end", move="stop"),)}, start="done"))
    story.end("deploy/done/d")

    assert said(story, "deploy/verify/v") == [
        ("finished", "the run succeeded; nothing more starts"),
        ("row", "deploy succeeded and did not come to phase 'verify' for this entry"),
    ]


def test_why_of_a_row_that_waits_for_its_retry() -> None:
    story = Story(deploy(start="verify"))
    story.fail("deploy/verify/v")

    reason = story.why("deploy")[0]

    assert (reason.code, reason.message) == ("backoff", "deploy/verify failed and is tried again after a delay")
    assert reason.until == 105.0


def test_why_of_a_block_that_waits_for_a_rule() -> None:
    story = Story(deploy(start="done"))
    story.end("deploy/done/d")

    assert said(story, "deploy") == [
        ("evaluation", "a rule of its policy is being evaluated by a worker; ask why deploy/~rule is not done")
    ]
    assert ("evaluation", "deploy") in [(reason.code, reason.step) for reason in story.why()]
    assert "no_worker" in story.codes("deploy/~rule")


def test_why_of_a_branch() -> None:
    story = Story(route())
    open_ = said(story, "route/yes/go")
    story.end("route/~when", result="=false")

    assert [code for code, _ in open_] == ["branch", "evaluation"]
    assert said(story, "route/yes/go") == [("branch", "route has chosen branch 'no', not 'yes'")]


def test_why_of_a_cell_that_was_cancelled_because_its_row_failed() -> None:
    story = Story(deploy())
    story.fail("deploy/install/a")

    assert said(story, "deploy/install/b")[-1] == (
        "stopped",
        "cancelled: its row deploy/install failed because of deploy/install/a",
    )


def test_why_of_what_a_gather_did_not_need_any_more() -> None:
    first = Story(scan(2, mode="first"))
    first.end("scan[1]/fetch")
    first.end("scan[1]/parse")
    error = Story(scan(2))
    error.fail("scan[1]/fetch")

    assert said(first, "scan[0]/parse")[-1] == (
        "stopped",
        "cancelled: the first success is enough for scan: scan[1]",
    )
    assert said(error, "scan[0]/fetch")[-1] == ("stopped", "cancelled: its gather scan failed because of scan[1]")
    assert said(error, "scan[0]")[-1][0] == "stopped"


def test_why_of_a_detached_cell_that_its_block_cancelled() -> None:
    story = Story(deploy(policies={"next": (Rule(id="end", move="stop"),)}, on_finish="cancel"))
    story.end("deploy/install/a")
    story.end("deploy/install/b")

    assert said(story, "deploy/install/bg")[-1] == (
        "stopped",
        "cancelled: deploy has ended, and cancels its detached cells then",
    )


def test_why_of_a_block_with_an_outcome() -> None:
    story = Story(deploy(policies={"next": ()}, start="done"), step("z", after=("deploy",)), scan(after=("z",)))
    story.end("deploy/done/d")

    assert said(story, "deploy")[-1] == (
        "settled",
        "it failed: no_rule: policy 'next' had no matching rule for phase 'done'",
    )
    assert said(story, "scan")[-1] == ("skipped", "it was skipped because of z")


def test_why_of_a_cancelled_block_says_that_it_opens_nothing_more() -> None:
    story = Story(scan(2, limit=1))
    story.lease("scan[0]/fetch")
    story.give(inp.Cancel())

    assert ("cancel", "the run is being cancelled; the block opens nothing more") in said(story, "scan")


def test_every_code_of_blocks_is_listed() -> None:
    story = Story(deploy(), scan(5, limit=2), route())

    assert {reason.code for at in ("deploy", "scan", "scan[4]", "route/no") for reason in story.why(at)} <= CODES.keys()
