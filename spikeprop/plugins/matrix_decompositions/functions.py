"""``qr``, ``lq`` and ``pivoted_qr``: factorisations with first and second derivatives, forward and reverse.

In eager mode each is an ``autograd.Function`` with rules for reverse and forward mode, in transforms of torch.func one with a
rule for ``vmap`` too. While ``torch.compile`` traces, it is the custom operator with the same reverse rule (a trace of tensors,
as in ``torch.func.linearize``, holds it too); forward mode and ``torch.func.grad`` break the graph there (``fullgraph=True``
refuses them), and torch computes no second derivative through a compiled graph. LQ is the QR of A^H. Pivots are locally constant:
A[:, p] = Q R is differentiated as the QR of A[:, p] (``rules`` has the equations and the paper).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from spikeprop.plugins.matrix_decompositions.autocast import in_float32, without_autocast
from spikeprop.plugins.matrix_decompositions.factors import factor, factor_pivoted
from spikeprop.plugins.matrix_decompositions.rules import (
    pull_back,
    pull_back_null_space,
    push_forward,
    push_forward_null_space,
    rotation_dependence,
)
from spikeprop.runtime.arguments import shown

Mode = Literal["reduced", "complete", "r"]
NullSpace = Literal["refuse", "checked", "invariant"]
NAMESPACE = "spikeprop_matrix_decompositions"
NULL_SPACES = ("refuse", "checked", "invariant")


class QR(NamedTuple):
    """A = Q R."""

    Q: Tensor
    R: Tensor


class LQ(NamedTuple):
    """A = L Q."""

    L: Tensor
    Q: Tensor


class PivotedQR(NamedTuple):
    """A[..., p] = Q R."""

    Q: Tensor
    R: Tensor
    p: Tensor


@in_float32
def qr(A: Tensor, mode: Mode = "reduced", *, null_space: NullSpace = "refuse", check: bool = True) -> QR:
    """A = Q R with orthonormal columns of Q and upper triangular R; the factors equal those of torch.linalg.qr.

    Args:
        A: (..., m, n), float32, float64, complex64 or complex128, on any device where torch.linalg.qr runs.
        mode: "reduced": Q (..., m, k), R (..., k, n) with k = min(m, n); "complete": Q (..., m, m), R (..., m, n);
            "r": R as in "reduced", and an empty Q.
        null_space: derivative of the last m - n columns Q2 of a complete Q with m > n; A determines only their span. "refuse":
            differentiation raises; "invariant": the derivative without rotation among them, exact for a loss that is invariant
            under such rotations, such as any function of the projector Q2 Q2^H; "checked": the same, and the backward pass
            raises if the loss depends on rotations (this reads values: not inside vmap or torch.compile).
        check: where a derivative by A may be wanted, refuse matrices whose factors have none. Without the check, a matrix of a
            batch that gets no cotangent gets a zero gradient, and one that does gets what the singular equations give.

    Raises:
        RankError: with ``check``, one of the first k columns depends on earlier columns, or is not finite. Where no derivative
            is wanted, NaN and infinities in A pass to the factors as NaN, as in torch.linalg.
        ValueError: an A or an option that cannot be used.
    """
    check_arguments("qr", A, mode, null_space, check)
    return qr_of(A, mode, null_space, "qr" if check and derivative_wanted(A) else "")


def qr_of(A: Tensor, mode: str, null_space: str, check: str) -> QR:
    """``qr`` of arguments that were checked, with a check of the rank always, under the name ``check``, or never."""
    complete = mode == "complete" and A.shape[-2] > A.shape[-1]
    q, r = _choice(A, qr_operator, _QR, _TransformedQR)(A, complete, null_space, check)
    return QR(A.new_empty(0) if mode == "r" else q, r)


@in_float32
def lq(
    A: Tensor, mode: Literal["reduced", "complete", "l"] = "reduced", *, null_space: NullSpace = "refuse", check: bool = True
) -> LQ:
    """A = L Q with lower triangular L and orthonormal rows of Q: the adjoint of ``qr`` of A^H, with the same options.

    Args:
        A: (..., m, n).
        mode: "reduced": L (..., m, k), Q (..., k, n) with k = min(m, n); "complete": L (..., m, n), Q (..., n, n);
            "l": L as in "reduced", and an empty Q.
        null_space: as for ``qr``, with rows instead of columns.
        check: as for ``qr``.
    """
    if mode not in ("reduced", "complete", "l"):
        raise ValueError(f"lq: mode is {mode!r}; use reduced, complete or l")
    check_arguments("lq", A, "r" if mode == "l" else mode, null_space, check)
    q, r = qr_of(adjoint(A), "r" if mode == "l" else mode, null_space, "lq" if check and derivative_wanted(A) else "")
    return LQ(adjoint(r), q if mode == "l" else adjoint(q))


@in_float32
def pivoted_qr(A: Tensor, mode: Mode = "reduced", *, null_space: NullSpace = "refuse", check: bool = True) -> PivotedQR:
    """A[..., p] = Q R, where each pivot is the column with the largest remainder; defined for any A of full rank.

    Args:
        A: (..., m, n); the factorisation runs on the host, by LAPACK's geqp3.
        mode: as for ``qr``.
        null_space: as for ``qr``.
        check: as for ``qr``.

    Returns:
        Q and R as from ``qr``, and p (..., n), int64, counted from zero; ``A.take_along_dim(p.unsqueeze(-2), -1)`` is Q R. If
        two columns tie, p is discontinuous, and there is no derivative.

    Raises:
        RankError: with ``check``, A has a rank below min(m, n), or is not finite; else as for ``qr``.
        ValueError: an A or an option that cannot be used.
    """
    check_arguments("pivoted_qr", A, mode, null_space, check)
    complete = mode == "complete" and A.shape[-2] > A.shape[-1]
    q, r, p = _choice(A, pivoted_qr_operator, _PivotedQR, _TransformedPivotedQR)(
        A, complete, null_space, "pivoted_qr" if check and derivative_wanted(A) else ""
    )
    return PivotedQR(A.new_empty(0) if mode == "r" else q, r, p)


def _choice(a: Tensor, operator: Any, eager: Any, transformed: Any) -> Callable[..., Any]:
    """The operator during compilation (it would lose tangents, so forward mode breaks the graph), else a Function."""
    if torch.compiler.is_compiling() and unpack_dual(a).tangent is None:
        return operator
    return transformed.apply if torch._C._are_functorch_transforms_active() else eager.apply


def derivative_wanted(a: Tensor) -> bool:
    """Whether someone may differentiate by A; inside a transform of ``torch.func``, which does not tell, always.

    ``torch.no_grad`` ends reverse mode alone: a tangent is computed within it too.
    """
    if torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling():
        active = get_interpreter_stack() or []
        return torch.is_grad_enabled() or any(transform.key() == TransformType.Jvp for transform in active)
    # while compiling, forward mode breaks the graph, and asks again outside
    return (torch.is_grad_enabled() and a.requires_grad) or unpack_dual(a).tangent is not None


def adjoint(a: Tensor) -> Tensor:
    """A^H, conjugated immediately: lazily conjugated views fail in batched forward mode, and numpy refuses them."""
    return torch.conj_physical(a).mT if a.is_complex() else a.mT


def check_arguments(name: str, a: Tensor, mode: str, null_space: str, check: bool) -> None:
    check_tensor(name, "A", a)
    if a.dtype not in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        raise ValueError(f"{name}: A is {a.dtype}; LAPACK supports float32, float64, complex64 and complex128; convert it")
    if a.ndim < 2:
        raise ValueError(f"{name}: A has shape {tuple(a.shape)}; it must be (..., m, n)")
    if mode not in ("reduced", "complete", "r"):
        raise ValueError(f"{name}: mode is {mode!r}; use reduced, complete or r")
    if null_space not in NULL_SPACES:
        raise ValueError(f"{name}: null_space is {null_space!r}; use {', '.join(NULL_SPACES)}")
    check_bool(name, "check", check)


def check_tensor(name: str, argument: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name}: {argument} is of class {type(value).__name__}; it must be a torch.Tensor, which torch.as_tensor makes of "
            "an array or a list of numbers"
        )


def check_bool(name: str, argument: str, value: Any) -> None:
    if value is not True and value is not False:
        raise ValueError(f"{name}: {argument} is {shown(value)}; it must be True or False")


# derivatives, shared by the eager functions and the operators ------------------------------------------------------------------


@without_autocast
def _pull(ctx: Any, q: Tensor, r: Tensor, g_q: Tensor | None, g_r: Tensor | None) -> Tensor | None:
    """Cotangent of the matrix that was factored."""
    if not ctx.checked:
        r = _regular_where_unused(q, r, g_q, g_r)
    if not ctx.complete:
        return pull_back(q, r, g_q, g_r)
    n = r.shape[-1]
    if g_q is not None:
        _refuse_rotations(ctx.null_space)
        if ctx.null_space == "checked":
            _check_invariance(q, g_q, n)
        g_q = pull_back_null_space(q, g_q, n)
    return pull_back(q[..., :n], r[..., :n, :], g_q, None if g_r is None else g_r[..., :n, :])


def _regular_where_unused(q: Tensor, r: Tensor, g_q: Tensor | None, g_r: Tensor | None) -> Tensor:
    """R, with the identity for members of a batch without a cotangent: a singular one would make 0 / 0 of its zeros."""
    used = q.new_zeros(q.shape[:-2], dtype=torch.bool)
    for g in (g_q, g_r):
        if g is not None:
            used = used | (g != 0).any(-1).any(-1)
    return torch.where(used[..., None, None], r, torch.eye(*r.shape[-2:], dtype=r.dtype, device=r.device))


@without_autocast
def _push(ctx: Any, q: Tensor, r: Tensor, d_a: Tensor) -> tuple[Tensor, Tensor]:
    """Tangents of Q and R."""
    if not ctx.complete:
        return push_forward(q, r, d_a)
    _refuse_rotations(ctx.null_space)
    n = r.shape[-1]
    d_q, d_r = push_forward(q[..., :n], r[..., :n, :], d_a)
    return push_forward_null_space(q, d_q), torch.nn.functional.pad(d_r, (0, 0, 0, r.shape[-2] - n))


def _refuse_rotations(null_space: str) -> None:
    if null_space == "refuse":
        raise RuntimeError(
            "mode='complete' with m > n: A determines the last m - n columns of Q (rows, for lq) only up to a rotation, so they "
            "have no derivative. Use mode='reduced', or null_space='invariant' or 'checked' for a rotation-invariant loss"
        )


def _check_invariance(q: Tensor, g_q: Tensor, n: int) -> None:
    found, bound = float(rotation_dependence(q, g_q, n).max()), torch.finfo(q.dtype).eps ** 0.5
    if not found <= bound:
        raise RuntimeError(
            f"null_space='checked': the loss depends on how the last m - n columns of Q are rotated (relative derivative "
            f"{found:.3g} > {bound:.3g} = sqrt(eps)), which A does not determine; make it a function of their projector Q2 Q2^H"
        )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, ctx.complete, ctx.null_space, check = inputs
    ctx.checked = bool(check)
    ctx.save_for_backward(*output)
    ctx.set_materialize_grads(False)


def _pull_qr(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None]:
    q, r = ctx.saved_tensors
    g_q, g_r = grads
    return _pull(ctx, q, r, g_q, g_r), None, None, None


def _pull_pivoted(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None]:
    q, r, p = ctx.saved_tensors
    g_q, g_r, _ = grads
    g = _pull(ctx, q, r, g_q, g_r)
    return None if g is None else _take_columns(g, p.argsort(-1)), None, None, None


def _take_columns(a: Tensor, p: Tensor) -> Tensor:
    """A[..., :, p], with other columns for each matrix of a batch."""
    if p.ndim == 1:
        return a.index_select(-1, p)
    return a.gather(-1, p.unsqueeze(-2).expand(*p.shape[:-1], *a.shape[-2:]))


class _QR(torch.autograd.Function):
    """Q and R, eagerly. ``_TransformedQR`` is the same for transforms of torch.func; its form costs three times as much Python,
    more than the factorisation of a small matrix."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        output = _factors(*arguments)
        _keep(ctx, arguments, output)
        ctx.save_for_forward(*output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        return _pull_qr(ctx, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
        q, r = ctx.saved_tensors
        with _set_fwd_grad_enabled(True):  # autograd.Function disables an outer forward mode; this enables it
            return _push(ctx, q, r, tangents[0])


class _TransformedQR(_QR):
    """Within a transform of torch.func."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        a: Tensor, complete: bool, null_space: str, check: str
    ) -> tuple[Tensor, Tensor]:
        return _factors(a, complete, null_space, check)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _keep(ctx, inputs, output)
        ctx.save_for_forward(*output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, tuple[int, ...]]:
        a, *options = arguments
        return _TransformedQR.apply(a.movedim(in_dims[0], 0), *options), (0, 0)


class _PivotedQR(torch.autograd.Function):
    """Q, R and pivots, eagerly; ``_TransformedPivotedQR`` as for ``_QR``."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        output = _pivoted_factors(*arguments)
        _TransformedPivotedQR.setup_context(ctx, arguments, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        return _pull_pivoted(ctx, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor, None]:
        q, r, p = ctx.saved_tensors
        with _set_fwd_grad_enabled(True):
            return *_push(ctx, q, r, _take_columns(tangents[0], p)), None


class _TransformedPivotedQR(_PivotedQR):
    """Within a transform of torch.func."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        a: Tensor, complete: bool, null_space: str, check: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _pivoted_factors(a, complete, null_space, check)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _keep(ctx, inputs, output)
        ctx.save_for_forward(*output)
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, tuple[int, ...]]:
        a, *options = arguments
        return _TransformedPivotedQR.apply(a.movedim(in_dims[0], 0), *options), (0, 0, 0)


def _factors(a: Tensor, complete: bool, null_space: str, check: str) -> tuple[Tensor, Tensor]:
    return qr_operator(a, complete, null_space, check) if is_in_torch_dispatch_mode() else factor(a, complete, check)


def _pivoted_factors(a: Tensor, complete: bool, null_space: str, check: str) -> tuple[Tensor, Tensor, Tensor]:
    if is_in_torch_dispatch_mode():
        return pivoted_qr_operator(a, complete, null_space, check)
    return factor_pivoted(a, complete, check)


for _function in (_TransformedQR, _TransformedPivotedQR):  # torch needs it in every call; this avoids computing it again
    _function.forward.__signature__ = inspect.signature(_function.forward)


# operators, for compiled graphs ------------------------------------------------------------------------------------------------


@torch.library.custom_op(f"{NAMESPACE}::qr", mutates_args=())
def qr_operator(a: Tensor, complete: bool, null_space: str, check: str) -> tuple[Tensor, Tensor]:
    q, r = factor(a, complete, check)
    return _by_columns(q), r.contiguous()


@torch.library.custom_op(f"{NAMESPACE}::pivoted_qr", mutates_args=())
def pivoted_qr_operator(a: Tensor, complete: bool, null_space: str, check: str) -> tuple[Tensor, Tensor, Tensor]:
    q, r, p = factor_pivoted(a, complete, check)
    return _by_columns(q), r.contiguous(), p


def _by_columns(q: Tensor) -> Tensor:
    """Column-major, the layout of LAPACK's result (then without copy) and of ``_outline``."""
    return q.mT.contiguous().mT


def _outline(a: Tensor, complete: bool, null_space: str, check: str) -> tuple[Tensor, Tensor]:
    *batch, m, n = a.shape
    k = m if complete else min(m, n)
    return a.new_empty(*batch, k, m).mT, a.new_empty(*batch, k, n)


def _outline_pivoted(a: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    return *_outline(a, *options), a.new_empty(*a.shape[:-2], a.shape[-1], dtype=torch.int64)


def _batched(operator: Any) -> Any:
    def rule(info: Any, in_dims: tuple[int, None, None, None], a: Tensor, *options: Any) -> tuple[Any, tuple[int, ...]]:
        found = operator(a.movedim(in_dims[0], 0), *options)
        return found, (0,) * len(found)

    return rule


qr_operator.register_fake(_outline)
qr_operator.register_autograd(_pull_qr, setup_context=lambda ctx, inputs, output: _keep(ctx, inputs, output))
qr_operator.register_vmap(_batched(qr_operator))
pivoted_qr_operator.register_fake(_outline_pivoted)
pivoted_qr_operator.register_autograd(_pull_pivoted, setup_context=lambda ctx, inputs, output: _keep(ctx, inputs, output))
pivoted_qr_operator.register_vmap(_batched(pivoted_qr_operator))
