"""``PredictiveCoding``: backprop's gradient from the errors of predictions (Whittington & Bogacz 2017; Millidge et al. 2020).

Each segment predicts its value v_s from the values that it reads, mu_s = f_s(v), and the values minimise the energy

    F = sum over hidden s of |v_s - mu_s|^2 / 2 + w L(mu_output, y),      v_s <- v_s - eta dF/dv_s

from the forward pass, where all errors are 0. With e_s = mu_s - v_s, and e_output = w dL/dmu,

    dF/dv_s = -e_s + sum over readers r of (dmu_r/dv_s)^T e_r,      dF/dtheta_s = (dmu_s/dtheta_s)^T e_s.

With fixed predictions (Millidge, Tschantz & Buckley 2020, arXiv:2006.04182) mu and its derivatives stay those of the
forward pass, the errors follow the dynamics of ``relax``, and their fixed point is backprop's adjoint exactly. Otherwise it is
that to first order in the loss's weight w (Millidge et al. 2022, arXiv:2206.02629). The gradient is divided by w.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spikeprop.errors import TrainingCollapsed
from spikeprop.learn.segments import SegmentPass
from spikeprop.plugins.activation_relaxation.relax import enough_sweeps, relax
from spikeprop.plugins.local_rules.base import ForwardPass, SegmentRule, norm
from spikeprop.runtime.checks import positive


@dataclass(frozen=True, kw_only=True)
class PredictiveCoding(SegmentRule):
    """Gradients by minimising the errors of predictions.

    Attributes:
        loss: any loss of scores and labels.
        step_size: eta of the values, in (0, 1].
        iterations: number of steps; null for as many as fixed predictions need in a network of this depth (``enough_sweeps``).
        fixed_prediction: keep predictions and derivatives of the forward pass; otherwise they follow the values, which requires a
            network without batch-norm and dropout.
        loss_weight: w, without fixed predictions; the smaller, the closer to backprop.
    """

    knows: ClassVar[str] = "its input, its error, and by W^T the errors of the layers that read it; as many rounds as the depth"
    step_size: float = 0.5
    iterations: int | None = None
    fixed_prediction: bool = True
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.step_size <= 1:
            raise ValueError(f"step_size is {self.step_size}; it must lie in (0, 1]")
        if self.iterations is not None and self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; use at least 1, or null for as many as the depth needs")
        positive(self, "loss_weight")
        if self.fixed_prediction and self.loss_weight != 1:
            raise ValueError("loss_weight cancels out with fixed predictions: leave it out, or use fixed_prediction: false")

    @property
    def reruns(self) -> bool:
        return not self.fixed_prediction

    def gradients(self, batch: ForwardPass) -> dict[str, Tensor]:
        count, graph = len(batch.x), batch.graph
        sweeps = self.iterations or enough_sweeps(max(graph.hops().values()), self.step_size, "jacobi")
        if self.fixed_prediction:
            start = {s.name: torch.zeros_like(batch.run.values[s.name]) for s in graph.segments}
            clamped = {graph.output: count * batch.error}
            relaxed = relax(graph, batch.run.vjp, start, clamped, step_size=self.step_size, sweeps=sweeps, sweep="jacobi")
            run, errors, residual = batch.run, relaxed.x, relaxed.residual
        else:
            run, errors, residual = self._minimise(batch, sweeps)
        for segment in graph.segments:
            run.add_parameter_gradients(segment.name, errors[segment.name] / (count * self.loss_weight))
        return {"residual": residual}

    def _minimise(self, batch: ForwardPass, sweeps: int) -> tuple[SegmentPass, dict[str, Tensor], Tensor]:
        """Predictions at the last values, their errors, and the norm of the energy's slope relative to that at the start."""
        values = {s.name: batch.run.values[s.name] for s in batch.hidden()}
        run, errors = self._predict(batch, values)
        first = slope = self._slope(batch, run, errors)
        for _ in range(sweeps):
            values = {name: value - self.step_size * slope[name] for name, value in values.items()}
            run, errors = self._predict(batch, values)
            slope = self._slope(batch, run, errors)
        residual = norm(slope) / norm(first).clamp_min(torch.finfo(batch.error.dtype).tiny)
        if not float(residual) <= 1:
            raise TrainingCollapsed(
                f"after {sweeps} iterations the slope of the energy is {float(residual):.2g} times that at the start, so the "
                "values do not settle: lower step_size, or use fixed_prediction: true"
            )
        return run, errors, residual

    def _slope(self, batch: ForwardPass, run: SegmentPass, errors: dict[str, Tensor]) -> dict[str, Tensor]:
        """dF/dv of the hidden values."""
        slope = {s.name: -errors[s.name] for s in batch.hidden()}
        for segment in batch.graph.segments:
            for name, part in zip(segment.reads, run.vjp(segment.name, errors[segment.name])):
                if part is not None:
                    slope[name] = slope[name] + part
        return slope

    def _predict(self, batch: ForwardPass, values: dict[str, Tensor]) -> tuple[SegmentPass, dict[str, Tensor]]:
        run = SegmentPass(batch.graph, batch.x, at=values)
        mu = run.output.detach().requires_grad_()
        with torch.enable_grad():
            (error,) = torch.autograd.grad(self.loss.for_batch(batch.x)(mu, batch.y), mu)
        errors = {name: run.computed(name) - value for name, value in values.items()}
        return run, {**errors, batch.graph.output: self.loss_weight * len(batch.x) * error}
