"""What the site takes from elsewhere in the repository while mkdocs builds it: texts, programs, pictures, and tables of figures.

A page asks for a text by ``<!-- include: README.md#use -->`` (a section, its heading left out), for all of one below its title by
``<!-- include: results/README.md -->``, for a program by ``<!-- include: benchmarks/migrations/norse/ours.py -->``, for a table
by ``<!-- table: scaling -->``. So nothing is written twice, and no figure is typed in. Links of an included text lead to the
site's own pages and files; where the site has none, the words stay and the link goes.
"""

from __future__ import annotations

import json
import posixpath
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"results/README.md": "results.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
SECTIONS = {"results": "results.md", "speed-and-memory": "results.md", "convert-your-own-network": "tutorials/torchvision.md"}
ASK = re.compile(r"^<!-- (include|table): (\S+) -->$", re.MULTILINE)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
SHOWN = ("results/*/*.png", "results/benchmarks/*.json")  # files that the site has, by their own path


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the pictures and figures that lie outside docs/."""
    for pattern in SHOWN:
        for file in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, file.relative_to(ROOT).as_posix(), abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files, **_: Any) -> str:
    """Put in what the page asks for."""

    def answer(asked: re.Match[str]) -> str:
        kind, name = asked.groups()
        if kind == "table":
            return table(name)
        return included(name, lambda path, anchor: target(path, anchor, page.file.src_uri, files))

    return ASK.sub(answer, markdown)


def included(name: str, find: Callable[[str, str], str | None]) -> str:
    """A text with its links made the site's, or a program as a block of code."""
    path, _, anchor = name.partition("#")
    text = read(path)
    if path.endswith(".py"):
        return f"```python\n{text.strip()}\n```"
    body = section(text, anchor) if anchor else text.partition("\n")[2]
    if body is None:
        raise PluginError(f"{path} has no section {anchor!r}, which a page of docs/ includes")
    pieces = FENCED.split(body)  # links in code are not links
    pieces[::2] = [relinked(piece, posixpath.dirname(path), find) for piece in pieces[::2]]
    return "".join(pieces).strip()


def read(path: str) -> str:
    """A text of the repository."""
    if not (ROOT / path).is_file():
        raise PluginError(f"{path} is not there, and a page of docs/ includes it")
    return (ROOT / path).read_text(encoding="utf-8")


def section(text: str, anchor: str) -> str | None:
    """What stands below a heading, up to the next one of its level or above; None where there is no such heading."""
    lines, level, kept, fenced = text.splitlines(), 0, [], False
    for line in lines:
        fenced ^= line.startswith("```")
        heading = None if fenced else re.match(r"(#+) (.*)", line)
        if heading and level and len(heading[1]) <= level:
            break
        if level:
            kept.append(line)
        elif heading and slug(heading[2]) == anchor:
            level = len(heading[1])
    return "\n".join(kept) if level else None


def slug(title: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w]+", "-", title.lower()).strip("-")


def relinked(text: str, folder: str, find: Callable[[str, str], str | None]) -> str:
    """A text from a folder of the repository, its links as they are from the page that takes it in."""

    def link(found: re.Match[str]) -> str:
        picture, words, url = found.groups()
        if urlsplit(url).scheme or url.startswith("#"):
            return found[0]
        path, _, anchor = url.partition("#")
        there = find(posixpath.normpath(posixpath.join(folder, path)), anchor)
        if there is None and picture:
            raise PluginError(f"the site has no picture {url!r}, which an included text shows")
        return words if there is None else f"{picture}[{words}]({there})"

    return LINK.sub(link, text)


def target(path: str, anchor: str, source: str, files: Files) -> str | None:
    """Where a path of the repository is found from a page; None: not on the site."""
    there = SECTIONS.get(anchor) if path == "README.md" and anchor else PAGES.get(path, path.removeprefix("docs/"))
    if there is None or files.get_file_from_path(there) is None:
        return None
    return posixpath.relpath(there, posixpath.dirname(source) or ".") + (f"#{anchor}" if anchor and there != source else "")


def table(name: str) -> str:
    """A table made of what a benchmark wrote, or a note that it has not been run."""
    base = name.partition("-")[0]
    file = ROOT / "results" / "benchmarks" / f"{base}.json"
    if not file.is_file():
        return (
            f"!!! note\n    `benchmarks/{base}.py` has not been run for this page: `results/benchmarks/{base}.json` is not there."
        )
    found = json.loads(file.read_text(encoding="utf-8"))
    makers = {
        "scaling": measured,
        "scaling-model": modelled,
        "scaling-bytes": volume,
        "migration": migration,
        "sharding": sharded,
    }
    return f"{makers.get(name, contenders)(found)}\n\n{about(found)}"


