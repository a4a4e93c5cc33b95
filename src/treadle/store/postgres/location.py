"""Where a PostgreSQL store lives: store URLs, and what of them is the driver's."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from treadle.errors import StoreUrlError

SHAPE = "write postgresql://user@host:5432/database?schema=treadle"
DEFAULT_SCHEMA = "treadle"
_SCHEMES = ("postgresql", "postgres")
# What PostgreSQL keeps of a name; it would cut a longer one silently.
_NAME_BYTES = 63
_POOLERS = ("none", "transaction")


class Location(NamedTuple):
    """A parsed store URL."""

    # What the driver connects to; it holds the password, if there is one.
    conninfo: str
    # The same without the password, for messages.
    shown: str
    schema: str = DEFAULT_SCHEMA
    # Whether a pooler hands each transaction another connection of the server.
    pooled: bool = False
    # Where to listen for wake-ups: "" like everything else, "off", or the URL of the server itself.
    listen: str = ""


def parse_url(url: str) -> Location:
    """Read a `postgresql:` URL. Options that are not the store's go to the driver.

    Raises:
        StoreUrlError: it is not one, or an option of the store has no meaning.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise StoreUrlError(f"{_hidden(url)!r} is not a PostgreSQL URL; {SHAPE}")
    if parts.fragment:
        raise StoreUrlError(f"{_hidden(url)!r} has a fragment; write # in a name or password as %23")
    schema, pooler, listen = DEFAULT_SCHEMA, "none", ""
    kept: list[tuple[str, str]] = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        match name:
            case "schema":
                schema = _schema(url, value)
            case "pooler":
                if value not in _POOLERS:
                    raise StoreUrlError(f"{_hidden(url)!r}: pooler={value} is not known; there is pooler=transaction")
                pooler = value
            case "listen":
                listen = _listen(url, value)
            case _:
                kept.append((name, value))
    query = urlencode(kept, quote_via=quote)
    conninfo = parts._replace(scheme="postgresql", query=query).geturl()
    if not parts.netloc:
        # `geturl` drops the slashes of an empty host, which means the local socket.
        conninfo = f"postgresql://{parts.path}" + (f"?{query}" if query else "")
    return Location(conninfo, _hidden(conninfo), schema, pooler == "transaction", listen)


def _schema(url: str, value: str) -> str:
    if not value or len(value.encode()) > _NAME_BYTES or "\0" in value or value.startswith("pg_"):
        raise StoreUrlError(
            f"{_hidden(url)!r}: schema={value!r} cannot be the name of a schema; take 1 to {_NAME_BYTES} bytes"
            " that do not begin with pg_"
        )
    return value


def _listen(url: str, value: str) -> str:
    if value == "off" or urlsplit(value).scheme in _SCHEMES:
        return value
    raise StoreUrlError(
        f"{_hidden(url)!r}: listen={_hidden(value)} is neither off nor the (percent-encoded) URL of the server itself"
    )


def _hidden(url: str) -> str:
    """The URL without its password."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    shown = re.sub(
        r"(?i)\b(password|sslpassword)=[^&]*", r"\1=...", url.removeprefix(f"{parts.scheme}://{parts.netloc}")
    )
    if not parts.netloc:
        return re.sub(r"(?i)\b(password|sslpassword)=[^&]*", r"\1=...", url)
    return f"{parts.scheme}://{unquote(name)}{':...' if colon else ''}{at}{host}{shown}"
