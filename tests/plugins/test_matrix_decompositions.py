"""QR, LQ, pivoted QR, least squares: factors, derivatives against differences and published rules, transforms, refusals."""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from spikeprop.errors import RankError, RecipeError
from spikeprop.experiment.context import Context
from spikeprop.experiment.run_folder import RunFolder
from spikeprop.plugins.matrix_decompositions import apply_q, least_squares, lq, minimum_norm, pivoted_qr, qr
from spikeprop.recipe import load_recipe

# torch warns about its own torch.jit.script at the first use of forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:FutureWarning")
SHAPES = {"square": (3, 3), "deep": (4, 2), "wide": (2, 4)}
TYPES = {"real": torch.float64, "complex": torch.complex128}
# differentiated outputs: the projector of the null space instead of the last columns, which A determines only up to a rotation
CASES: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "qr": lambda a: tuple(qr(a)),
    "qr r": lambda a: (qr(a, "r").R,),
    "qr complete": lambda a: _complete(*qr(a, "complete", null_space="invariant"), min(a.shape[-2:])),
    "pivoted": lambda a: tuple(pivoted_qr(a)[:2]),
    "pivoted r": lambda a: (pivoted_qr(a, "r").R,),
    "pivoted complete": lambda a: _complete(*pivoted_qr(a, "complete", null_space="invariant")[:2], min(a.shape[-2:])),
    "lq": lambda a: tuple(lq(a)),
    "lq l": lambda a: (lq(a, "l").L,),
    "lq complete": lambda a: _complete_lq(*lq(a, "complete", null_space="invariant"), min(a.shape[-2:])),
}


def _complete(q: Tensor, r: Tensor, k: int) -> tuple[Tensor, ...]:
    return q[..., :k], q[..., k:] @ q[..., k:].mH, r


def _complete_lq(left: Tensor, q: Tensor, k: int) -> tuple[Tensor, ...]:
    return left, q[..., :k, :], q[..., k:, :].mH @ q[..., k:, :]


def matrix(shape: str, kind: str = "real", batch: tuple[int, ...] = (), seed: int = 0) -> Tensor:
    """Random, its columns of well separated norms in an order that is not theirs (pivots that a small change leaves alone)."""
    m, n = SHAPES[shape]
    found = torch.randn(*batch, m, n, dtype=TYPES[kind], generator=torch.Generator().manual_seed(seed))
    return found * torch.tensor([1.0, 2.5, 1.6, 4.0])[:n]


def test_factors_equal_torch_and_lapack() -> None:
    for shape, kind, batch in product(SHAPES, TYPES, [(), (2,), (2, 1, 3)]):
        a = matrix(shape, kind, batch)
        for mode in ("reduced", "complete"):
            torch.testing.assert_close(tuple(qr(a, mode)), tuple(torch.linalg.qr(a, mode)), rtol=0, atol=0)
            left, q = lq(a, mode)
            torch.testing.assert_close(left @ q, a)
            torch.testing.assert_close(q @ q.mH, torch.eye(q.shape[-2], dtype=q.dtype).expand(*batch, -1, -1))
            assert not left.triu(1).any()
            q, r, p = pivoted_qr(a, mode)
            torch.testing.assert_close(q @ r, a.take_along_dim(p.unsqueeze(-2), -1))
            torch.testing.assert_close(q.mH @ q, torch.eye(q.shape[-1], dtype=q.dtype).expand(*batch, -1, -1))
            diagonal = r.diagonal(dim1=-2, dim2=-1).abs()
            assert (diagonal[..., :-1] >= diagonal[..., 1:]).all()
            assert not r.tril(-1).any()
        assert qr(a, "r").Q.numel() == lq(a, "l").Q.numel() == pivoted_qr(a, "r").Q.numel() == 0


def test_pivots_equal_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    for shape, kind in product(SHAPES, TYPES):
        a = matrix(shape, kind, (2,))
        found = pivoted_qr(a)
        for index in range(2):
            q, r, p = linalg.qr(a[index].numpy(), mode="economic", pivoting=True)
            torch.testing.assert_close((found.Q[index], found.R[index]), (torch.from_numpy(q), torch.from_numpy(r)))
            assert found.p[index].tolist() == p.tolist()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_derivatives_equal_finite_differences(case: str, shape: str, kind: str) -> None:
    for batch in ((), (2,)):
        a = matrix(shape, kind, batch).requires_grad_()
        assert gradcheck(CASES[case], a, check_forward_ad=True, fast_mode=batch != ())
        assert gradgradcheck(CASES[case], a, check_fwd_over_rev=True, fast_mode=True)


