"""Refuse a run that cannot fit in memory, before any part of it is built."""

import jax

from jaxcifar.engine.optim import make_optimizer
from jaxcifar.machine import memory
from jaxcifar.machine.errors import UserError
from jaxcifar.runs.session import Session

GB = 1e9


def check_run_fits(session: Session):
    """Raise `UserError` if a step's state and images alone need more than all available memory.

    Activations, which take the most memory, are not counted, so a run refused here could never work.
    """
    config, mesh = session.config, session.mesh
    (here, *others), side = mesh.local_devices, mesh.shape['member']
    needed = state_bytes(session) / side + batch_bytes(session) / mesh.size
    # Virtual devices of a CPU share its memory; a GPU tells its own.
    limit = (here.memory_stats() or {}).get('bytes_limit') if here.platform != 'cpu' else None
    if limit is None:
        needed, limit = needed * (1 + len(others)), memory.total()
    if needed > limit:
        raise UserError(
            f'members={config.members} and batch_size={config.batch_size} need at least '
            f'{needed / GB:,.1f} GB for weights, optimiser and images, but there are {limit / GB:,.1f} GB: '
            'set fewer members, a smaller batch_size or data.image_size'
        )


def state_bytes(session: Session) -> int:
    """Return the bytes of all members' parameters, statistics, averages and optimiser."""
    config, total = session.config, 0
    for group in session.population.groups:
        # Tracing alone tells the shapes.
        shapes = group.network.shapes()
        optimiser = jax.eval_shape(make_optimizer(config, 0.0, 0.0).init, shapes['params'])
        leaves = jax.tree.leaves([shapes] * (2 if config.ema else 1)) + jax.tree.leaves(optimiser)
        total += len(group.members) * sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return total


def batch_bytes(session: Session) -> float:
    """Return the bytes of a step's images: uint8, or float32 where all members see the same."""
    config, order = session.config, session.order
    pixels = 3 * min(order.batch, order.train.shape[-1]) * session.dataset.image_size**2
    # Members with images of their own may take them one after the other.
    return pixels * config.members if order.own else pixels * max(1, 4 / config.optimizer.accumulate)
