"""Couplings: what the members' own losses become together.

A coupling is (own [K], logits [K,B,C], features: K arrays [B,D_k], targets [K,B]) -> scalar.
Members share no parameters, so the gradient of a sum is each member's own gradient.
"""

import jax

from jaxcifar.data.mixing import Targets


def none(own: jax.Array, logits: jax.Array, features: list[jax.Array], targets: Targets):
    """Members do not know of each other: K single runs in one step."""
    return own.sum()


COUPLINGS = {'none': none}
