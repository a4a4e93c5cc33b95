"""The verbs about artifacts, and the one that removes what nobody needs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.conftest import Project

FLOWS = """
from treadle import context, step, workflow

@step
async def make() -> str:
    own = context()
    await own.artifact("page.html", "<p>hi</p>", metadata={"url": "http://x"})
    await own.artifact("facts.json", '{"a": [1, 2]}')
    await own.artifact("raw.bin", bytes(range(256)))
    await own.artifact("evil\\u202e.txt", "\\x1b[31mred", id="mine")
    return "done"

@workflow
def flow():
    return make.bind()
"""


@pytest.fixture
def made(project: Project) -> Project:
    project.file.write_text(FLOWS, encoding="utf-8")
    project.run("flow")
    return project


def test_the_artifacts_of_a_run_are_listed(made: Project) -> None:
    text = made.treadle("artifacts", "r1").stdout
    found = made.json("artifacts", "r1")

    assert "make:artifact:001" in text
    assert "page.html" in text
    assert [one["id"] for one in found] == ["make:artifact:001", "make:artifact:002", "make:artifact:003", "mine"]
    assert found[0]["uri"].startswith("file://")
    assert made.json("artifacts", "r1", "--step", "other") == []


@pytest.mark.parametrize(
    ("id", "kind", "shown"),
    [
        ("make:artifact:001", "html", "<p>hi</p>"),
        ("make:artifact:002", "json", '  "a": ['),
        ("make:artifact:003", "binary", "00 01 02"),
        ("mine", "text", "red"),
    ],
)
def test_an_artifact_is_shown_by_its_kind(made: Project, id: str, kind: str, shown: str) -> None:
    text = made.treadle("artifact", "show", "r1", id).stdout

    assert shown in text
    assert "\x1b" not in text
    assert made.json("artifact", "show", "r1", id)["preview"] == kind


def test_the_bytes_of_an_artifact_are_written(made: Project, tmp_path: Path) -> None:
    assert made.treadle("artifact", "get", "r1", "make:artifact:003").stdout_bytes == bytes(range(256))

    target = tmp_path / "copy.bin"
    made.treadle("artifact", "get", "r1", "make:artifact:003", "--to", str(target))
    assert target.read_bytes() == bytes(range(256))
    refused = made.treadle("artifact", "get", "r1", "mine", "--to", str(target), code=2)
    assert "cannot be written" in refused.stderr
    assert target.read_bytes() == bytes(range(256))


def test_an_unknown_artifact_is_not_found(made: Project) -> None:
    assert "no artifact 'x'" in made.treadle("artifact", "show", "r1", "x", code=4).stderr


def test_old_blobs_that_no_run_names_are_removed(made: Project) -> None:
    made.treadle("delete", "r1", "--yes")

    assert made.json("gc", "--yes")["blobs"] == {"removed": 0, "size": 0, "kept": 0}
    assert "0 blobs would be removed" in made.treadle("gc", "--blobs", "2h", "--dry-run").stdout
    assert "longer age" in made.treadle("gc", "--blobs", "5s", "--yes", code=2).stderr


def test_where_artifacts_are_is_a_setting(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.file.write_text(FLOWS, encoding="utf-8")
    (project.folder / "pyproject.toml").write_text('[tool.treadle]\nartifacts = "kept"\n', encoding="utf-8")
    project.run("flow")
    assert any((project.folder / "kept").rglob("*"))

    monkeypatch.setenv("TREADLE_ARTIFACTS", str(project.folder / "elsewhere"))
    project.run("flow", id="r2")
    assert any((project.folder / "elsewhere").rglob("*"))
