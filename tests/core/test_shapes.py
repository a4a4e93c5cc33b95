"""Every mistake of a tree that is to be of a type, with its path."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import pytest

from treadle.core.shapes import mistakes


class Leaf(msgspec.Struct, tag="leaf", tag_field="kind"):
    size: int
    name: str = ""


class Branch(msgspec.Struct, tag="branch", tag_field="kind", rename="camel"):
    inner_parts: list[Leaf | Branch]
    by_name: dict[str, Leaf] = {}
    pair: tuple[int, ...] = ()


class Tree(msgspec.Struct):
    root: Leaf | Branch
    mode: Literal["a", "b"] = "a"
    extra: Any = None
    maybe: list[int] | None = None
    leaf: Leaf | None = None


def told(tree: Any) -> list[tuple[str, str]]:
    return [(".".join(map(str, path)), said) for path, said in mistakes(tree, Tree)]


LEAF = {"kind": "leaf", "size": 1}


@pytest.mark.parametrize(
    "tree",
    [
        {"root": LEAF},
        {"root": {"kind": "branch", "innerParts": [LEAF, {"kind": "branch", "innerParts": []}], "byName": {"x": LEAF}}},
        {"root": LEAF, "mode": "b", "extra": {"any": [1, None]}, "maybe": [1], "leaf": LEAF},
        {"root": LEAF, "maybe": None},
    ],
)
def test_what_fits_has_no_mistakes(tree: Any) -> None:
    msgspec.convert(tree, Tree)

    assert told(tree) == []


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ([], [("", "expected `object`, got `array`")]),
        ({}, [("", "a tree lacks 'root'")]),
        ({"root": {"kind": "leaf"}}, [("root", "a leaf lacks 'size'")]),
        ({"root": {"kind": "lea", "size": 1}}, [("root.kind", "invalid value 'lea'")]),
        ({"root": {"size": 1}}, [("root", "object missing required field `kind`")]),
        ({"root": LEAF, "mode": "c"}, [("mode", "invalid enum value 'c'")]),
        ({"root": LEAF, "mood": "a"}, [("mood", "unknown member 'mood'; did you mean 'mode'?")]),
        ({"root": LEAF, "zzz": 1}, [("zzz", "unknown member 'zzz'")]),
        ({"root": LEAF, "maybe": [1, "x"]}, [("maybe.1", "expected `int`, got `str`")]),
        ({"root": LEAF, "leaf": {"kind": "leaf", "size": "x"}}, [("leaf.size", "expected `int`, got `str`")]),
    ],
)
def test_each_mistake_is_told_with_its_path(tree: Any, expected: list[tuple[str, str]]) -> None:
    assert told(tree) == expected


def test_all_mistakes_are_told_in_the_order_of_the_tree() -> None:
    inner = {
        "kind": "branch",
        "innerParts": [{"kind": "leaf", "size": "x"}, {"kind": "leaf", "nme": "y"}],
        "pair": [1, "2"],
    }
    tree = {
        "root": {"kind": "branch", "innerParts": [inner], "byName": {"k": {"kind": "leaf", "size": None}}},
        "mode": 7,
    }

    assert [path for path, _ in told(tree)] == [
        "root.innerParts.0.innerParts.0.size",
        "root.innerParts.0.innerParts.1.nme",
        "root.innerParts.0.innerParts.1",
        "root.innerParts.0.pair.1",
        "root.byName.k.size",
        "mode",
    ]
