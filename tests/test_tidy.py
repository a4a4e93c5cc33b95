"""House rules that no linter knows, checked over the whole tree."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.store.nats_log_kit import FOLDER, shapes

from treadle.store.nats import wire

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "treadle"
ARCHITECTURE = ROOT / "docs" / "architecture.md"

SOURCES = sorted(PACKAGE.rglob("*.py"))
PYTHON = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "examples").rglob("*.py"))]
TEXT_SUFFIXES = {".py", ".pyi", ".md", ".toml", ".yaml", ".yml", ".json", ".sql", ".sh", ".txt", ""}
TEXT = [
    *PYTHON,
    # `.git` is a file in a further work tree.
    *(p for p in sorted(ROOT.iterdir()) if p.is_file() and p.suffix in TEXT_SUFFIXES and p.name != ".git"),
    *(path for path in sorted((ROOT / "docs").rglob("*")) if path.is_file() and path.suffix in TEXT_SUFFIXES),
    *(path for path in sorted((ROOT / ".ci").rglob("*")) if path.is_file()),
    *(path for path in sorted(PACKAGE.rglob("*.sql"))),
]

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 70
MAX_DECISION_LINES = 60

# Put together here, so that this file does not hold what it forbids.
UNFINISHED = re.compile(r"\b(?:TO" + "DO|FIX" + r"ME)\b|(?i:currently" + r"\s+only)")
MACHINE_PATH = re.compile(r"(?<![\w.~}*])/(?:work|root|home|Users|opt)" + r"/\w")

# One comment may silence several tools; what is left besides the marks is the reason.
SILENCER = re.compile(
    r"(?:#\s*)?(?:type: ignore|pyright: ignore|noqa)\b(?P<codes>\[[^\]]+\]|:\s*[A-Z]+[0-9]+(?:,\s*[A-Z]+[0-9]+)*)?"
)


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of each comment; a string that looks like one is no comment."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def holds_code(path: Path) -> bool:
    """Tell whether a file has anything besides its docstring."""
    return len(parse(path).body) > 1


def test_the_tree_is_where_these_tests_look() -> None:
    assert PACKAGE / "__init__.py" in SOURCES
    assert (PACKAGE / "py.typed").is_file()
    assert Path(__file__).resolve() in PYTHON
    assert ROOT / "Makefile" in TEXT


@pytest.mark.parametrize("path", PYTHON, ids=where)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(parse(path)), f"{where(path)} has no docstring"


@pytest.mark.parametrize("path", PYTHON, ids=where)
def test_no_file_is_too_long_to_read(path: Path) -> None:
    length = len(path.read_text(encoding="utf-8").splitlines())

    assert length <= MAX_FILE_LINES, f"{where(path)} has {length} lines; {MAX_FILE_LINES} are allowed"


def test_no_function_is_too_long_to_read() -> None:
    too_long = [
        f"{where(path)}:{function.lineno} {function.name}: {length} lines"
        for path in PYTHON
        for function in functions(path)
        if (length := (function.end_lineno or function.lineno) - function.lineno + 1) > MAX_FUNCTION_LINES
    ]

    assert too_long == []


def test_the_core_has_no_async() -> None:
    asynchronous = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    found = [
        f"{where(path)}:{node.lineno}"
        for path in sorted((PACKAGE / "core").rglob("*.py"))
        for node in ast.walk(parse(path))
        if isinstance(node, asynchronous)
    ]

    assert found == []


def test_nothing_is_left_for_later() -> None:
    found = [
        f"{where(path)}:{number}: {line.strip()}"
        for path in TEXT
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if UNFINISHED.search(line)
    ]

    assert found == []


def test_no_file_names_a_path_of_one_machine() -> None:
    found = [
        f"{where(path)}:{number}: {line.strip()}"
        for path in TEXT
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]

    assert found == []


def complaint(path: Path, comment: str) -> str | None:
    """Say what a comment that silences a tool lacks, or nothing."""
    marks = list(SILENCER.finditer(comment))
    if not marks:
        return None
    if any(mark["codes"] is None for mark in marks):
        return "silences without a code"
    # The expected errors of a typing test are its content; their codes say all.
    if path.is_relative_to(ROOT / "tests" / "typing"):
        return None
    if not re.search(r"[A-Za-z]{2}", SILENCER.sub("", comment)):
        return "silences without a reason"
    return None


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("# type: " + "ignore", "silences without a code"),
        ("# type: " + "ignore[override]", "silences without a reason"),
        ("# type: " + "ignore[override]  # narrower on purpose", None),
        ("# type: " + "ignore[a-b]  # pyright: " + "ignore[reportX]", "silences without a reason"),
        ("# no" + "qa: BLE001 - user code may raise anything", None),
        ("# no" + "qa: BLE001", "silences without a reason"),
        ("# no" + "qa", "silences without a code"),
        ("# an ordinary comment", None),
    ],
)
def test_the_rule_for_silenced_tools(comment: str, expected: str | None) -> None:
    assert complaint(PACKAGE / "any.py", comment) == expected


def test_every_silenced_tool_has_a_code_and_a_reason() -> None:
    found = [
        f"{where(path)}:{line}: {fault}: {comment}"
        for path in PYTHON
        for line, comment in comments(path)
        if (fault := complaint(path, comment))
    ]

    assert found == []


def test_the_architecture_page_has_one_line_for_every_source_file() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    lines = re.findall(r"^\s*(?:[-*]|\|)\s+`((?:\w+/)*\w+\.py)`", text, flags=re.MULTILINE)
    needed = {path.relative_to(PACKAGE).as_posix() for path in SOURCES if holds_code(path)}

    assert sorted(needed - set(lines)) == [], "files without a line in docs/architecture.md"
    assert sorted(name for name in set(lines) if lines.count(name) > 1) == [], "files with more than one line"


def test_every_file_that_the_architecture_page_names_exists() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    names = set(re.findall(r"`((?:[\w.-]+/)*[\w-]+\.py)`", text))

    assert names
    assert sorted(name for name in names if not (PACKAGE / name).is_file() and not (ROOT / name).is_file()) == []


def test_every_decision_note_is_short_and_has_its_four_parts() -> None:
    notes = sorted((ROOT / "docs" / "decisions").glob("[0-9][0-9][0-9][0-9]-*.md"))
    parts = ("## Context", "## Decision", "## What it costs", "## What would change our mind")

    assert notes
    for note in notes:
        lines = note.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= MAX_DECISION_LINES, f"{where(note)} has {len(lines)} lines"
        assert [line for line in lines if line.startswith("## ")] == list(parts), where(note)


def test_decisions_are_numbered_from_one_without_gaps() -> None:
    notes = sorted((ROOT / "docs" / "decisions").glob("*.md"))

    assert [path.name[:4] for path in notes] == [f"{number:04d}" for number in range(1, len(notes) + 1)]


def test_what_is_written_into_a_nats_log_is_recorded() -> None:
    recorded = FOLDER.joinpath(f"shapes-{wire.LEVEL}.txt").read_text(encoding="utf-8").splitlines()

    # Older processes drop a field that is new, in their snapshots too. See "How to add" in CONTRIBUTING.md: a level for
    # it, or, before this level's release, `python -m tests.store.nats_log_kit`.
    assert shapes() == recorded
