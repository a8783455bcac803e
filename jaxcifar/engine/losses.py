"""Compute one number for each example from its logits and label: the losses.

A loss is (logits [...,C], labels [...] integers, smoothing ε, τ, log_prior [C]) -> [...] in nats, and
linear in the one-hot label. Couplings, predictions and everything after see the raw logits.
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
    # Not a gather, whose gradient is a scatter: a loop over the labels where a GPU is to be deterministic.
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
    """Return log π [...,C] from training images of each class [...,C]; a class without any counts as one."""
    # log 0 would make every logit of that class infinite.
    counts = np.maximum(counts, 1)
    return np.log(counts / counts.sum(-1, keepdims=True))


def per_output(config: ConfigDict, values) -> np.ndarray:
    """Return each output's numbers from [K,...], or [1,...] for all: a head has the first member's."""
    values = np.asarray(values)
    rows = np.broadcast_to(values, (config.members, *values.shape[1:]))
    return np.concatenate([rows, rows[:1]]) if has_head(config) else rows


def make_loss(config: ConfigDict, counts: np.ndarray):
    """Return a function of logits [K,B,C] and labels [K,B]: each member's own loss, [K,B].

    A row more, the prediction of the coupling's head, has the loss of the first member.
    counts: training images of each class, [C] or [K,C].
    """
    # Numbers become one row an output, so that one `vmap` serves members that differ.
    names = per_output(config, member_losses(config))
    smoothing, tau = (per_output(config, per_member(config, f)) for f in ('label_smoothing', 'tau'))
    log_prior = per_output(config, np.atleast_2d(log_priors(counts)))
    numbers = [jnp.array(n, jnp.float32) for n in (smoothing, tau, log_prior)]

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        # Most runs have one loss, which then costs nothing but itself.
        first, *others = dict.fromkeys(names.tolist())
        values = jax.vmap(LOSSES[first])(logits, labels, *numbers)
        # Not one member at a time: they may live on different devices.
        for name in others:
            own = jax.vmap(LOSSES[name])(logits, labels, *numbers)
            values = jnp.where((names == name)[:, None], own, values)
        return values

    return loss
