"""The joint bilateral mean as its formula has it, in expressions that NumPy and CuPy both compute.

    out[c](x) = sum over o of w(x, o) image[c](x + o) / sum over o of w(x, o)
    w(x, o) = near[o] * max(0, 1 - sum over g of (guide[g](x) - guide[g](x + o))^2)^8

over the offsets o that stay inside. The eighth power is a Gaussian of the distance, exp(-8 d^2), with an end; it needs
no exponential. The fast kernel of `bilateral_cpu` takes the same arguments and is held against this.

# Ref: Tomasi and Manduchi 1998, ICCV, 839; by the values of another image: Petschnigg et al. 2004, ACM Trans. Graph.
#      23, 664.
"""

from __future__ import annotations

from reconstruction.backend import Array, namespace

POWER = 8


def joint_mean(images: Array, guide: Array, offsets: Array, near: Array) -> tuple[Array, Array]:
    """Return the means, and how many independent voxels each of them is worth.

    Parameters
    ----------
    images : (n_channels, z, y, x) float
    guide : (n_guides, z, y, x) float
        Over the distance at which voxels stop counting.
    offsets : (n_offsets, 3) int, of the host
        Along z, y, x.
    near : (n_offsets,) float, of the host

    Returns
    -------
    means : (n_channels, z, y, x)
    worth : (z, y, x)
        (sum of w)^2 / sum of w^2: white noise loses as much of its variance, where the guide tells nothing of it.
    """
    xp, shape = namespace(images), images.shape[1:]
    sums = xp.zeros_like(images)
    total, squares = xp.zeros(shape, images.dtype), xp.zeros(shape, images.dtype)
    for offset, nearness in zip(offsets.tolist(), near.tolist(), strict=True):
        here = tuple(slice(max(-o, 0), n - max(o, 0)) for o, n in zip(offset, shape, strict=True))
        there = tuple(slice(max(o, 0), n - max(-o, 0)) for o, n in zip(offset, shape, strict=True))
        distance2 = ((guide[:, *here] - guide[:, *there]) ** 2).sum(0)
        weight = nearness * xp.maximum(1 - distance2, 0) ** POWER
        total[here] += weight
        squares[here] += weight * weight
        sums[:, *here] += weight * images[:, *there]
    return sums / total, total * total / squares
