"""A run's data, dry runs, and what else a step's context tells of its run."""

from __future__ import annotations

import asyncio
import logging
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from treadle import (
    FROM_DATA,
    DefinitionError,
    DefinitionErrors,
    Registry,
    RunExistsError,
    SlotError,
    UsageError,
    connect,
    context,
    predicate,
    step,
    workflow,
)

registry = Registry()


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/data.db?sync=normal"


@step(registry=registry, name="data:link")
async def link(name: str, root: Path = FROM_DATA, *, since: date | None = None) -> str:
    return f"{root / name}{since or ''}"


@step(registry=registry, name="data:read")
def read() -> dict[str, Any]:
    return dict(context().data)


@step(registry=registry, name="data:grow")
async def grow() -> str:
    context().add(link.options(id="more").bind("x"))
    return "grown"


@predicate(registry=registry, name="data:wanted")
def wanted(wanted: bool = FROM_DATA) -> bool:
    return wanted and not context().dry_run


@workflow(registry=registry, name="data:deploy")
def deploy(name: str) -> str:
    return link.bind(name)


@workflow(registry=registry, name="data:reads")
def reads() -> dict[str, Any]:
    return read.bind()


async def result_of(url: str, flow: Any, *args: Any, **options: Any) -> Any:
    async with connect(url, registry=registry) as app:
        return await (await app.start(flow, *args, **options)).result(timeout=20)


# -- slots ---------------------------------------------------------------------------------------------------------


async def test_a_declared_parameter_takes_the_value_of_its_name(url: str) -> None:
    assert await result_of(url, deploy, "a", data={"root": Path("srv"), "since": date(2026, 1, 2)}) == "srv/a"


async def test_what_the_workflow_gives_is_not_overridden(url: str) -> None:
    @workflow(registry=Registry(), name="data:given")
    def given() -> str:
        return link.bind("a", Path("own"))

    assert await result_of(url, given, data={"root": "other"}) == "own/a"
    assert await result_of(url, given) == "own/a"


@pytest.mark.parametrize("size", [10, 5_000, 400_000])
async def test_data_of_any_size_are_read_by_every_step(url: str, size: int) -> None:
    data = {"root": Path("srv"), "pad": "x" * size, "day": date(2026, 1, 2)}

    assert await result_of(url, reads, data=data) == data
    assert await result_of(url, deploy, "a", data=data) == "srv/a"


async def test_a_run_without_data_has_none(url: str) -> None:
    assert await result_of(url, reads) == {}


