"""Plans as documents: their texts, what survives them, and every mistake that a changed one may hold."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.authoring.documents_kit import SOME_VALUES, WRITTEN, documents

from treadle import Registry, step, workflow
from treadle.authoring import codec
from treadle.authoring.documents import (
    FORMS,
    Form,
    action_names,
    document_of,
    dump_document,
    exact,
    inexact,
    plan_document,
    planned_of,
    read_document,
)
from treadle.core.documents import Document, RunRecord, Summary, moment, seal, statement, tree_of
from treadle.core.plan import Const, Plan, Predicate, Ref, Step, encode_plan
from treadle.errors import (
    ChecksumError,
    CycleError,
    DocumentError,
    DocumentVersionError,
    EncodeError,
    UnregisteredStepError,
)

registry = Registry()


@step(name="docs:add", registry=registry)
def add(a: float, b: float) -> float:
    return a + b


@workflow(name="docs:sums", registry=registry)
def sums(n: int) -> float:
    return add.bind(add.bind(n, 1.5), 10.0)


def document(*blocks: Step, constants: list[str] | None = None, **more: Any) -> Document:
    return document_of(Plan(workflow="w", blocks=list(blocks)), constants or [], WRITTEN, **more)


ONE = document(Step(id="a", action="m:a", slots={"x": Const(0)}), Step(id="b", action="m:b"), constants=["1.0"])
TEXTS = {form: dump_document(ONE, form) for form in FORMS}
RAN = RunRecord(
    id="r",
    key="k",
    status="failed",
    plan="p",
    version=1,
    created_at=moment(1.5),
    summary=Summary(steps=0, attempts=0, standing=0),
)


def mistakes(text: str) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        read_document(text.encode(), "p")
    return str(caught.value).splitlines()


# -- round trips -------------------------------------------------------------------------------------------------------


@given(documents(), st.sampled_from(FORMS))
def test_what_is_read_and_written_again_is_the_same_to_the_byte(made: tuple[Document, list[str]], form: Form) -> None:
    text = dump_document(made[0], form)
    again = read_document(text.encode(), "p")

    assert again == made[0]
    assert dump_document(again, form) == text
    assert again.hash == made[0].hash


@given(documents(), st.sampled_from(FORMS))
def test_plan_and_typed_constants_survive(made: tuple[Document, list[str]], form: Form) -> None:
    again = read_document(dump_document(made[0], form).encode(), "p")

    assert encode_plan(again.plan()) == encode_plan(made[0].plan())
    # The members of an object have no order.
    texts = [codec.encode(codec.convert(inexact(value), Any)) for value in again.constants]
    assert [json.dumps(json.loads(text), sort_keys=True) for text in texts] == [
        json.dumps(json.loads(text), sort_keys=True) for text in made[1]
    ]


@pytest.mark.parametrize("value", SOME_VALUES, ids=range(len(SOME_VALUES)))
def test_a_constant_comes_back_as_what_it_was(value: Any) -> None:
    made = document(constants=[codec.encode(value)])
    again = read_document(dump_document(made).encode(), "p")
    [text] = planned_of(
        document(Step(id="a", action="docs:add"), constants=[codec.encode(value)]), registry=registry
    ).constants

    assert text == codec.encode(value)
    assert repr(codec.decode(text)) == repr(codec.decode(codec.encode(value)))
    assert again.constants == made.constants


def test_floats_keep_their_type_though_the_canonical_form_has_no_point() -> None:
    assert exact([1.0, 1, 2.5, {"k": -0.0}]) == [
        {"$treadle": ["float", "1.0"]},
        1,
        2.5,
        {"k": {"$treadle": ["float", "-0.0"]}},
    ]
    assert repr(inexact(exact([1.0, 1, 2.5, {"k": -0.0}]))) == "[1.0, 1, 2.5, {'k': -0.0}]"


@given(st.data())
def test_a_changed_byte_is_caught_or_changes_no_word_of_it(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(FORMS))
    text = bytearray(TEXTS[form].encode())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != text[at]))

    try:
        again = read_document(bytes(text), "p")
    except DocumentError:
        return
    assert again == ONE
    assert dump_document(again, form).encode() != bytes(text)


@given(st.sampled_from(FORMS), st.data())
def test_a_truncated_text_is_never_taken(form: Form, data: st.DataObject) -> None:
    text = TEXTS[form].encode()
    end = data.draw(st.integers(0, len(text) - 2))

    with pytest.raises(DocumentError):
        read_document(text[:end], "p")


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_an_edited_plan_is_refused_with_both_hashes() -> None:
    text = TEXTS["json"].replace('"m:b"', '"m:c"')

    with pytest.raises(ChecksumError, match="changed after it was written") as caught:
        read_document(text.encode(), "plan.json")

    assert ONE.hash in str(caught.value)
    assert caught.value.path == "plan.json"


def test_a_document_without_a_hash_is_refused() -> None:
    tree = tree_of(ONE)
    del tree["hash"]

    with pytest.raises(ChecksumError, match="it says none"):
        read_document(json.dumps(tree).encode(), "p")


@pytest.mark.parametrize("form", FORMS)
def test_all_mistakes_are_told_at_once_each_with_its_place(form: Form) -> None:
    text = TEXTS[form]
    for old, new in {"action": "acton", "tool": "tol", "index": "idx"}.items():
        text = text.replace(f'"{old}"' if form == "json" else f"{old}:", f'"{new}"' if form == "json" else f"{new}:")

    said = "\n".join(mistakes(text))

    assert "unknown member 'acton'; did you mean 'action'?" in said
    assert "a step lacks 'action'" in said
    assert "a const lacks 'index'" in said
    assert "a provenance lacks 'tool'" in said
    assert "$.blocks[1].acton" in said
    lines = text.splitlines()
    for complaint in said.splitlines():
        _, line, column, _ = complaint.split(":", 3)
        assert 0 < int(line) <= len(lines)
        assert lines[int(line) - 1][int(column) - 1].strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEXTS["json"][:400], "p:29:9: the text ends in the middle; it was cut off"),
        (TEXTS["json"].replace('"m:a"', '"m:a'), "p:4"),
        (
            TEXTS["json"].replace('"id": "a"', '"id": "a", "id": "b"'),
            "the name 'id' stands twice in one object; keep one",
        ),
        (TEXTS["json"].replace('"id": "a"', '"id": 7'), "p:6:13: expected `str`, got `int` (at `$.blocks[0].id`)"),
        (TEXTS["json"].replace('"block": "step"', '"block": "stop"', 1), "invalid value 'stop'"),
        (TEXTS["json"].replace("2026-01-02T", "yesterday"), "$.provenance.created_at"),
        (TEXTS["json"].replace('"0.1.0"', "NaN"), "NaN is no number of JSON"),
        (TEXTS["json"].replace('"0.1.0"', "1" * 5000), "p"),
        (TEXTS["json"] + "}", "no JSON: extra data"),
        ("[" * 100_000, "nested too deep"),
        ('{"format": "treadle.plan/1", "constants": ' + "[" * 800 + "]" * 800 + "}", "p"),
        (TEXTS["json"].replace('"abc"', '"\\ud800"'), "half of a surrogate pair"),
        (TEXTS["json"].replace('"abc"', "1e400"), "at `$.provenance.context.commit`: inf is no number of JSON"),
        ("{}", "no plan or receipt; those are objects with a `format` of 'treadle.plan/1'"),
        ("[1]", "no plan or receipt"),
        ("", "no plan or receipt"),
        ('{"format": "other/1"}', "its format is 'other/1'"),
        ('{"format": "treadle.plan/1"}', "a document lacks 'workflow'"),
        ("a: &x [1]\nb: [*x, *x]", "p:1:4: anchors and aliases ('x') are not taken"),
        (
            "a: !!python/object/apply:os.system [x]",
            "tags (tag:yaml.org,2002:python/object/apply:os.system) are not taken",
        ),
        ("a: 1\nb: 2\na: 3", "p:3:1: the name 'a' stands twice in one object; keep one"),
        ("a: [1,\nb", "no YAML"),
        ("a: 1\n---\nb: 1", "several documents"),
        ("? [a]\n: 1", "the name of a member must be a text"),
        ("a: \x07", "no YAML"),
        (TEXTS["yaml"].replace("id: a", "id: 7"), "expected `str`, got `int` (at `$.blocks[0].id`)"),
    ],
)
def test_each_bad_text_has_its_own_complaint(text: str, expected: str) -> None:
    said = mistakes(text)

    assert any(expected in line for line in said), said
    assert all(line.startswith("p") for line in said)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(DocumentError, match="byte 1 is no UTF-8"):
        read_document(b"{\xff", "p")


def test_a_document_of_a_newer_format_says_to_upgrade() -> None:
    with pytest.raises(DocumentVersionError, match="upgrade treadle"):
        read_document(TEXTS["json"].replace("treadle.plan/1", "treadle.plan/2").encode(), "p")


def test_a_file_full_of_mistakes_gives_a_list_that_ends() -> None:
    blocks = [{"block": "step", "id": index, "action": "m:a"} for index in range(500)]
    said = mistakes(json.dumps({**tree_of(ONE), "blocks": blocks}))

    assert len(said) == 21
    assert said[-1] == "p: and more mistakes"


def test_yaml_is_read_as_yaml_1_2() -> None:
    made = document(Step(id="on", action="12:30", annotations={"yes": "no", "0x1": "~", "e": "1e3"}))
    text = dump_document(made, "yaml").replace('"12:30"', "12:30").replace('"on"', "on")

    assert read_document(text.encode(), "p") == made


# -- running again -----------------------------------------------------------------------------------------------------


def test_a_saved_plan_is_the_plan() -> None:
    planned = sums.plan(3)
    again = planned_of(read_document(dump_document(plan_document(planned, WRITTEN)).encode(), "p"), registry=registry)

    assert encode_plan(again.plan) == encode_plan(planned.plan)
    assert again.constants == planned.constants == ["3", "1.5", "10.0"]
    assert again.workflow == "docs:sums"


def test_all_unknown_names_are_listed_at_once() -> None:
    made = document(
        Step(id="a", action="m:a"),
        Step(id="b", action="docs:add"),
        Step(id="c", action="m:c", when=Predicate("m:p", {})),
    )

    with pytest.raises(UnregisteredStepError, match="m:a, m:c, m:p"):
        planned_of(made, registry=registry)
    assert action_names(made.plan()) == ["m:a", "docs:add", "m:c", "m:p"]


def test_a_receipt_is_run_again_only_on_purpose() -> None:
    receipt = document(Step(id="b", action="docs:add"), run=RAN)

    with pytest.raises(DocumentError, match=r"receipt of run 'r' \(failed\).*reset"):
        planned_of(receipt, registry=registry)
    assert planned_of(receipt, registry=registry, reset=True).plan.blocks == receipt.blocks


def test_a_forged_plan_is_checked_before_it_runs() -> None:
    circle = document(Step(id="a", action="m:a", after=("b",)), Step(id="b", action="m:a", slots={"x": Ref("a")}))
    missing = document(Step(id="a", action="m:a", slots={"x": Const(3)}))

    with pytest.raises(CycleError):
        planned_of(circle, registry=registry)
    with pytest.raises(DocumentError, match="uses constant 3, and the document has 0"):
        planned_of(missing, registry=registry)
    negative = document(Step(id="a", action="m:a", slots={"x": Const(-1)}), constants=["1"])
    with pytest.raises(DocumentError, match="uses constant -1"):
        planned_of(negative, registry=registry)
    spoilt = seal(msgspec.structs.replace(ONE, constants=[{"$treadle": ["bytes", "%"]}]))
    with pytest.raises(DocumentError, match="constant 0 cannot be read"):
        planned_of(spoilt, registry=registry)


def test_what_was_changed_in_memory_is_not_run() -> None:
    with pytest.raises(ChecksumError, match="it is not run"):
        planned_of(msgspec.structs.replace(ONE, workflow="v"), registry=registry)


def test_what_has_no_canonical_form_is_refused_when_it_is_written() -> None:
    with pytest.raises(EncodeError, match=r"\$.blocks\[0\].timeout"):
        document(Step(id="a", action="m:a", timeout=float("inf")))
    with pytest.raises(EncodeError, match=r"\$.blocks\[0\].priority"):
        document(Step(id="a", action="m:a", priority=2**60))
    with pytest.raises(EncodeError, match="surrogate"):
        document(Step(id="a", action="m:a", annotations={"a": "\ud800"}))


def test_sealing_anew_drops_the_signature_of_what_it_was() -> None:
    resealed = seal(ONE)

    assert resealed == ONE
    assert ONE.hash.removeprefix("sha256:") in statement(ONE).decode()
