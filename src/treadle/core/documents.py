"""Documents: a plan with its constants before a run, and with what happened after it. One format, `treadle.plan/1`.

A document is a plan with more members. What they hold is data: reading, checking, comparing and signing a document
needs none of the functions that it names, and runs nothing.

- `hash` is the SHA-256 of the canonical form (RFC 8785) of the document without `hash` and `signature`.
- `signature` is a DSSE envelope around an in-toto statement that names the hash. So a signer signs some hundred bytes,
  whatever the document's size, and any tool that knows the two formats can check it.
- Values (constants, results) are JSON with the codec's tags. A float that is a whole number is tagged too, since the
  canonical form writes it like an integer.

A document with `run` is a receipt. The document proves what was planned and done; it is no journal: large results are
named by their digests.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, cast

import msgspec

from treadle.core.canonical import canonical, digest
from treadle.core.json_text import Path, Reading, TextError
from treadle.core.plan import Block, Plan
from treadle.core.shapes import mistakes
from treadle.errors import ChecksumError, DocumentError, DocumentVersionError, EncodeError

FORMAT: Final = "treadle.plan/1"
_FAMILY: Final = "treadle.plan/"
# The members that the hash does not cover.
_UNHASHED: Final = ("hash", "signature")

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "urn:treadle:plan:1"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"

# Mistakes that one error lists; a file that is something else altogether has thousands.
_LISTED: Final = 20


class Part(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The root of what documents hold besides the plan."""


class Platform(Part, frozen=True, kw_only=True):
    """The machine on which a document was written."""

    os: str
    arch: str
    python: str


class Provenance(Part, frozen=True, kw_only=True):
    """Who wrote a document, when and where.

    `context` is whatever the writer was told to note (a commit, a target); `code` are hashes of the source texts of
    the actions that the writer had at hand.
    """

    tool: str
    version: str
    created_at: datetime
    platform: Platform
    context: dict[str, str] = {}
    code: dict[str, str] = {}


class Value(Part, frozen=True, kw_only=True):
    """A value of a run: itself if it is small, else its digest (`sha256:` and as much of it as the store keeps).

    Of one that a payload codec hides there is only the id of its key.
    """

    value: Any = msgspec.UNSET
    digest: str = ""
    key_id: str = ""


class Fault(Part, frozen=True, kw_only=True):
    """Why an attempt or a step failed."""

    code: str
    message: str = ""
    type: str = ""


class Attempt(Part, frozen=True, kw_only=True):
    """One try of a step. `outcome` is empty while it is not over."""

    number: int
    outcome: str = ""
    generation: int = 1
    started_at: datetime | None = None
    ended_at: datetime | None = None
    session: str = ""
    failure: Fault | None = None


class Outcome(Part, frozen=True, kw_only=True):
    """What became of one step. `undo` says whether its effect still stands (`undone`: it does not).

    `compensated` tells that the phase it belongs to was taken back as a whole; `compensates` is the row that it took
    back itself, for a step of a compensating phase.
    """

    address: str
    action: str
    status: str
    generation: int = 1
    undo: str = "none"
    compensated: bool = False
    compensates: str = ""
    optional: bool = False
    ready_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    result: Value | None = None
    failure: Fault | None = None
    # Why it was skipped, and because of which steps.
    skip_reason: str = ""
    skip_causes: list[str] = []
    # The step that added it, if the plan does not hold it.
    added_by: str = ""
    attempts: list[Attempt] = []


class Compensation(Part, frozen=True, kw_only=True):
    """What became of the undo of one row: its phase names a compensating one (`by`), executed at these addresses."""

    row: str
    by: str
    status: str
    executed: list[str] = []
    failure: Fault | None = None
    # Who or what has put it off.
    reason: str = ""


class Fact(Part, frozen=True, kw_only=True):
    """Something that happened to a run besides the outcomes of its steps, as its journal tells it."""

    kind: str
    time: datetime
    # The step or scope that it is about, if it is about one.
    at: str = ""
    about: dict[str, Any] = {}


