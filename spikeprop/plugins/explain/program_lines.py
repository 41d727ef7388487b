"""NumPy lines of each kind of call for ``program``: its value, and the cotangent of each input from the cotangent of its output.

The lines keep to a part of NumPy that ``page/numpy.js`` can run too; what takes a loop is a helper function (``HELPERS``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from spikeprop.plugins.explain.form import Settings


@dataclass(frozen=True)
class Names:
    """A call as a program sees it: settings, and the name and shape of each input and of the output, whose cotangent is g."""

    settings: Settings
    inputs: list[str]
    shapes: list[tuple[int, ...]]
    out: str
    shape: tuple[int, ...]
    g: str
    since: str = ""  # of a spiking layer: steps since the last spike, up to the step before
    name: str = ""  # of the function
    arguments: tuple[Any, ...] = ()

    @property
    def stem(self) -> str:
        """The output's name without its time step."""
        return self.out.partition("[")[0]

    def slot(self, place: int) -> int | None:
        slots = self.settings["slots"]
        return slots[place] if place < len(slots) else None


@dataclass
class Written:
    """Lines of a call: forward, before the cotangents, and the cotangent of each input by its slot."""

    forward: list[str]
    back: dict[int, str]
    before: list[str] = field(default_factory=list)


class Unwritten(Exception):
    """A call has no lines; the message says which."""


HELPERS = {
    "softmax": """def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)""",
    "Phi": """def Phi(x):  # distribution function of the normal distribution
    return 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))""",
    "fold": """def fold(g, shape):  # sums over the axes along which an array of this shape was broadcast
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    return g.sum(axis=tuple(i for i, n in enumerate(shape) if n < g.shape[i]), keepdims=True)""",
    "windows": """def windows(x, kernel, stride, padding, fill=0.0):  # [b, c, h, w, u, v]: entry (u, v) of the window at (h, w)
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(x, kernel, (2, 3))[:, :, :: stride[0], :: stride[1]]""",
    "unwindows": """def unwindows(w, shape, stride, padding):  # adds every window at its place: the transpose of windows
    x = np.zeros((*shape[:2], shape[2] + 2 * padding[0], shape[3] + 2 * padding[1]))
    (h, b), (p, q) = stride, padding
    for u in range(w.shape[4]):
        for v in range(w.shape[5]):
            x[:, :, u : u + h * w.shape[2] : h, v : v + b * w.shape[3] : b] += w[..., u, v]
    return x[:, :, p : p + shape[2], q : q + shape[3]]""",
    "largest": """def largest(w):  # 1 at the largest entry of each window, the first of equal ones
    flat = w.reshape(*w.shape[:4], -1)
    return (np.arange(flat.shape[-1]) == flat.argmax(-1)[..., None]).reshape(w.shape) * 1.0""",
    "take": """def take(x, index, shape):  # entries by number; -1 is a zero
    return np.append(x.ravel(), 0.0)[index].reshape(shape)""",
    "put": """def put(g, index, shape):  # adds every entry where take has read it
    x = np.zeros(int(np.prod(shape)) + 1)
    np.add.at(x, index, g.ravel())
    return x[:-1].reshape(shape)""",
}


def _affine(n: Names) -> Written:
    x, w, b = n.slot(0), n.slot(1), n.slot(2)
    assert x is not None
    assert w is not None
    names, (outputs, width) = n.inputs, n.shapes[w]
    flat = len(n.shapes[x]) == 2
    g, rows = (n.g, names[x]) if flat else (f"{n.g}.reshape(-1, {outputs})", f"{names[x]}.reshape(-1, {width})")
    back = {x: f"{n.g} @ {names[w]}", w: f"{g}.T @ {rows}"}
    if b is not None:
        back[b] = f"{g}.sum(axis=0)"
    return Written([f"{n.out} = {names[x]} @ {names[w]}.T{'' if b is None else f' + {names[b]}'}"], back)


def _entrywise(forward: str, local: str) -> Callable[[Names], Written]:
    def write(n: Names) -> Written:
        names = {"x": n.inputs[0], "y": n.out}
        return Written([f"{n.out} = {forward.format(**names)}"], {0: f"{n.g} * {local.format(**names)}"})

    return write


