"""The connection to NATS: requests with many in flight.

All that is asked of the server goes through one
connection; answers come by one subscription, by the last token of their subject. The connection mends itself: what got
no answer is asked again by those who know that this changes nothing (`Link.publish` by its message id).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec

from treadle.errors import ConflictError, MissingExtraError, StoreError, StoreFullError, StoreUnavailableError
from treadle.store.nats.location import Location
from treadle.store.nats.monitor import complaint

T = TypeVar("T")

# Until an answer is given up and asked for again. A new leader is elected in 4 to 10 s.
ANSWER_SECONDS = 2.0
# Until a call gives up; what it wrote is in doubt then.
PATIENCE_SECONDS = 30.0
_CONNECT_SECONDS = 5
# Errors of JetStream by their code: no room for a message or a stream, by a limit of the server, the account or the
# stream.
FULL = frozenset({10002, 10023, 10028, 10047, 10077, 10122})
# The API has no leader at the moment, or the stream has none.
_AWAY = frozenset({10004, 10008, 10009, 10118})
# Another message is the last one of the subject.
_NOT_LAST = 10071


class Message(NamedTuple):
    """A message as it came."""

    data: bytes
    headers: dict[str, str]


class _Refusal(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct):
    """The server's word that a message is stored."""

    seq: int = 0
    duplicate: bool = False
    error: _Refusal | None = None


_decode_ack = msgspec.json.Decoder(PubAck).decode


class RefusedError(Exception):
    """The server answered with an error."""

    def __init__(self, code: int, description: str) -> None:
        self.code = code
        self.description = description
        super().__init__(description)


class _Wait:
    """What a request waits for."""

    __slots__ = ("future", "trouble")

    def __init__(self, trouble: Callable[[], None] | None = None) -> None:
        self.future: asyncio.Future[bool] | None = None
        # Told in the place of a task that waits.
        self.trouble = trouble

    def end(self, broken: bool) -> None:
        """Let it go on, if it waits."""
        if self.future is not None and not self.future.done():
            self.future.set_result(broken)
        if self.trouble is not None:
            trouble, self.trouble = self.trouble, None
            trouble()


class Publishing:
    """Messages on their way into a stream; to be ended by `Link.confirm` or `Link.forget`."""

    __slots__ = ("_link", "after", "failure", "left", "messages", "numbers", "stored", "tokens", "wait")

    def __init__(
        self,
        link: Link,
        messages: Sequence[tuple[str, bytes, str]],
        stored: Callable[[int, int], None] | None,
        after: int | None,
        wait: _Wait,
    ) -> None:
        self._link = link
        self.messages = messages
        self.stored = stored
        self.after = after
        self.wait = wait
        self.numbers = [0] * len(messages)
        # Places in `messages` of those that are not answered.
        self.left: dict[int, None] = dict.fromkeys(range(len(messages)))
        self.tokens: list[str] = []
        self.failure: StoreError | None = None

    def answered(self, place: int, message: Message) -> None:
        """An answer to a message came."""
        if place not in self.left:
            return
        ack = self._link.ack_of(message)
        if ack is None:
            return
        del self.left[place]
        if isinstance(ack, StoreError):
            self.failure = self.failure or ack
        else:
            self.numbers[place] = ack.seq
            if self.stored is not None:
                self.stored(place, ack.seq)
        if not self.left:
            self.wait.end(False)


