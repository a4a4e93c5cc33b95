"""Documents on disk: who wrote them, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from treadle.authoring import documents
from treadle.authoring.builder import Planned
from treadle.authoring.documents import Form, dump_document, read_document
from treadle.authoring.registry import Registry, default_registry
from treadle.core.documents import Document, Platform, Provenance, moment
from treadle.errors import DocumentError
from treadle.ports import Clock
from treadle.runtime.clock import RandomIds, SystemClock

# What points to the receipt that was kept last.
LATEST: Final = "latest.json"
# What a file name of every system may hold.
_UNSAFE: Final = re.compile(r"[^\w.-]+", re.ASCII)
# What writers call a file that is not whole yet, and after how long nobody writes it any more.
_DRAFT: Final = re.compile(r"\..+\.[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.tmp", re.DOTALL)
_STALE_SECONDS: Final = 3600.0
# Folders that this process has cleared of them.
_cleared: set[str] = set()
SUFFIXES: Final[dict[str, Form]] = {".json": "json", ".yaml": "yaml", ".yml": "yaml"}


def provenance(
    clock: Clock, names: Iterable[str], registry: Registry, context: Mapping[str, str] | None = None
) -> Provenance:
    """Who writes a document here and now; `names` are the functions that it calls."""
    # Slow to import, and a program that writes no document needs neither.
    import platform
    from importlib.metadata import version

    return Provenance(
        tool="treadle",
        version=version("treadle"),
        created_at=moment(clock.now()),
        platform=Platform(os=platform.system(), arch=platform.machine(), python=platform.python_version()),
        context=dict(context or {}),
        code=dict(documents.code_of(names, registry)),
    )


def plan_document(
    planned: Planned, *, context: Mapping[str, str] | None = None, registry: Registry | None = None
) -> Document:
    """The document of a plan, sealed by its hash.

    `context` is noted in its provenance (a commit, a target), with hashes of the source texts of the plan's functions.
    """
    known = registry if registry is not None else default_registry
    written = provenance(SystemClock(), documents.action_names(planned.plan), known, context)
    return documents.plan_document(planned, written)


def load_document(path: str | os.PathLike[str]) -> Document:
    """The plan or receipt in a file, JSON or YAML. Nothing that it names is imported or called.

    Raises:
        DocumentError: there is none, or it is not as it was written; every mistake with its line and column.
    """
    return read_document(bytes_of(path), os.fspath(path))


def bytes_of(path: str | os.PathLike[str]) -> bytes:
    """The content of a document's file."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DocumentError(
            f"{os.fspath(path)}: cannot be read: {error.strerror or error}", path=os.fspath(path)
        ) from None


def save_document(document: Document, path: str | os.PathLike[str]) -> Path:
    """Write a document to a file, as YAML if its name ends so, else as JSON.

    Readers see the former file or the whole new one, also after a crash or a power cut. A link stays, and what it leads
    to is written.
    """
    target = Path(path)
    if target.is_symlink():
        target = target.resolve()
    write_whole(target, dump_document(document, SUFFIXES.get(target.suffix.lower(), "json")).encode())
    return target


def keep_receipt(document: Document, folder: str | os.PathLike[str]) -> Path:
    """Write a receipt into a folder under a name that no other one has, and let `latest.json` be a link to it.

    The folder is made if it is not there. The link follows the file, so it never leads to half a receipt: after a crash
    in between it leads to the former one. Where links cannot be made, `latest.json` is a copy.

    Raises:
        DocumentError: this is no receipt, or the folder does not let it be written.
    """
    if document.run is None:
        raise DocumentError(f"this is the plan of {document.workflow!r}, and no receipt; save_document writes it")
    place = Path(folder)
    make_receipt_folder(place)
    kept = save_document(document, place / receipt_name(document))
    draft = place / f".{LATEST}.{RandomIds().key()}.tmp"
    try:
        draft.symlink_to(kept.name)
        draft.replace(place / LATEST)
        _sync_folder(place)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        write_whole(place / LATEST, bytes_of(kept))
    return kept


def make_receipt_folder(folder: Path) -> None:
    """Make the folder in which receipts are kept.

    Raises:
        DocumentError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DocumentError(
            f"{folder}: receipts cannot be kept there: {error.strerror or error}", path=str(folder)
        ) from None


def receipt_name(document: Document, suffix: str = "json") -> str:
    """A file name that only this state of this run has: by the run's key and the version of its journal."""
    if document.run is None:
        return f"{_safe(document.workflow)}-{document.hash[-12:]}.{suffix}"
    # A run without an id of its own has its key for one.
    own = "" if document.run.id == document.run.key else f"{_safe(document.run.id)}-"
    return f"{own}{document.run.key}-v{document.run.version}.{suffix}"


def _safe(text: str) -> str:
    return _UNSAFE.sub("-", text).strip("-.")[:80] or "receipt"


def write_whole(target: Path, data: bytes) -> None:
    """Replace a file's content in one step that outlives a power cut.

    Raises:
        DocumentError: the folder does not let it be written.
    """
    # Of this call alone, so that two writers do not meet in one file.
    draft = target.with_name(f".{target.name[:100]}.{RandomIds().key()}.tmp")
    try:
        with open(draft, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        written = draft.stat().st_mtime
        draft.replace(target)
        _sync_folder(target.parent)
        _clear_drafts(target.parent, written - _STALE_SECONDS)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise DocumentError(f"{target}: cannot be written: {error.strerror or error}", path=str(target)) from None


def _clear_drafts(folder: Path, before: float) -> None:
    """Remove what writers have left that were killed before that time, once for each folder."""
    place = str(folder.absolute())
    if place in _cleared:
        return
    _cleared.add(place)
    # Nobody depends on it, so what cannot be removed stays.
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _DRAFT.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_mtime < before:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; Windows has no such thing for folders."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
