"""Payload codecs end to end: what stores hold, who reads it, keys that are rotated or missing."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.postgres_kit import empty_schema, shared_server, url_of

from treadle import (
    Artifact,
    DefinitionError,
    DuplicateStepError,
    Encryption,
    MissingKeyError,
    PluginError,
    Projection,
    Registry,
    Retry,
    Retryable,
    RunExistsError,
    RunFailedError,
    StepFailedError,
    StoreCorruptError,
    UsageError,
    case,
    choose,
    connect,
    context,
    gather,
    holds,
    predicate,
    signal_value,
    step,
    workflow,
)
from treadle.authoring import plugins
from treadle.core.additions import alike
from treadle.core.events import ArgList, ConditionEvaluated, Pick, StepSucceeded
from treadle.core.keys import key_of
from treadle.core.resolve import UnresolvedError
from treadle.core.values import bare, key_id_of
from treadle.runtime import coding
from treadle.runtime.client import App
from treadle.runtime.clock import SystemClock
from treadle.runtime.collecting import sweep
from treadle.runtime.encryption import codec_of, keys_of, new_key
from treadle.runtime.exchange import KEY_SECONDS
from treadle.store.blobs import MemoryBlobs

OLD, NEW, OTHER = (bytes([number]) * 32 for number in (1, 2, 3))
# Whatever a user gives holds this.
MARK = "sensitive-particulars"
registry = Registry()


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/app.db?sync=normal"


@step(registry=registry, name="enc:say")
async def say(text: str) -> str:
    return f"{text} {MARK}"


@step(registry=registry, name="enc:swell")
def swell(text: str, times: int) -> str:
    context().progress({"about": MARK})
    return text * times


@step(registry=registry, name="enc:each")
async def each(text: str) -> list[str]:
    return [f"{text}-{number}" for number in range(5)]


@step(registry=registry, name="enc:yields")
async def yields(text: str) -> AsyncIterator[str]:
    for number in range(700):
        yield f"{text}-{number}-{MARK}"


@step(registry=registry, name="enc:length")
async def length(items: list[str]) -> int:
    return len(items)


@step(registry=registry, name="enc:page")
async def page(text: str) -> Artifact:
    made: Artifact = await context().artifact("page.txt", text * 200_000)
    return made


@step(registry=registry, name="enc:read")
async def read(made: Artifact) -> int:
    async with context().open(made) as stream:
        return len(await stream.content())


@step(registry=registry, name="enc:fails")
async def fails(text: str) -> None:
    raise ValueError(f"no good: {text}")


@step(registry=registry, name="enc:adds")
async def adds(text: str) -> str:
    context().add(say.options(id="added").bind(text), into="root")
    return text


@step(registry=registry, name="enc:records")
async def records(text: str) -> None:
    for number in range(40):
        context().record("notes", f"n{number}", {"text": text})


@predicate(registry=registry, name="enc:is_long")
def is_long(text: str) -> bool:
    return len(text) > 3


def unsaid(text: str, state: Any) -> None:
    assert state == {"before": MARK}


def look(text: str) -> Any:
    return {"before": MARK}


@step(registry=registry, name="enc:acts", undo=unsaid, prepare=look)
def acts(text: str) -> str:
    return text


@workflow(registry=registry, name="enc:everything")
def everything(text: str) -> Any:
    said = say.bind(text)
    large = swell.bind(said, 30)
    huge = swell.options(id="huge").bind(said, 20_000)
    items = each.bind(text)
    many = gather(items, lambda item: say.options(id="item").bind(item), id="many")
    picked = choose(
        case(holds("said == 'nothing'", said=said), lambda: say.options(id="no").bind("x")),
        otherwise=lambda: say.options(id="yes").bind(said),
        id="picked",
    )
    asked = say.options(id="asked", when=is_long.bind(said)).bind(said)
    count = length.bind(yields.bind(text))
    sizes = read.bind(page.bind(text))
    undoable = acts.bind(text)
    heard = say.options(id="heard").bind(signal_value("word", type=str))
    added = adds.bind(text)
    adds.options(id="adds too").bind(text)
    return [said, length.options(id="n").bind(many), picked, asked, count, sizes, undoable, heard, added, large, huge]


async def run_everything(app: App, run_id: str = "all") -> list[Any]:
    run = await app.start(everything, MARK, id=run_id)
    await run.signal("word", f"heard {MARK}")
    async with asyncio.timeout(60):
        value: list[Any] = await run.result()
        assert await run.step("added") == f"{MARK} {MARK}"
    return value


EXPECTED = [
    f"{MARK} {MARK}",
    5,
    f"{MARK} {MARK} {MARK}",
    f"{MARK} {MARK} {MARK}",
    700,
    len(MARK) * 200_000,
    MARK,
    f"heard {MARK} {MARK}",
    MARK,
    f"{MARK} {MARK}" * 30,
    f"{MARK} {MARK}" * 20_000,
]


# -- what is stored --------------------------------------------------------------------------------------------------


async def test_nothing_of_a_users_values_is_in_the_files_of_a_store_its_copy_or_its_receipt(
    sqlite: str, tmp_path: Path
) -> None:
    codec = Encryption({"k1": OLD})
    async with connect(sqlite, registry=registry, codec=codec) as app:
        assert await run_everything(app) == EXPECTED
        run = app.run("all")
        failing = await app.start(failure, MARK, id="fails")
        with pytest.raises(RunFailedError):
            await failing.result()
        await run.undo()
        receipts = [str(await run.receipt()), str(await failing.receipt())]
        await app.backup(tmp_path / "backup")
        async with connect(f"sqlite:///{tmp_path}/copy.db", codec=codec, worker=False) as other:
            await app.copy_to(other)
            assert await other.run("all").result() == EXPECTED
            assert len(await other.run("all").step("yields")) == 700

    assert not any(MARK in receipt for receipt in receipts)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) > 1_000_000
    assert [file.name for file in files if MARK.encode() in file.read_bytes()] == []
    async with connect(f"sqlite:///{tmp_path}/plain/app.db", registry=registry) as app:
        await run_everything(app)
    assert any(MARK.encode() in file.read_bytes() for file in (tmp_path / "plain").rglob("*") if file.is_file())


@workflow(registry=registry, name="enc:failure")
def failure(text: str) -> Any:
    return fails.bind(text)


@pytest.mark.postgres
@pytest.mark.usefixtures("postgres_server")
async def test_encrypted_runs_work_on_postgresql() -> None:
    with empty_schema() as schema:
        async with connect(url_of(shared_server(), schema), registry=registry, codec=Encryption({"k1": OLD})) as app:
            assert await run_everything(app) == EXPECTED


@pytest.mark.nats
async def test_encrypted_runs_work_on_nats(nats_url: str) -> None:
    async with connect(nats_url, registry=registry, codec=Encryption({"k1": OLD})) as app:
        assert await run_everything(app) == EXPECTED


async def test_values_that_ride_in_events_are_encrypted_and_booleans_that_the_kernel_asks_for_are_not() -> None:
    async with connect("memory://", registry=registry, codec=Encryption({"k1": OLD})) as app:
        await run_everything(app)
        found = [event async for _, _, event in app.run("all").events()]

    results = {event.at: event.result for event in found if isinstance(event, StepSucceeded)}
    assert key_id_of(results["say"]) == "k1"
    assert bare(results["say"]).startswith("=")
    assert bare(results["swell"]).startswith("@")
    assert bare(results["huge"]).startswith("#")
    assert {event.at: event.value for event in found if isinstance(event, ConditionEvaluated)} == {"asked": True}


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def test_records_reach_projections_in_the_stores_database_and_elsewhere(
    kind: str, request: pytest.FixtureRequest, sqlite: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        if kind == "postgres":
            request.getfixturevalue("postgres_server")
            from tests.postgres_kit import empty_schema, shared_server, url_of

            sqlite = url_of(shared_server(), stack.enter_context(empty_schema()))
        await _check_records(sqlite, tmp_path)


async def _check_records(store: str, tmp_path: Path) -> None:
    table = "CREATE TABLE {0} (key TEXT PRIMARY KEY, text TEXT)"
    insert = "INSERT INTO {0} VALUES (:key, :data ->> 'text')"
    projections: list[Projection] = []
    for name, url in (("hosted", ""), ("own", f"sqlite:///{tmp_path}/own.db")):
        made = Projection(name, migrations=[table.format(name)], url=url)
        made.collection("notes", insert.format(name))
        projections.append(made)

    @workflow(registry=registry, name="enc:noted")
    def noted(text: str) -> Any:
        return records.bind(text)

    async with connect(store, registry=registry, codec=Encryption({"k1": OLD}), projections=projections) as app:
        await (await app.start(noted, MARK)).result()
        for name in ("hosted", "own"):
            found = app.projection(name)
            await found.caught_up()
            assert await found.query(f"SELECT count(*) AS n, min(text) AS text FROM {name}") == [
                {"n": 40, "text": MARK}
            ]
            await found.rebuild()
            assert await found.query(f"SELECT count(*) AS n FROM {name}") == [{"n": 40}]


async def test_a_step_reads_what_it_reported_and_operators_see_it_with_the_key(sqlite: str) -> None:
    seen: list[Any] = []

    @step(registry=registry, name="enc:reports", retry=Retry(attempts=2, initial=0))
    async def reports(text: str) -> str:
        seen.append(context().last_progress)
        context().progress(f"!{text}")
        if context().attempt == 1:
            raise Retryable("again")
        context().progress({"at": text})
        return "done"

    @workflow(registry=registry, name="enc:reported")
    def reported(text: str) -> Any:
        return reports.bind(text)

    async with connect(sqlite, registry=registry, codec=Encryption({"k1": OLD})) as app:
        await (await app.start(reported, MARK, id="reported")).result()

    assert seen == [None, f"!{MARK}"] or seen == ["", f"!{MARK}"]


async def test_blobs_are_collected_by_what_encoded_values_name(sqlite: str) -> None:
    @step(registry=registry, name="enc:keeps", retry=Retry(attempts=2, initial=0))
    async def keeps(pages: list[Artifact]) -> list[Artifact]:
        context().progress("some of them")
        if context().attempt == 1:
            raise Retryable("again")
        return pages

    made = workflow(registry=registry, name="enc:made")(lambda text: page.bind(text))
    kept = workflow(registry=registry, name="enc:kept")(lambda pages: keeps.bind(pages))

    async with connect(sqlite, registry=registry, codec=Encryption({"k1": OLD})) as app:
        maker = await app.start(made, MARK)
        run = await app.start(kept, [await maker.result()] * 9)
        await run.result()
        await maker.delete()
        assert (await sweep(app._node, 2e10)).removed == 0
        await run.delete()
        assert (await sweep(app._node, 2e10)).removed == 1


# -- keys --------------------------------------------------------------------------------------------------------------


async def test_the_newest_key_encrypts_and_all_keys_decrypt(sqlite: str) -> None:
    async with connect(sqlite, registry=registry) as app:
        assert await run_everything(app, "plain") == EXPECTED
    async with connect(sqlite, registry=registry, codec=Encryption({"k1": OLD})) as app:
        assert await run_everything(app, "old") == EXPECTED
    async with connect(sqlite, registry=registry, codec=Encryption({"k2": NEW, "k1": OLD})) as app:
        assert await run_everything(app, "new") == EXPECTED
        for run in ("plain", "old", "new"):
            assert await app.run(run).result() == EXPECTED
            assert (await app.start(everything, MARK, id=run)).id == run
        with pytest.raises(RunExistsError):
            await app.start(everything, "another input", id="old")
        assert await app.keys() == {"k1": 1, "k2": 1}


async def test_without_the_key_a_value_is_not_read_and_the_error_names_the_key(sqlite: str) -> None:
    async with connect(sqlite, registry=registry, codec=Encryption({"k1": OLD})) as app:
        await run_everything(app)
        failing = await app.start(failure, MARK, id="fails")
        with pytest.raises(RunFailedError, match=MARK):
            await failing.result()
        with pytest.raises(StepFailedError, match=MARK):
            await failing.step("fails")
        assert MARK in (await failing.inspect()).failures[0].message

    for codec in (None, Encryption({"k2": NEW})):
        async with connect(sqlite, registry=registry, codec=codec, worker=False) as app:
            run, failing = app.run("all"), app.run("fails")
            with pytest.raises(MissingKeyError, match="'k1'") as caught:
                await run.result()
            assert caught.value.key_id == "k1"
            made = (await run.artifacts("page"))[0]
            async with await run.open(made.id) as stream:
                with pytest.raises(MissingKeyError, match="'k1'"):
                    await stream.content()
            # What operators see has gaps, and is no error.
            assert (await failing.inspect()).failures[0].message == "<encrypted>"
            with pytest.raises(RunFailedError, match="<encrypted>"):
                await failing.result()
            assert (await failing.receipt()).run is not None
            with pytest.raises(MissingKeyError):
                await sweep(app._node, 2e10)


async def test_a_step_whose_value_needs_another_key_waits_for_a_worker_that_has_it(
    sqlite: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with connect(sqlite, registry=registry, codec=Encryption({"k1": OLD}), worker=False) as app:
        run = await app.start(failure_free, MARK, id="waits")
    async with connect(sqlite, registry=registry, codec=Encryption({"k2": NEW})) as app:
        async with asyncio.timeout(10):
            while "waits for a worker with a key" not in caplog.text:
                await asyncio.sleep(0.01)
        assert (await app.run("waits").row()).status == "running"
    assert "'k1'" in caplog.text

    # By this one's clock the wait is over.
    both = Encryption({"k2": NEW, "k1": OLD})
    async with connect(sqlite, registry=registry, codec=both, clock=Ahead()) as app, asyncio.timeout(30):
        assert await app.run(run.id).result() == f"{MARK} {MARK}"
        view = (await app.run(run.id).inspect()).step("say")
        assert view is not None
        assert view.attempt == 1


class Ahead(SystemClock):
    """The machine's clock, and a while."""

    def now(self) -> float:
        return super().now() + 2 * KEY_SECONDS