def test_batched_derivatives_under_vmap_equal_finite_differences() -> None:
    for shape, kind in product(SHAPES, TYPES):
        for case in ("qr", "pivoted", "lq"):
            a = matrix(shape, kind, (2,)).requires_grad_()
            assert gradcheck(
                CASES[case], a, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True, fast_mode=True
            )


def test_gradients_are_those_of_the_published_rule() -> None:
    """LQ of a wide matrix and QR of a tall matrix by the equations of the paper, with an explicit inverse."""

    def copyltu(x: Tensor) -> Tensor:
        return x.tril(-1) + x.tril(-1).mH + torch.diag_embed(x.diagonal().real).to(x.dtype)

    for kind in TYPES:
        a = matrix("wide", kind).requires_grad_()
        left, q = lq(a)
        g_l, g_q = torch.randn_like(left).tril(), torch.randn_like(q)
        expected = torch.linalg.inv(left).mH @ (g_q + copyltu(left.mH @ g_l - g_q @ q.mH) @ q)
        torch.testing.assert_close(torch.autograd.grad((left, q), a, (g_l, g_q))[0], expected)
        a = matrix("deep", kind).requires_grad_()
        q, r = qr(a)
        g_q, g_r = torch.randn_like(q), torch.randn_like(r).triu()
        expected = (g_q + q @ copyltu(r @ g_r.mH - g_q.mH @ q)) @ torch.linalg.inv(r).mH
        torch.testing.assert_close(torch.autograd.grad((q, r), a, (g_q, g_r))[0], expected)


def test_gradients_equal_torch_where_supported() -> None:
    for shape, kind in product(SHAPES, TYPES):
        a = matrix(shape, kind, (2, 3)).requires_grad_()
        found = []
        for function in (qr, torch.linalg.qr):
            q, r = function(a)
            loss = (q.abs() ** 3).sum() + q.real.sum() + (r.abs() ** 3).sum()
            found.append(torch.autograd.grad(loss, a)[0])
        torch.testing.assert_close(*found)


def test_entries_below_the_diagonal_of_r_have_no_gradient() -> None:
    a = matrix("wide").requires_grad_()
    assert not torch.autograd.grad(qr(a).R.tril(-1).sum(), a)[0].any()


def losses(a: Tensor) -> Tensor:
    """A scalar that depends on every factor."""
    total = a.new_zeros(())
    for factors in (qr(a), pivoted_qr(a)[:2], lq(a)):
        for weight, factor in enumerate(factors, 2):
            total = total + (weight * factor).cos().sum() + (factor**3).sum()
    return total


def test_func_transforms_nest() -> None:
    a = matrix("deep", batch=(3,))
    second = torch.autograd.functional.hessian(losses, a[0])
    for outer, inner in product((jacfwd, jacrev), repeat=2):
        torch.testing.assert_close(outer(inner(losses))(a[0]), second)
    torch.testing.assert_close(vmap(hessian(losses))(a)[0], second)
    gradients = torch.stack([grad(losses)(one) for one in a])
    torch.testing.assert_close(vmap(grad(losses))(a), gradients)
    torch.testing.assert_close(vmap(vmap(grad(losses)), in_dims=1)(a[:, None])[0], gradients)
    torch.testing.assert_close(vmap(grad(losses), in_dims=2)(a.movedim(0, 2)), gradients)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiles_without_a_break_and_keeps_forward_mode_right() -> None:
    def compiled(function: Callable, fullgraph: bool = True) -> Callable:
        torch._dynamo.reset()
        return torch.compile(function, fullgraph=fullgraph, backend="aot_eager")

    a = matrix("deep", batch=(3,)).requires_grad_()
    expected = torch.autograd.grad(losses(a), a)[0]
    torch.testing.assert_close(torch.autograd.grad(compiled(losses)(a), a)[0], expected)
    a = a.detach()
    torch.testing.assert_close(compiled(vmap(losses))(a), vmap(losses)(a))
    with_break = compiled(lambda x: torch.func.jvp(losses, (x,), (x,))[1], fullgraph=False)
    torch.testing.assert_close(with_break(a), (expected * a).sum())
    with pytest.raises(RankError, match="column 1 of matrix 2"):
        compiled(lambda x: qr(x).R)(_dependent(a).requires_grad_())


