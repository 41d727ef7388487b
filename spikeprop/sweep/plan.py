"""``SweepPlan``: the trials of a sweep. ``key=a,b,c`` is an axis of values, ``key=1e-5..1e-3`` a range; a grid combines all."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from spikeprop.errors import RecipeError
from spikeprop.experiment.optimizers import fixed_rates
from spikeprop.recipe import Recipe, load_recipe

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"(log:)?({NUMBER})\.\.({NUMBER})")
CLOSING = {"[": "]", "{": "}", "(": ")"}


@dataclass(frozen=True)
class SweepAxis:
    """The values of one key: a list of YAML texts, or a range from ``low`` to ``high``, of integers if both are."""

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @property
    def integers(self) -> bool:
        """Whether a range contains only integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A sweep.

    Attributes:
        recipe: name or YAML file.
        axes: of the keys that vary, and of those with one value.
        sampler: "grid" or "tpe".
        trials: number of trials of tpe.
        metric: dotted key of report.json, or None for the accuracy of the last network.
        least: whether smaller values of the metric are better.
        on: "local" for processes of this machine, "ray" for a running Ray cluster.
        jobs: number of trials that run at the same time; None for one, on a cluster as many as fit.
        threads: CPU threads of each trial; None to divide the cores among them, on a cluster for one.
        gpus: GPUs of each trial on a cluster.
        retries: how many times a trial on a cluster is started again.
        smoke: whether trials are short tests.
        seed: of tpe.
    """

    recipe: str
    axes: tuple[SweepAxis, ...]
    sampler: str = "grid"
    trials: int = 20
    metric: str | None = None
    least: bool = False
    on: str = "local"
    jobs: int | None = None
    threads: int | None = None
    gpus: float = 0.0
    retries: int = 2
    smoke: bool = False
    seed: int = 0

    @classmethod
    def of(cls, recipe: str, axes: Sequence[str], **settings: Any) -> SweepPlan:
        """A plan from the arguments of the command line.

        Raises:
            RecipeError: an axis that cannot be parsed, a key given twice, a range in a grid, or values that no trial accepts.
        """
        plan = cls(recipe=recipe, axes=tuple(parse_axis(text) for text in axes), **settings)
        keys = [axis.key for axis in plan.axes]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise RecipeError(f"{twice} is given twice; list its values in one: {twice}=a,b")
        ranged = next((axis for axis in plan.axes if not axis.values), None)
        if plan.sampler == "grid" and ranged is not None:
            raise RecipeError(f"{ranged.key} is a range, and a grid needs values; list them, or use --sampler tpe")
        plan.first()
        return plan

    @property
    def varied(self) -> list[str]:
        """The keys with more than one value."""
        return [axis.key for axis in self.axes if len(axis.values) != 1]

    def grid(self) -> Iterator[dict[str, str]]:
        """All combinations; the values of the last key vary fastest."""
        for values in itertools.product(*(axis.values for axis in self.axes)):
            yield {axis.key: value for axis, value in zip(self.axes, values)}

    def notes(self) -> list[str]:
        """What an axis of a learning rate leaves as it is, where the optimiser has other rates that are no axes."""
        keys, found = [axis.key for axis in self.axes], fixed_rates(self.first().experiment)
        others = [key for key in keys if key.endswith("_lr")]
        return [
            text for path, text in found.items()
            if path in keys and not any(key.startswith(f"{path.removesuffix('lr')}optimizer.") for key in others)
        ]  # fmt: skip

    def first(self) -> Recipe:
        """The recipe with the first values that it accepts.

        Raises:
            RecipeError: it refuses every value: then the key is wrong; one invalid value is a failed trial.
        """
        ends = tuple(SweepAxis(a.key, a.values or (repr(a.low),)) for a in self.axes)
        first: RecipeError | None = None
        for values in itertools.product(*(axis.values for axis in ends)):
            try:
                return load_recipe(self.recipe, [f"{axis.key}={value}" for axis, value in zip(ends, values)])
            except RecipeError as error:
                first = first or error
        assert first is not None
        raise first

    def identity(self) -> dict[str, Any]:
        """JSON values that identify the sweep; how many trials there are and where they run is not among them."""
        axes = {a.key: list(a.values) or {"low": a.low, "high": a.high, "log": a.log} for a in self.axes}
        recipe = load_recipe(self.recipe, []).describe()
        own = {"metric": self.metric, "least": self.least, "seed": self.seed} if self.sampler == "tpe" else {}
        return {"recipe": recipe, "axes": axes, "sampler": self.sampler, "smoke": self.smoke, **own}


def parse_axis(text: str) -> SweepAxis:
    """``key=a,b,c``, ``key=LOW..HIGH`` or ``key=log:LOW..HIGH``.

    Raises:
        RecipeError: no key, no value, a value twice, brackets that do not close, or an invalid range.
    """
    key, sign, written = text.partition("=")
    if not sign or not key or not written:
        raise RecipeError(f"{text!r}: write it as path.to.key=value,value")
    found = RANGE.fullmatch(written)
    if found is not None:
        low, high = (float(end) if re.search(r"[.eE]", end) else int(end) for end in found.group(2, 3))
        if not low < high or (found[1] and low <= 0):
            raise RecipeError(f"{text!r}: a range goes from a smaller number to a larger one, a logarithmic one from above 0")
        return SweepAxis(key, (), low, high, bool(found[1]))
    values = split_values(written, text)
    twice = next((value for value in values if values.count(value) > 1), None)
    if "" in values or twice is not None:
        raise RecipeError(f"{text!r}: " + (f"{twice} is there twice" if twice else "there is nothing between two commas"))
    return SweepAxis(key, tuple(values))


def split_values(written: str, text: str = "") -> list[str]:
    """Split at commas outside brackets and quotes.

    Raises:
        RecipeError: brackets or quotes that do not close.
    """
    parts, open_, quote = [""], [], ""
    for letter in written:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in CLOSING:
            open_.append(CLOSING[letter])
        elif open_ and letter == open_[-1]:
            open_.pop()
        elif letter in CLOSING.values():
            raise RecipeError(f"{text or written!r}: {letter!r} closes nothing")
        if letter == "," and not quote and not open_:
            parts.append("")
        else:
            parts[-1] += letter
    if open_ or quote:
        raise RecipeError(f"{text or written!r}: {(open_ or [quote])[-1]!r} is missing")
    return [part.strip() for part in parts]