@workflow(registry=registry, name="enc:failure_free")
def failure_free(text: str) -> Any:
    return say.bind(text)


async def test_a_key_of_the_same_id_that_is_another_one_is_found_out(sqlite: str) -> None:
    async with connect(sqlite, registry=registry, codec=Encryption({"k1": OLD})) as app:
        await run_everything(app)
    async with connect(sqlite, registry=registry, codec=Encryption({"k1": OTHER}), worker=False) as app:
        with pytest.raises(StoreCorruptError, match="another one"):
            await app.run("all").result()


def test_a_key_that_is_none_is_refused_without_showing_it() -> None:
    for keys in ({}, {"k": b"short"}, {"k": "nobase64!"}, {"no id": OLD}):
        with pytest.raises(UsageError) as caught:
            Encryption(keys)
        assert "nobase64" not in str(caught.value)
    assert Encryption({"k": base64.b64encode(OLD).decode()}).key_ids == ["k"]
    assert repr(Encryption({"k": OLD})) == "Encryption(k)"


def test_keys_come_from_a_file_a_variable_or_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# the newest first\n{new_key('k2')}\n{new_key('k1')}  # old\n")
    monkeypatch.setenv("SOME_KEYS", file.read_text())

    for text in (f"file:{file}", "env:SOME_KEYS"):
        codec = codec_of(text)
        assert isinstance(codec, Encryption)
        assert codec.key_ids == ["k2", "k1"]
    assert codec_of(None) is None
    for wrong in ("file:/nowhere", "env:NOT_SET"):
        with pytest.raises(UsageError, match=r"cannot be read|not set"):
            codec_of(wrong)
    for text in ("", "k1", "k1 a b", f"{new_key('k')}\n{new_key('k')}"):
        with pytest.raises(UsageError):
            keys_of(text, "here")
    with pytest.raises(PluginError, match=r"treadle\.codecs"):
        codec_of("vault:prod")

    def from_vault(text: str) -> Encryption:
        assert text == "vault:prod"
        return Encryption({"v": OLD})

    monkeypatch.setattr(plugins, "plugin", lambda group, name: from_vault)
    assert isinstance(codec_of("vault:prod"), Encryption)
    monkeypatch.setattr(plugins, "plugin", lambda group, name: lambda text: 5)
    with pytest.raises(PluginError, match="int"):
        codec_of("vault:prod")


