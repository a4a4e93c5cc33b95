"""Properties of documents over plans of every kind of block, and over the receipts of what became of them."""

from __future__ import annotations

import json
from pathlib import Path
from zlib import crc32

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.authoring.documents_kit import WRITTEN
from tests.core.kit import Driver
from tests.core.random_plans import CONSTANTS, LABELS, SIGNALS, blocks, open_plans

from treadle import sign_document, verify_document
from treadle.authoring.documents import FORMS, document_of, dump_document, planned_of, read_document
from treadle.core import inputs as inp
from treadle.core.commands import Task
from treadle.core.decide import Limits
from treadle.core.documents import Document
from treadle.core.events import Items
from treadle.core.plan import Block, Plan, encode_plan, plan_hash
from treadle.core.tables import OUTCOMES
from treadle.errors import DocumentError
from treadle.runtime.inspection import snapshot_of
from treadle.runtime.receipts import receipt_of
from treadle.runtime.replaying import replay
from treadle.store.base import Loaded, RunHead

TEXTS = [json.dumps(value) for value in CONSTANTS]
any_plan = st.one_of(blocks(), open_plans())
slow = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def planned(plan: list[Block]) -> Document:
    return document_of(Plan(workflow="w", blocks=plan, on_failure="unwind"), TEXTS, WRITTEN)


def played(plan: list[Block], seed: int, inputs: int) -> Driver:
    """A run of the plan that fails here and there, is unwound, and was given so many inputs."""
    driver = Driver(*plan, constants=CONSTANTS, breakpoints=LABELS, limits=Limits(), on_failure="unwind")
    driver.settle()
    for _ in range(inputs):
        if driver.tasks:
            task = driver.tasks[min(driver.tasks)]
            driver.give(answer(driver, task, seed))
        elif driver.run.status in OUTCOMES:
            break
        for name in SIGNALS:
            driver.give(inp.Signal(name))
        for label in LABELS:
            driver.give(inp.Release(label))
    return driver


def answer(driver: Driver, task: Task, seed: int) -> inp.Outcome:
    mixed = crc32(f"{task.address} {task.attempt} {seed}".encode()) % 9
    if mixed == 0 and task.call.purpose != "condition":
        return driver.failed(task, code="not_compensable" if task.call.purpose == "undo" else "")
    items = {"items": Items(2, 2, ("=[1, 2]",))} if task.action == "treadle:items" else {}
    return driver.outcome(task, mixed % 4 != 0, **items)


def receipt(driver: Driver) -> Document:
    encoded = encode_plan(driver.graph.plan)
    head = RunHead(
        key=driver.key,
        id="run-1",
        workflow="w",
        plan=plan_hash(encoded),
        constants=driver.constants,
        breakpoints=driver.breakpoints,
        created_at=1.5,
    )
    rows = [(version, version, time, text) for version, time, text in driver.rows]
    loaded = Loaded(head, encoded, len(rows), driver.run.status, driver.run.hold, "", rows, [], [])
    told = replay(loaded)
    return receipt_of(loaded, told, snapshot_of(loaded, told, [], 2000.0), TEXTS, WRITTEN)


def comes_back(document: Document) -> None:
    """Written, read and written again it is the same to the byte, in each form and from one to the other."""
    for form in FORMS:
        for other in FORMS:
            again = read_document(dump_document(document, form).encode(), "a")
            assert again == document
            assert dump_document(again, other) == dump_document(document, other)


@slow
@given(any_plan)
def test_plans_of_every_kind_of_block_come_back_to_the_byte(plan: list[Block]) -> None:
    document = planned(plan)

    comes_back(document)
    assert encode_plan(read_document(dump_document(document, "yaml").encode(), "a").plan()) == encode_plan(
        document.plan()
    )


@slow
@given(any_plan, st.integers(0, 1000), st.integers(0, 40))
def test_receipts_of_whatever_became_of_them_come_back_to_the_byte(plan: list[Block], seed: int, inputs: int) -> None:
    driver = played(plan, seed, inputs)

    document = receipt(driver)

    comes_back(document)
    assert document.run is not None
    assert document.run.summary.standing <= document.run.summary.steps
    standing = [step for step in document.run.steps if step.status == "succeeded" and step.undo != "undone"]
    assert document.run.summary.standing <= len(standing)


@slow
@given(any_plan, st.integers(0, 1000))
def test_a_receipt_of_any_run_is_not_run_again_unless_it_is_reset(plan: list[Block], seed: int) -> None:
    document = receipt(played(plan, seed, 12))

    with pytest.raises(DocumentError, match="receipt of run 'run-1'"):
        planned_of(document)


KEY = Ed25519PrivateKey.generate()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "key").write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    (folder / "key.pub").write_bytes(KEY.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return folder


@slow
@given(data=st.data(), plan=any_plan, seed=st.integers(0, 1000))
def test_any_change_of_one_byte_of_any_signed_receipt_is_caught(
    keys: Path, data: st.DataObject, plan: list[Block], seed: int
) -> None:
    signed = sign_document(receipt(played(plan, seed, 20)), keys / "key")
    form = data.draw(st.sampled_from(FORMS))
    path = keys / f"receipt.{form}"
    text = bytearray(dump_document(signed, form).encode())
    path.write_bytes(text)
    assert verify_document(path, [keys / "key.pub"]).status == "valid"

    at = data.draw(st.integers(0, len(text) - 1))
    text[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != text[at]))
    path.write_bytes(text)

    assert verify_document(path, [keys / "key.pub"]).status == "invalid"


@slow
@given(data=st.data(), plan=any_plan)
def test_a_receipt_or_plan_with_a_truncated_end_is_never_taken(data: st.DataObject, plan: list[Block]) -> None:
    document = receipt(played(plan, 1, 9)) if data.draw(st.booleans()) else planned(plan)
    text = dump_document(document, "json").encode()
    end = data.draw(st.integers(0, len(text) - 2))

    with pytest.raises(DocumentError) as caught:
        read_document(text[:end], "cut.json")

    assert str(caught.value).startswith("cut.json")
