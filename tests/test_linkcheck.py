"""The link checker of the examples: killed once in the middle, it finds what a plain crawl of the same site finds."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from tests.stores_kit import empty_store, kinds

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "linkcheck"
# Some eighty pages, broken links and broken anchors among them.
PACKAGES = ["asyncio", "importlib", "json", "multiprocessing"]
KILL_AT = 15
SECONDS = 120.0


class Programs(NamedTuple):
    """The example's modules, as its own programs import them."""

    pages: ModuleType
    report: ModuleType
    server: ModuleType
    store_facts: ModuleType


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Programs]:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield Programs(*(importlib.import_module(name) for name in Programs._fields))
    for name in Programs._fields:
        sys.modules.pop(name, None)


def command_for(url: str, store: Path) -> list[str]:
    return [sys.executable, str(FOLDER / "linkcheck.py"), url, "--store", str(store), "--json", "--only", *PACKAGES]


def report_of(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def kill_in_the_middle(programs: Programs, command: list[str], store: Path, run: str = "linkcheck") -> None:
    crawler = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + SECONDS
        while programs.store_facts.pages_done(store, run) < KILL_AT:
            assert crawler.poll() is None, "the crawler ended before it could be killed"
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        crawler.kill()
        crawler.wait()


def direct_crawl(programs: Programs, url: str) -> dict[str, Any]:
    """The figures of a crawl by a plain loop."""
    site = programs.pages.Site(url, PACKAGES)
    found: dict[str, Any] = {programs.pages.FIRST: None}
    todo = [programs.pages.FIRST]
    for path in todo:
        found[path] = programs.pages.read(site, path)
        new = [target for target in found[path].follow(site) if target not in found]
        todo += new
        found.update(dict.fromkeys(new))
    figures: dict[str, Any] = programs.report.figures_of(site, found).as_dict()
    return figures


def test_a_killed_crawl_finds_what_a_plain_crawl_finds(programs: Programs, tmp_path: Path) -> None:
    store = tmp_path / "store.db"

    with programs.server.PydocServer() as site:
        # What pydoc makes a link of depends on the modules that it has imported so far: from here on, all of them.
        direct_crawl(programs, site.url)
        command = command_for(site.url, store)
        kill_in_the_middle(programs, command, store)
        before = programs.store_facts.recorded(store, "linkcheck")
        report = report_of(command)
        expected = direct_crawl(programs, site.url)
    # Finished: the report comes from the store, and nobody serves the site any more.
    again = report_of(command)

    assert programs.store_facts.faults(store, "linkcheck", before) == []
    assert len(before) >= KILL_AT
    assert {name: report[name] for name in expected} == expected
    assert expected["pages"] > len(before)
    assert expected["broken"]
    assert expected["missing"] == []
    assert report["unreachable"] == []
    assert report["attempts"] == report["pages"] + report["retried"] + report["lost"]
    assert again == report


@pytest.fixture(params=kinds("postgres", "nats"))
def machines_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with empty_store(request, tmp_path) as url:
        yield url


def test_three_processes_of_which_one_is_killed_find_what_a_plain_crawl_finds(
    programs: Programs, machines_store: str
) -> None:
    with programs.server.PydocServer() as site:
        direct_crawl(programs, site.url)
        program = [sys.executable, str(FOLDER / "machines.py"), machines_store, "--site", site.url, "--json"]
        report = report_of([*program, "--only", *PACKAGES])
        expected = direct_crawl(programs, site.url)

    assert {name: report[name] for name in expected} == expected
    assert report["missing"] == report["unreachable"] == []
    assert report["workers"].pop(report["killed"]) > 0
    assert set(report["workers"]) <= {"first", "second", "third"}
    assert 0 < sum(report["workers"].values()) < report["pages"]
    assert report["attempts"] == report["pages"] + report["retried"] + report["lost"]


def test_two_sites_are_checked_by_a_package_that_is_killed_in_the_middle(programs: Programs, tmp_path: Path) -> None:
    store = tmp_path / "sites.db"
    ask = programs.store_facts.ask

    with programs.server.PydocServer() as one, programs.server.PydocServer() as two:
        # As above: from here on pydoc has imported all modules.
        for site in (one, two):
            direct_crawl(programs, site.url)
        program = [sys.executable, str(FOLDER / "sitecheck.py")]
        command = [*program, one.url, two.url, "--store", str(store), "--id", "sites", "--only", *PACKAGES]
        kill_in_the_middle(programs, command, store, "sites")
        before = programs.store_facts.recorded(store, "sites")
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        direct = [direct_crawl(programs, site.url) for site in (one, two)]

    assert done.returncode == 0, done.stdout + done.stderr
    assert programs.store_facts.faults(store, "sites", before) == []
    # The tables tell what a plain loop finds: each record was applied once, before the kill and after it.
    for site, expected in zip((one, two), direct, strict=True):
        host = site.url.removeprefix("http://").rstrip("/")
        pages = "SELECT count(*), sum(status >= 400 OR error != '') FROM links_pages WHERE host = ?"
        assert ask(store, pages, host) == [(expected["pages"], expected["error_pages"])]
        links = "SELECT count(*) FROM links_links l JOIN links_pages p ON p.url = l.page WHERE p.host = ?"
        assert ask(store, links, host) == [(expected["links"],)]
        broken = "SELECT count(*) FROM links_broken WHERE page LIKE ?"
        assert ask(store, broken, f"{site.url}%") == [(len(expected["broken"]),)]
        assert f"{host:<24}{expected['pages']:>6} pages" in done.stdout
    named = ask(store, "SELECT name, metadata ->> '$.sites' FROM v_runs WHERE id = 'sites'")
    assert named == [(f"links of {one.url[7:-1]}, {two.url[7:-1]}", f"{one.url} {two.url}")]
    assert "beginning with '<!DOCTYPE" in done.stdout


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("index.html", True),
        ("json.decoder.html", True),
        ("topic?key=and", True),
        ("this.html", False),
        ("antigravity.html", False),
        ("idlelib.pyshell.html", False),
        ("unittest.test.html", False),
        ("venv.__main__.html", False),
        ("encodings.cp037.html", False),
        ("pydoc_data/_pydoc.css", False),
    ],
)
def test_modules_with_side_effects_are_left_out(programs: Programs, path: str, wanted: bool) -> None:
    assert programs.pages.Site("http://127.0.0.1:1/").wanted(path) is wanted


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("json.html", ("json.html", "")),
        ("json.html#-dumps", ("json.html", "-dumps")),
        ("#JSONDecoder", ("os.html", "JSONDecoder")),
        (".", ("index.html", "")),
        ("https://docs.python.org/3/", (None, "")),
        ("file:json.py", (None, "")),
        ("http://[", ("http://[", "")),
    ],
)
def test_where_a_link_leads(programs: Programs, href: str, expected: tuple[str | None, str]) -> None:
    assert programs.pages.Site("http://127.0.0.1:1/").locate("os.html", href) == expected
