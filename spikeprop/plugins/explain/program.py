"""``program``: the backward pass of a small network as a NumPy program, generated from its trace and run here against torch.

One line computes each value forward and one each cotangent backward, x_bar = dL/dx; the calls of a simulation's steps become two
loops over t. In these, v[t] is the value of step t; arrays have one row more than steps, and since v[-1] is the last row in
NumPy, the state before the first step is that row, which stays zero.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spikeprop.plugins.explain.local import cotangent_of
from spikeprop.plugins.explain.program_lines import HELPERS, LINES, Names, Unwritten, Written
from spikeprop.plugins.explain.trace import Node, Trace, Value

MOST = 120  # lines; a longer program is no lesson
EQUAL = 1e-9  # tolerance of the program's loss and gradients, relative
OWN = {"c", "h", "index", "mask", "o", "theta", "u", "v", "x", "y"}  # begin names of other values
Kinds = dict[int, tuple[str, dict[str, Any]]]


@dataclass
class CodeLine:
    """A line: text, node of the trace or -1, and for a line that can be left blank its variable."""

    text: str
    node: int = -1
    blank: str | None = None


@dataclass
class Program:
    """The lines by part, the arrays they start from, and the cotangents that they must give.

    Attributes:
        forward, backward: lines, in the order in which they run.
        helpers: names of the helper functions that occur.
        given: name to the number of a value of the trace, or to numbers.
        gradients: name of a cotangent to the number of the parameter.
    """

    forward: list[CodeLine] = field(default_factory=list)
    backward: list[CodeLine] = field(default_factory=list)
    helpers: list[str] = field(default_factory=list)
    given: dict[str, Any] = field(default_factory=dict)
    gradients: dict[str, int] = field(default_factory=dict)

    def python(self, trace: Trace) -> str:
        """The program as a complete Python file."""
        texts = {
            name: _text(trace.values[g].tensor.numpy() if isinstance(g, int) else np.array(g)) for name, g in self.given.items()
        }
        parts = ["import math", "", "import numpy as np", "", *(f"{HELPERS[name]}\n" for name in self.helpers)]
        parts += [f"{name} = {text}" for name, text in texts.items()]
        parts += [
            "",
            "# forward",
            *(line.text for line in self.forward),
            "",
            "# backward",
            *(line.text for line in self.backward),
        ]
        return "\n".join(parts) + "\n"


def program(trace: Trace, kinds: Kinds) -> dict[str, Any]:
    """The program as JSON values: lines, given arrays, helpers and gradients; or the reason why there is none."""
    try:
        written = _ProgramWriter(trace, kinds).write()
    except Unwritten as reason:
        return {"reason": str(reason)}
    count = len(written.forward) + len(written.backward)
    if count > MOST:
        return {"reason": f"it would have {count} lines; up to {MOST} are shown"}
    wrong = check(written, trace)
    if wrong:
        return {"reason": f"its {wrong} is not torch's"}
    return {
        "forward": [vars(line) for line in written.forward],
        "backward": [vars(line) for line in written.backward],
        "helpers": [HELPERS[name] for name in written.helpers],
        "given": written.given,
        "gradients": written.gradients,
    }


def check(written: Program, trace: Trace) -> str | None:
    """Run the program with NumPy; what is not torch's: the loss, or the gradient of a parameter, if there is one."""
    found: dict[str, Any] = {}
    with np.errstate(all="ignore"):
        try:
            exec(compile(written.python(trace), "<program>", "exec"), found)  # our own text, of names and numbers alone
        except (ArithmeticError, AttributeError, LookupError, NameError, SyntaxError, TypeError, ValueError) as error:
            return f"result ({error})"
    if not _equal(found["L"], trace.values[trace.loss].tensor.numpy()):
        return "loss"
    for name, index in written.gradients.items():
        if not _equal(found[name], cotangent_of(trace, index).numpy()):
            return f"gradient of {trace.values[index].name}"
    return None


