"""Keys that are held by gpg, by a cloud's key service or by a hardware module. The one place of securesystemslib.

The library signs and checks; here is how its signers are named, what they are given and what their errors mean. gpg and
AWS are tested with the real program and an emulation of the service, the others as far as the library's own edge.
"""

from __future__ import annotations

import base64
import importlib
import json
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from treadle.core.canonical import canonical
from treadle.core.documents import Signature, from_base64
from treadle.errors import MissingExtraError, SigningError
from treadle.runtime.signing.keys import extra

# What stands in front of the colon -> what securesystemslib calls the extra that brings the service's client.
SERVICES: Final = {"gpg": "crypto", "awskms": "awskms", "gcpkms": "gcpkms", "azurekms": "azurekms", "hsm": "hsm"}

T = TypeVar("T")
# The library's keys and signatures: it does not export their types.
_Key = Any
_Signature = Any
_Sign = Callable[[bytes], _Signature]


def _library() -> Any:
    try:
        return importlib.import_module("securesystemslib.signer")
    except ImportError:
        raise extra() from None


def is_service(reference: str) -> bool:
    """Whether a key is named by its service: `awskms:alias/release`."""
    return reference.partition(":")[0] in SERVICES


class ServiceSigner:
    """A private key that a service uses for us.

    Named `gpg:FINGERPRINT`, `awskms:KEY`, `gcpkms:projects/...`, `azurekms:VAULT/KEY` or `hsm:NUMBER`.
    """

    def __init__(self, reference: str, pin: bytes | None = None) -> None:
        self._reference = reference
        self._key, self._sign = _guarded(reference, lambda: _open(reference, pin))
        self.keyid: Final[str] = self._key.keyid

    def sign(self, data: bytes) -> Signature:
        """A signature over bytes."""
        made = _guarded(self._reference, lambda: self._sign(data))
        sig = base64.b64encode(bytes.fromhex(made.signature)).decode()
        return Signature(keyid=made.keyid, sig=sig, other_headers=made.unrecognized_fields.get("other_headers", ""))

    def public(self) -> str:
        """The public key as JSON, as `trusted_keys` takes it."""
        return canonical({"keyid": self.keyid, **self._key.to_dict()}).decode() + "\n"


def _open(reference: str, pin: bytes | None) -> tuple[_Key, _Sign]:
    """The public key of a reference, and what signs with the private one."""
    library = _library()
    service, _, name = reference.partition(":")

    def secret(_question: str) -> str:
        return (pin or b"").decode()

    match service:
        case "awskms":
            return _open_aws(name)
        case "gpg":
            uri, key = library.GPGSigner.import_(name.lower())
        case "gcpkms":
            uri, key = library.GCPSigner.import_(name)
        case "azurekms":
            vault, _, inner = name.partition("/")
            uri, key = library.AzureSigner.import_(vault, inner)
        case _:
            uri, key = library.HSMSigner.import_(int(name) if name else None, None, secret)
    made = library.Signer.from_priv_key_uri(uri, key, secret)
    return key, made.sign


def _open_aws(name: str) -> tuple[_Key, _Sign]:
    """As the library's signer, but the service makes the digest itself: what is signed is far below its 4096 bytes."""
    library = _library()
    uri, key = library.AWSSigner.import_(name)
    made = library.AWSSigner.from_priv_key_uri(uri, key)

    def sign(data: bytes) -> _Signature:
        answer = made.client.sign(
            KeyId=made.aws_key_id, Message=data, MessageType="RAW", SigningAlgorithm=made.aws_algo
        )
        return library.Signature(key.keyid, answer["Signature"].hex())

    return key, sign


def _guarded(reference: str, work: Callable[[], T]) -> T:
    """Do what a service does, and say what went wrong in our words."""
    try:
        return work()
    except MissingExtraError:
        raise
    except Exception as error:
        if type(error).__name__ == "UnsupportedLibraryError":
            name = SERVICES[reference.partition(":")[0]]
            raise MissingExtraError(f"{reference}: {error}: pip install 'securesystemslib[{name}]'") from None
        # Each service's client has errors of its own; all of them say why it refused.
        raise SigningError(f"{reference}: {str(error) or type(error).__name__}") from error


class ServiceKey:
    """A public key of a service that is trusted; checking needs neither the service nor gpg."""

    def __init__(self, key: _Key) -> None:
        self._key = key
        self.keyid: Final[str] = key.keyid

    def verifies(self, signature: Signature, data: bytes) -> bool:
        """Whether the signature is this key's, over these bytes."""
        sig, headers = from_base64(signature.sig), signature.other_headers
        if sig is None or headers != headers.lower():
            return False
        more = {"other_headers": headers} if headers else None
        try:
            self._key.verify_signature(_library().Signature(signature.keyid, sig.hex(), more), data)
        except Exception:  # noqa: BLE001 - the kinds of keys fail in ways of their own; none of them is a yes
            return False
        return True


def keys_of_json(data: bytes, name: str) -> list[ServiceKey]:
    """The public keys of a JSON text: one key, or a list of them."""
    library = _library()
    try:
        tree: Any = json.loads(data)
        parts = cast("list[dict[str, Any]]", tree if isinstance(tree, list) else [tree])
        return [ServiceKey(library.Key.from_dict(part.pop("keyid"), part)) for part in parts]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SigningError(f"{name} is no public key as `treadle receipt sign --public` writes it: {error}") from None


def key_of_gpg(reference: str) -> ServiceKey:
    """The public key of `gpg:FINGERPRINT`, from the keyring of gpg."""
    return ServiceKey(_guarded(reference, lambda: _open(reference, None))[0])