def test_operators_pass_opcheck() -> None:
    from spikeprop.plugins.matrix_decompositions.functions import pivoted_qr_operator, qr_operator

    for shape, kind, batch in product(SHAPES, TYPES, [(), (2,)]):
        for operator, complete in product((qr_operator, pivoted_qr_operator), (False, True)):
            complete = complete and shape == "deep"
            a = matrix(shape, kind, batch).requires_grad_(not complete)
            tests = ("test_schema", "test_faketensor", "test_autograd_registration")
            torch.library.opcheck(operator, (a, complete, "refuse", "qr"), test_utils=tests)


def _dependent(a: Tensor) -> Tensor:
    """With the second column of the last matrix a multiple of the first."""
    a = a.clone()
    a[..., -1, :, 1] = 2 * a[..., -1, :, 0]
    return a


def test_rank_deficiency_names_the_column_and_the_bound() -> None:
    a = _dependent(matrix("square", batch=(2,)))
    wanted = a.clone().requires_grad_()
    with pytest.raises(RankError, match=r"qr: column 1 of matrix 1 depends on .* \|R\[1, 1\]\| = .* <= .* 10 sqrt\(rows\)"):
        qr(wanted)
    with pytest.raises(RankError, match=r"the rank of matrix 1 is 2 of 3, column 0 depends on the pivots before it"):
        pivoted_qr(wanted)
    with pytest.raises(RankError, match="column 1 of matrix 1 depends"):
        jacfwd(lambda x: qr(x).R)(a)
    with pytest.raises(RankError, match="least_squares: column 1 of matrix 1 depends"):
        least_squares(a, a[..., 0])  # its solution needs the rank too, not only its derivative
    with pytest.raises(RankError, match="column 1 of matrix 1 depends"):
        vmap(grad(lambda x: qr(x).R.sum()))(a)
    q, r = qr(a, check=False)
    torch.testing.assert_close(q @ r, a)
    with pytest.raises(RankError, match=r"row 1 of matrix 1 .* 10 sqrt\(columns\)"):
        lq(wanted.mT)
    for function in (qr, pivoted_qr, lq):
        with pytest.raises(RankError, match="not finite"):
            function(torch.full((2, 2), float("nan"), requires_grad=True))
        function(torch.zeros(2, 2))  # nobody wants a derivative
        with torch.no_grad():
            function(torch.zeros(2, 2, requires_grad=True))
            with pytest.raises(RankError, match="depends"):  # forward mode goes on without reverse mode
                torch.func.jvp(function, (torch.zeros(2, 2),), (torch.ones(2, 2),))
            with forward_ad.dual_level(), pytest.raises(RankError, match="depends"):
                function(forward_ad.make_dual(torch.zeros(2, 2), torch.ones(2, 2)))


def test_columns_of_any_scale_have_full_rank() -> None:
    """QR does not change with the scale of a column, so the bound is relative to each column's own norm."""
    g = torch.Generator().manual_seed(0)
    tall = torch.randn(20_000, 3, generator=g)
    for a in (
        torch.ones(2_000_000, 1),
        tall * torch.tensor([1.0, 1.0, 5e-3]),
        torch.randn(6, 3, dtype=torch.float64, generator=g) * torch.tensor([1, 1e-10, 1e-20], dtype=torch.float64),
    ):
        assert (qr(a.requires_grad_()).R.diagonal() != 0).all()
    tall[:, 2] = tall[:, 0] - 3 * tall[:, 1]
    with pytest.raises(RankError, match="column 2 depends"):
        qr((tall * torch.tensor([1.0, 1.0, 1e-6])).requires_grad_())


def test_a_member_without_cotangent_has_a_zero_gradient() -> None:
    a = matrix("square", batch=(3,))
    a[1] = 0
    a.requires_grad_()
    for function in (qr, lq, pivoted_qr):
        found = function(a, check=False)
        g = torch.autograd.grad(found[0][0].sum() + found[1][2].sum(), a, create_graph=True)[0]
        expected = torch.zeros_like(a)
        for i, output in ((0, 0), (2, 1)):
            expected[i] = torch.autograd.grad(function(a[i])[output].sum(), a)[0][i]
        torch.testing.assert_close(g.detach(), expected)
        assert torch.autograd.grad(g.square().sum(), a)[0].isfinite().all()


