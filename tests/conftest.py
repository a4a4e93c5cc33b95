"""What every test shares: no settings leaking in from the caller's shell, and no wall clock in Hypothesis."""

from __future__ import annotations

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
