"""What differs between two documents, by the names of their parts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from hypothesis import given
from tests.authoring.documents_kit import WRITTEN, documents

from treadle.core.differences import Difference, differences
from treadle.core.documents import Document, seal
from treadle.core.plan import Const, Step


def document(*blocks: Step, constants: tuple[Any, ...] = (), context: dict[str, str] | None = None) -> Document:
    written = msgspec.structs.replace(
        WRITTEN, context=context or {}, created_at=datetime(2026, len(blocks), 1, tzinfo=UTC)
    )
    return seal(Document(workflow="w", blocks=list(blocks), constants=list(constants), provenance=written))


def test_steps_are_matched_by_id_and_not_by_place() -> None:
    a, b, c = (Step(id=name, action="m:do") for name in "abc")
    changed = Step(id="b", action="m:other", slots={"x": Const(0)})

    assert differences(document(a, b), document(c, a, changed)) == [
        Difference("$.blocks[b].action", "m:do", "m:other"),
        Difference("$.blocks[b].slots", msgspec.UNSET, {"x": {"slot": "const", "index": 0}}),
        Difference("$.blocks[c]", msgspec.UNSET, {"block": "step", "id": "c", "action": "m:do"}),
    ]


def test_types_are_part_of_values() -> None:
    step = Step(id="a", action="m:do")
    one = document(step, constants=(1, True, {"$treadle": ["float", "1.0"]}), context={"commit": "x"})
    two = document(step, constants=(True, 1, 1))

    assert [difference.place for difference in differences(one, two)] == [
        "$.constants[0]",
        "$.constants[1]",
        "$.constants[2]",
        "$.provenance.context",
    ]


def test_times_and_hashes_are_told_on_request() -> None:
    a, b = (Step(id=name, action="m:do") for name in "ab")
    one, two = document(a), document(a, b)

    assert [d.place for d in differences(one, two, everything=True)] == [
        "$.blocks[b]",
        "$.hash",
        "$.provenance.created_at",
    ]
    assert [d.place for d in differences(one, two)] == ["$.blocks[b]"]


@given(documents(), documents())
def test_equal_documents_have_none_and_others_have_some(
    one: tuple[Document, list[str]], two: tuple[Document, list[str]]
) -> None:
    assert differences(one[0], one[0], everything=True) == []
    assert (differences(one[0], two[0], everything=True) == []) == (one[0].hash == two[0].hash)
