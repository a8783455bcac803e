"""Make the updates of convolutions orthogonal: Muon (Jordan et al. 2024)."""

import math

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def orthogonal(o: ConfigDict) -> list[optax.GradientTransformation]:
    """Return the transforms that orthogonalise a kernel's momentum, seen as an inputs × outputs matrix."""
    return [
        optax.contrib.scale_by_muon(
            beta=o.momentum, nesterov=o.nesterov, ns_steps=3, weight_dimension_numbers=_matrices
        ),
        optax.stateless(lambda updates, _: jax.tree.map(_of_unit_size, updates)),
    ]


def rescale() -> optax.GradientTransformation:
    """Rescale each kernel to the norm √outputs before its update, by adding the difference to the update."""

    def add(update: jax.Array, kernel: jax.Array) -> jax.Array:
        # If a normalisation follows, only a kernel's direction matters, so its norm can be fixed.
        factor = kernel.shape[-1] ** 0.5 / jnp.linalg.norm(kernel)
        return update + (factor - 1) * kernel if kernel.ndim == 4 else update

    return optax.stateless(lambda updates, params: jax.tree.map(add, updates, params))


def kernel_or_rest(params):
    """Label each leaf of a tree: 'kernel' if it is a convolution's, otherwise 'rest'."""
    return jax.tree.map(lambda leaf: 'kernel' if leaf.ndim == 4 else 'rest', params)


def _of_unit_size(update: jax.Array) -> jax.Array:
    """Scale an orthogonal matrix so that the mean square of its entries is 1/inputs."""
    return update * max(1.0, update.shape[-1] / math.prod(update.shape[:-1])) ** 0.5


def _matrices(params):
    # Height, width and inputs make the rows; outputs make the columns.
    number = optax.contrib.MuonDimensionNumbers((0, 1, 2), (3,))
    return jax.tree.map(lambda leaf: number if leaf.ndim == 4 else None, params)
