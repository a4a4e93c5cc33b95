"""The report of a crawl: figures computed from the pages alone, and the text that people read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pages import Page, Site

SHOWN = 8


@dataclass
class Figures:
    """What the links of a site are. A link is counted once for each page that holds it."""

    pages: int = 0
    error_pages: int = 0
    links: int = 0
    good: int = 0
    # To pages that are not there, as `page -> href`.
    broken: list[str] = field(default_factory=list)
    # To anchors that the page, which is there, does not have.
    broken_anchors: list[str] = field(default_factory=list)
    # Not followed: to other sites, and to pages that the rule leaves out.
    outside: int = 0
    left_out: int = 0
    # Pages that should have been fetched and were not: the crawl is incomplete.
    missing: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def figures_of(site: Site, pages: Mapping[str, Page]) -> Figures:
    """Judge every link of every page."""
    found = Figures(pages=len(pages), error_pages=sum(page.broken for page in pages.values()))
    anchors = {path: frozenset(page.anchors) for path, page in pages.items()}
    missing: set[str] = set()
    for path, page in sorted(pages.items()):
        for href in page.hrefs:
            found.links += 1
            target, anchor = site.locate(path, href)
            if target is None:
                found.outside += 1
            elif target not in pages:
                found.left_out += 1
                if site.wanted(target):
                    missing.add(target)
            elif pages[target].broken:
                found.broken.append(f"{path} -> {href}")
            elif anchor and anchor not in anchors[target]:
                found.broken_anchors.append(f"{path} -> {href}")
            else:
                found.good += 1
    found.missing = sorted(missing)
    return found


def text_of(figures: Figures, work: Mapping[str, Any]) -> str:
    """The report as text; `work` holds what the store tells of the run."""
    lines = [
        f"pages           {figures.pages:>7,}   ({figures.error_pages} of them error pages)",
        f"links           {figures.links:>7,}",
        f"  good          {figures.good:>7,}",
        f"  broken        {len(figures.broken):>7,}   to pages that are not there",
        f"                {len(figures.broken_anchors):>7,}   to anchors that are not there",
        f"  outside       {figures.outside:>7,}   counted, not fetched",
        f"  left out      {figures.left_out:>7,}   modules with side effects, and those the rule leaves out",
        f"unreachable     {len(work['unreachable']):>7,}",
        f"time            {work['seconds']:>7.1f} s",
        f"steps a second  {work['steps_per_s']:>7.1f}",
        f"attempts        {work['attempts']:>7,}   ({work['retried']} tried again, {work['lost']} lost with a process)",
    ]
    for title, items in (
        ("broken links", figures.broken),
        ("broken anchors", figures.broken_anchors),
        ("unreachable pages", work["unreachable"]),
        ("MISSING PAGES", figures.missing),
    ):
        if items:
            lines += ["", f"{title}:", *(f"  {item}" for item in items[:SHOWN])]
            if len(items) > SHOWN:
                lines.append(f"  and {len(items) - SHOWN:,} more")
    return "\n".join(lines)
