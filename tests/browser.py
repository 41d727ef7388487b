"""A tab of the shared browser that records its requests and console messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

OFFLINE = ("file:", "about:", "data:", "blob:")  # addresses that need no network


@dataclass
class Tab:
    """The requests and console messages of a page."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def fetched(self) -> list[str]:
        """Requested addresses that need a network."""
        return [url for url in self.requests if not url.startswith(OFFLINE)]


@contextmanager
def open_tab(chromium: Any, kind: type[Tab] = Tab, *, height: int = 900) -> Iterator[Any]:
    """A new tab of a kind, which records from the start."""
    context = chromium.new_context(viewport={"width": 1280, "height": height}, accept_downloads=True)
    found = kind(context.new_page())
    found.page.on("request", lambda r: found.requests.append(r.url))
    found.page.on("console", lambda m: m.type in ("error", "warning") and found.complaints.append(m.text))
    found.page.on("pageerror", lambda e: found.complaints.append(str(e)))
    yield found
    context.close()
