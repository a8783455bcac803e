"""Optimisers and learning-rate schedules, as optax chains in torch's order.

accumulate -> clip -> weight decay -> momentum -> learning rate. A chain belongs to one member: it
is made from that member's numbers and mapped over the K members, so that one member's gradient norm
never touches another.
"""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxcifar.config.members import per_member
from jaxcifar.engine.couplings import has_head
from jaxcifar.engine.paths import map_paths, number_of, parse_rules
from jaxcifar.engine.views import is_scale
from jaxcifar.machine.errors import UserError


def sgd(config: ConfigDict, lr, weight_decay) -> list[optax.GradientTransformation]:
    """v ← μv + g + λw; w ← w - lr·(g + λw + μv if nesterov else v) (Sutskever et al. 2013)."""
    o = config.optimizer
    return [
        *_decay(config, weight_decay),
        optax.trace(o.momentum, o.nesterov) if o.momentum else optax.identity(),
        optax.scale_by_learning_rate(lr),
    ]


def adamw(config: ConfigDict, lr, weight_decay) -> list[optax.GradientTransformation]:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2)."""
    o = config.optimizer
    return [
        optax.scale_by_adam(o.b1, o.b2),
        *_decay(config, weight_decay),
        optax.scale_by_learning_rate(lr),
    ]


def muon(config: ConfigDict, lr, weight_decay) -> list[optax.GradientTransformation]:
    """Momentum of convolutions made orthogonal (Jordan et al. 2024); `sgd` for all the rest.

    A kernel counts as a matrix of inputs times outputs. Its decay is decoupled, as adamw's.
    """
    o = config.optimizer
    kernels = [
        optax.contrib.scale_by_muon(
            beta=o.momentum, nesterov=o.nesterov, ns_steps=3, weight_dimension_numbers=_matrices
        ),
        optax.stateless(lambda updates, _: jax.tree.map(_of_unit_size, updates)),
        *_decay(config, weight_decay),
        optax.scale_by_learning_rate(lr),
    ]
    rest = sgd(config, lr * o.rest, weight_decay)
    chains = {'kernel': optax.chain(*kernels), 'rest': optax.chain(*rest)}
    return [optax.multi_transform(chains, _by_shape)]


def _of_unit_size(update: jax.Array) -> jax.Array:
    """An orthogonal matrix with entries of mean square 1/inputs."""
    return update * max(1.0, update.shape[-1] / math.prod(update.shape[:-1])) ** 0.5


def _matrices(params):
    number = optax.contrib.MuonDimensionNumbers((0, 1, 2), (3,))
    return jax.tree.map(lambda leaf: number if leaf.ndim == 4 else None, params)


def _by_shape(params):
    return jax.tree.map(lambda leaf: 'kernel' if leaf.ndim == 4 else 'rest', params)


OPTIMIZERS = {'sgd': sgd, 'adamw': adamw, 'muon': muon}
HEAD_PARTS = ('fusion', 'global_head')  # of a coupling's own parameters: each has its learning rate


def make_optimizer(config: ConfigDict, lr, weight_decay) -> optax.GradientTransformation:
    """A member's chain; `lr` and `weight_decay` are scalars and may be traced."""
    chain = OPTIMIZERS[config.optimizer.name](config, lr, weight_decay)
    if config.optimizer.clip:
        chain.insert(0, optax.clip_by_global_norm(config.optimizer.clip))
    if _learns_scales(config):
        chain.append(optax.masked(optax.scale(config.ternary.scale_lr), _mask(is_scale)))
    if config.optimizer.rates:
        chain.append(_scale_by_path(config))
    if config.optimizer.rescale:
        chain.append(optax.stateless(lambda updates, params: jax.tree.map(_from_rescaled, updates, params)))
    return optax.chain(*chain)


def _scale_by_path(config: ConfigDict) -> optax.GradientTransformation:
    """Updates times the factors of optimizer.rates."""
    rules = parse_rules('optimizer.rates', config.optimizer.rates)
    return optax.stateless(lambda updates, _: map_paths(lambda p, u: u * number_of(rules, p, 1.0), updates))


def _from_rescaled(update: jax.Array, kernel: jax.Array) -> jax.Array:
    """The update that takes a convolution from where it is to √outputs·w/‖w‖, and from there on."""
    if kernel.ndim != 4:
        return update
    return update + (kernel.shape[-1] ** 0.5 / jnp.linalg.norm(kernel) - 1) * kernel


def _head_optimizers(config: ConfigDict, rates) -> dict[str, optax.GradientTransformation]:
    """A chain for each part of a coupling's head."""
    make = OPTIMIZERS[config.optimizer.name]
    decay = config.fusion.weight_decay
    return {part: optax.chain(*make(config, lr, decay)) for part, lr in zip(HEAD_PARTS, rates)}


def init_head_optimizer(config: ConfigDict, params) -> dict:
    """The states of the parts' optimisers before the first step."""
    chains = _head_optimizers(config, (0.0, 0.0))
    return {part: chain.init(params[part]) for part, chain in chains.items()}