def test_empty_matrices_and_batches_are_torchs() -> None:
    for function, shape in product((qr, lq, pivoted_qr), ((0, 3), (3, 0), (0, 3, 2), (2, 0, 3))):
        a = torch.randn(shape, requires_grad=True)
        found = function(a)
        (found[0].sum() + found[1].sum()).backward()
        assert a.grad is not None
        assert a.grad.shape == a.shape
        if function is not lq:
            assert [x.shape for x in found[:2]] == [x.shape for x in torch.linalg.qr(a)]


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # torch's own, for any operator while linearising
def test_autocast_and_linearize() -> None:
    """Under autocast in float32, as torch's own, also the backward pass; a linearised function has the tangents of jvp."""
    x, t = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    plain = torch.autograd.grad(losses(x.requires_grad_()), x)[0]
    with torch.autocast("cpu"):
        assert qr(x.bfloat16()).Q.dtype == lq(A=x.bfloat16()).Q.dtype == torch.linalg.qr(x.bfloat16())[0].dtype == torch.float32
        torch.testing.assert_close(torch.autograd.grad(losses(x), x)[0], plain, rtol=0, atol=0)
    x = x.detach()
    for function in (qr, lq, pivoted_qr):
        _, linear = torch.func.linearize(lambda x, f=function: f(x)[1], x)
        torch.testing.assert_close(linear(t), torch.func.jvp(lambda x, f=function: f(x)[1], (x,), (t,))[1])


def test_pivots_need_only_full_rank() -> None:
    """The first two columns are dependent, but the rank is full: only pivoted QR has a derivative."""
    a = torch.tensor([[1.0, 2.0, 0.5, 1.0], [2.0, 4.0, 3.0, 1.0]], dtype=torch.float64).requires_grad_()
    with pytest.raises(RankError):
        qr(a)
    assert gradcheck(lambda x: tuple(pivoted_qr(x)[:2]), a)


def test_null_space_options() -> None:
    a = matrix("deep").requires_grad_()
    for function in (qr, pivoted_qr):
        with pytest.raises(RuntimeError, match="only up to a rotation"):
            function(a, "complete").Q.sum().backward()
    with pytest.raises(RuntimeError, match="only up to a rotation"):
        torch.func.jvp(lambda x: qr(x, "complete").Q, (a.detach(),), (a.detach(),))
    assert torch.autograd.grad(qr(a, "complete").R.sum(), a)[0].any()  # R needs no columns of the null space

    q = qr(a, "complete", null_space="checked").Q
    (q[:, 2:] @ q[:, 2:].mH).pow(3).sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"the loss depends on how the last m - n columns .* sqrt\(eps\)"):
        q.pow(3).sum().backward()


def test_invalid_arguments_are_refused() -> None:
    a = torch.ones(3, 2)
    for call, says in (
        (lambda: qr(a.half()), r"qr: A is torch\.float16; .*convert"),
        (lambda: lq(a.long()), r"lq: A is torch\.int64"),
        (lambda: qr(a[0]), r"qr: A has shape \(2,\); it must be \(\.\.\., m, n\)"),
        (lambda: pivoted_qr(a[0]), r"pivoted_qr: A has shape \(2,\)"),
        (lambda: minimum_norm(a[None], a[None, :, :1]), "minimum_norm: A has shape .* ranks differ in a batch"),
        (lambda: minimum_norm(a / 0, a), "minimum_norm: A is not finite"),
        (lambda: minimum_norm(a, a, rtol=float("nan")), "minimum_norm: rtol is nan; it must be a number from 0 to below 1"),
        (lambda: minimum_norm(a, a, rtol="tiny"), "minimum_norm: rtol is 'tiny'; it must be a number"),  # type: ignore[arg-type]
        (lambda: apply_q(a, a, adjoint="no"), "apply_q: adjoint is 'no'; it must be True or False"),  # type: ignore[arg-type]
        (lambda: least_squares(a.half(), a), "least_squares: A is torch.float16"),
        (lambda: qr(a, "full"), "qr: mode is 'full'; use reduced, complete or r"),  # type: ignore[arg-type]
        (lambda: lq(a, "r"), "lq: mode is 'r'; use reduced, complete or l"),  # type: ignore[arg-type]
        (lambda: qr(a, null_space="yes"), "null_space is 'yes'; use refuse, checked, invariant"),  # type: ignore[arg-type]
        (lambda: least_squares(a, torch.ones(2)), r"b is \(2,\); for an A of \(3, 2\)"),
        (lambda: least_squares(a, torch.ones(3, dtype=torch.float64)), r"b is torch\.float64; convert"),
    ):
        with pytest.raises(ValueError, match=says):
            call()


