"""A pytest plugin that prints what the independent checks of tests/witness/ compared and what was refused.

A test takes the fixture ``counted`` and gives it counts by name; they travel with the test's report, so they arrive from workers
of pytest-xdist too, if the plugin is loaded in the main process: ``-p tests.witness.counts``, or ``pytest_plugins`` in
tests/conftest.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

KEY = "witness"
_TOTALS: dict[str, Counter[str]] = {}


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Callable[[Mapping[str, int]], None]:
    """Adds counts to those that are printed for the test's file."""

    def add(counts: Mapping[str, int]) -> None:
        request.node.user_properties.append((KEY, [request.path.name, dict(counts)]))

    return add


def pytest_runtest_logreport(report: Any) -> None:
    """Collect what a test counted."""
    if report.when == "call":
        for key, value in report.user_properties:
            if key == KEY:
                file, counts = value
                _TOTALS.setdefault(file, Counter()).update(counts)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print them."""
    if not _TOTALS:
        return
    terminalreporter.section("independent checks")
    for file, counts in sorted(_TOTALS.items()):
        terminalreporter.write_line(file)
        for name, count in counts.items():
            terminalreporter.write_line(f"  {count:>12,}  {name}")
