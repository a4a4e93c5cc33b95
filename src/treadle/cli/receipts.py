"""Verbs about receipts: show, export, diff; what they name is a file, or a run of the store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import msgspec

from treadle.cli.desk import Desk, pairs, with_desk
from treadle.cli.documents import facts_of_saved, is_document
from treadle.cli.output import emit, table, write
from treadle.cli.receipt_text import render, short
from treadle.core.differences import Difference, differences
from treadle.core.documents import Document, tree_of

# What a file name of every system may hold.
_UNSAFE = re.compile(r"[^\w.-]+", re.ASCII)


@click.group()
def receipt() -> None:
    """Receipts: plans with what happened. RECEIPT is a file (.json, .yaml), or a run of the store."""


def is_file(name: str) -> bool:
    """Whether a receipt is named by its file; a run may have an id like a file's name."""
    return is_document(name) and Path(name).exists()


async def found(desk: Desk, name: str, context: dict[str, str] | None = None) -> Document:
    """The document of a file, or the receipt of a run as it is now."""
    from treadle.runtime.documents import load_document

    if is_file(name):
        return load_document(name)
    async with desk.connect() as app:
        run = await desk.find(app, name)
        return await run.receipt(context)


@receipt.command()
@with_desk()
@click.argument("name", metavar="RECEIPT")
async def show(desk: Desk, name: str) -> None:
    """Show a receipt, or a saved plan: what was planned, what became of it, what stands. With -o json the document."""
    document = await found(desk, name)
    emit(tree_of(document), desk.output, render(document))


@receipt.command()
@with_desk()
@click.option("--folder", default=".", metavar="FOLDER", help="Where to write it under a name of its own.")
@click.option("--form", type=click.Choice(["json", "yaml"]), default="json", show_default=True, help="As what.")
@click.option("--context", "context", multiple=True, metavar="K=V", help="Noted in the receipt of a run; repeatable.")
@click.argument("name", metavar="RECEIPT")
@click.argument("file", required=False)
async def export(desk: Desk, name: str, file: str | None, folder: str, form: str, context: tuple[str, ...]) -> None:
    """Write the receipt of a run to FILE (.json, .yaml), or to a file that no other receipt has; print its hash.

    A receipt or plan that is a file already is written in the other form.
    """
    from treadle.runtime.documents import save_document

    document = await found(desk, name, pairs(context, "--context"))
    target = Path(file) if file is not None else Path(folder) / file_name(document, form)
    save_document(document, target)
    emit(facts_of_saved(document, str(target)), desk.output, f"{target}  {document.hash}\n")


def file_name(document: Document, form: str) -> str:
    """A name that only this state of this run has: by the run's key and the version of its journal."""
    if document.run is None:
        return f"{_safe(document.workflow)}-{document.hash[-12:]}.{form}"
    return f"{_safe(document.run.id)}-{document.run.key}-v{document.run.version}.{form}"


def _safe(text: str) -> str:
    return _UNSAFE.sub("-", text).strip("-.")[:80] or "receipt"


@receipt.command()
@with_desk()
@click.option("--all", "everything", is_flag=True, help="Times, keys and sessions too.")
@click.argument("left", metavar="A")
@click.argument("right", metavar="B")
async def diff(desk: Desk, left: str, right: str, everything: bool) -> int:
    """Tell where two receipts or plans differ. Exit code 1 if they do."""
    found_ = differences(await found(desk, left), await found(desk, right), everything=everything)
    rows = [[one.place, _side(one.left), _side(one.right)] for one in found_]
    emit([_facts(one) for one in found_], desk.output, table(("WHERE", "A", "B"), rows))
    if desk.output == "table" and not found_:
        write("no differences\n")
    return 1 if found_ else 0


def _side(value: Any) -> str:
    return "—" if value is msgspec.UNSET else short(value)


def _facts(difference: Difference) -> dict[str, Any]:
    sides = {"left": difference.left, "right": difference.right}
    return {"place": difference.place} | {name: value for name, value in sides.items() if value is not msgspec.UNSET}