class Added(Part, frozen=True, kw_only=True):
    """Blocks that a step added while the run went on, with their constants."""

    by: str
    into: str
    blocks: list[Block]
    constants: list[Value] = []


class Summary(Part, frozen=True, kw_only=True):
    """Counts of a receipt. `standing` are the steps that succeeded and were not undone, in all and by action.

    What belongs to a phase that was compensated does not stand, and what compensates is no work that could.
    """

    steps: int
    attempts: int
    standing: int
    # How many steps have each outcome; an undone step counts as `undone`, not as what it had been before.
    outcomes: dict[str, int] = {}
    actions: dict[str, int] = {}


class RunRecord(Part, frozen=True, kw_only=True):
    """What happened: one run of the plan, up to the journal's `version`."""

    id: str
    key: str
    # The outcome, or what the run was when the receipt was written.
    status: str
    # `fully` or `partly`, if it was unwound.
    unwound: str = ""
    # The hash under which the store keeps the plan alone; equal for all runs that share it.
    plan: str
    version: int
    created_at: datetime
    finished_at: datetime | None = None
    parent: str = ""
    labels: dict[str, str] = {}
    breakpoints: list[str] = []
    # Whether its steps were told to change nothing.
    dry_run: bool = False
    result: Value | None = None
    # Steps that the result needs and that did not succeed.
    missing: list[str] = []
    # Addresses of the failed steps, root cause first.
    failures: list[str] = []
    steps: list[Outcome] = []
    added: list[Added] = []
    # Phases and iterations as they were opened and settled; what policies decided; what was undone; all else.
    entries: list[Fact] = []
    decisions: list[Fact] = []
    undo: list[Fact] = []
    compensations: list[Compensation] = []
    facts: list[Fact] = []
    summary: Summary