# -- what goes wrong -------------------------------------------------------------------------------------------------


def test_what_was_changed_or_moved_is_found_out() -> None:
    codec = Encryption({"k1": OLD})
    data = codec.encode(b"value", b"here")

    assert codec.decode("k1", data, b"here") == b"value"
    for key_id, wrong, where in (("k1", data, b"there"), ("k1", data[:-1] + b"x", b"here"), ("k1", b"", b"here")):
        with pytest.raises(StoreCorruptError):
            codec.decode(key_id, wrong, where)


@pytest.mark.parametrize("size", [0, 1, coding.PIECE_BYTES, coding.PIECE_BYTES + 1, 3 * coding.PIECE_BYTES])
def test_a_stream_comes_back_whole_and_what_is_cut_off_or_put_in_another_order_is_found(size: int) -> None:
    codec, blobs = Encryption({"k1": OLD}), MemoryBlobs()
    content = os.urandom(size)
    digest = coding.EncodingBlobs(blobs, codec).put(content)
    stored = blobs.get(digest)

    def opened(data: bytes) -> coding.DecodingFile:
        return coding.DecodingFile(blobs.open(blobs.put(data)), codec, "k1", "it")

    assert opened(stored).read() == content
    by_sevens = opened(stored)
    assert b"".join(iter(lambda: by_sevens.read(70_001), b"")) == content
    assert opened(stored).read(0) == b""

    piece = coding.PIECE_BYTES + 12 + 16 + 4
    wrong: list[bytes] = [stored[:-1], stored[:18], b"", stored[:16] + b"\xff" * 40]
    if size > coding.PIECE_BYTES:
        wrong += [stored[: 16 + piece], stored[:16] + stored[16 + piece :]]
    if size > 2 * coding.PIECE_BYTES:
        wrong.append(
            stored[:16] + stored[16 + piece : 16 + 2 * piece] + stored[16 : 16 + piece] + stored[16 + 2 * piece :]
        )
    for data in wrong:
        with pytest.raises(StoreCorruptError):
            opened(data).read()


