"""URLs of empty stores of each kind, for tests that hold on several of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_MARKS = {"postgres": [pytest.mark.postgres], "nats": [pytest.mark.nats]}


def kinds(*names: str) -> list[Any]:
    """The parameters of a fixture that gives stores of these kinds."""
    return [pytest.param(name, marks=_MARKS.get(name, [])) for name in names]


@contextmanager
def empty_store(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """The URL of a store of the kind that the fixture's parameter names."""
    if request.param == "postgres":
        request.getfixturevalue("postgres_server")
        # The server's package may not exist for this platform.
        from tests.postgres_kit import empty_schema, shared_server, url_of

        with empty_schema() as schema:
            yield url_of(shared_server(), schema)
    elif request.param == "nats":
        yield str(request.getfixturevalue("nats_url"))
    else:
        yield "memory://" if request.param == "memory" else f"sqlite:///{folder}/runs.db?sync=normal"
