"""Snapshots, reasons and reports of runs that the core decided, without any store."""

from __future__ import annotations

import msgspec
import pytest
from tests.runtime.story import OPERATOR, Story, step

from treadle.core import inputs as inp
from treadle.core.decide import Limits
from treadle.core.plan import (
    Const,
    Group,
    Predicate,
    Ref,
    RetryPolicy,
    SignalValue,
    Step,
)
from treadle.errors import StepNotFoundError
from treadle.runtime.inspection import Snapshot
from treadle.runtime.report import clean, duration, preview, render_report, render_tree
from treadle.runtime.why import CODES
from treadle.store.base import InboxInput


def test_a_new_run_shows_what_is_dispatched_and_what_waits_for_what() -> None:
    view = Story(step("a"), step("b", "a"), labels={"team": "x"}).look()

    assert (view.id, view.workflow, view.status, view.labels) == ("run-1", "demo", "running", {"team": "x"})
    assert (view.counts["dispatched"], view.counts["waiting"], view.total_seconds) == (1, 1, None)
    assert [(item.address, item.waiting_on) for item in view.blocked] == [("b", ["a"])]


def test_a_leased_task_is_shown_as_running_with_its_worker_and_progress() -> None:
    story = Story(step("a"))
    story.lease("a")
    story.tasks[story.task("a").number].progress = "half"
    story.now += 4.0

    view = story.step("a")

    assert (view.status, view.shown, view.worker, view.progress) == ("dispatched", "running", "alpha", "half")
    assert (view.queue_seconds, view.exec_seconds) == (1.0, 4.0)


def test_times_of_a_finished_run() -> None:
    story = Story(step("a"), output=Ref("a"))
    story.lease("a")
    story.end("a", result="=7")

    view = story.look()

    assert (view.status, view.total_seconds, view.finished_at) == ("succeeded", 2.0, 102.0)
    assert (view.steps[0].queue_seconds, view.steps[0].exec_seconds, view.steps[0].result) == (1.0, 1.0, "=7")
    assert view.result == "=7"
    assert view.blocked == []


def test_a_step_between_two_attempts_is_retrying_and_its_back_off_is_no_queue_time() -> None:
    story = Story(step("a", retry=RetryPolicy(attempts=3, initial=10.0)))
    story.fail("a", "boom")
    between = story.step("a")
    story.now = (between.not_before or 0.0) - 1.0
    story.lease("a")
    story.end("a")

    after = story.step("a")

    assert (between.shown, between.attempt, between.started_at, between.not_before) == ("retrying", 2, None, 112.0)
    assert between.failure is not None
    assert between.failure.message == "boom"
    assert (after.shown, after.queue_seconds, after.failure) == ("succeeded", 0.0, None)


@pytest.mark.parametrize(
    ("lease", "asked", "expected"),
    [
        (False, inp.Pause(), "paused"),
        (True, inp.Pause(), "pausing"),
        (True, inp.Cancel(), "cancelling"),
        (True, inp.Cancel(hard=True), "cancelling"),
        (False, inp.Cancel(hard=True), "cancelled"),
    ],
)
def test_the_shown_status_of_a_held_or_cancelled_run(lease: bool, asked: inp.AnyInput, expected: str) -> None:
    story = Story(step("a"), step("b", "a"))
    if lease:
        story.lease("a")
    story.give(asked)
    if not lease:
        # A store takes back what waits, and keeps no task of it.
        story.give(inp.Revoked(numbers=list(story.tasks)) if isinstance(asked, inp.Cancel) else inp.Revoked(numbers=[]))
        story.tasks.clear()

    assert story.look().status == expected


def test_a_paused_run_tells_since_when() -> None:
    story = Story(step("a"))
    story.give(inp.Pause())
    held = story.look()
    story.give(inp.Resume())

    assert held.paused_at == 101.0
    assert "paused 0s ago" in render_report(held)
    assert story.look().paused_at is None


def test_failures_have_root_causes_first_and_optional_ones_last() -> None:
    story = Story(step("extra", optional=True), step("late"), step("early"), step("below", "early"))
    story.fail("extra")
    story.fail("early", "first")
    story.fail("late", "second")

    view = story.look()

    assert view.status == "failed"
    assert [(f.address, f.message, f.optional) for f in view.failures] == [
        ("early", "first", False),
        ("late", "second", False),
        ("extra", "no", True),
    ]
    below = story.step("below")
    assert (below.shown, below.skip_reason, below.skip_causes, below.by_condition) == (
        "skipped",
        "upstream",
        ["early"],
        False,
    )


def test_a_skip_by_condition_says_so() -> None:
    story = Story(step("flag"), step("a", when=Ref("flag")), step("b", "a"))
    story.end("flag", result="=false")

    own, below = story.step("a"), story.step("b")

    assert (own.skip_reason, own.by_condition) == ("condition", True)
    assert (below.skip_reason, below.by_condition, below.skip_causes) == ("upstream", True, ["a"])
    assert story.look().status == "succeeded"
    assert "its condition was false" in story.why("a")[1].message
    assert story.why("b")[1].message == "skipped because of a (skipped)"


