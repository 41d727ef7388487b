"""``MuonSGD``: momentum made orthogonal for matrices and convolutions, SGD for everything else.

A matrix W of R rows (a convolution: filters as rows) with gradient G takes the step

    M <- m M + G,    W <- W - lr O(G + m M),    O(X) = U V^T of the singular value decomposition X = U S V^T,

so every direction of a gradient moves the weights alike, not mostly the few that are large. O is found by a few steps of
X <- a X + (b A + c A^2) X with A = X X^T, which bring all singular values near 1 (Newton-Schulz). Source: Jordan et al. 2024,
"Muon: An optimizer for hidden layers in neural networks"; the constant norm is that of Jordan's airbench94_muon for CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # steepest at 0 of those that keep values in about 0.7 to 1.2


def orthogonalised(matrix: Tensor, steps: int) -> Tensor:
    """A matrix (R, C) with its singular vectors and all singular values near 1; zero stays zero.

    Singular values of 0.02 of the Frobenius norm and more come to between 0.65 and 1.25 in 3 steps, those of 0.002 in 5.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class MuonSGD(Optimizer):
    """Muon for matrices and convolutions but the last, SGD with Nesterov's momentum for everything else.

    The last tensor of two dimensions or more, in the order of the groups, is taken for the readout, which Muon does not suit. Nor
    does it suit embeddings; freeze them, or train them with another optimiser.

    Args:
        params: parameters, or groups of them; a group's ``lr`` is a rate of SGD, and Muon's is ``matrix_lr`` times that of the
            group over ``lr``.
        lr: rate of SGD.
        matrix_lr: rate of Muon: the change of a row with a step, as its length.
        momentum: of both, in [0, 1).
        weight_decay: SGD adds it to the gradient; Muon shrinks a matrix by matrix_lr * weight_decay. Not used with constant_norm.
        constant_norm: before each step a matrix is brought to the Frobenius norm sqrt(rows), so a rate means the same throughout.
            Only where batch-norm follows, which takes the scale away.
        steps: of the orthogonalisation.

    Raises:
        ValueError: a setting outside its range, or parameters that are parts of sharded ones.
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
        for name, value in (("lr", lr), ("matrix_lr", matrix_lr), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it is 0 or more")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it is at least 0 and below 1")
        if not steps >= 1:
            raise ValueError(f"steps is {steps}; an orthogonalisation takes at least 1")
        given = list(params)
        groups = [dict(g) if isinstance(g, dict) else {"params": [g]} for g in given]
        if not any(isinstance(g, dict) for g in given):
            groups = [{"params": given}] if given else []
        for group in groups:
            held = group["params"]
            group["params"] = [held] if isinstance(held, Tensor) else list(held)
        if any(type(p.data) is not Tensor for group in groups for p in group["params"]):
            raise ValueError("MuonSGD needs complete matrices, and these parameters are sharded: use sharded=false, or SGD")
        hidden = {id(p) for p in [p for group in groups for p in group["params"] if p.ndim > 1][:-1]}
        split = []
        for group in groups:
            matrices = [p for p in group["params"] if id(p) in hidden]
            rate = group.get("lr", lr)
            others = [p for p in group["params"] if id(p) not in hidden]
            muon_rate = matrix_lr * (rate / lr if lr else 1.0)
            split += [{**group, "params": matrices, "orthogonal": True, "lr": muon_rate}] if matrices else []
            split += [{**group, "params": others, "orthogonal": False, "lr": rate}] if others else []
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "constant_norm": constant_norm, "steps": steps}
        super().__init__(split, defaults)

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
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        if not group["orthogonal"] and decay:
            grad = grad.add(p, alpha=decay)
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        state["momentum_buffer"].mul_(momentum).add_(grad)
        direction = grad.add(state["momentum_buffer"], alpha=momentum)
        if group["orthogonal"]:
            if group["constant_norm"]:
                p.mul_(len(p) ** 0.5 / p.norm().clamp_min(torch.finfo(p.dtype).tiny))
            else:
                p.mul_(1 - lr * decay)
            direction = orthogonalised(direction.flatten(1), group["steps"]).view(direction.shape)
        p.add_(direction, alpha=-lr)
