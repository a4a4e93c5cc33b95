"""Encryption of payloads with keys that can be rotated. With `runtime.signing`, the only place of cryptography.

The cipher is AES-256-GCM-SIV (RFC 8452). Its nonces are random, and should two ever be the same (a process was forked,
a virtual machine went back to a snapshot), all that shows is whether the two values are equal.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from treadle.errors import MissingExtraError, MissingKeyError, PluginError, StoreCorruptError, UsageError
from treadle.ports import PayloadCodec
from treadle.runtime.coding import checked

_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
# Whatever is encrypted is so as a part of this format.
_FORMAT: Final = b"treadle/1\0"
FORM: Final = "an id and 32 bytes in base64, such as `treadle keys new` prints"


class Encryption:
    """Encrypts all payloads: `connect(url, codec=Encryption({"2026-11": key, "2026-05": older}))`.

    The first key encrypts, all of them decrypt. A key is 32 random bytes, or the base64 of them.

    Raises:
        UsageError: there is no key, or one is none.
        MissingExtraError: cryptography is not installed.
    """

    hides = True

    def __init__(self, keys: Mapping[str, bytes | str]) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
        except ImportError:
            raise MissingExtraError("encryption needs cryptography: pip install 'treadle[encrypt]'") from None
        if not keys:
            raise UsageError("encryption needs a key; `treadle keys new ID` makes one")
        secrets = {key_id: _bytes_of(key_id, key) for key_id, key in keys.items()}
        self.key_id = next(iter(secrets))
        self._ciphers = {key_id: AESGCMSIV(secret) for key_id, secret in secrets.items()}
        # Nonces that must repeat are told from the data, under a key that serves nothing else.
        self._nonces = hmac.digest(secrets[self.key_id], b"treadle nonces", "sha256")
        checked(self)

    @property
    def key_ids(self) -> list[str]:
        """The ids of the keys that are here, the one that encrypts first."""
        return list(self._ciphers)

    def __repr__(self) -> str:
        return f"Encryption({', '.join(self._ciphers)})"

    def encode(self, data: bytes, context: bytes, repeats: str = "") -> bytes:
        """Encrypt with the newest key."""
        if repeats:
            told = hashlib.sha256(repeats.encode()).digest() + context + b"\0" + data
            nonce = hmac.digest(self._nonces, told, "sha256")[:_NONCE_BYTES]
        else:
            nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._ciphers[self.key_id].encrypt(nonce, data, _bound(self.key_id, context))

    def decode(self, key_id: str, data: bytes, context: bytes) -> bytes:
        """Decrypt.

        Raises:
            MissingKeyError: there is no such key here.
            StoreCorruptError: the bytes were changed, or another key has this id here.
        """
        from cryptography.exceptions import InvalidTag

        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise MissingKeyError(key_id)
        try:
            if len(data) < _NONCE_BYTES + _TAG_BYTES:
                raise InvalidTag
            return cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], _bound(key_id, context))
        except InvalidTag:
            raise StoreCorruptError(
                f"a value that is encrypted with key {key_id!r} cannot be read: it was changed, or the key of this id"
                " is another one here"
            ) from None


def _bound(key_id: str, context: bytes) -> bytes:
    return _FORMAT + key_id.encode() + b"\0" + context


def _bytes_of(key_id: str, key: bytes | str) -> bytes:
    try:
        found = base64.b64decode(key, validate=True) if isinstance(key, str) else bytes(key)
    except ValueError:
        found = b""
    if len(found) != _KEY_BYTES:
        # The key itself is never part of a message.
        raise UsageError(f"the encryption key {key_id!r} is none; a key is {FORM}")
    return found


def new_key(key_id: str) -> str:
    """A line with a new key, as a file of keys has it."""
    Encryption({key_id: bytes(_KEY_BYTES)})
    return f"{key_id} {base64.b64encode(os.urandom(_KEY_BYTES)).decode()}"


# -- where keys come from ----------------------------------------------------------------------------------------------


def keys_of(text: str, source: str) -> dict[str, bytes | str]:
    """Keys from lines of an id and a key; the first encrypts. `#` begins a comment.

    Raises:
        UsageError: a line is none.
    """
    keys: dict[str, bytes | str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or words[0] in keys:
            fault = "has the id of an earlier one" if len(words) == 2 else f"is not {FORM}"
            raise UsageError(f"line {number} of {source} {fault}")
        keys[words[0]] = words[1]
    if not keys:
        raise UsageError(f"{source} holds no key; a line is {FORM}")
    return keys


def codec_of(given: PayloadCodec | str | None) -> PayloadCodec | None:
    """A payload codec, or what a text stands for: `file:PATH` and `env:NAME` hold keys, others are entry points.

    Raises:
        UsageError: what is there holds no keys.
        PluginError: nothing of the name is installed in `treadle.codecs`.
    """
    if given is None or given == "":
        return None
    if not isinstance(given, str):
        return checked(given)
    scheme, _, rest = given.partition(":")
    if scheme == "file":
        try:
            return Encryption(keys_of(Path(rest).read_text(encoding="utf-8"), rest))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the file of encryption keys cannot be read: {error}") from None
    if scheme == "env":
        if rest not in os.environ:
            raise UsageError(f"the variable {rest!r} with the encryption keys is not set")
        return Encryption(keys_of(os.environ[rest], f"the variable {rest}"))
    from treadle.authoring.plugins import plugin

    made = plugin("codecs", scheme)(given)
    if not hasattr(made, "decode") or not hasattr(made, "key_id"):
        raise PluginError(f"{scheme!r} in treadle.codecs gave a {type(made).__name__}, which is no payload codec")
    return checked(made)
