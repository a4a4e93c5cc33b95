"""`@step`, `@predicate`, `@workflow`: plain functions still, plannable, with options that are checked early."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from treadle.authoring.bound import Bound
from treadle.authoring.builder import Planned
from treadle.authoring.context import context
from treadle.authoring.decorators import AsyncStepFunction, StepFunction, predicate, step, workflow
from treadle.authoring.options import Retry
from treadle.authoring.registry import Registry
from treadle.core.plan import Placement, RetryPolicy, Step
from treadle.errors import DefinitionError, DefinitionErrors, SlotError, UsageError

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForCheckers


@dataclass
class Page:
    url: str
    size: int = 0


@step(retry=Retry(attempts=5, initial="200ms", never="gone"), queue="http", timeout="20s", optional=True)
async def fetch(url: str, *, depth: int = 1) -> Page:
    """Get a page."""
    return Page(url, depth)


@step
def size(page: Page) -> int:
    return page.size


@predicate
def is_big(page: Page, limit: int = 10) -> bool:
    return page.size > limit


@predicate
async def is_small(page: Page) -> bool:
    return page.size < 1


@workflow(retry=3)
def measure(page: Page, times: int = 1) -> int:
    last = 0
    for _ in range(times):
        last = size.bind(page)
    return last


# What callers without a type checker may write.
RANDOM: Any = "random"


def steps_of(planned: Planned) -> list[Step]:
    return [block for block in planned.plan.blocks if isinstance(block, Step)]


def planned_by(function: Callable[[], object], **options: Any) -> Planned:
    return workflow(name="w", registry=Registry(), **options)(function).plan()


# -- functions stay functions ------------------------------------------------------------------------------------


async def test_calling_a_step_calls_the_function() -> None:
    assert await fetch("u", depth=3) == Page("u", 3)
    assert size(Page("u", 3)) == 3
    assert is_big(Page("u", 11)) is True
    assert await is_small(Page("u")) is True


def test_a_step_keeps_name_docstring_and_signature() -> None:
    assert isinstance(fetch, AsyncStepFunction)
    assert (fetch.__name__, fetch.__doc__) == ("fetch", "Get a page.")  # type: ignore[attr-defined]  # set at run time
    assert list(inspect.signature(fetch).parameters) == ["url", "depth"]
    assert repr(fetch) == f"<step function {__name__}:fetch>"


def test_a_definition_is_what_a_worker_needs() -> None:
    definition = fetch.definition

    assert (definition.name, definition.is_async, definition.kind) == (f"{__name__}:fetch", True, "step")
    assert list(definition.parameters) == ["url", "depth"]
    assert definition.parameters["url"].required
    assert not definition.parameters["depth"].required
    assert definition.parameters["depth"].adapter.decode("3") == 3
    assert definition.result.decode('{"url":"u","size":1}') == Page("u", 1)
    assert size.definition.invoke({"page": Page("u", 7)}) == 7


def test_invoke_gives_every_kind_of_parameter_its_value() -> None:
    def every(a: int, /, b: int, *rest: int, c: int = 3, **more: int) -> list[Any]:
        return [a, b, rest, c, more]

    definition = step(name="every", registry=Registry())(every).definition

    assert definition.invoke({"a": 1, "b": 2}) == [1, 2, (), 3, {}]
    assert definition.invoke({"b": 2, "a": 1, "rest": [7, 8], "c": 4, "more": {"a": 5}}) == [1, 2, (7, 8), 4, {"a": 5}]


def test_annotations_of_nested_functions_may_name_local_classes() -> None:
    @dataclass
    class Local:
        x: int

    @step(name="local", registry=Registry())
    def local(value: Local) -> Local:
        return value

    assert local.definition.parameters["value"].adapter.decode('{"x":1}') == Local(1)


def test_annotations_may_name_what_is_defined_later() -> None:
    assert later.definition.result.decode('{"x":2}') == Later(2)


@step
def later(x: int) -> Later:
    return Later(x)


class Later(msgspec.Struct):
    x: int


def test_an_annotation_that_exists_for_checkers_only_is_named() -> None:
    @step(name="f", registry=Registry())
    def f(x: OnlyForCheckers) -> None: ...

    with pytest.raises(DefinitionError, match=r"step 'f': .*OnlyForCheckers.*TYPE_CHECKING"):
        _ = f.definition.parameters


def test_an_async_workflow_is_refused_when_it_is_defined() -> None:
    async def durable(x: int) -> int:
        return x

    with pytest.raises(DefinitionError, match=r"not in this version; write a def.*\.bind"):
        workflow(name="durable")(durable)


def test_decorating_twice_is_refused() -> None:
    with pytest.raises(DefinitionError, match="decorated already"):
        step(name="again")(size)


def test_context_outside_a_step_says_so() -> None:
    with pytest.raises(UsageError, match="inside a running step"):
        context()


# -- options -----------------------------------------------------------------------------------------------------


def test_options_of_the_decorator_are_in_the_plan() -> None:
    (planned,) = steps_of(planned_by(lambda: fetch.bind("u")))

    assert planned.retry == RetryPolicy(attempts=5, initial=0.2, never=("gone",))
    assert (planned.queue, planned.timeout, planned.optional) == ("http", 20.0, True)


def test_options_of_a_use_win_and_leave_the_function_as_it_was() -> None:
    changed = fetch.options(timeout=None, priority=5, retry=1, delay=timedelta(seconds=2)).options(queue="slow")

    first, second = steps_of(planned_by(lambda: [changed.bind("u"), fetch.bind("u")]))

    assert (first.timeout, first.priority, first.queue, first.delay) == (None, 5, "slow", 2.0)
    assert first.retry == RetryPolicy(attempts=1)
    assert (second.timeout, second.priority, second.queue) == (20.0, 0, "http")
    assert type(changed) is AsyncStepFunction


def test_all_plain_options_reach_the_step() -> None:
    used = size.options(
        id="s",
        signals=["go", "go", "run"],
        break_before="look",
        break_after=["done"],
        on="gpu",
        dedup="page-1",
        annotations={"team": "web"},
        lost_limit=5,
        progress_timeout="2m",
    )

    (planned,) = steps_of(planned_by(lambda: used.bind(Page("u"))))

    assert planned == Step(
        id="s",
        action=f"{__name__}:size",
        slots=planned.slots,
        signals=("go", "run"),
        break_before=("look",),
        break_after=("done",),
        placement=Placement("target", target="gpu"),
        dedup="page-1",
        annotations={"team": "web"},
        lost_limit=5,
        progress_timeout=120.0,
    )


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"retry": -1}, "retry=-1: attempts=-1"),
        ({"retry": True}, r"Retry\(...\) or a number"),
        ({"retry": Retry(jitter=2)}, "jitter=2: a number from 0 to 1"),
        ({"retry": Retry(factor=0.5)}, "factor=0.5"),
        ({"retry": Retry(backoff=RANDOM)}, "fixed, linear or exponential"),
        ({"retry": Retry(initial="soon")}, "initial 'soon' is no duration"),
        ({"retry": Retry(never=[""])}, "empty name"),
        ({"timeout": "soon"}, "timeout 'soon' is no duration"),
        ({"timeout": 0}, "no limit"),
        ({"progress_timeout": 0}, "leave progress_timeout= out for no limit"),
        ({"progress_timeout": "soon"}, "progress_timeout 'soon' is no duration"),
        ({"delay": -1}, "delay -1"),
        ({"queue": ""}, "queue=''"),
        ({"priority": 1.5}, "priority=1.5"),
        ({"optional": 1}, "True or False"),
        ({"signals": [" "]}, "empty name"),
        ({"break_before": ""}, "empty name"),
        ({"break_after": ["a", 5]}, "5 is no text"),
        ({"on": ""}, "on=''"),
        ({"annotations": {"a": 1}}, "keys and values are text"),
        ({"lost_limit": 0}, "from 1"),
    ],
)
def test_a_senseless_option_is_refused_by_the_decorator_and_by_a_use(options: Any, part: str) -> None:
    with pytest.raises(DefinitionError, match=part):
        step(name="f", registry=Registry(), **options)

    with pytest.raises(DefinitionError, match=rf"step 'size' \(.*test_decorators\.py:\d+\): .*{part}"):
        planned_by(lambda: size.options(**options).bind(Page("u")))


def test_an_option_that_does_not_exist_is_a_type_error_that_lists_those_that_do() -> None:
    with pytest.raises(TypeError, match=r"no option 'timeut'.*timeout"):
        size.options(timeut=3)  # type: ignore[call-arg]  # wrong on purpose
    with pytest.raises(TypeError, match="no option 'after'"):
        step(name="f", after="x")  # type: ignore[call-overload]  # wrong on purpose


def test_a_nearer_place_replaces_a_farther_one_but_two_at_once_are_a_mistake() -> None:
    placed = size.options(on="gpu")

    (planned,) = steps_of(planned_by(lambda: placed.options(on="cpu").bind(Page("u"))))

    assert planned.placement == Placement("target", target="cpu")
    with pytest.raises(DefinitionError, match="beside= and on= exclude each other"):
        planned_by(lambda: size.options(on="a", beside=size.bind(Page("u"))).bind(Page("u")))


# -- workflows -----------------------------------------------------------------------------------------------------


def test_a_workflow_gives_its_policy_to_steps_without_one() -> None:
    first, second = steps_of(planned_by(lambda: [size.bind(Page("u")), fetch.bind("u")], retry=Retry(attempts=9)))

    assert first.retry == RetryPolicy(attempts=9)
    assert second.retry is not None
    assert second.retry.attempts == 5


def test_a_step_may_refuse_the_policy_of_its_workflow() -> None:
    (only,) = steps_of(planned_by(lambda: size.options(retry=None).bind(Page("u")), retry=3))

    assert only.retry == RetryPolicy(attempts=1)


def test_arguments_of_a_workflow_are_converted_to_what_it_declares() -> None:
    planned = measure.plan({"url": "u", "size": 4}, times=2)  # type: ignore[arg-type]  # as the command line does

    assert planned.workflow == f"{__name__}:measure"
    assert planned.constants == ['{"url":"u","size":4}'] * 2
    assert [block.id for block in planned.plan.blocks] == ["size", "size-2"]
    assert planned.result.declared is int


@pytest.mark.parametrize(
    ("args", "kwargs", "part"),
    [
        ((5,), {}, "argument 'page'"),
        ((Page("u"), "x"), {}, "argument 'times'"),
        ((Page("u"),), {"times": "x"}, "argument 'times'"),
        ((), {}, "lacks argument 'page'"),
        ((Page("u"), 1, 2), {}, "takes 2 positional arguments, but 3 were given"),
        ((Page("u"),), {"time": 2}, "has no parameter 'time'; there are: page, times"),
        ((Page("u"), 1), {"times": 2}, "two values for argument 'times'"),
        ((Page("u", size="x"),), {}, "argument 'page'"),  # type: ignore[arg-type]  # a dataclass checks nothing
    ],
)
def test_a_wrong_argument_of_a_workflow_is_named(args: Any, kwargs: Any, part: str) -> None:
    with pytest.raises(SlotError, match=part):
        measure.plan(*args, **kwargs)


def test_all_wrong_arguments_of_a_workflow_are_named_together() -> None:
    with pytest.raises(DefinitionErrors) as caught:
        measure.plan(5, "x")  # type: ignore[arg-type]  # wrong on purpose

    assert [type(error) for error in caught.value.exceptions] == [SlotError, SlotError]


def test_a_workflow_can_be_a_part_of_another_and_is_not_called_otherwise() -> None:
    def outer() -> object:
        return [measure(Page("u")), measure(Page("v"))]

    assert [block.id for block in planned_by(outer).plan.blocks] == ["size", "size-2"]
    with pytest.raises(UsageError, match="start it"):
        measure(Page("u"))


def test_errors_of_the_function_itself_come_through() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        planned_by(broken)


def test_binding_outside_a_workflow_makes_a_free_step() -> None:
    planned: object = size.bind(Page("u"))

    assert isinstance(planned, Bound)
    assert isinstance(size, StepFunction)
