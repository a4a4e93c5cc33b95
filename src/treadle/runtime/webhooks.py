"""Webhooks: events as signed HTTP requests, by the scheme of Standard Webhooks (standardwebhooks.com)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import http.client
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from treadle.errors import UsageError
from treadle.runtime.cloud_events import CONTENT_TYPE, SOURCE
from treadle.runtime.event_sinks import KINDS, DeliveryError, EventSink

if TYPE_CHECKING:
    from treadle.authoring.secrets import Secret

_PREFIX: Final = "whsec_"
# The scheme asks for at least so many bytes.
_LEAST_KEY: Final = 24


class Webhook(EventSink):
    """Events as POST requests to a URL, one at a time, signed, until each was answered with a status of 2xx.

    `secrets` sign each request, all of them, so that the receiver can change from one to the next: `whsec_` and base64,
    or a `Secret` of such a text. `headers` go along. After `timeout` seconds a request has failed.

    Raises:
        UsageError: the URL is none, or a secret is none.
    """

    def __init__(
        self,
        url: str,
        *,
        secrets: Sequence[str | Secret[str]] = (),
        name: str = "",
        kinds: Sequence[str] = KINDS,
        workflows: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        source: str = SOURCE,
        history: bool = False,
        cursor: str = "",
        headers: Mapping[str, str] | None = None,
        timeout: float = 15.0,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"a webhook needs an http:// or https:// URL, not {url!r}")
        super().__init__(
            name or parts.hostname,
            kinds=kinds,
            workflows=workflows,
            labels=labels,
            source=source,
            history=history,
            cursor=cursor,
        )
        self._parts = parts
        self._secrets = list(secrets)
        for secret in self._secrets:
            if isinstance(secret, str):
                _key_of(secret)
        self._headers = dict(headers or {})
        self._timeout = timeout
        self._connection: http.client.HTTPConnection | None = None
        # A thread of its own: a receiver that does not answer holds up nobody else.
        self._thread: ThreadPoolExecutor | None = None

    async def deliver(self, event: Mapping[str, Any], now: float) -> None:
        """Send a request.

        Raises:
            DeliveryError: it was not answered with 2xx.
            SecretError: a secret is not there.
        """
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="treadle-webhook")
        await asyncio.get_running_loop().run_in_executor(self._thread, self._send, event, now)

    def close(self) -> None:
        """Let go of the connection."""
        if self._thread is not None:
            self._thread.submit(self._disconnect)
            self._thread.shutdown(wait=False)
            self._thread = None

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _send(self, event: Mapping[str, Any], now: float) -> None:
        body = msgspec.json.encode(event)
        headers = {**self._headers, "content-type": CONTENT_TYPE, **self._signed(str(event["id"]), int(now), body)}
        try:
            status, wait = self._post(body, headers)
        except (OSError, http.client.HTTPException) as error:
            raise DeliveryError(f"{type(error).__name__}: {error}") from error
        if not 200 <= status < 300:
            raise DeliveryError(f"it was answered with {status}", wait)

    def _signed(self, id_: str, at: int, body: bytes) -> dict[str, str]:
        headers = {"webhook-id": id_, "webhook-timestamp": str(at)}
        keys = [_key_of(one if isinstance(one, str) else one.reveal()) for one in self._secrets]
        if keys:
            headers["webhook-signature"] = " ".join(signature(key, id_, at, body) for key in keys)
        return headers

    def _post(self, body: bytes, headers: dict[str, str]) -> tuple[int, float]:
        """The status, and the seconds that the receiver asks to be left alone."""
        path = (self._parts.path or "/") + (f"?{self._parts.query}" if self._parts.query else "")
        for kept in (self._connection is not None, False):
            connection = self._connection or self._connect()
            self._connection = None
            try:
                connection.request("POST", path, body, headers)
                answer = connection.getresponse()
                answer.read(65536)
            except (http.client.RemoteDisconnected, ConnectionError):
                connection.close()
                if kept:
                    # The receiver had closed a connection that was kept; whether it saw the request, nobody knows.
                    continue
                raise
            except BaseException:
                connection.close()
                raise
            if answer.isclosed() and not answer.will_close:
                self._connection = connection
            else:
                connection.close()
            return answer.status, _seconds(answer.getheader("retry-after"))
        raise AssertionError("a new connection answers or raises")

    def _connect(self) -> http.client.HTTPConnection:
        host = self._parts.hostname or ""
        if self._parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, self._parts.port, timeout=self._timeout, context=context)
        return http.client.HTTPConnection(host, self._parts.port, timeout=self._timeout)


def signature(key: bytes, id_: str, at: int, body: bytes) -> str:
    """A `webhook-signature`: HMAC-SHA256 of the id, the time in seconds and the body, with dots between."""
    signed = hmac.digest(key, f"{id_}.{at}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(signed).decode()}"


def _key_of(secret: str) -> bytes:
    with contextlib.suppress(ValueError):
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        if len(key) >= _LEAST_KEY:
            return key
    raise UsageError(f"a webhook's secret is {_PREFIX} and the base64 of at least {_LEAST_KEY} bytes")


def _seconds(text: str | None) -> float:
    """`Retry-After` in seconds; a date, or nothing, is left to the usual delays."""
    return float(text) if text is not None and text.isdecimal() else 0.0
