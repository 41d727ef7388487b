"""``Problems``: collects the mistakes of a recipe's parts, so that one message names them all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from spikeprop.errors import RecipeError, SpikepropError


class Problems:
    """Mistakes that were found so far, each once, in order."""

    def __init__(self) -> None:
        self._errors: list[SpikepropError] = []

    def __bool__(self) -> bool:
        return bool(self._errors)

    def add(self, *messages: str) -> None:
        """Add mistakes."""
        self._errors += [RecipeError(message) for message in messages]

    @contextmanager
    def collected(self) -> Iterator[None]:
        """An error of ours in this context is collected, and the work goes on after the context."""
        try:
            yield
        except SpikepropError as error:
            self._errors.append(error)

    def raise_all(self) -> None:
        """Raise what was collected, if anything: the only error as it was, several as one.

        Raises:
            RecipeError: with a line for each mistake; or the only error.
        """
        messages = {text: None for error in self._errors for text in getattr(error, "problems", (str(error),))}
        if len(messages) == 1:
            raise self._errors[0]
        if messages:
            raise RecipeError(*messages)
