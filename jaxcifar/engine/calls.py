"""Take several steps in one call, so that a GPU waits less for the host."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from ml_collections import ConfigDict

from jaxcifar.engine.population import Group, Population
from jaxcifar.engine.state import TrainState


def several(step: Callable, population: Population, config: ConfigDict) -> Callable:
    """Return `step`, a `TrainStep`, for the stacked batches of several steps; it logs only the last."""

    def unrolled(state: TrainState, batches):
        for i in range(len(batches['label'])):
            state, row = step(state, jax.tree.map(lambda batch, i=i: batch[i], batches))
        return state, row

    def looped(state: TrainState, batches):
        cast = cast_at_once(population, state.params, batches['image'].shape[-3:], config.precision)

        def narrow(state: TrainState):
            # Made where the weights are updated, this takes no kernel launch. Otherwise each convolution
            # needs one to cast its own weights, to the same values.
            return jax.tree.map(lambda p, do: p.astype(config.precision) if do else None, state.params, cast)

        def one(carry, batch):
            state, narrowed = carry
            params = jax.tree.map(lambda p, n: p if n is None else n, state.params, narrowed)
            state, row = step(state, batch, params)
            return (state, narrow(state)), row

        (state, _), rows = jax.lax.scan(one, (state, narrow(state)), batches)
        return state, jax.tree.map(lambda row: row[-1], rows)

    # On a CPU, a loop makes gradients of convolutions 30 times slower.
    return unrolled if jax.default_backend() == 'cpu' else looped


def cast_at_once(population: Population, params, image: tuple[int, int, int], dtype: str) -> tuple:
    """Return which parameters their networks only cast to `dtype`, as trees of bool.

    False for members that share a device, whose convolutions take their weights in other forms. image: the
    shape of one, [H,W,C].
    """
    alone = population.mesh.shape['member']
    return tuple(
        _only_cast(group, tree, image, jnp.dtype(dtype))
        if len(group.members) == alone
        else jax.tree.map(lambda _: False, tree)
        for group, tree in zip(population.groups, params)
    )


def _only_cast(group: Group, params, image: tuple[int, int, int], dtype: jnp.dtype):
    """Return a tree of bool: whether all that a member does with a parameter [K,...] is to cast it."""

    def run(params, stats, images):
        variables = {'params': group.view.show(params), 'batch_stats': stats}
        return group.network.apply(variables, images, train=False)

    of_one = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), params)
    images = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    jaxpr = jax.make_jaxpr(run)(of_one, group.network.shapes()['batch_stats'], images).jaxpr
    leaves, tree = jax.tree.flatten(params)
    uses: dict = {variable: [] for variable in jaxpr.invars[: len(leaves)]}
    for equation in jaxpr.eqns:
        cast = equation.primitive.name == 'convert_element_type' and equation.params['new_dtype'] == dtype
        for value in equation.invars:
            if not isinstance(value, Literal) and value in uses:
                uses[value].append(cast)
    return jax.tree.unflatten(tree, [len(casts) > 0 and all(casts) for casts in uses.values()])
