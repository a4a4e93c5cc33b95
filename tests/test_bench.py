"""The benchmarks run, say what they found in one line, and know their ceilings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FIELDS = {
    "workload",
    "size",
    "store",
    "seconds",
    "steps_per_s",
    "p50_ms",
    "p99_ms",
    "peak_rss_mb",
    "ceiling_per_s",
    "ratio",
    "notes",
}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "treadle", "bench", *arguments, "--output", "json"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})


@pytest.mark.parametrize(
    ("workload", "size", "store"),
    [
        ("chain", 20, "memory://"),
        ("fan", 20, "memory://"),
        ("many", 5, "memory://"),
        ("chain", 20, "sqlite"),
        ("fan", 20, "sqlite"),
        ("many", 5, "sqlite"),
        ("recover", 20, "sqlite"),
        ("workers", 20, "sqlite"),
        ("grow", 10, "sqlite"),
        ("gather", 20, "memory://"),
        ("gather", 20, "sqlite"),
        ("phases", 5, "memory://"),
        ("limits", 5, "memory://"),
        ("limits", 5, "sqlite"),
        ("artifact", 2, "memory://"),
        ("records", 20, "sqlite"),
        ("delayed", 20, "memory://"),
        ("delayed", 20, "sqlite"),
        ("unwind", 20, "memory://"),
        ("unwind-fan", 20, "sqlite"),
        pytest.param("chain", 20, "nats", marks=pytest.mark.nats),
        pytest.param("many", 5, "nats", marks=pytest.mark.nats),
    ],
)
def test_a_workload_prints_one_line_with_its_ceiling(
    workload: str, size: int, store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = store if store.startswith("memory") else f"sqlite:///{tmp_path}/bench.db"
    if store == "nats":
        url = request.getfixturevalue("nats_url")

    done = bench(workload, "--size", str(size), "--store", url)

    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    found = json.loads(line)
    assert set(found) == FIELDS
    assert (found["workload"], found["size"], found["store"]) == (workload, size, url)
    assert found["steps_per_s"] > 0
    assert found["ceiling_per_s"] > 0
    assert "lost" not in found["notes"] or "0 lost" in found["notes"]


def test_an_unknown_workload_is_a_usage_error() -> None:
    done = bench("fly")

    assert done.returncode == 2
    assert "chain, fan, many" in done.stderr


def test_phases_need_no_store(tmp_path: Path) -> None:
    done = bench("phases", "--size", "1", "--store", f"sqlite:///{tmp_path}/bench.db")

    assert done.returncode == 2
    assert "in process" in done.stderr


def test_recover_needs_a_store_that_outlives_its_process() -> None:
    done = bench("recover", "--size", "1")

    assert done.returncode == 2
    assert "sqlite" in done.stderr
