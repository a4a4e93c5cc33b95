"""The link checker as a package: an entrypoint, one step, its settings, and tables that anybody can query.

`sitecheck.py` is a program that serves it. Installed with the entry point `treadle.packages`, any worker does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pages import FIRST, Site, get, parse

from treadle import Package, Permanent, Projection, Queue, Retry, context, describe_run


@dataclass
class Settings:
    """What an application may set: how long a server may take, and which packages of pydoc's are checked."""

    patience: float = 20.0
    only: list[str] = field(default_factory=list)


@dataclass
class PageRecord:
    host: str
    status: int
    error: str
    size: int
    text: str


@dataclass
class LinkRecord:
    page: str
    # The page that it leads to; None: to another site.
    target: str | None
    wanted: bool


tables = Projection(
    "links",
    migrations=[
        """
        CREATE TABLE links_pages (
            url TEXT PRIMARY KEY, host TEXT, status INTEGER, error TEXT, size INTEGER, text TEXT
        );
        CREATE TABLE links_links (page TEXT, href TEXT, target TEXT, wanted INTEGER, PRIMARY KEY (page, href));
        CREATE VIEW links_broken AS
            SELECT l.page, l.href FROM links_links l JOIN links_pages p ON p.url = l.target
            WHERE p.status >= 400 OR p.error != '';
        """
    ],
)
tables.collection(
    "page",
    "INSERT OR REPLACE INTO links_pages VALUES (:key, :data ->> '$.host', :data ->> '$.status', :data ->> '$.error',"
    " :data ->> '$.size', :data ->> '$.text')",
    type=PageRecord,
)
tables.collection(
    "link",
    "INSERT OR REPLACE INTO links_links VALUES (:data ->> '$.page', substr(:key, instr(:key, ' ') + 1),"
    " :data ->> '$.target', :data ->> '$.wanted')",
    type=LinkRecord,
)

links = Package("links", title="Link check", settings=Settings, projections=[tables])

# No site is asked too often, however many processes work: the limits are the store's. Sites take turns.
http = Queue("http", concurrency=12, key_concurrency=4, key_rate="200/s", key_burst=20, fair=True)


# A page that stays unreachable does not fail the check: its step says so.
@links.step(
    queue="http", key="host", retry=Retry(attempts=4, initial="250ms", jitter=0.5), timeout="60s", optional=True
)
def visit(host: str, base: str, path: str) -> int:
    """Fetch a page; keep its text, say what is on it, have the pages visited that it leads to. Gives how many."""
    settings: Settings = links.settings
    here, site = context(), Site(base, settings.only)
    url = base + path
    status, text = get(url, settings.patience)
    if status >= 500:
        raise ConnectionError(f"{url}: the server answered {status}")
    page = parse(path, status, text)

    # The text may be large, and is read by few: an artifact. Rows that many ask for: records.
    made = here.artifact("page.html", text, content_type="text/html", metadata={"url": url}).result()
    here.record("page", url, PageRecord(host, status, page.error, page.size, made.id))
    for href in page.hrefs:
        target, _ = site.locate(path, href)
        wanted = target is not None and site.wanted(target)
        here.record("link", f"{url} {href}", LinkRecord(url, None if target is None else base + target, wanted))

    # Into the root, by host and path: however many pages lead to it, it is one step.
    found = list(page.follow(site))
    here.add(*(visit.options(id=f"{host} {target}").bind(host, base, target) for target in found), into="root")
    return len(found)


@links.entrypoint
def check(sites: list[str]) -> None:
    """Check the links of all pages below these addresses."""
    hosts = [urlsplit(base).netloc for base in sites]
    if not all(hosts):
        raise Permanent(f"these are no addresses of sites: {sites}", code="no_site")
    describe_run(
        name=f"links of {', '.join(hosts)}", labels={"hosts": str(len(hosts))}, metadata={"sites": " ".join(sites)}
    )
    for host, base in zip(hosts, sites, strict=True):
        visit.options(id=f"{host} {FIRST}").bind(host, base, FIRST)
