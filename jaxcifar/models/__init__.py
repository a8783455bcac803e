"""The networks by name. A new one is a Flax module in a file here and a line in `NETWORKS`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcifar.errors import lookup
from jaxcifar.models import resnet
from jaxcifar.models.layers import initialise

NETWORKS: dict[str, Callable] = {
    'resnet8': resnet.ResNet8,
    'resnet20': resnet.ResNet20,
    'resnet32': resnet.ResNet32,
    'resnet44': resnet.ResNet44,
    'resnet56': resnet.ResNet56,
    'resnet110': resnet.ResNet110,
    'resnet18': resnet.ResNet18,
    'resnet34': resnet.ResNet34,
    'resnet50': resnet.ResNet50,
}


class Network(NamedTuple):
    """A network as two pure functions; nothing outside `models/` knows about Flax.

    init(seed) -> variables: `seed` a tuple of integers, variables a tree of numpy arrays
        {'params': …, 'batch_stats': …}.
    apply(variables, images, train, key) -> (logits [B,C], features [B,D]), batch_stats: images
        [B,H,W,3] float32, normalised; `key` feeds dropout and is unused when not training.
    """

    init: Callable
    apply: Callable


def build(
    name: str,
    num_classes: int,
    image_size: int = 32,
    dtype: jnp.dtype = jnp.float32,
    axis_name: str | None = None,
) -> Network:
    """The two functions of a network; `axis_name` is the mesh axis that norms synchronise over."""
    module = lookup('network', NETWORKS, name)
    options = {'num_classes': num_classes, 'dtype': dtype}

    def init(seed: tuple[int, ...]):
        image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
        shapes = jax.eval_shape(module(train=False, **options).init, jax.random.key(0), image)
        return initialise(shapes, seed)

    def apply(variables, images: jax.Array, train: bool, key: jax.Array | None = None):
        network = module(train=train, axis_name=axis_name if train else None, **options)
        if not train:
            return network.apply(variables, images), variables['batch_stats']
        outputs, updated = network.apply(variables, images, mutable=['batch_stats'], rngs={'dropout': key})
        return outputs, updated['batch_stats']

    return Network(init, apply)
