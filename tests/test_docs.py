"""The documentation is run: each Python block of each page, in order, in one namespace a page.

A block may `await` at its top level. A block that must not run is not marked as Python. Shell blocks are not run.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser

from treadle.errors import EXIT_CODES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


class Page:
    """One page's blocks, run as one module, so that annotations and step names resolve as in a program."""

    def __init__(self, path: Path) -> None:
        self.module = ModuleType(f"docs_{path.stem.replace('-', '_').lower()}")
        self.runner = asyncio.Runner()
        self.document = Document.parse(str(path), CodeBlockParser(language="python", evaluator=self.evaluate))

    def evaluate(self, example: Example) -> None:
        # Empty lines in front make a traceback show the page's own line numbers.
        source = "\n" * (example.line + example.parsed.line_offset) + example.parsed
        code = compile(source, example.path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        if code.co_flags & inspect.CO_COROUTINE:
            self.runner.run(eval(code, self.module.__dict__))  # noqa: S307 - the project's own documentation
        else:
            exec(code, self.module.__dict__)  # noqa: S102 - the project's own documentation

    def run(self) -> None:
        with self.runner:
            for example in self.document.examples():
                example.evaluate()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_code_of_a_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, page.module.__name__, page.module)

    page.run()


def test_the_readme_shows_code_that_runs() -> None:
    assert list(Page(ROOT / "README.md").document.examples())


def command_tree() -> click.Group:
    """The root of the command line: `main` itself, or the one group of `treadle.cli` that holds all verbs."""
    cli = importlib.import_module("treadle.cli")
    main = cli.main
    if isinstance(main, click.Group):
        return main
    groups = {id(value): value for value in vars(cli).values() if isinstance(value, click.Group)}
    assert len(groups) == 1, "treadle.cli holds no single click group"
    return next(iter(groups.values()))


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield the verbs below a group with their full names, lazily loaded ones included."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, f"the command line lists {name} but cannot load it"
        yield f"{prefix}{name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")


def test_every_verb_of_the_command_line_is_documented() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    verbs = [name for name, command in commands(command_tree()) if not command.hidden]

    assert verbs
    assert [name for name in verbs if not re.search(rf"^#+ .*`treadle {name}\b", text, flags=re.MULTILINE)] == []


def test_every_option_of_the_command_line_is_documented() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    options = {
        (name, option)
        for name, command in commands(command_tree())
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for option in parameter.opts
        if option.startswith("--")
    }

    assert options
    assert sorted((name, option) for name, option in options if not re.search(rf"{option}\b", text)) == []


def test_every_exit_code_of_the_command_line_names_its_errors() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\|(.*)\|$", (DOCS / "cli.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    documented = {(code, int(exit_code)) for exit_code, codes in rows for code in re.findall(r"`(\w+)`", codes)}

    # 1 is for whatever has no group of its own.
    assert sorted(item for item in EXIT_CODES.items() if item[1] != 1 and item not in documented) == []


def test_every_verb_of_the_command_line_has_help() -> None:
    assert [name for name, command in commands(command_tree()) if not (command.help or "").strip()] == []


def test_every_page_that_a_page_links_to_exists() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in [*PAGES, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]

    assert broken == []
