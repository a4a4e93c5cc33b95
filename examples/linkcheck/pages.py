"""Pages of a site: how one is fetched, what is found on it, and which of its links are followed.

Nothing here knows of Treadle; `linkcheck.py` makes steps of it.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

FIRST = "index.html"
LISTS = frozenset({FIRST, "topics.html", "keywords.html"})
# pydoc imports what it documents. These print, open windows or a browser, or run programs when they are imported.
LOUD = frozenset(
    {"__hello__", "__phello__", "antigravity", "ensurepip", "idlelib", "lib2to3", "test", "this", "turtledemo"}
)
LOUD_PARTS = frozenset({"__main__", "test", "tests"})
# Packages with a great many pages of one kind, or pages that pydoc needs seconds for: the modules inside are left out.
SHALLOW = frozenset({"distutils", "encodings", "tkinter"})
# pydoc answers 200 whatever happens; its error pages are told by their title.
ERROR_TITLE = "Pydoc: Error"


@dataclass
class Site:
    """What is checked: the pages below the address `base`; if `only` is not empty, of these packages alone."""

    base: str
    only: list[str] = field(default_factory=list)

    def wanted(self, path: str) -> bool:
        """Whether a page is fetched. What is left out is counted, and neither right nor broken."""
        if path in LISTS:
            return True
        if path.startswith("topic?key="):
            return not self.only
        parts = unquote(path.removesuffix(".html")).split(".")
        if not path.endswith(".html") or parts[0] in LOUD or LOUD_PARTS.intersection(parts):
            return False
        if len(parts) > 1 and (parts[0] in SHALLOW or parts[1].startswith("_")):
            return False
        return not self.only or parts[0] in self.only

    def locate(self, path: str, href: str) -> tuple[str | None, str]:
        """Where a link on the page `path` leads: the path of a page (None: outside the site), and the anchor."""
        try:
            url, anchor = urldefrag(urljoin(self.base + path, href))
        except ValueError:
            # No address at all: a page that is not there.
            return href, ""
        if not url.startswith(self.base):
            return None, ""
        return url[len(self.base) :] or FIRST, unquote(anchor)


@dataclass
class Page:
    """What was found on one page. `error` is the title of an error page."""

    path: str
    status: int
    error: str
    size: int
    anchors: list[str]
    hrefs: list[str]

    @property
    def broken(self) -> bool:
        return self.status >= 400 or bool(self.error)

    def follow(self, site: Site) -> Iterator[str]:
        """The paths of the pages that this page leads to and that are to be fetched, each once."""
        found = dict.fromkeys(site.locate(self.path, href)[0] for href in self.hrefs)
        return (path for path in found if path is not None and site.wanted(path))


def read(site: Site, path: str) -> Page:
    """Fetch one page and list what is on it.

    Raises OSError or HTTPException if the server does not answer in full.
    """
    status, text = get(site.base + path)
    if status >= 500:
        raise ConnectionError(f"{path}: the server answered {status}")
    return parse(path, status, text)


def parse(path: str, status: int, text: str) -> Page:
    """List what is on a page."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    error = reader.title if reader.title.startswith(ERROR_TITLE) else ""
    return Page(path, status, error, len(text), list(reader.anchors), list(reader.hrefs))


def get(url: str, seconds: float = 20.0) -> tuple[int, str]:
    """The status and the text of a page."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=seconds)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}" if parts.query else parts.path)
        answer = connection.getresponse()
        text = answer.read().decode("utf-8", "replace")
    finally:
        connection.close()
    if not text:
        raise ConnectionError(f"{url} came without a text")
    return answer.status, text


class _Reader(HTMLParser):
    """Collects the links, the anchors and the title of a page."""

    def __init__(self) -> None:
        super().__init__()
        # As keys, so that each is kept once and in order.
        self.hrefs: dict[str, None] = {}
        self.anchors: dict[str, None] = {}
        self.title = ""
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._in_title = tag == "title"
        if tag == "a":
            if href := found.get("href"):
                self.hrefs[href] = None
            if name := found.get("name"):
                self.anchors[name] = None
        if anchor := found.get("id"):
            self.anchors[anchor] = None

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
