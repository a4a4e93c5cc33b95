"""Verbs about artifacts: list those of a run, show one, get its bytes; and remove blobs that no run needs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from treadle.cli.desk import Desk, run_argument, with_desk
from treadle.cli.output import emit, plainly, say, table
from treadle.errors import UsageError
from treadle.runtime.report import clean, cut

if TYPE_CHECKING:
    from treadle.core.effects import Artifact

# So much of an artifact is looked at for its preview, and so many characters of it are shown.
PREVIEW_BYTES: Final = 16 * 1024
PREVIEW_CHARACTERS: Final = 2000


def size_text(size: int) -> str:
    """A number of bytes as people read it."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def preview_kind(artifact: Artifact, head: bytes) -> str:
    """How an artifact can be shown: json, html, text or binary."""
    try:
        # The last character may be cut.
        text = head.decode(errors="strict" if len(head) < PREVIEW_BYTES else "ignore")
    except UnicodeDecodeError:
        return "binary"
    if any(ord(character) < 32 and character not in "\t\n\r\f\x1b" for character in text):
        return "binary"
    kind = artifact.content_type.partition(";")[0].strip().lower()
    if kind in ("application/json", "text/json") or kind.endswith("+json"):
        return "json"
    return "html" if kind in ("text/html", "application/xhtml+xml") else "text"


def preview_text(artifact: Artifact, head: bytes, kind: str) -> str:
    """The beginning of an artifact as text for a terminal."""
    if kind == "binary":
        return " ".join(f"{byte:02x}" for byte in head[:64]) + (" …" if artifact.size > 64 else "")
    text = head.decode(errors="ignore")
    if kind == "json" and len(head) == artifact.size:
        try:
            text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
        except ValueError:
            # It only calls itself JSON.
            kind = "text"
    return "\n".join(cut(clean(line), 200) for line in text[:PREVIEW_CHARACTERS].splitlines()) + (
        "\n…" if len(text) > PREVIEW_CHARACTERS or len(head) < artifact.size else ""
    )


@click.command()
@with_desk()
@click.option("--step", default="", metavar="STEP", help="Only those of one step.")
@run_argument
async def artifacts(desk: Desk, run_id: str, step: str) -> None:
    """List the artifacts of a run: what its succeeded steps have made."""
    async with desk.connect() as app:
        run = await desk.find(app, run_id)
        found = await run.artifacts(step)
    cells = [[made.id, made.name, made.kind, made.content_type, size_text(made.size)] for made in found]
    text = table(("ID", "NAME", "KIND", "TYPE", "SIZE"), cells, empty="no artifacts")
    emit([plainly(made) for made in found], desk.output, text)


@click.group()
def artifact() -> None:
    """Show an artifact of a run, or get its bytes."""


@artifact.command("show")
@with_desk()
@click.option("--step", default="", metavar="STEP", help="The step that made it, where several gave one id.")
@run_argument
@click.argument("artifact_id", metavar="ID")
async def show_artifact(desk: Desk, run_id: str, artifact_id: str, step: str) -> None:
    """Show what an artifact is, and how it begins."""
    async with desk.connect() as app:
        run = await desk.find(app, run_id)
        async with await run.open(artifact_id, step=step) as stream:
            made = stream.artifact
            head = await _head(stream)
    kind = preview_kind(made, head)
    facts = {"preview": kind, **plainly(made)}
    lines = [
        f"Artifact {clean(made.id)}  {clean(made.name)}",
        f"kind {clean(made.kind)}  type {clean(made.content_type)}  size {size_text(made.size)}",
        f"step {clean(made.step)}",
        f"uri {clean(made.uri)}",
        *(f"{clean(name)}: {clean(text)}" for name, text in made.metadata.items()),
        "",
        preview_text(made, head, kind),
    ]
    emit(facts, desk.output, "\n".join(lines) + "\n")


async def _head(stream: Any) -> bytes:
    head = b""
    async for chunk in stream:
        head += chunk
        if len(head) >= PREVIEW_BYTES:
            break
    return head[:PREVIEW_BYTES]


@artifact.command("get")
@with_desk("bytes")
@click.option("--step", default="", metavar="STEP", help="The step that made it, where several gave one id.")
@click.option("--to", metavar="FILE", type=click.Path(path_type=Path), help="Write them there instead of to stdout.")
@run_argument
@click.argument("artifact_id", metavar="ID")
async def get_artifact(desk: Desk, run_id: str, artifact_id: str, step: str, to: Path | None) -> None:
    """Write the bytes of an artifact to stdout, or to a file."""
    if to is None and sys.stdout.isatty():
        raise UsageError("the bytes of an artifact do not belong on a terminal; give --to FILE, or a pipe")
    async with desk.connect() as app:
        run = await desk.find(app, run_id)
        async with await run.open(artifact_id, step=step) as stream:
            if to is None:
                shutil.copyfileobj(stream, sys.stdout.buffer)
                return
            try:
                # Never over a file that is there.
                with open(to, "xb") as file:  # noqa: ASYNC230 - this loop has nothing else to do
                    shutil.copyfileobj(stream, file)
            except OSError as error:
                raise UsageError(f"{to} cannot be written: {error}") from error
            say(f"{size_text(stream.artifact.size)} written to {to}")
