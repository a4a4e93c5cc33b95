"""A gather of a million items ends, in order, within bounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TARGET = Path(__file__).with_name("million_target.py")
# An iteration that has succeeded leaves 131 bytes behind, and its result.
BYTES_AN_ITEM = 400


def most_memory(count: int, folder: Path) -> int:
    done = subprocess.run(
        [sys.executable, str(TARGET), f"sqlite:///{folder}/{count}.db", str(count)],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout)


@pytest.mark.slow
def test_a_million_items_are_gathered_without_holding_them_all(tmp_path: Path) -> None:
    few, many = 10_000, 1_000_000

    small, large = most_memory(few, tmp_path), most_memory(many, tmp_path)

    assert large - small < (many - few) * BYTES_AN_ITEM / 2**20
