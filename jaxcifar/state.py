"""All that a run is, between two steps."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.struct import PyTreeNode
from ml_collections import ConfigDict

from jaxcifar import hosts
from jaxcifar.couplings import columns
from jaxcifar.optim import make_optimizer
from jaxcifar.population import Population


class TrainState(PyTreeNode):
    """Trees are tuples over the population's groups of [K_g,...] arrays."""

    step: jax.Array  # steps taken
    params: Any
    stats: Any  # batch statistics
    opt: Any
    ema: Any  # averaged (params, stats), or None
    active: jax.Array  # [K] bool: members that have not been stopped
    sums: dict[str, jax.Array]  # [K] each, over the epoch's images so far: see `new_sums`


def new_sums(config: ConfigDict) -> dict[str, jax.Array]:
    """The start of an epoch's sums: of what is logged for each member, and of images."""
    return {name: jnp.zeros(config.members) for name in ('loss', 'accuracy', *columns(config), 'count')}


def init_state(config: ConfigDict, population: Population, images=None) -> TrainState:
    """The state before the first step, on the devices; `images` as in `Population.init`."""
    params, stats = population.init(images)

    def create(params, stats):
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            stats=stats,
            opt=tuple(jax.vmap(make_optimizer(config, 0.0, 0.0).init)(p) for p in params),
            ema=(params, stats) if config.ema else None,
            active=jnp.ones(population.size, bool),
            sums=new_sums(config),
        )

    shapes = jax.eval_shape(create, params, stats)
    placed = hosts.put((params, stats), population.sharding('member'))
    return jax.jit(create, out_shardings=_sharding(shapes, population))(*placed)


def _sharding(state: TrainState, population: Population) -> TrainState:
    """Members' trees live on the mesh axis 'member', the rest on every device."""
    member, everywhere = population.sharding('member'), population.sharding()
    placed = jax.tree.map(lambda _: everywhere, state)
    trees = {name: getattr(state, name) for name in ('params', 'stats', 'opt', 'ema')}
    return placed.replace(**jax.tree.map(lambda _: member, trees))


def eval_weights(state: TrainState):
    """The (params, stats) that are evaluated: the averaged ones where there is an average."""
    return state.ema if state.ema is not None else (state.params, state.stats)


def average(decay: float, state: TrainState, params, stats):
    """The exponential moving average of weights and statistics, faster while the run is young."""
    if not decay:
        return None
    now = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    return optax.incremental_update((params, stats), state.ema, 1 - now)


def keep_stopped(population: Population, new: TrainState, old: TrainState) -> TrainState:
    """`new`, but a member that has been stopped keeps its weights, optimiser, statistics and average."""

    def choose(active):
        return lambda n, o: jnp.where(active.reshape(-1, *[1] * (n.ndim - 1)), n, o)

    def over_groups(new_trees, old_trees):
        groups = zip(population.split_by_group(old.active), new_trees, old_trees)
        return tuple(jax.tree.map(choose(active), n, o) for active, n, o in groups)

    ema = None
    if new.ema is not None:
        ema = tuple(over_groups(n, o) for n, o in zip(new.ema, old.ema))
    return new.replace(
        params=over_groups(new.params, old.params),
        stats=over_groups(new.stats, old.stats),
        opt=over_groups(new.opt, old.opt),
        ema=ema,
    )
