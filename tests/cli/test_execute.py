"""`treadle run` and `treadle worker`, in this process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from treadle.cli.targets import Inputs, Text, parse_inputs, split_target
from treadle.errors import UsageError

Project = Any  # tests/cli/conftest.py


def test_run_prints_the_result_on_stdout_and_talks_on_stderr(project: Project) -> None:
    done = project.run("sums", "--input", '{"n": 1}')

    assert json.loads(done.stdout) == {"sum": 12, "name": "n"}
    assert "run r1 of" in done.stderr
    assert "succeeded in" in done.stderr


def test_run_makes_the_default_store_in_the_present_folder(project: Project) -> None:
    project.run("sums", "--input", "n=1", "--quiet")

    assert (project.folder / ".treadle" / "treadle.db").is_file()
    assert (project.folder / ".treadle" / ".gitignore").read_text() == "*\n"


def test_quiet_says_nothing_of_progress(project: Project) -> None:
    assert project.run("sums", "--input", "n=1", "--quiet").stderr == ""


@pytest.mark.parametrize(
    ("inputs", "name"),
    [(["[1]"], "n"), (["n=1"], "n"), (["n=1", "name=07"], "07"), (['{"n": 1}', "name=true"], "true")],
)
def test_inputs_by_position_by_name_and_as_text(project: Project, inputs: list[str], name: str) -> None:
    args = [part for text in inputs for part in ("--input", text)]

    assert json.loads(project.run("sums", *args).stdout) == {"sum": 12, "name": name}


def test_an_input_from_a_file_becomes_the_parameters_type(project: Project) -> None:
    (project.folder / "cart.json").write_text('{"cart": {"items": 3}}')

    assert json.loads(project.run("carts", "--input", "@cart.json").stdout) == {"items": 3, "name": "x"}


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--input", "n=x"], 3, "argument 'n': expected `int`, got `str`"),
        (["--input", "m=1"], 3, "has no parameter 'm'"),
        ([], 3, "lacks argument 'n'"),
        (["--input", "nonsense"], 2, "name=value, not 'nonsense'"),
        (["--input", "{"], 2, "is no JSON"),
        (["--input", "@missing.json"], 2, "cannot be read"),
        (["--input", "n=1", "--input", '{"n": 2}'], 2, "argument 'n' is given twice"),
        (["--input", "n=1", "--label", "x"], 2, "--label takes key=value"),
    ],
)
def test_a_wrong_input_is_named_and_makes_no_store(project: Project, args: list[str], code: int, message: str) -> None:
    done = project.treadle("run", project.target("sums"), *args, code=code)

    assert message in done.stderr
    assert done.stdout == ""
    assert not (project.folder / ".treadle").exists()


def test_a_second_run_of_the_same_id_attaches_and_executes_nothing_again(project: Project) -> None:
    project.run("sums", "--input", "n=1")
    events = project.treadle("events", "r1").stdout

    assert json.loads(project.run("sums", "--input", "n=1").stdout)["sum"] == 12
    assert json.loads(project.run("sums").stdout)["sum"] == 12
    assert project.treadle("events", "r1").stdout == events


def test_a_run_of_another_input_or_workflow_is_no_second_run(project: Project) -> None:
    project.run("sums", "--input", "n=1")

    assert "another workflow or input" in project.run("sums", "--input", "n=2", code=5).stderr
    assert "not of" in project.run("fails", code=5).stderr


def test_what_was_detached_is_finished_by_a_second_run(project: Project) -> None:
    started = json.loads(project.run("sums", "--input", "n=1", "--detach").stdout)
    waiting = project.json("show", "r1")

    assert started["run"] == "r1"
    assert waiting["counts"]["succeeded"] == 0
    assert json.loads(project.run("sums").stdout)["sum"] == 12


def test_a_failed_run_is_one_line_and_exit_code_1(project: Project) -> None:
    done = project.run("fails", "--quiet", code=1)

    assert done.stdout == ""
    assert done.stderr.splitlines()[0].startswith("treadle: run 'r1' failed: step 'fail': error: boom")
    assert "treadle retry r1" in done.stderr


def test_an_error_is_json_where_json_was_asked_for(project: Project) -> None:
    done = project.run("fails", "--quiet", "--output", "json", code=1)

    error = json.loads(done.stderr)["error"]
    assert (error["code"], error["run_id"], error["failures"]) == ("run_failed", "r1", {"fail": "error: boom"})


@pytest.mark.parametrize(
    ("target", "code", "message"),
    [
        ("nope.py:x", 2, "there is no file 'nope.py'"),
        ("nope:x", 2, "there is no module 'nope'"),
        ("{file}:nope", 3, "'nope' is not there in"),
        ("{file}:add", 3, "'add' is no workflow in"),
        ("{file}", 2, "holds several workflows"),
        ("broken.py", 3, "importing 'broken.py' failed: ZeroDivisionError"),
        ("empty.py", 3, "holds no workflow"),
    ],
)
def test_a_wrong_target_is_explained(project: Project, target: str, code: int, message: str) -> None:
    (project.folder / "broken.py").write_text('"""x"""\n1 / 0\n')
    (project.folder / "empty.py").write_text('"""x"""\n')

    assert message in project.treadle("plan", target.format(file=project.file.name), code=code).stderr


def test_the_place_of_a_mistake_in_a_target_is_named(project: Project) -> None:
    (project.folder / "broken.py").write_text('"""x"""\n1 / 0\n')

    assert "broken.py:2)" in project.treadle("plan", "broken.py", code=3).stderr


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_workflow_whose_own_code_raises_is_named_with_the_place(project: Project, verb: str) -> None:
    (project.folder / f"raises_{verb}.py").write_text(
        'from treadle import workflow\n\n\n@workflow\ndef lost(n: int) -> int:\n    return {}["n"]\n'
    )

    done = project.treadle(verb, f"raises_{verb}.py:lost", "--input", "n=1", "-o", "json", code=3)

    error = json.loads(done.stderr)["error"]
    assert error["code"] == "definition_invalid"
    assert error["message"].startswith("planning 'raises_" + verb + ":lost' failed: KeyError: 'n' (")
    assert error["message"].endswith(f"raises_{verb}.py:6)")


def test_a_breakpoint_stops_a_run_only_where_it_is_armed(project: Project) -> None:
    project.run("stops", id="free")
    project.detached("stops", "--break", "look", id="armed")

    assert project.json("show", "free")["status"] == "succeeded"
    assert [view["armed"] for view in project.json("breakpoints", "armed")] == [True]


def test_a_worker_needs_something_to_execute(project: Project) -> None:
    assert "name a file or module" in project.treadle("worker", code=2).stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.py:f", ("a.py", "f")),
        ("a.py", ("a.py", "")),
        ("pkg.mod:f.g", ("pkg.mod", "f.g")),
        ("pkg.mod", ("pkg.mod", "")),
        ("C:\\x\\a.py", ("C:\\x\\a.py", "")),
        ("C:\\x\\a.py:f", ("C:\\x\\a.py", "f")),
        ("a.py:", ("a.py", "")),
    ],
)
def test_a_target_is_split_at_the_workflows_name(text: str, expected: tuple[str, str]) -> None:
    assert split_target(text) == expected


def test_inputs_are_parsed_without_looking_at_the_workflow() -> None:
    inputs = parse_inputs(('[1, "a"]', '{"x": null}', "y=a=b"))

    assert inputs == Inputs([1, "a"], {"x": None, "y": Text("a=b")})
    assert inputs.given
    assert not Inputs().given


@pytest.mark.parametrize("texts", [("[1]", "[2]"), ("a=1", "a=2"), ("=1",)])
def test_contradicting_inputs_are_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        parse_inputs(texts)


def test_data_and_a_dry_run_reach_the_steps_and_their_lines_the_terminal(project: Project) -> None:
    args = ("--input", "name=rc", "--data", "root=etc", "--data", '{"n": 1}')
    done = project.run("deploys", *args)
    dry = project.run("deploys", *args, "--dry-run", id="r2")

    assert json.loads(done.stdout) == json.loads(dry.stdout) == "etc/rc"
    assert "link | links rc" in done.stderr
    assert "dry run r2 of" in dry.stderr
    assert "link | would link rc" in dry.stderr
    assert project.json("show", "r2")["dry_run"] is True
    assert "dry run" in project.treadle("show", "r2").stdout
    assert project.json("receipt", "show", "r2")["run"]["dry_run"] is True
    assert "[SUCCEEDED]  dry run  workflow" in project.treadle("receipt", "show", "r2").stdout
    assert "dry run" not in project.treadle("receipt", "show", "r1").stdout
    assert "links" not in project.run("deploys", *args, "--quiet", id="r3").stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 3, "takes 'root' from the run's data"),
        (["--data", "root=1"], 3, "does not fit 'root' of the run's data"),
        (["--data", "[1]"], 2, "--data takes names"),
        (["--data", "nonsense"], 2, "--data takes a JSON object"),
        (["--data", "root=a", "--data", "root=b"], 2, "'root' is given twice"),
    ],
)
def test_wrong_data_are_named(project: Project, args: list[str], code: int, message: str) -> None:
    assert message in project.run("deploys", "--input", "name=rc", *args, code=code).stderr


def test_another_kind_of_run_is_no_second_run(project: Project) -> None:
    args = ("--input", "name=rc", "--data", "root=etc")
    project.run("deploys", *args)

    assert "another workflow or input" in project.run("deploys", *args, "--dry-run", code=5).stderr


def test_hooks_and_middleware_of_the_project_are_used(project: Project) -> None:
    settings = f'[tool.treadle]\nhooks = ["{project.name}:Audit"]\nmiddleware = ["{project.name}:shouted"]\n'
    (project.folder / "pyproject.toml").write_text(settings)

    done = project.run("deploys", "--input", "name=rc", "--data", "root=etc")

    assert json.loads(done.stdout) == "ETC/RC"
    assert (project.folder / "audit.txt").read_text() == "link succeeded"


@pytest.mark.parametrize("name", ["nothing_here", "NAME:Nothing", "NAME", "NAME:shouted"])
def test_hooks_that_are_none_are_named(project: Project, name: str) -> None:
    name = name.replace("NAME", project.name)
    (project.folder / "pyproject.toml").write_text(f'[tool.treadle]\nhooks = ["{name}"]\n')

    done = project.run("deploys", "--input", "name=rc", "--data", "root=etc", code=2)

    assert name in done.stderr.replace("<function ", f"{project.name}:") or "shouted" in done.stderr
    assert not (project.folder / ".treadle" / "treadle.db").exists()
