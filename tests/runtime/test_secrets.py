"""Secrets end to end: where one may be stored, where it is shown, and where it is looked up."""

from __future__ import annotations

import dataclasses
import logging
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from treadle import (
    DefinitionError,
    EncodeError,
    Encryption,
    PluginError,
    Registry,
    RunFailedError,
    Secret,
    SecretError,
    connect,
    context,
    plan_document,
    signal_value,
    step,
    workflow,
)
from treadle.authoring import codec
from treadle.authoring.secrets import declares_secret, masked, with_secrets

KEYS = Encryption({"k1": bytes(32)})
TOKEN = "swordfish-123"
registry = Registry()


@dataclasses.dataclass
class Login:
    user: str
    token: Secret[str]


@step(registry=registry, name="sec:use")
async def use(token: Secret[str]) -> int:
    return len(token.reveal())


@step(registry=registry, name="sec:login")
async def login(user: str) -> Login:
    return Login(user, Secret(TOKEN))


@step(registry=registry, name="sec:sneaky")
async def sneaky(user: str) -> Any:
    return {"deep": [Secret(TOKEN)]}


@step(registry=registry, name="sec:in_thread")
def in_thread(login: Login) -> Any:
    return [login.token]


@step(registry=registry, name="sec:given")
async def given(value: Any) -> int:
    return len(value["deep"][0].reveal())


@step(registry=registry, name="sec:adds")
async def adds(user: str) -> None:
    context().add(use.bind(Secret(TOKEN)))


@step(registry=registry, name="sec:process", process=True)
def in_process(token: Secret[str]) -> Any:
    return {"again": token, "length": len(token.reveal())}


@workflow(registry=registry, name="sec:literal")
def literal(token: Secret[str]) -> Any:
    return use.bind(token)


@workflow(registry=registry, name="sec:declared")
def declared(user: str) -> Any:
    return in_thread.bind(login.bind(user))


@workflow(registry=registry, name="sec:undeclared")
def undeclared(user: str) -> Any:
    return given.bind(sneaky.bind(user))


@workflow(registry=registry, name="sec:adding")
def adding(user: str) -> Any:
    return adds.bind(user)


@workflow(registry=registry, name="sec:signalled")
def signalled() -> Any:
    return use.bind(signal_value("token", type=Secret[str]))


@workflow(registry=registry, name="sec:isolated")
def isolated(token: Secret[str]) -> Any:
    return in_process.bind(token)


def held(folder: Path) -> bool:
    return any(TOKEN.encode() in file.read_bytes() for file in folder.rglob("*") if file.is_file())


# -- where it is stored ------------------------------------------------------------------------------------------------


async def test_with_an_encrypting_codec_secrets_go_from_step_to_step_and_nowhere_else(tmp_path: Path) -> None:
    async with connect(f"sqlite:///{tmp_path}/app.db", registry=registry, codec=KEYS) as app:
        assert await (await app.start(literal, Secret(TOKEN))).result() == len(TOKEN)
        run = await app.start(declared, "ada")
        assert (await run.result())[0].reveal() == TOKEN
        assert await (await app.start(undeclared, "ada")).result() == len(TOKEN)
        await (await app.start(adding, "ada")).result()
        waiting = await app.start(signalled)
        await waiting.signal("token", Secret(TOKEN))
        assert await waiting.result() == len(TOKEN)
        found = await (await app.start(isolated, Secret(TOKEN))).result()
        assert (found["again"], found["length"]) == (Secret(TOKEN), len(TOKEN))
        receipt = str(await run.receipt())

    assert TOKEN not in receipt
    assert not held(tmp_path)


class Compression:
    key_id = "plain"
    hides = False

    def encode(self, data: bytes, context: bytes, repeats: str = "") -> bytes:
        return data

    def decode(self, key_id: str, data: bytes, context: bytes) -> bytes:
        return data


@pytest.mark.parametrize("payload_codec", [None, Compression()])
async def test_without_one_a_secret_is_refused_with_its_place_and_not_stored(
    tmp_path: Path, payload_codec: Compression | None
) -> None:
    async with connect(f"sqlite:///{tmp_path}/app.db", registry=registry, codec=payload_codec) as app:
        with pytest.raises(DefinitionError, match="argument 'token' of step 'use'"):
            await app.start(literal, Secret(TOKEN))
        with pytest.raises(DefinitionError, match="results of 'sec:login' hold a secret"):
            await app.start(declared, "ada")
        with pytest.raises(EncodeError, match="run's data"):
            await app.start(adding, "ada", data={"token": Secret(TOKEN)})
        assert await app.runs() == []

        with pytest.raises(RunFailedError, match=r"'sneaky'.*`\$\.deep\[0\]`: a secret is stored only"):
            await (await app.start(undeclared, "ada")).result()
        with pytest.raises(RunFailedError, match="argument 'token' of step 'use'"):
            await (await app.start(adding, "ada")).result()
        waiting = await app.start(signalled)
        with pytest.raises(EncodeError, match="a secret"):
            await waiting.signal("token", Secret(TOKEN))
        named = await app.start(isolated, Secret.named("env:SEC_TOKEN"))
        await named.cancel(hard=True)
    assert not held(tmp_path)


