"""What is refused, and why: the error classes, and under each the messages with which the code raises it."""

from __future__ import annotations

import ast
import functools
import html
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT / "spikeprop", ROOT / "hardware" / "spikeprop_hardware")
LONGEST = 28  # characters of an expression in a message; longer ones are shown as dots


def refusals() -> str:
    """A section for each error class: its docstring, then its messages by room."""
    messages = collect()
    parts = []
    for name, cls in error_classes().items():
        parts += [f"## {name}", inspect.cleandoc(cls.__doc__ or "").replace("``", "`")]
        for room, found in sorted(messages.get(name, {}).items()):
            parts.append("\n".join([f"**{room}**", "", *(f"- {shown(text)}" for text in found)]))
    return "\n\n".join(parts)


def error_classes() -> dict[str, type]:
    """All errors of spikeprop and of spikeprop-hardware by name, in the order of the catalogue."""
    from spikeprop import errors

    return {
        name: value for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, errors.SpikepropError)
    }


@functools.cache
def collect() -> dict[str, dict[str, list[str]]]:
    """Messages by class and room, each once."""
    names = set(error_classes())
    found: dict[str, dict[str, list[str]]] = {}
    for package in PACKAGES:
        for file in sorted(package.rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for name, message in (*_raised(tree, names), *_fixed(tree, names)):
                texts = found.setdefault(name, {}).setdefault(_room(file, package), [])
                if message not in texts:
                    texts.append(message)
    return found


def _room(file: Path, package: Path) -> str:
    first = file.relative_to(package).parts[0].removesuffix(".py")
    return "hardware" if package.name == "spikeprop_hardware" else "all rooms" if first == "errors" else first


def _raised(tree: ast.AST, names: set[str]) -> Iterator[tuple[str, str]]:
    """The class and the message of each call of an error class, nearly all of them in a raise statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and node.args:
            message = template(node.args[0])
            if message is not None:
                yield node.func.id, message


def _fixed(tree: ast.AST, names: set[str]) -> Iterator[tuple[str, str]]:
    """Messages that classes make themselves."""
    for owner in ast.walk(tree):
        if not (isinstance(owner, ast.ClassDef) and owner.name in names):
            continue
        for node in ast.walk(owner):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "__init__" and node.args:
                message = template(node.args[0])
                if message is not None:
                    yield owner.name, message


def template(node: ast.expr) -> str | None:
    """A message with its expressions in braces; None where none of it is written there."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        words = "".join(str(p.value) for p in node.values if isinstance(p, ast.Constant))
        return "".join(_piece(part) for part in node.values) if re.search(r"\w", words) else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = [template(node.left), template(node.right)]
        return None if sides == [None, None] else "".join("{...}" if side is None else side for side in sides)
    if isinstance(node, ast.BoolOp | ast.IfExp):
        last = node.values[-1] if isinstance(node, ast.BoolOp) else node.body
        return template(last)
    return None


def _piece(part: ast.expr) -> str:
    if isinstance(part, ast.FormattedValue):
        text = ast.unparse(part.value)
        return "{" + (text if len(text) <= LONGEST else "...") + "}"
    return str(part.value) if isinstance(part, ast.Constant) else ""


def shown(message: str) -> str:
    """A message as HTML, its expressions as code."""
    pieces = re.split(r"(\{[^{}]*\})", " ".join(message.split()))
    return "".join(f"<code>{_text(p[1:-1])}</code>" if p.startswith("{") else _text(p) for p in pieces)


def _text(text: str) -> str:
    """Text in which nothing is Markdown."""
    return re.sub(r"[*_`\[\]\\|]", lambda found: f"&#{ord(found[0])};", html.escape(text, quote=False))