class Signature(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One signature of an envelope. `sig` is base64; `other_headers` belongs to signatures made by gpg."""

    keyid: str
    sig: str
    other_headers: str = ""


class Envelope(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A DSSE envelope (github.com/secure-systems-lab/dsse): what was signed, in base64, and by whom."""

    payload: str
    payload_type: str
    signatures: list[Signature]


class Document(Plan, frozen=True, gc=False, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A plan that can leave its program: with its constants and its provenance, and with `run` a receipt."""

    constants: list[Any] = []  # noqa: RUF012 - msgspec gives each document a list of its own
    provenance: Provenance
    run: RunRecord | None = None
    hash: str = ""
    signature: Envelope | None = None

    @property
    def is_receipt(self) -> bool:
        """Whether it tells of a run."""
        return self.run is not None

    def plan(self) -> Plan:
        """The plan alone, as a store keeps it."""
        return Plan(**{name: getattr(self, name) for name in Plan.__struct_fields__})


# -- the tree of a document ------------------------------------------------------------------------------------------


def tree_of(document: Document) -> dict[str, Any]:
    """The document as JSON, with its format."""
    # Not by msgspec's JSON, which writes null for a number that is not finite; here it stays, and is refused later.
    tree: dict[str, Any] = json.loads(json.dumps(msgspec.to_builtins(document)))
    # A default that must be there: by it readers know what they have.
    tree["format"] = FORMAT
    return tree


def hash_of(tree: dict[str, Any]) -> str:
    """The hash that a document with this tree has.

    Raises:
        EncodeError: a part of it has no canonical form.
    """
    return digest({name: part for name, part in tree.items() if name not in _UNHASHED})


def seal(document: Document) -> Document:
    """The document with its hash, and without the signature of what it was before."""
    bare = msgspec.structs.replace(document, hash="", signature=None)
    return msgspec.structs.replace(bare, hash=hash_of(tree_of(bare)))


def document_from(reading: Reading, name: str) -> Document:
    """The document of a tree that was read from `name`.

    Raises:
        DocumentVersionError: it has another format.
        DocumentError: it is no document; every mistake with its place.
        ChecksumError: it was changed after it was written.
    """
    tree: Any = reading.tree
    _check_format(tree, name)
    try:
        found = hash_of(tree)
        # The rest must be fit to be written as well.
        canonical([tree.get(part) for part in _UNHASHED])
    except EncodeError as error:
        raise DocumentError(f"{name}: {error}", path=name) from None
    try:
        document = msgspec.convert(tree, Document, strict=True)
    except (msgspec.ValidationError, ValueError):
        document = None
    # What was read says nothing else than what was written, or a member is unknown, or spells out a default.
    if document is None or tree_of(document) != tree:
        _refuse(mistakes(tree, Document), reading, name)
    assert document is not None
    if document.hash != found:
        recorded = document.hash or "none"
        raise ChecksumError(
            f"{name}: its content has the hash {found}, and it says {recorded}: it was changed after it was written",
            path=name,
        )
    return document


def _check_format(tree: Any, name: str) -> None:
    known = cast("dict[str, Any]", tree).get("format") if isinstance(tree, dict) else None
    if not isinstance(known, str):
        raise DocumentError(f"{name}: no plan or receipt; those are objects with a `format` of {FORMAT!r}", path=name)
    if known == FORMAT:
        return
    if known.startswith(_FAMILY):
        raise DocumentVersionError(
            f"{name}: its format is {known!r}, and this treadle reads {FORMAT!r}; upgrade treadle", path=name
        )
    raise DocumentError(f"{name}: its format is {known!r}; plans and receipts have {FORMAT!r}", path=name)


def _refuse(found: Iterable[tuple[Path, str]], reading: Reading, name: str) -> None:
    """Raise what was found, if anything was; no more than can be read is looked for."""
    first = list(islice(found, _LISTED + 1))
    if not first:
        return
    lines = ["{}:{}:{}: {} (at `{}`)".format(name, *reading.place(path), said, path_text(path)) for path, said in first]
    if len(lines) > _LISTED:
        lines[_LISTED:] = [f"{name}: and more mistakes"]
    raise DocumentError("\n".join(lines), path=name)


def unreadable(error: TextError, name: str) -> DocumentError:
    """The error of a text that cannot be read at all."""
    line, column = error.place
    where = f"{name}:{line}:{column}" if line else name
    return DocumentError(f"{where}: {error}", path=name)


def path_text(path: Path) -> str:
    """A path as messages spell it: `$.blocks[0].id`."""
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


# -- signatures --------------------------------------------------------------------------------------------------------


def statement(document: Document) -> bytes:
    """What is signed: the canonical bytes of an in-toto statement that names the document's hash."""
    algorithm, _, value = document.hash.partition(":")
    name = document.run.id if document.run is not None else document.workflow
    return canonical(
        {
            "_type": STATEMENT_TYPE,
            "predicateType": PREDICATE_TYPE,
            "subject": [{"name": name, "digest": {algorithm: value}}],
        }
    )


def pre_authentication(payload: bytes, kind: str = PAYLOAD_TYPE) -> bytes:
    """The bytes that a signature of an envelope is over: DSSE's PAE of the payload and its type."""
    return b"DSSEv1 %d %b %d %b" % (len(kind.encode()), kind.encode(), len(payload), payload)


def with_signature(document: Document, signature: Signature) -> Document:
    """The document with one more signature; one by the same key is replaced."""
    known = document.signature.signatures if document.signature is not None else []
    envelope = Envelope(
        payload=base64.b64encode(statement(document)).decode(),
        payload_type=PAYLOAD_TYPE,
        signatures=[*(one for one in known if one.keyid != signature.keyid), signature],
    )
    return msgspec.structs.replace(document, signature=envelope)


def from_base64(text: str) -> bytes | None:
    """The bytes of a base64 text, None unless it is spelled as it must be: two spellings would be two signatures."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if base64.b64encode(data).decode() == text else None


# -- times -------------------------------------------------------------------------------------------------------------


def moment(seconds: float) -> datetime:
    """A time of the kernel, in seconds since the epoch, as documents have it."""
    return datetime.fromtimestamp(seconds, UTC)


def moment_or_none(seconds: float | None) -> datetime | None:
    """As `moment`; None for what has not happened (the kernel has 0 or None)."""
    return moment(seconds) if seconds else None
