"""Parameters of users' statements: `?` and `:name`, as SQLite has them, become PostgreSQL's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

# Texts, quoted names and comments are passed over, as are names (which may contain a `$`) and casts.
_TOKEN: Final = re.compile(
    r"""
    [eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | \$(?P<tag>[A-Za-z_]\w*|)\$.*?\$(?P=tag)\$
    | --[^\n]* | /\*.*?\*/
    | [^\W\d][\w$]*
    | ::
    | (?P<place>\$\d+)
    | (?P<mark>\?)
    | :(?P<name>[A-Za-z_]\w*)
    """,
    re.VERBOSE | re.DOTALL,
)


def numbered(sql: str) -> str:
    """The statement with `$1`, `$2`, ... for each `?`; where it says `$1` itself, `?` stays PostgreSQL's operator."""
    if count_places(sql):
        return sql
    count = 0

    def replaced(found: re.Match[str]) -> str:
        nonlocal count
        if found["mark"] is None:
            return found[0]
        count += 1
        return f"${count}"

    return _TOKEN.sub(replaced, sql)


def count_places(sql: str) -> int:
    """The highest of the numbers behind `$`, 0 if there are none."""
    return max((int(found["place"][1:]) for found in _TOKEN.finditer(sql) if found["place"]), default=0)


def named(sql: str, values: Mapping[str, str]) -> str:
    """The statement with what stands for each `:name`; a name that is not known stays, and the server refuses it."""
    return _TOKEN.sub(lambda found: values.get(found["name"] or "", found[0]), sql)


def first_word(sql: str) -> str:
    """The word that tells what the statement does, in capitals."""
    found = re.match(r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/|\()*(\w*)", sql, re.DOTALL)
    return found[1].upper() if found else ""


def quote_of(text: str) -> str:
    """A dollar quote that is not in the text."""
    quote = "$treadle$"
    while quote in text:
        quote = f"{quote[:-1]}x$"
    return quote


def literal(text: str) -> str:
    """A text as the server reads it in a statement."""
    return "'" + text.replace("'", "''") + "'"


__all__ = ["count_places", "first_word", "literal", "named", "numbered", "quote_of"]
