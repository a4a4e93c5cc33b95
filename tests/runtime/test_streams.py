"""Lists that steps yield and that steps read while they run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest

from treadle import DefinitionError, Encryption, Registry, RunFailedError, connect, gather, step, workflow
from treadle.core import events as ev
from treadle.runtime.clock import SystemClock
from treadle.runtime.exchange import KEY_SECONDS
from treadle.runtime.payloads import chunks_of
from treadle.runtime.streams import CHUNK_BYTES, CHUNK_ITEMS

registry = Registry()
MANY = 3 * CHUNK_ITEMS + 7
# How far the steps of a test have come.
seen: list[Any] = []


@step(registry=registry)
async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


@step(registry=registry)
def letters(count: int, length: int) -> Iterator[str]:
    for number in range(count):
        yield chr(97 + number % 26) * length


@step(registry=registry)
async def double(value: int) -> int:
    return 2 * value


@step(registry=registry)
async def add_up(values: AsyncIterable[int]) -> int:
    return sum([value async for value in values]) + sum([value async for value in values])


@step(registry=registry)
async def add_once(values: AsyncIterator[int]) -> int:
    return await anext(values) + sum([value async for value in values])


@step(registry=registry)
def join(values: Iterable[str]) -> int:
    return sum(map(len, values))


@step(registry=registry)
def count(values: Iterator[str]) -> int:
    return len([*values])


@step(registry=registry)
async def as_list(values: list[int]) -> int:
    return len(values)


@workflow(registry=registry)
def piecewise(many: int) -> int:
    return add_up.bind(gather(numbers.bind(many), double))


@workflow(registry=registry)
def once(many: int) -> int:
    # Type checkers know what is yielded as a list, of which an iterator is made when it is read.
    return add_once.bind(cast("AsyncIterator[int]", numbers.bind(many)))


@workflow(registry=registry)
def in_threads(many: int, length: int) -> list[int]:
    text = letters.bind(many, length)
    return [join.bind(text), count.bind(cast("Iterator[str]", text))]


@workflow(registry=registry)
def listed(many: int) -> list[int]:
    return numbers.bind(many)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'x.db'}"


@pytest.mark.parametrize("many", [0, 1, CHUNK_ITEMS, CHUNK_ITEMS + 1, MANY])
async def test_what_is_yielded_is_a_list_for_whoever_reads_it_as_a_whole(store: str, many: int) -> None:
    async with connect(store, registry=registry) as app, asyncio.timeout(60):
        run = await app.start(listed, many)

        assert await run.result() == [*range(many)]
        assert await run.step("numbers", type=list[int]) == [*range(many)]


@pytest.mark.parametrize("many", [0, 3, MANY])
async def test_a_gather_goes_over_what_is_yielded_and_its_results_are_read_piece_by_piece(
    store: str, many: int
) -> None:
    async with connect(store, registry=registry) as app, asyncio.timeout(60):
        run = await app.start(piecewise, many)

        assert await run.result() == 2 * many * (many - 1)


async def test_async_and_plain_steps_read_while_they_run(store: str) -> None:
    async with connect(store, registry=registry) as app, asyncio.timeout(60):
        run = await app.start(once, MANY)
        other = await app.start(in_threads, 100, CHUNK_BYTES // 10)

        assert await run.result() == MANY * (MANY - 1) // 2
        assert await other.result() == [100 * (CHUNK_BYTES // 10), 100]


async def test_the_outcome_names_the_chunks(store: str) -> None:
    async with connect(store, registry=registry) as app, asyncio.timeout(60):
        run = await app.start(listed, MANY)
        await run.result()

        ends = [e async for _, _, e in run.events() if isinstance(e, ev.StepSucceeded)]
        assert ends[0].items is not None
        assert (ends[0].items.count, ends[0].items.size, len(ends[0].items.chunks)) == (MANY, CHUNK_ITEMS, 4)
        texts = await app._node.payloads.stored(await run.key(), [ends[0].result])
        assert chunks_of(texts[ends[0].result]) == ends[0].items


@step(registry=registry, retry=2)
async def breaks_once(many: int) -> AsyncIterator[int]:
    for number in range(many):
        if number == many - 1 and "broken" not in seen:
            seen.append("broken")
            raise ValueError("half-way")
        yield number


@workflow(registry=registry)
def broken(many: int) -> int:
    return add_up.bind(breaks_once.bind(many))


async def test_an_attempt_that_fails_in_the_middle_leaves_nothing(store: str) -> None:
    seen.clear()
    async with connect(store, registry=registry) as app, asyncio.timeout(60):
        run = await app.start(broken, MANY)

        assert await run.result() == MANY * (MANY - 1)
        assert seen == ["broken"]


@step(registry=registry)
async def strings() -> AsyncIterator[Any]:
    yield "one"


@workflow(registry=registry)
def mistyped() -> int:
    return add_up.bind(strings.bind())


async def test_an_item_of_another_type_fails_the_step_that_reads_it(store: str) -> None:
    async with connect(store, registry=registry) as app, asyncio.timeout(60):
        run = await app.start(mistyped)

        with pytest.raises(RunFailedError, match="expected `int`"):
            await run.result()


@step(registry=registry)
async def number() -> Any:
    return 7


@workflow(registry=registry)
def no_list() -> list[int]:
    return gather(number.bind(), double)


async def test_a_gather_over_what_is_no_list_says_so(store: str) -> None:
    async with connect(store, registry=registry) as app, asyncio.timeout(60):
        run = await app.start(no_list)

        with pytest.raises(RunFailedError, match="list"):
            await run.result()


# An array is what every reader without a declared type gets of a tuple.
KINDS: list[Any] = [date(2026, 1, 2), {"a": [b"x", None]}, [1, 2.5], "y" * 2000, 2**70, Decimal("1.0"), "\ud800"]


@step(registry=registry)
async def kinds() -> Any:
    return KINDS


@step(registry=registry)
async def some_of_a_kind() -> Any:
    return {f"{number:04}" for number in range(MANY)}


@step(registry=registry)
async def shown(value: Any) -> str:
    return repr(value)


@workflow(registry=registry)
def of_all_kinds() -> list[list[str]]:
    # Both are more than what rides in events, so that a worker finds the items.
    return [gather(kinds.bind(), shown, id="listed"), gather(some_of_a_kind.bind(), shown, id="set")]


async def test_items_of_a_gather_are_what_the_list_held_whatever_it_was(store: str) -> None:
    async with connect(store, registry=registry) as app, asyncio.timeout(60):
        listed, of_set = await (await app.start(of_all_kinds)).result()

        assert listed == [repr(kind) for kind in KINDS]
        assert sorted(of_set) == [repr(f"{number:04}") for number in range(MANY)]


async def test_a_chunk_is_read_when_it_is_needed(store: str) -> None:
    async with connect(store, registry=registry) as app, asyncio.timeout(60):
        payloads = app._node.payloads
        run = await app.start(listed, MANY)
        await run.result()
        before = len(payloads._trees)

        other = await app.start(once, MANY)

        assert await other.result() == MANY * (MANY - 1) // 2
        assert len(payloads._trees) == before


def test_a_step_that_could_not_wait_for_items_is_refused() -> None:
    async def blocks(values: Iterator[int]) -> int:
        return len([*values])

    def never(values: AsyncIterator[int]) -> None:
        del values

    async def untrue() -> AsyncIterator[int]:
        yield 1

    untrue.__annotations__["return"] = "int"

    for function, words in ((blocks, "AsyncIterator"), (never, "Iterator"), (untrue, "AsyncIterator")):
        made = step(name=function.__name__, registry=Registry())(function)
        with pytest.raises(DefinitionError, match=words):
            assert made.definition.parameters


async def test_reading_on_the_event_loop_without_async_is_refused() -> None:
    at = threading.get_ident()

    @step(registry=(own := Registry()), name="wrong")
    async def wrong(values: AsyncIterable[int]) -> int:
        assert threading.get_ident() == at
        return sum(cast("Iterable[int]", values))

    @workflow(registry=own, name="w")
    def planned() -> int:
        return wrong.bind(numbers.bind(3))

    own.add(numbers)
    async with connect("memory://", registry=own) as app, asyncio.timeout(20):
        run = await app.start(planned)

        with pytest.raises(RunFailedError, match="async for"):
            await run.result()


# -- keys --------------------------------------------------------------------------------------------------------------


@step(registry=registry, signals="go")
async def heard(values: AsyncIterable[int]) -> int:
    seen.append("heard")
    return sum([value async for value in values])


@workflow(registry=registry)
def told(count: int) -> Any:
    return heard.bind(numbers.bind(count))


@workflow(registry=registry)
def told_of_each(count: int) -> Any:
    return heard.bind(gather(numbers.bind(count), lambda value: double.bind(value), id="each"))


@pytest.mark.parametrize(
    ("planned", "count", "steps"),
    [(told, MANY, ["numbers"]), (told_of_each, 3, ["each[0]/double", "each[1]/double", "each[2]/double"])],
    ids=["chunks", "results"],
)
async def test_a_step_that_reads_does_not_begin_where_a_key_of_its_list_is_missing(
    planned: Any, count: int, steps: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, one, two = f"sqlite:///{tmp_path}/app.db", bytes([1]) * 32, bytes([2]) * 32
    seen.clear()
    async with connect(url, registry=registry, codec=Encryption({"one": one})) as app, asyncio.timeout(60):
        run = await app.start(planned, count, id="told")
        for name in steps:
            await run.step(name)
    async with connect(url, registry=registry, codec=Encryption({"two": two})) as app, asyncio.timeout(60):
        await app.run("told").signal("go")
        while "waits for a worker with a key" not in caplog.text:
            await asyncio.sleep(0.01)
    assert seen == []

    both = Encryption({"two": two, "one": one})
    async with connect(url, registry=registry, codec=both, clock=Ahead()) as app, asyncio.timeout(60):
        assert await app.run("told").result() == len(steps[:2]) * sum(range(count))

    assert seen == ["heard"]


class Ahead(SystemClock):
    """The machine's clock, and a while."""

    def now(self) -> float:
        return super().now() + 2 * KEY_SECONDS
