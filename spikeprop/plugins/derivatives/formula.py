"""``Formula``: an expression in Python's syntax that is both typeset in LaTeX and evaluated on tensors.

So the tests evaluate exactly what a card shows. Names are tensors (``x_bar`` is the cotangent dL/dx, typeset as an x with a bar);
``*`` is elementwise, ``@`` a matrix product, and a comparison is an indicator with values 1 and 0 (Iverson bracket). Two forms:

    y_bar @ W                                 complete tensors
    Sum(y_bar[n, j] * W[j, i], j)             entries: n and i are free indices; the left-hand side x_bar[n, i] gives their order

An entry outside of its tensor is zero, so padding and the limits of time need no special cases.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Env = Mapping[str, Tensor]


def _copyltu(x: Tensor) -> Tensor:
    """Lower triangle mirrored to the upper triangle."""
    return x.tril() + x.tril(-1).mT


# name: (function, LaTeX template; {} is the argument, {{}} a literal brace)
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], str]] = {
    "exp": (torch.exp, r"e^{{{}}}"),
    "log": (torch.log, r"\ln\left({}\right)"),
    "sqrt": (torch.sqrt, r"\sqrt{{{}}}"),
    "abs": (torch.abs, r"\left|{}\right|"),
    "sign": (torch.sign, r"\operatorname{{sgn}}\left({}\right)"),
    "sigmoid": (torch.sigmoid, r"\sigma\left({}\right)"),
    "tanh": (torch.tanh, r"\tanh\left({}\right)"),
    "erf": (torch.erf, r"\operatorname{{erf}}\left({}\right)"),
    "softmax": (lambda x: torch.softmax(x, -1), r"\operatorname{{softmax}}\left({}\right)"),
    "T": (lambda x: x.mT, r"{}^{{\top}}"),
    "inverse": (torch.linalg.inv, r"{}^{{-1}}"),
    "copyltu": (_copyltu, r"\operatorname{{copyltu}}\left({}\right)"),
    "total": (torch.sum, r"\sum {}"),
    "over_rows": (lambda x: x.sum(0), r"\sum_{{n}} {}"),
    "along": (lambda x: x.sum(-1, keepdim=True), r"\sum_{{k}}\left[{}\right]_k"),
    "mean": (lambda x: x.mean(0), r"\operatorname{{mean}}_n\left({}\right)"),
    "mean_along": (lambda x: x.mean(-1, keepdim=True), r"\operatorname{{mean}}_k\left({}\right)"),
}
GREEK = {
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "theta",
    "lambda",
    "mu",
    "sigma",
    "pi",
    "kappa",
    "phi",
    "rho",
    "tau",
}
CONSTANTS = {"sqrt2": r"\sqrt{2}", "sqrt2pi": r"\sqrt{2\pi}"}
COMPARISONS: dict[type, tuple[Callable[..., Tensor], str]] = {
    ast.Gt: (torch.gt, ">"),
    ast.GtE: (torch.ge, r"\ge"),
    ast.Lt: (torch.lt, "<"),
    ast.LtE: (torch.le, r"\le"),
    ast.Eq: (torch.eq, "="),
}
ADD, MULTIPLY, UNARY, POWER, ATOM = range(1, 6)  # binding strength of a printed expression


def symbol(name: str) -> str:
    """LaTeX of a name: ``x_bar`` a bar, ``mu_hat`` a hat, ``lam`` lambda, other underscores subscripts."""
    if name in CONSTANTS:
        return CONSTANTS[name]
    base, *marks = name.split("_")
    text = {"lam": r"\lambda", "eps": r"\varepsilon", "var": r"\sigma^2", "ell": r"\ell"}.get(base, base)
    if base in GREEK:
        text = f"\\{base}"
    elif len(text) > 1 and not text.startswith("\\"):
        text = rf"\mathrm{{{text}}}"
    below = []
    for mark in marks:
        if mark in ("bar", "hat", "dot"):
            text = rf"\{mark}{{{text}}}"
        else:
            below.append(symbol(mark) if not mark.isdigit() else mark)
    return f"{text}_{{{','.join(below)}}}" if below else text


@dataclass(frozen=True)
class Formula:
    """An expression.

    Attributes:
        text: in the syntax above.
        indices: free indices in the order of the result's axes; empty for complete tensors.
    """

    text: str
    indices: tuple[str, ...] = ()

    def latex(self) -> str:
        """The expression in LaTeX."""
        return _Printer().visit(ast.parse(self.text, mode="eval").body)[0]

    def evaluate(self, env: Env, shape: tuple[int, ...] = ()) -> Tensor:
        """Evaluate the expression for tensors by name; ``shape`` is the shape of the result, the range of the free indices.

        Raises:
            ValueError: a name is not in ``env``, or the syntax is not supported.
        """
        tree = ast.parse(self.text, mode="eval").body
        sums = {n.id for call in ast.walk(tree) if _is_sum(call) for n in call.args[1:] if isinstance(n, ast.Name)}  # type: ignore[attr-defined]
        axes = [*self.indices, *sorted(sums)]
        if not axes:
            return _Evaluator(env, {}).visit(tree)
        sizes = dict(zip(self.indices, shape)) | {name: _range_of(name, tree, env) for name in sums}
        grid = {}
        for place, name in enumerate(axes):
            view = [1] * len(axes)
            view[place] = -1
            grid[name] = torch.arange(sizes[name]).view(view)
        value = _Evaluator(env, grid).visit(tree)
        return value.expand(*shape, *[1] * len(sums)).reshape(shape).clone()


def _is_sum(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Sum"


def _range_of(name: str, tree: ast.AST, env: Env) -> int:
    """Range of a summed index: the length of an axis that it indexes directly."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript):
            for axis, index in enumerate(_index_list(node)):
                if isinstance(index, ast.Name) and index.id == name:
                    return _lookup(env, node.value.id).shape[axis]  # type: ignore[attr-defined]
    raise ValueError(f"the index {name!r} does not index any tensor directly, so its range is unknown")


