"""Change the colours of uint8 images [B,H,W,3], each image with its own parameter [B].

The functions reproduce torchvision.transforms.v2.functional on uint8 tensors exactly. Results are
truncated, not rounded, and grey is the floor of .2989 R + .587 G + .114 B.
"""

import jax
import jax.numpy as jnp
import numpy as np


def brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Scale the brightness by `factor` [B]: 0 is black, 1 leaves the image."""
    return _to_uint8(images * _each(factor))


def saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the grey image: 0 is grey, 1 leaves the image."""
    return _blend(images, _grey(images), factor)


def contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the image's mean grey: 0 is that grey, 1 leaves the image."""
    return _blend(images, _grey(images).mean((1, 2, 3), keepdims=True), factor)


def sharpness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with a blurred image: 0 is blurred, 1 leaves the image; border pixels are left as they are."""
    x = images.astype(jnp.float32)
    height, width = images.shape[1:3]
    # Padding first lets XLA fuse the whole blur; a border written afterwards would not be fused.
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    # torchvision's kernel: 5 in the middle, 1 around it, 13 in all.
    blurred = jnp.round((box + 4 * x) / 13)
    sharp = _to_uint8(x + (1 - _each(factor)) * (blurred - x))
    row, column = np.arange(height)[:, None, None], np.arange(width)[:, None]
    inner = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    return jnp.where(inner, sharp, images)


def hue(images: jax.Array, shift: jax.Array) -> jax.Array:
    """Rotate the hue by `shift`, a fraction of the colour circle from -.5 to .5, in HSV space."""
    rgb = images / jnp.float32(255)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    value, low = rgb.max(-1), rgb.min(-1)
    chroma = value - low
    # Grey pixels have no hue: any will do.
    divisor = jnp.where(chroma == 0, 1, chroma)
    sixths = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = (sixths / 6 + shift[:, None, None]) % 1 * 6
    # Channel n is V - chroma·clip(min(k, 4-k), 0, 1), k = (n + 6H) mod 6 and n = 5, 3, 1.
    k = (sixths[..., None] + jnp.array([5, 3, 1], jnp.float32)) % 6
    turned = value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
    # Floats are truncated, so a factor of 255 would almost never give 255.
    return _to_uint8(turned * 255.999)


def posterize(images: jax.Array, bits: jax.Array) -> jax.Array:
    """Keep the highest bits, 0 to 8 of them."""
    # Eight bits shifted left exceed a byte, so the shift is done in int32.
    mask = (255 << (8 - bits.astype(jnp.int32))) & 255
    return images & _each(mask.astype(jnp.uint8))


def solarize(images: jax.Array, threshold: jax.Array) -> jax.Array:
    """Invert pixels at or above the threshold, 0 to 255."""
    return jnp.where(images >= _each(threshold), 255 - images, images)


def autocontrast(images: jax.Array) -> jax.Array:
    """Stretch each channel to 0..255; a constant channel is left unchanged."""
    low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
    flat = low == high
    return jnp.asarray(_stretched())[high - low, images - jnp.where(flat, 0, low)]


def _stretched() -> np.ndarray:
    """Tabulate the stretched values: uint8 [channel's range, distance from its lowest value].

    NumPy computes them, because XLA would multiply by the reciprocal of the scale instead of dividing.
    """
    distance = np.arange(256, dtype=np.float32)
    scale = distance * np.float32(1 / 255)
    scale[0] = 1
    return np.clip(distance / scale[:, None], 0, 255).astype(np.uint8)


def equalize(images: jax.Array) -> jax.Array:
    """Spread each channel's histogram, by Pillow's integer rule.

    A value becomes (pixels below it + s//2) // s, where s is the number of pixels below the channel's
    largest value, divided by 255 and rounded down. A channel with s = 0 is left unchanged.
    """
    batch, _, _, channels = images.shape
    x = images.reshape(batch, -1, channels).astype(jnp.int32)
    channel = jnp.arange(batch)[:, None, None] * channels + jnp.arange(channels)
    # One scatter fills the histograms of all images and channels.
    counts = jnp.zeros(batch * channels * 256, jnp.int32).at[(channel * 256 + x).ravel()].add(1)
    below = counts.reshape(batch, channels, 256)
    # A value's own pixels do not count as below it.
    below = jnp.cumsum(below, -1) - below
    largest = x.max(1)[..., None]
    step = jnp.take_along_axis(below, largest, -1) // 255
    table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255).astype(jnp.uint8)
    spread = table.reshape(-1)[channel * 256 + x]
    stays = (step == 0).reshape(batch, 1, channels)
    return jnp.where(stays, images.reshape(x.shape), spread).reshape(images.shape)


def invert(images: jax.Array) -> jax.Array:
    """Return the negative."""
    return 255 - images


def _each(numbers: jax.Array) -> jax.Array:
    """Reshape [B] to [B,1,1,1]."""
    return numbers[:, None, None, None]


def _grey(images: jax.Array) -> jax.Array:
    """Return the grey image [B,H,W,1], whole numbers as float32."""
    red, green, blue = (images[..., i : i + 1] for i in range(3))
    return jnp.floor(red * 0.2989 + green * 0.587 + blue * 0.114)


def _blend(images: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    return _to_uint8(images * _each(factor) + other * _each(1 - factor))


def _to_uint8(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0, 255).astype(jnp.uint8)