def _binary(sign: str, swapped: bool = False) -> Callable[[Names], Written]:
    def write(n: Names) -> Written:
        operands = n.settings["operands"][:: -1 if swapped else 1]
        a, b = (n.inputs[o["input"]] if "input" in o else f"{o['number']:g}" for o in operands)
        if any("number" in o and float(f"{o['number']:g}") != o["number"] for o in operands):
            a, b = (n.inputs[o["input"]] if "input" in o else repr(o["number"]) for o in operands)
        ways = {
            "+": (n.g, n.g), "-": (n.g, f"-{n.g}"), "*": (f"{n.g} * {b}", f"{n.g} * {a}"),
            "/": (f"{n.g} / {b}", f"-{n.g} * {a} / {b} ** 2"),
        }[sign]  # fmt: skip
        back: dict[int, str] = {}
        for operand, way in zip(operands, ways):
            if "input" in operand:
                slot = operand["input"]
                way = way if n.shapes[slot] == n.shape else f"fold({way}, {n.shapes[slot]})"
                back[slot] = f"{back[slot]} + {way}" if slot in back else way
        return Written([f"{n.out} = {a} {sign} {b}"], back)

    return write


def _factor(n: Names) -> Written:
    mask = n.inputs[-1]  # added by the program
    return Written([f"{n.out} = {n.inputs[0]} * {mask}"], {0: f"{n.g} * {mask}"})


def _matmul(n: Names) -> Written:
    a, b = n.inputs
    turned = [f"{x}.T" if len(shape) == 2 else f"np.swapaxes({x}, -1, -2)" for x, shape in zip((a, b), n.shapes)]
    ways = f"{n.g} @ {turned[1]}", f"{turned[0]} @ {n.g}"
    lead = n.shape[:-2]
    folded = [w if s[:-2] == lead else f"fold({w}, {s})" for w, s in zip(ways, n.shapes)]
    return Written([f"{n.out} = {a} @ {b}"], dict(enumerate(folded)))


def _softmax(n: Names) -> Written:
    return Written(
        [f"{n.out} = softmax({n.inputs[0]})"], {0: f"{n.out} * ({n.g} - ({n.g} * {n.out}).sum(axis=-1, keepdims=True))"}
    )


def _cross_entropy(n: Names) -> Written:
    z, y = n.inputs[n.settings["slots"][0]], n.inputs[n.settings["slots"][1]]
    samples, classes = n.shapes[n.settings["slots"][0]]
    lines = [f"Y = np.eye({classes})[{y}]", f"p = softmax({z})", f"{n.out} = -np.sum(Y * np.log(p)) / {samples}"]
    return Written(lines, {n.settings["slots"][0]: f"{n.g} * (p - Y) / {samples}"})


def _bce(n: Names) -> Written:
    z, y = n.inputs[n.settings["slots"][0]], n.inputs[n.settings["slots"][1]]
    count = _count(n.shapes[n.settings["slots"][0]])
    lines = [f"p = 1 / (1 + np.exp(-{z}))", f"{n.out} = -np.sum({y} * np.log(p) + (1 - {y}) * np.log(1 - p)) / {count}"]
    return Written(lines, {n.settings["slots"][0]: f"{n.g} * (p - {y}) / {count}"})


def _squared_error(n: Names) -> Written:
    first, second = n.settings["slots"]
    z, y, count = n.inputs[first], n.inputs[second], _count(n.shapes[first])
    back = {first: f"{n.g} * 2 * ({z} - {y}) / {count}", second: f"{n.g} * 2 * ({y} - {z}) / {count}"}
    return Written([f"{n.out} = np.sum(({z} - {y}) ** 2) / {count}"], back)


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def _reduce(n: Names) -> Written:
    s, shape = n.settings, n.shapes[0]
    axes = tuple(s["axes"])
    kept = tuple(1 if axis in axes else side for axis, side in enumerate(shape))
    count = _count(tuple(shape[axis] for axis in axes)) if s["mean"] else 1
    how, keep = "mean" if s["mean"] else "sum", ", keepdims=True" if s["keep"] else ""
    g = f"{n.g}.reshape({kept})" if n.shape else n.g
    spread = f"np.zeros({shape}) + {g}" if kept else g
    return Written([f"{n.out} = {n.inputs[0]}.{how}(axis={axes}{keep})"], {0: f"{spread} / {count}" if count > 1 else spread})