async def test_a_key_of_a_limit_that_is_read_from_encrypted_arguments_is_refused_before_the_run_exists() -> None:
    @step(registry=registry, name="enc:limited", key="host")
    async def limited(host: str) -> str:
        return host

    @step(registry=registry, name="enc:limited_all", key="'all'")
    async def limited_all(host: str) -> str:
        return host

    @step(registry=registry, name="enc:adds_limited")
    async def adds_limited(host: str) -> None:
        context().add(limited.bind(host))

    @workflow(registry=registry, name="enc:by_host")
    def by_host(host: str) -> Any:
        return limited.bind(host)

    @workflow(registry=registry, name="enc:by_all")
    def by_all(host: str) -> Any:
        return limited_all.bind(host)

    @workflow(registry=registry, name="enc:by_added")
    def by_added(host: str) -> Any:
        return adds_limited.bind(host)

    async with connect("memory://", registry=registry, codec=Encryption({"k1": OLD})) as app:
        with pytest.raises(DefinitionError, match="'limited' \\(key='host'\\)"):
            await app.start(by_host, MARK)
        assert await (await app.start(by_all, MARK)).result() == MARK
        with pytest.raises(RunFailedError, match="payload codec encodes"):
            await (await app.start(by_added, MARK)).result()


def test_the_kernel_refuses_a_key_that_it_cannot_see() -> None:
    for arg in ("!k1=AAAA", Pick("!k1@aa", ("x",)), ArgList(["=1", "!k1=AAAA"])):
        with pytest.raises(UnresolvedError, match="payload codec"):
            key_of("host", {"host": arg})


