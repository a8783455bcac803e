"""Predict from all members' features with a module that is trained together with the members.

n_k = LayerNorm_k(f_k), each with its own affine map. A rule combines the n_k into one vector u, and the
global head is a dense layer on u. All rules end in the same block, W2·Dropout(ReLU(W1·x + b1)) + b2.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxcifar.config.members import member_names
from jaxcifar.engine.head import Module
from jaxcifar.machine.errors import UserError, lookup
from jaxcifar.models.layers import initialise, torch

NAME = 'fused'  # name of the fused prediction in every table, next to the members' names


class Fusion(nn.Module):
    """Fuse features [K,B,D] to u [B,D]."""

    rule: str
    heads: int
    dropout: float
    train: bool

    def drop(self, x: jax.Array) -> jax.Array:
        """Apply dropout, in training only."""
        return nn.Dropout(self.dropout, deterministic=not self.train)(x)

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        width = features.shape[-1]
        # In float32, the fast variance E[x²] - E[x]² loses its digits to cancellation if the mean is large.
        norms = (nn.LayerNorm(1e-5, use_fast_variance=False, name=f'norm{k}') for k in range(len(features)))
        x = RULES[self.rule](self, jnp.stack([norm(f) for norm, f in zip(norms, features)]))
        hidden = nn.relu(nn.Dense(width, name='fc1')(x))
        return nn.Dense(width, name='fc2')(self.drop(hidden))


def multiplicative(fusion: Fusion, n: jax.Array) -> jax.Array:
    """Return ∏_k n_k."""
    return n.prod(0)


def multiplicative_addition(fusion: Fusion, n: jax.Array) -> jax.Array:
    """Return ∏_k n_k + Σ_k softmax(a)_k n_k, where a is learned and begins at 1."""
    a = fusion.param('scale', nn.initializers.ones, (len(n),))
    return n.prod(0) + jnp.tensordot(nn.softmax(a), n, 1)


def transformer(fusion: Fusion, n: jax.Array) -> jax.Array:
    """Return the mean over K of self-attention over the K vectors (Vaswani et al. 2017, section 3.2.2).

    No residual, and no positional embedding: the members are a set. Dropout is on the attention weights.
    """
    members, batch, width = n.shape
    projected = jnp.split(nn.Dense(3 * width, name='in_proj')(n), 3, -1)
    query, key, value = (p.reshape(members, batch, fusion.heads, -1) for p in projected)
    # Attention is among the K members of one image, never among images.
    scores = jnp.einsum('qbhd,kbhd->bhqk', query, key) / math.sqrt(width / fusion.heads)
    mixed = jnp.einsum('bhqk,kbhd->qbhd', fusion.drop(nn.softmax(scores)), value)
    return nn.Dense(width, name='out_proj')(mixed.reshape(n.shape)).mean(0)


def concatenation(fusion: Fusion, n: jax.Array) -> jax.Array:
    """Return [n_1; …; n_K]."""
    return jnp.concatenate(list(n), -1)


# (the module, n [K,B,D]) -> the input x of the last block, [B,D] or [B,KD]
RULES: dict[str, Callable] = {
    'multiplicative': multiplicative,
    'multiplicativeAddition': multiplicative_addition,
    'TransformerBase': transformer,
    'concatenation': concatenation,
}


def make_module(config: ConfigDict, feature_sizes: list[int], num_classes: int) -> Module:
    """Return the fusion module and the global head; `UserError` where the members' features do not fit."""
    f = config.fusion
    width, members = check_sizes(config, feature_sizes), len(feature_sizes)

    def fusion(train: bool) -> Fusion:
        return Fusion(f.rule, f.heads, f.dropout, train)

    global_head = nn.Dense(num_classes)

    def init(seed: tuple[int, ...]):
        def create(key):
            features = jnp.zeros((members, 1, width))
            modules = {'fusion': (fusion(False), features), 'global_head': (global_head, features[0])}
            return {name: module.init(key, x)['params'] for name, (module, x) in modules.items()}

        # Shapes are enough here; the values are drawn as PyTorch draws them.
        drawn = initialise(jax.eval_shape(create, jax.random.key(0)), seed, torch)
        # With a head of zeros, the first fused prediction is the mean of the members' logits.
        if f.residual:
            drawn['global_head'] = jax.tree.map(lambda leaf: 0 * leaf, drawn['global_head'])
        return drawn

    def apply(params, logits: jax.Array, features: list[jax.Array], key: jax.Array | None = None):
        # A key means training: without one there is no dropout.
        rngs = None if key is None else {'dropout': key}
        module = fusion(train=key is not None)
        u = module.apply({'params': params['fusion']}, jnp.stack(features), rngs=rngs)
        fused: Any = global_head.apply({'params': params['global_head']}, u)
        return fused + logits.mean(0) if f.residual else fused

    return Module(init, apply)


def check_sizes(config: ConfigDict, feature_sizes: list[int]) -> int:
    """Return the D that all members share; `UserError` if they differ in D, or heads do not divide it."""
    width, heads = feature_sizes[0], config.fusion.heads
    if len(set(feature_sizes)) > 1:
        sizes = ', '.join(f'{n}: {d}' for n, d in zip(member_names(config), feature_sizes))
        raise UserError(f'coupling=fusion: expected members with equally many features, got {sizes}')
    if config.fusion.rule == 'TransformerBase' and width % heads:
        raise UserError(f'fusion.heads must divide the {width} features of {config.network}, got {heads}')
    return width


# rule -> learning rates of (the experts, fusion and global head)
RATES = {
    'multiplicative': (1e-4, 5e-4),
    'multiplicativeAddition': (1e-4, 1e-3),
    'TransformerBase': (5e-5, 2e-4),
    'concatenation': (1e-4, 1e-3),
}


def adaptive_rates(rule: str, width: int) -> tuple[float, float]:
    """Return the learning rates of (the experts, fusion and global head) for a rule and D features.

    Wide features get smaller rates, and narrow ones larger rates. Two rules then get a further correction.
    """
    experts, fused = lookup('fusion.rule', RATES, rule)
    if width > 1000:
        experts, fused = 0.7 * experts, 0.8 * fused
    elif width < 100:
        experts, fused = 1.3 * experts, 1.2 * fused
    if rule == 'TransformerBase' and width > 500:
        experts *= 0.8
    if rule == 'multiplicative' and width < 500:
        experts *= 1.1
    return experts, fused


def fill_rates(config: ConfigDict, feature_sizes: list[int]):
    """Set the learning rates that are still unset to those of `adaptive_rates`."""
    experts, fused = adaptive_rates(config.fusion.rule, check_sizes(config, feature_sizes))
    if config.optimizer.lr is None:
        config.optimizer.lr = experts
    if config.fusion.lr is None:
        config.fusion.lr = fused
    if config.fusion.lr_head is None:
        config.fusion.lr_head = config.fusion.lr