def _conv(n: Names) -> Written:
    s, (x, w, b) = n.settings, (n.slot(0), n.slot(1), n.slot(2))
    if s["dilation"] != [1, 1] or s["groups"] != 1:
        raise Unwritten("a convolution with dilation or groups")
    assert x is not None
    assert w is not None
    stride, padding = tuple(s["stride"]), tuple(s["padding"])
    seen = f"windows({n.inputs[x]}, {n.shapes[w][2:]}, {stride}, {padding})"
    shift = "" if b is None else f" + {n.inputs[b]}.reshape(1, -1, 1, 1)"
    back = {
        x: f'unwindows(np.einsum("bohw,ocuv->bchwuv", {n.g}, {n.inputs[w]}), {n.shapes[x]}, {stride}, {padding})',
        w: f'np.einsum("bohw,bchwuv->ocuv", {n.g}, {seen})',
    }
    if b is not None:
        back[b] = f"{n.g}.sum(axis=(0, 2, 3))"
    return Written([f'{n.out} = np.einsum("bchwuv,ocuv->bohw", {seen}, {n.inputs[w]}){shift}'], back)


def _pool(largest: bool) -> Callable[[Names], Written]:
    def write(n: Names) -> Written:
        kernel, stride, padding = (tuple(n.settings[key]) for key in ("kernel", "stride", "padding"))
        x, spread = n.inputs[0], f"{n.g}.reshape({(*n.shape, 1, 1)})"
        if largest:
            seen = f"{n.stem}_w"
            lines = [f"{seen} = windows({x}, {kernel}, {stride}, {padding}, -np.inf)", f"{n.out} = {seen}.max(axis=(4, 5))"]
            return Written(lines, {0: f"unwindows(largest({seen}) * {spread}, {n.shapes[0]}, {stride}, {padding})"})
        lines = [f"{n.out} = windows({x}, {kernel}, {stride}, {padding}).mean(axis=(4, 5))"]
        share = f"np.ones({kernel}) * {spread} / {_count(kernel)}"
        return Written(lines, {0: f"unwindows({share}, {n.shapes[0]}, {stride}, {padding})"})

    return write


def _norm(n: Names) -> Written:
    s, rank = n.settings, len(n.shape)
    axes = tuple(range(rank - s["axes"], rank)) if "axes" in s else (0, *range(2, rank))
    others = tuple(axis for axis in range(rank) if axis not in axes) if "axes" in s else axes
    wide = n.shape[rank - s["axes"] :] if "axes" in s else (1, n.shape[1], *[1] * (rank - 2))
    (x, gamma, beta), given = (n.slot(0), n.slot(1), n.slot(2)), s.get("training", True)
    assert x is not None
    hat, scale, over = f"{n.stem}_n", f"{n.stem}_s", f"axis={axes}, keepdims=True"
    source = n.inputs[x]
    mean = f"{source}.mean({over})" if given else f"{n.inputs[s['slots'][3]]}.reshape{wide}"
    var = f"{source}.var({over})" if given else f"{n.inputs[s['slots'][4]]}.reshape{wide}"
    lines = [f"{scale} = 1 / np.sqrt({var} + {s['eps']!r})", f"{hat} = ({source} - {mean}) * {scale}"]
    scaled = hat if gamma is None else f"{n.inputs[gamma]}.reshape{wide} * {hat}"
    lines.append(f"{n.out} = {scaled}" + ("" if beta is None else f" + {n.inputs[beta]}.reshape{wide}"))
    inner = f"{n.stem}_d"
    before = [f"{inner} = {n.g}" + ("" if gamma is None else f" * {n.inputs[gamma]}.reshape{wide}")]
    rest = f"({inner} - {inner}.mean({over}) - {hat} * ({inner} * {hat}).mean({over}))" if given else inner
    back = {x: f"{scale} * {rest}"}
    if gamma is not None:
        back[gamma] = f"({n.g} * {hat}).sum(axis={others})"
    if beta is not None:
        back[beta] = f"{n.g}.sum(axis={others})"
    return Written(lines, back, before)


def _attention(n: Names) -> Written:
    s = n.settings
    if s["causal"]:
        raise Unwritten("causal attention in one call")
    (q, k, v), p, d = s["slots"], f"{n.stem}_p", f"{n.stem}_d"
    turn = lambda name: f"np.swapaxes({name}, -1, -2)"  # noqa: E731
    names, scale = n.inputs, repr(s["scale"])
    lines = [f"{p} = softmax({names[q]} @ {turn(names[k])} * {scale})", f"{n.out} = {p} @ {names[v]}"]
    before = [f"{d} = {n.g} @ {turn(names[v])}", f"{d} = {p} * ({d} - ({d} * {p}).sum(axis=-1, keepdims=True)) * {scale}"]
    return Written(lines, {q: f"{d} @ {names[k]}", k: f"{turn(d)} @ {names[q]}", v: f"{turn(p)} @ {n.g}"}, before)


