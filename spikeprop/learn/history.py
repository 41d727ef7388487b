"""``History``: what ``fit`` returns, one dict an epoch; a list, which a notebook shows as a table."""

from __future__ import annotations

from typing import Any

from spikeprop.errors import DataError
from spikeprop.runtime.tables import Table


class History(list[dict[str, Any]]):
    """One dict an epoch: epoch, loss, accuracy (percent; None for regression), lr, seconds, and the rule's own scalars.

    It is a list, and equal to an ordinary one of the same dicts. ``spikeprop.plot.history`` draws it.
    """

    def column(self, name: str) -> list[Any]:
        """One value of every epoch, for example ``history.column("loss")``.

        Raises:
            DataError: no epoch has it.
        """
        known = list(dict.fromkeys(key for epoch in self for key in epoch))
        if self and name not in known:
            raise DataError(f"the history has no {name!r}; it has {', '.join(known)}")
        return [epoch.get(name) for epoch in self]

    def table(self) -> Table:
        """A row an epoch."""
        heads = list(dict.fromkeys(key for epoch in self for key in epoch))
        return Table(f"{len(self)} epochs", heads, [[epoch.get(head) for head in heads] for epoch in self])

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()
