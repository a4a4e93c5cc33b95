"""A project folder with a file of workflows, and the real command line on a real SQLite file in it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from treadle.cli import main

FLOWS = '''
"""Workflows of the tests."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from treadle import FROM_DATA, Hooks, Retry, context, signal_value, step, workflow


@dataclass
class Cart:
    items: int
    name: str = "x"


@step
def add(a: int, b: int = 1) -> int:
    return a + b


@step
def echo(value: object) -> object:
    return value


@step
def fail(text: str) -> int:
    raise ValueError(text)


@step
async def wait_for(path: str) -> str:
    while not Path(path).exists():
        await asyncio.sleep(0.02)
    return Path(path).read_text()


@step
async def link(name: str, root: str = FROM_DATA) -> str:
    print(f"{'would link' if context().dry_run else 'links'} {name}", file=context().out)
    return f"{root}/{name}"


@workflow
def deploys(name: str):
    return link.bind(name)


class Audit(Hooks):
    def step_ended(self, step):
        Path("audit.txt").write_text(f"{step.address} {step.outcome}")


async def shouted(call, call_next):
    return (await call_next()).upper()


@workflow
def sums(n: int, name: str = "n"):
    return {"sum": add.bind(add.bind(n), 10), "name": name}


@workflow
def carts(cart: Cart):
    return echo.bind(cart)


@workflow
def fails(text: str = "boom"):
    return echo.bind(fail.bind(text))


@workflow
def waits(path: str):
    return echo.options(id="last").bind(wait_for.options(id="first").bind(path))


@workflow
def signalled():
    return echo.options(id="take").bind(signal_value("go"))


@step
def third_time() -> int:
    return context().probe if context().probe >= 3 else 0


@workflow
def asks():
    return third_time.wait_until("10ms", timeout="5s").bind()


@workflow
def plus(n: int):
    return add.bind(n)


@workflow
def calls():
    plus.detached.options(id="started").bind(1)
    return plus.options(id="waits").bind(5)


@workflow
def stops():
    return echo.options(id="last", break_before=["look"]).bind(add.options(id="first").bind(1))
'''

_numbers = itertools.count(1)


class Project:
    """A folder with workflows; `treadle` runs in it, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Those that a test has started; none outlives it.
        self.processes: list[subprocess.Popen[str]] = []
        # Modules stay imported in this process, so each project has a name of its own.
        self.name = f"flows_{os.getpid()}_{next(_numbers)}"
        self.file = folder / f"{self.name}.py"
        self.file.write_text(FLOWS, encoding="utf-8")

    def target(self, workflow: str) -> str:
        return f"{self.file.name}:{workflow}"

    def treadle(self, *args: str, code: int | None = 0, stdin: str = "") -> Result:
        """Run a command line, and check its exit code."""
        result = CliRunner().invoke(main, list(args), input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert code is None or result.exit_code == code, f"{result.exit_code}: {result.stdout}{result.stderr}"
        return result

    def json(self, *args: str, code: int = 0) -> Any:
        """The JSON document that a command line prints."""
        return json.loads(self.treadle(*args, "--output", "json", code=code).stdout)

    def run(self, workflow: str, *args: str, id: str = "r1", code: int = 0) -> Result:
        return self.treadle("run", self.target(workflow), "--id", id, *args, code=code)

    def detached(self, workflow: str, *args: str, id: str = "r1") -> None:
        """A run that nobody executes yet."""
        self.run(workflow, "--detach", *args, id=id)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.chdir(tmp_path)
    project = Project(tmp_path)
    yield project
    for process in project.processes:
        process.kill()
        process.communicate()
