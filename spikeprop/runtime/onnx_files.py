"""``read_onnx``: an ONNX file as a PyTorch module, proved to compute what the file says.

onnx2torch makes a module of each operator. It knows operators up to opset 17; newer files are brought down to it by onnx's own
version converter. The module is then compared, on one random batch, with the file itself: run by onnxruntime if that is
installed, otherwise by onnx's reference implementation of every operator (numpy; slower).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.errors import ConversionError
from spikeprop.runtime.onnx_shapes import DOMAIN, EXPAND, ExpandToBatch, with_known_shapes

NEWEST = 17  # opset that onnx2torch knows
LARGEST = 2**31 - 1  # bytes: the limit of protobuf's messages
TOLERANCE = 1e-3  # of the largest output: other orders of summation, in float32
INSTALL = "ONNX files need onnx and onnx2torch; in a copy of the repository: pip install ./hardware '.[onnx]'"


def read_onnx(path: str | Path, example: Tensor | None = None) -> nn.Module:
    """The network in an ONNX file, in evaluation mode; its weights are the parameters of ordinary layers where they can be.

    Args:
        path: of the file; weights may lie in other files beside it.
        example: images (B, ...) for the proof; by default random numbers of the shape that the file gives.

    Raises:
        ConversionError: onnx or onnx2torch is missing; the file is missing, corrupted or too large; operators that onnx2torch
            does not know; not one input; a file for one number of images only; or a module that computes something else.
    """
    path = Path(path)
    model = _loaded(path)
    image = _input_of(model, path)
    example = _example(image, example, path)
    older = _older(with_known_shapes(model, image.name, list(example.shape[1:])), path)  # arithmetic of sizes has no older form
    _teach()
    _check_operators(older, path)
    try:
        from onnx2torch import convert

        with warnings.catch_warnings(), torch.device("cpu"):
            warnings.simplefilter("ignore")
            module = convert(older).eval()
    except Exception as error:
        raise ConversionError(f"{path}: onnx2torch cannot convert it: {type(error).__name__}: {error}") from error
    _prove(model, module, image.name, example, path)
    return module if torch.get_default_device().type != "meta" else module.to("meta")


def _loaded(path: Path) -> Any:
    try:
        import onnx
        import onnx2torch  # noqa: F401
    except ImportError as error:
        raise ConversionError(f"{INSTALL} ({error})") from error
    if not path.is_file():
        raise ConversionError(f"no ONNX file at {path}")
    if path.stat().st_size > LARGEST:
        raise ConversionError(f"{path} has {path.stat().st_size} bytes, and ONNX files at most {LARGEST}; keep weights beside it")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # of protobuf, of onnx, of the file system
        raise ConversionError(f"{path} is no ONNX file, or is corrupted: {type(error).__name__}: {_first_line(error)}") from error
    return model


def _older(model: Any, path: Path) -> Any:
    """The model with operators of an opset that onnx2torch knows."""
    from onnx import version_converter

    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset <= NEWEST:
        return model
    try:
        return version_converter.convert_version(model, NEWEST)
    except Exception as error:
        raise ConversionError(
            f"{path} has operators of opset {opset}, and onnx cannot bring them down to opset {NEWEST}, which onnx2torch knows: "
            f"{_first_line(error)}; export the network with opset_version={NEWEST}"
        ) from error


def _check_operators(model: Any, path: Path) -> None:
    from onnx2torch.node_converters import get_converter

    opsets, unknown = {entry.domain: entry.version for entry in model.opset_import}, set()
    for node in model.graph.node:
        try:
            get_converter(node.op_type, opsets.get(node.domain, NEWEST), node.domain)
        except NotImplementedError:
            unknown.add(f"{node.domain}.{node.op_type}".lstrip("."))
    if unknown:
        raise ConversionError(
            f"{path}: onnx2torch does not know {', '.join(sorted(unknown))}; export the network without, or convert the PyTorch "
            "module that it was exported from"
        )


def _input_of(model: Any, path: Path) -> Any:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise ConversionError(f"{path} has {len(inputs)} inputs ({names}); convert a network with one input")
    return inputs[0]


def _sliced(x: Tensor, flipped: list[int], first: list[Any], last: list[Any]) -> Tensor:
    x = torch.flip(x, [int(axis) for axis in flipped]) if flipped else x
    for index in (first, last):
        if index:
            x = x[tuple(slice(*(None if i is None else int(i) for i in (s.start, s.stop, s.step))) if isinstance(s, slice) else s
                        for s in index)]  # fmt: skip
    return x


def _teach() -> None:
    """Make onnx2torch know our own operator, and index with numbers."""
    from onnx2torch.node_converters import gather, registry
    from onnx2torch.node_converters import slice as slicing
    from onnx2torch.utils.common import OnnxMapping, OperationConverterResult

    slicing._do_slice = _sliced  # its own indexes with a list, which PyTorch gives up
    taught: Any = gather.OnnxGather
    taught.slice_from_axis = staticmethod(_place)  # its own indexes with a tensor, also for one number
    if registry.OperationDescription(DOMAIN, EXPAND, 1) in registry._CONVERTER_REGISTRY:
        return

    @registry.add_converter(operation_type=EXPAND, version=1, domain=DOMAIN)
    def _(node: Any, graph: Any) -> Any:
        weight, images = node.input_values
        module = ExpandToBatch(graph.initializers[weight].to_torch(), list(node.attributes["sizes"]), node.attributes["axis"])
        return OperationConverterResult(torch_module=module, onnx_mapping=OnnxMapping((images,), tuple(node.output_values)))


def _place(x: Tensor, axis: int, indices: Any) -> tuple[Any, ...]:
    """The index that takes ``indices`` along an axis; a tensor of one number, which is no Proxy, as that number."""
    one = isinstance(indices, Tensor) and indices.dim() == 0
    return (*(slice(None),) * (axis % x.dim()), int(indices) if one else indices.long())


def _example(image: Any, example: Tensor | None, path: Path) -> Tensor:
    """Images on which the file can run."""
    sizes = [d.dim_value or None for d in image.type.tensor_type.shape.dim]
    if example is None and (not sizes or None in sizes[1:]):
        raise ConversionError(f"{path} does not give the shape of its images; pass example=, a batch of them")
    if example is None:
        generator = torch.Generator("cpu").manual_seed(0)
        example = torch.randn([size or 2 for size in sizes], generator=generator, device="cpu")
    assert example is not None
    example = example.detach().cpu().float()
    return example[: sizes[0]] if sizes and sizes[0] else example


def _prove(model: Any, module: nn.Module, name: str, example: Tensor, path: Path) -> None:
    wanted, found = _run_file(model, name, example, path), _run_module(module, example, path)
    if len(wanted) != len(found) or any(not _close(a, b) for a, b in zip(found, wanted)):
        raise ConversionError(f"{path}: the module that onnx2torch makes of it computes something else than the file")
    twice = torch.cat([example, example])
    try:
        whole = _run_module(module, twice, path)
    except ConversionError:
        whole = []
    if not whole or any(not _close(a, torch.cat([b, b])) for a, b in zip(whole, found)):
        raise ConversionError(
            f"{path} was exported for exactly {len(example)} images; export it for any number: torch.onnx.export(..., "
            'dynamic_axes={"input": {0: "batch"}})'
        )


def _run_file(model: Any, name: str, x: Tensor, path: Path) -> list[Tensor]:
    try:
        try:
            import onnxruntime

            found = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
                None, {name: x.numpy()}
            )
        except ImportError:
            from onnx.reference import ReferenceEvaluator

            found = ReferenceEvaluator(model).run(None, {name: x.numpy()})
    except Exception as error:
        raise ConversionError(f"{path} cannot run on images {tuple(x.shape)}: {_first_line(error)}") from error
    return [torch.from_numpy(array) for array in found]


@torch.no_grad()
def _run_module(module: nn.Module, x: Tensor, path: Path) -> list[Tensor]:
    try:
        result = module(x)
    except Exception as error:
        raise ConversionError(f"{path}: the module that onnx2torch makes of it cannot run: {_first_line(error)}") from error
    return list(result) if isinstance(result, tuple | list) else [result]


def _close(found: Tensor, wanted: Tensor) -> bool:
    if found.shape != wanted.shape:
        return False
    return bool((found - wanted).abs().max() <= TOLERANCE * wanted.abs().max()) if wanted.numel() else True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
