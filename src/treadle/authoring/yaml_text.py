"""YAML text of plain trees: written in one way only, and read without the traps. The one place that imports PyYAML.

Written is what any YAML reader takes for the same tree, with the names in canonical order, so that equal trees have
equal texts. Read is YAML 1.2: `on` and `12:30` are texts. Anchors, aliases and tags are refused: a document needs
none, and by aliases a small file can stand for a tree that fills the memory.
"""

# The events of PyYAML have no static types.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import re
from json.encoder import encode_basestring
from typing import Any, Final, cast

from treadle.core.canonical import canonical, in_order
from treadle.core.json_text import Path, Place, Reading, TextError, number_of
from treadle.errors import MissingExtraError

# Texts that no reader, of whatever version of YAML, takes for something else.
_PLAIN: Final = re.compile(r"(?a:[A-Za-z_][\w./@+-]*(?::[\w./@+-]+)*)\Z")
_WORDS: Final = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
# What YAML calls not printable, and the line breaks that only YAML knows.
_ESCAPED: Final = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
# A name as long as this would not be found to be one: YAML looks 1024 characters ahead for the colon.
_LONG: Final = 500

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL: Final = {word: word[0] in "tT" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_INT: Final = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")


# -- writing -----------------------------------------------------------------------------------------------------------


def write_yaml(tree: object) -> str:
    """The YAML text of a JSON tree."""
    return "\n".join(_lines(tree)) + "\n"


def _lines(value: object) -> list[str]:
    if isinstance(value, dict) and value:
        return _lines_of_map(cast("dict[str, object]", value))
    if isinstance(value, list) and value:
        lines: list[str] = []
        for item in cast("list[object]", value):
            first, *rest = _lines(item)
            lines.append(f"- {first}")
            lines += [f"  {line}" for line in rest]
        return lines
    return [_scalar(value)]


def _lines_of_map(members: dict[str, object]) -> list[str]:
    lines: list[str] = []
    for name in in_order(members):
        key, value = _scalar(name), members[name]
        if len(key) > _LONG:
            lines.append(f"? {key}")
            key = ""
        if isinstance(value, (dict, list)) and value:
            lines.append(f"{key}:")
            lines += [f"  {line}" for line in _lines(value)]
        else:
            lines.append(f"{key}: {_scalar(value)}")
    return lines


def _scalar(value: object) -> str:
    if not isinstance(value, str):
        return canonical(value).decode()
    if _PLAIN.match(value) and value.lower() not in _WORDS:
        return value
    return _ESCAPED.sub(_escape, encode_basestring(value))


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


# -- reading -----------------------------------------------------------------------------------------------------------


def read_yaml(text: str) -> Reading:
    """The tree of a YAML text.

    Raises:
        TextError: it is no YAML, or uses what documents do not.
        MissingExtraError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("reading YAML needs PyYAML: pip install 'treadle[yaml]'; JSON needs nothing") from None
    builder = _Builder()
    # The parser of libyaml where the package has it: the same events, ten times faster.
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        for event in yaml.parse(text, Loader=loader):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
        raise TextError(f"no YAML: {error.problem or error.context}", place) from None
    except yaml.YAMLError as error:
        raise TextError(f"no YAML: {str(error).splitlines()[0]}") from None
    return Reading(builder.root, lambda: builder.places)


class _Open:
    """A list or an object that is being read."""

    __slots__ = ("name", "path", "value")

    def __init__(self, value: Any, path: Path) -> None:
        self.value = value
        self.path = path
        # The name whose value comes next, None while a name is awaited.
        self.name: str | None = None


class _Builder:
    """Makes a tree of the parser's events."""

    def __init__(self) -> None:
        self.root: Any = None
        self.places: dict[Path, Place] = {}
        self._open: list[_Open] = []
        self._documents = 0

    def take(self, event: Any) -> None:
        """Take one event."""
        kind = type(event).__name__.removesuffix("Event")
        place = (event.start_mark.line + 1, event.start_mark.column + 1)
        if getattr(event, "anchor", None) is not None:
            raise TextError(f"anchors and aliases ({event.anchor!r}) are not taken; write the value out", place)
        match kind:
            case "Scalar":
                self._scalar(event, place)
            case "MappingStart" | "SequenceStart":
                self._check_tag(event, place)
                value: Any = {} if kind == "MappingStart" else []
                self._open.append(_Open(value, self._add(value, place)))
            case "MappingEnd" | "SequenceEnd":
                self._open.pop()
            case "DocumentStart":
                self._documents += 1
                if self._documents > 1:
                    raise TextError("the file holds several documents; keep one in each file", place)
            case _:
                pass

    def _scalar(self, event: Any, place: Place) -> None:
        self._check_tag(event, place)
        top = self._open[-1] if self._open else None
        if top is None or isinstance(top.value, list) or top.name is not None:
            self._add(_resolved(event.value) if event.implicit[0] else event.value, place)
        elif event.value in top.value:
            raise TextError(f"the name {event.value!r} stands twice in one object; keep one", place)
        else:
            top.name = event.value

    def _check_tag(self, event: Any, place: Place) -> None:
        # `!` says that a quoted text is a text, which it is.
        if event.tag not in (None, "!"):
            raise TextError(f"tags ({event.tag}) are not taken; a value's type is told by `$treadle`", place)

    def _add(self, value: Any, place: Place) -> Path:
        """Put a value into what is open; its path."""
        if not self._open:
            self.root = value
            path: Path = ()
        else:
            top = self._open[-1]
            if isinstance(top.value, list):
                path = (*top.path, len(top.value))
                top.value.append(value)
            elif top.name is None:
                raise TextError("the name of a member must be a text", place)
            else:
                path = (*top.path, top.name)
                top.value[top.name] = value
                top.name = None
        self.places[path] = place
        return path


def _resolved(text: str) -> object:
    """What a text without quotes stands for, by the core schema of YAML 1.2."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.match(text):
        return number_of(text)
    return float(text) if _FLOAT.match(text) else text
