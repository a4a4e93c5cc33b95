"""The verbs about receipts, on files and on runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

Project = Any  # tests/cli/conftest.py


@pytest.fixture
def ran(project: Project) -> Project:
    project.run("sums", "--input", "n=1", "--label", "team=web", id="one")
    project.run("fails", id="bad", code=1)
    return project


def test_show_tells_what_was_planned_and_what_became_of_it(ran: Project) -> None:
    good = ran.treadle("receipt", "show", "one").stdout
    bad = ran.treadle("receipt", "show", "bad").stdout

    assert good.startswith("Receipt of run one  [SUCCEEDED]")
    assert "2 steps: 2 succeeded; 2 stand" in good
    assert "labels team=web" in good
    assert 'result {"name":"n","sum":12}' in good or 'result {"sum":12,"name":"n"}' in good
    assert "not signed" in good
    assert "✗ fail" in bad
    assert "failed (root cause first): fail" in bad
    assert ran.json("receipt", "show", "bad")["run"]["status"] == "failed"


def test_export_writes_files_whose_names_cannot_collide(ran: Project) -> None:
    first = ran.json("receipt", "export", "one")
    ran.treadle("rewind", "one", "add-2", "--yes")
    second = ran.json("receipt", "export", "one")
    key = ran.json("show", "one")["key"]

    assert first["file"] == f"one-{key}-v{first['file'].split('-v')[1]}"
    assert first["file"] != second["file"]
    assert json.loads(Path(first["file"]).read_text())["hash"] == first["hash"]


def test_export_takes_the_form_of_the_file_and_keeps_the_document(ran: Project) -> None:
    ran.treadle("receipt", "export", "one", "r.yaml", "--context", "ticket=7")
    ran.treadle("receipt", "export", "r.yaml", "r.json")
    ran.treadle("receipt", "export", "r.json", "again.yaml")
    named = ran.json("receipt", "export", "r.json", "--form", "yaml", "--folder", ".")

    assert Path("again.yaml").read_bytes() == Path("r.yaml").read_bytes() == Path(named["file"]).read_bytes()
    assert json.loads(Path("r.json").read_text())["provenance"]["context"] == {"ticket": "7"}
    assert ran.treadle("receipt", "show", "r.yaml").stdout == ran.treadle("receipt", "show", "r.json").stdout


def test_an_id_that_could_be_a_path_stays_in_its_folder(ran: Project) -> None:
    ran.run("sums", "--input", "n=1", id="../a b/c")

    name = ran.json("receipt", "export", "../a b/c")["file"]

    assert name.startswith("a-b-c-")
    assert Path(name).exists()


def test_diff_tells_where_two_runs_differ(ran: Project) -> None:
    ran.run("sums", "--input", "n=2", id="two")
    ran.treadle("receipt", "export", "one", "one.json")

    told = ran.treadle("receipt", "diff", "one.json", "two", code=1).stdout
    facts = ran.json("receipt", "diff", "one.json", "two", code=1)

    assert "$.constants[0]" in told
    assert {"place": "$.run.steps[add].result.value", "left": 2, "right": 3} in facts
    assert not any("_at" in fact["place"] for fact in facts)
    assert "$.run.key" in ran.treadle("receipt", "diff", "one.json", "two", "--all", code=1).stdout
    assert ran.treadle("receipt", "diff", "one.json", "one").stdout == "no differences\n"


def test_a_receipt_is_run_again_only_when_it_is_reset(ran: Project) -> None:
    ran.treadle("receipt", "export", "one", "r.json")

    refused = ran.treadle("run", "r.json", "--module", ran.file.name, code=3).stderr
    again = ran.treadle("run", "r.json", "--module", ran.file.name, "--reset", "--id", "again")

    assert "receipt of run 'one' (succeeded)" in refused
    assert json.loads(again.stdout) == {"sum": 12, "name": "n"}


def test_a_receipt_is_shown_where_none_of_its_code_is(ran: Project, tmp_path: Path) -> None:
    ran.treadle("receipt", "export", "bad", "r.json")
    text = Path("r.json").read_text()
    ran.file.unlink()

    assert "✗ fail" in ran.treadle("receipt", "show", "r.json").stdout
    assert "fail" in ran.treadle("plan", "r.json").stdout
    assert ran.json("receipt", "show", "r.json") == json.loads(text)


def test_what_is_not_there_is_said(ran: Project) -> None:
    assert "there is no run 'none'" in ran.treadle("receipt", "show", "none", code=4).stderr
    assert "there is no run 'none.json'" in ran.treadle("receipt", "show", "none.json", code=4).stderr
    Path("cut.json").write_text('{"format": "treadle.plan/1", "run": {')
    assert "cut.json:1:38: the text ends in the middle" in ran.treadle("receipt", "show", "cut.json", code=3).stderr
