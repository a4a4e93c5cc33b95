"""Packages: what they hold, how they are named, and every mistake at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from treadle import DefinitionError, DefinitionErrors, Package, Registry, UsageError, connect, describe_run, step
from treadle.authoring.packages import JoinedRegistry, check_packages


@dataclass
class Limits:
    depth: int = 2
    hosts: tuple[str, ...] = ()


class ReadModel:
    def __init__(self, name: str) -> None:
        self.name = name


def package(name: str = "crawler", **options: Any) -> Package:
    made = Package(name, **options)

    @made.step
    def fetch(url: str) -> str:
        return url

    @made.entrypoint
    def crawl(url: str) -> str:
        return fetch.bind(url)

    return made


@step(registry=Registry(), name="pkg:nothing")
def does_nothing() -> None:
    """Does nothing."""


def undo_it() -> None:
    """Takes back."""


def test_names_are_the_packages_wherever_the_code_lies() -> None:
    made = package()

    @made.step(name="parse", aliases=["read"], undo=undo_it)
    def parse_page(text: str) -> str:
        return text

    assert made.registry.names() == [
        "crawler/fetch",
        "crawler/parse",
        "crawler/parse:undo",
        "crawler/read",
        "crawler/read:undo",
    ]
    assert made.registry.workflows() == ["crawler/crawl"]
    assert list(made.entrypoints) == ["crawl"]
    assert parse_page("as a function") == "as a function"


def test_a_step_of_elsewhere_is_taken_in_with_its_undo() -> None:
    made = package()

    @step(registry=Registry(), name="elsewhere", undo=undo_it)
    def other() -> int:
        return 1

    made.add(other)

    assert {"elsewhere", "elsewhere:undo"} <= set(made.registry.names())


def test_every_mistake_of_every_package_is_told_at_once() -> None:
    empty = Package("empty", projections=[ReadModel("pages"), ReadModel("pages"), object()])  # type: ignore[list-item]  # no projection
    twice = package("twice", settings=Limits)

    @twice.step(name="fetch")
    def again(url: str) -> str:
        return url

    given: dict[str, dict[str, Any]] = {
        "twice": {"depht": 3, "depth": "deep"},
        "empty": {"any": 1},
        "unknown": {},
    }
    with pytest.raises(DefinitionErrors) as error:
        check_packages([empty, twice, package("bad/name"), package("twice"), "text"], given)

    told = str(error.value).splitlines()
    for part in (
        "package 'empty' has no entrypoint",
        "package 'empty': two projections are called 'pages'",
        "has no name; a projection is an object with a name",
        "package 'twice': 'twice/fetch' already names a step",
        "package 'twice' has no setting 'depht'; there are: depth, hosts",
        "package 'twice', setting 'depth'",
        "package 'empty' has no settings; ['any'] are unknown",
        "settings for an unknown package 'unknown'; there are: ",
        "'bad/name' is no name for a package",
        "two packages are called 'twice'",
        "'text' is no Package",
    ):
        assert [line for line in told if part in line], f"{part!r} is missing in {told}"


def test_settings_without_a_default_are_refused() -> None:
    @dataclass
    class Strict:
        url: str

    with pytest.raises(DefinitionError, match="every setting needs a default"):
        check_packages([package(settings=Strict)], {})


def test_settings_come_as_their_types() -> None:
    made = package(settings=Limits)

    found = check_packages([made], {"crawler": {"hosts": ["a", "b"]}})

    assert found == {"crawler": Limits(depth=2, hosts=("a", "b"))}
    assert made.settings == Limits()
    with pytest.raises(UsageError, match="has no settings"):
        _ = package().settings


def test_a_joined_registry_is_a_live_view() -> None:
    own, made = Registry(), package()
    joined = JoinedRegistry(own, [made])
    before = joined.changes

    @made.step
    def late() -> int:
        return 1

    @step(registry=joined, name="own:late")
    def mine() -> int:
        return 2

    assert joined.changes > before
    assert joined.get("crawler/late") is late.definition
    assert own.find("own:late") is mine.definition
    assert joined.names() == ["crawler/fetch", "crawler/late", "own:late"]
    joined.remove(late.definition)
    assert joined.find("crawler/late") is None


def test_what_a_run_is_called_is_said_while_it_is_planned() -> None:
    made = package()

    @made.entrypoint
    def described(url: str) -> None:
        describe_run(name="first", labels={"a": "1", "b": "1"})
        describe_run(name=f"of {url}", labels={"b": "2"}, metadata={"url": url})
        does_nothing.bind()

    about = described.plan("here").about
    assert (about.name, about.labels, about.metadata) == ("of here", {"a": "1", "b": "2"}, {"url": "here"})
    with pytest.raises(UsageError, match="while a workflow is planned"):
        describe_run(name="nothing")


@pytest.mark.parametrize("given", [{"labels": {"a": 1}}, {"metadata": {1: "a"}}, {"name": 3}, {"name": "\ud800"}])
def test_what_is_no_text_is_refused(given: dict[str, Any]) -> None:
    made = package()

    @made.entrypoint
    def wrong() -> None:
        describe_run(**given)

    with pytest.raises(DefinitionError, match="is no text"):
        wrong.plan()


def test_connect_refuses_wrong_packages_before_anything_is_opened() -> None:
    with pytest.raises(DefinitionError, match="has no entrypoint"):
        connect("sqlite:////nowhere/at/all.db", packages=[Package("empty")])
