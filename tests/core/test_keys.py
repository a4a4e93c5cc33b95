"""Keys of steps: worked out from what rides in events, or asked of a worker."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.core.kit import Driver, step

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.decide import Limits
from treadle.core.events import ArgMap
from treadle.core.keys import KEY, key_of
from treadle.core.plan import UNLIMITED, Child, Const, Holds, Ref, RetryPolicy, Undo
from treadle.errors import TreadleError

# What is too large to ride in events: a handle by content.
LARGE = "#sha256:abc"


def keyed(**more: Any) -> Driver:
    """A step whose key is a part of a large value that another step gives."""
    key = more.pop("key", "p0.host")
    return Driver(step("a"), step("b", "a", key=key, queue="q", **more))


@pytest.mark.parametrize(
    ("text", "value", "key"),
    [
        ("p.host", {"host": "x"}, "x"),
        ("p", "x", "x"),
        ("p.n", {"n": 7}, "7"),
        ("p.n", {"n": None}, ""),
        ("'c'", 1, "c"),
    ],
)
def test_a_key_of_small_values_is_known_at_once(text: str, value: object, key: str) -> None:
    driver = Driver(step("a", slots={"p": Const(0)}, key=text), constants=[value])

    assert driver.task("a").key == key
    assert not driver.seen(ev.EvaluationAsked)


@pytest.mark.parametrize(
    "value",
    ["x", "", "ä" * 90, "ä" * 150, "q" * 200, "q" * 201, 0, -7, 2**53, True, None, 1.5, 1e21, [1, "a"], {"b": 1}],
)
def test_an_argument_as_a_whole_has_the_key_that_an_expression_over_it_has(value: object) -> None:
    args: dict[str, Any] = {"p": "=" + json.dumps(value)}

    assert key_of("p", args) == key_of("(p)", args) == key_of("[p][0]", args)


@pytest.mark.parametrize("text", ["p", "(p)"])
def test_a_number_that_readers_of_json_do_not_agree_about_is_no_key(text: str) -> None:
    with pytest.raises(TreadleError):
        key_of(text, {"p": f"={2**53 + 1}"})


def test_a_word_of_the_language_is_no_argument() -> None:
    assert key_of("true", {"true": '="x"'}) == "true"


def test_a_call_has_the_key_that_its_step_says() -> None:
    driver = Driver(step("a", slots={"p": Const(0)}, key="p", queue="q", child=Child()), constants=["x"])

    assert driver.task("a").key == "x"


def test_a_large_value_as_a_whole_is_a_key_by_its_content() -> None:
    assert key_of("p", {"p": LARGE}) == LARGE


def test_a_worker_is_asked_for_a_key_in_a_large_value() -> None:
    driver = keyed()
    driver.succeed("a", result=LARGE)

    task = driver.task("b")
    assert (task.action, task.queue, task.key, task.attempt) == (KEY, UNLIMITED, "", -1)
    assert task.call.args == {"text": '="p0.host"', "values": ArgMap({"p0": LARGE})}
    driver.succeed("b", result="example.org")

    task = driver.task("b")
    assert (task.queue, task.key, task.attempt, task.action) == ("q", "example.org", 1, "act")
    assert [event.key for event in driver.seen(ev.KeyEvaluated)] == ["example.org"]
    driver.check()


def test_the_key_holds_for_all_attempts_and_is_asked_for_again_after_a_rewind() -> None:
    driver = keyed(retry=RetryPolicy(attempts=2))
    driver.succeed("a", result=LARGE)
    driver.succeed("b", result="one")
    driver.fail("b")
    assert (driver.task("b").key, driver.task("b").attempt) == ("one", 2)
    driver.lose("b")
    assert (driver.task("b").key, driver.task("b").attempt) == ("one", 3)
    driver.succeed("b")
    driver.give(inp.Rewind("a"))
    driver.succeed("a", result=LARGE)
    assert driver.task("b").action == KEY
    driver.succeed("b", result="two")

    assert driver.task("b").key == "two"
    driver.check()


def test_a_question_that_is_lost_is_asked_again() -> None:
    driver = keyed()
    driver.succeed("a", result=LARGE)
    driver.lose("b")

    assert (driver.task("b").action, driver.task("b").attempt) == (KEY, -2)
    driver.succeed("b", result="one")
    assert driver.task("b").key == "one"
    driver.check()


def test_a_key_that_cannot_be_found_fails_the_step() -> None:
    driver = keyed(retry=RetryPolicy(attempts=5))
    driver.succeed("a", result=LARGE)
    driver.fail("b", message="there is no 'host'")

    (failed,) = driver.seen(ev.StepFailed)
    assert failed.failure.code == "unresolved"
    assert failed.failure.message == "the key 'p0.host' has no value: there is no 'host'"
    driver.check()


def test_the_condition_is_asked_before_the_key() -> None:
    driver = keyed(when=Holds("p0.go", {"p0": Ref("a")}))
    driver.succeed("a", result=LARGE)
    driver.succeed("b", result=True)
    assert driver.task("b").action == KEY
    driver.succeed("b", result="one")

    assert driver.task("b").key == "one"
    driver.check()


def test_a_question_takes_room_among_the_tasks_of_a_run() -> None:
    driver = Driver(
        step("a"), *(step(f"b{n}", "a", key="p0.host") for n in range(3)), limits=Limits(dispatched=1, events=1000)
    )
    driver.succeed("a", result=LARGE)
    for n in range(3):
        assert driver.waiting() == [f"b{n}"]
        driver.succeed(f"b{n}", result="one")
        assert driver.task(f"b{n}").key == "one"
        driver.succeed(f"b{n}")
    assert driver.status() == "succeeded"
    driver.check()


def test_a_cancel_takes_the_question_back() -> None:
    driver = keyed()
    driver.succeed("a", result=LARGE)
    driver.give(inp.Cancel())
    driver.revoked("b")

    assert driver.status() == "cancelled"
    driver.check()


def test_both_halves_of_a_step_have_the_key_that_was_found() -> None:
    driver = keyed(undo=Undo(action="undo", prepare="prepare"))
    driver.succeed("a", result=LARGE)
    driver.succeed("b", result="one")
    assert (driver.task("b").call.purpose, driver.task("b").key) == ("prepare", "one")
    driver.succeed("b", result="state")
    assert (driver.task("b").call.purpose, driver.task("b").key) == ("step", "one")
    driver.check()
