"""Couplings: what the members' own losses become together.

A coupling is (own [K], logits [K,B,C], features: K arrays [B,D_k], labels [B] or [K,B]) -> scalar.
Members share no parameters, so the gradient of a sum is each member's own gradient.
"""

import jax


def none(own: jax.Array, logits: jax.Array, features: list[jax.Array], labels: jax.Array):
    """Members do not know of each other: K single runs in one step."""
    return own.sum()


COUPLINGS = {'none': none}
