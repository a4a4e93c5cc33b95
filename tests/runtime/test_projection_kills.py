"""Records and projections while processes are killed: each record is applied once."""

from __future__ import annotations

import asyncio
import random
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.projection_target import counts
from tests.runtime.test_kills import lines, start_program, wait_for_lines
from tests.runtime.test_projections import HOSTED, POSTGRES, url_for

from treadle import connect

TARGET = Path(__file__).with_name("projection_target.py")


@pytest.mark.soak
@pytest.mark.parametrize("kind", [*HOSTED, "sqlite+sqlite", pytest.param("sqlite+postgres", marks=POSTGRES)])
def test_records_are_applied_once_by_processes_that_are_killed(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    """Three workers share one run of 80 steps; one after the other is killed with -9."""
    store, _, own = kind.partition("+")
    dice, log = random.Random(kind), tmp_path / "log"
    with ExitStack() as stack:
        url = url_for(request, stack, store, tmp_path / "app.db")
        place = url_for(request, stack, own, tmp_path / "pages.db") if own else ""

        def life() -> subprocess.Popen[str]:
            return start_program(log, TARGET, url, place)

        lives = [life() for _ in range(3)]
        for _ in range(4):
            if not wait_for_lines(log, lines(log) + dice.randint(3, 12), lives):
                break
            victim = lives.pop(dice.randrange(3))
            victim.kill()
            victim.communicate()
            lives.append(life())
        answers = [one.communicate(timeout=120) for one in lives]
        assert [one.returncode for one in lives] == [0] * 3, [err for _, err in answers]

        async def told() -> list[dict[str, Any]]:
            async with connect(url, projections=[counts(place)], worker=False) as app:
                projection = app.projection("counts")
                await projection.caught_up()
                return await projection.query("SELECT count(*) AS steps, sum(seen) AS seen FROM counts")

        ((found),) = asyncio.run(told())
    assert (int(found["steps"]), int(found["seen"])) == (80, 80)
