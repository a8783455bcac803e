"""Convolve with 3x3 kernels in 4 products per pixel and channel pair instead of 9 (Lavin & Gray 2016).

A block of 2x2 output pixels depends on a tile d of 4x4 input pixels. By the paper's F(2x2, 3x3), the block
is Aᵀ[(G k Gᵀ) ⊙ (Bᵀ d B)]A for a kernel k, where ⊙ sums over the channels. That takes 16 matrix products,
[N,C] for N tiles with [C,D]. The gradients consist of such products too.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Matrix = Sequence[Sequence[float]]
B_T = (1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)
G = (1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)
A_T = (1, 1, 1, 0), (0, 1, -1, -1)
# To mirror a kernel is to swap the outer rows and the outer columns of G k Gᵀ, or of these two.
B_T_MIRRORED = B_T[3], B_T[1], B_T[2], B_T[0]
A_T_MIRRORED = (0, 1, 1, 1), (-1, 1, -1, 0)
A = tuple(zip(*A_T))
G_TWICE = np.kron(G, G).astype(np.float32)  # [16,9]: G k Gᵀ as one product
CACHE = 2**22  # bytes: more tiles at a time would not fit into a core's cache


@jax.custom_vjp
def convolve_3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Cross-correlate x [B,H,W,C], padded by a zero on each side, with kernel [3,3,C,D]: [B,H,W,D].

    H and W are even; both arrays vary over the same axes of a mesh.
    """
    return _forward(x, kernel)[0]


def _forward(x, kernel):
    # Kernels are transformed once, and all parts of the batch use them.
    kernels = (G_TWICE @ kernel.reshape(9, -1)).reshape(16, *kernel.shape[2:])

    def part(_, arrays):
        (x,) = arrays
        return None, _convolve(x, kernels, B_T, A_T)

    _, y = _in_parts(part, None, kernels, x)
    return y, (x, kernels)


def _backward(saved, g):
    x, kernels = saved
    # The input's gradient is a convolution with mirrored kernels, from outputs to inputs.
    transposed = kernels.swapaxes(1, 2)

    def part(sums, arrays):
        x, g = arrays
        tiles, squares = _stack(_transform(B_T, _tiles(x))), _stack(_transform(A, _squares(g)))
        dx = _convolve(g, transposed, B_T_MIRRORED, A_T_MIRRORED)
        # The kernel's gradient is summed over the parts in transformed space, and transformed back once.
        return sums + jnp.einsum('tnc,tnd->tcd', tiles, squares), dx

    sums, dx = _in_parts(part, jnp.zeros_like(kernels), kernels, x, g)
    return dx, (G_TWICE.T @ sums.reshape(16, -1)).reshape(3, 3, *kernels.shape[1:])


convolve_3x3.defvjp(_forward, _backward)


def _in_parts(function, carry, kernels, *arrays):
    """Scan over parts of the batch, whose tiles take no more memory than a cache, or than the kernels."""
    batch = len(arrays[0])
    # Tiles take 16 bytes for each number of the image: 16 entries of 4 bytes for 4 pixels.
    least = 16 * max(a.size for a in arrays) / max(CACHE, kernels.nbytes)
    count = next(n for n in range(1, batch + 1) if batch % n == 0 and n >= min(least, batch))
    parts = [a.reshape(count, -1, *a.shape[1:]) for a in arrays]
    carry, out = jax.lax.scan(function, carry, parts, unroll=count == 1)
    return carry, out.reshape(batch, *out.shape[2:])


def _convolve(x, kernels, b_t: Matrix, a_t: Matrix):
    """Return the convolution [B,H,W,D] of x [B,H,W,C] with transformed kernels [16,C,D]."""
    tiles = _transform(b_t, _tiles(x))
    products = jnp.einsum('tnc,tcd->tnd', _stack(tiles), kernels)
    grid = _transform(a_t, products.reshape(4, 4, *tiles[0][0].shape[:3], -1))
    return jnp.stack([jnp.stack(row, 3) for row in grid], 2).reshape(*x.shape[:3], -1)


def _transform(matrix: Matrix, grid):
    """Return matrix · grid · matrixᵀ, where the grid's entries are arrays of one shape."""

    def times(parts):
        # The coefficients are almost all 0 or ±1, so sums beat a product of matrices.
        return [sum(c * part for c, part in zip(row, parts) if c) for row in matrix]

    # Left and right products are the same sums, taken along columns and then along rows.
    columns = [times(column) for column in zip(*grid)]
    return [times(row) for row in zip(*columns)]


def _stack(grid) -> jax.Array:
    """Stack 4x4 entries [B,H/2,W/2,C] as [16,N,C]."""
    return jnp.stack([entry.reshape(-1, entry.shape[-1]) for row in grid for entry in row])


def _tiles(x):
    """Return 4x4 entries [B,H/2,W/2,C], one for each pixel of a tile; neighbours overlap by two."""
    _, height, width, _ = x.shape
    # The convolution's own padding; even sizes then split into tiles without a rest.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [[x[:, i : i + height : 2, j : j + width : 2] for j in range(4)] for i in range(4)]


def _squares(x):
    """Return 2x2 entries [B,H/2,W/2,D], one for each pixel of a tile's output."""
    return [[x[:, i::2, j::2] for j in range(2)] for i in range(2)]