async def test_data_are_read_only_and_equal_for_a_run_that_is_taken_over(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/over.db?sync=normal"
    async with connect(url, worker=False, registry=registry) as app:
        run = await app.start(deploy, "a", id="over", data={"root": "srv"})
    async with connect(url, registry=registry) as app:
        run = app.run("over", str)
        assert await run.result(timeout=20) == "srv/a"


async def test_what_is_missing_or_does_not_fit_is_named_before_the_run_exists(url: str) -> None:
    @workflow(registry=Registry(), name="data:many")
    def many() -> list[str]:
        first = link.options(id="first").bind("a")
        return [first, link.options(id="second", when=wanted.bind()).bind("b")]

    async with connect(url, registry=registry) as app:
        with pytest.raises(DefinitionErrors) as caught:
            await app.start(many, id="no", data={"other": 1})
        with pytest.raises(SlotError, match=r"step 'link': parameter 'root'.* does not fit 'root' of the run's data"):
            await app.start(deploy, "a", id="no", data={"root": 7})
        assert await app.find("no") == []

    texts = [str(error) for error in caught.value.exceptions]
    assert len(texts) == 3
    assert texts[0].startswith("step 'first': parameter 'root' of 'data:link' takes 'root' from the run's data")
    assert "start the run with data={'root': ...}" in texts[0]
    assert "step 'second': parameter 'wanted' of 'data:wanted'" in texts[2]


async def test_a_condition_takes_data_too(url: str) -> None:
    @workflow(registry=Registry(), name="data:asked")
    def asked() -> list[Any]:
        from treadle import or_default

        return [or_default(link.options(when=wanted.bind()).bind("a"), None)]

    assert await result_of(url, asked, data={"root": "srv", "wanted": True}) == ["srv/a"]
    assert await result_of(url, asked, data={"root": "srv", "wanted": False}) == [None]
    assert await result_of(url, asked, data={"root": "srv", "wanted": True}, dry_run=True) == [None]


async def test_an_added_step_takes_data_or_fails_its_adder(url: str) -> None:
    @workflow(registry=Registry(), name="data:growing")
    def growing() -> str:
        return grow.bind()

    async with connect(url, registry=registry) as app:
        run = await app.start(growing, data={"root": "srv"})
        assert await run.step("grow/more", timeout=20) == "srv/x"

        run = await app.start(growing)
        assert (await run.wait(timeout=20)).status == "failed"
        [failure] = (await run.inspect()).failures

    assert "takes 'root' from the run's data" in failure.message
    assert failure.code == SlotError.code


def test_the_marker_is_no_value() -> None:
    with pytest.raises(SlotError, match="FROM_DATA is the default of a step's parameter"):
        workflow(registry=Registry(), name="data:passed")(lambda: link.bind(FROM_DATA)).plan()
    with pytest.raises(DefinitionError, match="a plain call passes the argument"):
        str(FROM_DATA)
    with pytest.raises(DefinitionError, match="FROM_DATA"):
        asyncio.run(link("a"))


@pytest.mark.parametrize("data", [{"": 1}, {"a\n": 1}, {"$treadle": 1}, {"a": object()}, {3: 1}])
async def test_data_that_cannot_be_kept_are_refused(data: Any) -> None:
    async with connect("memory://", registry=registry) as app:
        with pytest.raises(DefinitionError):
            await app.start(reads, data=data)


async def test_an_id_means_its_data_and_whether_it_is_dry(url: str) -> None:
    async with connect(url, registry=registry) as app:
        await app.start(deploy, "a", id="one", data={"root": "srv", "n": 1})

        again = await app.start(deploy, "a", id="one", data={"n": 1, "root": "srv"})
        assert await again.result(timeout=20) == "srv/a"
        with pytest.raises(RunExistsError):
            await app.start(deploy, "a", id="one", data={"root": "srv", "n": 2})
        with pytest.raises(RunExistsError):
            await app.start(deploy, "a", id="one", data={"root": "srv", "n": 1}, dry_run=True)


# -- the context ---------------------------------------------------------------------------------------------------


@step(registry=registry, name="data:facts")
async def facts() -> list[Any]:
    own = context()
    plan = await own.plan()
    with pytest.raises(UsageError, match="await the value"):
        own.plan().result()
    return [own.address, own.dry_run, plan.workflow, [block.id for block in plan.blocks]]


@step(registry=registry, name="data:thread-facts")
def thread_facts() -> list[Any]:
    own = context()
    plan = own.plan().result()
    return [own.address, own.dry_run, plan.workflow, [block.id for block in plan.blocks]]


@step(registry=registry, name="data:talk")
def talk(lines: list[str]) -> int:
    own = context()
    for line in lines:
        print(line, file=own.out)
    print("without an end", end="", file=own.out)
    return len(lines)


@step(registry=registry, name="data:stand")
async def stand() -> str:
    own = context()
    print("first\r\nsecond", file=own.out)
    await asyncio.sleep(0)
    while own.last_progress != "second":
        await asyncio.sleep(0)
    await gates["stand"].wait()
    return str(own.last_progress)


gates: dict[str, asyncio.Event] = {}


@pytest.mark.parametrize("dry_run", [False, True])
async def test_a_step_knows_its_plan_its_address_and_whether_the_run_is_dry(url: str, dry_run: bool) -> None:
    @workflow(registry=Registry(), name="data:knows")
    def knows() -> list[Any]:
        return [facts.bind(), thread_facts.bind()]

    async with connect(url, registry=registry) as app:
        run = await app.start(knows, dry_run=dry_run)
        found = await run.result(timeout=20)
        snapshot = await run.inspect()

    assert found == [[at, dry_run, "data:knows", ["facts", "thread_facts"]] for at in ("facts", "thread_facts")]
    assert snapshot.dry_run is dry_run


async def test_lines_that_a_step_writes_are_log_records(url: str, caplog: pytest.LogCaptureFixture) -> None:
    @workflow(registry=Registry(), name="data:talks")
    def talks() -> int:
        return talk.bind(["one", "", "three"])

    with caplog.at_level(logging.INFO, "treadle.output"):
        async with connect(url, registry=registry) as app:
            await (await app.start(talks, id="talks-1")).result(timeout=20)

    lines = [(vars(record)["run_id"], vars(record)["step"], record.getMessage()) for record in caplog.records]
    assert lines == [("talks-1", "talk", text) for text in ("one", "", "three", "without an end")]


async def test_the_last_line_is_the_progress(url: str) -> None:
    @workflow(registry=Registry(), name="data:stands")
    def stands() -> str:
        return stand.bind()

    gates["stand"] = asyncio.Event()
    async with connect(url, registry=registry) as app:
        run = await app.start(stands)
        async with asyncio.timeout(20):
            while (await run.inspect()).steps[0].progress != "second":
                await asyncio.sleep(0.01)
        gates["stand"].set()
        assert await run.result(timeout=20) == "second"


async def test_a_chatty_step_stores_its_progress_once_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    @step(registry=registry, name="data:chat")
    async def chat() -> int:
        for number in range(1000):
            print(number, file=context().out)
        await asyncio.sleep(0.01)
        return 1000

    @workflow(registry=Registry(), name="data:chats")
    def chats() -> int:
        return chat.bind()

    async with connect("memory://", registry=registry) as app:
        stored: list[str] = []
        progress = app._node.progress

        def counted(task: Any, text: str) -> None:
            stored.append(text)
            progress(task, text)

        monkeypatch.setattr(app._node, "progress", counted)
        await (await app.start(chats)).result(timeout=20)

    assert stored == ["999"]
