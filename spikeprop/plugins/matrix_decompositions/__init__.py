"""QR, LQ and pivoted QR with derivatives, and least squares by them (Roberts & Roberts 2020, arXiv:2009.10071).

For A = Q R with m >= n: M = R G_R^H - G_Q^H Q, G_A = (G_Q + Q copyltu(M)) R^-H; ``rules`` has the wide case. ``qr(A)``,
``lq(A)``, ``pivoted_qr(A)``, ``apply_q(A, C)``, ``least_squares(A, b)`` and ``minimum_norm(A, b)`` are ordinary differentiable
functions; they fill no slot of a recipe. The experiment ``projection.VariableProjection`` uses them: recipe qr_least_squares.
"""

from spikeprop.plugins.matrix_decompositions.application import Applied, apply_q
from spikeprop.plugins.matrix_decompositions.functions import LQ, QR, PivotedQR, lq, pivoted_qr, qr
from spikeprop.plugins.matrix_decompositions.solve import least_squares, minimum_norm

__all__ = ["LQ", "QR", "Applied", "PivotedQR", "apply_q", "least_squares", "lq", "minimum_norm", "pivoted_qr", "qr"]
