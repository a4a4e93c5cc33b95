"""Runs that wait, and runs that call others, from the shell."""

from __future__ import annotations

import json
from typing import Any

Project = Any  # tests/cli/conftest.py


def test_a_run_may_start_its_steps_later(project: Project) -> None:
    project.run("sums", "--input", "n=1", "--delay", "1h", "--detach")

    codes = [reason["code"] for reason in project.json("why", "r1")]

    assert "delay" in codes
    assert json.loads(project.run("sums", "--input", "n=1", "--delay", "10ms", id="soon").stdout)["sum"] == 12


def test_a_delay_that_is_none_is_exit_code_3(project: Project) -> None:
    assert "is no duration" in project.run("sums", "--input", "n=1", "--delay", "soon", code=3).stderr


def test_a_step_that_is_polled_is_shown_as_such(project: Project) -> None:
    plan = project.treadle("plan", project.target("asks")).stdout
    project.run("asks", "--quiet")

    assert "wait_until(every 0.01s, timeout=5s)" in plan
    assert project.treadle("result", "r1").stdout.strip() == "3"


def test_a_child_is_listed_and_shown_with_its_parent(project: Project) -> None:
    plan = project.treadle("plan", project.target("calls")).stdout
    project.run("calls", "--quiet")

    key = project.json("show", "r1")["key"]
    listed = project.json("runs", "--parent", "r1")

    assert "a run of its own" in plan
    assert "starts a run" in plan
    assert sorted(row["id"] for row in listed) == ["r1/started", "r1/waits"]
    assert project.json("runs", "--parent", "r1/waits") == []
    assert f"called by step waits of run {key}" in project.treadle("show", "r1/waits").stdout
    assert "calls r1/waits" in project.treadle("show", "r1").stdout
    assert "calls: r1/waits" in project.treadle("show", "r1", "waits").stdout
    assert json.loads(project.treadle("result", "r1/waits").stdout) == 6
