"""JSON texts read strictly, and where their parts stand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.core.json_text import Path, TextError, read_json

trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=15,
)


def parts(tree: Any, path: Path = ()) -> list[tuple[Path, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [(path, tree), *(found for name, item in items for found in parts(item, (*path, name)))]


@given(trees, st.sampled_from([None, 1, 4]), st.booleans())
def test_every_part_stands_where_its_place_says(tree: Any, indent: int | None, escaped: bool) -> None:
    text = json.dumps(tree, indent=indent, ensure_ascii=escaped)
    reading = read_json(text)

    assert reading.tree == tree
    # Only JSON's own line ends count.
    lines = text.split("\n")
    for path, part in parts(tree):
        line, column = reading.place(path)
        rest = "\n".join([lines[line - 1][column - 1 :], *lines[line:]])
        assert json.JSONDecoder().raw_decode(rest)[0] == part


def test_what_is_not_there_stands_where_it_should_be() -> None:
    reading = read_json('{"a": [1, {\n"b": 2}]}')

    assert reading.place(("a", 1, "b")) == (2, 6)
    assert reading.place(("a", 1, "none", 7)) == (1, 11)


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ('{"a": 1, "b": {"c": 1,\n "c": 2}}', "the name 'c' stands twice in one object; keep one", (2, 2)),
        ('{"a\\u0041": 1, "aA": 2}', "the name 'aA' stands twice in one object; keep one", (1, 16)),
        ('{"a": [1, 2', "the text ends in the middle; it was cut off", (1, 12)),
        ('{"a": "x', "the text ends in the middle; it was cut off", (1, 7)),
        ("", "the text ends in the middle; it was cut off", (1, 1)),
        ('{"a": 1, b}', "no JSON: expecting property name enclosed in double quotes", (1, 10)),
        ("[1] []", "no JSON: extra data", (1, 5)),
        ("[NaN]", "NaN is no number of JSON", (0, 0)),
        ("[" * 100_000, "nested too deep", (0, 0)),
    ],
)
def test_each_bad_text_says_what_and_where(text: str, message: str, place: tuple[int, int]) -> None:
    with pytest.raises(TextError) as caught:
        read_json(text)

    assert str(caught.value).startswith(message)
    assert caught.value.place == place


@pytest.mark.parametrize(
    ("text", "value"),
    [("9007199254740992", 2**53), ("9007199254740994", 9007199254740994.0), ("1" * 400, float("inf")), ("-0", 0)],
)
def test_large_integers_are_doubles_as_for_every_reader(text: str, value: float) -> None:
    tree = read_json(text).tree

    assert tree == value
    assert type(tree) is type(value)
