"""The lifespan helper in a real web application: one open application, at hand for requests, drained at the end."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from treadle import DefinitionError, Package, Registry, connect, lifespan, step, workflow

registry = Registry()
began, free = threading.Event(), threading.Event()


@step(registry=registry, name="life:double")
async def double(value: int) -> int:
    return value * 2


@step(registry=registry, name="life:held")
def held() -> str:
    began.set()
    free.wait(20)
    return "finished"


@workflow(registry=registry, name="life:doubles")
def doubles(value: int) -> int:
    return double.bind(value)


@workflow(registry=registry, name="life:holds")
def holds() -> str:
    return held.bind()


async def doubled(request: Request) -> JSONResponse:
    run = await request.state.treadle.start(doubles, int(request.path_params["value"]))
    return JSONResponse({"result": await run.result(20), "same": request.app.state.treadle is request.state.treadle})


async def hold(request: Request) -> JSONResponse:
    await request.state.treadle.start(holds, id="held-1")
    return JSONResponse({})


def web(url: str, **options: Any) -> Starlette:
    routes = [Route("/double/{value}", doubled), Route("/hold", hold)]
    return Starlette(routes=routes, lifespan=lifespan(url, registry=registry, **options))


def test_requests_use_the_open_application(tmp_path: Path) -> None:
    app = web(f"sqlite:///{tmp_path}/web.db?sync=normal")

    # Twice: a server may start the same application again.
    for value in (2, 3):
        with TestClient(app) as client:
            assert client.get(f"/double/{value}").json() == {"result": value * 2, "same": True}


async def test_at_the_end_running_steps_may_finish(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/web.db?sync=normal"
    began.clear()
    free.clear()
    with TestClient(web(url, grace=20)) as client:
        client.get("/hold")
        assert began.wait(20)
        threading.Timer(0.05, free.set).start()

    async with connect(url, registry=registry, worker=False) as app:
        assert await app.run("held-1").result(5) == "finished"


def test_a_lifespan_of_ones_own_lives_inside() -> None:
    order: list[str] = []

    @asynccontextmanager
    async def own(app: Any) -> AsyncGenerator[dict[str, Any], None]:
        order.append(f"begins with {type(app.state.engine).__name__}")
        yield {"mine": 1}
        order.append("ends")

    async def shown(request: Request) -> JSONResponse:
        return JSONResponse([request.state.mine, type(request.state.engine).__name__])

    app = Starlette(routes=[Route("/", shown)], lifespan=lifespan("memory://", state="engine", around=own))
    with TestClient(app) as client:
        assert client.get("/").json() == [1, "App"]

    assert order == ["begins with App", "ends"]


def test_mistakes_are_told_before_the_server_starts() -> None:
    with pytest.raises(DefinitionError, match="no entrypoint"):
        lifespan("memory://", packages=[Package("empty")])
