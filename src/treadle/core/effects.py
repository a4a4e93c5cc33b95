"""Effects: what a step gives beside its value. They are named by the event of its success, and by nothing else."""

from __future__ import annotations

import msgspec


class Artifact(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The reference of a stored artifact: what a step returns, what others open, what listings show."""

    # Unique among the artifacts of its step: `<step>:artifact:001`, or what the step has chosen.
    id: str
    # What people call it, such as a file name; any text, and no path.
    name: str
    kind: str
    content_type: str
    # In bytes.
    size: int
    # `sha256:...` of the stored bytes, which are not the content if a payload codec has encoded it.
    digest: str
    # Where the bytes were put.
    uri: str = ""
    # The address of the step that made it.
    step: str = ""
    metadata: dict[str, str] = {}
    # The key that the stored bytes are encoded with; empty for the content itself.
    key_id: str = ""


class Effects(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a step has made: artifacts, and handles of lists of records, each `[collection, key, data]`."""

    artifacts: tuple[Artifact, ...] = ()
    records: tuple[str, ...] = ()


class Write(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A statement that takes effect with the step's outcome, in the same transaction or not at all."""

    sql: str
    values: list[bool | int | float | str | None] = []


class Given(msgspec.Struct, frozen=True, gc=False):
    """What a step's success, by the attempt with this lease, brings to the projections of the store."""

    lease: int
    at: str
    records: tuple[str, ...]
    writes: tuple[Write, ...] = ()


class ProjectionSpec(msgspec.Struct, frozen=True):
    """What a database is told of a projection. Its tables are called like it, or begin with its name and `_`."""

    name: str
    # Scripts, in order; one that was applied is never changed.
    migrations: tuple[str, ...]
    # Collection -> the statement that applies a record, with parameters :key :data :collection :run :step :at.
    statements: dict[str, str]


__all__ = ["Artifact", "Effects", "Given", "ProjectionSpec", "Write"]
