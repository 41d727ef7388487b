"""``replay``: the gradients of a page from its data alone, by the closed forms of the cards, without autograd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spikeprop.errors import ExplainError
from spikeprop.plugins.explain.forms import FORMS
from spikeprop.plugins.explain.numbers import read


def replay(page: Mapping[str, Any], *, forward: bool = True) -> dict[str, Tensor]:
    """Gradients of the parameters by name.

    Args:
        page: data exported from a page.
        forward: compute all values from inputs and parameters instead of reading them from the page.

    Raises:
        ExplainError: the page contains only samples, or a call without a closed form.
    """
    page = read(page)
    if not page["complete"]:
        raise ExplainError("this page contains samples of its tensors; only a complete page can be replayed (explain --entries)")
    if page["unknown"]:
        raise ExplainError(f"these calls have no closed form: {', '.join(page['unknown'])}")
    values = {v["id"]: _tensor(v) for v in page["values"]}
    if forward:
        for node in page["nodes"]:
            found = FORMS[node["kind"]].forward([values[i] for i in node["inputs"]], node["settings"])
            values.update(zip(node["outputs"], found))
    cotangents = {page["loss_value"]: torch.ones((), dtype=torch.float64)}
    for node in reversed(page["nodes"]):
        upstream = [cotangents.get(o, torch.zeros_like(values[o])) for o in node["outputs"]]
        inputs, outputs = [values[i] for i in node["inputs"]], [values[o] for o in node["outputs"]]
        for index, share in zip(node["inputs"], FORMS[node["kind"]].backward(upstream, inputs, outputs, node["settings"])):
            if share is not None and "cotangent" in page["values"][index]:
                cotangents[index] = cotangents[index] + share if index in cotangents else share
    parameters = {v["name"]: v["id"] for v in page["values"] if v["role"] == "parameter" and "cotangent" in v}
    return {name: cotangents.get(index, torch.zeros_like(values[index])) for name, index in parameters.items()}


def _tensor(value: Mapping[str, Any]) -> Tensor:
    kind = torch.int64 if value["integer"] else torch.float64
    return torch.tensor(value["data"]["all"], dtype=kind).view(value["shape"])
