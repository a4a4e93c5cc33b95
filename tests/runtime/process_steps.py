"""Steps that run in processes of their own; a module of its own, since those processes import it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from treadle import Package, Permanent, Process, Registry, Retry, Retryable, context, step

registry = Registry()
children = Registry()


@dataclass
class Settings:
    word: str = "default"


@dataclass
class Point:
    x: int
    y: int


box = Package("box", settings=Settings)


@step(registry=registry, name="proc:identity", process=True)
def identity(point: Point) -> tuple[Point, int]:
    return Point(point.y, point.x), os.getpid()


@step(registry=registry, name="proc:pid", process=True)
async def pid() -> int:
    return os.getpid()


@step(registry=registry, name="proc:endless", process=True, timeout="300ms")
def endless() -> None:
    context().progress({"pid": os.getpid()})
    while True:
        pass


@step(registry=registry, name="proc:sleeps", process=True)
def sleeps(path: str) -> None:
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)


@step(registry=registry, name="proc:exits", process=True, retry=Retry(attempts=2, initial=0))
def exits(code: int) -> str:
    if context().attempt == 1 or code == 9:
        context().progress(f"attempt {context().attempt}")
        os._exit(code)
    return f"after {context().last_progress}"


@step(registry=registry, name="proc:killed", process=True)
def killed() -> None:
    os.kill(os.getpid(), 9)


@step(registry=registry, name="proc:raises", process=True)
def raises(kind: str) -> None:
    try:
        raise KeyError("deep")
    except KeyError as error:
        if kind == "permanent":
            raise Permanent("no luck", code="luck", details={"n": 1}) from error
        if kind == "retryable" and context().attempt == 1:
            raise Retryable("again", code="again") from error
        if kind == "system":
            raise SystemExit(4) from error
        if kind == "value":
            raise ValueError("plain") from error


@step(registry=registry, name="proc:hungry", process=Process(memory="300MB", env={"GREETING": "hello"}))
def hungry(size: int) -> str:
    return f"{os.environ['GREETING']} {len(bytearray(size))}"


@step(registry=registry, name="proc:before")
def before() -> int:
    return 41


@step(registry=registry, name="proc:child")
def child(value: int) -> int:
    return value + 1


@step(registry=registry, name="proc:asks", process=True, annotations={"team": "a"})
def asks() -> dict[str, Any]:
    own = context()
    own.logger.warning("from inside")
    own.add(child.options(id="later").bind(1))
    own.add(child.options(id="now").bind(2), now=True)
    record = own.run().result()
    return {
        "dependency": own.dependency("before").result().value,
        "plan": own.plan().result().workflow,
        "run": [record.id, record.labels],
        "raw": own.raw_input().result(),
        "key": own.idempotency_key,
        "worker": own.worker_id,
        "annotations": dict(own.annotations),
        "data": dict(own.data),
        "pid": os.getpid(),
    }


@step(registry=registry, name="proc:asks-async", process=True)
async def asks_async() -> list[Any]:
    own = context()
    found = await own.dependency("before")
    return [found.outcome, found.value, (await own.run()).id]


@step(registry=registry, name="proc:artifact", process=True)
def artifact() -> None:
    context().artifact("a.txt", b"x")


@box.step(process=True)
def word() -> str:
    return f"{box.settings.word} {os.getpid()}"


@box.entrypoint
def say() -> str:
    return word.bind()