def test_breakpoints_are_projected_with_what_they_hold() -> None:
    story = Story(
        step("a", break_after=["look"]), step("b", "a", break_before=["stop", "x"]), breakpoints=("look", "stop")
    )
    story.end("a")
    held = story.look()
    story.give(inp.Release(label="look"))
    stood = story.look()
    story.give(inp.Release(label="x"))

    assert [(v.address, v.position, v.state, v.holding, v.armed) for v in held.breakpoints] == [
        ("a", "after", "blocked", ["b"], True),
        ("b", "before", "", [], True),
    ]
    assert held.breakpoints[0].since == 102.0
    assert held.blocked[0].held_by == ["a"]
    assert [(v.address, v.state) for v in stood.breakpoints] == [("a", "released"), ("b", "blocked")]
    assert stood.blocked[0].breakpoint == ["stop", "x"]
    assert "⦿ 1 at a breakpoint" in render_report(stood)
    assert [v.state for v in story.look().breakpoints] == ["released", "released"]


def test_a_final_run_stands_at_no_breakpoint() -> None:
    story = Story(step("a", break_after=["look"]), breakpoints=("look",))
    story.end("a")

    view = story.look()

    assert view.status == "succeeded"
    assert view.breakpoints[0].state == ""


def test_signals_are_projected_with_who_waits() -> None:
    story = Story(step("a", signals=["go"]), Step(id="b", action="do", slots={"x": SignalValue("value")}), step("c"))
    story.give(inp.Signal(name="value", value="=5"), inp.Signal(name="stray", value="=1"))

    signals = story.look().signals

    assert [(s.name, s.delivered, s.delivered_at, s.payload, s.waiting) for s in signals] == [
        ("go", False, None, "", ["a"]),
        ("stray", True, 101.0, "=1", []),
        ("value", True, 101.0, "=5", []),
    ]
    assert story.look().blocked[0].missing_signals == ["go"]


def test_a_step_in_a_waiting_group_waits_for_what_the_group_waits_for() -> None:
    story = Story(step("a"), Group(id="g", blocks=[step("b")], after=("a",)))

    assert story.look().blocked[0].waiting_on == ["a"]
    assert story.why("g/b")[0].on == ["a"]


def test_a_snapshot_is_json_and_comes_back() -> None:
    story = Story(step("a"), step("b", "a", when=Predicate("p", {"x": Const(0)})), output=Ref("b"))
    story.fail("a")

    view = story.look()

    assert msgspec.json.decode(msgspec.json.encode(view), type=Snapshot) == view


# -- why -------------------------------------------------------------------------------------------------------


def test_why_names_every_fence_of_a_step() -> None:
    story = Story(step("a"), step("b", "a", signals=["go"], break_before=["stop"]), breakpoints=("stop",))
    story.give(inp.Pause())

    assert story.codes("b") == ["pause", "pause", "needs", "signal", "breakpoint"]
    assert all(reason.kind == "fence" for reason in story.why("b") if reason.tense == "now")


def test_a_pause_is_no_reason_of_a_step_that_is_being_executed() -> None:
    story = Story(step("a"), step("b"))
    story.lease("a")
    story.give(inp.Pause())

    assert [reason.code for reason in story.why("a") if reason.step == "a" and reason.tense == "now"] == ["running"]
    assert "pause" in [reason.code for reason in story.why("b") if reason.step == "b"]


def test_why_tells_a_held_step_from_one_that_has_not_arrived() -> None:
    story = Story(step("a"), step("b", "a", break_before=["stop"]), breakpoints=("stop",))
    before = story.why("b")[1].message
    story.end("a")

    assert before == "an armed breakpoint stands before it (stop)"
    assert story.why("b")[0].message == "stands at the breakpoint before it (stop); release it"


def test_why_knows_the_capacity_reasons() -> None:
    story = Story(step("a"), step("b"), limits=Limits(dispatched=1))
    unknown = Story(step("a", action="elsewhere"))
    delayed = Story(step("a", delay=30.0))
    retried = Story(step("a", retry=RetryPolicy(initial=5.0)))
    retried.fail("a", "boom")

    assert story.codes("b") == ["dispatch_limit"]
    assert story.codes("a") == ["busy"]
    assert unknown.codes("a") == ["no_worker"]
    assert delayed.why("a")[0].message == "starts in 30.0 s: its start delay is not over"
    assert delayed.codes("a", OPERATOR) == ["no_process", "delay", "no_worker"]
    assert retried.why("a")[0].message == "attempt 1 failed (error: boom); attempt 2 starts in 5.0 s"
    assert retried.why("a")[0].until == 107.0


