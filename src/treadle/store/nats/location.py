"""Where a NATS store lives: its URL, and the names of what belongs to it on the server."""

from __future__ import annotations

import hashlib
import re
import ssl
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from treadle.errors import StoreUrlError
from treadle.store.nats.wire import LEVEL

_SHAPE = "write nats://host:4222/NAME, with options after a question mark"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OPTIONS = frozenset(
    {"replicas", "credentials", "nkey", "token", "ca", "cert", "key", "storage", "max_bytes", "monitor", "level"}
)
_KNOWN = "replicas=3, credentials=, nkey=, token=, ca=, cert=, key=, storage=memory, max_bytes=, monitor= and level="
DEFAULT_NAME = "treadle"


class Location(NamedTuple):
    """A parsed store URL."""

    servers: tuple[str, ...]
    name: str
    # None: as the store was made; 1 for a new one.
    replicas: int | None = None
    storage: str = "file"
    max_bytes: int = -1
    credentials: str = ""
    nkey: str = ""
    token: str = ""
    tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    # The server's monitoring address, "" if it is not known.
    monitor: str = ""
    # Up to which level the log may rise while a session of this process lives.
    level: int = LEVEL

    @property
    def shown(self) -> str:
        """The servers without what is secret in their URLs."""
        return ",".join(re.sub(r"//[^@/]*@", "//", server) for server in self.servers) + f"/{self.name}"

    @property
    def log(self) -> str:
        """The stream of operations."""
        return f"treadle-{self.name}-log"

    @property
    def values(self) -> str:
        """The stream of payloads, plans, blobs and snapshots."""
        return f"treadle-{self.name}-values"

    @property
    def prefix(self) -> str:
        """What all subjects of the store begin with."""
        return f"treadle.{self.name}"

    def journal(self, key: str) -> str:
        """The subject of a run's appends."""
        return f"{self.prefix}.log.run.{token(key)}"

    @property
    def other(self) -> str:
        """The subject of all operations that are no appends."""
        return f"{self.prefix}.log.other"

    def payload(self, key: str, digest: str) -> str:
        """The subject of a payload of a run."""
        return f"{self.payloads(key)}.{hashed(digest)}"

    def payloads(self, key: str) -> str:
        """What the subjects of the payloads of one run begin with."""
        return f"{self.prefix}.values.run.{token(key)}"

    def position(self, key: str, name: str) -> str:
        """The subject of how far a follower has got in a run's journal."""
        return f"{self.payloads(key)}.at-{hashed(name)}"

    def plan(self, digest: str) -> str:
        """The subject of a plan."""
        return f"{self.prefix}.values.plan.{hashed(digest)}"

    def blob(self, digest: str) -> str:
        """The subject of a blob."""
        return f"{self.prefix}.values.blob.{hashed(digest)}"

    @property
    def blobs(self) -> str:
        """The subjects of all blobs, without those of their parts."""
        return f"{self.prefix}.values.blob.*"

    def body(self, key: str, identity: str) -> str:
        """The subject of the body of an operation that is too big for one message."""
        return f"{self.bodies(key)}.{hashed(identity)}"

    def bodies(self, key: str) -> str:
        """What the subjects of such bodies of one run begin with."""
        return f"{self.prefix}.values.body.{token(key)}"

    @property
    def snapshot(self) -> str:
        """The subject of the newest snapshot of the state."""
        return f"{self.prefix}.values.state"

    def wake(self, session: str) -> str:
        """The subject on which a session is woken."""
        return f"{self.prefix}.wake.{token(session)}"

    def client_options(self) -> dict[str, Any]:
        """What the client is told beside the servers."""
        options: dict[str, Any] = {}
        if self.credentials:
            options["user_credentials"] = self.credentials
        if self.nkey:
            options["nkeys_seed"] = self.nkey
        if self.token:
            options["token"] = self.token
        if self.tls or self.ca or self.cert:
            context = ssl.create_default_context(cafile=self.ca or None)
            if self.cert:
                context.load_cert_chain(self.cert, self.key or None)
            options["tls"] = context
        return options


def token(text: str) -> str:
    """A text as one token of a subject; equal texts have equal tokens."""
    return text if _TOKEN.fullmatch(text) else f"={hashed(text)}"


def hashed(text: str) -> str:
    """A text of any length and kind as a short token."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def parse_url(url: str) -> Location:
    """Read a `nats:` or `tls:` URL.

    Raises:
        StoreUrlError: it is not one, or has an option that is not known.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("nats", "tls"):
        raise StoreUrlError(f"{url!r} is not a NATS URL; {_SHAPE}")
    if not parts.netloc:
        raise StoreUrlError(f"{url!r} names no server; {_SHAPE}")
    if parts.fragment:
        raise StoreUrlError(f"{url!r} has a fragment; {_SHAPE}")
    name = unquote(parts.path.strip("/")) or DEFAULT_NAME
    if not _NAME.fullmatch(name):
        raise StoreUrlError(
            f"{url!r}: the store's name {name!r} may have letters, digits, - and _ only, 64 at most; {_SHAPE}"
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(set(options) - _OPTIONS):
        raise StoreUrlError(f"{url!r}: option {unknown[0]} is not known; there are {_KNOWN}")
    if not options.get("monitor", "http://").startswith(("http://", "https://")):
        raise StoreUrlError(f"{url!r}: monitor is {options['monitor']!r}, which should be as http://host:8222")
    access, _, hosts = parts.netloc.rpartition("@")
    servers = tuple(
        f"{parts.scheme}://{access}{'@' if access else ''}{_checked(url, host)}" for host in hosts.split(",")
    )
    return Location(
        servers,
        name,
        replicas=_number(url, options, "replicas", ("1", "3", "5")),
        storage=_one_of(url, options, "storage", ("file", "memory")),
        max_bytes=_number(url, options, "max_bytes") or -1,
        tls=parts.scheme == "tls",
        level=_number(url, options, "level", tuple(str(level) for level in range(1, LEVEL + 1))) or LEVEL,
        **{name: options.get(name, "") for name in ("credentials", "nkey", "token", "ca", "cert", "key", "monitor")},
    )


def _checked(url: str, host: str) -> str:
    """A host with its port."""
    try:
        parts = urlsplit(f"//{host}")
        if not parts.hostname:
            raise ValueError
        return f"{host}" if parts.port else f"{host}:4222"
    except ValueError:
        raise StoreUrlError(f"{url!r}: {host!r} is no host and port; {_SHAPE}") from None


def _number(url: str, options: dict[str, str], name: str, among: tuple[str, ...] = ()) -> int | None:
    text = options.get(name)
    if text is None:
        return None
    if not (text in among if among else text.isascii() and text.isdigit() and int(text) > 0):
        wanted = f"one of {', '.join(among)}" if among else "a number above 0"
        raise StoreUrlError(f"{url!r}: {name} is {text!r}, which should be {wanted}")
    return int(text)


def _one_of(url: str, options: dict[str, str], name: str, among: tuple[str, ...]) -> str:
    text = options.get(name, among[0])
    if text not in among:
        raise StoreUrlError(f"{url!r}: {name} is {text!r}, which should be one of {', '.join(among)}")
    return text
