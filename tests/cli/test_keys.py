"""Encrypted stores on the command line: `treadle keys`, where keys come from, and verbs that have none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.test_keeping import treadle

FLOW = """
from treadle import context, step, workflow

@step
async def greet(name: str) -> str:
    await context().artifact("card.txt", f"for {name}")
    return f"Hello, {name}"

@step
async def fails(name: str) -> str:
    raise ValueError(f"no card for {name}")

@workflow
def welcome(name: str) -> str:
    return greet.bind(name)

@workflow
def refuse(name: str) -> str:
    return fails.bind(name)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project whose runs are encrypted; the file of keys lies beside its settings."""
    (tmp_path / "flows.py").write_text(FLOW)
    (tmp_path / "pyproject.toml").write_text('[tool.treadle]\nstore = "app.db"\ncodec = "file:app.keys"\n')
    code, line, _ = treadle(tmp_path, "keys", "new", "k1")
    assert code == 0
    (tmp_path / "app.keys").write_text(line)
    assert treadle(tmp_path, "run", "flows.py:welcome", "--id", "w", "--input", "name=Ada")[1] == '"Hello, Ada"\n'
    assert treadle(tmp_path, "run", "flows.py:refuse", "--id", "f", "--input", "name=Ada")[0] == 1
    return tmp_path


def test_with_the_key_verbs_show_values_and_without_it_that_they_are_encrypted(folder: Path) -> None:
    assert treadle(folder, "result", "w")[1] == '"Hello, Ada"\n'
    assert "no card for Ada" in treadle(folder, "show", "f", "fails")[1]
    assert "no card for Ada" in treadle(folder, "show", "f")[1]
    assert treadle(folder, "artifact", "get", "w", "greet:artifact:001")[1] == "for Ada"

    (folder / "app.keys").rename(folder / "gone")
    (folder / "pyproject.toml").write_text('[tool.treadle]\nstore = "app.db"\n')
    for verb in ("show", "events", "receipt show", "why", "artifacts"):
        for run in ("w", "f"):
            code, out, err = treadle(folder, *verb.split(), run)
            assert (code, err) == (0, ""), verb
            assert "Ada" not in out
    for words in (("show", "w", "greet"), ("show", "f", "fails"), ("dead",)):
        code, out, err = treadle(folder, *words)
        assert (code, err) == (0, "")
        assert "<encrypted>" in out
    code, _, err = treadle(folder, "result", "w", "-o", "json")
    assert code == 2
    assert "missing_key" in err
    assert "'k1'" in err


def test_keys_that_runs_need_are_counted_without_a_key(folder: Path) -> None:
    code, out, _ = treadle(folder, "keys", "used", "-o", "json")

    assert code == 0
    assert json.loads(out) == [{"key": "k1", "runs": 2, "here": True}]
    (folder / "pyproject.toml").write_text('[tool.treadle]\nstore = "app.db"\n')
    assert json.loads(treadle(folder, "keys", "used", "-o", "json")[1]) == [{"key": "k1", "runs": 2, "here": False}]


def test_a_key_file_that_cannot_be_read_is_a_clear_error(folder: Path) -> None:
    (folder / "app.keys").write_text("k1 short\n")

    code, _, err = treadle(folder, "result", "w")

    assert code == 2
    assert "'k1'" in err
    assert "short" not in err
    assert treadle(folder, "keys", "new", "no id")[0] == 2
