"""Where the store is, and which modules a worker imports: options, environment, pyproject.toml, default."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Final

import msgspec

from treadle.errors import UsageError

DEFAULT_FILE: Final = ".treadle/treadle.db"
VARIABLE: Final = "TREADLE_STORE"
ARTIFACTS_VARIABLE: Final = "TREADLE_ARTIFACTS"
CODEC_VARIABLE: Final = "TREADLE_CODEC"
_TEXTS: Final = ("store", "artifacts", "receipts", "codec")
_LISTS: Final = ("modules", "hooks", "middleware", "events", "trusted_keys")


class Project(msgspec.Struct, frozen=True):
    """[tool.treadle] of the nearest pyproject.toml; `folder` is where that file lies."""

    folder: Path
    store: str = ""
    # Where artifacts are kept, if not beside the store.
    artifacts: str = ""
    # The folder in which `treadle run` keeps receipts.
    receipts: str = ""
    # Where the keys are with which payloads are encrypted.
    codec: str = ""
    modules: list[str] = []
    # `module:name` of hooks and middleware, in their order.
    hooks: list[str] = []
    middleware: list[str] = []
    # `module:name` of event sinks.
    events: list[str] = []
    # Public keys whose signatures of documents count, or files of them.
    trusted_keys: list[str] = []

    def keys(self) -> list[str]:
        """The trusted keys; files that are named relative to the project's folder by their whole path."""
        return [key if key.startswith(("ssh-", "gpg:")) else str(self.folder / key) for key in self.trusted_keys]

    def receipt_folder(self) -> Path | None:
        """The folder of receipts, if the project keeps them."""
        return self.folder / self.receipts if self.receipts else None


def find_project(start: Path) -> Project:
    """The settings of the project around a folder; the empty ones if there is none."""
    for folder in (start, *start.parents):
        file = folder / "pyproject.toml"
        if file.is_file():
            return _read(file)
    return Project(start)


def _read(file: Path) -> Project:
    try:
        table: Any = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get("treadle", {})
        known: dict[str, Any] = msgspec.convert(table, dict[str, Any])
        extra = sorted(known.keys() - {*_TEXTS, *_LISTS})
        if extra:
            raise UsageError(
                f"{file}: [tool.treadle] has no setting {extra[0]!r}; there are {', '.join((*_TEXTS, *_LISTS))}"
            )
        return Project(
            file.parent,
            store=msgspec.convert(known.get("store", ""), str),
            artifacts=msgspec.convert(known.get("artifacts", ""), str),
            receipts=msgspec.convert(known.get("receipts", ""), str),
            codec=msgspec.convert(known.get("codec", ""), str),
            **{name: msgspec.convert(known.get(name, []), list[str]) for name in _LISTS},
        )
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, AttributeError) as error:
        raise UsageError(f"{file}: [tool.treadle] cannot be read: {error}") from None


def store_url(option: str | None, start: Path) -> str:
    """The URL of the store, by the first place that names one."""
    text = option or os.environ.get(VARIABLE, "")
    if text:
        return as_url(text, None)
    project = find_project(start)
    if project.store:
        return as_url(project.store, project.folder)
    return as_url(DEFAULT_FILE, None)


def artifacts_place(start: Path) -> str | None:
    """Where artifacts are kept, if it is said anywhere; a path in a file is relative to its folder."""
    text = os.environ.get(ARTIFACTS_VARIABLE, "")
    if text:
        return text
    project = find_project(start)
    if not project.artifacts:
        return None
    return project.artifacts if "://" in project.artifacts else str(project.folder / project.artifacts)


def payload_codec(start: Path) -> str | None:
    """The payload codec, if one is named anywhere; a file of keys that a file names is relative to its folder."""
    text = os.environ.get(CODEC_VARIABLE, "")
    if text:
        return text
    project = find_project(start)
    scheme, _, rest = project.codec.partition(":")
    return f"file:{project.folder / rest}" if scheme == "file" else project.codec or None


def as_url(text: str, folder: Path | None) -> str:
    """The URL of a text that may be a plain path. Relative paths of a file are relative to its folder."""
    if "://" not in text and text not in ("memory", "memory:"):
        text = "sqlite:///" + _escaped(text)
    if folder is None or not text.startswith("sqlite:///") or text.startswith("sqlite:////"):
        return text
    return "sqlite:///" + _escaped(str(folder)) + "/" + text.removeprefix("sqlite:///")


def _escaped(path: str) -> str:
    """A path as a URL has it: what the URL's grammar uses is percent-encoded."""
    for character in "%?#":
        path = path.replace(character, f"%{ord(character):02X}")
    return path.replace("\\", "/")


def make_folder(url: str) -> None:
    """Make the folder of the default file; a folder that a person named must exist, or it is a typing mistake."""
    if url == as_url(DEFAULT_FILE, None):
        folder = Path(DEFAULT_FILE).parent
        folder.mkdir(exist_ok=True)
        ignore = folder / ".gitignore"
        if not ignore.exists():
            # A store is no source; nobody wants it in a commit.
            ignore.write_text("*\n", encoding="utf-8")
