"""Give the forward pass weights other than the trained ones: views, functions of a member's parameters.

A view is made from the config. The view's own parameters are leaves of the member's tree, so they are
trained, averaged and saved like all others. Evaluation uses the shown weights; checkpoints hold the
underlying ones.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from jaxcifar.engine.quantize import dequantize, straight_through, ttq_quantize, ttq_scale, twn
from jaxcifar.machine.errors import UserError

RULES = ('twn', 'ttq')
SCALES = ('ternary_positive', 'ternary_negative')  # TTQ's, beside their kernel


class View(NamedTuple):
    """Hold two functions of one member's parameters.

    init(params) -> params with the view's own leaves; numpy arrays.
    show(params, share) -> the network's parameters; `share` is from `make_share`, and 1 in evaluation.
    """

    init: Callable
    show: Callable


def none(config: ConfigDict) -> View:
    """Show the parameters as they are."""
    return View(lambda params: params, lambda params, share=1.0: params)


def ternary(config: ConfigDict) -> View:
    """Show kernels in {-n, 0, p}, as `config.ternary` defines; gradients go to the underlying floats."""
    return View(partial(_with_scales, config), partial(_show_ternary, config))


VIEWS = {'none': none, 'ternary': ternary}


def _with_scales(config: ConfigDict, params):
    flat = flatten_dict(params, sep='/')
    for path in ternary_layers(config, flat):
        if config.ternary.rule == 'ttq':
            scale = np.asarray(ttq_scale(flat[path], config.ternary.per, config.ternary.scale_start))
            flat |= {_beside(path, name): scale for name in SCALES}
    return unflatten_dict(flat, sep='/')


def _show_ternary(config: ConfigDict, params, share: jax.Array | float = 1.0):
    flat = flatten_dict(params, sep='/')
    # The network does not know the scales, so they are taken out of its parameters.
    shown = {path: value for path, value in flat.items() if not is_scale(path)}
    for path in ternary_layers(config, flat):
        kernel = flat[path]
        if config.ternary.rule == 'ttq':
            # A scale that training made negative would swap the signs of the codes, so its magnitude is used.
            # Not jnp.abs: its gradient at 0 is 0, and a scale that started at 0 would stay there.
            scales = (flat[_beside(path, name)] for name in SCALES)
            values = ttq_quantize(kernel, *(jnp.where(s < 0, -s, s) for s in scales))
        else:
            values = straight_through(
                kernel, dequantize(twn(kernel, config.ternary.per, config.ternary.scale))
            )
        # share may be traced; as the number 1 it costs nothing.
        shown[path] = values if isinstance(share, float) else (1 - share) * kernel + share * values
    return unflatten_dict(shown, sep='/')


def float_phase(config: ConfigDict) -> float:
    """Return the number of initial epochs in which training does not use the weights of evaluation."""
    return config.ternary.float_epochs + config.ternary.blend_epochs if 'ternary' in config.view else 0.0


def make_share(config: ConfigDict, steps_per_epoch: int) -> Callable:
    """Return step -> the share s of the ternary kernel T in the kernel that training uses, (1-s)·W + s·T.

    The share is 0 for `float_epochs`, then rises to 1 over `blend_epochs`.
    """
    start, length = config.ternary.float_epochs, config.ternary.blend_epochs
    # A Python float, unlike a traced one, leaves the blend out of the program.
    if not start + length:
        return lambda step: 1.0

    def share(step) -> jax.Array:
        # The share is counted in steps, so that it also rises within an epoch.
        since = jnp.asarray(step) - start * steps_per_epoch
        # A blend of no epochs is a jump; dividing by its length would give NaN.
        if not length:
            return (since >= 0).astype(jnp.float32)
        return jnp.clip(since / (length * steps_per_epoch), 0, 1)

    return share


def ternary_layers(config: ConfigDict, params) -> list[str]:
    """Return the paths, 'block/conv1/kernel', of the kernels that are ternary in a member's parameters.

    Raises:
      UserError: no kernel is ternary.
    """
    # Callers hold the tree either nested or already flat.
    flat = params if '/' in next(iter(params)) else flatten_dict(params, sep='/')
    # Only kernels are matched: norms and biases are too few to be worth a code.
    kernels = [path for path in flat if path.endswith('/kernel')]
    found = [path for path in kernels if re.search(config.ternary.layers, path)]
    if not found:
        raise UserError(
            f'ternary.layers: expected a part of the name of some kernel ({", ".join(kernels[:3])}, …), '
            f'got {config.ternary.layers!r}'
        )
    return found


def is_scale(path: str) -> bool:
    """Return whether a parameter is one of TTQ's scales."""
    return path.endswith(SCALES)


def _beside(path: str, name: str) -> str:
    return f'{path.rpartition("/")[0]}/{name}'
