"""One self-contained HTML file: data, script, style and the typesetter (KaTeX, MIT licence, with its fonts as data).

A content security policy in the page forbids every request, so the page works without a network.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from spikeprop.plugins.explain.numbers import written
from spikeprop.runtime.files import write_text

FOLDER = Path(__file__).parent / "page"
SCRIPTS = (
    "operations", "layers", "cells", "network", "views", "numpy", "graph", "story", "inspect", "code", "panels", "quiz", "app",
)  # fmt: skip


def page_html(data: Mapping[str, Any]) -> str:
    """The page for the data of a step (``page_data``)."""
    parts = {
        "title": html.escape(f"{data['name']}: backpropagation explained"),
        "style": f"{_typesetter_style()}\n{_read('style.css')}",
        "data": json.dumps(written(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "script": _scripts(),
    }
    return re.sub(r"@(title|style|data|script)@", lambda found: parts[found[1]], _read("template.html"))


def write_page(path: Path, data: Mapping[str, Any]) -> int:
    """Write the page atomically; returns its size in bytes."""
    text = page_html(data)
    write_text(path, text)
    return len(text.encode())


@cache
def _scripts() -> str:
    own = (_read(f"{name}.js").replace('"use strict";\n', "", 1) for name in SCRIPTS)
    return "\n".join([_read("katex/katex.min.js"), '"use strict";', *own]).replace("</script", "<\\/script")


@cache
def _typesetter_style() -> str:
    """KaTeX's style with the fonts that the cards need as data, and without the others."""
    faces: list[str] = []

    def face(found: re.Match[str]) -> str:
        name = re.search(r"fonts/(KaTeX_[\w-]+)\.woff2", found[0])
        file = FOLDER / "katex" / "fonts" / f"{name[1]}.woff2" if name else None
        if file is not None and file.exists():
            font = base64.b64encode(file.read_bytes()).decode()
            faces.append(re.sub(r"src:[^}]*", f'src:url(data:font/woff2;base64,{font}) format("woff2")', found[0]))
        return ""

    rest = re.sub(r"@font-face\{[^}]*\}", face, _read("katex/katex.min.css"))
    return "".join(faces) + rest


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
