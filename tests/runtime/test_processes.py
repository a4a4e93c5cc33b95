"""Steps in processes of their own: real processes, killed, exhausted, used again; and nothing of it for others."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.runtime import process_steps as steps

from treadle import DefinitionError, Process, Registry, RunFailedError, connect, or_default, step, workflow


def flow(function: Any) -> Any:
    return workflow(registry=Registry(), name=f"proc:{function.__name__}")(function)


def only(function: Any, *args: Any) -> Any:
    @workflow(registry=Registry(), name="proc:only")
    def one() -> Any:
        return function.options(id="only").bind(*args)

    return one.plan()


async def failed(planned: Any) -> tuple[Any, Any]:
    async with connect("memory://", registry=steps.registry) as app:
        run = await app.start(planned)
        with pytest.raises(RunFailedError):
            await run.result(60)
        [failure] = (await run.inspect()).failures
        return failure, await run.account(failure.detail) if failure.detail else None


async def test_values_go_in_and_out_typed_and_processes_are_used_again() -> None:
    async with connect("memory://", registry=steps.registry) as app:
        found = await (await app.start(only(steps.identity, steps.Point(1, 2)))).result(60)
        assert found[0] == steps.Point(2, 1)
        pids = [await (await app.start(only(steps.pid))).result(60) for _ in range(3)]

    assert set(pids) == {found[1]}
    assert os.getpid() not in pids
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


async def test_a_process_that_was_killed_while_it_was_idle_costs_no_attempt() -> None:
    async with connect("memory://", registry=steps.registry) as app:
        first = await (await app.start(only(steps.pid))).result(60)
        os.kill(first, signal.SIGKILL)

        run = await app.start(only(steps.pid))
        assert await run.result(60) != first
        assert [step.attempt for step in (await run.inspect()).steps] == [1]


async def test_a_process_that_is_busy_for_ever_is_killed_at_the_timeout() -> None:
    failure, _ = await failed(only(steps.endless))

    assert failure.code == "timeout"


async def test_a_process_that_reports_nothing_more_is_killed() -> None:
    failure, _ = await failed(only(steps.endless.options(timeout=None, progress_timeout="300ms")))

    assert failure.message == "the attempt reported no progress for 0.3 s"


async def test_a_hard_cancel_kills_the_process_and_frees_its_slot(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    async with connect("memory://", registry=steps.registry, threads=1) as app:
        run = await app.start(only(steps.sleeps, str(path)))
        while not path.exists() or not path.read_text():
            await asyncio.sleep(0.01)
        victim = int(path.read_text())
        await run.cancel(hard=True)
        assert (await run.wait(30)).status == "cancelled"

        # The only thread is free again.
        assert await (await app.start(only(steps.pid))).result(60) != victim
        with pytest.raises(ProcessLookupError):
            os.kill(victim, 0)


async def signal_until_gone(pid: int) -> None:
    async with asyncio.timeout(20):
        while True:
            os.kill(pid, 0)
            await asyncio.sleep(0.01)


async def test_closing_the_application_ends_what_still_runs(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    async with connect("memory://", registry=steps.registry) as app:
        await app.start(only(steps.sleeps, str(path)))
        while not path.exists() or not path.read_text():
            await asyncio.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        await signal_until_gone(int(path.read_text()))


async def test_a_process_that_exits_fails_the_attempt_and_its_report_is_kept() -> None:
    async with connect("memory://", registry=steps.registry) as app:
        assert await (await app.start(only(steps.exits, 3))).result(60) == "after attempt 1"
    failure, _ = await failed(only(steps.exits, 9))

    # A handler that ends its process every time ends with its retries.
    assert (failure.code, failure.attempt) == ("process_exited", 2)
    assert failure.message == "the step's process ended with exit code 9"


async def test_a_process_that_is_killed_fails_the_attempt() -> None:
    failure, _ = await failed(only(steps.killed))

    assert (failure.code, failure.message) == ("process_killed", "the step's process was killed by SIGKILL")


@pytest.mark.parametrize(
    ("kind", "code", "type_"),
    [("permanent", "luck", "Permanent"), ("value", "error", "ValueError"), ("system", "exit", "SystemExit")],
)
async def test_errors_come_back_as_they_were(kind: str, code: str, type_: str) -> None:
    failure, account = await failed(only(steps.raises, kind))

    assert (failure.code, failure.type) == (code, type_)
    assert account.causes == ["KeyError: 'deep'"]
    assert account.details == ({"n": 1} if kind == "permanent" else None)
    assert "in raises" in account.text


async def test_steering_errors_steer() -> None:
    async with connect("memory://", registry=steps.registry) as app:
        run = await app.start(only(steps.raises, "retryable"))
        assert await run.result(60) is None
        assert (await run.inspect()).steps[0].attempt == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS is Linux's to enforce")
async def test_memory_is_limited_and_the_environment_its_own() -> None:
    async with connect("memory://", registry=steps.registry) as app:
        assert await (await app.start(only(steps.hungry, 1000))).result(60) == "hello 1000"
    failure, _ = await failed(only(steps.hungry, 2**30))

    assert (failure.code, failure.type) == ("memory", "MemoryError")
    assert "GREETING" not in os.environ


async def test_everything_a_step_may_ask_is_answered_from_inside(caplog: pytest.LogCaptureFixture) -> None:
    @flow
    def talks() -> Any:
        first = steps.before.bind()
        return [steps.asks.options(after=first).bind(), steps.asks_async.options(after=first).bind()]

    with caplog.at_level(logging.INFO, "treadle.step"):
        async with connect("memory://", registry=steps.registry, worker_id="desk") as app:
            run = await app.start(talks, id="talks-1", labels={"a": "b"}, data={"root": "srv"})
            found, other = await run.result(60)
            added = [await run.step("asks/later"), await run.step("asks/now")]
            key = await run.key()

    assert found.pop("pid") != os.getpid()
    assert found == {
        "dependency": 41,
        "plan": "proc:talks",
        "run": ["talks-1", {"a": "b"}],
        "raw": {},
        "key": f"{key}/asks/1",
        "worker": "desk",
        "annotations": {"team": "a"},
        "data": {"root": "srv"},
    }
    assert other == ["succeeded", 41, "talks-1"]
    assert added == [2, 3]
    [record] = [record for record in caplog.records if record.getMessage() == "from inside"]
    assert (vars(record)["run_id"], vars(record)["step"]) == ("talks-1", "asks")


async def test_artifacts_are_refused_clearly() -> None:
    failure, _ = await failed(only(steps.artifact))

    assert (failure.code, "no artifacts" in failure.message) == ("usage", True)


async def test_a_package_keeps_its_settings_inside() -> None:
    given = {"box": {"word": "configured"}}
    async with connect("memory://", registry=Registry(), packages=[steps.box], package_settings=given) as app:
        word, pid = (await (await app.start("box")).result(60)).split()

    assert (word, pid != str(os.getpid())) == ("configured", True)


SCRIPT = """
import asyncio, os
from treadle import connect, context, step, workflow