async def test_a_secret_that_a_process_gives_is_refused_without_a_codec() -> None:
    @workflow(registry=registry, name="sec:making")
    def making(user: str) -> Any:
        return give.bind(user)

    async with connect("memory://", registry=registry) as app:
        with pytest.raises(RunFailedError, match="a secret is stored only"):
            await (await app.start(making, TOKEN)).result()


@step(registry=registry, name="sec:give", process=True)
def give(user: str) -> Any:
    return Secret(user)


def test_documents_hold_no_secrets() -> None:
    with pytest.raises(EncodeError, match="constant 0 of the document"):
        plan_document(literal.plan(Secret(TOKEN)))


def test_types_that_hold_secrets_are_known() -> None:
    assert declares_secret(Secret[str])
    assert declares_secret(list[Login])
    assert declares_secret(dict[str, Secret[int] | None])
    assert not declares_secret(list[str])
    assert not declares_secret(Any)

    class Chain:
        next: Chain

    assert not declares_secret(Chain)


# -- where it is shown -------------------------------------------------------------------------------------------------


def test_a_secret_is_not_shown_and_not_pickled() -> None:
    secret = Secret(TOKEN)

    assert [repr(secret), str(secret), f"{Login('ada', secret)}"] == [
        "Secret(****)",
        "Secret(****)",
        "Login(user='ada', token=Secret(****))",
    ]
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(secret)
    assert secret == Secret(TOKEN)
    assert secret != Secret("other")
    assert secret != TOKEN
    assert len({secret, Secret(TOKEN), Secret.named("env:A")}) == 2


async def test_what_was_revealed_is_masked_in_failures_lines_and_logs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SEC_TOKEN", TOKEN)
    caplog.set_level(logging.INFO)

    @step(registry=registry, name="sec:leaks")
    async def leaks(token: Secret[str]) -> None:
        text = token.reveal()
        context().logger.info("using %s", text)
        print(f"using {text}", file=context().out)
        raise ValueError(f"refused: {text}")

    @workflow(registry=registry, name="sec:leaking")
    def leaking() -> Any:
        return leaks.bind(Secret.named("env:SEC_TOKEN"))

    async with connect("memory://", registry=registry) as app:
        run = await app.start(leaking)
        with pytest.raises(RunFailedError, match=r"refused: \*\*\*\*"):
            await run.result()
        [failure] = (await run.inspect()).failures
        account = await run.account(failure.detail)

    assert TOKEN not in account.text
    assert caplog.text.count("using ****") == 2
    assert TOKEN not in caplog.text
    assert masked("short: abc") == "short: abc"


# -- where it is looked up ---------------------------------------------------------------------------------------------


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution that knows the scheme `vault`."""
    (tmp_path / "sec_vault.py").write_text("def look_up(rest):\n    return {'api': 'from the vault'}[rest]\n")
    info = tmp_path / "sec_vault-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sec-vault\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[treadle.secrets]\nvault = sec_vault:look_up\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("sec_vault", None)


@pytest.mark.usefixtures("vault")
async def test_a_name_is_stored_and_looked_up_where_the_step_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("from a file\n")
    names = {"env:SEC_TOKEN": TOKEN, f"file:{tmp_path}/token": "from a file", "vault:api": "from the vault"}
    folder = tmp_path / "store"
    folder.mkdir()
    async with connect(f"sqlite:///{folder}/app.db", registry=registry, worker=False) as app:
        runs = [await app.start(literal, Secret.named(name)) for name in names]
    # It did not exist when the runs were started.
    monkeypatch.setenv("SEC_TOKEN", TOKEN)
    async with connect(f"sqlite:///{folder}/app.db", registry=registry) as app:
        for run, value in zip(runs, names.values(), strict=True):
            assert await app.run(run.id).result() == len(value)
    assert not held(folder)


async def test_a_secret_that_is_not_there_fails_its_step_with_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEC_TOKEN", raising=False)
    async with connect("memory://", registry=registry) as app:
        with pytest.raises(RunFailedError, match="secret_missing: there is no secret 'env:SEC_TOKEN' here"):
            await (await app.start(literal, Secret.named("env:SEC_TOKEN"))).result()
    with pytest.raises(PluginError, match=r"treadle\.secrets"):
        Secret.named("nowhere:x").reveal()
    for name in ("plain", ":x", ""):
        with pytest.raises(SecretError, match="scheme:rest"):
            Secret.named(name)


def test_a_secret_comes_back_as_the_declared_type() -> None:
    text = with_secrets(codec.encode, {"a": Secret(b"\x00"), "b": Secret.named("env:X")})

    assert codec.decode(text) == {"a": Secret(b"\x00"), "b": Secret.named("env:X")}
    assert codec.decode(text, dict[str, Secret[bytes]])["a"].reveal() == b"\x00"
    assert codec.decode('"by hand"', Secret[str]).reveal() == "by hand"
    with pytest.raises(ValueError, match="expected `str`, got `int`"):
        codec.decode("5", Secret[str])
    assert Secret.named("env:X").name == "env:X"
    assert Secret("x").name == ""
