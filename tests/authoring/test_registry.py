"""Names of functions: durable, unambiguous, the same however a file is started."""

from __future__ import annotations

import functools
import importlib
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from treadle.authoring.decorators import WorkflowFunction, predicate, step, workflow
from treadle.authoring.registry import (
    Definition,
    Registry,
    WorkflowDefinition,
    default_registry,
    durable_name,
    import_file,
    name_of_file,
)
from treadle.errors import DefinitionError, StepNameError, UnregisteredStepError, UsageError


def plain(x: int) -> int:
    return x


def other(x: int) -> int:
    return x


class Crawl:
    @staticmethod
    def fetch(url: str) -> str:
        return url

    def method(self, url: str) -> str:
        return url


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    sys.path[:] = path


def test_a_function_is_named_by_its_module_and_qualified_name() -> None:
    assert durable_name(plain) == f"{__name__}:plain"
    assert durable_name(Crawl.fetch) == f"{__name__}:Crawl.fetch"


def test_a_given_name_wins() -> None:
    assert durable_name(plain, "orders/charge v2") == "orders/charge v2"


@pytest.mark.parametrize("name", ["", " a", "a\n", "x" * 501, 5])
def test_a_name_that_nobody_could_type_is_refused(name: Any) -> None:
    with pytest.raises(StepNameError):
        durable_name(plain, name)


def test_a_lambda_needs_a_name() -> None:
    double: Callable[[int], int] = lambda x: 2 * x  # noqa: E731 - the subject of the test

    with pytest.raises(StepNameError, match="pass name="):
        Definition(double)
    assert Definition(double, name="double").short == "double"


def test_a_nested_function_needs_a_name() -> None:
    def nested() -> None: ...

    with pytest.raises(StepNameError, match=r"defined inside a function.*name="):
        Definition(nested)
    assert Definition(nested, name="nested").name == "nested"


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (Crawl.method, "is a method"),
        (Crawl, "write a function"),
        (functools.partial(plain, 1), "write a function"),
        (staticmethod(plain), "put @staticmethod outside"),
        (5, "write a function"),
    ],
)
def test_what_is_no_function_is_refused(function: Any, part: str) -> None:
    with pytest.raises(DefinitionError, match=part):
        Definition(function)


def test_a_generator_is_a_step_and_nothing_else() -> None:
    def pages() -> Iterator[int]:
        yield 1

    async def more() -> Any:
        yield 1

    for function in (pages, more):
        assert Definition(function, name="pages").is_async is (function is more)
        with pytest.raises(DefinitionError, match="yields"):
            Definition(function, kind="predicate", name="pages")


def test_a_registry_finds_definitions_by_name_and_alias() -> None:
    registry = Registry()
    definition = Definition(plain, name="new", aliases=["old", "older"])

    registry.add(definition)

    assert registry.get("new") is registry.get("old") is registry.find("older") is definition
    assert registry.names() == ["new", "old", "older"]


def test_an_unknown_name_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UnregisteredStepError, match="import the module"):
        Registry().get("m:f")
    assert Registry().find("m:f") is None


def test_a_workflow_is_no_step() -> None:
    registry = Registry()
    registry.add(WorkflowDefinition(plain, name="w"))

    assert registry.find("w") is None
    assert registry.names() == []
    assert registry.workflows() == ["w"]
    assert registry.workflow("w") is not None
    assert registry.workflow("x") is None


def test_two_functions_cannot_have_one_name() -> None:
    registry = Registry()
    registry.add(Definition(plain, name="a"))

    with pytest.raises(StepNameError, match=r"'a' already names a step \(.*test_registry\.py:\d+\)"):
        registry.add(Definition(other, name="a"))
    with pytest.raises(StepNameError):
        registry.add(Definition(other, name="b", aliases=["a"]))
    assert registry.names() == ["a"]


def test_what_the_decorators_give_can_be_added_to_another_registry() -> None:
    registry = Registry()
    first = step(name="first", registry=Registry())(plain)

    registry.add(first)

    assert registry.get("first") is first.definition


def test_adding_the_same_function_twice_is_harmless() -> None:
    registry = Registry()

    registry.add(Definition(plain))
    registry.add(Definition(plain))

    assert len(registry.names()) == 1


def test_two_closures_of_one_function_are_never_confused() -> None:
    registry = Registry()

    def make(number: int) -> Definition:
        def add(x: int) -> int:
            return x + number

        return Definition(add, name="add")

    registry.add(make(1))
    with pytest.raises(StepNameError):
        registry.add(make(2))


