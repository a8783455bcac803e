"""Build networks by name. A new one is a Flax module in a file here and a line in `NETWORKS`."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcifar.machine.errors import UserError, lookup
from jaxcifar.models import densenet, mobilenet, resnet, resnext, speednet, wide_resnet
from jaxcifar.models.layers import SCHEMES, STEMS, Layers, initialise

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
    'preact_resnet18': resnet.PreActResNet18,
    'wideresnet28_2': wide_resnet.WideResNet28_2,
    'wideresnet28_10': wide_resnet.WideResNet28_10,
    'wideresnet40_2': wide_resnet.WideResNet40_2,
    'resnext29_8x64d': resnext.ResNeXt29_8x64d,
    'resnext29_16x64d': resnext.ResNeXt29_16x64d,
    'preact_resnext29_8x64d': resnext.PreActResNeXt29_8x64d,
    'densenet121': densenet.DenseNet121,
    'densenet169': densenet.DenseNet169,
    'densenet201': densenet.DenseNet201,
    'efficient_densenet': densenet.EfficientDenseNet,
    'mobilenetv2': mobilenet.MobileNetV2,
    'speednet': speednet.SpeedNet,
    'speednet_small': speednet.SpeedNetSmall,
    'speednet_large': speednet.SpeedNetLarge,
    'speednet_deep': speednet.SpeedNetDeep,
}

CHOICES: dict[str, dict] = {
    'shortcut': resnet.SHORTCUTS,
    'stem': dict.fromkeys(STEMS),
    'whitening': dict.fromkeys(speednet.WHITENINGS),
}


class Network(NamedTuple):
    """Hold a network as pure functions; nothing outside `models/` knows about Flax.

    shapes() -> the tree of variables' shapes.
    init(seed, images) -> variables: `seed` a tuple of integers, variables a tree of numpy arrays
        {'params': …, 'batch_stats': …}; `images` normalised training images [N,H,W,3], or None, for
        networks that `fit` some of their variables to them.
    apply(variables, images, train, key) -> (logits [B,C], features [B,D]), batch_stats: images
        [B,H,W,3] float32, normalised; `key` feeds dropout, and is needed where that is on. Under a `vmap`
        over members, members_as is the form of their convolutions (`convolution.convolve`).
    feature_size() -> D.
    """

    shapes: Callable
    init: Callable
    apply: Callable
    feature_size: Callable
    needs_images: bool = False  # whether `init` wants images


def has_choice(name: str, option: str) -> bool:
    """Return whether a network has, for example, a `stem` to choose."""
    return option in inspect.signature(NETWORKS[name]).parameters and option not in _fixed(name)


def _fixed(name: str) -> tuple[str, ...]:
    """Return the options of a network's module that its blocks do not follow."""
    block = inspect.signature(NETWORKS[name]).parameters.get('block')
    return getattr(block.default, 'lacks', ()) if block else ()


def has_dropout(name: str) -> bool:
    """Return whether a network has dropout and stochastic depth, which `build` ignores for others."""
    make = NETWORKS[name]
    return getattr(getattr(make, 'func', make), 'drops', True)


def _followed(name: str, options: dict) -> dict:
    """Return the options that a network follows.

    Raises `UserError` where it does not have an option, or not this value of it.
    """
    # Older runs and exports may name what was never followed.
    options = {option: value for option, value in options.items() if option not in _fixed(name)}
    for option, value in options.items():
        if not has_choice(name, option):
            raise UserError(f'{name} has no choice of {option}: leave model.{option} as it is')
        lookup(f'model.{option}', CHOICES.get(option, {value: None}), value)
    return options


def _drawn_by_flax(module, seed: tuple[int, ...], shape: tuple[int, ...]) -> dict:
    """Return a Flax module's variables as its own initialisers draw them, for images of this shape."""
    key = jax.random.key(np.random.default_rng(seed).integers(2**31))
    return jax.jit(module.init)(key, jnp.zeros(shape))


def build(
    name: str,
    num_classes: int,
    image_size: int = 32,
    dtype: jnp.dtype = jnp.float32,
    axis_name: str | None = None,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    init: str = 'he',
    zero_init: bool = False,
    norm_momentum: float = 0.9,
    **options,
) -> Network:
    """Return a network's functions.

    dtype: of the computation; parameters, batch statistics and logits are float32.
    axis_name: the mesh axis that norms synchronise over.
    dropout, drop_path: rates of dropout within blocks, and of stochastic depth at the last block.
    init: a key of `SCHEMES` (see `layers.initialise`); zero_init: norms that end a block begin at 0.
    norm_momentum: weight of the old value in the running statistics of norms.
    options: shortcut, stem or whitening, where a network has them; in code any field of its module.
    """
    make = lookup('network', NETWORKS, name)
    scheme, options = lookup('model.init', SCHEMES, init), _followed(name, options)

    def module(train: bool, members_as: str = 'loop'):
        # Evaluation has no batch statistics to synchronise, and may run outside the mesh.
        axis = axis_name if train else None
        layers = Layers(train, dtype, axis, dropout, drop_path, norm_momentum, members_as)
        return make(num_classes=num_classes, layers=layers, **options)

    zeroed = getattr(module(train=False), 'last_norm', None) if zero_init else None
    if zero_init and zeroed is None:
        raise UserError(f'model.zero_init must be False for {name}, whose blocks do not end in a norm')
    # One image is enough: no variable's shape depends on the batch.
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    # Only some networks fit variables to images; the others need none loaded.
    fit = getattr(module(train=False), 'fit', None)

    def shapes():
        return jax.eval_shape(module(train=False).init, jax.random.key(0), image)

    def feature_size() -> int:
        return jax.eval_shape(lambda v, x: apply(v, x, False), shapes(), image)[0][1].shape[-1]

    def draw(seed: tuple[int, ...], images: np.ndarray | None = None):
        own = partial(_drawn_by_flax, module(train=False), seed, image.shape)
        # A network without norms has no statistics.
        variables = {'batch_stats': {}, **initialise(shapes(), seed, scheme, zeroed, own)}
        return fit(variables, images) if fit and images is not None else variables

    def apply(variables, images: jax.Array, train: bool, key=None, members_as: str = 'loop'):
        network = module(train, members_as)
        if not train:
            return network.apply(variables, images), variables.get('batch_stats', {})
        keys = None if key is None else {'dropout': key}
        outputs, updated = network.apply(variables, images, mutable=['batch_stats'], rngs=keys)
        return outputs, updated.get('batch_stats', {})

    return Network(shapes, draw, apply, feature_size, fit is not None)
