"""`treadle store copy` as an operator sees it."""

from __future__ import annotations

from tests.cli.conftest import Project


def test_a_copy_has_all_runs_and_is_made_once(project: Project) -> None:
    project.run("sums", "--input", "n=1", id="fine")
    project.run("fails", id="bad", code=1)
    project.detached("signalled", id="open")

    done = project.treadle("store", "copy", ".treadle/treadle.db", "copy.db")

    assert "3 runs, 1 of them open: the same in both stores" in done.stdout
    assert sorted(done.stderr.split("\n")[:3]) == ["copied bad", "copied fine", "copied open"]
    listed = project.json("runs", "--store", "copy.db")
    assert sorted((row["id"], row["status"]) for row in listed) == sorted(
        (row["id"], row["status"]) for row in project.json("runs")
    )
    again = project.treadle("store", "copy", "-q", ".treadle/treadle.db", "copy.db")
    assert "copied 0 events" in again.stdout
    assert again.stderr == ""


def test_mistakes_of_a_copy_are_told(project: Project) -> None:
    project.run("sums", "--input", "n=1", id="fine")
    project.run("sums", "--input", "n=2", "--store", "other.db", id="fine")

    assert "same store" in project.treadle("store", "copy", "copy.db", "copy.db", code=2).stderr
    assert "missing.db" in project.treadle("store", "copy", "missing.db", "copy.db", code=4).stderr
    refused = project.treadle("store", "copy", ".treadle/treadle.db", "other.db", code=5)
    assert "another run of the id 'fine'" in refused.stderr
