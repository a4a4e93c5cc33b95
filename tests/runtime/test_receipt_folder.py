"""A folder of receipts: each under a name of its own, written whole or not at all, and a link to the last one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from treadle import (
    Document,
    DocumentError,
    Registry,
    connect,
    keep_receipt,
    load_document,
    plan_document,
    save_document,
    step,
    workflow,
)

registry = Registry()
made: set[str] = set()


@step(name="folder:make", registry=registry, undo=lambda name: made.discard(name))
def make(name: str) -> str:
    made.add(name)
    return name


@step(name="folder:fail", registry=registry)
def fail(after: str) -> None:
    raise ValueError("no luck")


@workflow(name="folder:good", registry=registry)
def good() -> str:
    return make.bind("a")


@workflow(name="folder:bad", registry=registry, on_failure="unwind")
def bad() -> Any:
    return fail.bind(make.bind("a"))


async def receipt(planned: Any, id_: str) -> Document:
    async with connect("memory://", registry=registry) as app:
        run = await app.start(planned, id=id_)
        await run.wait()
        return await run.receipt()


async def test_receipts_of_all_outcomes_are_kept_and_latest_is_the_last_one(tmp_path: Path) -> None:
    folder = tmp_path / "of" / "receipts"

    first = keep_receipt(await receipt(good, "one"), folder)
    second = keep_receipt(await receipt(bad, "../two"), folder)

    assert sorted(os.listdir(folder)) == sorted([first.name, second.name, "latest.json"])
    assert first.name.startswith("one-")
    assert second.name.startswith("two-")
    assert os.readlink(folder / "latest.json") == second.name
    latest = load_document(folder / "latest.json")
    assert latest.run is not None
    assert (latest.run.status, latest.run.unwound) == ("failed", "fully")
    assert latest.run.summary.standing == 0
    assert load_document(first).run is not None


async def test_what_is_written_to_the_link_is_written_to_the_receipt(tmp_path: Path) -> None:
    async with connect("memory://", registry=registry) as app:
        run = await app.start(good)
        await run.result()
        receipt = await run.receipt()
    kept = keep_receipt(receipt, tmp_path)

    written = save_document(receipt, tmp_path / "latest.json")

    assert written == kept.resolve()
    assert os.readlink(tmp_path / "latest.json") == kept.name
    assert receipt.run is not None
    assert kept.name == f"{receipt.run.key}-v{receipt.run.version}.json"


async def test_where_no_links_can_be_made_latest_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: Path, _target: object) -> None:
        raise OSError("a privilege is not held")

    monkeypatch.setattr(Path, "symlink_to", refuse)

    keep_receipt(await receipt(good, "zero"), tmp_path)
    before = sorted(tmp_path.iterdir())
    monkeypatch.undo()
    keep_receipt(await receipt(good, "half"), tmp_path)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    kept = keep_receipt(await receipt(good, "one"), tmp_path)

    assert (tmp_path / "latest.json").read_bytes() == kept.read_bytes()
    assert len(before) == 2
    assert len(list(tmp_path.iterdir())) == 4
    for file in tmp_path.iterdir():
        assert load_document(file).is_receipt
        assert file.name == "latest.json" or file.name.split("-")[0] in file.read_text()


async def test_what_is_no_receipt_or_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(DocumentError, match="plan of 'folder:good', and no receipt"):
        keep_receipt(plan_document(good.plan(), registry=registry), tmp_path)
    with pytest.raises(DocumentError, match="file: receipts cannot be kept there"):
        keep_receipt(await receipt(good, "one"), tmp_path / "file")


KEEPER = """
import itertools, sys
from msgspec.structs import replace
from treadle import keep_receipt, load_document
from treadle.core.documents import seal
receipt = load_document(sys.argv[1])
for number in itertools.count(1):
    keep_receipt(seal(replace(receipt, run=replace(receipt.run, version=number))), sys.argv[2])
"""


@pytest.mark.slow
def test_a_keeper_that_is_killed_leaves_whole_receipts_and_a_link_to_one(tmp_path: Path) -> None:
    folder = tmp_path / "receipts"
    source = tmp_path / "source.json"
    source.write_bytes(keep_receipt(asyncio.run(receipt(bad, "one")), tmp_path / "first").read_bytes())
    latest = folder / "latest.json"
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", KEEPER, str(source), str(folder)]) as keeper:
            before = os.readlink(latest) if latest.is_symlink() else ""
            while not latest.is_symlink() or os.readlink(latest) == before:
                time.sleep(0.001)
            keeper.kill()

        assert load_document(latest).is_receipt
        for file in folder.glob("*.json"):
            assert json.loads(file.read_text())["hash"] == load_document(file).hash


async def test_drafts_of_writers_that_were_killed_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    found = await receipt(good, "one")
    key = "01a22db9-6d85-7b94-9a8f-d7183341799"
    old, young, other = (tmp_path / f".{name}.tmp" for name in (f"r.json.{key}5", f"r.json.{key}6", "mine"))
    link = tmp_path / f".latest.json.{key}7.tmp"
    link.symlink_to("r.json")
    for path in (old, young, other):
        path.write_bytes(b"half")
    for path in (old, other, link):
        os.utime(path, (1, 1), follow_symlinks=False)

    kept = keep_receipt(found, tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {young.name, other.name, kept.name, "latest.json"}
