"""Arguments that cannot be made are an error of ours, never a silent null."""

from __future__ import annotations

import pytest
from tests.core.kit import Driver, step

from treadle.core.resolve import UnresolvedError, is_inline, resolve_args, truth_of


def test_a_required_result_that_is_not_there_is_an_error() -> None:
    driver = Driver(step("a"), step("b", "a"))
    waiting = driver.step("b")

    with pytest.raises(UnresolvedError, match="its result is required"):
        resolve_args(driver.run, waiting.node, waiting.spec.slots)


def test_only_what_rides_in_the_event_is_at_hand() -> None:
    assert is_inline("=true")
    assert truth_of("=true") is True
    assert truth_of("=false") is False
    assert not is_inline("@digest")
    assert truth_of("@digest") is None
