"""Migration from another library: a tutorial's task written with it and with spikeprop; lines of code and accuracy.

python benchmarks/migration.py --out results/benchmarks/migration.json

Each folder of ``benchmarks/migrations`` contains two complete programs, ``theirs.py`` and ``ours.py``, for the same task with
the same images, number of epochs, optimiser and batch size, on MNIST in $SPIKEPROP_DATA. Blank lines, comments and docstrings
are not counted; both programs are formatted alike. Accuracy is in percent, by seed; with few images it shows that both programs
learn, not which library is better.
"""

from __future__ import annotations

import argparse
import io
import runpy
import statistics
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import save

from spikeprop.runtime.progress import bar

PROGRAMS = Path(__file__).with_name("migrations")
TASKS = {
    "spikingjelly": ("train a CNN, convert it", "https://spikingjelly.readthedocs.io/zh_CN/latest/tutorials/en/ann2snn.html"),
    "snntorch": ("train leaky neurons", "https://snntorch.readthedocs.io/en/latest/tutorials/tutorial_5.html"),
    "norse": ("train leaky neurons", "https://github.com/norse/notebooks"),
}
NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def main(argv: Sequence[str] | None = None) -> None:
    options = _options(argv)
    found = {library: _compared(library, options) for library in options.libraries}
    print(table(found))
    save(__file__, options, results=found)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", nargs="+", choices=list(TASKS), default=list(TASKS), help="default all")
    parser.add_argument("--images", type=int, default=6000, help="to train on; default 6000")
    parser.add_argument("--tests", type=int, default=1000, help="to test on; default 1000")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    return parser.parse_args(argv)


def _compared(library: str, options: argparse.Namespace) -> dict[str, Any]:
    """Lines of both programs, and what they print, by seed."""
    task, source = TASKS[library]
    lines, accuracy = {}, {}
    for side in ("theirs", "ours"):
        file = PROGRAMS / library / f"{side}.py"
        program = runpy.run_path(str(file))["main"]
        printed = []
        with bar(f"{library}, {side}", total=len(options.seeds), unit="seed") as shown:
            for seed in options.seeds:
                printed.append(program(options.images, options.tests, seed))
                shown.update()
        lines[side] = code_lines(file.read_text())
        accuracy[side] = {name: [one[name] for one in printed] for name in printed[0]}
    return {"task": task, "source": source, "lines": lines, "accuracy": accuracy}


def code_lines(source: str) -> int:
    """Lines of a program that hold code; blank lines, comments and docstrings do not."""
    held: set[int] = set()
    starts = True  # of a statement: a string that is one is a docstring
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in NOT_CODE:
            starts = starts or token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
            continue
        if not (starts and token.type == tokenize.STRING):
            held |= set(range(token.start[0], token.end[0] + 1))
        starts = False
    return len(held)


def table(found: dict[str, Any]) -> str:
    """Lines of code, and mean accuracy with the lowest and highest seed's, of theirs and ours."""
    rows = [f"{'':<14}{'':<8}{'lines':>10}{'ours':>6}   {'accuracy, theirs':<26}ours"]
    for library, one in found.items():
        for i, name in enumerate(one["accuracy"]["ours"]):
            lines = [one["lines"][side] if i == 0 else "" for side in ("theirs", "ours")]
            shown = [spread(one["accuracy"][side][name]) for side in ("theirs", "ours")]
            rows.append(f"{library if i == 0 else '':<14}{name:<8}{lines[0]:>10}{lines[1]:>6}   {shown[0]:<26}{shown[1]}")
    return "\n".join(rows)


def spread(percents: Sequence[float]) -> str:
    """Mean, and where it was lowest and highest."""
    return f"{statistics.mean(percents):.2f} ({min(percents):.2f} to {max(percents):.2f})"


if __name__ == "__main__":
    main()
