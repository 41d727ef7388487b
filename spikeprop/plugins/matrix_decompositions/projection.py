"""``VariableProjection``: an experiment that trains through a least-squares layer, and measures the accuracy of its gradients.

The readout c = argmin |F c - y|^2 + ridge |c|^2 of features F = [1, x, tanh(x W + b)] is solved, not trained, on a random half
of the training patients; the loss is the squared error on the other half, so it depends on W, b and the ridge through c. (On
the same half it would not, because the derivative by c is zero there; Golub & Pereyra 1973.) The data are scikit-learn's
diabetes patients. The second part measures the error of float32 gradients against the condition number of the system, for QR,
torch.linalg.lstsq and the normal equations.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.evaluate import Report
from spikeprop.evaluate.intervals import in_words, mean_interval, paired_difference
from spikeprop.evaluate.pictures import GREY, ORANGE, VIOLET, new_figure, save_figure
from spikeprop.experiment.context import Context
from spikeprop.plugins.matrix_decompositions.solve import least_squares
from spikeprop.plugins.reports import save_report
from spikeprop.runtime.arguments import typed
from spikeprop.runtime.checks import distinct, positive
from spikeprop.runtime.seeding import generator

BASELINE = "readout trained"
ARMS = (BASELINE, "solved, gradient around", "solved, gradient through")
SOLVERS = ("QR", "torch.linalg.lstsq", "normal equations")
COLORS = {"QR": ORANGE, "torch.linalg.lstsq": VIOLET, "normal equations": GREY}


@typed(ValueError)
@dataclass(frozen=True, kw_only=True)
class VariableProjection:
    """Compare a least-squares layer with a trained readout, and measure the accuracy of gradients.

    Attributes:
        seeds: seeds of the split into training and test patients and of all random numbers; arms are paired by seed.
        hidden: number of tanh features.
        ridge: initial weight of |c|^2; the arm with gradients through the solution trains it too.
        steps, lr: steps and learning rate of Adam, for all arms.
        test_share: fraction of patients for testing.
        closeness: relative distances of a copied column from its original; they set the condition numbers of the second part.
    """

    seeds: list[int]
    closeness: list[float]
    hidden: int = 20
    ridge: float = 30.0
    steps: int = 100
    lr: float = 3e-3
    test_share: float = 0.25

    def __post_init__(self) -> None:
        positive(self, "hidden", "ridge", "steps", "lr")
        if not 0 < self.test_share < 1:
            raise ValueError(f"test_share is {self.test_share}; it must lie between 0 and 1")
        distinct(self, "seeds", least=2)
        if not self.closeness or min(self.closeness) <= 0:
            raise ValueError(f"closeness is {self.closeness}; give positive numbers")

    def check(self, *, here: bool = False) -> None:
        """Nothing to check: all settings are checked when they are read."""

    def smoke(self) -> VariableProjection:
        """The same experiment with two seeds and few steps."""
        return dataclasses.replace(self, seeds=self.seeds[:2], steps=3, closeness=self.closeness[:2])

    def run(self, context: Context) -> Report:
        """Run both parts; finished seeds are read from the folder."""
        fits = [context.folder.stage(f"fit.{seed}", lambda s=seed: self._fit(s)) for seed in self.seeds]
        gradients = context.folder.stage("gradients", self._gradients)["points"]
        scores = {name: [fit[name]["r2"] for fit in fits] for name in ARMS}
        arms = {
            name: {**mean_interval(values), "r2": values, "against_baseline": paired_difference(values, scores[BASELINE])}
            for name, values in scores.items()
        }
        ridges = [fit["solved, gradient through"]["ridge"] for fit in fits]
        values = {
            "name": context.name,
            "seeds": self.seeds,
            "arms": arms,
            "learned_ridge": ridges,
            "gradients": gradients,
        }
        return save_report(
            context, values, lambda _: _rows(arms, gradients, ridges), lambda _, path: _draw(scores, gradients, path)
        )

    def _fit(self, seed: int) -> dict[str, Any]:
        """R^2 of each arm on the test patients."""
        x, y = _patients()
        order = torch.randperm(len(y), generator=generator(seed, 1))
        test, train = order.split([round(self.test_share * len(y)), len(y) - round(self.test_share * len(y))])
        center, scale = x[train].mean(0), x[train].std(0)
        x, y = (x - center) / scale, (y - y[train].mean()) / y[train].std()
        found = {}
        for name in ARMS:
            features, ridge, readout = self._train(name, x[train], y[train], seed)
            with torch.no_grad():
                if name != BASELINE:
                    readout = _readout(features(x[train]), y[train], ridge)
                errors = features(x[test]) @ readout - y[test]
            r2 = 1 - errors.square().mean() / y[test].var(correction=0)
            found[name] = {"r2": float(r2), "ridge": float(ridge)}
        return found

    def _train(self, name: str, x: Tensor, y: Tensor, seed: int) -> tuple[_Features, Tensor, Tensor]:
        draws = generator(seed, 2)
        features = _Features(x.shape[1], self.hidden, draws)
        log_ridge = torch.tensor(math.log(self.ridge), dtype=x.dtype, requires_grad=True)
        readout = torch.zeros(1 + x.shape[1] + self.hidden, dtype=x.dtype, requires_grad=True)
        trained = {BASELINE: [readout], ARMS[1]: [], ARMS[2]: [log_ridge]}[name]
        optimizer = torch.optim.Adam([*features.parameters(), *trained], lr=self.lr)
        for _ in range(self.steps):
            order = torch.randperm(len(y), generator=draws)
            fitted, judged = order[: len(y) // 2], order[len(y) // 2 :]
            optimizer.zero_grad()
            if name == BASELINE:
                loss = (features(x) @ readout - y).square().mean() + self.ridge * readout.square().sum() / len(y)
            else:
                solved = _readout(features(x[fitted]), y[fitted], log_ridge.exp() / 2)  # half the patients, half the ridge
                solved = solved if name == ARMS[2] else solved.detach()
                loss = (features(x[judged]) @ solved - y[judged]).square().mean()
            loss.backward()
            optimizer.step()
        return features, log_ridge.detach().exp(), readout.detach()

    def _gradients(self) -> dict[str, Any]:
        """Relative error of float32 gradients of |c|^2 by the system, with two nearly equal columns; median over seeds."""
        x, y = _patients()
        x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
        points = []
        for closeness in self.closeness:
            drawn = [_float32_errors(_nearly_dependent(x, closeness, generator(seed, 3)), y) for seed in self.seeds]
            conditions = [condition for condition, _ in drawn]
            errors = {name: _median([found[name] for _, found in drawn]) for name in SOLVERS}
            points.append({"closeness": closeness, "condition": _median(conditions), "errors": errors})
        return {"points": points}


class _Features(nn.Module):
    """[1, x, tanh(x W + b)]; float64."""

    def __init__(self, inputs: int, hidden: int, draws: torch.Generator):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, hidden, dtype=torch.float64, generator=draws) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.randn(hidden, dtype=torch.float64, generator=draws))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(x[:, :1]), x, torch.tanh(x @ self.weight + self.bias)], 1)


def _readout(features: Tensor, y: Tensor, ridge: Tensor) -> Tensor:
    """argmin |F c - y|^2 + ridge |c|^2, as least squares with additional rows."""
    columns = features.shape[1]
    rows = torch.cat([features, ridge.sqrt() * torch.eye(columns, dtype=y.dtype)])
    return least_squares(rows, torch.cat([y, y.new_zeros(columns)]))


def _patients() -> tuple[Tensor, Tensor]:
    """Measurements (442, 10) and disease progression after a year (442,)."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True, scaled=False)
    return torch.from_numpy(x).double(), torch.from_numpy(y).double()


