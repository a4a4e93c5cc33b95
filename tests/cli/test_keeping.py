"""`gc`, `backup`, searching runs, and a worker that works in cycles."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FLOW = """
from treadle import Package, describe_run, step, workflow

@step
def one(value: int) -> int:
    return value

@workflow
def flow(value: int) -> int:
    return one.bind(value)

shop = Package("shop", title="Order")

@shop.step
def price(count: int) -> int:
    return count * 10

@shop.entrypoint
def order(count: int) -> int:
    describe_run(metadata={"count": str(count)})
    return price.bind(count)
"""


def treadle(folder: Path, *args: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "treadle", *args], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_runs_are_made_searched_copied_and_deleted(tmp_path: Path) -> None:
    (tmp_path / "flows.py").write_text(FLOW)

    code, out, err = treadle(
        tmp_path, "run", "flows.py:flow", "--input", "value=3", "--id", "r-1", "--name", "First", "-q"
    )
    assert (code, out.strip()) == (0, "3"), err
    code, out, err = treadle(
        tmp_path, "run", "flows.py:order", "--input", "count=2", "--id", "o-1", "--detach", "--meta", "by=ada"
    )
    assert code == 0, err
    code, out, err = treadle(tmp_path, "worker", "flows.py", "--until-idle")
    assert code == 0, err
    assert "1 attempts: 1 succeeded" in err + out

    def found(*options: str) -> list[str]:
        code, out, err = treadle(tmp_path, "runs", *options, "-o", "json")
        assert code == 0, err
        return [row["id"] for row in json.loads(out)]

    assert found("--package", "shop") == ["o-1"]
    assert found("--meta", "by=ada", "--search", "ORDER") == ["o-1"]
    assert found("--search", "first") == ["r-1"]
    assert found("--meta", "count=3") == []

    code, out, err = treadle(tmp_path, "backup", "copy.db")
    assert code == 0, err
    code, out, err = treadle(tmp_path, "backup", "copy.db")
    assert code == 2
    assert "exists" in err

    code, out, err = treadle(tmp_path, "gc", "--older-than", "0s", "--dry-run", "-o", "json")
    assert code == 0, err
    assert sorted(row["id"] for row in json.loads(out)["deleted"]) == ["o-1", "r-1"]
    code, out, err = treadle(tmp_path, "gc", "--older-than", "0s", "--status", "failed")
    assert code == 2
    assert "--yes" in err
    code, out, err = treadle(tmp_path, "gc", "--older-than", "0s", "--yes")
    assert code == 0, err
    assert found() == []
    assert treadle(tmp_path, "runs", "--store", "copy.db", "-o", "json")[1].count('"id"') == 2
