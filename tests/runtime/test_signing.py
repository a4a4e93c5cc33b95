"""Signatures: who signed what, with real keys, a real gpg and an emulated service; and every byte that was changed."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope as LibraryEnvelope
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]  # the library does not say what it exports
from tests.authoring.documents_kit import WRITTEN

from treadle import (
    ChecksumError,
    Document,
    MissingExtraError,
    SigningError,
    Verification,
    dump_document,
    load_document,
    save_document,
    sign_document,
    verify_document,
)
from treadle.authoring.documents import FORMS, document_of
from treadle.core.documents import seal
from treadle.core.plan import Const, Plan, Step
from treadle.runtime.signing.verification import signer_of, trusted_keys

PLAN = Plan(workflow="w", blocks=[Step(id="a", action="m:a", slots={"x": Const(0)})])
DOCUMENT = document_of(PLAN, ["1.0"], WRITTEN)
OPENSSH, PKCS8 = PrivateFormat.OpenSSH, PrivateFormat.PKCS8


def key_file(
    folder: Path, name: str = "key", form: PrivateFormat = OPENSSH, lock: KeySerializationEncryption | None = None
) -> Path:
    """A new private key, and beside it its public one."""
    key = Ed25519PrivateKey.generate()
    path = folder / name
    path.write_bytes(key.private_bytes(Encoding.PEM, form, lock or NoEncryption()))
    public = key.public_key()
    line = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (folder / f"{name}.pub").write_bytes(line + b" somebody@somewhere\n")
    (folder / f"{name}.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def answer(data: bytes | Document, folder: Path, *trusted: Path | str) -> Verification:
    path = folder / "document.json"
    path.write_bytes(dump_document(data).encode() if isinstance(data, Document) else data)
    return verify_document(path, trusted)


# -- keys in files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("public", ["key.pub", "key.pem"])
def test_a_signed_document_is_valid_for_those_who_trust_the_key(tmp_path: Path, form: str, public: str) -> None:
    signed = sign_document(DOCUMENT, key_file(tmp_path))
    path = save_document(signed, tmp_path / f"d.{form}")

    found = verify_document(path, [tmp_path / public])

    assert found.status == "valid"
    assert found.hash == DOCUMENT.hash
    assert found.signers == [signer_of(tmp_path / "key").keyid]
    assert load_document(path) == signed


@pytest.mark.parametrize("form", [OPENSSH, PKCS8])
def test_encrypted_keys_are_opened_by_their_passphrase(tmp_path: Path, form: PrivateFormat) -> None:
    path = key_file(tmp_path, form=form, lock=BestAvailableEncryption(b"secret"))

    assert answer(sign_document(DOCUMENT, path, b"secret"), tmp_path, tmp_path / "key.pub").status == "valid"
    with pytest.raises(SigningError, match="TREADLE_KEY_PASSPHRASE"):
        sign_document(DOCUMENT, path)
    with pytest.raises(SigningError, match="its passphrase is wrong"):
        sign_document(DOCUMENT, path, b"other")


def test_a_passphrase_for_a_plain_key_is_ignored(tmp_path: Path) -> None:
    assert answer(sign_document(DOCUMENT, key_file(tmp_path), b"x"), tmp_path, tmp_path / "key.pub").status == "valid"


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_keys_and_their_names_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    path = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(path)], check=True)
    shown = subprocess.run(["ssh-keygen", "-lf", f"{path}.pub"], check=True, capture_output=True, text=True).stdout

    signed = sign_document(DOCUMENT, path, b"secret")

    assert answer(signed, tmp_path, f"{path}.pub").signers == [shown.split()[1]]


def test_several_people_may_sign_and_all_of_them_must_be_trusted(tmp_path: Path) -> None:
    one, two = key_file(tmp_path, "one"), key_file(tmp_path, "two")
    signed = sign_document(sign_document(sign_document(DOCUMENT, one), two), one)
    lines = tmp_path / "trusted"
    lines.write_text("# who may sign\n\n" + "".join((tmp_path / f"{name}.pub").read_text() for name in ("one", "two")))

    assert signed.signature is not None
    assert len(signed.signature.signatures) == 2
    assert answer(signed, tmp_path, lines).status == "valid"
    assert len(answer(signed, tmp_path, lines).signers) == 2
    partly = answer(signed, tmp_path, tmp_path / "one.pub")
    assert (partly.status, partly.reason) == ("invalid", "untrusted")


def test_a_key_may_be_given_as_its_line(tmp_path: Path) -> None:
    signed = sign_document(DOCUMENT, key_file(tmp_path))
    line = (tmp_path / "key.pub").read_text()

    assert answer(signed, tmp_path, line).status == "valid"
    assert trusted_keys([line]).keys() == trusted_keys([tmp_path / "key.pem"]).keys()


def test_other_tools_can_check_the_envelope(tmp_path: Path) -> None:
    signed = sign_document(DOCUMENT, key_file(tmp_path))
    envelope = json.loads(msgspec.json.encode(signed.signature))
    raw = (tmp_path / "key.pub").read_text().split()[1]
    key = SSlibKey(
        signer_of(tmp_path / "key").keyid, "ed25519", "ed25519", {"public": base64.b64decode(raw)[-32:].hex()}
    )

    assert LibraryEnvelope.from_dict(json.loads(json.dumps(envelope))).verify([key], 1)
    said = json.loads(base64.b64decode(envelope["payload"]))
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["subject"] == [{"digest": {"sha256": DOCUMENT.hash.removeprefix("sha256:")}, "name": "w"}]


# -- what is not valid -------------------------------------------------------------------------------------------------


def test_the_answers(tmp_path: Path) -> None:
    key, other = key_file(tmp_path), key_file(tmp_path, "other")
    signed = sign_document(DOCUMENT, key)
    text = dump_document(signed)

    def told(data: bytes | Document) -> tuple[str, str]:
        found = answer(data, tmp_path, tmp_path / "key.pub")
        return found.status, found.reason

    assert verify_document(tmp_path / "none.json").status == "missing"
    assert told(DOCUMENT) == ("unsigned", "")
    assert told(signed) == ("valid", "")
    assert told(text.replace('"m:a"', '"m:b"').encode()) == ("invalid", "checksum")
    assert told(text[: len(text) // 2].encode()) == ("invalid", "document")
    assert told(b"") == ("invalid", "document")
    assert told(text.replace("  ", " ").encode()) == ("invalid", "text")
    assert told(sign_document(DOCUMENT, other)) == ("invalid", "untrusted")
    assert answer(signed, tmp_path).reason == "untrusted"


def test_a_signature_of_another_document_is_refused(tmp_path: Path) -> None:
    key = key_file(tmp_path)
    signed = sign_document(DOCUMENT, key)
    another = seal(msgspec.structs.replace(DOCUMENT, workflow="v"))
    assert signed.signature is not None
    signed_too = sign_document(another, key)
    assert signed_too.signature is not None
    # The other document's signatures under this document's statement.
    mixed = msgspec.structs.replace(signed.signature, signatures=signed_too.signature.signatures)
    doubled = msgspec.structs.replace(signed.signature, signatures=signed.signature.signatures * 2)
    emptied = msgspec.structs.replace(signed.signature, signatures=[])
    other_type = msgspec.structs.replace(signed.signature, payload_type="text/plain")

    def reason(**changed: Any) -> str:
        return answer(msgspec.structs.replace(DOCUMENT, **changed), tmp_path, tmp_path / "key.pub").reason

    assert reason(signature=signed_too.signature) == "payload"
    assert reason(signature=other_type) == "payload"
    assert reason(signature=mixed) == "signature"
    assert reason(signature=doubled) == "signature"
    assert reason(signature=emptied) == "signature"


def test_what_was_changed_in_memory_is_not_signed(tmp_path: Path) -> None:
    with pytest.raises(ChecksumError, match="it is not signed"):
        sign_document(msgspec.structs.replace(DOCUMENT, workflow="v"), key_file(tmp_path))


@pytest.fixture(scope="module")
def signed_texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("signed")
    signed = sign_document(DOCUMENT, key_file(folder))
    return {form: dump_document(signed, form) for form in FORMS} | {"folder": folder}


@given(data=st.data())
def test_any_change_of_one_byte_is_caught(signed_texts: dict[str, Any], data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(FORMS))
    text = bytearray(signed_texts[form].encode())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != text[at]))
    folder: Path = signed_texts["folder"]
    path = folder / f"changed.{form}"
    path.write_bytes(bytes(text))

    assert verify_document(path, [folder / "key.pub"]).status == "invalid"


@given(data=st.data())
def test_any_cut_or_addition_is_caught(signed_texts: dict[str, Any], data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(FORMS))
    text = signed_texts[form].encode()
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 9))
    added = data.draw(st.binary(max_size=5) | st.sampled_from([b" ", b"\n", b"#", b"\xef\xbb\xbf"]))
    changed = text[:at] + added + text[at + cut :]
    folder: Path = signed_texts["folder"]
    path = folder / f"cut.{form}"
    path.write_bytes(changed)

    expected = "valid" if changed == text else "invalid"
    assert verify_document(path, [folder / "key.pub"]).status == expected


# -- keys that are none of ours ----------------------------------------------------------------------------------------


def test_each_unusable_key_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    rsa = generate_private_key(65537, 2048)
    (tmp_path / "rsa").write_bytes(rsa.private_bytes(Encoding.PEM, PKCS8, NoEncryption()))
    (tmp_path / "rsa.pem").write_bytes(rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (tmp_path / "rsa.pub").write_bytes(rsa.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    key_file(tmp_path)
    line = (tmp_path / "key.pub").read_text()
    for name, text in {"junk": "hello", "empty": "# none\n", "json": "{}", "cut.pub": line[:40], "list": "[1]"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")

    def refusal(use: Any, *args: Any) -> str:
        with pytest.raises(SigningError) as caught:
            use(*args)
        return str(caught.value)

    assert "is of another kind (RSAPrivateKey); an Ed25519 key is needed" in refusal(signer_of, tmp_path / "rsa")
    assert "it is no private key" in refusal(signer_of, tmp_path / "key.pub")
    assert "cannot be read: No such file" in refusal(signer_of, tmp_path / "none")
    assert "holds a key of another kind" in refusal(trusted_keys, [tmp_path / "rsa.pem"])
    assert "rsa.pub:1 is no line `ssh-ed25519" in refusal(trusted_keys, [tmp_path / "rsa.pub"])
    assert "holds no public key that can be read" in refusal(trusted_keys, [tmp_path / "key"])
    assert "junk:1 is no line" in refusal(trusted_keys, [tmp_path / "junk"])
    assert "cut.pub:1 is no line" in refusal(trusted_keys, [tmp_path / "cut.pub"])
    assert "holds no key" in refusal(trusted_keys, [tmp_path / "empty"])
    assert "is no public key as" in refusal(trusted_keys, [tmp_path / "json"])
    assert "is no public key as" in refusal(trusted_keys, [tmp_path / "list"])
    assert "is no text" in refusal(trusted_keys, [tmp_path / "binary"])
    assert "cannot be read: No such file" in refusal(trusted_keys, [tmp_path / "none"])
    assert "is no line" in refusal(trusted_keys, ["ssh-ed25519 AAAA"])


@pytest.mark.parametrize(
    ("reference", "extra"),
    [
        ("gcpkms:projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1", r"securesystemslib\[gcpkms\]"),
        ("azurekms:vault/key", r"securesystemslib\[azurekms\]"),
        ("hsm:2", r"securesystemslib\[hsm\]"),
    ],
)
def test_a_service_whose_client_is_not_installed_names_its_extra(reference: str, extra: str) -> None:
    with pytest.raises(MissingExtraError, match=extra):
        sign_document(DOCUMENT, reference)


def test_the_base_install_tells_unsigned_from_invalid_and_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = sign_document(DOCUMENT, key_file(tmp_path))
    for name in list(sys.modules):
        if name.partition(".")[0] in ("cryptography", "securesystemslib"):
            monkeypatch.setitem(sys.modules, name, None)

    assert answer(DOCUMENT, tmp_path).status == "unsigned"
    assert answer(dump_document(signed).replace("m:a", "m:b").encode(), tmp_path).reason == "checksum"
    for use in (
        lambda: sign_document(DOCUMENT, tmp_path / "key"),
        lambda: sign_document(DOCUMENT, "gpg:1234"),
        lambda: answer(signed, tmp_path, tmp_path / "key.pub"),
        lambda: answer(signed, tmp_path, tmp_path / "key.pem"),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'treadle\[sign\]'"):
            use()


# -- keys held by services ---------------------------------------------------------------------------------------------


@pytest.fixture
def gpg_key(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The fingerprint of a new key in a keyring of its own."""
    if shutil.which("gpg") is None:
        pytest.skip("needs gpg")
    # Not pytest's folder: the path of the agent's socket must be short.
    home = tempfile.mkdtemp(prefix="gpg")
    monkeypatch.setenv("GNUPGHOME", home)
    make = [
        "gpg",
        "--batch",
        "--passphrase",
        "",
        "--quick-gen-key",
        "Tester <t@example.org>",
        "ed25519",
        "sign",
        "never",
    ]
    subprocess.run(make, check=True, capture_output=True)
    listed = subprocess.run(["gpg", "--with-colons", "-k"], check=True, capture_output=True, text=True).stdout
    yield next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fp"))
    subprocess.run(["gpgconf", "--kill", "gpg-agent"], check=False)
    shutil.rmtree(home, ignore_errors=True)


