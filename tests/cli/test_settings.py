"""Where the store is, and what the rest of the command line's small parts do."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from treadle.cli.complaints import complain, facts_of, wants_json
from treadle.cli.output import colourful, table
from treadle.cli.plans import dot, mermaid, tree
from treadle.cli.settings import DEFAULT_FILE, Project, as_url, find_project, store_url
from treadle.core.plan import Group, Plan, Ref, RetryPolicy, Step
from treadle.errors import CycleError, DefinitionError, DefinitionErrors, RunNotPausedError, UsageError


def test_the_store_is_the_first_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default = store_url(None, tmp_path)
    (tmp_path / "pyproject.toml").write_text('[tool.treadle]\nstore = "sqlite:///var/a.db"\nmodules = ["m"]\n')
    inner = tmp_path / "src"
    inner.mkdir()
    project = store_url(None, inner)
    monkeypatch.setenv("TREADLE_STORE", "sqlite:///b.db")

    assert default == f"sqlite:///{DEFAULT_FILE}"
    assert project == f"sqlite:///{tmp_path}/var/a.db"
    assert store_url(None, inner) == "sqlite:///b.db"
    assert store_url("c.db", inner) == "sqlite:///c.db"
    assert find_project(inner).modules == ["m"]


def test_a_folder_without_a_project_has_empty_settings(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")

    assert find_project(tmp_path) == Project(tmp_path)


@pytest.mark.parametrize("text", ["[tool.treadle]\nstor = 1\n", "[tool.treadle]\nstore = 1\n", "[tool", "tool = 1\n"])
def test_a_wrong_project_file_is_a_usage_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)

    with pytest.raises(UsageError, match=r"pyproject\.toml"):
        find_project(tmp_path)


def test_paths_become_urls() -> None:
    assert as_url("a b/x.db", None) == "sqlite:///a b/x.db"
    assert as_url("100%?#.db", None) == "sqlite:///100%25%3F%23.db"
    assert as_url("/tmp/x.db", Path("/p")) == "sqlite:////tmp/x.db"
    assert as_url("x.db", Path("/p")) == "sqlite:////p/x.db"
    assert as_url("memory://", Path("/p")) == "memory://"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["runs", "-o", "json"], True),
        (["runs", "--output", "jsonl"], True),
        (["runs", "--output=json"], True),
        (["runs", "-ojson"], True),
        (["runs", "-o", "table"], False),
        (["runs", "-o"], False),
        (["runs"], False),
    ],
)
def test_json_is_asked_for_in_every_spelling(args: list[str], expected: bool) -> None:
    assert wants_json(args) is expected


def test_all_mistakes_of_a_definition_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    error = DefinitionErrors("two", [CycleError(["a", "b", "a"]), DefinitionError("no steps")])

    assert complain(error, []) == 3
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert [one["code"] for one in facts_of(error)["errors"]] == ["cycle", "definition_invalid"]


def test_an_error_has_the_facts_of_its_class() -> None:
    error = RunNotPausedError("not paused", run_id="r", status="running")

    assert facts_of(error) == {"code": "run_not_paused", "message": "not paused", "run_id": "r", "status": "running"}


def test_an_error_is_one_line_whatever_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    complain(UsageError("a\nb\x1b[2J"), [])

    assert capsys.readouterr().err == "treadle: a\\nb\\x1b[2J\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    on_terminal, in_file = colourful(Terminal()), colourful(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    dumb = colourful(Terminal())
    monkeypatch.setenv("FORCE_COLOR", "1")
    forced = colourful(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")

    assert (on_terminal, in_file, dumb, forced, colourful(Terminal())) == (True, False, False, True, False)


def test_a_table_is_aligned_and_clean() -> None:
    assert table(("A", "B"), [["x\n", "1"], ["long", "2"]]) == "A     B\nx\\n   1\nlong  2\n"
    assert table(("A",), [], empty="none") == "none\n"


PLAN = Plan(
    workflow="demo",
    blocks=[
        Step(id='a"b', action="do", retry=RetryPolicy(attempts=3), timeout=2.0, queue="http"),
        Group(id="g", after=('a"b',), blocks=[Step(id="in", action="do"), Step(id="in2", action="do", after=("in",))]),
        Step(id="end", action="do", slots={"x": Ref('a"b', default=0)}, after_any=("g",), optional=True),
    ],
)


def test_a_plan_as_a_tree() -> None:
    assert tree(PLAN).splitlines() == [
        "demo  4 steps in 4 levels",
        '  a"b  retry=3  timeout=2s  queue=http',
        '  g/  ← a"b (after)',
        "    in",
        "    in2  ← in (after)",
        '  end  ← a"b (default), g (after_any)  optional',
    ]


def test_a_plan_as_mermaid_and_dot_quotes_ids() -> None:
    assert '  n0["a#34;b"]' in mermaid(PLAN)
    assert "  n0 -.-> n4" in mermaid(PLAN)
    assert '  n0 [label="a\\"b"];' in dot(PLAN)
    assert "  n0 -> n2 [lhead=cluster_n1];" in dot(PLAN)
    assert "  n2 -> n4 [style=dashed, ltail=cluster_n1];" in dot(PLAN)
