"""One application serves many packages: entrypoints by name, what their runs are called, their settings, plugins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from treadle import (
    DefinitionError,
    Package,
    PluginError,
    Registry,
    StoreUrlError,
    UsageError,
    connect,
    context,
    describe_run,
    step,
    workflow,
)
from treadle.authoring.plugins import INSTALLED


@dataclass
class CrawlSettings:
    depth: int = 2
    agent: str = "treadle"


crawler = Package("crawler", title="Crawl", settings=CrawlSettings)
mail = Package("mail")


@crawler.step
def fetch(url: str) -> str:
    return f"{url} by {crawler.settings.agent}"


@crawler.step
async def depth() -> int:
    assert context().settings["crawler"] == crawler.settings
    return int(crawler.settings.depth)


@crawler.entrypoint
def site(url: str) -> Any:
    describe_run(labels={"host": url.rpartition("/")[2]}, metadata={"url": url, "depth": str(crawler.settings.depth)})
    return [fetch.options(id="root").bind(url), depth.bind()]


@crawler.entrypoint(name="one-page")
def page(url: str) -> str:
    describe_run(name=f"page {url}")
    return fetch.options(id="root").bind(url)


@mail.step
def send(to: str) -> str:
    return f"sent to {to}"


@mail.entrypoint
def letter(to: str) -> str:
    return send.options(id="root").bind(to)


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/packages.db?sync=normal"


async def test_one_application_hosts_many_packages(url: str) -> None:
    given = {"crawler": {"agent": "test"}}
    async with connect(url, registry=Registry(), packages=[crawler, mail], package_settings=given) as app:
        first = await app.start("mail", "ada", id="m-1")
        again = await app.start("mail", "bob", id="m-2")
        third = await app.start("crawler/site", "http://example.org", id="c-1")

        # Two runs of one package with the same step ids.
        assert [await first.result(20), await again.result(20)] == ["sent to ada", "sent to bob"]
        assert [await first.step("root"), await again.step("root")] == ["sent to ada", "sent to bob"]
        assert await third.result(20) == ["http://example.org by test", 2]
        assert {row.id for row in await app.runs(package="mail")} == {"m-1", "m-2"}


async def test_a_package_with_several_entrypoints_asks_for_one(url: str) -> None:
    async with connect(url, registry=Registry(), packages=[crawler]) as app:
        with pytest.raises(UsageError, match=r"several entrypoints.*'crawler/site', 'crawler/one-page'"):
            await app.start("crawler", "x")
        with pytest.raises(UsageError, match="no workflow or package is called 'nobody' here; there are: crawler"):
            await app.start("nobody")
        assert await app.runs() == []


async def test_an_entrypoint_that_fails_or_plans_nothing_wrong_stores_nothing(url: str) -> None:
    broken = Package("broken")

    @broken.entrypoint
    def raises() -> None:
        describe_run(name="never")
        raise LookupError("no such site")

    async with connect(url, registry=Registry(), packages=[broken]) as app:
        with pytest.raises(LookupError):
            await app.start("broken")
        with pytest.raises(DefinitionError, match=r"lacks argument|no parameter|takes 0"):
            await app.start("broken", 1)
        assert await app.runs() == []


async def test_what_a_run_is_called_is_stored_listed_and_searched(url: str) -> None:
    async with connect(url, registry=Registry(), packages=[crawler]) as app:
        one = await app.start("crawler/site", "http://example.org", id="c-1", labels={"by": "ada"})
        two = await app.start("crawler/one-page", "here", id="c-2", metadata={"ticket": "T-7"})
        three = await app.start("crawler/one-page", "here", id="c-3", name="By hand", labels={"host": "other"})
        for run in (one, two, three):
            await run.wait(20)

        rows = {row.id: row for row in await app.runs()}
        assert (rows["c-1"].name, rows["c-1"].labels) == ("Crawl", {"host": "example.org", "by": "ada"})
        assert rows["c-1"].metadata == {"url": "http://example.org", "depth": "2"}
        assert (rows["c-2"].name, rows["c-2"].metadata) == ("page here", {"ticket": "T-7"})
        assert (rows["c-3"].name, rows["c-3"].labels) == ("By hand", {"host": "other"})

        async def found(**query: Any) -> list[str]:
            return [row.id for row in await app.runs(**query)]

        assert await found(labels={"host": "example.org"}) == ["c-1"]
        assert await found(metadata={"ticket": "T-7"}) == ["c-2"]
        assert await found(text="EXAMPLE.org") == ["c-1"]
        assert await found(text="hand", package="crawler") == ["c-3"]
        snapshot = await two.inspect()
        assert (snapshot.name, snapshot.metadata) == ("page here", {"ticket": "T-7"})


async def test_a_child_run_is_described_by_its_own_entrypoint(url: str) -> None:
    @workflow(registry=Registry(), name="pkg:parent")
    def parent() -> Any:
        return site.bind("http://child")

    given = {"crawler": {"depth": 5}}
    async with connect(url, registry=Registry(), packages=[crawler], package_settings=given) as app:
        run = await app.start(parent)
        assert await run.result(20) == ["http://child by treadle", 5]
        [child] = await app.runs(workflow="crawler/site")
        assert (child.name, child.metadata) == ("Crawl", {"url": "http://child", "depth": "5"})


async def test_two_applications_of_one_process_have_their_own_settings() -> None:
    async with (
        connect(
            "memory://", registry=Registry(), packages=[crawler], package_settings={"crawler": {"depth": 1}}
        ) as one,
        connect(
            "memory://", registry=Registry(), packages=[crawler], package_settings={"crawler": {"depth": 9}}
        ) as two,
    ):
        found = [(await (await app.start("crawler/site", "x")).result(20))[1] for app in (one, two)]

    assert found == [1, 9]


# -- plugins -------------------------------------------------------------------------------------------------------


@pytest.fixture
def distribution(tmp_path: Path) -> Iterator[Path]:
    """An installed distribution that brings a package, an action, a store and a broken one."""
    folder = tmp_path / "site"
    info = folder / "things-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: things\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[treadle.packages]\nthings = things_plugin:things\nbroken = things_plugin:nothing\n"
        "[treadle.actions]\nshout = things_plugin:shout\nnone = things_plugin:open_store\n"
        "[treadle.stores]\nthings = things_plugin:open_store\n"
    )
    (folder / "things_plugin.py").write_text(
        "from treadle import Package, Registry, step\n"
        "from treadle.store.blobs import MemoryBlobs\n"
        "from treadle.store.memory import MemoryStore\n"
        "things = Package('things')\n"
        "@things.entrypoint\n"
        "def say(text: str) -> str: return shout.bind(text)\n"
        "@step(registry=Registry(), name='shout')\n"
        "def shout(text: str) -> str: return text.upper()\n"
        "def open_store(url): return MemoryStore(), MemoryBlobs()\n"
    )
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("things_plugin", None)


async def test_packages_and_actions_come_by_entry_points(distribution: Path) -> None:
    registry = Registry()
    async with connect("memory://", registry=registry, packages=["things", mail], actions=["shout"]) as app:
        assert await (await app.start("things", "loud")).result(20) == "LOUD"
        assert app.registry.find("shout") is not None
        assert app.registry.workflow("mail/letter") is not None

    with pytest.raises(PluginError, match=r"'broken' in treadle.packages of things 1.2 .* cannot be loaded"):
        connect("memory://", registry=registry, packages=INSTALLED)
    with pytest.raises(
        PluginError, match=r"no installed distribution has 'nobody' in treadle.packages; there are: broken"
    ):
        connect("memory://", registry=registry, packages=["nobody"])
    with pytest.raises(DefinitionError, match=r"'none' in treadle.actions is no step"):
        connect("memory://", registry=registry, actions="none")


async def test_a_store_comes_by_the_scheme_of_its_url(distribution: Path) -> None:
    registry = Registry()

    @step(registry=registry, name="pkg:one")
    def one() -> int:
        return 1

    @workflow(registry=registry, name="pkg:only-one")
    def only_one() -> int:
        return one.bind()

    async with connect("things://anything", registry=registry) as app:
        assert await (await app.start(only_one)).result(20) == 1
    with pytest.raises(StoreUrlError, match="names no store"):
        await connect("other://anything")
