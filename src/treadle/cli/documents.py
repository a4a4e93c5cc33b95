"""Documents as targets: a saved plan in the place of a workflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.errors import UsageError

if TYPE_CHECKING:
    from treadle.authoring.builder import Planned
    from treadle.cli.targets import Inputs
    from treadle.core.documents import Document

_SUFFIXES = (".json", ".yaml", ".yml")


def is_document(target: str) -> bool:
    """Whether a target is the file of a plan or receipt."""
    return target.lower().endswith(_SUFFIXES)


def document_at(target: str, inputs: Inputs) -> Document:
    """The document that a target names. Its arguments were fixed when it was planned."""
    from treadle.runtime.documents import load_document

    if inputs.given:
        raise UsageError(f"{target} holds its arguments; it takes no --input. Plan anew for other ones")
    return load_document(target)


def runnable(document: Document, modules: tuple[str, ...], *, reset: bool) -> Planned:
    """The plan of a document, after the modules that define its functions were imported.

    A document's own words decide nothing about what is imported: only --module and pyproject.toml do.
    """
    from treadle.authoring.documents import planned_of
    from treadle.cli.settings import find_project
    from treadle.cli.targets import load_module

    for name in modules or find_project(Path.cwd()).modules:
        load_module(name)
    return planned_of(document, reset=reset)


def save_plan(plan: Planned | Document, file: str, context: dict[str, str]) -> Document:
    """Write a plan to a file; a document that was loaded stays as it is, whatever the form of the file."""
    from treadle.core.documents import Document
    from treadle.runtime.documents import plan_document, save_document

    if not is_document(file):
        raise UsageError(f"--save takes a name that ends in {', '.join(_SUFFIXES)}, not {file!r}")
    if isinstance(plan, Document):
        if context:
            raise UsageError("--context is noted when a workflow is planned; this target is a document already")
        document = plan
    else:
        document = plan_document(plan, context=context)
    save_document(document, file)
    return document


def facts_of_saved(document: Document, file: str) -> dict[str, Any]:
    """What `--save` tells about the file."""
    return {"file": file, "hash": document.hash, "workflow": document.workflow}
