"""The log of a store, and the state that it leads to in this process.

Every operation is one message of one stream; the stream's order is the order in which things happened. `write` stores
operations and answers with what they came to: that is known as soon as every message before them is applied. Most often
nobody else has written meanwhile, and then the server's acknowledgement is all that is waited for.

Nothing is subscribed to: what others wrote is read when it is needed, from the first message that is not applied yet.
So a lost connection, a restarted server or a laptop that slept leave nothing to mend. A message that is missing there
was cleared away after a snapshot of the state was stored: then the state is loaded from the newest snapshot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from treadle.errors import SchemaVersionError, StoreCorruptError, StoreError, StoreFullError, StoreUnavailableError
from treadle.store.nats import wire
from treadle.store.nats.link import Link, Message, Publishing
from treadle.store.nats.machine import Machine, outgrown
from treadle.store.nats.snapshots import Snapshot, decode_snapshot, encode_snapshot
from treadle.store.nats.values import PART_BYTES, Values, is_end

_BATCH = 500
_BATCH_BYTES = 8 * 1024 * 1024
# A snapshot is stored when so many messages have come since the last one, or as many as the state has entries.
SNAPSHOT_AFTER = 10_000
# The same where the log has no room: fewer are not worth it.
PRESSED_AFTER = 50
_SNAPSHOT_ATTEMPTS = 20
# Journals of deleted runs that wait to be cleared away.
DELETED_AT_MOST = 1000

_ID = "Nats-Msg-Id"
_NUMBER = "Nats-Sequence"
# A message that has its operation elsewhere begins with this byte, which no operation begins with.
_ELSEWHERE = b"\xc1"


class _Gap(Exception):  # noqa: N818 - it is caught here and nowhere else
    """Messages that are not applied yet are gone."""


class _Written:
    """An operation of this process on its way through the log."""

    __slots__ = ("done", "identity", "op", "seq")

    def __init__(self, op: wire.Operation, identity: str, done: asyncio.Future[Any]) -> None:
        self.op = op
        self.identity = identity
        self.done = done
        self.seq = 0


class Begun:
    """An operation that was begun; it ends by itself, or by `Log.finish` if that is `asked` for."""

    __slots__ = ("asked", "own", "publishing")

    def __init__(self, own: _Written) -> None:
        self.own = own
        self.publishing: Publishing | None = None
        self.asked = False


class Log:
    """Writes and follows a log. All methods are for the link's thread."""

    def __init__(self, link: Link, values: Values) -> None:
        self.link = link
        self.values = values
        self.location = link.location
        self.machine = Machine()
        # The last message that is applied, and the one that a snapshot brought this process to.
        self.applied = 0
        self._loaded_at = 0
        self._mine: dict[str, _Written] = {}
        # Acknowledged, and not applied yet, by number.
        self._acked: dict[int, _Written] = {}
        self._reading = asyncio.Lock()
        # There was no room for a message; and which one was the last when room was sought.
        self._pressed = False
        self._sought_at = 0

    # -- writing ---------------------------------------------------------------------------------------

    async def write(self, operations: Sequence[tuple[str, wire.Operation]]) -> list[Any]:
        """Store operations, as (subject, operation), in this order; what each has come to, or its error.

        Raises:
            SchemaVersionError: the log has risen above what this version can apply; its sessions have ended.
            StoreError: it is not known of all whether they took effect.
        """
        written: list[_Written] = []
        messages: list[tuple[str, bytes, str]] = []
        bodies: list[tuple[str, bytes]] = []
        for subject, op in operations:
            own, data = self._enter(op)
            if len(data) > PART_BYTES:
                # An append's body goes with its run, when that is deleted.
                body = self.location.body(op.key if isinstance(op, wire.AppendOp) else "", own.identity)
                bodies.append((body, data))
                data = _ELSEWHERE + body.encode()
            written.append(own)
            messages.append((subject, data, own.identity))
        try:
            if bodies:
                await self.values.put(bodies)
            numbers = await self.link.publish(messages, lambda place, seq: self._stored(written[place], seq))
            if not all(own.done.done() for own in written):
                await self.follow(max(numbers))
            return [await own.done for own in written]
        except StoreFullError:
            self._pressed = True
            raise
        finally:
            for own in written:
                self._leave(own)

    def _enter(self, op: wire.Operation) -> tuple[_Written, bytes]:
        own = _Written(op, self.link.new_id(), self.link.loop.create_future())
        self._mine[own.identity] = own
        return own, wire.encode(op)

    def _leave(self, own: _Written) -> None:
        self._mine.pop(own.identity, None)
        self._acked.pop(own.seq, None)
        if not own.done.done():
            own.done.cancel()
        elif not own.done.cancelled():
            # It is told already if it matters: another one of the same call has failed.
            own.done.exception()

    def begin(self, subject: str, op: wire.Operation, told: Callable[[object], None]) -> Begun | None:
        """Store an operation, for a thread that has stepped into the loop; None if that cannot be begun at once.

        `told` is called once, on the loop's thread, with what it has come to; with None if it needs `finish` to say.
        """
        own, data = self._enter(op)
        if len(data) > PART_BYTES:
            self._leave(own)
            return None
        begun = Begun(own)

        def ask() -> None:
            begun.asked = True
            told(None)

        def stored(seq: int) -> None:
            self._stored(own, seq)
            if begun.asked:
                # `finish` says it: an answer that comes late must not be told beside it.
                return
            if not own.done.done() or own.done.exception() is not None:
                # Others have written before it.
                ask()
                return
            self._end(begun)
            told(own.done.result())

        begun.publishing = self.link.begin((subject, data, own.identity), stored, ask)
        if begun.publishing is None:
            self._leave(own)
            return None
        return begun

    def _end(self, begun: Begun) -> None:
        assert begun.publishing is not None
        self.link.forget(begun.publishing)
        self._leave(begun.own)

    async def finish(self, begun: Begun) -> Any:
        """Wait for what an operation comes to.

        Raises:
            StoreError: as `write` does.
        """
        assert begun.publishing is not None
        begun.asked = True
        try:
            numbers = await self.link.confirm(begun.publishing)
            if not begun.own.done.done():
                await self.follow(max(numbers))
            return await begun.own.done
        except StoreFullError:
            self._pressed = True
            raise
        finally:
            self._end(begun)

    def _stored(self, own: _Written, seq: int) -> None:
        """An operation of ours is message `seq`: apply it if it is the next one."""
        own.seq = seq
        if own.done.done():
            return
        if seq <= self.applied:
            own.done.set_exception(self._passed_by(seq))
            return
        self._acked[seq] = own
        while (following := self._acked.pop(self.applied + 1, None)) is not None:
            self._apply(following.op, self.applied + 1, following)

    def _passed_by(self, seq: int) -> StoreError:
        """Why a message of ours is none that was applied here."""
        if seq <= self._loaded_at:
            return StoreUnavailableError("this process had fallen far behind; what became of its write is not known")
        return StoreCorruptError(
            f"{self.location.shown}: the log ends before what this process has seen of it; the server has lost messages"
            " that it had acknowledged. Restart all processes; the server's sync_interval: always prevents it"
        )

    def _apply(self, op: wire.Operation, seq: int, own: _Written | None) -> None:
        result = self.machine.apply(op, seq)
        self.applied = seq
        if own is not None and not own.done.done():
            own.done.set_result(result)

    # -- following -------------------------------------------------------------------------------------

    async def follow(self, until: int | None = None) -> None:
        """Apply what is written: up to a message, or all that was there when this was called.

        Raises:
            SchemaVersionError: the log has risen above what this version can apply.
            StoreUnavailableError: no answer came.
        """
        if until is None and self.link.replicas > 1:
            # Any replica may answer to reads; the leader alone knows where the log ends.
            info = await self.link.api(f"STREAM.INFO.{self.location.log}")
            until = int(info["state"]["last_seq"])
        async with self._reading:
            waited = 0
            while until is None or self.applied < until:
                try:
                    before = self.applied
                    more = await self._read_batch()
                except _Gap:
                    await self._load_snapshot()
                    continue
                if until is None and not more:
                    return
                if self.applied == before:
                    waited += 1
                    await self._wait_for_replica(waited)

    async def _wait_for_replica(self, waited: int) -> None:
        """A replica that lags behind its leader has answered; it may take longer when the leader has changed."""
        if waited > 200:
            raise StoreUnavailableError(f"{self.location.shown}: the log cannot be read up to its end; try again")
        await asyncio.sleep(min(0.002 * waited, 0.1))

    async def _read_batch(self) -> bool:
        """Apply the messages after the last one that is applied; whether there are more."""
        request = {"seq": self.applied + 1, "batch": _BATCH, "max_bytes": _BATCH_BYTES}
        subject = f"$JS.API.DIRECT.GET.{self.location.log}"
        messages = await self.link.gather(subject, msgspec.json.encode(request), is_end)
        for message in messages:
            if _NUMBER in message.headers:
                await self._read(message)
        return int(messages[-1].headers.get("Nats-Num-Pending", "0")) > 0

    async def _read(self, message: Message) -> None:
        seq = int(message.headers[_NUMBER])
        if seq <= self.applied:
            return
        if seq > self.applied + 1:
            raise _Gap
        own = self._mine.get(message.headers.get(_ID, ""))
        op = own.op if own is not None else await self._operation(message.data)
        if isinstance(op, wire.LevelOp) and op.level > wire.LEVEL and self.machine.rises(op):
            # Nothing from here on is applied: this process stays at the message before.
            raise SchemaVersionError(outgrown(op.level, wire.LEVEL))
        # While a body was read, an acknowledgement may have come.
        if seq == self.applied + 1:
            self._apply(op, seq, own)
            while (following := self._acked.pop(self.applied + 1, None)) is not None:
                self._apply(following.op, self.applied + 1, following)

    async def _operation(self, data: bytes) -> wire.Operation:
        try:
            return wire.decode(await self.body(data))
        except msgspec.ValidationError as error:
            raise SchemaVersionError(
                f"{self.location.shown} has an operation that this version does not know ({error}): upgrade treadle"
            ) from error

    async def body(self, data: bytes) -> bytes:
        """The operation of a message, wherever it is."""
        if data[:1] != _ELSEWHERE:
            return data
        body = await self.values.get(data[1:].decode())
        if body is None:
            raise StoreCorruptError(f"{self.location.shown}: the value {data[1:].decode()} is missing")
        return body

    # -- snapshots -------------------------------------------------------------------------------------

    async def _snapshot(self) -> Snapshot | None:
        """The newest snapshot; read again if another one took its place meanwhile."""
        for attempt in range(1, _SNAPSHOT_ATTEMPTS + 1):
            try:
                found = await self.values.newest(self.location.snapshot)
                return None if found is None else decode_snapshot(found)
            except StoreCorruptError:
                if attempt == _SNAPSHOT_ATTEMPTS:
                    raise
                await asyncio.sleep(0.1)
        return None

    async def _load_snapshot(self) -> None:
        snapshot = await self._snapshot()
        if snapshot is None or snapshot.seq <= self.applied:
            raise StoreCorruptError(
                f"{self.location.shown}: messages after {self.applied} of the log are gone, and no snapshot covers them"
            )
        self._adopt(snapshot)
        for seq in [seq for seq in self._acked if seq <= self.applied]:
            del self._acked[seq]
        for own in self._mine.values():
            if 0 < own.seq <= self.applied and not own.done.done():
                own.done.set_exception(self._passed_by(own.seq))

    async def load(self) -> None:
        """Come to the present state, from the newest snapshot."""
        snapshot = await self._snapshot()
        if snapshot is not None:
            self._adopt(snapshot)
        await self.follow()

    def _adopt(self, snapshot: Snapshot) -> None:
        self.machine = snapshot.machine()
        self.applied = self._loaded_at = snapshot.seq

    async def clear_up(self) -> None:
        """Store a snapshot if it is time or there is no room, and remove from the log what nobody needs any more."""
        machine = self.machine
        entries = len(machine.data.runs) + len(machine.data.tombstones)
        pressed = self._pressed and self.applied - max(machine.cleared, self._sought_at) >= PRESSED_AFTER
        if (
            pressed
            or self.applied - machine.cleared >= max(SNAPSHOT_AFTER, entries)
            or len(machine.deleted) >= DELETED_AT_MOST
        ):
            self._pressed, self._sought_at = False, self.applied
            await self.store_snapshot()

    async def store_snapshot(self) -> None:
        """Store a snapshot of the present state, then clear the log of what it covers. Safe done twice."""
        seq, gone = self.applied, list(self.machine.deleted)
        await self.values.replace(self.location.snapshot, encode_snapshot(seq, self.machine))
        # The last message that the snapshot covers stays: it tells those who lag behind that there was more.
        purge = f"STREAM.PURGE.{self.location.log}"
        await self.link.api(purge, {"filter": self.location.other, "seq": seq})
        for key in gone:
            await self.link.api(purge, {"filter": self.location.journal(key), "seq": seq})
        await self.write([(self.location.other, wire.ClearOp(until=seq))])
