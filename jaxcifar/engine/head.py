"""Add one more prediction to the members': a coupling's head, which has its own parameters.

This file holds everything about a head: how it starts, predicts, trains at its own rates, and is averaged.
The coupling chooses the module that predicts, such as `fusion.make_module`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.struct import PyTreeNode
from ml_collections import ConfigDict

from jaxcifar.engine.optim import average, clip, make_chain
from jaxcifar.engine.schedules import scheduled_rates

PARTS = ('fusion', 'global_head')  # each has its learning rate, and a file in best/


class HeadState(PyTreeNode):
    """Hold the head's state between two steps; it is the same on all devices."""

    params: Any
    opt: Any
    ema: Any  # averaged params, or None


class Module(NamedTuple):
    """Hold the head's network as pure functions.

    init(seed) -> params: a tree of numpy arrays, {part: …}; seed as for a `Network`.
    apply(params, logits [K,B,C], features, key) -> logits [B,C]: features are K arrays [B,D]; without a
        key there is no dropout.
    """

    init: Callable
    apply: Callable


class Head(NamedTuple):
    """Hold a head as the config defines it, and train it."""

    config: ConfigDict
    module: Module

    def start(self, params) -> HeadState:
        """Return the state before the first step."""
        # An optimiser's initial state does not depend on the rates, so zeros stand in for them.
        opt = {part: chain.init(params[part]) for part, chain in self._chains((0.0, 0.0)).items()}
        return HeadState(params, opt, params if self.config.ema else None)

    def advance(self, state: HeadState, grads, rates: jax.Array, step: jax.Array) -> HeadState:
        """Return the state after a step with these gradients and the parts' learning rates [2]."""
        if self.config.fusion.clip:
            grads = clip(grads, self.config.fusion.clip)
        # Each part is a chain of its own, because it has its own rate and state.
        params, opt = {}, {}
        for part, chain in self._chains(rates).items():
            updates, opt[part] = chain.update(grads[part], state.opt[part], state.params[part])
            params[part] = optax.apply_updates(state.params[part], updates)
        return HeadState(params, opt, average(self.config.ema, step, state.ema, params))

    def _chains(self, rates) -> dict[str, optax.GradientTransformation]:
        decay = self.config.fusion.weight_decay
        return {part: make_chain(self.config, rate, decay) for part, rate in zip(PARTS, rates)}


def head_rates(config: ConfigDict, steps_per_epoch: int) -> Callable:
    """Return step -> the learning rates of PARTS [2]."""
    f = config.fusion
    return scheduled_rates(config, f.schedule, [f.lr, f.lr_head], steps_per_epoch)


def append_fused_logits(
    head: Head | None, params, logits: jax.Array, features: list[jax.Array], key=None
) -> jax.Array:
    """Return the logits of all outputs: the members' [K,B,C] and, with a head, its own as the last row."""
    if head is None:
        return logits
    fused = head.module.apply(params, logits, features, key)
    # As one more row, the head is logged and evaluated in the same way as a member.
    return jnp.concatenate([logits, fused[None]])