def _index_list(node: ast.Subscript) -> list[ast.expr]:
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


def _lookup(env: Env, name: str) -> Tensor:
    if name not in env:
        raise ValueError(f"a formula uses {name!r}; known names: {', '.join(sorted(env))}")
    return env[name]


class _Evaluator(ast.NodeVisitor):
    def __init__(self, env: Env, grid: Mapping[str, Tensor]):
        self.env, self.grid = env, grid

    def generic_visit(self, node: ast.AST) -> Any:
        raise ValueError(f"formulas do not support {type(node).__name__}")

    def visit_Constant(self, node: ast.Constant) -> Any:
        return node.value

    def visit_Name(self, node: ast.Name) -> Tensor:
        return self.grid[node.id] if node.id in self.grid else _lookup(self.env, node.id)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        return -self.visit(node.operand)

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        a, b = self.visit(node.left), self.visit(node.right)
        return {
            ast.Add: lambda: a + b,
            ast.Sub: lambda: a - b,
            ast.Mult: lambda: a * b,
            ast.Div: lambda: a / b,
            ast.MatMult: lambda: a @ b,
            ast.Pow: lambda: a**b,
        }[type(node.op)]()

    def visit_Compare(self, node: ast.Compare) -> Tensor:
        a, b = self.visit(node.left), self.visit(node.comparators[0])
        compare, _ = COMPARISONS[type(node.ops[0])]
        return compare(torch.as_tensor(a), torch.as_tensor(b)).double()

    def visit_Call(self, node: ast.Call) -> Tensor:
        assert isinstance(node.func, ast.Name)
        if not _is_sum(node):
            return FUNCTIONS[node.func.id][0](*(self.visit(arg) for arg in node.args))
        places = [list(self.grid).index(arg.id) for arg in node.args[1:]]  # type: ignore[attr-defined]
        value = self.visit(node.args[0])
        sizes = [self.grid[list(self.grid)[p]].numel() for p in places]
        full = list(value.shape)
        for place, size in zip(places, sizes):
            full[place] = size
        return value.expand(full).sum(places, keepdim=True)

    def visit_Subscript(self, node: ast.Subscript) -> Tensor:
        tensor = _lookup(self.env, node.value.id)  # type: ignore[attr-defined]
        places = torch.broadcast_tensors(*(torch.as_tensor(self.visit(i)) for i in _index_list(node)))
        inside = torch.stack([(p >= 0) & (p < size) for p, size in zip(places, tensor.shape)]).all(0)
        entries = tensor[tuple(p.clamp(0, size - 1) for p, size in zip(places, tensor.shape))]
        return torch.where(inside, entries, torch.zeros_like(entries))