class Link:
    """One connection. All methods are for its loop's thread."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.loop: asyncio.AbstractEventLoop
        self.client: Any = None
        self.errors: list[str] = []
        # Copies of each message on the server's side; known when the streams are.
        self.replicas = 1
        # Requests that were sent, of any kind: what a test counts.
        self.requests = 0
        self._answers: dict[str, Callable[[Message], None]] = {}
        self._numbers = itertools.count()
        self._inbox = ""
        # Ended when the connection was made anew: what is not answered by then was lost with the old one.
        self._waits: dict[_Wait, None] = {}
        # How many messages were begun, the wait of the last one, and whether somebody looks after it.
        self._begun = 0
        self._watched = _Wait()
        self._watching = False
        self._opening = asyncio.Lock()
        self._wanted: list[tuple[str, Callable[[], None]]] = []
        # The first half of all message ids of this connection: none is ever made twice.
        self._name = os.urandom(9).hex()

    # -- life ------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect.

        Raises:
            MissingExtraError: nats-py is not installed.
            StoreUnavailableError: nobody answers there, or it refuses the credentials.
        """
        try:
            from nats.aio.client import Client
        except ImportError:
            raise MissingExtraError("nats: URLs need nats-py: pip install 'treadle[nats]'") from None
        location = self.location
        self.loop = asyncio.get_running_loop()
        client: Any = Client()
        self.errors.clear()
        try:
            # At first no server that is wrong is waited for; later each one is, for as long as it takes.
            await client.connect(
                servers=list(location.servers),
                error_cb=self._on_error,
                reconnected_cb=self._on_reconnected,
                name=f"treadle {location.name}",
                connect_timeout=_CONNECT_SECONDS,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                skip_subject_validation=True,
                pending_size=64 * 1024 * 1024,
                **location.client_options(),
            )
        except Exception as error:  # the client raises whatever the sockets, TLS or itself come up with
            with contextlib.suppress(Exception):
                await client.close()
            raise self._unreachable(error) from error
        client.options.update(allow_reconnect=True, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
        self.client = client
        self._inbox = client.new_inbox()
        await client.subscribe(
            f"{self._inbox}.*", cb=self._on_answer, pending_msgs_limit=10_000_000, pending_bytes_limit=0
        )
        for subject, heard in self._wanted:
            await self._listen(subject, heard)

    def _unreachable(self, error: Exception) -> StoreError:
        told = [str(error) or type(error).__name__, *self.errors]
        reason = next((text for text in told if "uthorization" in text or "ermission" in text), told[-1])
        where = self.location.shown
        if "uthorization" in reason:
            return StoreUnavailableError(
                f"{where} refuses the credentials ({reason}); see user, password, token and credentials= of the URL"
            )
        return StoreUnavailableError(f"no NATS server answers at {where} ({reason}); is it running, and the URL right?")

    async def _on_error(self, error: Exception) -> None:
        self.errors.append(str(error) or type(error).__name__)
        del self.errors[:-8]

    async def _on_reconnected(self) -> None:
        for wait in list(self._waits):
            wait.end(True)

    async def _wait(self, wait: _Wait) -> bool:
        """Wait until all answers are there, or for a while; True if the connection broke meanwhile."""
        loop = asyncio.get_running_loop()
        # One future and one timer: this is part of each commit, and `asyncio.wait` costs several times as much.
        wait.future = loop.create_future()
        timer = loop.call_later(ANSWER_SECONDS, wait.end, False)
        self._waits[wait] = None
        try:
            return await wait.future
        finally:
            timer.cancel()
            del self._waits[wait]

    async def close(self) -> None:
        """Disconnect."""
        if self.client is not None:
            # A connection that breaks meanwhile takes what the client waits for with it.
            with contextlib.suppress(asyncio.CancelledError):
                await self.client.close()

    async def listen(self, subject: str, heard: Callable[[], None]) -> None:
        """Call `heard` for each message of a subject."""
        self._wanted.append((subject, heard))
        await self._listen(subject, heard)

    async def _listen(self, subject: str, heard: Callable[[], None]) -> None:
        async def on_message(_message: object) -> None:
            heard()

        await self.client.subscribe(subject, cb=on_message)

    def tell(self, subject: str) -> None:
        """Send a message that may be lost."""
        if self.client is not None and self.client.is_connected:
            task = asyncio.get_running_loop().create_task(self.client.publish(subject, b""))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    # -- requests --------------------------------------------------------------------------------------

    async def _on_answer(self, message: Any) -> None:
        answer = self._answers.get(message.subject.rpartition(".")[2])
        if answer is not None:
            answer(Message(message.data, message.headers or {}))

    async def _send(self, token: str, subject: str, data: bytes, headers: dict[str, str] | None) -> None:
        """Send once; a connection that is gone for good is made anew, one that is mending itself takes it later."""
        self.requests += 1
        if self.client.is_closed:
            async with self._opening:
                if self.client.is_closed:
                    await self.open()
        # A full buffer, or a connection that breaks now: nobody answers, and it is asked again.
        with contextlib.suppress(Exception):
            await self.client.publish(subject, data, f"{self._inbox}.{token}", headers)

    def new_id(self) -> str:
        """A message id that was never used."""
        return f"{self._name}.{next(self._numbers)}"

    async def publish(
        self,
        messages: Sequence[tuple[str, bytes, str]],
        stored: Callable[[int, int], None] | None = None,
        *,
        after: int | None = None,
    ) -> list[int]:
        """Store messages, as (subject, data, message id), all at once in flight; returns their numbers.

        `stored` is called for each as its answer comes, with its place in `messages` and its number. What gets no
        answer is sent again: the server knows the message by its id. With `after`, each is stored only if that is the
        number of the last message of its subject (0: there is none).

        Raises:
            ConflictError: another message is the last one of the subject.
            StoreFullError: there is no room for one of them. Others may have been stored; so may this one if the server
                has given no answer.
            StoreUnavailableError: the answer to one of them did not come; nothing is known of it.
        """
        publishing = self._publishing(messages, stored, after, _Wait())
        try:
            return await self.confirm(publishing)
        finally:
            self.forget(publishing)

    def _publishing(
        self,
        messages: Sequence[tuple[str, bytes, str]],
        stored: Callable[[int, int], None] | None,
        after: int | None,
        wait: _Wait,
    ) -> Publishing:
        publishing = Publishing(self, messages, stored, after, wait)
        for place in range(len(messages)):
            token = str(next(self._numbers))
            publishing.tokens.append(token)
            self._answers[token] = partial(publishing.answered, place)
        return publishing

    def forget(self, publishing: Publishing) -> None:
        """Listen to no more answers."""
        for token in publishing.tokens:
            self._answers.pop(token, None)
        self._waits.pop(publishing.wait, None)

    def begin(
        self, message: tuple[str, bytes, str], stored: Callable[[int], None], trouble: Callable[[], None]
    ) -> Publishing | None:
        """Send a message now, for a thread that has stepped into the loop; None if that cannot be done at once.

        If it is stored, `stored` is called with its number. `trouble` is called if it is refused, or if there is no
        answer in time; then, and only then, `confirm` is to be called. Both are called on the loop's thread.
        """
        wait = _Wait(trouble)

        def answered(_place: int, seq: int) -> None:
            wait.trouble = None
            stored(seq)

        publishing = self._publishing([message], answered, None, wait)
        subject, data, identity = message
        if not self._write(publishing.tokens[0], subject, data, {"Nats-Msg-Id": identity}):
            self.forget(publishing)
            return None
        self.requests += 1
        self._waits[wait] = None
        self._begun += 1
        self._watched = wait
        if not self._watching:
            self._watching = True
            self.loop.call_soon_threadsafe(self._watch)
        return publishing

    def _watch(self) -> None:
        """See to it that what was begun is not waited for without end."""
        self.loop.call_later(ANSWER_SECONDS, self._look, self._begun)

    def _look(self, begun: int) -> None:
        wait = self._watched
        waits = wait.trouble is not None and wait in self._waits
        if waits and self._begun == begun:
            wait.end(False)
        # As long as there is something to do the timer goes on by itself, so that nobody need wake the loop for it.
        self._watching = self._begun != begun
        if self._watching:
            self._watch()

    async def confirm(self, publishing: Publishing) -> list[int]:
        """Wait until all messages are stored, and send again what gets no answer; returns their numbers.

        Raises:
            StoreError: as `publish` does.
        """
        left = publishing.left
        give_up = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while left:
            await self._send_all(publishing)
            if left:
                await self._wait(publishing.wait)
            if left and asyncio.get_running_loop().time() > give_up:
                raise await self._silent(f"did not confirm {len(left)} messages; they may be stored or not")
        if publishing.failure is not None:
            raise publishing.failure
        return publishing.numbers

    async def _silent(self, what: str) -> StoreError:
        """Why no answer came. A server that could not write to its disk gives none, and writes no more."""
        told = await complaint(self.location)
        text = f"in {PATIENCE_SECONDS:.0f} s {self.location.shown} {what}"
        if "no space left" in told:
            return StoreFullError(f"{text}: {told}. Make room on its disk, then restart it: before, it stores nothing")
        reason = told or "is JetStream enabled there? Its log tells"
        return StoreUnavailableError(f"{text} ({reason}). If its disk was full, make room and restart it")

    async def _send_all(self, publishing: Publishing) -> None:
        fence = {}
        if publishing.after is not None:
            fence = {"Nats-Expected-Last-Subject-Sequence": str(publishing.after)}
        places = list(publishing.left)
        for place in places:
            subject, data, identity = publishing.messages[place]
            headers = {"Nats-Msg-Id": identity} | fence
            token = publishing.tokens[place]
            if len(places) == 1 and self._write(token, subject, data, headers):
                self.requests += 1
            else:
                await self._send(token, subject, data, headers)

    def _write(self, token: str, subject: str, data: bytes, headers: dict[str, str]) -> bool:
        """Write a message to the socket now; False if it is the client's to send it later.

        The client leaves sending to a task, which gathers what is to be sent: that only keeps up one message alone.
        """
        client = self.client
        # What the client has still to send goes first.
        if not client.is_connected or client._pending:  # noqa: SLF001 - neither this nor what writes has a public name
            return False
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        head = f"NATS/1.0\r\n{lines}\r\n".encode()
        size = len(head) + len(data)
        if size > client.max_payload:
            return False
        command = f"HPUB {subject} {self._inbox}.{token} {len(head)} {size}\r\n".encode()
        # A connection that breaks now: nobody answers, and it is asked again.
        with contextlib.suppress(Exception):
            client._transport.write(b"".join((command, head, data, b"\r\n")))  # noqa: SLF001 - as above
        return True

    def ack_of(self, message: Message) -> PubAck | StoreError | None:
        """What an answer to a publish says; None: ask again."""
        if message.headers.get("Status") == "503" or not message.data:
            # Nobody listens: the stream has no leader at the moment.
            return None
        ack = _decode_ack(message.data)
        if ack.error is None:
            return ack
        if ack.error.err_code in FULL:
            return StoreFullError(
                f"{self.location.shown} has no room ({ack.error.description}): raise the limits of the streams"
                f" {self.location.log} and {self.location.values}, of the account or of the server; then work goes on"
            )
        if ack.error.code == 503:
            return None
        if ack.error.err_code == _NOT_LAST:
            return ConflictError(f"{self.location.shown}: {ack.error.description}")
        return StoreError(f"{self.location.shown} refuses a message: {ack.error.description}")

    async def ask(self, subject: str, data: bytes = b"") -> Message:
        """One request with one answer, asked again until it comes; so it must be one that may be made twice.

        Raises:
            StoreUnavailableError: no answer came.
        """
        found = await self.gather(subject, data, lambda message: True)
        return found[-1]

    async def gather(self, subject: str, data: bytes, is_last: Callable[[Message], bool]) -> list[Message]:
        """One request with many answers, up to the last one; asked again as a whole.

        Raises:
            StoreUnavailableError: no last answer came.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + PATIENCE_SECONDS
        while True:
            answer = await self._gather_once(subject, data, is_last)
            if answer is not None:
                return answer
            if loop.time() > give_up:
                raise await self._silent("did not answer")

    async def _gather_once(self, subject: str, data: bytes, is_last: Callable[[Message], bool]) -> list[Message] | None:
        token = str(next(self._numbers))
        found: list[Message] = []
        # Whether somebody has answered, once that is known.
        ended: list[bool] = []
        wait = _Wait()

        def answered(message: Message) -> None:
            found.append(message)
            nobody = message.headers.get("Status") == "503"
            if nobody or is_last(message):
                ended.append(not nobody)
                wait.end(False)

        self._answers[token] = answered
        try:
            await self._send(token, subject, data, None)
            seen, broken = -1, False
            while not ended and len(found) > seen and not broken:
                # As long as answers come, the last one is waited for.
                seen = len(found)
                broken = await self._wait(wait)
            if not ended:
                return None
            if not ended[0]:
                await asyncio.sleep(0.1)
                return None
            return found
        finally:
            del self._answers[token]

    async def api(self, action: str, request: object = None) -> dict[str, Any]:
        """A request to JetStream's API, made again while it has no leader.

        Raises:
            RefusedError: it answered with an error.
            StoreUnavailableError: no answer came.
        """
        data = b"" if request is None else msgspec.json.encode(request)
        give_up = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while True:
            message = await self.ask(f"$JS.API.{action}", data)
            answer: dict[str, Any] = msgspec.json.decode(message.data)
            refusal = answer.get("error")
            if refusal is None:
                return answer
            code, reason = refusal.get("err_code", 0), refusal.get("description", "no reason given")
            if code not in _AWAY:
                raise RefusedError(code, reason)
            if asyncio.get_running_loop().time() > give_up:
                raise StoreUnavailableError(f"{self.location.shown}: {reason}, for {PATIENCE_SECONDS:.0f} s by now")
            await asyncio.sleep(0.1)
