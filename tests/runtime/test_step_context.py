"""What a running step may ask: its attempts' reports, what became of others, its run, time; and how it may fail."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from treadle import (
    Dependency,
    EncodeError,
    Permanent,
    Registry,
    Retry,
    Retryable,
    RetryLater,
    RunFailedError,
    UsageError,
    connect,
    context,
    group,
    or_default,
    step,
    workflow,
)

registry = Registry()
seen: dict[str, list[Any]] = {}


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/context.db?sync=normal"


def flow(function: Any) -> Any:
    return workflow(registry=Registry(), name=f"ctx:{function.__name__}")(function)


def note(key: str, value: Any) -> None:
    seen.setdefault(key, []).append(value)


# -- progress ------------------------------------------------------------------------------------------------------


@step(registry=registry, name="ctx:pages", retry=Retry(attempts=4, initial=0))
async def pages(key: str, fails: int) -> int:
    own = context()
    begin: Any = own.last_progress or {"page": 0}
    note(key, begin)
    own.progress({"page": begin["page"] + 1})
    if own.attempt <= fails:
        raise Retryable("the line went dead")
    return int(begin["page"])


@step(registry=registry, name="ctx:pages-in-thread", retry=Retry(attempts=4, initial=0))
def pages_in_thread(key: str, fails: int) -> str:
    own = context()
    note(key, own.last_progress)
    own.progress(f"attempt {own.attempt}")
    if own.attempt <= fails:
        raise Retryable("the line went dead")
    return str(own.last_progress)


@pytest.mark.parametrize("kind", [pages, pages_in_thread])
async def test_the_next_attempt_finds_what_the_last_one_reported(url: str, kind: Any) -> None:
    key = f"{url} {kind.name}"

    @flow
    def reads() -> Any:
        return kind.bind(key, 2)

    async with connect(url, registry=registry) as app:
        found = await (await app.start(reads)).result(20)

    if kind is pages:
        assert (found, seen[key]) == (2, [{"page": 0}, {"page": 1}, {"page": 2}])
    else:
        assert (found, seen[key]) == ("attempt 3", ["", "attempt 1", "attempt 2"])


async def test_an_operators_retry_goes_on_with_the_report_and_a_rewind_forgets_it(url: str) -> None:
    @step(registry=registry, name="ctx:once")
    async def once() -> str:
        own = context()
        found = str(own.last_progress)
        own.progress("=half")
        if own.attempt == 1:
            raise Permanent("no")
        return f"{own.generation} {found}"

    @flow
    def fails_once() -> str:
        return once.bind()

    async with connect(url, registry=registry) as app:
        run = await app.start(fails_once)
        assert (await run.wait(20)).status == "failed"
        await run.retry("once")
        assert await run.result(20) == "1 =half"

        await run.rewind("once")
        assert await run.result(20) == "2 "


async def test_an_attempt_that_timed_out_hands_its_report_on(url: str) -> None:
    @step(registry=registry, name="ctx:slow", timeout="40ms", retry=Retry(attempts=2, initial=0))
    async def slow() -> str:
        own = context()
        if own.attempt == 2:
            return str(own.last_progress)
        own.progress("before the end")
        await asyncio.Event().wait()
        return "never"

    @flow
    def is_slow() -> str:
        return slow.bind()

    async with connect(url, registry=registry) as app:
        assert await (await app.start(is_slow)).result(20) == "before the end"


async def test_a_report_that_is_too_large_or_no_json_is_refused(url: str) -> None:
    @step(registry=registry, name="ctx:large")
    async def large() -> int:
        own = context()
        with pytest.raises(UsageError, match="at most 4096 bytes"):
            own.progress("é" * 3000)
        with pytest.raises(EncodeError):
            own.progress(object())
        return 1

    @flow
    def is_large() -> int:
        return large.bind()

    async with connect(url, registry=registry) as app:
        assert await (await app.start(is_large)).result(20) == 1


async def test_lines_do_not_replace_what_a_step_reports_itself() -> None:
    @step(registry=registry, name="ctx:both")
    async def both() -> Any:
        own = context()
        print("a line", file=own.out)
        first = own.last_progress
        own.progress(7)
        print("another line", file=own.out)
        return [first, own.last_progress]

    @flow
    def does_both() -> Any:
        return both.bind()

    async with connect("memory://", registry=registry) as app:
        assert await (await app.start(does_both)).result(20) == ["a line", 7]


# -- dependencies --------------------------------------------------------------------------------------------------


@step(registry=registry, name="ctx:fine")
def fine(value: int) -> datetime:
    return datetime(2030, 1, value, tzinfo=UTC)


@step(registry=registry, name="ctx:broken")
def broken() -> int:
    try:
        raise KeyError("deep")
    except KeyError as error:
        raise Permanent("no luck", code="luck", details={"tries": [1, 2]}) from error


@step(registry=registry, name="ctx:below")
def below(value: int) -> int:
    return value


def plain(found: Dependency) -> list[Any]:
    return [found.address, found.outcome, found.value, found.code, found.message, found.details, list(found.causes)]


@step(registry=registry, name="ctx:asks")
async def asks(names: list[str]) -> list[Any]:
    own = context()
    found = [plain(await own.dependency(name)) for name in names]
    typed = await own.dependency("fine", datetime)
    assert typed.value == datetime(2030, 1, 3, tzinfo=UTC)
    with pytest.raises(UsageError, match=r"has no outcome in run .* yet.*after_any"):
        await own.dependency("nobody")
    return found


@step(registry=registry, name="ctx:asks-in-thread")
def asks_in_thread(names: list[str]) -> list[Any]:
    return [plain(context().dependency(name).result(20)) for name in names]


@pytest.mark.parametrize("kind", [asks, asks_in_thread])
async def test_a_step_sees_what_became_of_what_it_waited_for(url: str, kind: Any) -> None:
    @flow
    def looks() -> Any:
        good = fine.bind(3)
        bad = broken.options(optional=True).bind()
        skipped = below.bind(bad)
        with group("inner") as inner:
            fine.options(id="within").bind(4)
        looking = kind.options(id="looks", after_any=[good, bad, skipped, inner])
        return looking.bind(["broken", "below", "fine", "inner", "inner/within"])

    async with connect(url, registry=registry) as app:
        run = await app.start(looks)
        await run.wait(20)
        found = await run.step("looks")

    assert found == [
        ["broken", "failed", None, "luck", "no luck", {"tries": [1, 2]}, []],
        ["below", "skipped", None, "", "", None, ["broken"]],
        ["fine", "succeeded", datetime(2030, 1, 3, tzinfo=UTC), "", "", None, []],
        ["inner", "succeeded", None, "", "", None, []],
        ["inner/within", "succeeded", datetime(2030, 1, 4, tzinfo=UTC), "", "", None, []],
    ]


async def test_a_name_is_looked_for_from_the_inside_out() -> None:
    @step(registry=registry, name="ctx:inside")
    async def inside() -> list[str]:
        own = context()
        return [(await own.dependency("fine")).address, (await own.dependency("alone")).address]

    @flow
    def nested() -> Any:
        outer = [fine.bind(1), fine.options(id="alone").bind(2)]
        with group("inner", after=outer):
            own = fine.bind(3)
            inside.options(after=own).bind()

    async with connect("memory://", registry=registry) as app:
        run = await app.start(nested)
        assert await run.step("inner/inside", timeout=20) == ["inner/fine", "alone"]


async def test_a_dependency_that_failed_and_has_a_default_tells_why() -> None:
    @step(registry=registry, name="ctx:tolerates")
    async def tolerates(value: int) -> list[Any]:
        found = await context().dependency("broken")
        return [value, found.outcome, found.code]

    @flow
    def tolerant() -> Any:
        return tolerates.bind(or_default(broken.options(optional=True).bind(), -1))

    async with connect("memory://", registry=registry) as app:
        assert await (await app.start(tolerant)).result(20) == [-1, "failed", "luck"]


# -- facts ---------------------------------------------------------------------------------------------------------


@step(registry=registry, name="ctx:facts", timeout="1h", annotations={"team": "web"}, queue="slow")
async def facts(value: datetime, more: str) -> list[Any]:
    own = context()
    record = await own.run()
    raw = await own.raw_input()
    assert own.deadline is not None
    left = own.deadline - own.now()
    assert timedelta(minutes=59) < left <= timedelta(hours=1)
    assert own.now().tzinfo is UTC
    assert record.created_at <= own.now()
    assert own.lease > 0
    return [record.id, record.workflow, record.labels, record.dry_run, own.annotations, own.queue, own.worker_id, raw]


async def test_a_step_knows_its_run_its_own_record_and_its_raw_input(url: str) -> None:
    @flow
    def knows(when: datetime) -> Any:
        return facts.bind(when, "x" * 2000)

    async with connect(url, registry=registry, worker_id="desk-1") as app:
        run = await app.start(knows, datetime(2030, 1, 2, tzinfo=UTC), id="knows-1", labels={"a": "b"})
        *own, raw = await run.result(20)

    assert own == ["knows-1", "ctx:knows", {"a": "b"}, False, {"team": "web"}, "slow", "desk-1"]
    assert raw["more"] == "x" * 2000
    assert "2030-01-02" in str(raw["value"])


async def test_without_a_timeout_there_is_no_deadline() -> None:
    @step(registry=registry, name="ctx:endless")
    def endless() -> bool:
        return context().deadline is None

    @flow
    def is_endless() -> bool:
        return endless.bind()

    async with connect("memory://", registry=registry) as app:
        assert await (await app.start(is_endless)).result(20)


async def test_log_records_carry_run_step_and_attempt(caplog: pytest.LogCaptureFixture) -> None:
    @step(registry=registry, name="ctx:logs")
    def logs() -> None:
        context().logger.warning("careful with %s", "this")

    @flow
    def does_log() -> None:
        logs.bind()

    with caplog.at_level(logging.INFO, "treadle.step"):
        async with connect("memory://", registry=registry) as app:
            await (await app.start(does_log, id="logs-1")).result(20)

    [record] = caplog.records
    assert record.getMessage() == "careful with this"
    assert {name: vars(record)[name] for name in ("run_id", "step", "attempt")} == {
        "run_id": "logs-1",
        "step": "logs",
        "attempt": 1,
    }


# -- failures ------------------------------------------------------------------------------------------------------


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("error", "code", "attempts"),
    [
        (Permanent("no", code="quota", details={"left": 0}), "quota", 1),
        (Retryable("no", code="busy", details=[1]), "busy", 5),
        (RetryLater(0, "no", code="later", details="soon"), "later", 5),
        (ValueError("no"), "error", 1),
        (Permanent("no", details=Unshowable()), "permanent", 1),
    ],
)
async def test_codes_details_and_causes_of_errors_are_kept(
    url: str, error: BaseException, code: str, attempts: int
) -> None:
    own = Registry()
    retry = Retry(attempts=attempts, initial=0) if attempts > 1 else None

    @step(registry=own, name="ctx:raises", retry=retry)
    def raises() -> None:
        try:
            dict[str, int]()["missing"]
        except KeyError as cause:
            raise error from cause

    @flow
    def fails() -> None:
        raises.bind()

    async with connect(url, registry=own) as app:
        run = await app.start(fails)
        with pytest.raises(RunFailedError, match=f"{code}: no"):
            await run.result(20)
        [failure] = (await run.inspect()).failures
        account = await run.account(failure.detail)

    assert (failure.code, failure.attempt) == (code, attempts)
    assert account.causes == ["KeyError: 'missing'"]
    assert "KeyError" in account.text
    assert "direct cause" in account.text
    given = getattr(error, "details", None)
    if isinstance(given, Unshowable):
        assert "cannot be shown" in account.details
    else:
        assert account.details == given
