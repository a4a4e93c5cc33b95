"""The command line as a real process: signals, kills, terminals and pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Project = Any  # tests/cli/conftest.py

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and terminals of POSIX")
TREADLE = [sys.executable, "-m", "treadle.cli"]
# Far above what any of this needs; it turns a hanging process into a failure.
SECONDS = 30


def start(project: Project, *args: str, **options: Any) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*TREADLE, *args],
        cwd=project.folder,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )
    project.processes.append(process)
    return process


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def shown(project: Project, step: str) -> str:
    """The step's status; empty while there is no store, or no run."""
    done = project.treadle("show", "r1", step, "-o", "json", code=None)
    return str(json.loads(done.stdout)["shown"]) if done.exit_code == 0 else ""


def until_it_stops(process: subprocess.Popen[str]) -> str:
    """Read what the process says until it says that it waits for running steps."""
    assert process.stderr is not None
    return next(line for line in process.stderr if line.startswith("stopping"))


def waiting_run(project: Project) -> subprocess.Popen[str]:
    """A `treadle run` whose first step runs until the file `go` is there."""
    process = start(project, "run", project.target("waits"), "--id", "r1", "--input", f"path={project.folder / 'go'}")
    until(lambda: shown(project, "first") == "running")
    return process


def test_ctrl_c_lets_running_steps_end_and_says_how_to_go_on(project: Project) -> None:
    process = waiting_run(project)

    process.send_signal(signal.SIGINT)
    said = until_it_stops(process)
    still_running = process.poll() is None
    (project.folder / "go").write_text("done")
    out, _ = process.communicate(timeout=SECONDS)

    assert still_running
    assert (process.returncode, out) == (130, "")
    assert "--id r1" in said
    assert shown(project, "first") == "succeeded"
    assert project.json("show", "r1")["status"] == "running"
    assert json.loads(project.run("waits").stdout) == "done"


def test_a_second_ctrl_c_ends_at_once_and_loses_nothing(project: Project) -> None:
    process = waiting_run(project)

    process.send_signal(signal.SIGINT)
    until_it_stops(process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=SECONDS)

    assert process.returncode == 130
    (project.folder / "go").write_text("done")
    assert json.loads(project.run("waits").stdout) == "done"


def test_after_a_kill_the_same_command_finishes_the_run(project: Project) -> None:
    process = waiting_run(project)

    process.kill()
    process.communicate(timeout=SECONDS)
    (project.folder / "go").write_text("done")

    assert json.loads(project.run("waits", "--input", f"path={project.folder / 'go'}").stdout) == "done"
    assert project.json("show", "r1", "first")["lost"] == 1


def test_a_worker_executes_what_others_start_and_drains_on_sigterm(project: Project) -> None:
    (project.folder / "pyproject.toml").write_text(f'[tool.treadle]\nmodules = ["{project.file.name}"]\n')
    process = start(project, "worker", "--id", "alpha", "--offer", "gpu", "--offer", "north")
    project.detached("waits", "--input", f"path={project.folder / 'go'}")
    until(lambda: shown(project, "first") == "running")
    view = project.json("show", "r1", "first")
    pausing = project.treadle("pause", "r1").stdout
    why = project.json("why", "r1")
    doctor, table = project.json("doctor"), project.treadle("doctor").stdout
    process.send_signal(signal.SIGTERM)
    until_it_stops(process)
    (project.folder / "go").write_text("done")
    _, err = process.communicate(timeout=SECONDS)

    assert view["worker"] == "alpha"
    assert pausing == "pausing r1\n"
    assert why[0]["code"] == "pause"
    assert [(one["worker"], one["targets"]) for one in doctor["sessions"]] == [("alpha", ["alpha", "gpu", "north"])]
    assert "alpha, gpu, north" in table
    assert process.returncode == 0, err
    assert project.json("show", "r1")["status"] == "paused"
    assert project.treadle("resume", "r1").stdout == "resumed r1\n"
    assert json.loads(project.run("waits").stdout) == "done"


def test_an_undo_that_is_waited_for_keeps_the_receipt_of_what_stands_now(project: Project) -> None:
    (project.folder / "pyproject.toml").write_text('[tool.treadle]\nreceipts = "kept"\n')
    project.run("files")
    latest = project.folder / "kept" / "latest.json"
    before = json.loads(latest.read_text())["run"]
    start(project, "worker", str(project.file))

    said = project.treadle("undo", "r1", "--wait", "--yes")

    after = json.loads(latest.read_text())["run"]
    assert said.stdout == "unwound: r1\n"
    assert f"receipt {latest.parent}" in said.stderr
    assert (before.get("unwound", ""), before["summary"]["standing"]) == ("", 2)
    assert (after["unwound"], after["summary"]["standing"]) == ("fully", 0)
    assert len(list(latest.parent.iterdir())) == 3


def test_a_hard_cancel_ends_a_running_step_of_another_process(project: Project) -> None:
    process = waiting_run(project)

    status = project.treadle("cancel", "r1", "--hard", "--wait").stdout
    out, err = process.communicate(timeout=SECONDS)

    assert status in ("cancelled r1\n", "cancelling r1\n")
    assert (process.returncode, out) == (9, ""), err
    assert "was cancelled" in err


