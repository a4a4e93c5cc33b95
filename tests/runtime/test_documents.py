"""Documents on disk: written whole or not at all, and read without any of their code."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from treadle import (
    Document,
    DocumentError,
    MissingExtraError,
    Registry,
    dump_document,
    load_document,
    plan_document,
    planned_of,
    save_document,
    step,
    workflow,
)

registry = Registry()


@step(name="paper:add", registry=registry)
def add(a: float, b: float) -> float:
    return a + b


@workflow(name="paper:sums", registry=registry)
def sums(n: int) -> float:
    return add.bind(n, 1.5)


@pytest.fixture
def document() -> Document:
    return plan_document(sums.plan(3), context={"commit": "abc"}, registry=registry)


@pytest.mark.parametrize("name", ["plan.json", "plan.yaml", "plan.YML", "plan"])
def test_a_document_is_saved_and_loaded(document: Document, tmp_path: Path, name: str) -> None:
    path = save_document(document, tmp_path / name)

    assert load_document(path) == document
    assert path.read_text() == dump_document(document, "json" if name in ("plan.json", "plan") else "yaml")
    assert os.listdir(tmp_path) == [name]
    assert planned_of(load_document(path), registry=registry).constants == ["3", "1.5"]


def test_provenance_tells_who_wrote_it(document: Document) -> None:
    written = document.provenance

    assert written.tool == "treadle"
    assert written.platform.python == ".".join(map(str, sys.version_info[:3]))
    assert written.context == {"commit": "abc"}
    assert written.created_at.tzinfo is not None
    assert written.code["paper:add"].startswith("sha256:")


def test_a_file_that_cannot_be_written_leaves_the_former_one(document: Document, tmp_path: Path) -> None:
    # A folder of this name cannot be replaced by a file.
    target = tmp_path / "plan.json"
    target.mkdir()

    with pytest.raises(DocumentError, match="cannot be written"):
        save_document(document, target)

    assert os.listdir(tmp_path) == ["plan.json"]


def test_yaml_names_its_extra_where_it_is_not_installed(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_document(document, tmp_path / "plan.yaml")
    monkeypatch.setitem(sys.modules, "yaml", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'treadle\[yaml\]'"):
        load_document(path)
    assert load_document(save_document(document, tmp_path / "plan.json")) == document


WRITER = """
import itertools, sys
from treadle import PlanBuilder, plan_document, save_document
builder = PlanBuilder("w")
for index in range(200):
    builder.step(None, f"m:step-{index}")
planned = builder.build()
for number in itertools.count():
    save_document(plan_document(planned, context={"number": str(number)}), sys.argv[1])
"""


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_a_whole_document(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) as writer:
            before = path.stat().st_mtime_ns if path.exists() else 0
            while not path.exists() or path.stat().st_mtime_ns == before:
                time.sleep(0.001)
            writer.kill()

        assert load_document(path).workflow == "w"
