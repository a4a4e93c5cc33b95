"""The numbered examples are programs: each runs by itself, prints something and exits with 0."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NUMBERED = sorted(EXAMPLES.glob("[0-9][0-9]-*.py"))

MAX_LINES = 120
# Far above what any example needs; it turns a hanging example into a failure that names it.
SECONDS = 60


def test_the_examples_are_numbered_from_one_without_gaps() -> None:
    numbers = [int(path.name[:2]) for path in NUMBERED]

    assert numbers
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("path", NUMBERED, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=SECONDS,
        check=False,
    )

    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.stdout.strip(), f"{path.name} printed nothing"


@pytest.mark.parametrize("path", NUMBERED, ids=lambda path: path.stem)
def test_an_example_is_short_enough_to_read_at_once(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < MAX_LINES