def rows(head: Iterable[str], body: Iterable[Iterable[Any]]) -> str:
    """A table in Markdown."""
    titles = list(head)
    lines = [titles, ["---"] * len(titles), *(list(map(str, line)) for line in body)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def about(found: dict[str, Any]) -> str:
    """Where the figures come from."""
    on = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in on["versions"].items())
    listed = {key: " ".join(map(str, value)) if isinstance(value, list) else value for key, value in found["settings"].items()}
    said = ", ".join(f"{key} {value}" for key, value in listed.items() if value is not None)
    return (
        f"*`benchmarks/{found['benchmark']}.py` ({said}); {on['cores']} cores of {on['cpu']}, threads: {on['threads']}; "
        f"Python {on['python']}, {versions}; commit `{on['commit']}`.*"
    )


def contenders(found: dict[str, Any]) -> str:
    """Median seconds and peak memory of each, and how many times ours."""
    results = found["results"]
    if "spikeprop" not in results:  # one for each size
        (results,) = results.values()
    ours = results["spikeprop"]
    body = []
    for name, one in results.items():
        if one is None:
            body.append((name, "not installed", "", "", ""))
            continue
        time, memory = one["median"] / ours["median"], one["peak_mib"] / ours["peak_mib"]
        body.append((name, f"{one['median']:.2f}", f"{time:.1f}", f"{one['peak_mib']:.0f}", f"{memory:.1f}"))
    return rows(("", "seconds", "times ours", "MiB above idle", "times ours"), body)


def migration(found: dict[str, Any]) -> str:
    """Lines and accuracy of programs that do the same."""
    body = []
    for library, one in found["results"].items():
        accuracy = one["accuracy"]
        for i, name in enumerate(accuracy["ours"]):
            first = [f"[{library}]({one['source']})", one["lines"]["theirs"], one["lines"]["ours"]] if i == 0 else [""] * 3
            body.append([*first, name, spread(accuracy["theirs"][name]), spread(accuracy["ours"][name])])
    return rows(("", "lines, theirs", "lines, ours", "", "accuracy, theirs", "accuracy, ours"), body)


def spread(percents: list[float]) -> str:
    """Mean, lowest and highest."""
    return f"{statistics.mean(percents):.2f} ({min(percents):.2f} to {max(percents):.2f})"


def measured(found: dict[str, Any]) -> str:
    """Images a second of several processes, the batch shared (strong) or one each (weak)."""
    body = []
    for name, one in found["measured"].items():
        alone = next(iter(one["processes"].values()))
        for count, told in one["processes"].items():
            rates = [f"{told[kind]:.1f} ({told[kind] / alone[kind]:.2f} times one's)" for kind in ("strong", "weak")]
            body.append((name, count, *rates, f"{1e3 * told['all_reduce_seconds']:.2f}", f"{one['gradient_bytes'] / 1e6:.2f}"))
    return rows(("network", "processes", "strong, images/s", "weak, images/s", "all-reduce, ms", "gradient, MB"), body)


def sharded(found: dict[str, Any]) -> str:
    """Memory of the process that takes most, where each keeps all parameters or its part."""
    body = []
    for name, one in found["measured"].items():
        alone = one["rows"][0]["peak_mib"]
        for told in one["rows"]:
            kept = "its part" if told["sharded"] else "all"
            peak = f"{told['peak_mib']:,.0f} ({told['peak_mib'] / alone:.2f} times one's)"
            body.append((name, f"{one['parameters_mib']:,.0f}", told["processes"], kept, peak, f"{told['seconds']:.1f}"))
    return rows(("network", "weights, MiB", "processes", "each keeps", "peak of one, MiB", "step, s"), body)


def modelled(found: dict[str, Any]) -> str:
    """Efficiency that the model gives, with overlap and without."""
    body, counts = [], []
    for name, one in found["modelled"].items():
        for step, efficiency in one["efficiency"].items():
            bare = one["efficiency_without_overlap"][step]
            counts = list(efficiency)
            body.append((name, step, *(f"{100 * efficiency[n]:.1f} ({100 * bare[n]:.1f})" for n in counts)))
    return rows(("network", "step, s", *(f"{n} devices, %" for n in counts)), body)


def volume(found: dict[str, Any]) -> str:
    """What each of 1,000 devices sends for one step."""
    body = [(name, f"{one['bytes_sent_by_each_of_1000'] / 1e6:,.2f}") for name, one in found["modelled"].items()]
    return rows(("network", "MB that each of 1,000 devices sends a step"), body)
