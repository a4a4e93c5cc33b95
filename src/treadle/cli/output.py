"""What goes to stdout: tables for people, JSON for programs. All text from users is cleaned of control characters."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, Final, Literal, TextIO

import click
import msgspec

from treadle.runtime.report import clean

Format = Literal["table", "json", "jsonl"]

_COLOURS: Final[dict[str, str]] = {
    "succeeded": "green",
    "failed": "red",
    "skipped": "bright_black",
    "cancelled": "magenta",
    "running": "cyan",
    "retrying": "yellow",
    "paused": "yellow",
    "pausing": "yellow",
    "cancelling": "magenta",
    "unwinding": "yellow",
    "valid": "green",
    "unsigned": "yellow",
    "invalid": "red",
    "missing": "red",
}


def colourful(stream: TextIO) -> bool:
    """Whether to colour: a terminal that can, unless NO_COLOR is set; or FORCE_COLOR."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def paint(status: str, text: str | None = None) -> str:
    """A status in its colour, if stdout has colours."""
    text = text if text is not None else status
    colour = _COLOURS.get(status)
    return click.style(text, fg=colour) if colour and colourful(sys.stdout) else text


def write(text: str) -> None:
    """Write data to stdout; characters that its encoding lacks are escaped instead of failing."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    click.echo(text, nl=not text.endswith("\n"), color=colourful(sys.stdout))


def say(text: str) -> None:
    """Talk: a line on stderr."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=True, color=colourful(sys.stderr))


def write_json(value: object, *, lines: bool = False) -> None:
    """Write a value as JSON: with `lines` on one line (a list: one line an item), else indented."""
    encode = msgspec.json.encode
    if not lines:
        write(msgspec.json.format(encode(value), indent=2).decode())
        return
    items: list[Any] = value if isinstance(value, list) else [value]  # pyright: ignore[reportUnknownVariableType]  # of anything
    for item in items:
        write(encode(item).decode())


def write_value(text: str) -> None:
    """Write a stored JSON text: indented for a terminal, else as it is."""
    if sys.stdout.isatty():
        text = msgspec.json.format(text, indent=2)
    write(text)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, status: int = -1, empty: str = "") -> str:
    """Aligned columns; `empty` is said when there are no rows.

    `status` is the column that is coloured: by a status, after which more may be said behind a comma.
    """
    if not rows:
        return f"{empty}\n" if empty else ""
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [max(len(header), *(len(row[at]) for row in cells)) for at, header in enumerate(headers)]
    lines = ["  ".join(f"{header:<{width}}" for header, width in zip(headers, widths, strict=True)).rstrip()]
    for row in cells:
        shown = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        if status >= 0:
            shown[status] = paint(row[status].partition(",")[0], shown[status])
        lines.append("  ".join(shown).rstrip())
    return "\n".join(lines) + "\n"


def emit(value: object, output: str, text: str) -> None:
    """Write `text` for people, or `value` as JSON."""
    if output == "table":
        if text:
            write(text)
    else:
        write_json(value, lines=output == "jsonl")


def plainly(value: object) -> Any:
    """A struct as plain dicts and lists."""
    return msgspec.to_builtins(value)
