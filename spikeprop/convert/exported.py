"""``torch.export`` for what torch.fx cannot trace: functions of compiled code, constructors of tensors, autocast, checkpointing.

The exported graph consists of operations of ``torch.ops.aten`` on the network's parameters. It is run once more under the tracer,
so that it comes out in the form of any other trace (``convert/aten.py`` gives the names), each node with its place in the code.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from spikeprop.convert.aten import DROPPED
from spikeprop.convert.known import BATCH, KnownTracer
from spikeprop.convert.place import OUR_OWN, Place

LINE = re.compile(r'File "([^"]+)", line (\d+)')


def export(plain: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> fx.GraphModule | None:
    """The graph for any number of images; None if there is none."""
    images = torch.zeros(BATCH, *shape, dtype=dtype, device=device)
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # what torch.export cannot do is no message for the user
    try:
        return _exported(plain, images)
    finally:
        logging.disable(before)


def _exported(plain: nn.Module, images: torch.Tensor) -> Any:
    for strict in (False, True):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dynamic = ({0: torch.export.Dim.DYNAMIC},)  # any number of images, or an error
                exported = torch.export.export(plain, (images,), dynamic_shapes=dynamic, strict=strict).module()
        except Exception:
            continue
        exported.graph.eliminate_dead_code()
        return exported
    return None


class ExportTracer(KnownTracer):
    """Traces an exported graph."""

    def inputs(self, forward: Callable[..., Any]) -> tuple[Callable[..., Any], list[Any]]:
        """The image, and what runs the graph."""
        image = self.create_proxy("placeholder", "x", (), {})
        return lambda root, x: _Run(root, self).run(x), [self.root, image]


class _Run(fx.Interpreter):
    def __init__(self, root: Any, tracer: ExportTracer):
        super().__init__(root)
        self.extra_traceback, self.tracer = False, tracer

    def run_node(self, n: fx.Node) -> Any:
        self.tracer.place = _place(n.meta.get("stack_trace") or "")
        return None if n.target in DROPPED else super().run_node(n)


def _place(stack: str) -> Place | None:
    """The innermost line of the network's code."""
    lines = [(file, int(line)) for file, line in LINE.findall(stack) if not file.startswith(OUR_OWN)]
    return lines[-1] if lines else None
