"""One small net explained by spikeprop, TorchLens, torchviz, micrograd and TensorFlow Playground: what each shows, and pictures.

python benchmarks/explainers.py --pictures docs/explainers --playground FOLDER --out results/benchmarks/explainers.json

The net has two inputs, three hidden units with ReLU and one output; the loss is the squared error on one sample. Weights are the
same in all tools. A number of the step (entry of a value, or of its gradient) counts as shown if a number in the text of the
tool's drawing or page, with at least two significant digits, is that number rounded. The text is that of the drawing in DOT, or
of the page at every step of its timeline. micrograd's package draws nothing; its repository has a notebook that draws values and
gradients, and so does this script, with code of its own.

Chromium, Playwright and graphviz (the package and the program) are needed, and of the tools what is not installed is left out.
FOLDER is dist/ of https://github.com/tensorflow/playground after ``npm install`` and ``npm run build``; its page would load the
font of its icons from elsewhere, so without an @font-face for "Material Icons" in dist/bundle.css its buttons are words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from common import OURS, option_parser, parse, save
from explain import browser_program
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.plugins.explain import TrainingStep, explain

HIDDEN = [[0.83, -0.37], [-0.62, 0.46], [0.29, 0.74]]
HIDDEN_BIAS = [0.17, 0.21, -0.13]
OUTPUT, OUTPUT_BIAS = [[0.94, -0.57, 0.68]], [0.1]  # Playground cannot change the bias of the output, which is 0.1
SAMPLE, TARGET = [1.35, 0.52], 0.31
WIDTH = 1100  # of the pictures of pages, pixels
NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+(?:e[-+]\d+)?")


class Net(nn.Module):
    """The net, with the weights above."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(2, 3), nn.Linear(3, 1)
        for layer, weight, bias in ((self.hidden, HIDDEN, HIDDEN_BIAS), (self.output, OUTPUT, OUTPUT_BIAS)):
            layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2) to (B, 1)."""
        h = F.relu(self.hidden(x))
        return self.output(h)


class NetWithLoss(nn.Module):
    """From a sample and its target to the loss, for tools that record one module."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The squared error."""
        return F.mse_loss(self.net(x), y)


def numbers_of_the_step() -> dict[str, list[float]]:
    """The entries of all values, and those of their gradients, in float64; zeros, which every text has, are left out."""
    net, x = Net().double(), torch.tensor([SAMPLE], dtype=torch.float64, requires_grad=True)
    z = net.hidden(x)
    h = F.relu(z)
    y = net.output(h)
    loss = F.mse_loss(y, torch.tensor([[TARGET]], dtype=torch.float64))
    values = [x, z, h, y, *net.parameters(), loss]
    gradients = torch.autograd.grad(loss, values[:-1])
    return {"values": _entries(values), "gradients": _entries(gradients)}


def _entries(tensors: Iterable[Tensor]) -> list[float]:
    return sorted({round(x, 12) for t in tensors for x in t.flatten().tolist() if x})


def shown(numbers: list[float], text: str) -> int:
    """How many of the numbers stand in a text."""
    tokens = {token for token in NUMBER.findall(text.replace("\N{MINUS SIGN}", "-")) if _digits(token) >= 2}
    return sum(any(float(f"{x:.{_digits(token) - 1}e}") == float(token) for token in tokens) for x in numbers)


def _digits(token: str) -> int:
    """Significant digits of a decimal number."""
    return len(re.sub(r"e.*|[-.]", "", token).lstrip("0"))


