"""The tree of an expression, and how it is printed: one canonical text for each tree.

Every node knows where in the text it began (`at`), so that errors can point there; two trees that differ only in
that are equal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Literal

import msgspec

# What an expression reads: the name of a root, then keys and positions.
Path = tuple[str | int, ...]

Comparison = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in"]
Arithmetic = Literal["+", "-", "*", "/", "//", "%"]

# How strongly each form binds; a larger number binds closer.
CHOICE, OR, AND, NOT, COMPARE, SUM, PRODUCT, NEGATIVE, POSTFIX = range(1, 10)
POWERS: dict[str, int] = {
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">=", "in", "not in"), COMPARE),
    **dict.fromkeys(("+", "-"), SUM),
    **dict.fromkeys(("*", "/", "//", "%"), PRODUCT),
}

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Node(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """A part of an expression; `at` is the place of its first character, from 0."""

    at: int = 0

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._said() == self._said()

    def __hash__(self) -> int:
        return hash((type(self), self._said()))

    def _said(self) -> tuple[object, ...]:
        """All that it says, which is not where."""
        return tuple(getattr(self, name) for name in self.__struct_fields__ if name != "at")


class Constant(Node, frozen=True):
    """null, true, false, a number or a text."""

    value: bool | int | float | str | None


class Read(Node, frozen=True):
    """A value found by a path that is known before the evaluation."""

    path: Path


class Item(Node, frozen=True):
    """An item of a computed value, or one whose key is computed."""

    base: Node
    key: Node


class Not(Node, frozen=True):
    """true where its operand is false."""

    operand: Node


class Negative(Node, frozen=True):
    """A number with its sign turned."""

    operand: Node


class Compare(Node, frozen=True):
    """A comparison of two values."""

    operator: Comparison
    left: Node
    right: Node


class Compute(Node, frozen=True):
    """Arithmetic on two values; `+` also joins two texts or two lists."""

    operator: Arithmetic
    left: Node
    right: Node


class All(Node, frozen=True):
    """Operands joined by `and`: looked at from the left until one is false."""

    operands: tuple[Node, ...]


class Any(Node, frozen=True):
    """Operands joined by `or`: looked at from the left until one is true."""

    operands: tuple[Node, ...]


class Choice(Node, frozen=True):
    """`then if condition else otherwise`; only the chosen side is evaluated."""

    then: Node
    condition: Node
    otherwise: Node


class Call(Node, frozen=True):
    """A function of the language, applied."""

    function: str
    arguments: tuple[Node, ...]


class Items(Node, frozen=True):
    """A list, written out."""

    items: tuple[Node, ...]


class Entries(Node, frozen=True):
    """A dict, written out; its keys are texts."""

    entries: tuple[tuple[str, Node], ...]


def parts(node: Node) -> tuple[Node, ...]:
    """The nodes directly below a node, in the order of the text."""
    match node:
        case Item(base=first, key=second) | Compare(left=first, right=second) | Compute(left=first, right=second):
            return first, second
        case Not(operand=operand) | Negative(operand=operand):
            return (operand,)
        case All(operands=nodes) | Any(operands=nodes) | Items(items=nodes) | Call(arguments=nodes):
            return nodes
        case Choice():
            return node.then, node.condition, node.otherwise
        case Entries():
            return tuple(value for _, value in node.entries)
        case _:
            return ()


def walk(root: Node) -> Iterator[tuple[Node, int]]:
    """Yield every node, each before those below it, in the order of the text, with its depth (the root's is 1)."""
    stack = [(root, 1)]
    while stack:
        node, depth = stack.pop()
        yield node, depth
        stack.extend((part, depth + 1) for part in reversed(parts(node)))


def show_path(path: Path) -> str:
    """A path as it is written in an expression: `lanes.build["a-b"][0]`."""
    root, *rest = path
    return str(root) + "".join(
        f".{part}" if isinstance(part, str) and NAME.fullmatch(part) else f"[{_text(part)}]" for part in rest
    )


def show(node: Node, power: int = 0) -> str:
    """The canonical text of a tree: as few parentheses as keep its meaning where `power` binds around it."""
    own, text = _shown(node)
    return f"({text})" if own < power else text


def _text(value: bool | float | str | None) -> str:
    return json.dumps(value, ensure_ascii=False)


def _listed(nodes: tuple[Node, ...]) -> str:
    return ", ".join(show(node) for node in nodes)


def _shown(node: Node) -> tuple[int, str]:
    match node:
        case Constant():
            return POSTFIX, _text(node.value)
        case Read():
            return POSTFIX, show_path(node.path)
        case Call():
            return POSTFIX, f"{node.function}({_listed(node.arguments)})"
        case Items():
            return POSTFIX, f"[{_listed(node.items)}]"
        case Entries():
            return POSTFIX, "{" + ", ".join(f"{_text(key)}: {show(value)}" for key, value in node.entries) + "}"
        case _:
            return _shown_operator(node)


def _shown_operator(node: Node) -> tuple[int, str]:
    match node:
        case Item(base=base, key=Constant(value=str(key))) if NAME.fullmatch(key):
            return POSTFIX, f"{show(base, POSTFIX)}.{key}"
        case Item():
            return POSTFIX, f"{show(node.base, POSTFIX)}[{show(node.key)}]"
        case Negative():
            return NEGATIVE, f"-{show(node.operand, NEGATIVE)}"
        case Compare():
            # Comparisons do not chain, so both sides bind closer.
            return COMPARE, f"{show(node.left, SUM)} {node.operator} {show(node.right, SUM)}"
        case Compute():
            power = POWERS[node.operator]
            return power, f"{show(node.left, power)} {node.operator} {show(node.right, power + 1)}"
        case Not():
            return NOT, f"not {show(node.operand, NOT)}"
        case All():
            return AND, " and ".join(show(operand, NOT) for operand in node.operands)
        case Any():
            return OR, " or ".join(show(operand, AND) for operand in node.operands)
        case Choice():
            sides = show(node.then, OR), show(node.condition, OR), show(node.otherwise, CHOICE)
            return CHOICE, "{} if {} else {}".format(*sides)
        case _:
            raise AssertionError(node)