@pytest.mark.parametrize("function", [qr, lq, pivoted_qr, least_squares, minimum_norm, apply_q])
def test_what_is_no_tensor_is_named(function: Callable[..., Any]) -> None:
    a, name = torch.ones(3, 2), function.__name__
    second = {"least_squares": "b", "minimum_norm": "b", "apply_q": "C"}.get(name)
    others = (a,) if second else ()
    for other in (a.numpy(), [[1.0]], "A", None):
        with pytest.raises(ValueError, match=rf"^{name}: A is of class {type(other).__name__}; .*torch\.as_tensor"):
            function(other, *others)
        if second:
            with pytest.raises(ValueError, match=f"^{name}: {second} is of class {type(other).__name__}"):
                function(a, other)
    if function is not minimum_norm:
        with pytest.raises(ValueError, match=f"^{name}: check is 'no'; it must be True or False"):
            function(a, *others, check="no")


@pytest.mark.parametrize("wide", [False, True])
def test_deficient_least_squares_refers_to_minimum_norm(wide: bool) -> None:
    a = torch.ones(2, 4, dtype=torch.float64) if wide else torch.ones(4, 3, dtype=torch.float64)
    b = torch.arange(1.0, len(a) + 1, dtype=a.dtype)
    with pytest.raises(
        RankError, match=r"^least_squares.* column 1 depends on .*; minimum_norm\(A, b\) gives the smallest"
    ) as told:
        least_squares(a, b)
    assert "check=False" not in str(told.value)
    torch.testing.assert_close(minimum_norm(a, b), torch.linalg.pinv(a) @ b)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_passes_or_is_refused(value: float) -> None:
    """Whatever entry it is, some factor shows it; x shows that of b, and that of A is refused."""
    m, n = SHAPES["deep"]
    for i, j in product(range(m), range(n)):
        a = matrix("deep")
        a[i, j] = value
        for x in (a, a.mT):
            for function in (qr, lq, pivoted_qr):
                found: Any = function(x)
                assert not all(bool(one.isfinite().all()) for one in found[:2])
            with pytest.raises(RankError, match="not finite"):
                least_squares(x, torch.ones(len(x), dtype=x.dtype))
    b = torch.ones(m, dtype=torch.float64)
    b[1] = value
    for solve in (least_squares, minimum_norm):
        assert not solve(matrix("deep"), b).isfinite().any()


def test_least_squares_solves_both_ways_with_both_derivatives() -> None:
    for shape, kind, batch in product(SHAPES, TYPES, [(), (2,)]):
        a, m = matrix(shape, kind, batch), SHAPES[shape][0]
        for extra in ((), (2,)):
            b = torch.randn(*batch, m, *extra, dtype=a.dtype, generator=torch.Generator().manual_seed(1))
            expected = torch.linalg.pinv(a) @ (b if extra else b.unsqueeze(-1))
            torch.testing.assert_close(least_squares(a, b), expected if extra else expected.squeeze(-1))
            if batch or not extra:
                continue
            inputs = (a.requires_grad_(), b.requires_grad_())
            assert gradcheck(least_squares, inputs, check_forward_ad=True, fast_mode=True)
            assert gradgradcheck(least_squares, inputs, fast_mode=True)
            a = a.detach()


