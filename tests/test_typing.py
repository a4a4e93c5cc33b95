"""mypy and pyright see in tests/typing exactly the errors that are marked there.

`make check` already fails on a mark without an error and on an error without a mark; here the marks are taken off and
the checkers' own words compared, so that no setting can make both of them blind.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "tests" / "typing").glob("*.py"))
MARKS = {"mypy": re.compile(r"#\s*type: ignore\[([^\]]+)\]"), "pyright": re.compile(r"#\s*pyright: ignore\[([^\]]+)\]")}

Found = set[tuple[str, int, str]]


def expected(checker: str) -> Found:
    """File, line and code of every marked error."""
    return {
        (path.name, number, code.strip())
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for mark in MARKS[checker].finditer(line)
        for code in mark[1].split(",")
    }


def strip(target: Path) -> None:
    """Write the files without their marks."""
    for path in FILES:
        lines = path.read_text(encoding="utf-8").splitlines()
        bare = [re.sub(r"\s*#\s*(type|pyright): ignore\[.*$", "", line) for line in lines]
        (target / path.name).write_text("\n".join(bare) + "\n", encoding="utf-8")


def run(*command: str, cwd: Path) -> str:
    """The output of a checker that found something."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_mypy_finds_the_marked_errors_and_no_others(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="installed for the first interpreter only")
    strip(tmp_path)

    out = run(
        *("mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache")),
        *("--no-error-summary", "--hide-error-context", "--no-pretty", *(str(tmp_path / path.name) for path in FILES)),
        cwd=ROOT,
    )

    lines = [re.match(r"(.+):(\d+): error: .*\[([a-z-]+)\]$", line) for line in out.splitlines() if ": error: " in line]
    assert {(Path(line[1]).name, int(line[2]), line[3]) for line in lines if line} == expected("mypy")
    assert None not in lines


def test_pyright_finds_the_marked_errors_and_no_others(tmp_path: Path) -> None:
    pytest.importorskip("pyright", reason="installed for the first interpreter only")
    strip(tmp_path)
    settings = {
        "include": ["."],
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
        "extraPaths": [str(ROOT / "src")],
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))

    out = run("pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path), cwd=tmp_path)

    found = json.loads(out)["generalDiagnostics"]
    assert {
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1, one["rule"])
        for one in found
        if one["severity"] == "error"
    } == expected("pyright")