def update_head(config: ConfigDict, grads, opt, params, rates: jax.Array):
    """New (params, optimiser states) of a coupling's head at the parts' learning rates [2]."""
    if config.fusion.clip:
        grads = clip(grads, config.fusion.clip)
    new_params, new_opt = {}, {}
    for part, chain in _head_optimizers(config, rates).items():
        updates, new_opt[part] = chain.update(grads[part], opt[part], params[part])
        new_params[part] = optax.apply_updates(params[part], updates)
    return new_params, new_opt


def clip(grads, norm: float):
    """Gradients whose norm over all leaves is `norm` at most."""
    return optax.clip_by_global_norm(norm).update(grads, optax.EmptyState())[0]


def _decay(config: ConfigDict, weight_decay) -> list[optax.GradientTransformation]:
    """Weight decay by path, as optimizer.decay has it, and otherwise of TTQ's scales."""
    rules = parse_rules('optimizer.decay', config.optimizer.decay, bare=1.0)

    def decays(factor: float) -> Callable:
        return _mask(lambda path: not is_scale(path) and number_of(rules, path, 0.0) == factor)

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


def cosine(s: ConfigDict, epochs: int) -> optax.Schedule:
    """½(1+cos πe/E) down to `final` (Loshchilov & Hutter 2017, eq. 5)."""
    return optax.cosine_decay_schedule(1.0, epochs, s.final)


def warm_restarts(s: ConfigDict, epochs: int) -> optax.Schedule:
    """Cosine cycles of period, period·m, period·m², … epochs (SGDR, the same paper)."""
    _at_least_one(s, 'multiplier')
    lengths = [first_cycle(s, epochs)]
    while sum(lengths) < epochs:
        lengths.append(lengths[-1] * s.multiplier)
    cycles = [optax.cosine_decay_schedule(1.0, length, s.final) for length in lengths]
    return optax.join_schedules(cycles, list(itertools.accumulate(lengths[:-1])))


def multistep(s: ConfigDict, epochs: int) -> optax.Schedule:
    """Multiplied by gamma at each milestone."""
    return optax.piecewise_constant_schedule(1.0, dict.fromkeys(s.milestones, s.gamma))


def step_decay(s: ConfigDict, epochs: int) -> optax.Schedule:
    """Multiplied by gamma every `step_size` epochs."""
    _at_least_one(s, 'step_size')
    return lambda epoch: jnp.power(s.gamma, jnp.floor(epoch).astype(jnp.int32) // s.step_size)


def linear(s: ConfigDict, epochs: int) -> optax.Schedule:
    """A straight line down to `final`."""
    return optax.linear_schedule(1.0, s.final, epochs)


def constant(s: ConfigDict, epochs: int) -> optax.Schedule:
    """Always 1."""
    return optax.constant_schedule(1.0)


def _at_least_one(s: ConfigDict, field: str):
    if s[field] < 1:
        raise UserError(f'schedule.{field}={s[field]} must be at least 1')


# Functions of the epoch: a whole number at its start, and fractions within it.
SCHEDULES = {
    'cosine': cosine,
    'warm_restarts': warm_restarts,
    'multistep': multistep,
    'step': step_decay,
    'linear': linear,
    'constant': constant,
}


def first_cycle(s: ConfigDict, epochs: int) -> int:
    """Epochs of the first cycle of warm restarts."""
    return s.period or max(1, epochs // 4)


def last_restart(config: ConfigDict, epoch: int) -> tuple[int, int]:
    """Of warm restarts: (the epoch at which the cycle of this epoch began, and that of its end)."""
    start, length = 0, first_cycle(config.schedule, config.epochs)
    while start + length <= epoch:
        start, length = start + length, length * config.schedule.multiplier
    return start, start + length


def make_learning_rates(config: ConfigDict, steps_per_epoch: int) -> Callable:
    """step (an integer) -> the members' learning rates [K] and, of a coupling's head, its parts' [K+2]."""
    members = _follow(config, config.schedule.name, per_member(config, 'optimizer.lr'), steps_per_epoch)
    if not has_head(config):
        return members
    parts = [config.fusion.lr, config.fusion.lr_head]
    head = _follow(config, config.fusion.schedule, parts, steps_per_epoch)
    return lambda step: jnp.concatenate([members(step), head(step)])


def _follow(config: ConfigDict, schedule: str, initial: list[float], steps_per_epoch: int) -> Callable:
    """step -> these learning rates on the schedule of this name.

    The warm-up multiplies the schedule rather than delaying it, so that milestones stay where they
    are written.
    """
    s = config.schedule
    rates = jnp.array(initial, jnp.float32)
    factor = SCHEDULES[schedule](s, config.epochs)

    def learning_rates(step) -> jax.Array:
        step = jnp.asarray(step)
        # Compiled, step/n is step·(1/n), which is below e at the start of some epochs e: whole epochs
        # are counted in integers.
        epoch = (step // steps_per_epoch).astype(jnp.float32)
        if s.per == 'step':
            epoch += step % steps_per_epoch / steps_per_epoch
        warmup = jnp.minimum((step + 1) / s.warmup_steps, 1.0) if s.warmup_steps else 1.0
        return rates * warmup * factor(epoch)

    return learning_rates
