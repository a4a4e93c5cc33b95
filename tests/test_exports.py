"""The public names: documented, in the glossary, and quick to import."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import treadle

DOCS = Path(__file__).resolve().parents[1] / "docs"

# A promise of the README; what a script pays for `import treadle` before its first line.
IMPORT_SECONDS = 0.150
ROUNDS = 10


def documented_names() -> set[str]:
    """The names in the headings of the reference: "### `connect(url)`", "### `Retryable`, `Permanent`".

    A dotted name in a heading is a method or a module; it belongs to its class or to its own `__all__`.
    """
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#{2,4} (.*)$", text, flags=re.MULTILINE)
    return {
        name for heading in headings for name in re.findall(r"`@?(\w+)(?:\([^`]*\))?`", heading) if name.isidentifier()
    }


def test_the_public_names_are_sorted_and_exist() -> None:
    assert treadle.__all__
    assert list(treadle.__all__) == sorted(set(treadle.__all__))
    assert [name for name in treadle.__all__ if not hasattr(treadle, name)] == []


def test_the_reference_documents_exactly_the_public_names() -> None:
    public = {name for name in treadle.__all__ if not name.startswith("__")}
    documented = documented_names()

    assert sorted(public - documented) == [], "public names without a heading in docs/reference.md"
    assert sorted(documented - public) == [], "headings of docs/reference.md that are no public names"


def test_every_public_name_has_a_docstring() -> None:
    values = {name: getattr(treadle, name) for name in treadle.__all__ if not name.startswith("__")}
    described = {name: value for name, value in values.items() if inspect.isclass(value) or inspect.isroutine(value)}

    assert described
    assert [name for name, value in described.items() if not inspect.getdoc(value)] == []


def test_every_public_class_is_in_the_glossary() -> None:
    words = set(re.findall(r"\w+", (DOCS / "glossary.md").read_text(encoding="utf-8")))
    classes = [name for name in treadle.__all__ if inspect.isclass(getattr(treadle, name))]

    assert classes
    assert [name for name in classes if name not in words] == []


def loaded_modules(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after `statement`."""
    program = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_treadle_loads_no_third_party_but_msgspec() -> None:
    added = loaded_modules("import treadle") - loaded_modules("pass")

    assert "treadle" in added
    # What msgspec itself loads is its own business.
    assert added - set(sys.stdlib_module_names) - {"treadle"} - loaded_modules("import msgspec") == set()


def processor_seconds(statement: str, cache: Path) -> float:
    """The processor time of a fresh interpreter running `statement`.

    Not the wall clock: the machine's other work would be measured along with the import.
    """
    # Bytecode is cached as in any installation, whatever this environment says of it.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(cache), "PYTHONDONTWRITEBYTECODE": ""}
    child = os.posix_spawn(sys.executable, [sys.executable, "-c", statement], environment)
    _, status, usage = os.wait4(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return usage.ru_utime + usage.ru_stime


def test_importing_treadle_is_quick(tmp_path: Path) -> None:
    processor_seconds("import treadle", tmp_path)  # the first import writes the bytecode
    bare: list[float] = []
    importing: list[float] = []

    # A virtual machine's processor may be a third slower for a while.
    for _ in range(5 * ROUNDS):
        bare.append(processor_seconds("pass", tmp_path))
        importing.append(processor_seconds("import treadle", tmp_path))
        if len(bare) >= ROUNDS and min(importing) - min(bare) < IMPORT_SECONDS:
            break

    assert min(importing) - min(bare) < IMPORT_SECONDS
