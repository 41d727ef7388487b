"""Docstrings as the site reads them: an entry for several names, ``a, b: text``, becomes one for each name."""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"(\s*)(?:Args|Attributes):$")
SEVERAL = re.compile(r"(\s+)(\w+(?:, \w+)+):(.*)$")


class OneNameAnEntry(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = one_name_an_entry(obj.docstring.value)


def one_name_an_entry(text: str) -> str:
    """The docstring with each entry of "Args:" and "Attributes:" for one name."""
    found: list[str] = []
    lines, inside = text.splitlines(), None  # indentation of the section's title
    for number, line in enumerate(lines):
        title, entry = SECTION.match(line), SEVERAL.match(line)
        if title:
            inside = len(title[1])
        elif inside is not None and line.strip() and _indent(line) <= inside:
            inside = None
        if inside is None or entry is None or _indent(line) != inside + 4:
            found.append(line)
            continue
        rest = _continued(lines[number + 1 :], len(entry[1]))
        *others, last = entry[2].split(", ")
        for name in others:
            found += [f"{entry[1]}{name}:{entry[3]}", *rest]
        found.append(f"{entry[1]}{last}:{entry[3]}")  # its further lines come by themselves
    return "\n".join(found)


def _continued(lines: list[str], indent: int) -> list[str]:
    """The lines that belong to an entry."""
    end = next((i for i, line in enumerate(lines) if _indent(line) <= indent), len(lines))
    return lines[:end]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
