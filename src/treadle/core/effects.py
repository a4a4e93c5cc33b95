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
    # `sha256:...` of the stored bytes.
    digest: str
    # Where the bytes were put.
    uri: str = ""
    # The address of the step that made it.
    step: str = ""
    metadata: dict[str, str] = {}


class Effects(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a step has made."""

    artifacts: tuple[Artifact, ...] = ()


__all__ = ["Artifact", "Effects"]
