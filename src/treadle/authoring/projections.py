"""Projections as they are written: a name, migrations, and for each collection the statement that applies a record.

    pages = Projection("pages", migrations=["CREATE TABLE pages (url TEXT PRIMARY KEY, status INTEGER)"])
    pages.collection(
        "page",
        "INSERT INTO pages (url, status) VALUES (:key, CAST(:data ->> 'status' AS INTEGER))"
        " ON CONFLICT (url) DO UPDATE SET status = excluded.status",
        type=Page,
    )

A statement is data, so whichever process commits an outcome applies its records, whether it has this code or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from treadle.authoring import codec
from treadle.authoring.builder import raise_all
from treadle.core.effects import ProjectionSpec
from treadle.errors import DecodeError, DefinitionError, EncodeError

# What a record may measure as JSON: lists of them are rows of the store.
RECORD_BYTES: Final = 32 * 1024
# A list of several measures at most so many characters; in UTF-8 four times as many bytes.
LIST_BYTES: Final = 60 * 1024


class Projection:
    """A read model: tables that records are applied to, and that steps and programs query.

    Args:
        name: what its tables are called, or begin with (`name_...`); letters, digits and `_`.
        migrations: scripts in order. One that was applied somewhere is never changed; add a new one.
        url: where it lives: by default in the store's own database, else at a `sqlite:///` or `postgresql://` URL.
    """

    def __init__(self, name: str, *, migrations: Sequence[str], url: str = "") -> None:
        if not name.isidentifier() or not name.isascii() or name.lower().startswith(("treadle", "sqlite", "v_")):
            raise DefinitionError(f"{name!r} is no name for a projection; use letters, digits and _, as for a table")
        if isinstance(migrations, str) or not migrations:
            raise DefinitionError(f"projection {name!r} has no list of migrations; the first makes its tables")
        self.name: Final = name
        self.url: Final = url
        self._migrations = tuple(migrations)
        self._statements: dict[str, str] = {}
        self._types: dict[str, codec.Adapter] = {}

    def __repr__(self) -> str:
        return f"<projection {self.name}: {', '.join(self._statements) or 'no collections'}>"

    def collection(self, name: str, sql: str, *, type: Any = Any) -> None:
        """Apply records of a collection by a statement. `type` is what their data must be.

        The statement has :key, :data (JSON), :collection, :run, :step and :at (seconds since the epoch). It is
        carried out once a record, so it should do the same again for the same key.
        """
        if name in self._statements:
            raise DefinitionError(f"projection {self.name!r} has the collection {name!r} already")
        self._statements[name] = sql
        self._types[name] = codec.adapter(type)

    @property
    def spec(self) -> ProjectionSpec:
        """What a database is told."""
        return ProjectionSpec(self.name, self._migrations, dict(self._statements))

    def check(self, collection: str, tree: object) -> None:
        """Raise EncodeError if data are not what the collection takes."""
        adapter = self._types.get(collection)
        if adapter is None:
            return
        try:
            adapter.convert(tree)
        except DecodeError as error:
            raise EncodeError(f"a record of {collection!r} does not fit projection {self.name!r}: {error}") from None


def record_text(projections: Iterable[Projection], collection: object, key: object, data: object) -> str:
    """A record as JSON text, `[collection, key, data]`.

    Raises:
        EncodeError: data that cannot be JSON, are too large, or are of another type than a projection takes.
    """
    for what, text in (("collection", collection), ("key", key)):
        if not isinstance(text, str) or not text.strip():
            raise EncodeError(f"the {what} of a record is a text that is not empty, not {text!r}")
    encoded = codec.encode(data)
    if len(encoded.encode()) > RECORD_BYTES:
        raise EncodeError(
            f"record {key!r} of {collection!r} has more than {RECORD_BYTES} bytes; make an artifact of it"
        )
    tree = codec.plain(encoded)
    for projection in projections:
        projection.check(str(collection), tree)
    return f"[{codec.encode(collection)},{codec.encode(key)},{encoded}]"


def lists_of(records: Sequence[str]) -> list[str]:
    """The texts of records in lists, each small enough for a row of the store."""
    lists: list[str] = []
    begin = size = 0
    for index, text in enumerate(records):
        if size and size + len(text) > LIST_BYTES:
            lists.append(f"[{','.join(records[begin:index])}]")
            begin, size = index, 0
        size += len(text)
    if size:
        lists.append(f"[{','.join(records[begin:])}]")
    return lists


def check_projections(given: Iterable[object]) -> dict[str, Projection]:
    """Projections by name.

    Raises:
        DefinitionError: one is none, or two have one name; all of them at once.
    """
    found: dict[str, Projection] = {}
    errors: list[DefinitionError] = []
    for one in given:
        if not isinstance(one, Projection):
            errors.append(DefinitionError(f"{one!r} is no Projection"))
        elif found.setdefault(one.name, one) is not one:
            errors.append(DefinitionError(f"two projections are called {one.name!r}; rename one"))
    raise_all(errors, "the projections")
    return found


__all__ = ["Projection", "check_projections", "lists_of", "record_text"]
