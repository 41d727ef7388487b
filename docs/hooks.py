"""What mkdocs calls while it builds the site: pages get programs, tables and references from the code, and links out of docs/.

A page asks for a text by ``<!-- include: CHANGELOG.md -->`` (all below its title), for a program by ``<!-- include: a/b.py -->``,
for a table of figures by ``<!-- table: scaling -->``, for an executed notebook by ``<!-- notebook: zoo -->``, and for a reference
by ``<!-- generated: recipe -->``. A link that leaves docs/ becomes a link to the file's copy on the site; where the site has
none, the words stay and the link goes. Pages of explain and report are written into gallery/.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmark_tables import table
from execute import page as notebook
from live_pages import live_pages
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from references import cli_reference, exit_codes, recipe_reference
from refusals import refusals

ROOT = Path(__file__).parents[1]
REQUEST = re.compile(r"^<!-- (include|table|generated|notebook): (\S+) -->$", re.MULTILINE)
REFERENCES = {"recipe": recipe_reference, "cli": cli_reference, "exit-codes": exit_codes, "refusals": refusals}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
SHOWN = ("results/*/*.png", "results/*/*.csv", "results/benchmarks/*.json")  # on the site by their own path


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the pictures and figures that lie outside docs/, and live pages in place of those of `make gallery`."""
    for pattern in SHOWN:
        for file in sorted(ROOT.glob(pattern)):
            path = file.relative_to(ROOT).as_posix()
            if files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, abs_src_path=str(file)))
    for path, text in live_pages().items():
        if (earlier := files.get_file_from_path(path)) is not None:
            files.remove(earlier)
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Put in what the page asks for, and make its links the site's."""
    source = page.file.src_uri

    def find(path: str, anchor: str) -> str | None:
        return target(path, anchor, source, files)

    def content(request: re.Match[str]) -> str:
        kind, name = request.groups()
        if kind == "include":
            return included(name, find)
        if kind == "notebook":
            return notebook(ROOT / "docs" / "notebooks" / f"{name}.ipynb")
        return table(name) if kind == "table" else REFERENCES[name]()

    return REQUEST.sub(content, relinked(markdown, posixpath.join("docs", posixpath.dirname(source)), find))


def included(path: str, find: Callable[[str, str], str | None]) -> str:
    """A text below its title, with the site's links; or a program as a block of code."""
    if not (ROOT / path).is_file():
        raise PluginError(f"{path} is not there, and a page of docs/ includes it")
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".py"):
        return f"```python\n{text.strip()}\n```"
    return relinked(text.partition("\n")[2], posixpath.dirname(path), find).strip()


def relinked(text: str, folder: str, find: Callable[[str, str], str | None]) -> str:
    """A text of a folder of the repository with the site's links; links in code are not links, and those within docs/ stay."""

    def link(found: re.Match[str]) -> str:
        picture, words, url = found.groups()
        path, _, anchor = url.partition("#")
        place = posixpath.normpath(posixpath.join(folder, path))
        if urlsplit(url).scheme or not path or (folder.startswith("docs") and place.startswith("docs/")):
            return found[0]
        there = find(place, anchor)
        if there is None and picture:
            raise PluginError(f"the site has no picture {url!r}, which a page shows")
        return words if there is None else f"{picture}[{words}]({there})"

    pieces = FENCED.split(text)
    pieces[::2] = [LINK.sub(link, piece) for piece in pieces[::2]]
    return "".join(pieces)


def target(path: str, anchor: str, source: str, files: Files) -> str | None:
    """Where a page finds a file of the repository; None: not on the site."""
    place = "changelog.md" if path == "CHANGELOG.md" else path.removeprefix("docs/")
    if files.get_file_from_path(place) is None:
        return None
    return posixpath.relpath(place, posixpath.dirname(source) or ".") + (f"#{anchor}" if anchor else "")