def _equal(mine: Any, exact: np.ndarray) -> bool:
    size = float(abs(exact).max(initial=1e-3))
    return np.shape(mine) == exact.shape and bool(np.allclose(mine, exact, rtol=EQUAL, atol=EQUAL * size))


def _text(array: np.ndarray) -> str:
    if array.ndim == 0:
        return repr(array.item()).replace("inf", "np.inf")
    kind = "" if array.dtype.kind != "i" else ", dtype=int"
    return re.sub(
        r"\binf\b", "np.inf", f"np.array({array.tolist()}{kind})" + (f".reshape{array.shape}" if not array.size else "")
    )


class _ProgramWriter:
    """Writes a program from a trace."""

    def __init__(self, trace: Trace, kinds: Kinds):
        self.trace, self.kinds = trace, kinds
        self.made = {output: node for node in trace.nodes for output in node.outputs}
        self.program = Program()
        self.names: dict[int, str] = {}  # of values made outside of steps, and of given ones
        self.counts: dict[str, int] = {}
        self.layers: dict[str, str] = {}
        self.ready: set[str] = set()  # cotangents that have been assigned
        self.needed: set[int] = set()
        for value in trace.values:
            node = self.made.get(value.index)
            below = node is not None and any(i in self.needed for i in node.inputs)
            if value.needs_grad and (value.role == "parameter" or below):
                self.needed.add(value.index)

    def write(self) -> Program:
        for node in self.trace.nodes:
            if self.kinds[node.index][0] not in LINES:
                raise Unwritten(f"the page has no NumPy for {node.name}")
            if len(node.outputs) != 1:
                raise Unwritten(f"{node.name} has several outputs")
        steps = [n.step for n in self.trace.nodes if n.step is not None]
        self.last = max(steps, default=-1)
        if 0 <= self.last < 2:
            raise Unwritten("a loop is written for three steps of time or more")
        inside = [n for n in self.trace.nodes if n.step == self.last]
        begun = [n.index for n in self.trace.nodes if n.step is not None]
        before = [n for n in self.trace.nodes if n.step is None and (not begun or n.index < begun[0])] or []
        early = {id(n) for n in before}
        shared = [n for n in self.trace.nodes if n.step == 0 and self._is_shared(n)]  # a constant current, computed once
        after = [n for n in self.trace.nodes if n.step is None and id(n) not in early]
        forward: list[tuple[Node, Written, bool]] = []
        for node in (*before, *shared):
            forward.append((node, self._call(node), False))
        if inside:
            self._name_steps(inside)
            self._arrays(inside)
            forward += [(node, self._call(node), True) for node in inside]
        forward += [(node, self._call(node), False) for node in after]
        self._backward(forward, inside)
        self._finish()
        return self.program

    def _is_shared(self, node: Node) -> bool:
        """Whether a call of the first step serves all steps: it reads nothing of the steps, and no later step repeats it."""
        repeated = any(n.step == self.last and (n.module, n.name) == (node.module, node.name) for n in self.trace.nodes)
        return not repeated and all(i not in self.made or self._is_shared(self.made[i]) for i in node.inputs)

    # Names of values.

    def _fresh(self, stem: str) -> str:
        self.counts[stem] = self.counts.get(stem, 0) + 1
        return f"{stem}{self.counts[stem]}"

    def _layer(self, module: str) -> str:
        return self.layers.setdefault(module, str(len(self.layers) + 1))

    def _given(self, value: Value) -> str:
        """The name of an input, a parameter or a constant."""
        if value.index not in self.names:
            path, _, last = value.name.rpartition(".")
            if value.role == "parameter":
                stem = {"weight": "W", "bias": "b"}.get(last, re.sub(r"\W", "_", last))
                stem = f"p{stem}_" if stem[0].isdigit() else f"{stem}_" if stem in OWN else stem  # of a list: its number
                name = f"{stem}{self._layer(path)}"
            elif value.role == "input":
                name = {"input": "x", "target": "y"}.get(value.name, re.sub(r"\W", "_", value.name))
            else:
                stem = {"v_threshold": "theta", "leak": "leak"}.get(last, "c")
                name = self._fresh(stem)
            while name in self.program.given:
                name += "_"
            self.names[value.index] = name
            self.program.given[name] = value.index
        return self.names[value.index]

    def _reference(self, index: int, node: Node) -> str:
        """How a call reads a value."""
        if index in self.names:
            return self.names[index]
        maker = self.made.get(index)
        value = self.trace.values[index]
        if maker is None:
            return self._constant(value, node)
        if maker.step is None or maker.step not in (self.last, self.last - 1):
            raise Unwritten(f"{node.name} reads a value of an earlier step")
        if node.step is None:
            return f"{self.steps[self._place(maker)]}[{self.last}]"
        return f"{self.steps[self._place(maker)]}[t]" if maker.step == node.step else f"{self.steps[self._place(maker)]}[t - 1]"

    def _constant(self, value: Value, node: Node) -> str:
        kind = self.kinds[node.index][0]
        if kind == "reset" and value.index == node.inputs[1]:  # the spikes, which the reset takes as constants
            fires = [n for n in self.trace.nodes if n.module == node.module and n.step == node.step and n.name == "fire"]
            return self._reference(fires[0].outputs[0], node)
        if kind == "fire" and value.index == node.inputs[2]:
            return ""
        return self._given(value)

    def _place(self, node: Node) -> tuple[str, str, int]:
        """What corresponds in all steps: module, name, and number among the calls of the step with both."""
        same = [n.index for n in self.trace.nodes if n.step == node.step and (n.module, n.name) == (node.module, node.name)]
        return node.module, node.name, same.index(node.index)

    def _name_steps(self, inside: list[Node]) -> None:
        stems = {"integrate": "u", "fire": "o", "reset": "v"}
        numbers: dict[str, str] = {}
        self.steps = {}
        for node in inside:
            kind = self.kinds[node.index][0]
            if kind in stems:
                number = numbers.setdefault(node.module, str(len(numbers) + 1))
                self.steps[self._place(node)] = f"{stems[kind]}{number}"
            else:
                self.steps[self._place(node)] = self._fresh("h")

    def _arrays(self, inside: list[Node]) -> None:
        """Arrays of all values of the steps, one line for each shape."""
        shapes: dict[tuple[int, ...], list[str]] = {}
        for node in inside:
            shape = tuple(self.trace.values[node.outputs[0]].tensor.shape)
            shapes.setdefault(shape, []).append(self.steps[self._place(node)])
        for shape, names in shapes.items():
            full = (self.last + 2, *shape)
            for bar, lines in (("", self.program.forward), ("_bar", self.program.backward)):
                wanted = [f"{n}{bar}" for n in names]
                size = full if len(wanted) == 1 else (len(wanted), *full)
                lines.append(CodeLine(f"{', '.join(wanted)} = np.zeros({size})"))
        for node in inside:
            if self.kinds[node.index][1].get("surrogate") == "STDB":
                shape = (self.last + 2, *self.trace.values[node.outputs[0]].tensor.shape)
                self.program.forward.append(CodeLine(f"{self._since(node)} = np.full({shape}, np.inf)"))

    def _since(self, node: Node) -> str:
        return f"since{self.steps[self._place(node)][1:]}"

    # Lines of calls.

    def _call(self, node: Node) -> Written:
        kind, settings = self.kinds[node.index]
        inputs = [self._reference(i, node) for i in node.inputs]
        for key, stem in (("factor", "mask"), ("index", "index")):
            if kind in ("factor", "rearrange") and key in settings:
                inputs.append(self._extra(node, settings[key], stem))
        output = self.trace.values[node.outputs[0]]
        if node.step == self.last and node.step is not None and self._place(node) in self.steps:
            out = f"{self.steps[self._place(node)]}[t]"
        else:
            out = self.names[output.index] = "L" if output.index == self.trace.loss else self._fresh("h")
        names = Names(
            settings,
            inputs,
            [tuple(self.trace.values[i].tensor.shape) for i in node.inputs],
            out,
            tuple(output.tensor.shape),
            _bar(out),
            f"{self._since(node)}[t - 1]" if kind == "fire" else "",
            node.name,
            node.arguments[0],
        )
        return LINES[kind](names)

    def _extra(self, node: Node, numbers: list[Any], stem: str) -> str:
        if stem == "index" and (
            len(numbers) != 1 or len([i for i in node.inputs if self.trace.values[i].tensor.is_floating_point()]) != 1
        ):
            raise Unwritten(f"the page has no NumPy for {node.name} of several tensors")
        name, shape = self._fresh(stem), self.trace.values[node.inputs[0]].tensor.shape
        self.program.given[name] = numbers[0] if stem == "index" else np.reshape(numbers, shape).tolist()
        return name

    def _backward(self, forward: list[tuple[Node, Written, bool]], inside: list[Node]) -> None:
        opened = False
        for node, written, looped in forward:
            if looped and not opened:
                self.program.forward.append(CodeLine(f"for t in range({self.last + 1}):"))
                opened = True
            for text in written.forward:
                self.program.forward.append(CodeLine(f"{'    ' if looped else ''}{text}", node.index))
        lines, opened = self.program.backward, False
        lines.append(CodeLine("L_bar = 1.0"))
        if inside:  # cotangents to which every step adds
            outer = [i for n in inside for i in n.inputs if i in self.needed and i in self.names]
            for index in dict.fromkeys(outer):
                name = self.names[index]
                lines.append(CodeLine(f"{name}_bar = np.zeros({tuple(self.trace.values[index].tensor.shape)})"))
                self.ready.add(f"{name}_bar")
        for node, written, looped in reversed(forward):
            if looped and not opened:
                lines.append(CodeLine(f"for t in reversed(range({self.last + 1})):"))
                opened = True
            self._cotangents(node, written, looped)

    def _cotangents(self, node: Node, written: Written, looped: bool) -> None:
        indent, lines = "    " if looped else "", self.program.backward
        if node.outputs[0] not in self.needed:
            return
        lines += [CodeLine(f"{indent}{text}", node.index) for text in written.before]
        for slot, text in written.back.items():
            index = node.inputs[slot]
            if index not in self.needed:
                continue
            bar = _bar(self._reference(index, node))
            if "[" in bar:
                several = len([1 for n in self.trace.nodes for i in n.inputs if i == index]) > 1
                lines.append(CodeLine(f"{indent}{bar} {'+=' if several else '='} {text}", node.index, bar.partition("[")[0]))
            elif looped:
                lines.append(CodeLine(f"{indent}{bar} += {text}", node.index, bar))
            else:
                lines.append(CodeLine(f"{bar} = {f'{bar} + ' if bar in self.ready else ''}{text}", node.index, bar))
                self.ready.add(bar)

    def _finish(self) -> None:
        text = "\n".join(line.text for line in (*self.program.forward, *self.program.backward))
        self.program.helpers = [name for name in HELPERS if re.search(rf"\b{name}\(", text)]
        for value in self.trace.values:
            if (
                value.role == "parameter"
                and value.needs_grad
                and value.index in self.names
                and f"{self.names[value.index]}_bar" in text
            ):
                self.program.gradients[f"{self.names[value.index]}_bar"] = value.index


def _bar(name: str) -> str:
    """The cotangent's name: h_bar of h, v_bar[t] of v[t]."""
    stem, bracket, rest = name.partition("[")
    return f"{stem}_bar{bracket}{rest}"
