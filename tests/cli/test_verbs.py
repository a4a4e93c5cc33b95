"""Reading and operating verbs on runs in a real SQLite file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

Project = Any  # tests/cli/conftest.py

READING = ["runs", "show r1", "watch r1", "result r1", "events r1", "why r1", "breakpoints r1", "dead", "doctor"]
OPERATING = ["pause r1", "resume r1", "cancel r1", "retry r1", "rewind r1 x", "undo r1", "signal r1 x", "release r1 x"]


@pytest.mark.parametrize("line", [*READING, *OPERATING, "delete r1 --yes"])
def test_no_verb_but_run_and_worker_makes_a_store(project: Project, line: str) -> None:
    done = project.treadle(*line.split(), code=4)

    assert "does not exist" in done.stderr
    assert not (project.folder / ".treadle").exists()


@pytest.mark.parametrize("line", [verb for verb in READING + OPERATING if "r1" in verb])
def test_an_unknown_run_is_exit_code_4(project: Project, line: str) -> None:
    project.run("sums", "--input", "n=1", id="other")

    assert "there is no run 'r1'" in project.treadle(*line.split(), code=4).stderr


def test_a_run_is_named_by_the_beginning_of_its_id_or_key(project: Project) -> None:
    for name in ("crawl-1", "crawl-12", "order"):
        project.detached("signalled", id=name)

    key = project.json("show", "order")["key"]

    assert project.json("show", "or")["id"] == "order"
    assert project.json("show", key[:-1])["id"] == "order"
    assert project.json("show", "crawl-1")["id"] == "crawl-1"
    ambiguous = project.treadle("show", "crawl", code=2).stderr
    assert "several runs" in ambiguous
    assert "crawl-1" in ambiguous
    assert "crawl-12" in ambiguous


def test_runs_are_listed_newest_first_and_filtered(project: Project) -> None:
    project.run("sums", "--input", "n=1", "--label", "team=a", id="one")
    project.run("fails", "--label", "team=b", id="two", code=1)
    project.detached("signalled", id="three")
    project.treadle("pause", "three")

    def ids(*args: str) -> list[str]:
        return [row["id"] for row in project.json("runs", *args)]

    assert ids() == ["three", "two", "one"]
    assert ids("--status", "failed") == ["two"]
    assert ids("--status", "paused") == ["three"]
    assert ids("--status", "running") == []
    assert ids("--label", "team=a") == ["one"]
    assert ids("--id-prefix", "t") == ["three", "two"]
    assert ids("--limit", "1") == ["three"]
    assert ids("--workflow", f"{project.name}:sums") == ["one"]
    table = project.treadle("runs").stdout.splitlines()
    assert table[0].split() == ["ID", "STATUS", "WORKFLOW", "RUNNING", "AGE", "LABELS"]
    assert table[1].split()[:2] == ["three", "paused"]
    lines = project.treadle("runs", "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["three", "two", "one"]


def test_show_prints_the_report_the_tree_or_the_snapshot(project: Project) -> None:
    project.run("fails", code=1)

    report = project.treadle("show", "r1").stdout
    assert report.startswith("Run r1  [FAILED]")
    assert "✗ fail" in report
    assert project.treadle("show", "r1", "--tree").stdout.splitlines()[0] == "Run r1 [failed]"
    assert project.json("show", "r1")["failures"][0]["address"] == "fail"


def test_show_of_a_step_has_the_whole_error_text(project: Project) -> None:
    project.run("fails", "--input", "text=" + "x" * 6000, code=1)

    shown = project.json("show", "r1", "fail")

    assert len(shown["failure"]["message"].encode()) <= 4096
    assert "x" * 6000 in shown["detail"]
    assert "Traceback" in shown["detail"]
    assert "x" * 6000 in project.treadle("show", "r1", "fail").stdout
    assert "has no step 'nope'" in project.treadle("show", "r1", "nope", code=4).stderr


def test_dead_lists_what_failed_for_good(project: Project) -> None:
    project.run("fails", code=1)
    project.run("sums", "--input", "n=1", id="fine")

    (found,) = project.json("dead")

    assert (found["run"], found["address"], found["code"]) == ("r1", "fail", "error")
    assert "Traceback" in found["detail"]
    assert "boom" in project.treadle("dead", "--full").stdout
    assert project.json("dead", "fine") == []
    assert len(project.json("dead", "r1")) == 1


def test_dead_letters_are_chosen_by_workflow_code_age_and_step(project: Project) -> None:
    project.run("fails", code=1)

    (run,) = project.json("runs")

    assert len(project.json("dead", "list", "r1", "fail")) == 1
    assert len(project.json("dead", "--workflow", run["workflow"])) == 1
    assert project.json("dead", "--workflow", "other") == []
    assert len(project.json("dead", "--code", "error")) == 1
    assert project.json("dead", "--code", "timeout") == []
    assert project.json("dead", "--older-than", "1d") == []
    assert project.json("dead", "list", "r1", "other") == []


def test_dead_requeue_lets_a_step_run_again(project: Project) -> None:
    project.run("fails", code=1)

    planned = project.json("dead", "requeue", "r1", "--dry-run")
    assert [(one["run"], one["step"], one["status"]) for one in planned] == [("r1", "fail", "failed")]
    assert project.json("runs", "--status", "failed")

    (answer,) = project.json("dead", "requeue", "r1", "fail")
    assert (answer["run"], answer["step"], answer["refused"]) == ("r1", "fail", "")
    assert "fail" in answer["reopened"]
    assert project.json("dead") == []
    assert project.json("dead", "requeue", "--all") == []


def test_dead_purge_deletes_failed_runs_only(project: Project) -> None:
    project.run("fails", code=1)
    project.run("fails", id="r2", code=1)

    assert "say which dead letters" in project.treadle("dead", "purge", code=2).stderr
    assert "confirm by --yes" in project.treadle("dead", "purge", "--all", code=2).stderr
    answers = project.json("dead", "purge", "--all", "--yes")

    assert sorted((one["run"], one["deleted"]) for one in answers) == [("r1", True), ("r2", True)]
    assert project.json("runs") == []


def test_result_of_a_run_and_of_a_step(project: Project) -> None:
    project.run("sums", "--input", "n=1")
    project.run("fails", id="bad", code=1)
    project.detached("signalled", id="open")

    assert json.loads(project.treadle("result", "r1").stdout) == {"sum": 12, "name": "n"}
    assert json.loads(project.treadle("result", "r1", "add").stdout) == 2
    assert "boom" in project.treadle("result", "bad", code=1).stderr
    assert "boom" in project.treadle("result", "bad", "fail", code=1).stderr
    assert "because of fail" in project.treadle("result", "bad", "echo", code=10).stderr
    assert "no result yet" in project.treadle("result", "open", code=5).stderr
    assert "is waiting" in project.treadle("result", "open", "take", code=5).stderr
    assert "after 0.05 s" in project.treadle("result", "open", "--timeout", "0.05", code=5).stderr
    assert project.treadle("result", "r1", "nope", code=4).stdout == ""


def test_events_are_json_lines_with_version_and_time(project: Project) -> None:
    project.run("sums", "--input", "n=1")

    found = [json.loads(line) for line in project.treadle("events", "r1").stdout.splitlines()]
    later = [json.loads(line) for line in project.treadle("events", "r1", "--after", "1", "-f").stdout.splitlines()]

    assert found[0]["kind"] == "run_started"
    assert found[-1]["kind"] == "run_settled"
    assert [event for event in found if event["version"] > 1] == later
    assert "run_settled" in project.treadle("events", "r1", "-o", "table").stdout
    assert project.json("events", "r1") == found


def test_why_names_the_fence_and_the_capacity(project: Project) -> None:
    project.detached("signalled", id="s")
    project.detached("sums", "--input", "n=1", id="n")

    assert [(r["code"], r["step"]) for r in project.json("why", "s")] == [("no_process", ""), ("signal", "take")]
    codes = [reason["code"] for reason in project.json("why", "n", "add")]
    assert {"no_process", "no_worker"} <= set(codes)
    assert "dispatched" in codes
    assert "waits for the signal 'go'" in project.treadle("why", "s").stdout
    assert project.treadle("why", "s", "nope", code=4).stdout == ""


def test_pause_resume_and_cancel_need_no_code_of_the_user(project: Project) -> None:
    project.detached("sums", "--input", "n=1")
    project.file.unlink()

    assert project.treadle("pause", "r1").stdout == "paused r1\n"
    assert "is paused" in project.treadle("pause", "r1", code=5).stderr
    assert project.json("resume", "r1") == {"run": "r1", "status": "running"}
    assert "not paused" in project.treadle("resume", "r1", code=5).stderr
    assert project.treadle("cancel", "r1", "--wait").stdout == "cancelled r1\n"
    assert project.treadle("cancel", "r1").stdout == "cancelled r1\n"
    assert project.treadle("result", "r1", code=9).stdout == ""
    assert "cancelled" in project.treadle("pause", "r1", code=5).stderr


def test_a_signal_is_delivered_once(project: Project) -> None:
    project.detached("signalled")

    assert project.treadle("signal", "r1", "go", '{"a": 1}').stdout == "delivered signal go to r1\n"
    assert "first payload is kept" in project.treadle("signal", "r1", "go", "2").stdout
    assert json.loads(project.run("signalled").stdout) == {"a": 1}
    assert "not delivered" in project.treadle("signal", "r1", "other", code=5).stderr


@pytest.mark.parametrize(("args", "expected"), [(["7"], 7), (["a b", "--text"], "a b"), (["@p.json"], [1]), ([], None)])
def test_payloads_of_signals(project: Project, args: list[str], expected: object) -> None:
    (project.folder / "p.json").write_text("[1]")
    project.detached("signalled")

    project.treadle("signal", "r1", "go", *args)

    assert json.loads(project.run("signalled").stdout) == expected


def test_a_payload_that_is_no_json_is_refused(project: Project) -> None:
    project.detached("signalled")

    assert "quote it, or pass --text" in project.treadle("signal", "r1", "go", "plain", code=2).stderr


def test_retry_and_rewind_reopen_steps(project: Project) -> None:
    flag = project.folder / "flag"
    patient = f"    if not Path({str(flag)!r}).exists():\n        raise ValueError(text)\n    return 1"
    project.file.write_text(project.file.read_text().replace("    raise ValueError(text)", patient))
    project.run("fails", code=1)
    flag.touch()

    assert project.json("retry", "r1") == {"run": "r1", "reopened": ["fail", "echo"]}
    assert json.loads(project.run("fails").stdout) == 1
    assert project.treadle("rewind", "r1", "echo").stdout == "rewound echo of r1\n"
    assert json.loads(project.run("fails").stdout) == 1
    assert project.json("show", "r1", "echo")["generation"] == 2
    assert "only a failed or cancelled step" in project.treadle("retry", "r1", "echo", code=5).stderr


def there(project: Project) -> set[str]:
    return {name for name in ("one", "two") if (project.folder / name).exists()}


def test_undo_lists_and_undoes_what_a_run_did(project: Project) -> None:
    project.run("files")

    stack = project.json("undo", "r1", "--dry-run")
    assert [(entry["address"], entry["resource"]) for entry in stack] == [("two", "disk"), ("one", "disk")]
    assert "1  two   succeeded" in project.treadle("undo", "r1", "--dry-run").stdout
    assert project.json("undo", "r1", "--to", "one")["undoing"] is True
    assert project.json("runs", "--status", "unwinding")[0]["status"] == "unwinding"
    project.treadle("pause", "r1")
    assert [row["id"] for row in project.json("runs", "--status", "paused")] == ["r1"]
    assert project.json("runs", "--status", "unwinding") == []
    project.treadle("resume", "r1")
    assert "is unwinding" in project.treadle("undo", "r1", code=5).stderr
    project.run("files")
    assert there(project) == {"one"}
    assert project.treadle("undo", "r1").stdout == "undoing in r1\n"
    project.run("files")
    assert there(project) == set()
    assert project.treadle("undo", "r1").stdout == "nothing is left to undo in r1\n"
    assert project.treadle("undo", "r1", "--dry-run").stdout == "nothing is left to undo\n"
    assert "succeeded, unwound" in project.treadle("runs").stdout
    assert "no step 'x'" in project.treadle("undo", "r1", "--to", "x", code=4).stderr


def test_a_failed_undo_is_retried_skipped_or_parked(project: Project) -> None:
    (project.folder / "locked").touch()
    project.run("files", "--input", "fails=true", "--on-failure", "unwind", code=1)
    assert "undo failed (error: locked)" in project.treadle("show", "r1").stdout
    assert "failed, partly unwound" in project.treadle("runs").stdout
    for option in ("--dry-run", "--yes"):
        assert "the undo failed of one, two: what was done there stands" in project.treadle("undo", "r1", option).stderr
    (project.folder / "locked").unlink()

    project.treadle("undo", "r1", "--park", "one")
    assert project.json("show", "r1", "one")["undo"] == "parked"
    project.treadle("undo", "r1", "--skip", "one")
    assert project.treadle("undo", "r1", "two", "--retry").stdout == "retry in r1\n"
    project.run("files", "--input", "fails=true", code=1)

    assert there(project) == {"one"}
    assert project.json("show", "r1", "two")["undo"] == "undone"
    for line, said in (
        ("--skip", "needs the STEP"),
        ("--skip --park one", "no other option"),
        ("--retry --to one", "no other option"),
        ("one", "say what to do about the undo of 'one'"),
    ):
        assert said in project.treadle("undo", "r1", *line.split(), code=2).stderr


def test_what_its_state_does_not_allow_is_told_apart_from_a_wrong_command_line(project: Project) -> None:
    project.run("files", "--input", "fails=true", "--on-failure", "unwind", id="a run", code=1)

    for line, said in (
        (["undo", "a run", "--retry"], "has no undo to retry"),
        (["undo", "a run", "two", "--skip"], "is undone; there is nothing to skip"),
        (["retry", "a run", "two"], "only a failed or cancelled step is retried"),
        (["retry", "a run"], "has been undone, or its undo was tried; rewind it"),
    ):
        fault = json.loads(project.treadle(*line, "-o", "json", code=5).stderr)["error"]
        assert (fault["code"], fault["run_id"]) == ("not_applicable", "a run")
        assert said in fault["message"]
    assert "treadle show 'a run'" in project.treadle("retry", "a run", "two", code=5).stderr


def test_a_run_that_was_unwound_is_not_said_to_go_on_by_a_retry(project: Project) -> None:
    done = project.run("files", "--input", "fails=true", "--on-failure", "unwind", code=1)
    fault = json.loads(project.treadle("result", "r1", "-o", "json", code=1).stderr)["error"]

    assert "`treadle rewind r1 STEP` does again what was undone" in done.stderr
    assert fault["unwound"] == "fully"


def test_cancel_unwinds_and_rewind_keeps_if_told_to(project: Project) -> None:
    project.run("files")
    assert project.treadle("rewind", "r1", "two", "--keep").stdout == "rewound two of r1\n"
    assert project.treadle("cancel", "r1", "--unwind").stdout.startswith(("unwinding", "running", "cancel"))
    project.run("files", code=9)
    assert there(project) == set()

    project.run("files", id="r2")
    assert "undoes first what two" in project.treadle("rewind", "r2", "two").stdout
    project.run("files", id="r2")
    assert project.json("show", "r2", "two")["generation"] == 2


def test_delete_refuses_without_a_terminal_or_yes(project: Project) -> None:
    project.run("sums", "--input", "n=1")
    project.detached("signalled", id="open")

    assert "--yes" in project.treadle("delete", "r1", code=2).stderr
    assert "cancel it" in project.treadle("delete", "open", "r1", "--yes", code=5).stderr
    assert project.treadle("delete", "r1", "--yes").stdout == "deleted r1\n"
    assert [row["id"] for row in project.json("runs")] == ["open"]


def test_watch_of_a_finished_run_prints_its_report(project: Project) -> None:
    project.run("sums", "--input", "n=1")

    assert project.treadle("watch", "r1").stdout.startswith("Run r1  [SUCCEEDED]")
    assert json.loads(project.treadle("watch", "r1", "-o", "jsonl").stdout.splitlines()[-1])["status"] == "succeeded"


def test_doctor_tells_facts_and_finds_no_problem(project: Project) -> None:
    project.run("sums", "--input", "n=1")

    found = project.json("doctor")

    assert (found["healthy"], found["problems"]) == (True, [])
    assert found["facts"]["store"] == "sqlite"
    assert "no problems found" in project.treadle("doctor").stdout


def test_doctor_of_a_damaged_file_is_exit_code_1(project: Project) -> None:
    (project.folder / "bad.db").write_bytes(b"this is no database, but long enough to be taken for one" * 100)

    done = project.treadle("doctor", "--store", "bad.db", code=1)

    assert "problem: " in done.stdout
    assert project.json("doctor", "--store", "bad.db", code=1)["healthy"] is False


def test_plan_in_its_forms(project: Project) -> None:
    def plan(form: str) -> str:
        return str(project.treadle("plan", project.target("sums"), "--input", "n=1", "--format", form).stdout)

    assert plan("tree").splitlines()[0] == f"{project.name}:sums  2 steps in 2 levels"
    assert plan("tree").splitlines()[2].split() == ["add-2", "←", "add"]
    assert json.loads(plan("json"))["format"] == "treadle.plan/1"
    assert plan("mermaid").splitlines() == ["flowchart TD", '  n0["add"]', '  n1["add-2"]', "  n0 --> n1"]
    assert "n0 -> n1;" in plan("dot")
    assert not (project.folder / ".treadle").exists()


def test_plan_tells_levels_and_the_longest_chain(project: Project) -> None:
    target = (project.target("sums"), "--input", "n=1")

    assert project.json("plan", *target, "--levels") == {
        "workflow": f"{project.name}:sums",
        "levels": [["add"], ["add-2"]],
    }
    assert project.json("plan", *target, "--critical-path") == {
        "workflow": f"{project.name}:sums",
        "steps": 2,
        "critical_path": ["add", "add-2"],
    }
    levels = project.treadle("plan", *target, "--levels").stdout.splitlines()
    assert [line.split() for line in levels] == [["LEVEL", "STEPS", "WHICH"], ["1", "1", "add"], ["2", "1", "add-2"]]
    path = project.treadle("plan", *target, "--critical-path").stdout.splitlines()
    assert [line.split() for line in path[:3]] == [["STEP"], ["1", "add"], ["2", "add-2"]]
    assert path[3] == "2 of 2 steps, one after the other"
    assert "leave out --format" in project.treadle("plan", *target, "--levels", "--format", "dot", code=2).stderr


def test_show_tells_where_the_time_went_and_when_an_open_run_ends(project: Project) -> None:
    project.run("sums", "--input", "n=1", id="done")
    project.detached("stops", id="open")

    done = project.json("show", "done", "--critical-path")
    assert (done["id"], done["status"], done["forecast"]) == ("done", "succeeded", None)
    assert done["critical_path"] == [span["step"] for span in done["spans"]] == ["add", "add-2"]
    table = project.treadle("show", "done", "--critical-path").stdout.splitlines()
    assert table[0].split() == ["STEP", "STATUS", "AFTER", "TOOK"]
    assert table[1].split()[:3] == ["add", "succeeded", "0s"]
    assert table[3].endswith("on the critical path, of 2 steps")
    forecast = project.json("show", "open", "--critical-path")["forecast"]
    assert (forecast["critical_path"], forecast["unknown"]) == (["first", "last"], ["first", "last"])
    said = project.treadle("show", "open", "--critical-path").stdout.splitlines()[-1]
    assert said == "at least 0s to go; nothing is known of first, last"
    for other in ("first", "--tree"):
        assert "the whole run" in project.treadle("show", "open", other, "--critical-path", code=2).stderr


def test_schema_of_every_document(project: Project) -> None:
    names = project.treadle("schema").stdout.split()

    assert {"plan", "event", "snapshot"} <= set(names)
    for name in names:
        assert "$defs" in json.loads(project.treadle("schema", name).stdout)
    assert "there is no document" in project.treadle("schema", "nope", code=2).stderr


def test_version(project: Project) -> None:
    assert re.match(r"treadle \d+\.\d+", project.treadle("version").stdout)
    assert project.treadle("--version").stdout.split()[0] == "treadle"


def test_an_unknown_verb_is_guessed(project: Project) -> None:
    assert "Did you mean 'runs'?" in project.treadle("rums", code=2).stderr
    fault = json.loads(project.treadle("runs", "--nope", "-o", "json", code=2).stderr)
    assert fault["error"]["code"] == "usage"


def test_hostile_ids_and_messages_are_shown_escaped(project: Project) -> None:
    name = "a b/ö [red]x[/red] ..%"
    project.run("fails", "--input", "text=\x1b[31mred\n[bold]", id=name, code=1)

    report = project.treadle("show", name).stdout

    assert name in report
    assert "\\x1b[31mred\\n[bold]" in report
    assert "\x1b" not in report
    assert project.json("show", name)["id"] == name


def test_the_store_of_the_project_is_used(project: Project) -> None:
    (project.folder / "pyproject.toml").write_text('[tool.treadle]\nstore = "mine.db"\n')
    project.run("sums", "--input", "n=1")

    assert Path("mine.db").is_file()
    assert [row["id"] for row in project.json("runs")] == ["r1"]
    assert [row["id"] for row in project.json("runs", "--store", "mine.db")] == ["r1"]


def test_why_names_the_limit_of_a_queue(project: Project) -> None:
    project.detached("sums", "--input", "n=1", id="n")
    project.treadle("queues", "pause", "default")

    (reason,) = [reason for reason in project.json("why", "n") if reason["code"] == "queue_paused"]
    assert (reason["kind"], reason["step"], reason["on"]) == ("capacity", "add", ["default"])
    assert "queue_paused" in project.treadle("why", "n", "add").stdout
    project.treadle("queues", "resume", "default")
    assert "queue_paused" not in project.treadle("why", "n").stdout
