"""Ed25519 keys in files: OpenSSH and PEM. With `runtime.encryption`, the only place that imports cryptography."""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from treadle.core.documents import Signature, from_base64
from treadle.errors import MissingExtraError, SigningError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KIND: Final = b"ssh-ed25519"
_HINT: Final = "an Ed25519 key is needed: `ssh-keygen -t ed25519`"


def extra() -> MissingExtraError:
    """The error of an installation without cryptography."""
    return MissingExtraError("signatures need cryptography and securesystemslib: pip install 'treadle[sign]'")


def key_id(raw: bytes) -> str:
    """The fingerprint of a public key, as `ssh-keygen -l` shows it."""
    digest = hashlib.sha256(_wire(raw)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _wire(raw: bytes) -> bytes:
    """The public key as RFC 8709 has it: its kind and its bytes, each behind its length."""
    return b"".join(struct.pack(">I", len(part)) + part for part in (KIND, raw))


class FileSigner:
    """A private key in a file: OpenSSH or PEM, perhaps encrypted."""

    def __init__(self, path: str | os.PathLike[str], passphrase: bytes | None = None) -> None:
        self._key = _private_key(os.fspath(path), passphrase)
        self._raw = self._key.public_key().public_bytes_raw()
        self.keyid: Final = key_id(self._raw)

    def sign(self, data: bytes) -> Signature:
        """A signature over bytes."""
        return Signature(keyid=self.keyid, sig=base64.b64encode(self._key.sign(data)).decode())

    def public(self) -> str:
        """The public key, as a line of OpenSSH."""
        return f"{KIND.decode()} {base64.b64encode(_wire(self._raw)).decode()}\n"


def _private_key(path: str, passphrase: bytes | None) -> Ed25519PrivateKey:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError:
        raise extra() from None
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SigningError(f"the key {path} cannot be read: {error.strerror or error}") from None
    openssh = b"OPENSSH PRIVATE KEY" in data
    load = serialization.load_ssh_private_key if openssh else serialization.load_pem_private_key
    try:
        key: Any = load(data, password=passphrase)
    except TypeError:
        # By the library's words: a passphrase is missing, or there is one and the key is not encrypted.
        if passphrase is not None:
            return _private_key(path, None)
        raise SigningError(f"the key {path} is encrypted; set TREADLE_KEY_PASSPHRASE") from None
    except UnsupportedAlgorithm as error:
        if "bcrypt" in str(error):
            raise MissingExtraError(f"the encrypted key {path} needs bcrypt: pip install 'treadle[sign]'") from None
        raise SigningError(f"the key {path} cannot be read: {error}") from None
    except ValueError as error:
        # OpenSSH keys without their passphrase raise this one.
        if passphrase is None and "assw" in str(error):
            raise SigningError(f"the key {path} is encrypted; set TREADLE_KEY_PASSPHRASE") from None
        what = "its passphrase is wrong, or it is no private key" if passphrase else "it is no private key"
        raise SigningError(f"the key {path} cannot be read: {what} in OpenSSH or PEM form") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningError(f"the key {path} is of another kind ({type(key).__name__.lstrip('_')}); {_HINT}")
    return key


class Ed25519Key:
    """A public key that is trusted."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self.keyid: Final = key_id(key.public_bytes_raw())

    def verifies(self, signature: Signature, data: bytes) -> bool:
        """Whether the signature is this key's, over these bytes."""
        from cryptography.exceptions import InvalidSignature

        sig = from_base64(signature.sig)
        if sig is None or signature.other_headers:
            return False
        try:
            self._key.verify(sig, data)
        except InvalidSignature:
            return False
        return True


def key_of_pem(data: bytes, name: str) -> Ed25519Key:
    """The public key of a PEM text."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError:
        raise extra() from None
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise SigningError(f"{name} holds no public key that can be read") from None
    if not isinstance(key, Ed25519PublicKey):
        raise SigningError(f"{name} holds a key of another kind; {_HINT}, or the JSON form of a service's key")
    return Ed25519Key(key)


def key_of_line(line: str, name: str) -> Ed25519Key:
    """The public key of an OpenSSH line; options or a name may stand in front, a comment behind."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        raise extra() from None
    words = line.split()
    kind = KIND.decode()
    at = words.index(kind) + 1 if kind in words else len(words)
    wire = from_base64(words[at]) if at < len(words) else None
    if wire is None or len(wire) != len(_wire(bytes(32))) or wire != _wire(wire[-32:]):
        raise SigningError(f"{name} is no line `{kind} AAAA...`; {_HINT}")
    return Ed25519Key(Ed25519PublicKey.from_public_bytes(wire[-32:]))