async def test_steps_added_twice_are_the_same_after_a_rotation_and_another_definition_is_refused() -> None:
    one, other = Encryption({"k1": OLD}), Encryption({"k2": NEW, "k1": OLD})
    handles = [
        coding.inline_handle(codec, codec.encode(text, coding.VALUE, "run"))
        for codec, text in ((one, b"1"), (one, b"1"), (one, b"2"), (other, b"1"))
    ]
    first, again, different, rotated = ([{"slot": ["const", handle]}] for handle in handles)

    assert first == again
    assert alike(first, rotated)
    assert not alike(first, different)
    assert not alike(first, [{"slot": ["const", "=1"]}])
    assert not alike([{"action": "a"}], [{"action": "b"}])
    assert not alike([{"action": "a"}], [{"other": "a"}])

    @step(registry=registry, name="enc:contradicts")
    async def contradicts(text: str) -> None:
        context().add(say.options(id="one").bind(text))
        await context().add(say.options(id="one").bind("something else"), now=True)

    @workflow(registry=registry, name="enc:contradicting")
    def contradicting(text: str) -> Any:
        return contradicts.bind(text)

    async with connect("memory://", registry=registry, codec=one) as app:
        with pytest.raises(RunFailedError, match=DuplicateStepError.code):
            await (await app.start(contradicting, MARK)).result()


async def test_a_codec_of_ones_own_stands_between_values_and_the_store(sqlite: str) -> None:
    class Backwards:
        key_id = "backwards"
        hides = False

        def encode(self, data: bytes, context: bytes, repeats: str = "") -> bytes:
            return data[::-1]

        def decode(self, key_id: str, data: bytes, context: bytes) -> bytes:
            return data[::-1]

    async with connect(sqlite, registry=registry, codec=Backwards()) as app:
        assert await run_everything(app) == EXPECTED
        texts = [str(event) async for _, _, event in app.run("all").events()]
    assert any(base64.b64encode(f'"{MARK} {MARK}"'.encode()[::-1]).decode() in text for text in texts)


async def test_a_receipt_with_hidden_constants_cannot_be_run_again(sqlite: str) -> None:
    from treadle import DocumentError, planned_of

    async with connect(sqlite, registry=registry, codec=Encryption({"k1": OLD})) as app:
        run = await app.start(failure_free, MARK)
        await run.result()
        receipt = await run.receipt()

    assert receipt.run is not None
    assert receipt.run.result is not None
    assert receipt.run.result.key_id == "k1"
    with pytest.raises(DocumentError, match="'k1'"):
        planned_of(receipt, registry=registry, reset=True)
