"""Values by subject: payloads, plans, blobs, snapshots, and whatever is too big for one message.

A value is the last message of its subject. One that does not fit a message lies in parts, on subjects below it, which
are stored before the message that names them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from treadle.errors import ConflictError, StoreCorruptError
from treadle.store.nats.link import Link, Message

# A server takes messages of 1 MiB unless it is told otherwise; a good part less makes room for headers.
PART_BYTES = 512 * 1024
# Subjects of one request: the server answers to no more than 1,024.
_ASKED = 250


class _Parts(msgspec.Struct, omit_defaults=True):
    parts: int
    name: str
    size: int
    # What the value is called by those who store it; the subject has only a hash of that.
    label: str = ""


class Head(NamedTuple):
    """What tells of a value in parts: its subject, the number and time of that message, the value's label and size."""

    subject: str
    seq: int
    time: float
    label: str
    size: int


# A value begins with this byte, or is the description of its parts after the other.
_WHOLE, _PARTED = b"=", b"#"


class Values:
    """Reads and writes values over a link. All methods are for its loop's thread."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.stream = link.location.values

    async def put(self, values: Sequence[tuple[str, bytes]], *, label: str = "") -> None:
        """Store values, as (subject, bytes); on return all are stored. One with a label is always in parts.

        Raises:
            StoreFullError, StoreUnavailableError: some may be stored, some not.
        """
        parts: list[tuple[str, bytes, str]] = []
        heads: list[tuple[str, bytes, str]] = []
        for subject, data in values:
            if len(data) < PART_BYTES and not label:
                heads.append((subject, _WHOLE + data, self.link.new_id()))
                continue
            name = hashlib.sha256(data).hexdigest()[:40]
            places = range(0, len(data), PART_BYTES)
            parts += [
                (f"{subject}.{name}.{n}", data[place : place + PART_BYTES], self.link.new_id())
                for n, place in enumerate(places)
            ]
            told = msgspec.json.encode(_Parts(len(places), name, len(data), label))
            heads.append((subject, _PARTED + told, self.link.new_id()))
        if parts:
            await self.link.publish(parts)
        if heads:
            await self.link.publish(heads)

    async def replace(self, subject: str, data: bytes) -> None:
        """Store a value in the place of the one that is there, and remove the parts of that."""
        old = await self._newest(subject)
        await self.put([(subject, data)])
        if old is not None and old[:1] == _PARTED and old != await self._newest(subject):
            parts = f"{subject}.{msgspec.json.decode(old[1:], type=_Parts).name}.*"
            await self.link.api(f"STREAM.PURGE.{self.stream}", {"filter": parts})

    async def newest(self, subject: str) -> bytes | None:
        """A value that is replaced now and then, as it is now; None if there is none.

        Raises:
            StoreCorruptError: it was replaced while it was read, or has lost parts.
        """
        data = await self._newest(subject)
        return None if data is None else await self._whole(subject, data)

    async def _newest(self, subject: str) -> bytes | None:
        if self.link.replicas > 1:
            # A replica that lags behind has an older one.
            return await self._from_leader(subject)
        return (await self._last_of([subject])).get(subject)

    async def get(self, subject: str) -> bytes | None:
        """A value, or None."""
        return (await self.get_all([subject])).get(subject)

    async def renew(self, subject: str) -> bool:
        """Give a value in parts the time of now; False if it is gone."""
        for head in await self._heads_of(subject):
            data = (await self._last_of([subject])).get(subject)
            if data is not None:
                # Stored only if nobody has removed it, or renewed it, in the meantime.
                with contextlib.suppress(ConflictError):
                    await self.link.publish([(subject, data, self.link.new_id())], after=head.seq)
                    return True
        return bool(await self._heads_of(subject))

    async def heads(self, subjects: str) -> list[Head]:
        """All values in parts whose subjects match."""
        found: list[Head] = []
        last = 0
        while page := await self._heads_of(subjects, last + 1):
            found += page
            last = page[-1].seq
        return found

    async def remove(self, head: Head) -> bool:
        """Remove a value with its parts, unless it was renewed or stored again since its head was read."""
        # Whatever is stored meanwhile has higher numbers, parts included.
        purge = f"STREAM.PURGE.{self.stream}"
        await self.link.api(purge, {"filter": head.subject, "seq": head.seq + 1})
        if await self._heads_of(head.subject):
            return False
        await self.link.api(purge, {"filter": f"{head.subject}.>", "seq": head.seq})
        return True

    async def _heads_of(self, subjects: str, first: int = 1) -> list[Head]:
        """The next values in parts, from a number on."""
        request = {"seq": first, "batch": _ASKED, "next_by_subj": subjects}
        answers = await self.link.gather(f"$JS.API.DIRECT.GET.{self.stream}", msgspec.json.encode(request), is_end)
        found: list[Head] = []
        for message in answers:
            if message.data[:1] == _PARTED:
                told = msgspec.json.decode(message.data[1:], type=_Parts)
                time = datetime.fromisoformat(message.headers["Nats-Time-Stamp"]).timestamp()
                seq = int(message.headers["Nats-Sequence"])
                found.append(Head(message.headers["Nats-Subject"], seq, time, told.label, told.size))
        return found

    async def get_all(self, subjects: Iterable[str]) -> dict[str, bytes]:
        """Values by subject; missing ones are absent."""
        found: dict[str, bytes] = {}
        for subject, data in (await self._last_of(list(subjects))).items():
            found[subject] = await self._whole(subject, data)
        return found

    async def _whole(self, subject: str, data: bytes) -> bytes:
        if data[:1] == _WHOLE:
            return data[1:]
        told = msgspec.json.decode(data[1:], type=_Parts)
        subjects = [f"{subject}.{told.name}.{n}" for n in range(told.parts)]
        parts = await self._last_of(subjects)
        whole = b"".join(parts.get(part, b"") for part in subjects)
        if len(whole) != told.size:
            raise StoreCorruptError(f"{self.link.location.shown}: the value {subject} has lost parts of it")
        return whole

    async def _last_of(self, subjects: list[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for place in range(0, len(subjects), _ASKED):
            asked = subjects[place : place + _ASKED]
            request = msgspec.json.encode({"multi_last": asked})
            for message in await self.link.gather(f"$JS.API.DIRECT.GET.{self.stream}", request, is_end):
                if "Nats-Subject" in message.headers:
                    found[message.headers["Nats-Subject"]] = message.data
        if self.link.replicas > 1:
            # A replica that lags behind may have answered; the leader knows.
            for subject in [subject for subject in subjects if subject not in found]:
                if (data := await self._from_leader(subject)) is not None:
                    found[subject] = data
        return found

    async def _from_leader(self, subject: str) -> bytes | None:
        request = {"last_by_subj": subject}
        answer = await self.link.ask(f"$JS.API.STREAM.MSG.GET.{self.stream}", msgspec.json.encode(request))
        told = msgspec.json.decode(answer.data, type=_Got)
        return None if told.message is None else told.message.data

    async def purge(self, below: str) -> None:
        """Remove all values of a subject, which may have wildcards."""
        await self.link.api(f"STREAM.PURGE.{self.stream}", {"filter": below})


class _Stored(msgspec.Struct):
    data: bytes = b""


class _Got(msgspec.Struct):
    message: _Stored | None = None


def is_end(message: Message) -> bool:
    """Whether a message is the end of a batch of direct answers."""
    return message.headers.get("Status") in ("204", "404", "408", "413")