def test_nested_functions_that_differ_in_a_default_are_never_confused() -> None:
    registry = Registry()

    def make(number: int) -> Definition:
        def add(x: int, number: int = number) -> int:
            return x + number

        return Definition(add, name="add")

    registry.add(make(1))
    registry.add(make(1))
    with pytest.raises(StepNameError):
        registry.add(make(2))


FLOWS = """
from treadle.authoring.decorators import step, workflow

@step
def double(x: int) -> int:
    return 2 * x

@workflow
def flow(x: int):
    return double.bind(x)

if __name__ == "__main__":
    print(double.name, flow.name)
"""


def test_a_file_has_one_name_however_it_is_started(tmp_path: Path) -> None:
    file = tmp_path / "01-flows.py"
    file.write_text(FLOWS)

    module = import_file(file)
    started = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=True)
    by_runpy = runpy.run_path(str(file), run_name="__main__")

    assert module.double.name == "01-flows:double"
    assert started.stdout.split() == ["01-flows:double", "01-flows:flow"]
    assert by_runpy["double"].name == "01-flows:double"
    assert import_file(str(file)) is module


def test_a_file_in_a_package_has_the_package_in_its_name(tmp_path: Path) -> None:
    package = tmp_path / "treadle_shop"
    (package / "flows").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "flows" / "__init__.py").write_text(FLOWS)
    file = package / "flows" / "orders.py"
    file.write_text(FLOWS)

    module = import_file(file)
    as_script = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=True)
    as_module = subprocess.run(
        [sys.executable, "-m", "treadle_shop.flows.orders"], capture_output=True, text=True, check=True, cwd=tmp_path
    )

    assert module is importlib.import_module("treadle_shop.flows.orders")
    assert module.double.name == "treadle_shop.flows.orders:double"
    assert as_script.stdout == as_module.stdout == "treadle_shop.flows.orders:double treadle_shop.flows.orders:flow\n"
    assert name_of_file(package / "flows" / "__init__.py") == "treadle_shop.flows"


def test_a_file_that_is_not_there_or_takes_a_known_name_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("import json")
    importlib.import_module("json")

    with pytest.raises(UsageError, match="no file"):
        import_file(tmp_path / "nowhere.py")
    with pytest.raises(UsageError, match="rename the file"):
        import_file(tmp_path / "json.py")


def test_a_file_that_fails_to_import_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "treadle_broken.py"
    file.write_text("raise RuntimeError('no')")

    with pytest.raises(RuntimeError, match="no"):
        import_file(file)
    assert "treadle_broken" not in sys.modules


def test_a_reloaded_module_replaces_its_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "treadle_reloaded.py"
    file.write_text(FLOWS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module("treadle_reloaded")
    first = default_registry.get("treadle_reloaded:double")

    # Another line, another body: still the function of that name in that file.
    file.write_text("# edited\n\n" + FLOWS.replace("2 * x", "3 * x"))
    importlib.reload(module)

    second = default_registry.get("treadle_reloaded:double")
    assert second is not first
    assert second.function(2) == 6


def test_one_file_with_two_functions_of_one_name_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "treadle_twice.py"
    file.write_text(FLOWS.split("@workflow")[0] + "\n@step\ndef double(x: str) -> str:\n    return x\n")

    with pytest.raises(StepNameError, match="treadle_twice:double"):
        import_file(file)


def test_at_a_prompt_a_function_may_be_defined_again() -> None:
    scope: dict[str, Any] = {"__name__": "__main__", "step": step}

    exec(compile("@step\ndef f(x: int) -> int:\n    return x\n", "<cell 1>", "exec"), scope)  # noqa: S102 - a prompt
    exec(compile("\n@step\ndef f(x: int) -> int:\n    return -x\n", "<cell 2>", "exec"), scope)  # noqa: S102 - a prompt

    assert default_registry.get("__main__:f").function(1) == -1


def test_decorators_fill_the_registry_they_are_given() -> None:
    registry = Registry()

    @step(name="a", registry=registry, aliases="was-a")
    def a() -> None: ...

    @predicate(name="p", registry=registry)
    def p() -> bool:
        return True

    @workflow(name="w", registry=registry)
    def w() -> None: ...

    assert registry.names() == ["a", "p", "was-a"]
    assert registry.workflows() == ["w"]
    assert isinstance(w, WorkflowFunction)
    assert default_registry.find("was-a") is None
