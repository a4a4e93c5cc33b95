"""Saved plans on the command line: written, shown, run, and refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

Project = Any  # tests/cli/conftest.py


@pytest.fixture
def saved(project: Project) -> Project:
    project.treadle("plan", project.target("sums"), "--input", "n=3", "--save", "plan.json", "--context", "commit=abc")
    return project


def test_a_plan_is_saved_with_its_hash_and_context(saved: Project) -> None:
    tree = json.loads((saved.folder / "plan.json").read_text())
    again = saved.treadle("plan", "plan.json", "--save", "plan.yaml").stdout
    told = saved.json("plan", "plan.yaml", "--save", "again.json")

    assert tree["provenance"]["context"] == {"commit": "abc"}
    assert tree["provenance"]["code"].keys() == {f"{saved.name}:add"}
    assert again.split() == ["plan.yaml", tree["hash"]]
    assert told == {"file": "again.json", "hash": tree["hash"], "workflow": f"{saved.name}:sums"}
    assert (saved.folder / "again.json").read_bytes() == (saved.folder / "plan.json").read_bytes()
    assert sorted(path.name for path in saved.folder.glob("*plan*")) == ["plan.json", "plan.yaml"]


@pytest.mark.parametrize("form", ["tree", "json", "mermaid", "dot"])
def test_a_saved_plan_is_shown_like_its_workflow(saved: Project, form: str) -> None:
    of_workflow = saved.treadle("plan", saved.target("sums"), "--input", "n=3", "--format", form).stdout
    of_document = saved.treadle("plan", "plan.json", "--format", form).stdout

    # The members of an object have no order.
    assert of_document == of_workflow or json.loads(of_document) == json.loads(of_workflow)


def test_a_saved_plan_runs_where_its_modules_are_named(saved: Project) -> None:
    by_option = saved.treadle("run", "plan.json", "--module", saved.file.name, "--id", "one")
    (saved.folder / "pyproject.toml").write_text(f'[tool.treadle]\nmodules = ["{saved.name}"]\n')
    by_project = saved.treadle("run", "plan.json", "--id", "two")

    assert json.loads(by_option.stdout) == json.loads(by_project.stdout) == {"sum": 14, "name": "n"}
    # The same document and id is the same run.
    assert json.loads(saved.treadle("run", "plan.json", "--id", "two").stdout) == {"sum": 14, "name": "n"}
    assert {row["id"] for row in saved.json("runs")} == {"one", "two"}


def test_the_id_of_a_run_belongs_to_one_plan(saved: Project) -> None:
    saved.treadle("plan", saved.target("sums"), "--input", "n=4", "--save", "other.json")
    saved.treadle("run", "plan.json", "--module", saved.file.name, "--id", "one")

    refused = saved.treadle("run", "other.json", "--module", saved.file.name, "--id", "one", code=5).stderr

    assert "exists with another workflow or input" in refused


def test_nothing_is_imported_that_was_not_named(saved: Project) -> None:
    plan = saved.folder / "plan.json"
    plan.write_text(plan.read_text().replace(saved.name, "unheard_of"))
    # The edit is refused first; with a fresh hash the names are.
    assert "changed after it was written" in saved.treadle("run", "plan.json", code=6).stderr
    found = re.search("sha256:[0-9a-f]{64}", saved.treadle("run", "plan.json", code=6).stderr)
    assert found is not None
    text = plan.read_text()
    plan.write_text(re.sub('"hash": "sha256:[0-9a-f]+"', f'"hash": "{found[0]}"', text))

    refused = saved.treadle("run", "plan.json", code=3).stderr

    assert "names what is not registered here: unheard_of:add" in refused
    assert "--module" in refused
    assert not (saved.folder / ".treadle").exists()


def test_every_mistake_of_an_edited_plan_has_a_line_of_its_own(saved: Project) -> None:
    plan = saved.folder / "plan.json"
    plan.write_text(plan.read_text().replace('"action"', '"acton"').replace('"tool"', '"tol"'))

    lines = saved.treadle("plan", "plan.json", code=3).stderr.splitlines()

    assert len(lines) == 6
    assert all(re.match(r"treadle: plan\.json:\d+:\d+: ", line) for line in lines)
    error = json.loads(saved.treadle("plan", "plan.json", "-o", "json", code=3).stderr)["error"]
    assert error["code"] == "document_invalid"
    assert error["path"] == "plan.json"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("plan missing.json", "missing.json: cannot be read: No such file"),
        ("plan plan.json --input n=1", "it takes no --input"),
        ("plan plan.json --save plan.txt", "--save takes a name that ends in .json, .yaml, .yml"),
        ("plan plan.json --save none/plan.json", "cannot be written: No such file"),
        ("plan plan.json --save new.json --context a=b", "is a document already"),
        ("run plan.json --detach --receipt r.json", "--detach does not wait for it"),
        ("run flows.py:sums --reset", "are for a target that is a document"),
    ],
)
def test_what_makes_no_sense_is_said(saved: Project, line: str, complaint: str) -> None:
    assert complaint in saved.treadle(*line.split(), code=None).stderr


def test_the_schema_of_documents_is_printed(project: Project) -> None:
    schema = project.json("schema", "document")

    assert {"Document", "RunRecord", "Provenance"} <= schema["$defs"].keys()
