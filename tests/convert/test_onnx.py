"""ONNX files: the module is the file's network, converts, and what cannot be read is refused in words."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeprop import IF, Direct, GradedIF
from spikeprop.ann import OnnxModel
from spikeprop.convert import ConversionError, from_onnx, relu_activations, to_spiking

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnx2torch", reason="needs the extra onnx")
X = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(4, 3)
        nn.init.uniform_(self.norm.running_mean)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.a(x)))
        x = self.pool(torch.relu(self.b(x) + x))
        first, second = x.chunk(2, 1)
        return self.head(torch.cat([second, first], 1).mean((2, 3)).view(x.shape[0], -1))


class Attending(nn.Module):
    """A class token beside patches, attention and a gated step, as exporters write them with the batch left open."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(2, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.places, self.norm, self.how = nn.Parameter(torch.randn(1, 5, 8) / 10), nn.LayerNorm(8), how
        self.attention, self.qkv, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        y = self.norm(x)
        if self.how == "module":
            y = self.attention(y, y, y, need_weights=False)[0]
        else:
            q, k, v = self.qkv(y).reshape(*y.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
            scores = (
                nn.functional.scaled_dot_product_attention(q, k, v)
                if self.how == "function"
                else (q @ k.transpose(-2, -1)).softmax(-1) @ v
            )
            y = scores.transpose(1, 2).reshape(*y.shape[:2], 8)
        return self.head(nn.functional.gelu(x + y)[:, 0])


class Flat(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(128, 6), nn.ReLU(), nn.Linear(6, 3))


def exported(net: nn.Module, path: Path, opset: int, dynamic: bool = True) -> nn.Module:
    axes = {"x": {0: "batch"}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net.eval(), (X[:1],), path, dynamo=False, opset_version=opset, input_names=["x"], dynamic_axes=axes)
    return net


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_a_file_converts_to_the_function_of_the_module_that_was_exported(opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = exported(Net(), tmp_path / "net.onnx", opset)
    module = from_onnx(tmp_path / "net.onnx")
    torch.testing.assert_close(module(X), net(X))
    network = to_spiking(module, IF, Direct(), (2, 8, 8), images=X)
    torch.testing.assert_close(list(relu_activations(network, X).values())[-1], net(X), rtol=1e-4, atol=1e-5)
    assert any(isinstance(m, nn.Conv2d) and m.weight.requires_grad for m in network.modules())


@pytest.mark.parametrize(("how", "opset"), [("module", 18), ("function", 17), ("written out", 17)])
def test_a_transformers_file_converts(how: str, opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = exported(Attending(how), tmp_path / "net.onnx", opset)
    module = from_onnx(tmp_path / "net.onnx")
    torch.testing.assert_close(module(X), net(X))
    network = to_spiking(module, GradedIF, Direct(), (2, 8, 8), images=X)
    torch.testing.assert_close(list(relu_activations(network, X).values())[-1], net(X), rtol=1e-4, atol=1e-5)


def test_a_recipe_names_a_file(tmp_path: Path) -> None:
    net = exported(Flat(), tmp_path / "net.onnx", 17)
    torch.testing.assert_close(OnnxModel(path=str(tmp_path / "net.onnx"))(X), net(X))
    with torch.device("meta"):
        assert OnnxModel(path=str(tmp_path / "net.onnx"))(torch.zeros(3, 2, 8, 8)).shape == (3, 3)


def with_node(path: Path, **attributes: Any) -> None:
    model = onnx.load(path)
    node = onnx.helper.make_node(inputs=[model.graph.output[0].name], outputs=["last"], **attributes)
    model.graph.node.append(node)
    model.graph.output[0].name = "last"
    onnx.save(model, path)


def test_what_cannot_be_read_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with pytest.raises(ConversionError, match="no ONNX file at"):
        from_onnx(path)
    exported(Flat(), path, 17)
    whole = path.read_bytes()
    for damaged in (b"", b"no protobuf at all", whole[: len(whole) // 2], whole[:40] + b"\xff" * 40 + whole[80:]):
        path.write_bytes(damaged)
        with pytest.raises(ConversionError, match=r"net\.onnx"):
            from_onnx(path)
    path.write_bytes(whole)
    with_node(path, op_type="Hardmax", axis=1)
    with pytest.raises(ConversionError, match="onnx2torch does not know Hardmax; export the network without"):
        from_onnx(path)


def test_a_file_for_one_image_is_refused(tmp_path: Path) -> None:
    class Fixed(Flat):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.reshape(1, -1))

    exported(Fixed(), tmp_path / "net.onnx", 17, dynamic=False)
    with pytest.raises(ConversionError, match=r"was exported for exactly 1 images; export it for any number"):
        from_onnx(tmp_path / "net.onnx")


def test_a_module_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(Flat(), tmp_path / "net.onnx", 17)
    import onnx2torch

    convert = onnx2torch.convert

    def wrong(model: Any) -> nn.Module:
        module = convert(model)
        next(module.parameters()).data.mul_(1.1)
        return module

    monkeypatch.setattr(onnx2torch, "convert", wrong)
    with pytest.raises(ConversionError, match="computes something else than the file"):
        from_onnx(tmp_path / "net.onnx")