def test_the_smallest_least_squares_solution_of_any_rank() -> None:
    """Equal to the pseudo-inverse, with both derivatives along matrices of the same rank, and its gradient everywhere."""
    draws = torch.Generator().manual_seed(0)
    for kind, (m, n, rank) in zip([*TYPES.values()] * 2, ((4, 3, 2), (2, 3, 1), (2, 3, 1), (3, 3, 0))):
        left, right = (torch.randn(s, dtype=kind, generator=draws).requires_grad_() for s in ((m, rank), (rank, n)))
        b = torch.randn(m, 2, dtype=kind, generator=draws).requires_grad_()
        a = (left @ right).detach().requires_grad_()
        torch.testing.assert_close(minimum_norm(a, b), torch.linalg.pinv(a) @ b)
        torch.testing.assert_close(minimum_norm(a, b[:, 0]), torch.linalg.pinv(a) @ b[:, 0])
        if not rank:
            continue
        ours, theirs = (torch.autograd.grad(x.abs().sum(), a)[0] for x in (minimum_norm(a, b), torch.linalg.pinv(a) @ b))
        torch.testing.assert_close(ours, theirs)
        inputs, solve = (left, right, b), lambda left, right, b: minimum_norm(left @ right, b, rtol=1e-9)
        assert gradcheck(solve, inputs, fast_mode=True)
        assert gradgradcheck(solve, inputs, fast_mode=True)


def test_the_derivative_is_of_the_rank_that_was_solved_with() -> None:
    """A^H has other pivots, which lie on the other side of this rtol."""
    a = torch.tensor([[1.0, 0.6], [0.0, 0.55]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([1.0, 2.0], dtype=torch.float64)
    ours, theirs = minimum_norm(a, b, rtol=0.5), torch.linalg.solve(a, b)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(x.square().sum(), a)[0] for x in (ours, theirs)))


@pytest.mark.parametrize("wide", [False, True])
def test_both_derivatives_are_in_float32_under_autocast(wide: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    a = torch.randn((3, 5) if wide else (5, 3), generator=draws)
    b, weights = torch.randn(len(a), 2, generator=draws), torch.randn(5, 5, generator=draws)
    functions: tuple[Callable[..., Tensor], ...] = (
        least_squares,
        minimum_norm,
        lambda a, b: apply_q(A=a, C=b, adjoint=True).Y,
        lambda a, b: qr(a).R,
        lambda a, b: pivoted_qr(a, "r").R,
        lambda a, b: lq(a, "l").L,
    )

    def derivatives(function: Callable[..., Tensor], region: bool) -> list[Tensor]:
        inputs = tuple(x.clone().requires_grad_() for x in (a, b))
        with torch.autocast("cpu", torch.bfloat16, enabled=region):
            x = function(*inputs)
            y = (x * weights[: len(x), : x.shape[1]]).sum()
            first = torch.autograd.grad(y, inputs, create_graph=True, materialize_grads=True)
            loss = torch.stack([(g * h).sum() for g, h in zip(first, (a, b))]).sum()
            return [*first, *torch.autograd.grad(loss, inputs, materialize_grads=True)]

    for function in functions:
        for found, wanted in zip(derivatives(function, True), derivatives(function, False)):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "left", "right"),
    [
        (torch.float32, [-1, -22], [-20, -20]),
        (torch.float64, [-1, -15], [-30, 27]),
        (torch.float64, [-2, -3, 24], [24, -10, 23]),
    ],
)
def test_minimum_norm_finds_the_rank_of_dependent_integers(kind: torch.dtype, left: list[int], right: list[int]) -> None:
    """Exactly of rank 1; the second pivot was measured above max(m, n) eps, the bound that is made for singular values."""
    u, v, b = (torch.tensor(x, dtype=kind) for x in (left, right, [1, 2, 3][: len(left)]))
    wanted = (b @ u) / u.square().sum() * v / v.square().sum()
    bound = 100 * torch.finfo(kind).eps
    torch.testing.assert_close(minimum_norm(torch.outer(u, v), b), wanted, rtol=bound, atol=bound)


@pytest.mark.parametrize(
    ("kind", "scale"), [(torch.float32, 1e-25), (torch.float32, 1e25), (torch.float64, 1e-180), (torch.float64, 1e180)]
)
def test_rank_does_not_depend_on_the_scale_of_the_matrix(kind: torch.dtype, scale: float) -> None:
    dependent, full = (torch.tensor([[1, 2], [2, x], [3, 6]], dtype=kind) * scale for x in (4, 1))
    qr(full.requires_grad_())
    with pytest.raises(RankError, match="qr: column 1 depends on the columns before it"):
        qr(dependent.requires_grad_())