def _rearrange(n: Names) -> Written:
    x, shape = n.inputs[0], n.shapes[0]
    if n.settings.get("same"):
        return Written([f"{n.out} = {x}.reshape({n.shape})"], {0: f"{n.g}.reshape({shape})"})
    args = n.arguments[1:]
    if n.name in ("transpose", "swapaxes") and len(args) == 2:
        a, b = args
        return Written([f"{n.out} = np.swapaxes({x}, {a}, {b})"], {0: f"np.swapaxes({n.g}, {a}, {b})"})
    index = n.inputs[-1]  # added by the program
    return Written([f"{n.out} = take({x}, {index}, {n.shape})"], {0: f"put({n.g}, {index}, {shape})"})


def _integrate(n: Names) -> Written:
    v, current, leak = n.inputs
    back = {0: f"{leak} * {n.g}", 1: n.g, 2: f"fold({n.g} * {v}, {n.shapes[2]})"}
    return Written([f"{n.out} = {leak} * {v} + {current}"], back)


_SLOPES = {
    "STDB": "{alpha!r} * np.exp(-{beta!r} * {after}) / {theta}",
    "Triangle": "{height!r} * np.maximum(0, 1 - np.abs({u} / {theta} - 1)) / {theta}",
    "FastSigmoid": "1 / ({slope!r} * np.abs({u} / {theta} - 1) + 1) ** 2 / {theta}",
    "ATan": "{alpha!r} / 2 / (1 + (np.pi / 2 * {alpha!r} * ({u} / {theta} - 1)) ** 2) / {theta}",
}


def _fire(n: Names) -> Written:
    u, theta = n.inputs[:2]
    after = n.since.replace("t - 1", "t")
    lines = [f"{n.out} = ({u} > {theta}) * 1.0"]
    if n.settings["surrogate"] == "STDB":
        lines.append(f"{after} = np.where({n.out} > 0, 0, {n.since} + 1)")
    slope = f"{n.stem}_slope"
    before = [f"{slope} = {_SLOPES[n.settings['surrogate']].format(**n.settings, u=u, theta=theta, after=after)}"]
    return Written(lines, {0: f"{n.g} * {slope}", 1: f"fold(-{n.g} * {slope} * {u} / {theta}, {n.shapes[1]})"}, before)


def _reset(n: Names) -> Written:
    u, o, theta = n.inputs
    if n.settings["to_zero"]:
        return Written([f"{n.out} = {u} * (1 - {o})"], {0: f"{n.g} * (1 - {o})"})
    return Written([f"{n.out} = {u} - {theta} * {o}"], {0: n.g, 2: f"fold(-{n.g} * {o}, {n.shapes[2]})"})


LINES: dict[str, Callable[[Names], Written]] = {
    "affine": _affine, "add": _binary("+"), "sub": _binary("-"), "rsub": _binary("-", True), "mul": _binary("*"),
    "div": _binary("/"), "factor": _factor, "matmul": _matmul, "softmax": _softmax, "cross_entropy": _cross_entropy,
    "bce_with_logits": _bce, "squared_error": _squared_error, "reduce": _reduce, "conv2d": _conv, "max_pool2d": _pool(True),
    "avg_pool2d": _pool(False), "batch_norm": _norm, "layer_norm": _norm, "attention": _attention, "rearrange": _rearrange,
    "integrate": _integrate, "fire": _fire, "reset": _reset, "relu": _entrywise("np.maximum({x}, 0)", "({x} > 0)"),
    "tanh": _entrywise("np.tanh({x})", "(1 - {y} ** 2)"),
    "sigmoid": _entrywise("1 / (1 + np.exp(-{x}))", "{y} * (1 - {y})"),
    "silu": _entrywise("{x} / (1 + np.exp(-{x}))", "(1 + {x} / (1 + np.exp({x}))) / (1 + np.exp(-{x}))"),
    "gelu": _entrywise("{x} * Phi({x})", "(Phi({x}) + {x} * np.exp(-{x} ** 2 / 2) / np.sqrt(2 * np.pi))"),
}  # fmt: skip