def ours(folder: Path, pages: Any) -> str:
    subject = TrainingStep(name="net", model=Net(), x=torch.tensor([SAMPLE]), y=torch.tensor([[TARGET]]), loss=F.mse_loss)
    file = folder / "spikeprop.html"
    explain(subject, file)
    page = pages.new_page(viewport={"width": WIDTH, "height": 900})
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    texts = page.evaluate("Array.from({ length: 2 * app.count }, (_, i) => { app.go(i); return document.body.innerText })")
    page.evaluate("app.go(2 * app.count - 2)")
    page.screenshot(path=folder / "explain.png", full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": 1400})
    file.unlink()
    return "\n".join(texts)


def torchlens(folder: Path, pages: Any) -> str:
    import torchlens as tl  # pyright: ignore[reportMissingImports]

    options = tl.options.CaptureOptions(layers_to_save="all", save_grads=True, save_arg_values=True)
    trace = tl.trace(NetWithLoss(), (torch.tensor([SAMPLE]).requires_grad_(), torch.tensor([[TARGET]])), capture=options)
    trace.log_backward(trace.layer_list[-1].out)
    draw = {"vis_save_only": True, "vis_fileformat": "png"}
    forward = trace.draw(vis_outpath=str(folder / "torchlens"), code_panel=True, **draw)
    backward = trace.draw_backward(vis_outpath=str(folder / "torchlens_backward"), **draw)
    (folder / "torchlens_backward.png").unlink()
    return f"{forward}\n{backward}"


def torchviz(folder: Path, pages: Any) -> str:
    from torchviz import make_dot  # pyright: ignore[reportMissingImports]

    model, x = NetWithLoss(), torch.tensor([SAMPLE], requires_grad=True)
    parameters = {**dict(model.named_parameters()), "x": x}
    drawn = make_dot(model(x, torch.tensor([[TARGET]])), params=parameters, show_attrs=True, show_saved=True)
    drawn.render(folder / "torchviz", format="png", cleanup=True)
    return drawn.source


def micrograd(folder: Path, pages: Any) -> str:
    from graphviz import Digraph  # pyright: ignore[reportMissingImports]
    from micrograd.engine import Value  # pyright: ignore[reportMissingImports]
    from micrograd.nn import MLP  # pyright: ignore[reportMissingImports]

    net, inputs = MLP(2, [3, 1]), [Value(x) for x in SAMPLE]
    for layer, weights, biases in zip(net.layers, (HIDDEN, OUTPUT), (HIDDEN_BIAS, OUTPUT_BIAS)):
        for neuron, row, bias in zip(layer.neurons, weights, biases):
            for weight, number in zip(neuron.w, row):
                weight.data = number
            neuron.b.data = bias
    loss = (net(inputs) - TARGET) ** 2
    loss.backward()
    drawn, seen, waiting = Digraph(graph_attr={"rankdir": "LR"}, node_attr={"shape": "box", "fontsize": "11"}), set(), [loss]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        drawn.node(str(id(value)), f"{value._op}\nvalue {value.data:.4f}\ngradient {value.grad:.4f}".strip())
        for child in value._prev:
            drawn.edge(str(id(child)), str(id(value)))
            waiting.append(child)
    drawn.render(folder / "micrograd", format="png", cleanup=True)
    return drawn.source


SET = """([weights, biases]) => {
  const read = [], card = document.querySelector('#hovercard'), enter = (e) => {
    e.dispatchEvent(new MouseEvent('mouseenter', { clientX: 300, clientY: 300 }));
  };
  const set = (e, x) => {
    enter(e);
    document.querySelector('#svg').dispatchEvent(new MouseEvent('click'));
    const input = card.querySelector('input');
    input.value = x;
    input.dispatchEvent(new Event('input'));
    enter(e);
    read.push(card.querySelector('.value').textContent);
    e.dispatchEvent(new MouseEvent('mouseleave'));
  };
  document.querySelectorAll('.link-hover').forEach((e, i) => set(e, weights[i]));
  biases.forEach((x, i) => set(document.querySelector('#bias-' + (i + 1)), x));
  return read.join(' ');
}"""


HOVER = """document.querySelector('.link-hover').dispatchEvent(
  new MouseEvent('mouseenter', { clientX: 430, clientY: 330 }))"""


def playground(folder: Path, pages: Any, built: Path) -> str:
    page = pages.new_page(viewport={"width": WIDTH, "height": 640})
    page.route(re.compile("^https?:"), lambda route: route.abort())
    settings = "activation=relu&problem=regression&regDataset=reg-plane&networkShape=3&seed=0.1&hideText=true"
    page.goto(f"{(built / 'index.html').as_uri()}#{settings}", wait_until="domcontentloaded")
    page.wait_for_selector(".link-hover", state="attached")
    cards = page.evaluate(SET, [[w for row in (*HIDDEN, *OUTPUT) for w in row], HIDDEN_BIAS])
    page.evaluate(HOVER)
    page.screenshot(path=folder / "playground.png")
    return f"{cards}\n{page.text_content('#svg')}\n{page.inner_text('.output-stats')}"


def main(argv: list[str] | None = None) -> None:
    from playwright.sync_api import sync_playwright

    parser = option_parser(__doc__, [OURS])
    parser.add_argument("--pictures", type=Path, default=Path("runs/bench/explainers"), help="folder, default %(default)s")
    parser.add_argument("--playground", type=Path, help="the built page of TensorFlow Playground")
    options = parse(parser, argv)
    tools: dict[str, Callable[[Path, Any], str]] = {OURS: ours}
    tools |= {f.__name__: f for f in (torchlens, torchviz, micrograd) if find_spec(f.__name__)}
    if options.playground:
        tools["playground"] = lambda folder, pages: playground(folder, pages, options.playground)
    options.pictures.mkdir(parents=True, exist_ok=True)
    numbers, results = numbers_of_the_step(), {}
    print(f"{'':<12}" + "".join(f"{kind:>20}" for kind in numbers) + "   version")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_program(), args=["--no-sandbox", "--disable-gpu"])
        for name, tool in tools.items():
            text = tool(options.pictures.resolve(), browser)
            found = {kind: {"shown": shown(all_, text), "of": len(all_)} for kind, all_ in numbers.items()}
            results[name] = {**found, "version": _version(name)}
            counts = "".join(f"{f['shown']:>14} of {f['of']}" for f in found.values())
            print(f"{name:<12}{counts}   {results[name]['version']}")
        browser.close()
    _shrink(options.pictures)
    options.playground = options.playground is not None
    save(__file__, options, results=results)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "as built"


def _shrink(folder: Path) -> None:
    """At most twice the width of a page, and 128 colours, so that the pictures stay small."""
    from PIL import Image

    for file in folder.glob("*.png"):
        with Image.open(file) as picture:
            drawn = picture.convert("RGB")
        drawn.thumbnail((2 * WIDTH, 2 * WIDTH))
        drawn.quantize(128).save(file, optimize=True)


if __name__ == "__main__":
    main()
