"""Loads the plugin that prints counts, where nothing above has."""

from __future__ import annotations

import pytest

from tests.witness import counts
from tests.witness.counts import counted

__all__ = ["counted"]


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.is_registered(counts):
        config.pluginmanager.register(counts, counts.__name__)
