"""Compute one number for each example from its logits and label: the losses.

A loss is (logits [...,C], labels [...] integers, smoothing ε, τ, log_prior [C]) -> [...] in nats. It is
linear in the one-hot label. Only losses adjust logits; couplings, predictions and all else use raw ones.
"""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxcifar.config.members import member_losses, per_member
from jaxcifar.engine.couplings import has_head


def cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: jax.Array | float = 0.0, tau=0.0, log_prior=0.0
):
    """Return -Σ_c q_c log softmax(z)_c, q = (1-ε)·onehot + ε/C (Szegedy et al. 2016, section 7).

    tau and log_prior are ignored here: all losses share one signature.
    """
    log_p = jax.nn.log_softmax(logits)
    # Not a gather: its gradient is a scatter, which a deterministic GPU runs as a loop over the labels.
    is_label = labels[..., None] == jnp.arange(logits.shape[-1])
    true = jnp.where(is_label, log_p, 0).sum(-1)
    return -(1 - smoothing) * true - smoothing * log_p.mean(-1)


def logit_adjustment(logits, labels, smoothing=0.0, tau=1.0, log_prior=0.0):
    """Return the cross entropy of z + τ·log π, π each class's training share (Menon et al. 2021, eq. 10)."""
    return cross_entropy(logits + tau * log_prior, labels, smoothing)


def balanced_softmax(logits, labels, smoothing=0.0, tau=1.0, log_prior=0.0):
    """Return the cross entropy of z + log n (Ren et al. 2020, eq. 4), which is logit adjustment of τ = 1."""
    return logit_adjustment(logits, labels, smoothing, 1.0, log_prior)


LOSSES = {
    'cross_entropy': cross_entropy,
    'logit_adjustment': logit_adjustment,
    'balanced_softmax': balanced_softmax,
}


def log_priors(counts: np.ndarray) -> np.ndarray:
    """Return log π [...,C] from the training images per class [...,C]; an empty class counts as one image."""
    # log 0 would make every logit of that class infinite.
    counts = np.maximum(counts, 1)
    return np.log(counts / counts.sum(-1, keepdims=True))


def per_output(config: ConfigDict, values) -> np.ndarray:
    """Return a row per output, from rows [K,...], or [1,...] for all; a head gets the first member's row."""
    values = np.asarray(values)
    rows = np.broadcast_to(values, (config.members, *values.shape[1:]))
    return np.concatenate([rows, rows[:1]]) if has_head(config) else rows


def make_loss(config: ConfigDict, counts: np.ndarray):
    """Return a function of logits [K,B,C] and labels [K,B]: each member's own loss, [K,B].

    An additional row, the prediction of the coupling's head, gets the first member's loss.
    counts: training images of each class, [C] or [K,C].
    """
    # Each output has its own row of numbers, so that one `vmap` serves members that differ in them.
    names = per_output(config, member_losses(config))
    smoothing, tau = (per_output(config, per_member(config, f)) for f in ('label_smoothing', 'tau'))
    log_prior = per_output(config, np.atleast_2d(log_priors(counts)))
    numbers = [jnp.array(n, jnp.float32) for n in (smoothing, tau, log_prior)]

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        # Most runs have a single loss; then nothing else is computed.
        first, *others = dict.fromkeys(names.tolist())
        values = jax.vmap(LOSSES[first])(logits, labels, *numbers)
        # Other losses are computed for all members at once, since members may be on different devices.
        for name in others:
            own = jax.vmap(LOSSES[name])(logits, labels, *numbers)
            values = jnp.where((names == name)[:, None], own, values)
        return values

    return loss
