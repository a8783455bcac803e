"""Take several steps in one call, so that a GPU waits less for the host."""

from collections import Counter
from collections.abc import Callable

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxcifar.config.members import member_kinds
from jaxcifar.engine.population import Population
from jaxcifar.engine.state import TrainState


def several(step: Callable, population: Population, config: ConfigDict) -> Callable:
    """Return `step`, a `TrainStep`, for the stacked batches of several steps; it logs only the last."""

    def unrolled(state: TrainState, batches):
        for i in range(len(batches['label'])):
            state, row = step(state, jax.tree.map(lambda batch, i=i: batch[i], batches))
        return state, row

    def narrow(state: TrainState):
        return narrow_kernels(state.params, config, population.mesh)

    def one(carry, batch):
        state, kernels = carry
        params = jax.tree.map(lambda p, kernel: p if kernel is None else kernel, state.params, kernels)
        state, row = step(state, batch, params)
        return (state, narrow(state)), row

    def looped(state: TrainState, batches):
        (state, _), rows = jax.lax.scan(one, (state, narrow(state)), batches)
        return state, jax.tree.map(lambda row: row[-1], rows)

    # On a CPU, a loop makes gradients of convolutions 30 times slower.
    return unrolled if jax.default_backend() == 'cpu' else looped


def narrow_kernels(params, config: ConfigDict, mesh: Mesh):
    """Return the kernels of convolutions in the compute type, in a tree of None for all other parameters.

    A GPU makes such kernels along with the update. Otherwise each convolution needs a kernel launch to cast
    its own, to the same values.
    """
    alone = all(count == mesh.shape['member'] for count in Counter(member_kinds(config)).values())
    # Quantised kernels and those of members side by side are made anew in each step, cast or not.
    worth_it = alone and set(config.view.split('+')) == {'none'}
    return jax.tree.map(lambda p: p.astype(config.precision) if worth_it and p.ndim == 5 else None, params)
