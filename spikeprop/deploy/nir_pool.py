"""Max pooling of spikes as a node of a NIR file.

    N[t] = N[t-1] + s[t];   o[t] = max(N[t]) - max(N[t-1])      (``SpikingMaxPool``; windows as of ``torch.nn.MaxPool2d``)

NIR 1.0.8 has no node for it, and no composition of its nodes is equal. A standard node with a mark in its metadata would be run
as what it is not, a plain IF or a sum, by every importer that does not look there. So it is a node of a type of its own,
``SpikingMaxPool2d``: ``nir.read``, and with it every library's importer, refuses a file with a type that it does not know; to
read one, take ``read_nir``. The name is not MaxPool2d, which NIR may one day give to the largest value of a single step.
spikeprop-hardware, which knows nothing of this package, has the same node; each tells it by the name of its type.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
from nir.serialization import hdf2dict

from spikeprop.deploy.hdf5 import measure
from spikeprop.errors import NirError


@dataclass(eq=False)
class SpikingMaxPool2d(nir.NIRNode):
    """Windows over (C, H, W) that pass on by how much the largest spike count of their places grows.

    Attributes:
        kernel_size, stride, padding: (height, width); padded places count nothing.
        ceil_mode: 1 where a last window may reach over the edge.
    """

    kernel_size: np.ndarray
    stride: np.ndarray
    padding: np.ndarray
    ceil_mode: int = 0

    def __post_init__(self) -> None:
        self.input_type: Any = {"input": None}
        self.output_type: Any = {"output": None}


KIND = SpikingMaxPool2d.__name__


def is_max_pool(node: Any) -> bool:
    """Whether a node is a ``SpikingMaxPool2d``, of this package or of spikeprop-hardware."""
    return type(node).__name__ == KIND


def read_nir(path: str | Path) -> nir.NIRGraph:
    """Read a NIR file as ``nir.read`` does, and max pooling too; the file may come from anyone (``spikeprop.deploy.hdf5``).

    Raises:
        NirError: no such file, not a whole NIR file, one that holds more than a NIR file may, or a node of max pooling with
            fields missing or unknown.
    """
    if not Path(path).is_file():
        raise NirError(f"there is no file {path}")
    try:
        with h5py.File(path, "r") as file:
            measure(file)
            graph = _graph(hdf2dict(file["node"]))
    except NirError:
        raise
    except Exception as error:  # HDF5's library and nir's constructors raise whatever damage leads them to
        raise NirError(f"{path} is not a NIR file, or only a part of one: {error}") from error
    if not isinstance(graph, nir.NIRGraph):
        raise NirError(f"{path} holds a single node, not a graph")
    return graph


def _graph(found: dict[str, Any]) -> Any:
    if not any(node["type"] == KIND for node in found.get("nodes", {}).values()):
        return nir.dict2NIRNode({**found, "type_check": False})
    pools = {name: _pool(name, node) for name, node in found["nodes"].items() if node["type"] == KIND}
    others = {name: node for name, node in found["nodes"].items() if name not in pools}
    graph: Any = nir.dict2NIRNode({**found, "nodes": others, "type_check": False})
    graph.nodes = {name: pools.get(name) or graph.nodes[name] for name in found["nodes"]}
    return graph


def _pool(name: str, found: dict[str, Any]) -> SpikingMaxPool2d:
    given = {key: value for key, value in found.items() if key != "type"}
    wanted = {field.name for field in fields(SpikingMaxPool2d) if field.init}
    if not wanted - {"metadata", "ceil_mode"} <= given.keys() <= wanted:
        raise NirError(f"node {name!r} is a {KIND} with the fields {sorted(given)}; it has {sorted(wanted)}")
    return SpikingMaxPool2d(**given)
