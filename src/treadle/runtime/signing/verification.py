"""What a signature proves: that a document is, to the byte, what somebody trusted has signed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from treadle.authoring.documents import FORMS, dump_document, read_document
from treadle.authoring.plugins import installed, plugin
from treadle.core.documents import (
    PAYLOAD_TYPE,
    Document,
    Envelope,
    Signature,
    from_base64,
    hash_of,
    pre_authentication,
    statement,
    tree_of,
    with_signature,
)
from treadle.errors import ChecksumError, DocumentError, SigningError
from treadle.runtime.signing.keys import FileSigner, key_of_line, key_of_pem
from treadle.runtime.signing.services import ServiceSigner, is_service, key_of_gpg, keys_of_json

Status = Literal["valid", "unsigned", "invalid", "missing"]


class Signer(Protocol):
    """Whatever signs: a key in a file, or one that a service holds."""

    @property
    def keyid(self) -> str:
        """The name of the key."""
        ...

    def sign(self, data: bytes) -> Signature:
        """A signature over bytes."""
        ...

    def public(self) -> str:
        """The public key, as a file of trusted keys takes it."""
        ...


class TrustedKey(Protocol):
    """A public key that is trusted."""

    @property
    def keyid(self) -> str:
        """The name of the key."""
        ...

    def verifies(self, signature: Signature, data: bytes) -> bool:
        """Whether the signature is this key's, over these bytes."""
        ...