def test_gpg_signs_and_its_key_is_checked_with_and_without_gpg(
    tmp_path: Path, gpg_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer = signer_of(f"gpg:{gpg_key}")
    signed = sign_document(DOCUMENT, f"gpg:{gpg_key}")
    (tmp_path / "gpg.json").write_text(signer.public())

    assert answer(signed, tmp_path, f"gpg:{gpg_key}").status == "valid"
    assert answer(signed, tmp_path, tmp_path / "gpg.json").signers == [gpg_key.lower()]
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PATH", "")
        assert answer(signed, tmp_path, tmp_path / "gpg.json").status == "valid"


def test_any_changed_part_of_a_gpg_signature_is_caught(tmp_path: Path, gpg_key: str) -> None:
    signed = sign_document(DOCUMENT, f"gpg:{gpg_key}")
    (tmp_path / "gpg.json").write_text(signer_of(f"gpg:{gpg_key}").public())
    text = dump_document(signed).encode()
    begin = text.index(b'"signature"')

    for at in range(begin, len(text), 7):
        for byte in (text[at] ^ 1, text[at] ^ 32):
            changed = text[:at] + bytes([byte]) + text[at + 1 :]
            assert answer(changed, tmp_path, tmp_path / "gpg.json").status == "invalid", (at, changed[at - 9 : at + 9])


def test_a_gpg_key_that_is_not_there_is_said(gpg_key: str) -> None:
    with pytest.raises(SigningError, match="gpg:0000"):
        sign_document(DOCUMENT, "gpg:" + "0" * 40)
    with pytest.raises(SigningError, match=gpg_key.lower()):
        sign_document(DOCUMENT, f"gpg:{gpg_key[-16:]}")


@pytest.mark.parametrize("spec", ["ECC_NIST_P256", "ECC_NIST_P384", "RSA_2048"])
def test_aws_signs_and_its_key_is_checked_without_aws(
    tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3  # type: ignore[import-untyped]  # the package has no types
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        key = boto3.client("kms").create_key(KeyUsage="SIGN_VERIFY", KeySpec=spec)["KeyMetadata"]["KeyId"]
        signed = sign_document(DOCUMENT, f"awskms:{key}")
        (tmp_path / "aws.json").write_text(signer_of(f"awskms:{key}").public())
        with pytest.raises(SigningError, match="awskms:none"):
            sign_document(DOCUMENT, "awskms:none")

    assert answer(signed, tmp_path, tmp_path / "aws.json").status == "valid"
    tampered = dump_document(signed).replace('"sig": "', '"sig": "A', 1).encode()
    assert answer(tampered, tmp_path, tmp_path / "aws.json").status == "invalid"