def test_watch_follows_a_run_of_another_process_to_its_end(project: Project) -> None:
    process = waiting_run(project)
    watcher = start(project, "watch", "r1", "-o", "jsonl")
    assert watcher.stdout is not None
    first = watcher.stdout.readline()
    (project.folder / "go").write_text("done")
    out, err = watcher.communicate(timeout=SECONDS)
    process.communicate(timeout=SECONDS)

    assert json.loads(first)["status"] == "running", err
    assert json.loads(out.splitlines()[-1])["status"] == "succeeded", err


def test_events_are_followed_to_the_end(project: Project) -> None:
    process = waiting_run(project)
    follower = start(project, "events", "r1", "--follow")
    (project.folder / "go").write_text("done")
    out, err = follower.communicate(timeout=SECONDS)
    process.communicate(timeout=SECONDS)

    assert json.loads(out.splitlines()[-1])["kind"] == "run_settled", err


def test_a_reader_that_stops_reading_is_no_error(project: Project) -> None:
    project.run("sums", "--input", "n=1")

    process = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m treadle.cli events r1 | head -n 1"],
        cwd=project.folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert json.loads(process.stdout)["kind"] == "run_started"
    assert process.stderr == ""


def test_the_shell_completes_run_ids(project: Project) -> None:
    for name in ("crawl-1", "crawl-2", "order"):
        project.detached("signalled", id=name)
    words = {"_TREADLE_COMPLETE": "bash_complete", "COMP_WORDS": "treadle show cr", "COMP_CWORD": "2"}

    done = subprocess.run(
        [sys.executable, "-c", "from treadle.cli import main; main(prog_name='treadle')"],
        cwd=project.folder,
        env={**os.environ, **words},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert done.stdout.split() == ["plain,crawl-2", "plain,crawl-1"], done.stderr


def on_terminal(project: Project, *args: str, answer: str = "", env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a command line on a pseudo-terminal; the exit code and all that was shown."""
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    settings = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30", **(env or {})}
    process = subprocess.Popen(
        [*TREADLE, *args], cwd=project.folder, stdin=child, stdout=child, stderr=child, env=settings
    )
    os.close(child)
    os.write(parent, answer.encode())
    shown = b""
    while True:
        try:
            data = os.read(parent, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data
    os.close(parent)
    return process.wait(timeout=SECONDS), shown.decode()


def test_a_terminal_gets_a_live_tree(project: Project) -> None:
    code, text = on_terminal(project, "run", project.target("sums"), "--input", "n=1", "--id", "r1")

    assert code == 0
    assert "Run r1  [SUCCEEDED]" in text
    assert "✓ add" in text
    assert '"sum": 12' in text


def test_a_dumb_terminal_gets_plain_lines_and_no_colours(project: Project) -> None:
    env = {"TERM": "dumb", "NO_COLOR": "1"}

    code, text = on_terminal(project, "run", project.target("sums"), "--input", "n=1", "--id", "r1", env=env)

    assert code == 0
    assert "\x1b" not in text
    assert "[succeeded]" in text


def test_delete_asks_on_a_terminal(project: Project) -> None:
    project.run("sums", "--input", "n=1")

    refused, said = on_terminal(project, "delete", "r1", answer="n\n")
    kept = project.json("runs")
    accepted, _ = on_terminal(project, "delete", "r1", answer="y\n")

    assert (refused, accepted) == (1, 0)
    assert "Delete r1 (succeeded)?" in said
    assert "nothing was changed" in said
    assert len(kept) == 1
    assert project.json("runs") == []


def test_importing_the_command_line_loads_no_store_and_no_terminal_library() -> None:
    program = (
        "import sys, treadle.cli; print(*(m for m in ('rich', 'apsw', 'treadle.store.sqlite') if m in sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def test_the_file_of_a_run_is_found_from_its_own_folder(project: Project) -> None:
    inner = project.folder / "inner"
    inner.mkdir()

    done = subprocess.run(
        [*TREADLE, "run", str(Path("..") / project.target("sums")), "--input", "n=1", "-q"],
        cwd=inner,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert json.loads(done.stdout) == {"sum": 12, "name": "n"}, done.stderr


YOUNG = """
import gc
from treadle import step, workflow

{set}

@step
async def young() -> int:
    return gc.get_threshold()[0]

@workflow
def main() -> int:
    return young.bind()
"""


@pytest.mark.parametrize(("own", "young"), [("", 10_000), ("gc.set_threshold(345)", 345), ("gc.set_threshold(0)", 0)])
def test_the_collector_looks_less_often_unless_the_program_says_something_else(
    tmp_path: Path, own: str, young: int
) -> None:
    (tmp_path / "flow.py").write_text(YOUNG.replace("{set}", own))

    done = subprocess.run(
        [sys.executable, "-m", "treadle", "run", "flow.py:main", "--quiet"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert json.loads(done.stdout) == young
