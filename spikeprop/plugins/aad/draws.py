"""Normal random numbers by position: Philox4x32-10, Sobol points with O(1) skip-ahead, and the inverse normal distribution.

Philox (Salmon et al. 2011) computes four words from a counter and a key, so the numbers of any path are available without those
of earlier paths. A Sobol point is the exclusive or of the direction numbers at the bits of the Gray code of its index, x_n =
shift ^ v_b1 ^ v_b2 ... The inverse is Wichura's algorithm AS 241 (1988), accurate to about 1e-16. All arrays are (dimension,
paths): the inner loops run over paths.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint64

_jit: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)

_CENTRE = np.array(
    [
        [3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
         4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3],
        [1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
         2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3],
    ]
)  # fmt: skip
_TAIL = np.array(
    [
        [1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
         1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4],
        [1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
         1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9],
    ]
)  # fmt: skip
_FAR = np.array(
    [
        [6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
         2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7],
        [1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
         7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15],
    ]
)  # fmt: skip


@_jit
def _horner(row, r):
    """Polynomial of degree 7, lowest coefficient first."""
    value = row[7]
    for i in range(6, -1, -1):
        value = value * r + row[i]
    return value


@_jit
def _tail(u):
    """The inverse outside of 0.075 to 0.925."""
    r = np.sqrt(-np.log(min(u, 1.0 - u)))
    if r <= 5.0:
        r -= 1.6
        value = _horner(_TAIL[0], r) / _horner(_TAIL[1], r)
    else:
        r -= 5.0
        value = _horner(_FAR[0], r) / _horner(_FAR[1], r)
    return value if u > 0.5 else -value


@_jit
def inverse_normal(u_B, z_B):
    """Quantiles of the standard normal distribution for 0 < u < 1: first the centre without a branch, then the tails."""
    for p in range(u_B.shape[0]):
        q = u_B[p] - 0.5
        r = 0.180625 - q * q
        z_B[p] = q * _horner(_CENTRE[0], r) / _horner(_CENTRE[1], r)
    for p in range(u_B.shape[0]):
        if abs(u_B[p] - 0.5) > 0.425:
            z_B[p] = _tail(u_B[p])


@_jit
def philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds on the counter (c0..c3) with the key (k0, k1); 32-bit words stored in 64 bits."""
    for _ in range(10):
        low, high = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (high >> uint64(32)) ^ c1 ^ k0, high & _LOW, (low >> uint64(32)) ^ c3 ^ k1, low & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@_jit
def _uniform(a, b):
    """52 bits of two words as the centre of their cell: never 0 or 1."""
    bits = ((a >> uint64(6)) << uint64(26)) | (b >> uint64(6))
    return (np.float64(np.int64(bits)) + 0.5) * 2.0**-52


@_jit
def philox_normals(seed, first, out_DB):
    """Normals of the paths first, first + 1, ...; the counter is (pair of dimensions, 0, path), the key the seed."""
    dimensions, paths = out_DB.shape
    k0, k1 = uint64(seed) & _LOW, uint64(seed) >> uint64(32)
    u_2B = np.empty((2, paths))
    for pair in range((dimensions + 1) // 2):
        for p in range(paths):
            path = uint64(first + p)
            a, b, c, d = philox(uint64(pair), uint64(0), path & _LOW, path >> uint64(32), k0, k1)
            u_2B[0, p] = _uniform(a, b)
            u_2B[1, p] = _uniform(c, d)
        inverse_normal(u_2B[0], out_DB[2 * pair])
        if 2 * pair + 1 < dimensions:
            inverse_normal(u_2B[1], out_DB[2 * pair + 1])


@_jit
def sobol_normals(directions_DM, shift_D, first, out_DB):
    """Normals of the points first, first + 1, ... of a (scrambled) Sobol sequence of 30 bits."""
    dimensions, paths = out_DB.shape
    u_B = np.empty(paths)
    flips_B = np.empty(paths, np.int64)  # direction number of the next point: the lowest zero bit of this point's index
    for p in range(paths):
        index, bit = first + p, 0
        while index & 1:
            index >>= 1
            bit += 1
        flips_B[p] = bit
    for d in range(dimensions):
        gray, bits = first ^ (first >> 1), shift_D[d]
        for m in range(directions_DM.shape[1]):
            if (gray >> m) & 1:
                bits ^= directions_DM[d, m]
        for p in range(paths):
            u_B[p] = (np.float64(bits) + 0.5) * 2.0**-30
            if p + 1 < paths:
                bits ^= directions_DM[d, flips_B[p]]
        inverse_normal(u_B, out_DB[d])