def test_why_counts_the_tasks_ahead() -> None:
    story = Story(step("a"), step("b"))
    rows = list(story.tasks.values())

    reason = story.why("b", waiting=rows)[0]

    assert reason.message == "waits in queue 'default' behind 1 task: all slots of alpha are busy"


def test_why_says_who_executes_a_step_and_for_how_long() -> None:
    story = Story(step("a"))
    story.lease("a")
    story.now += 2.0

    assert story.why("a")[0].message == "attempt 1 is being executed by alpha for 2.0 s"


def test_why_sees_inputs_that_nobody_decides() -> None:
    story = Story(step("a"))
    story.inbox = [InboxInput("i", "0190-key", b"{}")]
    owned = story.codes()
    story.owner = "gone"
    dead = story.codes()
    story.owner = ""

    assert owned[0] == "undecided"
    assert dead[0] == "no_owner"
    assert story.codes()[0] == "no_owner"


def test_why_of_a_run_puts_the_steps_that_only_wait_for_others_last() -> None:
    story = Story(step("a"), step("b", "a"), step("c", "b"), step("d", signals=["go"]))

    assert story.codes() == ["busy", "signal", "needs", "needs"]


def test_why_of_a_finished_run_is_short() -> None:
    story = Story(step("a"))
    story.end("a")

    assert story.codes() == ["finished"]
    assert story.codes("a") == ["finished", "settled"]


def test_why_of_an_unknown_step_is_an_error() -> None:
    story = Story(step("a"))

    with pytest.raises(StepNotFoundError, match="no step 'z'"):
        story.why("z")


def test_why_tells_the_past_from_the_journal() -> None:
    story = Story(step("a"), step("b", "a", signals=["go"], retry=RetryPolicy(attempts=2, initial=0.0)))
    story.end("a")
    story.give(inp.Signal(name="go"))
    story.lease("b")
    task = story.task("b")
    story.give(inp.Lost(number=task.number, generation=1, attempt=1, session="s1"))
    story.fail("b", "first")
    story.end("b")
    story.give(inp.Rewind(at="b"))

    past = [(reason.code, reason.at) for reason in story.why("b") if reason.tense == "past"]

    assert past == [
        ("added", 100.0),
        ("needs", 102.0),
        ("signal", 103.0),
        ("dispatched", 103.0),
        ("attempt_lost", 105.0),
        ("dispatched", 105.0),
        ("attempt_failed", 107.0),
        ("dispatched", 107.0),
        ("succeeded", 109.0),
        ("reopened", 110.0),
        ("dispatched", 110.0),
    ]


def test_every_code_that_why_uses_is_listed() -> None:
    story = Story(step("a"), step("b", "a", signals=["go"], break_before=["stop"]), breakpoints=("stop",))
    story.give(inp.Pause())
    story.give(inp.Resume())
    story.fail("a")

    assert {reason.code for at in ("a", "b") for reason in story.why(at)} <= CODES.keys()


# -- text ------------------------------------------------------------------------------------------------------


def test_the_report_has_the_layout_that_people_know() -> None:
    story = Story(step("a"), step("b", "a"), step("c", "b"), labels={"team": "x"}, output=Ref("c"))
    story.end("a")
    story.fail("b", "boom\x1b[2J")

    lines = render_report(story.look()).splitlines()

    assert lines[0] == "Run run-1  [FAILED]  workflow demo  created 4.00s ago  total 4.00s"
    assert lines[1] == "3 steps: 1 succeeded · 1 failed · 1 skipped"
    assert lines[2] == "labels team=x"
    assert lines[5].split() == ["✓", "a", "succeeded", "1.00s", "1.00s"]
    assert lines[6].split() == ["✗", "b", "failed", "1.00s", "1.00s", "error:", "boom\\x1b[2J"]
    assert lines[7].split() == ["⊘", "c", "skipped", "—", "—", "(upstream)", "because", "of", "b"]
    assert "blocked: none" in lines


def test_the_tree_shows_each_step_once_below_what_it_needs() -> None:
    story = Story(step("a"), step("b", "a"), step("c", "a", "b"), step("d"))

    assert render_tree(story.look()).splitlines() == [
        "Run run-1 [running]",
        "  ⋯ a",
        "    · b",
        "    · c",
        "  ⋯ d",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "—"),
        (0.0, "0s"),
        (0.0000021, "2.1µs"),
        (0.0123, "12.3ms"),
        (2.5, "2.50s"),
        (61, "1m1s"),
        (3600, "1h0m0s"),
        (90061, "1d1h1m"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_text_from_users_cannot_move_the_cursor() -> None:
    assert clean("a\x1b[31m\nb") == "a\\x1b[31m\\nb"
    assert preview('="é\x07"') == '"é\\x07"'
    assert preview("@0123456789abcdef").startswith("<stored: 0123")
