"""Verbs about receipts: show, export, sign, verify, diff; what they name is a file, or a run of the store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from treadle.cli.desk import Desk, pairs, with_desk
from treadle.cli.documents import facts_of_saved, is_document
from treadle.cli.output import emit, paint, say, table, write
from treadle.cli.receipt_text import render, short
from treadle.cli.settings import find_project
from treadle.core.differences import Difference, differences
from treadle.core.documents import Document, tree_of
from treadle.errors import UsageError
from treadle.runtime.report import clean

if TYPE_CHECKING:
    from treadle.runtime.run import Run

VARIABLE = "TREADLE_KEY_PASSPHRASE"
# Exit codes of `verify`.
VERDICTS = {"valid": 0, "missing": 4, "unsigned": 6, "invalid": 6}


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
@click.option("--envelope", is_flag=True, help="Write only the signatures, as a DSSE envelope for other tools.")
@click.argument("name", metavar="RECEIPT")
@click.argument("file", required=False)
async def export(
    desk: Desk, name: str, file: str | None, folder: str, form: str, context: tuple[str, ...], envelope: bool
) -> None:
    """Write the receipt of a run to FILE (.json, .yaml), or to a file that no other receipt has; print its hash.

    A receipt or plan that is a file already is written in the other form.
    """
    from treadle.runtime.documents import receipt_name, save_document, write_whole

    document = await found(desk, name, pairs(context, "--context"))
    own = receipt_name(document, "dsse.json" if envelope else form)
    target = Path(folder) / own if file is None else Path(file)
    if envelope:
        if document.signature is None:
            raise UsageError(f"{name} is not signed; `treadle receipt sign` signs it")
        write_whole(target, msgspec.json.encode(document.signature) + b"\n")
    else:
        save_document(document, target)
    emit(facts_of_saved(document, str(target)), desk.output, f"{clean(str(target))}  {document.hash}\n")


@receipt.command()
@with_desk()
@click.option("--key", required=True, metavar="KEY", help="A key file, gpg:FINGERPRINT, awskms:KEY, ...")
@click.option("--to", "target", metavar="FILE", help="Where to write it; else the same file.")
@click.option("--public", "public", metavar="FILE", help="Write the public key too, for those who verify.")
@click.option("--ask", is_flag=True, help="Ask for the key's passphrase or PIN; else TREADLE_KEY_PASSPHRASE.")
@click.argument("file")
async def sign(desk: Desk, file: str, key: str, target: str | None, public: str | None, ask: bool) -> None:
    """Sign the plan or receipt in FILE. It keeps its other signatures; one by the same key is replaced."""
    from treadle.runtime.documents import load_document, save_document, write_whole
    from treadle.runtime.signing.verification import sign_with, signer_of

    document = load_document(file)
    secret = click.prompt("Passphrase", hide_input=True, err=True) if ask else os.environ.get(VARIABLE)
    signer = signer_of(key, secret.encode() if secret else None)
    saved = str(save_document(sign_with(document, signer), target or file))
    if public is not None:
        write_whole(Path(public), signer.public().encode())
    emit({"file": saved, "key": signer.keyid, "hash": document.hash}, desk.output, f"{clean(saved)}  {signer.keyid}\n")


@receipt.command()
@with_desk()
@click.option("--trust", multiple=True, metavar="KEY", help="A public key, or a file of them; repeatable.")
@click.option("--allow-unsigned", is_flag=True, help="Exit code 0 for a document that is whole and not signed.")
@click.argument("file")
async def verify(desk: Desk, file: str, trust: tuple[str, ...], allow_unsigned: bool) -> int:
    """Tell whether FILE is, to the byte, what trusted keys have signed: valid, unsigned, invalid or missing.

    Trusted are --trust, else `trusted_keys` of [tool.treadle] in pyproject.toml. Needs none of your code, and no store.
    """
    from treadle.runtime.signing.verification import verify_document

    answer = verify_document(file, trust or find_project(Path.cwd()).keys())
    lines = "\n".join(clean(line) for line in answer.message.splitlines())
    emit(answer, desk.output, f"{paint(answer.status)}: {lines}\n")
    if answer.status == "unsigned" and allow_unsigned:
        return 0
    return VERDICTS[answer.status]


async def keep(run: Run[Any], place: Path, *, folder: bool) -> None:
    """Write the receipt of a run to a file, or into a folder of receipts, and say where."""
    from treadle.runtime.documents import keep_receipt, save_document

    document = await run.receipt()
    saved = keep_receipt(document, place) if folder else save_document(document, place)
    say(f"receipt {clean(str(saved))}  {document.hash}")


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
