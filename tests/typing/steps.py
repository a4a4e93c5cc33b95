"""What mypy and pyright make of steps and workflows. Nobody runs this; each expected error is silenced by its code."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, assert_type

from treadle.authoring.bound import or_default, ref, scope, signal_value
from treadle.authoring.builder import PlanBuilder, Planned, group
from treadle.authoring.decorators import StepFunction, predicate, step, workflow
from treadle.authoring.options import Retry


@dataclass
class Page:
    url: str
    size: int = 0


@step
def links(page: Page) -> list[str]:
    return [page.url]


@step(retry=Retry(attempts=5, initial="200ms"), queue="http", timeout="20s", aliases=["old:fetch"])
async def fetch(url: str, *, depth: int = 0) -> Page:
    return Page(url, depth)


@step(retry=3)
def total(first: int, /, *rest: int, **named: int) -> int:
    return first + sum(rest) + sum(named.values())


@predicate
def is_big(page: Page, limit: int = 10) -> bool:
    return page.size > limit


@predicate(name="is-small")
async def is_small(page: Page) -> bool:
    return page.size < 1


@workflow
def crawl(url: str) -> list[str]:
    return links.bind(fetch.bind(url))


# Calling is calling the plain function.
assert_type(links(Page("u")), list[str])
assert_type(fetch("u"), Coroutine[Any, Any, Page])  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
assert_type(is_big(Page("u")), bool)
links("u")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# Planning has the value's type, for async functions the awaited one.
assert_type(links.bind(Page("u")), list[str])
assert_type(fetch.bind("u", depth=1), Page)
assert_type(fetch.options(id="x", after=["a"]).bind("u"), Page)
assert_type(fetch.wait_until("5s", timeout="1h").bind("u"), Page)
fetch.wait_until("5s").bind(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# A workflow is called like a step; detached, it gives its run id.
assert_type(crawl.bind("u"), list[str])
assert_type(crawl.options(id="x").bind("u"), list[str])
assert_type(crawl.detached.bind("u"), str)
assert_type(crawl.detached.options(id="x").bind("u"), str)
crawl.bind(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
crawl.options(timeout=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
assert_type(links.bind(fetch.bind("u")), list[str])
assert_type(fetch.bind("u").size, int)
assert_type(total.bind(1, 2, links.bind(Page("u")).index("u"), x=3), int)
assert_type(is_big.bind(fetch.bind("u"), limit=3), bool)
assert_type(is_small.bind(fetch.bind("u")), bool)

# Wrong arguments.
fetch.bind(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
fetch.bind()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
fetch.bind("u", 1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
fetch.bind("u", deep=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
fetch.bind("u", depth="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
links.bind("u")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
links.bind(links.bind(Page("u")))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
links.bind(or_default(fetch.bind("u"), None))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
links.options(retry=2).bind(fetch)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
total.bind("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
is_big.bind("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
_ = fetch.bind("u").height  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]

# Options.
links.options(when=is_big.bind(Page("u")), timeout="5s", after=scope(fetch.bind("u")), here=True)
links.options(timeut="5s")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
links.options(retry="often")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
links.options(when=fetch.bind("u"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Retry(backoff="random")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# Defaults, references, signals.
assert_type(or_default(fetch.bind("u"), None), Page | None)
assert_type(or_default(fetch.bind("u").size, "none"), int | str)
assert_type(ref("a", type=Page), Page)
assert_type(ref("a", type=list[str]), list[str])
assert_type(ref("a"), Any)
assert_type(ref(fetch.bind("u")), Page)
assert_type(signal_value("go", type=int), int)
links.bind(ref("a", type=int))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
total.bind(signal_value("go", type=str))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# Workflows.
assert_type(crawl.plan("u"), Planned)
assert_type(crawl("u"), list[str])
crawl.plan(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
crawl.plan()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

# Builders.
builder = PlanBuilder("w", retry=Retry(attempts=2))
assert_type(builder.step("a", fetch, "u", retry=3), Page)
assert_type(builder.step("b", "far.away:join", slots={"x": 1}), Any)
builder.step("c", fetch, "u", retri=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
with group("g", after=fetch.bind("u")) as deploy:
    links.options(after=deploy)


def through(function: StepFunction[[Page], list[str]]) -> list[str]:
    """Take any step of a shape."""
    return function.bind(Page("u"))


through(links)
through(fetch)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