class _Printer(ast.NodeVisitor):
    """Prints (LaTeX, binding strength)."""

    def generic_visit(self, node: ast.AST) -> Any:
        raise ValueError(f"formulas do not support {type(node).__name__}")

    def _parenthesised(self, node: ast.AST, least: int) -> str:
        text, strength = self.visit(node)
        return text if strength >= least else rf"\left({text}\right)"

    def visit_Constant(self, node: ast.Constant) -> tuple[str, int]:
        return str(node.value), ATOM

    def visit_Name(self, node: ast.Name) -> tuple[str, int]:
        return symbol(node.id), ATOM

    def visit_UnaryOp(self, node: ast.UnaryOp) -> tuple[str, int]:
        return f"-{self._parenthesised(node.operand, MULTIPLY)}", ADD

    def visit_BinOp(self, node: ast.BinOp) -> tuple[str, int]:
        if isinstance(node.op, ast.Div):
            return rf"\frac{{{self.visit(node.left)[0]}}}{{{self.visit(node.right)[0]}}}", MULTIPLY
        if isinstance(node.op, ast.Pow):
            return f"{self._parenthesised(node.left, ATOM)}^{{{self.visit(node.right)[0]}}}", POWER
        if isinstance(node.op, ast.Add | ast.Sub):
            sign = "+" if isinstance(node.op, ast.Add) else "-"
            return f"{self._parenthesised(node.left, ADD)} {sign} {self._parenthesised(node.right, MULTIPLY)}", ADD
        return (
            f"{self._parenthesised(node.left, MULTIPLY)} {self._dot(node)} {self._parenthesised(node.right, MULTIPLY)}",
            MULTIPLY,
        )

    def _dot(self, node: ast.BinOp) -> str:
        """The sign between factors: a thin space for matrices, entries and numbers, a circle for complete tensors."""
        entries = any(isinstance(n, ast.Subscript | ast.Constant) for n in (*ast.walk(node.left), *ast.walk(node.right)))
        return r"\," if isinstance(node.op, ast.MatMult) or entries else r"\odot"

    def visit_Compare(self, node: ast.Compare) -> tuple[str, int]:
        sign = COMPARISONS[type(node.ops[0])][1]
        return rf"\left[{self.visit(node.left)[0]} {sign} {self.visit(node.comparators[0])[0]}\right]", ATOM

    def visit_Call(self, node: ast.Call) -> tuple[str, int]:
        assert isinstance(node.func, ast.Name)
        if _is_sum(node):
            below = ",".join(self.visit(n)[0] for n in node.args[1:])
            return rf"\sum_{{{below}}} {self._parenthesised(node.args[0], MULTIPLY)}", MULTIPLY
        template = FUNCTIONS[node.func.id][1]
        bare = template.startswith(("{}", r"\sum"))
        return template.format(self._parenthesised(node.args[0], ATOM if bare else ADD)), MULTIPLY if template.startswith(
            r"\sum"
        ) else POWER

    def visit_Subscript(self, node: ast.Subscript) -> tuple[str, int]:
        inside = ",".join(re.sub(r"\s", "", self.visit(i)[0]) for i in _index_list(node))
        name = symbol(node.value.id)  # type: ignore[attr-defined]
        return (rf"\left({name}\right)_{{{inside}}}" if "_" in name else f"{name}_{{{inside}}}"), ATOM
