"""The verbs about projections."""

from __future__ import annotations

from tests.cli.conftest import Project

FLOWS = """
from treadle import Projection, context, step, workflow

pages = Projection("pages", migrations=["CREATE TABLE pages (url TEXT PRIMARY KEY)"])
pages.collection("page", "INSERT OR REPLACE INTO pages (url) VALUES (:key)")

@step
async def give() -> None:
    for url in ("/a", "/b"):
        context().record("page", url, None)

@workflow
def flow():
    return give.bind()
"""


def test_a_projection_is_queried_and_rebuilt(project: Project) -> None:
    project.file.write_text(FLOWS, encoding="utf-8")
    project.run("flow")
    target = f"{project.file.name}:pages"

    assert project.json("projection", "query", target, "SELECT * FROM pages") == [{"url": "/a"}, {"url": "/b"}]
    assert project.json("projection", "rebuild", target, "--yes") == {"projection": "pages", "rebuilt": True}
    assert "/b" in project.treadle("projection", "query", target, "SELECT * FROM pages").stdout
    assert "no rows" in project.treadle("projection", "query", target, "SELECT * FROM pages WHERE url = ''").stdout


def test_what_is_no_projection_is_refused(project: Project) -> None:
    project.file.write_text(FLOWS, encoding="utf-8")
    project.run("flow")

    assert (
        "names no projection"
        in project.treadle("projection", "query", f"{project.file.name}:flow", "SELECT 1", code=2).stderr
    )
    wrong = project.treadle("projection", "query", f"{project.file.name}:pages", "SELECT x FROM pages", code=3)
    assert "no such column" in wrong.stderr
    asked = project.treadle("projection", "rebuild", f"{project.file.name}:pages", code=2)
    assert "--yes" in asked.stderr
