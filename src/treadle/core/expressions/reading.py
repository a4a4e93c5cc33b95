"""From the text of an expression to its tree: words, then precedence climbing, with as many mistakes as can be found.

After a mistake reading goes on behind the next `and`, `or`, comma or bracket, so that one pass reports independent
mistakes. Depth and length are bounded, so that no text can exhaust the stack.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from typing import NamedTuple, cast

import msgspec

from treadle.core.expressions import nodes
from treadle.core.expressions.functions import FUNCTIONS
from treadle.core.expressions.nodes import Arithmetic, Comparison, Node
from treadle.core.expressions.values import LARGEST
from treadle.errors import ExpressionSyntaxError

# Rules and conditions are lines, not programs.
MAX_TEXT = 10_000
# Deeper than anyone writes, and far from Python's own limit of 1,000 calls, of which each level takes a few.
MAX_DEPTH = 64

_WORD = re.compile(
    r"(?P<space>[ \t\r\n]+)"
    r"|(?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<text>\"(?:[^\"\\\x00-\x08\x0a-\x1f]|\\[^\x00-\x1f])*\"|'(?:[^'\\\x00-\x08\x0a-\x1f]|\\[^\x00-\x1f])*')"
    r"|(?P<sign>==|!=|<=|>=|//|&&|\|\||[-+*/%<>!().,:\[\]{}])"
)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "/": "/", "\\": "\\", '"': '"', "'": "'"}
_CONSTANTS = {"null": None, "true": True, "false": False, "None": None, "True": True, "False": False}
_KEYWORDS = frozenset({"and", "or", "not", "in", "if", "else"})
_ALIASES = {"&&": "and", "||": "or"}
_COMPARISONS = frozenset({"==", "!=", "<", "<=", ">", ">=", "in", "not in"})
_CLOSERS = {"(": ")", "[": "]", "{": "}"}
# Where reading goes on after a mistake.
_RESTARTS = frozenset({"and", "or", "if", "else", ",", ")", "]", "}"})
_END = "the end"


class _Word(NamedTuple):
    # number, text, name, or the operator, keyword or bracket itself.
    kind: str
    text: str
    at: int


class _Stop(Exception):  # noqa: N818 - a jump to the next place where reading can go on; its mistake is noted
    pass


def read(source: str, roots: Collection[str] | None = None) -> Node:
    """The tree of a text.

    Args:
        source: The text.
        roots: The names that paths may begin with; None for any.

    Raises:
        ExpressionSyntaxError: with all mistakes that could be found.
    """
    if len(source) > MAX_TEXT:
        raise ExpressionSyntaxError(
            source, [(MAX_TEXT, f"an expression has at most {MAX_TEXT} characters, this one {len(source)}")]
        )
    reader = _Reader(source, roots)
    root = reader.whole()
    if not reader.mistakes:
        too_deep = next((node for node, depth in nodes.walk(root) if depth > MAX_DEPTH), None)
        if too_deep is None:
            return root
        reader.mistakes.append((too_deep.at, _too_deep()))
    raise ExpressionSyntaxError(source, sorted(reader.mistakes))


def _too_deep() -> str:
    return f"expressions nest at most {MAX_DEPTH} levels deep; split this one"


class _Reader:
    def __init__(self, source: str, roots: Collection[str] | None) -> None:
        self.roots = roots
        self.mistakes: list[tuple[int, str]] = []
        # The places of characters that begin no word.
        self.refused: list[int] = []
        self.words = self._split(source)
        self.next = 0
        self.depth = 0
        # Where reading last went on after a mistake: another one at the same word is only its echo.
        self.restarted = -1

    # Words

    def _split(self, source: str) -> list[_Word]:
        words: list[_Word] = []
        at = 0
        while at < len(source):
            found = _WORD.match(source, at)
            if found is None:
                at = self._refuse_character(source, at)
                continue
            kind, text = cast("str", found.lastgroup), found.group()
            if kind == "sign" or text in _KEYWORDS:
                words.append(_Word(_ALIASES.get(text, text), text, at))
            elif kind != "space":
                words.append(_Word(kind, text, at))
            at = found.end()
        words.append(_Word(_END, "", len(source)))
        return words

    def _refuse_character(self, source: str, at: int) -> int:
        """Note what is wrong with a character that begins no word, and say where to go on."""
        character = source[at]
        self.refused.append(at)
        if character in "\"'":
            self.mistakes.append((at, "this text does not end on its line; close it, and write line breaks as \\n"))
            line_end = source.find("\n", at)
            return len(source) if line_end < 0 else line_end
        hint = {
            "=": "; compare by ==",
            "&": "; write and",
            "|": "; write or",
            "$": "; names are written plainly",
            "^": "; there is no power operator",
        }.get(character, "")
        end = at + 1
        if character.isidentifier():
            hint = "; write such a key in brackets and quotes"
            while end < len(source) and source[at : end + 1].isidentifier():
                end += 1
        self.mistakes.append((at, f"{source[at:end]!r} means nothing here{hint}"))
        return end

    # Moves

    @property
    def word(self) -> _Word:
        return self.words[self.next]

    def _take(self) -> _Word:
        word = self.words[self.next]
        if word.kind != _END:
            self.next += 1
        return word

    def _accept(self, kind: str) -> bool:
        if self.word.kind != kind:
            return False
        self.next += 1
        return True

    def _note(self, at: int, message: str) -> None:
        self.mistakes.append((at, message))

    def _stop(self, message: str) -> _Stop:
        if self.next != self.restarted and not self._refused_before():
            self._note(self.word.at, message)
        return _Stop()

    def _refused_before(self) -> bool:
        """Whether characters in front of this word were refused: what is wrong here follows from that."""
        last = self.words[self.next - 1].at if self.next else -1
        return any(last < at < self.word.at for at in self.refused)

    def _found(self) -> str:
        return f"found {self.word.text!r}" if self.word.text else "the expression ends"

    def _recovering(self, power: int = nodes.CHOICE, parse: Callable[[], Node] | None = None) -> Node:
        """A part of the text; after a mistake in it, reading goes on at the next place that can begin anew."""
        depth, at = self.depth, self.word.at
        try:
            return self._expression(power) if parse is None else parse()
        except _Stop:
            pass
        while True:
            self.depth = depth
            self._skip()
            self.restarted = self.next
            try:
                # What is joined to the broken part may hold mistakes of its own. Each turn takes a word.
                return self._climb(nodes.Constant(None, at=at), power)
            except _Stop:
                continue

    def _skip(self) -> None:
        closers: list[str] = []
        while self.word.kind != _END:
            kind = self.word.kind
            if kind in _CLOSERS:
                closers.append(_CLOSERS[kind])
            elif closers:
                if kind == closers[-1]:
                    closers.pop()
            elif kind in _RESTARTS:
                return
            self.next += 1

    # Forms

    def whole(self) -> Node:
        """The tree of the whole text; wrong if there are mistakes."""
        root = self._recovering()
        while self.word.kind != _END:
            self._stop(f"expected an operator, {self._found()}")
            self._skip()
            closing = self._take().kind in _CLOSERS.values()
            self.restarted = self.next
            if not closing:
                # What stands behind is read for its own mistakes.
                self._recovering()
        return root

    def _expression(self, power: int = nodes.CHOICE) -> Node:
        if self.depth >= MAX_DEPTH:
            raise self._stop(_too_deep())
        self.depth += 1
        left = self._climb(self._prefix(power), power)
        self.depth -= 1
        return left

    def _climb(self, left: Node, power: int) -> Node:
        """What begins with `left` and is joined by operators that bind at least as closely as `power`."""
        while True:
            kind = self._operator()
            own = _binds(kind)
            if own < power:
                return left
            left = self._infix(kind, own, left)

    def _operator(self) -> str:
        """The operator that stands here, `not in` being one."""
        kind = self.word.kind
        if kind == "not" and self.words[self.next + 1].kind == "in":
            return "not in"
        return kind

    def _infix(self, kind: str, power: int, left: Node) -> Node:
        if kind in ("and", "or"):
            return self._joined(kind, power, left)
        self.next += 2 if kind == "not in" else 1
        if kind == "if":
            condition = self._recovering(nodes.OR)
            if not self._accept("else"):
                raise self._stop(f"expected `else` and the other value, {self._found()}")
            return nodes.Choice(left, condition, self._expression(nodes.CHOICE), at=left.at)
        right = self._expression(power + 1)
        if kind not in _COMPARISONS:
            return nodes.Compute(cast("Arithmetic", kind), left, right, at=left.at)
        if self._operator() in _COMPARISONS:
            self._note(self.word.at, "comparisons do not chain; join two of them by `and`")
        return nodes.Compare(cast("Comparison", kind), left, right, at=left.at)

    def _joined(self, kind: str, power: int, first: Node) -> Node:
        operands = [first]
        while self._accept(kind):
            operands.append(self._recovering(power + 1))
        if kind == "and":
            return nodes.All(tuple(operands), at=first.at)
        return nodes.Any(tuple(operands), at=first.at)

    def _prefix(self, power: int) -> Node:
        word = self.word
        if word.kind == "not":
            self._take()
            if power > nodes.NOT:
                self._note(word.at, "put `not` and its operand in parentheses here, or write !")
            return nodes.Not(self._expression(nodes.NOT), at=word.at)
        if word.kind == "!":
            self._take()
            return nodes.Not(self._expression(nodes.NEGATIVE), at=word.at)
        if word.kind == "-":
            self._take()
            return nodes.Negative(self._expression(nodes.NEGATIVE), at=word.at)
        return self._postfix(self._primary())

    def _postfix(self, base: Node) -> Node:
        while True:
            if self._accept("."):
                word = self.word
                # Behind a dot a keyword is a key like any other.
                if not nodes.NAME.fullmatch(word.text):
                    raise self._stop(f"expected a key behind the dot, {self._found()}")
                self._take()
                base = _item(base, nodes.Constant(word.text, at=word.at))
            elif self._accept("["):
                key = self._recovering()
                self._close("]")
                base = _item(base, key)
            else:
                return base

    def _primary(self) -> Node:
        word = self.word
        if word.kind == "number":
            self._take()
            return nodes.Constant(self._number(word), at=word.at)
        if word.kind == "text":
            self._take()
            return nodes.Constant(self._unescaped(word), at=word.at)
        if word.kind == "name":
            self._take()
            return self._named(word)
        if word.kind not in _CLOSERS:
            raise self._stop(f"expected a value, {self._found()}")
        self._take()
        if word.kind == "(":
            inner = self._recovering()
            self._close(")")
            return msgspec.structs.replace(inner, at=word.at)
        if word.kind == "[":
            return nodes.Items(tuple(self._listed("]")), at=word.at)
        return self._entries(word)

    def _named(self, word: _Word) -> Node:
        if self.word.kind == "(":
            return self._call(word)
        if word.text in _CONSTANTS:
            return nodes.Constant(_CONSTANTS[word.text], at=word.at)
        if self.roots is not None and word.text not in self.roots:
            known = ", ".join(sorted(self.roots)) or "none"
            self._note(word.at, f"unknown name {word.text!r}; known here: {known}")
        return nodes.Read((word.text,), at=word.at)

    def _call(self, word: _Word) -> Node:
        self._take()
        arguments = tuple(self._listed(")"))
        function = FUNCTIONS.get(word.text)
        if function is None:
            self._note(word.at, f"unknown function {word.text!r}; there are: {', '.join(sorted(FUNCTIONS))}")
        elif not function.least <= len(arguments) <= function.most:
            self._note(word.at, f"{function.name} takes {function.arity}, not {len(arguments)}")
        elif function.reads_first and not isinstance(arguments[0], nodes.Read | nodes.Item):
            self._note(arguments[0].at, f"the first argument of {function.name} is a path such as state.count")
        return nodes.Call(word.text, arguments, at=word.at)

    def _listed(self, closer: str) -> list[Node]:
        """Values between commas up to a closing bracket; a comma may stand behind the last."""
        found: list[Node] = []
        self._list(closer, lambda: found.append(self._recovering()))
        return found

    def _entries(self, opener: _Word) -> Node:
        found: dict[str, Node] = {}
        self._list("}", lambda: self._recovering(parse=lambda: self._entry(found)))
        return nodes.Entries(tuple(found.items()), at=opener.at)

    def _list(self, closer: str, parse: Callable[[], object]) -> None:
        while self.word.kind not in (closer, _END):
            parse()
            if self.word.kind not in (",", closer):
                self._stop(f"expected , or {closer}, {self._found()}")
                self._skip()
                self.restarted = self.next
            if not self._accept(","):
                break
        self._close(closer)

    def _entry(self, found: dict[str, Node]) -> Node:
        word = self.word
        if word.kind != "text":
            raise self._stop(f"a key of a dict is a text in quotes, {self._found()}")
        self._take()
        key = self._unescaped(word)
        if key in found:
            self._note(word.at, f"the key {key!r} is written twice")
        if not self._accept(":"):
            raise self._stop(f"expected : and a value, {self._found()}")
        found[key] = self._expression()
        return found[key]

    def _close(self, closer: str) -> None:
        if not self._accept(closer):
            raise self._stop(f"expected {closer}, {self._found()}")

    # Constants

    def _number(self, word: _Word) -> int | float:
        if not word.text.isdigit():
            value = float(word.text)
            if math.isfinite(value):
                return value
        elif len(word.text) > 1 and word.text.startswith("0"):
            self._note(word.at, "a number has no leading zeros")
            return 0
        elif len(word.text) <= len(str(LARGEST)) and int(word.text) <= LARGEST:
            return int(word.text)
        self._note(word.at, f"this number is too large; integers go up to {LARGEST}")
        return 0

    def _unescaped(self, word: _Word) -> str:
        def character(found: re.Match[str]) -> str:
            escape = found.group(1)
            if len(escape) > 1:
                return chr(int(escape[1:], 16))
            if escape not in _ESCAPES:
                self._note(word.at + 1 + found.start(), f"unknown escape \\{escape}; a backslash itself is \\\\")
            return _ESCAPES.get(escape, "")

        text = _ESCAPE.sub(character, word.text[1:-1])
        try:
            # Two escapes that are one character beyond U+FFFF become it.
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self._note(word.at, "half of a surrogate pair is no character")
            return ""


def _binds(kind: str) -> int:
    if kind in ("if", "or", "and"):
        return {"if": nodes.CHOICE, "or": nodes.OR, "and": nodes.AND}[kind]
    return nodes.POWERS.get(kind, 0)


def _item(base: Node, key: Node) -> Node:
    """An item of a value: a longer path where all of it is known now."""
    match key:
        case nodes.Constant(value=str(text)):
            part: str | int | None = text
        case nodes.Constant(value=int(index)) if not isinstance(index, bool):
            part = index
        case nodes.Negative(operand=nodes.Constant(value=int(index))) if not isinstance(index, bool):
            part = -index
        case _:
            part = None
    if isinstance(base, nodes.Read) and part is not None:
        return nodes.Read((*base.path, part), at=base.at)
    return nodes.Item(base, key, at=base.at)
