"""Run a network's members on one device: one after the other, or side by side in one convolution.

On a GPU, kernel launches limit narrow networks, not arithmetic. Side by side, K members need as few launches
as one: `vmap` gives every operation a leading axis K, and `models.convolution` makes one of K convolutions.
Members take turns on a CPU, where merging is up to 25 times slower, and if one wide network fills the GPU.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxcifar.models import Network

# Values of config.members_as. `one` runs members side by side, each convolution in the form for its width.
WAYS = ('auto', 'loop', 'one', 'dense', 'grouped')
WIDEST = 128  # channels of a convolution; estimated, not measured: above it members take turns


def choose(way: str, network: Network, count: int, platform: str) -> str:
    """Return how `count` members of a network run on a device: a name of `WAYS`, but never 'auto'."""
    if count == 1 or (way == 'auto' and platform == 'cpu'):
        return 'loop'
    if way != 'auto':
        return way
    # Kernels of convolutions have four axes, and the outputs are their last.
    shapes = [leaf.shape for leaf in jax.tree.leaves(network.shapes()['params'])]
    return 'one' if all(shape[-1] <= WIDEST for shape in shapes if len(shape) == 4) else 'loop'


def describe(way: str, count: int) -> str:
    """Return how the members of a group run on each device, for a line of the log."""
    forms = {'one': 'dense where narrow, else grouped', 'dense': 'dense', 'grouped': 'grouped'}
    if way == 'loop':
        return f'{count} one after the other'
    return f'{count} side by side in one convolution ({forms[way]})'


def run_members(network: Network, way: str, train: bool, own_batches: bool, params, stats, images, keys):
    """Run stacked members on normalised images: (logits [K,B,C], features [K,B,D], batch statistics).

    images: [B,H,W,3] for all, or with `own_batches` [K,B,H,W,3]. keys: [K], or None without dropout.
    """
    apply = partial(network.apply, train=train)
    if way != 'loop':
        axes = {'params': 0, 'batch_stats': 0}, 0 if own_batches else None, None if keys is None else 0

        def one(variables, images, key):
            return apply(variables, images, key=key, members_as=way)

        (logits, features), stats = jax.vmap(one, axes)(
            {'params': params, 'batch_stats': stats}, images, keys
        )
        return logits, features, stats
    # This is a Python loop, because gradients of convolutions in a `scan` are far slower on a CPU.
    outputs = []
    for k, variables in enumerate(unstack({'params': params, 'batch_stats': stats})):
        key = None if keys is None else keys[k]
        (logits, features), new_stats = apply(variables, images[k] if own_batches else images, key=key)
        outputs.append((logits, features, new_stats))
    all_logits, all_features, all_stats = (list(each) for each in zip(*outputs))
    return jnp.stack(all_logits), jnp.stack(all_features), stack(all_stats)


def stack(trees: list):
    """Stack K trees into one tree with a leading axis K, on the host if the leaves are numpy arrays."""
    # Stacking on the host keeps fresh weights off the first device before they are placed.
    on_host = all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(trees[0]))
    return jax.tree.map(lambda *leaves: (np if on_host else jnp).stack(leaves), *trees)


def unstack(tree) -> list:
    """Return the K trees that `stack` joined.

    It uses `split`, whose transpose is one concatenation. The transpose of indexing K times would be
    a sum of K arrays, each of them zero except for one member.
    """
    leaves, structure = jax.tree.flatten(tree)
    size = len(leaves[0])
    parts = [jax.lax.split(leaf, [1] * size) for leaf in leaves]
    return [jax.tree.unflatten(structure, [p[k][0] for p in parts]) for k in range(size)]