@pytest.mark.parametrize(
    ("kind", "size"), [(torch.float32, 3e38), (torch.float32, 1e-45), (torch.float64, 1e308), (torch.float64, 5e-324)]
)
def test_minimum_norm_at_the_ends_of_the_range(kind: torch.dtype, size: float) -> None:
    a = torch.full((4, 2), size, dtype=kind)
    torch.testing.assert_close(minimum_norm(a, a[:, 0]), torch.full((2,), 0.5, dtype=kind))


def test_minimum_norm_keeps_the_rank_of_independent_columns_far_apart_in_scale() -> None:
    full = torch.diag(torch.tensor([1.0, 1e-14], dtype=torch.float64))
    torch.testing.assert_close(minimum_norm(full, full.diagonal()), torch.ones(2, dtype=torch.float64))


def test_experiment_reports_accuracy_and_float32_gradient_errors(tmp_path: Path) -> None:
    recipe = load_recipe("qr_least_squares", ["seeds=[0, 1]", "steps=20", "closeness=[0.1, 1e-4]"])
    recipe.experiment.run(Context(RunFolder(tmp_path, recipe), "qr_least_squares", lambda _: None))
    values = json.loads((tmp_path / "report.json").read_text())
    assert all(0.3 < score < 0.8 for arm in values["arms"].values() for score in arm["r2"])
    mild, hard = values["gradients"]
    assert mild["errors"]["QR"] < 1e-4 < hard["errors"]["QR"] < 1
    assert mild["errors"]["normal equations"] > 3 * mild["errors"]["QR"]
    assert hard["condition"] > 100 * mild["condition"]
    assert (tmp_path / "report.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("ridge=0.0", "ridge is 0"),
        ("test_share=1.0", "test_share is 1"),
        ("seeds=[1]", "at least two"),
        ("closeness=[]", "closeness"),
    ],
)
def test_the_experiments_values_are_checked(override: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe("qr_least_squares", [override])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_another_device_gives_the_same_gradients() -> None:
    for shape in SHAPES:
        a = matrix(shape, batch=(2,))
        torch.testing.assert_close(vmap(grad(losses))(a.cuda()).cpu(), vmap(grad(losses))(a))


def test_q_is_applied_without_being_formed_with_both_derivatives() -> None:
    for shape, kind, batch in product(SHAPES, TYPES, [(), (2,)]):
        a = matrix(shape, kind, batch).requires_grad_()
        q, r = qr(a)
        for adjoint in (False, True):
            rows = q.shape[-2] if adjoint else q.shape[-1]
            c = torch.randn(*batch, rows, 2, dtype=a.dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()
            found = apply_q(a, c, adjoint=adjoint)
            torch.testing.assert_close(tuple(found), ((q.mH if adjoint else q) @ c, r))
            if batch:
                continue
            inputs, function = (a, c), lambda a, c, adjoint=adjoint: tuple(apply_q(a, c, adjoint=adjoint))
            assert gradcheck(function, inputs, fast_mode=True)
            assert gradgradcheck(function, inputs, fast_mode=True)


def test_what_apply_q_cannot_use_is_refused() -> None:
    a = matrix("deep").requires_grad_()
    with pytest.raises(ValueError, match=r"apply_q: C is \(3, 1\), torch.float64; it must be \(4,\) and a number of columns"):
        apply_q(a, torch.ones(3, 1, dtype=a.dtype), adjoint=True)
    with pytest.raises(RankError, match=r"apply_q: column 1 depends"):
        apply_q(_dependent(a.detach()[None])[0].requires_grad_(), torch.ones(2, 1, dtype=a.dtype))


def test_jax_differentiates_pivoted_wide_qr_wrongly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured where an interpreter with JAX is named; elsewhere the script says why there is no measurement."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    script = importlib.import_module("jax_pivoted_qr")
    python = os.environ.get("SPIKEPROP_JAX_PYTHON")
    if python is None:
        assert script.main(["--python", "/no/python"]) == script.ABSENT
        assert "has no JAX" in capsys.readouterr().out
        pytest.skip("no interpreter with JAX in SPIKEPROP_JAX_PYTHON")
    for seed in range(3):
        found = script.compared(python, seed)
        assert found["apart"]["ours"] < 1e-7
        assert found["apart"]["jax"] > 0.1