class Verification(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer of `verify_document`.

    `valid`: it is what its signers signed, and all of them are trusted. `unsigned`: it is whole, and nobody vouches for
    it. `invalid`: not to be used; `reason` is a stable name for why. `missing`: there is no such file.
    """

    status: Status
    # document, checksum, text, payload, signature, untrusted; empty unless it is invalid.
    reason: str = ""
    message: str
    hash: str = ""
    # The names of the keys that signed it.
    signers: list[str] = []


# -- signing -----------------------------------------------------------------------------------------------------------


def signer_of(key: str | os.PathLike[str], passphrase: bytes | None = None) -> Signer:
    """What signs with a key: a service's if it is named like one (`gpg:...`), else a file's.

    Raises:
        SigningError: the key cannot be read, or is of a kind that is not used.
        MissingExtraError: a package for it is not installed.
    """
    name = os.fspath(key)
    if is_service(name):
        return ServiceSigner(name, passphrase)
    scheme = name.partition(":")[0]
    # A path with a drive's letter is a path.
    if len(scheme) > 1 and scheme != name and scheme in installed("signers"):
        signer: Signer = plugin("signers", scheme)(name, passphrase)
        return signer
    return FileSigner(name, passphrase)


def sign_document(document: Document, key: str | os.PathLike[str], passphrase: bytes | None = None) -> Document:
    """The document with one more signature; one by the same key is replaced.

    `key` is the file of an Ed25519 key (OpenSSH or PEM), or names one that a service holds: `gpg:FINGERPRINT`,
    `awskms:...`, `gcpkms:...`, `azurekms:VAULT/KEY`, `hsm:NUMBER`. `passphrase` opens an encrypted file, or is the PIN
    of a hardware module.

    Raises:
        ChecksumError: the document is not what its hash says; nothing is signed.
        SigningError: the key cannot be used.
    """
    return sign_with(document, signer_of(key, passphrase))


def sign_with(document: Document, signer: Signer) -> Document:
    """As `sign_document`, with a signer that is open already."""
    if hash_of(tree_of(document)) != document.hash:
        raise ChecksumError("the document's content is not what its hash says; it is not signed")
    return with_signature(document, signer.sign(pre_authentication(statement(document))))


# -- trust -------------------------------------------------------------------------------------------------------------


def trusted_keys(sources: Iterable[str | os.PathLike[str]]) -> dict[str, TrustedKey]:
    """The public keys of sources, by their names.

    A source is a line of OpenSSH (`ssh-ed25519 AAAA...`), a key in gpg's keyring (`gpg:FINGERPRINT`), or a file: such
    lines, a public key in PEM, or keys in JSON as `treadle receipt sign --public` writes them.

    Raises:
        SigningError: one cannot be read.
    """
    found: dict[str, TrustedKey] = {}
    for source in sources:
        for key in _keys(os.fspath(source)):
            found[key.keyid] = key
    return found


def _keys(source: str) -> list[TrustedKey]:
    if source.startswith("ssh-"):
        return [key_of_line(source, f"the trusted key {source[:40]!r}")]
    if source.startswith("gpg:"):
        return [key_of_gpg(source)]
    try:
        data = Path(source).read_bytes()
        text = data.decode()
    except OSError as error:
        raise SigningError(f"the trusted key {source} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SigningError(f"the trusted key {source} is no text; export it as text") from None
    if text.lstrip().startswith(("{", "[")):
        return list(keys_of_json(data, source))
    if "-----BEGIN" in text:
        return [key_of_pem(data, source)]
    lines = [(at, line) for at, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")]
    if not lines:
        raise SigningError(f"{source} holds no key")
    return [key_of_line(line, f"{source}:{at}") for at, line in lines]


# -- verifying --------------------------------------------------------------------------------------------------------


def verify_document(path: str | os.PathLike[str], trusted: Iterable[str | os.PathLike[str]] = ()) -> Verification:
    """Whether a file is, to the byte, a document that trusted keys have signed. See `Verification` for the answers.

    `trusted` are sources as `trusted_keys` takes them. Nothing that the document names is needed.

    Raises:
        SigningError: a trusted key cannot be read.
        MissingExtraError: a package that checks signatures, or reads YAML, is not installed.
    """
    name = os.fspath(path)
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return Verification(status="missing", message=f"{name} does not exist")
    except OSError as error:
        raise DocumentError(f"{name}: cannot be read: {error.strerror or error}", path=name) from None
    try:
        document = read_document(data, name)
    except ChecksumError as error:
        return _invalid("checksum", str(error))
    except DocumentError as error:
        return _invalid("document", str(error))
    # Another spelling of the same content was not made by treadle; whoever made it could have made more of it.
    if data not in (dump_document(document, form).encode() for form in FORMS):
        return _invalid("text", f"{name}: it is spelled in another way than it was written", document)
    if document.signature is None:
        return Verification(status="unsigned", message=f"{name} is whole, and not signed", hash=document.hash)
    return _verified(document, document.signature, trusted_keys(trusted), name)


def _invalid(reason: str, message: str, document: Document | None = None) -> Verification:
    return Verification(status="invalid", reason=reason, message=message, hash=document.hash if document else "")


def _verified(document: Document, envelope: Envelope, known: dict[str, TrustedKey], name: str) -> Verification:
    payload = statement(document)
    if envelope.payload_type != PAYLOAD_TYPE or from_base64(envelope.payload) != payload:
        return _invalid("payload", f"{name}: what was signed is another document", document)
    signers = [signature.keyid for signature in envelope.signatures]
    if not signers or len(set(signers)) != len(signers):
        return _invalid("signature", f"{name}: its envelope holds no signature, or two by one key", document)
    # A signature that cannot be checked may have been changed, so that one is as bad as none.
    strangers = [keyid for keyid in signers if keyid not in known]
    if strangers:
        message = f"{name}: signed by {', '.join(strangers)}, which is not trusted; name it by --trust or trusted_keys"
        return _invalid("untrusted", message, document)
    data = pre_authentication(payload)
    for signature in envelope.signatures:
        if not known[signature.keyid].verifies(signature, data):
            return _invalid("signature", f"{name}: the signature by {signature.keyid} is not over this", document)
    message = f"{name} is signed by {', '.join(signers)}"
    return Verification(status="valid", message=message, hash=document.hash, signers=signers)
