"""Fuzzes one kind of file with the choices of Hypothesis (which shrinks a failure) or of atheris (which follows coverage).

``python -m tests.fuzz.steered hypothesis|atheris KIND COUNT FOLDER``; the exit code is not 0 after a finding.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fuzz.guard import Guard

WATCHED = [
    "spikeprop.recipe",
    "spikeprop.data.cifar_pickles",
    "spikeprop.data.events",
    "spikeprop.data.sequences",
    "pickle",
    "yaml.scanner",
    "yaml.parser",
    "yaml.composer",
]


def by_hypothesis(kind: str, count: int, guard: Guard) -> None:
    """Read ``count`` files; raises AssertionError with the smallest choices that fail."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    from tests.fuzz.targets import one

    patient = [HealthCheck.too_slow, HealthCheck.data_too_large]

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=patient,
        phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def read(source: random.Random) -> None:
        content, wrong = one(kind, source, guard)
        assert wrong is None, f"{content[:2000]!r}: {wrong}"

    read()


def by_atheris(kind: str, count: int, guard: Guard) -> None:
    """Read ``count`` files whose bytes atheris changes; atheris ends the process."""
    import atheris

    from tests.fuzz.seeds import seeds
    from tests.fuzz.targets import attempt

    corpus = guard.folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(seeds(kind)):
        (corpus / str(number)).write_bytes(seed.content)

    def read(content: bytes) -> None:
        wrong = attempt(kind, content, guard)
        if wrong is not None:
            raise AssertionError(wrong)

    options = f"-runs={count} -max_len=8192 -seed=1 -verbosity=0 -rss_limit_mb=0 -artifact_prefix={guard.folder}/".split()
    atheris.Setup([sys.argv[0], *options, str(corpus)], read)
    atheris.Fuzz()


def main(tool: str, kind: str, count: str, folder: str) -> None:
    how: Any = {"hypothesis": by_hypothesis, "atheris": by_atheris}[tool]
    if tool == "atheris":
        import atheris

        sys.modules.pop("pickle", None)  # already imported, and so not instrumented
        with atheris.instrument_imports(include=WATCHED):  # pyright: ignore[reportAttributeAccessIssue]
            import tests.fuzz.targets  # noqa: F401 - and with it all readers
    from tests.fuzz.targets import limited, ready

    guard = ready(Path(folder))
    limited()
    how(kind, int(count), guard)


if __name__ == "__main__":
    main(*sys.argv[1:])