print("imported", __name__ == "__main__")

@step(process=True)
def inside() -> str:
    return f"{context().action} {os.getpid() != int(os.environ['PARENT'])}"

@workflow
def flow() -> str:
    return inside.bind()

async def main() -> None:
    os.environ["PARENT"] = str(os.getpid())
    async with connect("memory://") as app:
        print(await (await app.start(flow)).result(60))

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_step_of_the_main_script_works_and_the_script_is_not_started_again(tmp_path: Path) -> None:
    script = tmp_path / "my-script.py"
    script.write_text(SCRIPT)

    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["imported True", "my-script:inside True"]
    # Imported once more in the step's process, under its own name.
    assert done.stderr.splitlines() == ["imported False"]


def test_what_no_other_process_could_find_is_refused() -> None:
    with pytest.raises(DefinitionError, match="defined inside a function"):

        @step(registry=Registry(), name="proc:inner", process=True)
        def inner() -> None: ...


def yielding() -> Iterator[int]:
    yield 1


def test_a_step_that_yields_stays_in_the_worker() -> None:
    with pytest.raises(DefinitionError, match="yields, which a process of its own cannot"):
        step(registry=Registry(), name="proc:yields", process=True)(yielding)


@pytest.mark.parametrize("wrong", [Process(memory="much"), Process(memory=5), Process(env={"A=B": "x"}), "yes"])
def test_wrong_options_are_refused(wrong: Any) -> None:
    with pytest.raises(DefinitionError):
        step(registry=Registry(), name="proc:wrong", process=wrong)(steps.before.definition.function)


async def test_others_pay_nothing() -> None:
    @flow
    def plain() -> Any:
        return or_default(steps.before.bind(), 1)

    async with connect("memory://", registry=steps.registry) as app:
        await (await app.start(plain)).result(20)
        assert app._node.worker._processes is None
