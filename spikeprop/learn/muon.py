"""``MuonSGD``: momentum made orthogonal for matrices and convolutions, SGD for everything else.

A matrix W (a convolution: its first dimension as rows, which are filters, or of a transposed one the input channels) with
gradient G takes the step

    M <- m M + G,    W <- W - lr O(G + m M),    O(X) = U V^T of the singular value decomposition X = U S V^T,

so every direction of a gradient moves the weights alike, not mostly the few that are large. O is found by a few steps of
X <- a X + (b A + c A^2) X with A = X X^T, which bring all singular values near 1 (Newton-Schulz). Source: Jordan et al. 2024,
"Muon: An optimizer for hidden layers in neural networks"; the constant norm is that of Jordan's airbench94_muon for CIFAR-10.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # as fast from 0 as can be, at the price of ending near 1 and not at it


def orthogonalised(matrix: Tensor, steps: int) -> Tensor:
    """A matrix (R, C) with its singular vectors and all singular values near 1; zero stays zero.

    Singular values of 0.02 of the Frobenius norm and more come to between 0.65 and 1.25 in 3 steps, those of 0.002 in 5.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    largest = x.abs().amax()
    if not largest > 0:  # zero, or not a number, which stays one
        return matrix.clone()
    x = x / largest  # so that no square leaves the range of numbers
    x = x / torch.linalg.vector_norm(x, dtype=_exact(x)).to(x.dtype)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class MuonSGD(Optimizer):
    """Muon for matrices and convolutions but the last, SGD with Nesterov's momentum for everything else.

    Neither the readout nor embeddings suit Muon. The last matrix in the order of the parameters is taken for the readout and
    follows SGD, as do vectors, and tensors with one number a row (thresholds and scales of channels). A group says otherwise by
    a key ``orthogonal``: True or False for all of it. A matrix whose gradient is zero does not move.

    Args:
        params: parameters, or groups of them; a group's ``lr`` is a rate of SGD, and Muon's is ``matrix_lr`` times that of the
            group over ``lr``.
        lr: rate of SGD. It does not move what follows Muon: with a recipe's ``lr``, which is this one, set ``matrix_lr`` too. A
            second rate of an experiment (``rates`` of arms, ``pretrain_lr``) moves both in its ratio to ``lr``.
        matrix_lr: rate of Muon: about the length by which a step moves a row, if there are no more rows than columns.
        momentum: of both, in [0, 1).
        weight_decay: SGD adds it to the gradient; Muon shrinks a matrix by matrix_lr * weight_decay. Not used with constant_norm.
        constant_norm: before each step a matrix is brought to the Frobenius norm sqrt(rows), so a rate means the same throughout.
            Only where batch-norm follows, which takes the scale away.
        steps: of the orthogonalisation.

    Raises:
        ValueError: a setting outside its range, or parameters that are sharded, complex or not yet made.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        *,
        matrix_lr: float = 0.02,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        constant_norm: bool = False,
        steps: int = 5,
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "constant_norm": constant_norm, "steps": steps}
        if not 0 < lr < math.inf:
            raise ValueError(f"lr is {lr}; it is positive, as rates of groups are compared with it")
        if not matrix_lr >= 0:
            raise ValueError(f"matrix_lr is {matrix_lr}; it is 0 or more")
        _check(defaults)
        if isinstance(params, set):
            raise TypeError("parameters need an order, which a set has not: give a list")
        self._muon_per_lr = matrix_lr / lr
        given = params if isinstance(params, Tensor) else [_with_list(group) for group in params]  # torch refuses a tensor
        groups = given if isinstance(given, list) else []
        held = [p for group in groups for p in (group.get("params", ()) if isinstance(group, dict) else [group])]
        matrices = [p for p in map(_tensor, held) if isinstance(p, Tensor) and _is_matrix(p)]
        self._readout = id(matrices[-1]) if matrices else None
        super().__init__(given, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose matrices follow Muon and the rest SGD unless its key ``orthogonal`` says what all of it follows."""
        held = param_group.get("params")
        if held is None or isinstance(held, set):
            super().add_param_group(param_group)  # torch names what is wrong
            return
        listed, lr = _listed(held), param_group.get("lr", self.defaults["lr"])
        _check({**self.defaults, **param_group})
        for p in map(_tensor, listed):
            if is_lazy(p):
                raise ValueError("MuonSGD needs the shapes of all parameters: run the network once before its optimiser is made")
            if isinstance(p, Tensor) and type(p.data) is not Tensor:
                raise ValueError("MuonSGD needs complete matrices, and these parameters are sharded: use sharded=false, or SGD")
            if isinstance(p, Tensor) and p.is_complex():
                raise ValueError("MuonSGD has no complex form: use SGD for complex parameters")

        def follows_muon(p: Any) -> bool:
            return bool(param_group.get("orthogonal", id(p) != self._readout and isinstance(p, Tensor) and _is_matrix(p)))

        for orthogonal, rate in ((True, lr * self._muon_per_lr), (False, lr)):
            members = [p for p in listed if follows_muon(_tensor(p)) == orthogonal]
            if members or (not listed and not orthogonal):
                super().add_param_group({**param_group, "params": members, "orthogonal": orthogonal, "lr": rate})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step; a closure computes the loss anew first, and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad, group)
        return loss

    def _step(self, p: nn.Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        if grad.layout is not torch.strided:
            raise ValueError("MuonSGD takes no sparse gradients: use sparse=False in the embedding, or SGD")
        lr, momentum, decay, orthogonal = group["lr"], group["momentum"], group["weight_decay"], group.get("orthogonal", False)
        moves = not orthogonal or bool(grad.any())  # what is left of old gradients would be made as long as a new one
        if not orthogonal and decay:
            grad = grad.add(p, alpha=decay)
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        state["momentum_buffer"].mul_(momentum).add_(grad)
        direction = grad.add(state["momentum_buffer"], alpha=momentum)
        if orthogonal and moves:
            if not group["constant_norm"]:
                p.mul_(1 - lr * decay)
            elif (norm := torch.linalg.vector_norm(p, dtype=_exact(p))) > 0:
                p.mul_(len(p) ** 0.5 / norm)
            direction = orthogonalised(direction.flatten(1), group["steps"]).view(direction.shape)
        if moves:
            p.add_(direction, alpha=-lr)


def _is_matrix(p: Tensor) -> bool:
    return not is_lazy(p) and p.ndim > 1 and min(len(p), p.numel() // max(len(p), 1)) > 1


def _tensor(given: Any) -> Any:
    """A parameter, given alone or with its name."""
    return given[1] if isinstance(given, tuple) and len(given) == 2 else given


def _listed(given: Any) -> list[Any]:
    return [given] if isinstance(given, Tensor) else list(given)


def _with_list(given: Any) -> Any:
    """A group whose parameters can be read more than once, as a generator's cannot; anything else as it is."""
    if isinstance(given, dict) and not isinstance(given.get("params", set()), set):
        return {**given, "params": _listed(given["params"])}
    return given


def _exact(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _check(settings: Mapping[str, Any]) -> None:
    for name in ("lr", "weight_decay"):
        if not settings[name] >= 0:
            raise ValueError(f"{name} is {settings[name]}; it is 0 or more")
    if not 0 <= settings["momentum"] < 1:
        raise ValueError(f"momentum is {settings['momentum']}; it is at least 0 and below 1")
    steps = settings["steps"]
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps}; an orthogonalisation takes a whole number of them, at least 1")
