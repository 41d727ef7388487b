"""QR, LQ and pivoted QR, differentiable wherever the mathematics is, and least squares on top (Roberts & Roberts 2020).

``qr(A)``, ``lq(A)``, ``pivoted_qr(A)``, ``least_squares(A, b)``; the experiment that uses them is in
``projection``.
"""

from spikeprop.plugins.matrix_decompositions.functions import LQ, QR, PivotedQR, lq, pivoted_qr, qr
from spikeprop.plugins.matrix_decompositions.solve import least_squares

__all__ = ["LQ", "QR", "PivotedQR", "least_squares", "lq", "pivoted_qr", "qr"]
