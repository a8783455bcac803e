"""Make the updates of convolutions orthogonal: Muon (Jordan et al. 2024)."""

import math

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def orthogonal(o: ConfigDict) -> list[optax.GradientTransformation]:
    """Return the steps that make a kernel's momentum an orthogonal matrix of inputs times outputs."""
    return [
        optax.contrib.scale_by_muon(
            beta=o.momentum, nesterov=o.nesterov, ns_steps=3, weight_dimension_numbers=_matrices
        ),
        optax.stateless(lambda updates, _: jax.tree.map(_of_unit_size, updates)),
    ]


def rescale() -> optax.GradientTransformation:
    """Rescale each kernel w to the norm √outputs before its update, to which the difference is added."""

    def add(update: jax.Array, kernel: jax.Array) -> jax.Array:
        # Only the direction of a kernel before a norm matters, so its length is free to fix.
        factor = kernel.shape[-1] ** 0.5 / jnp.linalg.norm(kernel)
        return update + (factor - 1) * kernel if kernel.ndim == 4 else update

    return optax.stateless(lambda updates, params: jax.tree.map(add, updates, params))


def kernel_or_rest(params):
    """Label the leaves of a tree: 'kernel' those of convolutions, 'rest' the others."""
    return jax.tree.map(lambda leaf: 'kernel' if leaf.ndim == 4 else 'rest', params)


def _of_unit_size(update: jax.Array) -> jax.Array:
    """Scale an orthogonal matrix so that the mean square of its entries is 1/inputs."""
    return update * max(1.0, update.shape[-1] / math.prod(update.shape[:-1])) ** 0.5


def _matrices(params):
    # Height, width and inputs make the rows; outputs make the columns.
    number = optax.contrib.MuonDimensionNumbers((0, 1, 2), (3,))
    return jax.tree.map(lambda leaf: number if leaf.ndim == 4 else None, params)