def _nearly_dependent(x: Tensor, closeness: float, draws: torch.Generator) -> Tensor:
    """x with a noisy copy of its first column; float32, so that both precisions use the same numbers."""
    noise = torch.randn(len(x), dtype=x.dtype, generator=draws)
    return torch.cat([x, (x[:, 0] + closeness * noise).unsqueeze(1)], 1).float()


def _float32_errors(system: Tensor, y: Tensor) -> tuple[float, dict[str, float | None]]:
    """The condition number, and the error of each solver; None if it fails."""
    exact = _gradient(_solve_qr, system.double(), y.float().double())
    errors: dict[str, float | None] = {}
    for name, solve in zip(SOLVERS, (_solve_qr, _solve_lstsq, _solve_normal)):
        try:
            found = _gradient(solve, system, y.float()).double()
            errors[name] = float((found - exact).norm() / exact.norm())
        except torch.linalg.LinAlgError:  # A^T A is not positive in float32
            errors[name] = None
    return float(torch.linalg.cond(system.double())), errors


def _median(values: Sequence[float | None]) -> float | None:
    """The median; None if a value is missing."""
    return None if None in values else statistics.median(v for v in values if v is not None)


def _gradient(solve: Callable[[Tensor, Tensor], Tensor], system: Tensor, y: Tensor) -> Tensor:
    system = system.detach().clone().requires_grad_()
    return torch.autograd.grad(solve(system, y).square().sum(), system)[0]


def _solve_qr(system: Tensor, y: Tensor) -> Tensor:
    return least_squares(system, y, check=False)


def _solve_lstsq(system: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.lstsq(system, y.unsqueeze(1)).solution.squeeze(1)


def _solve_normal(system: Tensor, y: Tensor) -> Tensor:
    return torch.cholesky_solve((system.T @ y).unsqueeze(1), torch.linalg.cholesky(system.T @ system)).squeeze(1)


def _rows(arms: dict[str, Any], gradients: list[dict[str, Any]], ridges: list[float]) -> list[tuple[str, str]]:
    rows = []
    for name, arm in arms.items():
        against = "" if name == BASELINE else f"   against the baseline {in_words(arm['against_baseline'], sign=True)}"
        rows.append((f"R^2 on test patients, {name}", f"{in_words(arm)}{against}"))
    rows.append(("ridge learned", ", ".join(f"{ridge:.2f}" for ridge in ridges)))
    for point in gradients:
        errors = ", ".join(f"{name} {_number(error)}" for name, error in point["errors"].items())
        rows.append((f"error of float32 gradients, condition {point['condition']:.1e}", errors))
    return rows


def _number(error: float | None) -> str:
    return "fails" if error is None else f"{error:.1e}"


def _draw(scores: dict[str, list[float]], gradients: list[dict[str, Any]], path: Path) -> None:
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2)
    for values in zip(*scores.values()):
        left.plot(range(len(scores)), values, "o-", color=ORANGE, alpha=0.35)
    left.plot(range(len(scores)), [sum(v) / len(v) for v in scores.values()], "s-", color=GREY, label="mean of seeds")
    left.set_xticks(range(len(scores)), [name.replace(", ", ",\n") for name in scores])
    left.set(ylabel="$R^2$ on test patients", title="Readout trained or solved (diabetes)")
    left.legend(frameon=False)
    for name, color in COLORS.items():
        found = [(p["condition"], p["errors"][name]) for p in gradients if p["errors"][name] is not None]
        right.loglog([c for c, _ in found], [e for _, e in found], "o-", color=color, label=name)
    right.set(xlabel="condition number", ylabel="relative error", title="Gradient through least squares in float32")
    right.legend(frameon=False)
    save_figure(figure, path, left, right)
