"""Combine the members' own losses into one loss: the couplings.

A coupling is made from the config and is a function of one step's outputs:

    (own [K], logits [K,B,C], features: K arrays [B,D_k], targets [K,B]) -> (total, {column: [K]})

The step minimises the scalar `total`. Members share no parameters, so the gradient of a sum is each
member's own gradient, provided that what a member shows the others goes through `stop_gradient`. The
columns are logged for each member; a column named 'loss' replaces the member's own loss in the log.

A coupling may have a head, which has its own parameters and makes one more prediction from all members'
outputs. Then own, logits, targets and columns have K+1 rows, and the last row is the head's.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxcifar.augment.mixing import Targets
from jaxcifar.config.members import member_names
from jaxcifar.engine import fusion
from jaxcifar.engine.head import PARTS, Head, head_rates
from jaxcifar.engine.schedules import member_rates
from jaxcifar.machine.errors import UserError


class Coupling(NamedTuple):
    """Hold a coupling and what the program needs to know about it."""

    make: Callable  # config -> the function
    columns: tuple[str, ...] = ()  # what it logs besides 'loss'
    same_images: bool = True  # members must see the same batch, or outputs cannot be compared
    head: Callable | None = None  # (config, the members' D_k, classes) -> `head.Module`


def none(config: ConfigDict) -> Callable:
    """Train members independently: K single runs in one step."""
    return lambda own, logits, features, targets: (own.sum(), {})


def mutual(config: ConfigDict) -> Callable:
    """Let members learn from each other's predictions (Zhang et al. 2018, eq. 9).

    L_k = own_k + T²/(K-1) Σ_{j≠k} KL(softmax(z_j/T) ‖ softmax(z_k/T)), where z_j is a constant. The
    factor T² keeps the gradient's size as T grows (Hinton et al. 2015, section 2). At K=1 there are no
    peers to learn from, so L = own.
    """
    temperature = config.mutual.temperature

    def coupling(own: jax.Array, logits: jax.Array, features: list[jax.Array], targets: Targets):
        kl = temperature**2 * divergence_from_peers(logits / temperature)
        losses = own + kl
        return losses.sum(), {'loss': losses, 'ce': own, 'kl': kl}

    return coupling


def divergence_from_peers(logits: jax.Array) -> jax.Array:
    """Return the mean of KL(p_j ‖ p_k) over a member's peers j and the images, in nats: [K,B,C] -> [K].

    Only p_k receives a gradient. All K(K-1) pairs together cost one softmax per member, because
    Σ_j KL(p_j ‖ p_k) = Σ_j p_j·log p_j - (Σ_j p_j)·log p_k.
    """
    log_p = jax.nn.log_softmax(logits)
    taught = jax.lax.stop_gradient(log_p)
    p = jnp.exp(taught)

    def mean_of_peers(x: jax.Array) -> jax.Array:
        # A single member has no peers: the guard avoids 0/0.
        return (x.sum(0) - x) / max(len(x) - 1, 1)

    # A sum over all minus a member's own is the sum of its peers.
    return (mean_of_peers((p * taught).sum(-1)) - (mean_of_peers(p) * log_p).sum(-1)).mean(-1)


def dual_path(config: ConfigDict) -> Callable:
    """Train the fused prediction and every member: L = L_fused + α·Σ_k L_k."""
    alpha = config.fusion.alpha

    def coupling(own: jax.Array, logits: jax.Array, features: list[jax.Array], targets: Targets):
        # The last row belongs to the head, the others to the members.
        individual = own[:-1].sum()
        total = own[-1] + alpha * individual
        parts = {
            'loss_global': own[-1],
            'loss_individual': individual,
            'loss_total': total,
            'alpha': alpha,
        }
        return total, {name: jnp.broadcast_to(value, own.shape) for name, value in parts.items()}

    return coupling


COUPLINGS = {
    'none': Coupling(none, same_images=False),
    'mutual': Coupling(mutual, ('ce', 'kl')),
    'fusion': Coupling(
        dual_path, ('loss_global', 'loss_individual', 'loss_total', 'alpha'), head=fusion.make_module
    ),
}


def columns(config: ConfigDict) -> tuple[str, ...]:
    """Return the columns that the coupling logs; () for one that is not registered here."""
    return COUPLINGS[config.coupling].columns if config.coupling in COUPLINGS else ()


def has_head(config: ConfigDict) -> bool:
    """Return whether the coupling has parameters and a prediction of its own."""
    return config.coupling in COUPLINGS and COUPLINGS[config.coupling].head is not None


def head_parts(config: ConfigDict) -> tuple[str, ...]:
    """Return the names of the parts of the coupling's head; () where it has none."""
    return PARTS if has_head(config) else ()


def make_head(config: ConfigDict, population) -> Head | None:
    """Return the coupling's head for a `Population`, None where it has none."""
    make = COUPLINGS[config.coupling].head if has_head(config) else None
    return Head(config, make(config, population.feature_sizes(), population.num_classes)) if make else None


def make_learning_rates(config: ConfigDict, steps_per_epoch: int) -> Callable:
    """Return step (an integer) -> the members' learning rates [K]; with a head, its parts' follow, [K+2]."""
    members = member_rates(config, steps_per_epoch)
    if not has_head(config):
        return members
    parts = head_rates(config, steps_per_epoch)
    return lambda step: jnp.concatenate([members(step), parts(step)])


def output_names(config: ConfigDict) -> list[str]:
    """Return the names of all outputs: the members and, last, the coupling's head."""
    return member_names(config) + [fusion.NAME] * has_head(config)


def check_columns(config: ConfigDict, logged: dict):
    """Raise `UserError` unless a coupling logs exactly the columns it was registered with."""
    declared, found = set(columns(config)), logged.keys() - {'loss', 'accuracy'}
    if found != declared:
        raise UserError(
            f'coupling={config.coupling} logs {sorted(found)}, but is registered with {sorted(declared)}: '
            f'Coupling(…, columns={tuple(sorted(found))})'
        )


def check_images(config: ConfigDict, own: bool):
    """Raise `UserError` if members have their `own` batches but the coupling compares their outputs."""
    if own and COUPLINGS[config.coupling].same_images:
        raise UserError(
            f'coupling={config.coupling} compares predictions on the same images, but here each member has '
            f'its own: use split=shared and data.order=shared'
        )
