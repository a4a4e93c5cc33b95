"""Several applications on one SQLite file: who executes, who decides, and what goes from one to the other."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest

from treadle import (
    PlanBuilder,
    Registry,
    RunCancelledError,
    RunFailedError,
    RunNotRunningError,
    SchemaVersionError,
    StepFailedError,
    connect,
    context,
    step,
)

ours, theirs = Registry(), Registry()
gates: dict[str, asyncio.Event] = {}
calls: list[str] = []


@pytest.fixture
def url(tmp_path: Path) -> str:
    calls.clear()
    gates.clear()
    return f"sqlite:///{tmp_path}/shared.db?sync=normal"


@step(name="share:left", registry=ours)
async def left(value: int) -> str:
    calls.append("left")
    return f"{context().worker_id}:{value}"


@step(name="share:right", registry=theirs)
async def right(value: int) -> str:
    calls.append("right")
    return f"{context().worker_id}:{value}"


@step(name="share:gate", registry=theirs)
async def gate(name: str) -> str:
    calls.append(name)
    await gates.setdefault(name, asyncio.Event()).wait()
    return name


@step(name="share:echo", registry=theirs)
async def echo(value: Any) -> Any:
    return value


async def until(count: int) -> None:
    while len(calls) < count:
        await asyncio.sleep(0)


async def test_a_step_goes_to_the_worker_that_knows_it_and_is_never_failed_by_one_that_does_not(url: str) -> None:
    builder = PlanBuilder("both", registry=ours)
    builder.output(
        [builder.step("l", "share:left", slots={"value": 1}), builder.step("r", "share:right", slots={"value": 2})]
    )
    planned = builder.build()
    async with connect(url, registry=ours, worker_id="one") as one:
        run = await one.start(planned, id="both")
        assert await run.step("l") == "one:1"
        assert "no_worker" in {reason.code for reason in await run.why("r")} or (await run.why("r"))

        async with connect(url, registry=theirs, worker_id="two"):
            assert await run.result(10) == ["one:1", "two:2"]


async def test_an_operator_without_the_code_starts_waits_and_steers(url: str) -> None:
    builder = PlanBuilder("steered", registry=theirs)
    first = builder.step("first", gate, "first")
    builder.output(builder.step("second", echo, first))
    async with connect(url, registry=theirs) as worker, connect(url, registry=Registry(), worker=False) as operator:
        assert worker is not operator
        run = await operator.start(builder.build(), id="steered")
        await until(1)

        assert await run.pause() == "pausing"
        with pytest.raises(RunNotRunningError):
            await run.pause()
        gates["first"].set()
        assert await run.step("first", timeout=10) == "first"
        assert (await run.inspect()).counts["waiting"] + (await run.inspect()).counts.get("dispatched", 0) == 1
        await run.resume()

        assert await run.result(10) == "first"


async def test_a_hard_cancel_from_elsewhere_ends_a_running_step(url: str) -> None:
    builder = PlanBuilder("cancelled", registry=theirs)
    builder.step("first", gate, "first")
    async with connect(url, registry=theirs) as worker, connect(url, registry=Registry(), worker=False) as operator:
        run = await worker.start(builder.build(), id="c")
        await until(1)

        await operator.run("c").cancel(hard=True)

        with pytest.raises(RunCancelledError):
            await operator.run("c").result(10)
        while (await run.row()).leased:
            await asyncio.sleep(0)
        assert not (await run.inspect()).steps[0].progress


async def test_a_signal_reaches_a_run_that_another_process_decides(url: str) -> None:
    builder = PlanBuilder("signalled", registry=theirs)
    builder.step("open", gate, "open")
    builder.output(builder.step("told", echo, 5, signals=["go"]))
    async with connect(url, registry=theirs) as worker, connect(url, registry=Registry(), worker=False) as operator:
        run = await worker.start(builder.build(), id="s")
        await until(1)

        delivered = [await operator.run("s").signal("go"), await operator.run("s").signal("go")]
        gates["open"].set()

        assert delivered == [True, False]
        assert await run.result(10) == 5


async def test_work_left_by_a_closed_application_goes_on_in_the_next(url: str) -> None:
    builder = PlanBuilder("left", registry=theirs)
    first = builder.step("first", gate, "first")
    builder.output(builder.step("second", echo, first))
    async with connect(url, registry=theirs) as app:
        await app.start(builder.build(), id="left")
        await until(1)
    gates["first"].set()

    async with connect(url, registry=theirs) as app:
        assert await app.run("left").result(10) == "first"


KILLER = """
import asyncio, os, signal, sys
from treadle import PlanBuilder, connect, step

@step(name="kill:self", lost_limit=2)
async def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with connect(sys.argv[1]) as app:
        builder = PlanBuilder("killer")
        builder.step("bad", kill_self)
        run = await app.start(builder.build(), id="killer")
        await run.wait()

asyncio.run(main())
"""


async def test_a_step_that_kills_its_process_every_time_fails_in_the_end(url: str, tmp_path: Path) -> None:
    program = tmp_path / "killer.py"
    program.write_text(KILLER)

    codes = [subprocess.run([sys.executable, str(program), url], check=False).returncode for _ in range(3)]

    async with connect(url, worker=False) as app:
        run = app.run("killer")
        with pytest.raises(RunFailedError):
            await run.result(10)
        with pytest.raises(StepFailedError) as error:
            await run.step("bad")
    assert error.value.kind == "lost"
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]


DRAINED = """
import asyncio, signal, sys
from treadle import PlanBuilder, connect, step

@step(name="drain:slow")
async def slow(number):
    print("begun", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    return number

async def main():
    async with connect(sys.argv[1]) as app:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        builder = PlanBuilder("drained")
        value = builder.step("one", slow, 1)
        builder.step("two", slow, value)
        await app.start(builder.build(), id="drained")
        await ended.wait()
        await app.drain(10)

asyncio.run(main())
"""


async def test_a_drained_process_finishes_what_runs_and_starts_nothing_more(url: str, tmp_path: Path) -> None:
    program = tmp_path / "drained.py"
    program.write_text(DRAINED)
    process = subprocess.Popen(
        [sys.executable, str(program), url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()

    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate("go on\n", timeout=30)

    async with connect(url, worker=False) as app:
        found = {view.id: view.status for view in (await app.run("drained").inspect()).steps}
    assert process.returncode == 0
    assert out == ""
    assert found == {"one": "succeeded", "two": "dispatched"}


async def test_a_journal_of_a_newer_version_is_left_alone(url: str, tmp_path: Path) -> None:
    builder = PlanBuilder("newer", registry=theirs)
    builder.step("s", echo, 1, signals=["go"])
    async with connect(url, registry=theirs) as app:
        await app.start(builder.build(), id="newer")
    database = apsw.Connection(str(tmp_path / "shared.db"))
    database.execute("""UPDATE journal SET events = '[{"kind":"dreamed","at":"s"}]' WHERE version = 1""")
    database.close()

    async with connect(url, registry=theirs) as app:
        with pytest.raises(SchemaVersionError, match="another version"):
            await app.run("newer").signal("go")
        other = PlanBuilder("other", registry=theirs)
        other.output(other.step("s", echo, 2))

        assert await (await app.start(other.build())).result(10) == 2


@pytest.mark.slow
async def test_a_result_of_50_megabytes_travels(url: str) -> None:
    text = "y" * 50_000_000
    builder = PlanBuilder("huge", registry=theirs)
    builder.output(builder.step("second", echo, builder.step("first", echo, text)))
    async with connect(url, registry=theirs) as app:
        run = await app.start(builder.build())

        assert await run.result(60) == text
