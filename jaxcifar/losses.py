"""Losses: logits and labels to one number per example."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: jax.Array | float = 0.0):
    """-Σ_c q_c log softmax(z)_c in nats, q = (1-ε)·onehot + ε/C (Szegedy et al. 2016, section 7).

    logits [...,C], labels [...] integers, smoothing ε a scalar; returns [...].
    """
    log_p = jax.nn.log_softmax(logits)
    true = jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    return -(1 - smoothing) * true - smoothing * log_p.mean(-1)


LOSSES = {'cross_entropy': cross_entropy}
