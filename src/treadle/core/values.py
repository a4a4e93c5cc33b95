"""Values as events name them: handles, arguments that are made of them, and failures."""

from __future__ import annotations

import msgspec

Handle = str
NULL: Handle = "=null"
# How a handle begins whose value a payload codec has encoded: then its key id, and the handle of what it gave.
ENCODED = "!"


def key_id_of(handle: Handle) -> str:
    """The key id that a value was encoded with; empty for one that was not."""
    if not handle.startswith(ENCODED):
        return ""
    return handle[1 : len(handle) - len(bare(handle))]


def bare(handle: Handle) -> Handle:
    """Where the bytes are, without how they are encoded: `=` and a text, `@` and a row's digest, `#` and a blob's."""
    if not handle.startswith(ENCODED):
        return handle
    return handle[min((at for mark in "=@#" if (at := handle.find(mark)) > 0), default=0) :]


class Pick(msgspec.Struct, frozen=True, gc=False, tag="pick", tag_field="arg"):
    """A part of a stored value. The first part of the path leads into the value of the handle."""

    value: Handle
    path: tuple[str | int, ...]


class ArgList(msgspec.Struct, frozen=True, gc=False, tag="list", tag_field="arg"):
    """A list made of arguments."""

    items: list[Arg]


class Window(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """How a run collects triggers before its work begins, under a name that it holds meanwhile.

    It opens `period` seconds after the last trigger, and at most `timeout` after the first one (0: without end); or,
    with a `size`, at that many triggers.
    """

    name: str
    period: float = 0.0
    timeout: float = 0.0
    size: int = 0


class ArgMap(msgspec.Struct, frozen=True, gc=False, tag="map", tag_field="arg"):
    """An object made of arguments."""

    items: dict[str, Arg]


# A slot with its constants, Refs and signals replaced by handles.
Arg = str | Pick | ArgList | ArgMap


class Items(msgspec.Struct, frozen=True, gc=False):
    """The items of a gather: stored lists of `size` items each, the last may be shorter."""

    count: int
    size: int
    chunks: tuple[Handle, ...]


class Failure(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What went wrong, as data. `message` is capped; `detail` is the handle of the whole account.

    The account is the full text with the traceback, or an object with that `text`, and with the `details` that the
    step gave and the chained `causes` where there are any.
    """

    code: str
    message: str = ""
    type: str = ""
    detail: Handle = ""


def kind_of(event: msgspec.Struct) -> str:
    """The event's stored kind."""
    tag = event.__struct_config__.tag
    assert isinstance(tag, str)
    return tag
