"""Hold the state of a run between two steps: all that training changes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode
from jax.experimental.layout import Format, Layout
from ml_collections import ConfigDict

from jaxcifar.config.members import run_seed
from jaxcifar.engine.couplings import columns, make_head, output_names
from jaxcifar.engine.head import HeadState
from jaxcifar.engine.optim import make_optimizer
from jaxcifar.engine.paths import check_found, parse_rules, path_names
from jaxcifar.engine.population import Population
from jaxcifar.machine import hosts

# A GPU stores a kernel [K,h,w,C,D] in the order [K,D,h,w,C] that cuDNN reads. Otherwise each step would
# transpose the kernel and its momentum. Only the memory layout changes; indexing does not.
KERNEL = Layout((0, 4, 1, 2, 3))
PLAIN = ('cpu',)  # devices that keep kernels in the order of their axes


class Weights(NamedTuple):
    """Hold the weights to evaluate: the members', and the head's parameters if the coupling has a head."""

    params: Any
    stats: Any
    head: Any = None


class TrainState(PyTreeNode):
    """Hold all that a step changes. Trees are tuples over the population's groups of [K_g,...] arrays."""

    step: jax.Array  # steps taken
    params: Any
    stats: Any  # batch statistics
    opt: Any
    ema: Any  # averaged (params, stats), or None
    active: jax.Array  # [K] bool: members that have not been stopped
    sums: dict[str, jax.Array]  # one number per output, summed over the epoch so far: see `new_sums`
    head: HeadState | None = None


def new_sums(config: ConfigDict) -> dict[str, jax.Array]:
    """Return an epoch's sums before its first step: zeros for each output's logged numbers and images."""
    outputs = len(output_names(config))
    return {name: jnp.zeros(outputs) for name in ('loss', 'accuracy', *columns(config), 'count')}


def init_state(config: ConfigDict, population: Population, images=None) -> TrainState:
    """Return the state before the first step, on the devices; `images` as in `Population.init`."""
    params, stats = population.init(images)
    rates = parse_rules('optimizer.rates', config.optimizer.rates)
    check_found('optimizer.rates', rates, [path for group in params for path in path_names(group)])
    head = make_head(config, population)

    def create(params, stats, head_params):
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            stats=stats,
            # The optimiser's initial state does not depend on the rates, so zeros stand in for them.
            opt=tuple(jax.vmap(make_optimizer(config, 0.0, 0.0).init)(p) for p in params),
            ema=(params, stats) if config.ema else None,
            active=jnp.ones(population.size, bool),
            sums=new_sums(config),
            head=head and head.start(head_params),
        )

    head_params = head and head.module.init((run_seed(config),))
    # The shardings must be known before compiling, and tracing alone tells the shapes.
    shapes = jax.eval_shape(create, params, stats, head_params)
    placed = hosts.put((params, stats), population.sharding('member'))
    alike = hosts.put(head_params, population.sharding())
    where = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        _sharding(shapes, population),
    )
    return jax.jit(create, out_shardings=formats(where))(*placed, alike)


def formats(state: TrainState):
    """Return each array's sharding, with an explicit memory layout for kernels on a GPU."""

    def of_array(x):
        plain = next(iter(x.sharding.device_set)).platform in PLAIN
        return x.sharding if plain or x.ndim != 5 else Format(KERNEL, x.sharding)

    return jax.tree.map(of_array, state)


def to_device_layout(state: TrainState) -> TrainState:
    """Return a state in its `formats`; restored arrays and loaded weights arrive in plain order."""
    wanted = formats(state)
    # A CPU keeps plain order, so there is nothing to compile or to copy.
    if not any(isinstance(leaf, Format) for leaf in jax.tree.leaves(wanted)):
        return state
    return jax.jit(lambda state: state, out_shardings=wanted)(state)


def _sharding(state: TrainState, population: Population) -> TrainState:
    """Return where each leaf lives: members' trees on the mesh axis 'member', the rest on every device."""
    member, everywhere = population.sharding('member'), population.sharding()
    placed = jax.tree.map(lambda _: everywhere, state)
    trees = {name: getattr(state, name) for name in ('params', 'stats', 'opt', 'ema')}
    return placed.replace(**jax.tree.map(lambda _: member, trees))


def eval_weights(state: TrainState) -> Weights:
    """Return the weights to evaluate: the averaged ones where the config asks for an average."""
    if state.ema is None:
        return Weights(state.params, state.stats, state.head and state.head.params)
    params, stats = state.ema
    return Weights(params, stats, state.head and state.head.ema)


def select_members(population: Population, mask: jax.Array, ours, theirs) -> tuple:
    """Choose between two trees of the members' arrays: `ours` for members in `mask` [K], else `theirs`."""

    def choose(mask):
        # The mask [K_g] is broadcast over all axes but the first.
        return lambda a, b: jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    groups = zip(population.split_by_group(mask), ours, theirs)
    return tuple(jax.tree.map(choose(m), a, b) for m, a, b in groups)


def freeze_inactive(
    population: Population, moving: jax.Array, new: TrainState, old: TrainState
) -> TrainState:
    """Return `new`, with `old` weights, optimiser, statistics and average for members not `moving` [K]."""
    ema = None
    if new.ema is not None:
        ema = tuple(select_members(population, moving, n, o) for n, o in zip(new.ema, old.ema))
    kept = {
        name: select_members(population, moving, getattr(new, name), getattr(old, name))
        for name in ('params', 'stats', 'opt')
    }
    return new.replace(ema=ema, **kept)
