"""Update parameters: optimisers as optax chains, in torch's order.

accumulate -> clip -> weight decay -> momentum -> learning rate. Each member has its own
chain, made from that member's numbers, and `vmap` runs all K. So one member's gradient norm never
affects another member.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxcifar.engine.muon import kernel_or_rest, orthogonal, rescale
from jaxcifar.engine.paths import map_paths, number_of, parse_rules, scale_by_path
from jaxcifar.engine.views import is_scale


def sgd(config: ConfigDict, lr, weight_decay, momentum=None) -> list[optax.GradientTransformation]:
    """Descend: v ← μv + g + λw; w ← w - lr·(g + λw + μv if nesterov else v) (Sutskever et al. 2013)."""
    o = config.optimizer
    momentum = o.momentum if momentum is None else momentum
    return [
        *_decay(config, weight_decay),
        optax.trace(momentum, o.nesterov) if momentum else optax.identity(),
        optax.scale_by_learning_rate(lr),
    ]


def adamw(config: ConfigDict, lr, weight_decay) -> list[optax.GradientTransformation]:
    """Descend by Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2)."""
    o = config.optimizer
    return [
        optax.scale_by_adam(o.b1, o.b2),
        *_decay(config, weight_decay),
        optax.scale_by_learning_rate(lr),
    ]


def muon(config: ConfigDict, lr, weight_decay) -> list[optax.GradientTransformation]:
    """Update convolutions by their orthogonalised momentum (Jordan et al. 2024), and the rest by `sgd`.

    A kernel is treated as an inputs × outputs matrix. Its weight decay is decoupled, as in adamw.
    """
    o = config.optimizer
    kernels = [*orthogonal(o), *_decay(config, weight_decay), optax.scale_by_learning_rate(lr)]
    # Norms and biases are not matrices, so they descend with a rate of their own.
    rest = sgd(config, lr * o.rest, weight_decay, o.rest_momentum)
    chains = {'kernel': optax.chain(*kernels), 'rest': optax.chain(*rest)}
    return [optax.multi_transform(chains, kernel_or_rest)]


OPTIMIZERS: dict[str, Callable] = {'sgd': sgd, 'adamw': adamw, 'muon': muon}


def make_optimizer(config: ConfigDict, lr, weight_decay) -> optax.GradientTransformation:
    """Return a member's chain; `lr` and `weight_decay` are scalars and may be traced."""
    chain = OPTIMIZERS[config.optimizer.name](config, lr, weight_decay)
    # The norm is taken before weight decay enters the gradient, as in torch.
    if config.optimizer.clip:
        chain.insert(0, optax.clip_by_global_norm(config.optimizer.clip))
    # This factor comes after the optimiser: applied earlier, it would be divided out by adamw.
    if _learns_scales(config):
        chain.append(optax.masked(optax.scale(config.ternary.scale_lr), _mask(is_scale)))
    # Factors by path apply to the finished update, so they act as rates.
    if config.optimizer.rates:
        chain.append(scale_by_path(parse_rules('optimizer.rates', config.optimizer.rates)))
    # Rescaling comes last, because it adds to the finished update.
    if config.optimizer.rescale:
        chain.append(rescale())
    return optax.chain(*chain)


def make_chain(config: ConfigDict, lr, weight_decay) -> optax.GradientTransformation:
    """Return the optimiser alone, without the clipping, path factors and rescaling of `make_optimizer`.

    A head has no convolutions, so that for muon it is the optimiser of the rest, at the rate that is given.
    """
    if config.optimizer.name == 'muon':
        return optax.chain(*sgd(config, lr, weight_decay, config.optimizer.rest_momentum))
    return optax.chain(*OPTIMIZERS[config.optimizer.name](config, lr, weight_decay))


def average(decay: float, step: jax.Array, old, new):
    """Return a tree's moving average with decay min(decay, (1+step)/(10+step)), or None where decay is 0."""
    if not decay:
        return None
    # With the full decay, an early average would consist mostly of the initial weights.
    now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return optax.incremental_update(new, old, 1 - now)


def clip(grads, norm: float):
    """Scale gradients so that their norm over all leaves is at most `norm`."""
    return optax.clip_by_global_norm(norm).update(grads, optax.EmptyState())[0]


def _decay(config: ConfigDict, weight_decay) -> list[optax.GradientTransformation]:
    """Return weight decay by path, as optimizer.decay defines it; TTQ's scales have their own decay."""
    rules = parse_rules('optimizer.decay', config.optimizer.decay, bare=1.0)

    def decays(factor: float) -> Callable:
        return _mask(lambda path: not is_scale(path) and number_of(rules, path, 0.0) == factor)

    # One transform serves each distinct factor, however many rules name it.
    factors = dict.fromkeys(rule.number for rule in rules)
    chain = [optax.add_decayed_weights(weight_decay * factor, decays(factor)) for factor in factors]
    if _learns_scales(config) and config.ternary.scale_decay:
        of_scales = config.ternary.scale_decay * weight_decay
        chain.append(optax.add_decayed_weights(of_scales, _mask(is_scale)))
    return chain


def _learns_scales(config: ConfigDict) -> bool:
    return 'ternary' in config.view and config.ternary.rule == 'ttq'


def _mask(of: Callable[[str], bool]) -> Callable:
    return lambda params: map_paths(lambda path, _: of(path), params)
