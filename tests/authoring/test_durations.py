"""Durations as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from treadle.authoring.durations import Duration, seconds_of
from treadle.errors import DefinitionError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("200ms", 0.2),
        ("1.5s", 1.5),
        ("2m", 120.0),
        ("3h", 10800.0),
        ("1d", 86400.0),
        ("2w", 1209600.0),
        ("1h30m", 5400.0),
        (" 1h 30m ", 5400.0),
        ("1m500ms", 60.5),
        ("15", 15.0),
        ("PT90S", 90.0),
        ("PT1H30M", 5400.0),
        ("P1DT12H", 129600.0),
        ("P2W", 1209600.0),
        ("pt0,5s", 0.5),
        (0, 0.0),
        (20, 20.0),
        (0.25, 0.25),
        (timedelta(minutes=1, milliseconds=5), 60.005),
    ],
)
def test_a_duration_is_read(text: Duration, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "wrong",
    [
        *("", "soon", "5 parsecs", "1h1h", "-5s", "5s!", "P", "PT", "P1Y", "P1M", "P1DT", "1e3", "9" * 400 + "s"),
        *(-1, float("nan"), float("inf"), 10**400, timedelta(seconds=-1), timedelta.max, True, None, [5]),
    ],
)
def test_what_is_no_duration_is_refused_by_name(wrong: Duration) -> None:
    with pytest.raises(DefinitionError, match=r"^timeout "):
        seconds_of(wrong, "timeout")


def test_the_error_shows_how_to_write_one() -> None:
    with pytest.raises(DefinitionError, match=r'"200ms".*"1h30m".*timedelta'):
        seconds_of("soon")
