"""``Card``: one operation's derivative, derived twice (directly, and by the chain rule), every line of it evaluable.

A line states what a quantity equals: ``Equation("z_bar", "a - y")``. Quantities are the operation's inputs, its intermediate
results, and their cotangents: x_bar = dL/dx for a scalar L. A card contains an example and the operation itself in torch, so
``truth`` can compute each quantity with autograd, and ``values`` evaluates the right-hand side of each line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from spikeprop.plugins.derivatives.formula import Formula, symbol

Tensors = dict[str, Tensor]
_LEFT = re.compile(r"^(?P<name>\w+)(\[(?P<indices>[\w, ]+)\])?$")
_LOCAL = re.compile(r"^d\((?P<out>\w+), (?P<over>\w+)\)$")


@dataclass(frozen=True)
class Equation:
    """One line of a derivation: a quantity and the expression that it equals.

    Attributes:
        of: left-hand side: "z_bar", entries "x_bar[n, i]", or the elementwise derivative "d(a, z)".
        text: right-hand side, in the syntax of ``Formula``.
        why: a short reason.
    """

    of: str
    text: str
    why: str = ""

    @property
    def name(self) -> str:
        """Name of the quantity in ``Card.truth``."""
        found = _LEFT.match(self.of)
        return found["name"] if found else self.of

    @property
    def formula(self) -> Formula:
        """The right-hand side."""
        found = _LEFT.match(self.of)
        listed = found["indices"] if found and found["indices"] else ""
        return Formula(self.text, tuple(part.strip() for part in listed.split(",") if part.strip()))

    def latex(self) -> str:
        """The line in LaTeX."""
        return f"{self._left()} = {self.formula.latex()}"

    def _left(self) -> str:
        local = _LOCAL.match(self.of)
        if local:
            return rf"\frac{{\partial {symbol(local['out'])}}}{{\partial {symbol(local['over'])}}}"
        found = _LEFT.match(self.of)
        assert found is not None, self.of
        name = symbol(found["name"])
        if not found["indices"]:
            return name
        inside = ",".join(symbol(part) for part in self.formula.indices)
        return rf"\left({name}\right)_{{{inside}}}" if "_" in name else f"{name}_{{{inside}}}"


@dataclass(frozen=True, kw_only=True)
class Card:
    """The derivative of one operation.

    Attributes:
        key: short name.
        title: displayed name.
        about: one or two sentences.
        symbols: meaning of each symbol.
        forward: lines that compute the output.
        direct: lines that derive the cotangents from the definition.
        chain: lines that derive them by the chain rule; the last line of each cotangent is its closed form.
        example: random inputs of the operation and cotangents of its outputs; float64.
        wanted: inputs to differentiate by.
        operation: the operation in torch, from the inputs to all other quantities.
        outputs: the quantities with given cotangents; ("L",) for a loss.
        source: reference.
        more_truth: computes further quantities from the known ones.
    """

    key: str
    title: str
    about: str
    symbols: Mapping[str, str]
    forward: tuple[Equation, ...]
    direct: tuple[Equation, ...]
    chain: tuple[Equation, ...]
    example: Callable[[Generator], Tensors]
    wanted: tuple[str, ...]
    operation: Callable[[Tensors], Tensors]
    outputs: tuple[str, ...]
    source: str = ""
    more_truth: Callable[[Tensors], Tensors] = field(default=lambda known: {})

    def truth(self, inputs: Tensors) -> Tensors:
        """All quantities for these inputs; cotangents and elementwise derivatives come from autograd."""
        leaves = {name: t.clone().requires_grad_() if name in self.wanted else t for name, t in inputs.items()}
        with torch.enable_grad():
            found = {**leaves, **self.operation(leaves)}
            loss = found["L"] if self.outputs == ("L",) else sum((found[o] * inputs[f"{o}_bar"]).sum() for o in self.outputs)
        assert isinstance(loss, Tensor)
        known = {name: t.detach() for name, t in found.items()}
        moving = {n: t for n, t in found.items() if t.requires_grad and n != "L" and n not in self.outputs}
        grads = torch.autograd.grad(loss, list(moving.values()), retain_graph=True, allow_unused=True)
        known |= {f"{name}_bar": g for name, g in zip(moving, grads) if g is not None}
        known |= {of: self._local(of, found) for of in self._locals()}
        return known | self.more_truth(known)

    def values(self, known: Tensors) -> list[tuple[Equation, Tensor]]:
        """Every line with the value of its right-hand side, given the true values of the quantities."""
        steps = (*self.forward, *self.direct, *self.chain)
        shapes = [tuple(known[step.name].shape) for step in steps]
        return [(step, step.formula.evaluate(known, shape).expand(shape)) for step, shape in zip(steps, shapes)]

    def evaluate(self, name: str, known: Tensors, shape: tuple[int, ...] = ()) -> Tensor:
        """The closed form of a quantity: the last line about it, preferably one for complete tensors."""
        steps = [s for s in (*self.forward, *self.direct, *self.chain) if s.name == name]
        if not steps:
            raise KeyError(f"the card {self.key!r} has no line about {name!r}")
        complete = [s for s in steps if not s.formula.indices]
        return (complete or steps)[-1].formula.evaluate(known, shape)

    def _locals(self) -> set[str]:
        return {s.of for s in (*self.forward, *self.direct, *self.chain) if _LOCAL.match(s.of)}

    @staticmethod
    def _local(of: str, found: Tensors) -> Tensor:
        match = _LOCAL.match(of)
        assert match is not None
        return torch.autograd.grad(found[match["out"]].sum(), found[match["over"]], retain_graph=True)[0]

    def describe(self) -> dict[str, object]:
        """The content for a page: LaTeX and texts."""
        lines = {
            name: [{"latex": step.latex(), "why": step.why, "formula": f"{step.of} = {step.text}"} for step in steps]
            for name, steps in (("statement", self.forward), ("direct", self.direct), ("chain", self.chain))
        }
        return {
            "title": self.title,
            "about": self.about,
            "source": self.source,
            "symbols": [{"latex": symbol(name), "means": words} for name, words in self.symbols.items()],
            **lines,
        }


def normal(generator: Generator, *shape: int) -> Tensor:
    """Standard normal numbers in float64, for examples."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)
