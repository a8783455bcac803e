"""Make the layers of every network, and draw their first parameters."""

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcifar.models.batch_norm import BatchNorm
from jaxcifar.models.convolution import Conv


@dataclass(frozen=True)
class Layers:
    """Make a network's convolutions, norms and other layers from their shared settings."""

    train: bool
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    dropout: float = 0.0  # share of a block's hidden activations that are set to zero
    drop_path: float = 0.0  # probability that the last block of the network is skipped
    norm_momentum: float = 0.9  # weight of the old value in the running statistics of norms
    members_as: str = 'loop'  # the form of convolutions of members side by side

    def conv(self, filters: int, size: int, stride: int = 1, groups: int = 1, name: str | None = None):
        """Return a convolution without bias that keeps the size, but for its stride."""
        return Conv(filters, size, stride, size // 2, groups, self.dtype, self.members_as, name=name)

    def norm(self, name: str | None = None) -> BatchNorm:
        """Return a batch norm."""
        return BatchNorm(self.train, self.axis_name, self.dtype, self.norm_momentum, name=name)

    def drop(self, x: jax.Array) -> jax.Array:
        """Drop activations within a block (Srivastava et al. 2014)."""
        return nn.Dropout(self.dropout, deterministic=not self.train)(x) if self.dropout else x

    def skip(self, x: jax.Array, depth: float) -> jax.Array:
        """Leave a whole branch [B,...] out for some images: stochastic depth (Huang et al. 2016).

        `depth` is the block's place in the network, 0 at the first and 1 at the last; the
        probability grows with it to `drop_path`.
        """
        if not self.drop_path:
            return x
        # Dropout broadcast over all axes but the first keeps or drops an image's whole branch.
        whole = tuple(range(1, x.ndim))
        drop = nn.Dropout(self.drop_path * depth, broadcast_dims=whole, deterministic=not self.train)
        return drop(x)


def head(x: jax.Array, num_classes: int, name: str = 'fc', drop=lambda x: x) -> tuple[jax.Array, jax.Array]:
    """Return (logits [B,C], features [B,D]), float32: mean over the pixels, `drop` and a dense layer."""
    # A mean over many pixels would round away in bfloat16.
    features = x.astype(jnp.float32).mean((1, 2))
    return nn.Dense(num_classes, name=name)(drop(features)), features


DRAWN = ('/kernel', '/bias', '/scale')  # parameters that `initialise` draws by its own rules


def initialise(
    shapes,
    seed: tuple[int, ...],
    scheme: Callable | None = None,
    zeroed: str | None = None,
    own: Callable | None = None,
):
    """Draw a network's variables for a tree of shapes, on the host.

    `scheme`, one of `SCHEMES`, draws kernels and their biases. Norms start as the identity, except for
    scales of 0 where the path matches the regular expression `zeroed`. Parameters of other names start as in
    `own()`, the variables by the module's own initialisers.

    Every tensor is drawn from (seed, its path), so one layer's numbers do not depend on which other
    layers exist. Drawing in numpy takes tenths of a second; a compiled `init` would take longer than
    compiling the step.
    """
    flat = flatten_dict(shapes, sep='/')
    leaves = {}
    # Flax's initialisers are compiled, and so are asked only for what this module cannot draw.
    unknown = [path for path in flat if path.startswith('params/') and not path.endswith(DRAWN)]
    known = flatten_dict(own(), sep='/') if unknown and own else {}
    for path, leaf in flat.items():
        # A checksum of the path is the same in every process, unlike Python's `hash`.
        rng = np.random.default_rng((*seed, zlib.crc32(path.encode())))
        # A bias is drawn by the fan-in of the kernel beside it.
        kernel = flat.get(path.rsplit('/', 1)[0] + '/kernel')
        if path in unknown and own:
            drawn = np.asarray(known[path])
        elif path.endswith('/scale'):
            drawn = np.full(leaf.shape, not (zeroed and re.search(zeroed, path)))
        elif path.endswith('/var'):
            drawn = np.ones(leaf.shape)
        elif kernel is not None:
            drawn = (scheme or he)(rng, path.endswith('/kernel'), leaf.shape, kernel.shape)
        else:
            drawn = np.zeros(leaf.shape)
        leaves[path] = drawn.astype(leaf.dtype)
    return unflatten_dict(leaves, sep='/')


def he(rng: np.random.Generator, is_kernel: bool, shape, kernel) -> np.ndarray:
    """Draw convolutions He-normal over fan_out (He et al. 2015, eq. 14), dense layers Xavier-uniform
    (Glorot & Bengio 2010, eq. 16) with zero biases. `kernel` is the layer's kernel's shape.
    """
    if not is_kernel:
        return np.zeros(shape)
    if len(shape) == 4:
        height, width, _, out = shape
        return rng.standard_normal(shape, np.float32) * np.sqrt(2 / (height * width * out))
    # The two sizes of a dense kernel, [in,out], are its fans.
    limit = np.sqrt(6 / sum(shape))
    return rng.uniform(-limit, limit, shape)


def he_dense(rng: np.random.Generator, is_kernel: bool, shape, kernel) -> np.ndarray:
    """Draw as `he`, but dense layers He-normal over fan_in (He et al. 2015, eq. 10)."""
    if is_kernel and len(shape) == 2:
        return rng.standard_normal(shape, np.float32) * np.sqrt(2 / shape[0])
    return he(rng, is_kernel, shape, kernel)


def dirac(rng: np.random.Generator, is_kernel: bool, shape, kernel) -> np.ndarray:
    """Draw as `torch`, but make the first filters copy their inputs (Zagoruyko & Komodakis 2017)."""
    drawn = torch(rng, is_kernel, shape, kernel)
    if is_kernel and len(shape) == 4:
        # Filters beyond the number of inputs have no input to pass on.
        passed = min(shape[2:])
        drawn[:, :, :, :passed] = 0
        drawn[shape[0] // 2, shape[1] // 2, range(passed), range(passed)] = 1
    return drawn


def torch(rng: np.random.Generator, is_kernel: bool, shape, kernel) -> np.ndarray:
    """Draw kernels and biases uniformly within 1/sqrt(fan_in), as torch's layers begin."""
    limit = 1 / np.sqrt(np.prod(kernel[:-1]))
    return rng.uniform(-limit, limit, shape)


SCHEMES = {'he': he, 'he_dense': he_dense, 'torch': torch, 'dirac': dirac}
STEMS = ('cifar', 'imagenet')  # for images of about 32 and of 224 pixels
