"""Change learning rates over the epochs: schedules are factors by name, which multiply initial rates."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxcifar.config.members import per_member
from jaxcifar.machine.errors import UserError


def cosine(s: ConfigDict, epochs: int) -> optax.Schedule:
    """Fall as ½(1+cos πe/E) to `final` (Loshchilov & Hutter 2017, eq. 5)."""
    return optax.cosine_decay_schedule(1.0, epochs, s.final)


def warm_restarts(s: ConfigDict, epochs: int) -> optax.Schedule:
    """Fall in cosine cycles of period, period·m, period·m², … epochs (SGDR, the same paper)."""
    _at_least_one(s, 'multiplier')
    lengths = [first_cycle(s, epochs)]
    while sum(lengths) < epochs:
        lengths.append(lengths[-1] * s.multiplier)
    cycles = [optax.cosine_decay_schedule(1.0, length, s.final) for length in lengths]
    return optax.join_schedules(cycles, list(itertools.accumulate(lengths[:-1])))


def multistep(s: ConfigDict, epochs: int) -> optax.Schedule:
    """Multiply by gamma at each milestone."""
    return optax.piecewise_constant_schedule(1.0, dict.fromkeys(s.milestones, s.gamma))


def step_decay(s: ConfigDict, epochs: int) -> optax.Schedule:
    """Multiply by gamma every `step_size` epochs."""
    _at_least_one(s, 'step_size')
    # Within an epoch, the factor must stay constant.
    return lambda epoch: jnp.power(s.gamma, jnp.floor(epoch).astype(jnp.int32) // s.step_size)


def linear(s: ConfigDict, epochs: int) -> optax.Schedule:
    """Fall in a straight line to `final`."""
    return optax.linear_schedule(1.0, s.final, epochs)


def constant(s: ConfigDict, epochs: int) -> optax.Schedule:
    """Stay at 1."""
    return optax.constant_schedule(1.0)


def _at_least_one(s: ConfigDict, field: str):
    if s[field] < 1:
        raise UserError(f'schedule.{field} must be at least 1, got {s[field]}')


# Functions of the epoch, which is a whole number at an epoch's start and fractional within it.
SCHEDULES = {
    'cosine': cosine,
    'warm_restarts': warm_restarts,
    'multistep': multistep,
    'step': step_decay,
    'linear': linear,
    'constant': constant,
}


def first_cycle(s: ConfigDict, epochs: int) -> int:
    """Return the epochs of the first cycle of warm restarts."""
    return s.period or max(1, epochs // 4)


def last_restart(config: ConfigDict, epoch: int) -> tuple[int, int]:
    """Return (first epoch, end) of the warm-restart cycle that contains this epoch."""
    start, length = 0, first_cycle(config.schedule, config.epochs)
    while start + length <= epoch:
        start, length = start + length, length * config.schedule.multiplier
    return start, start + length


def member_rates(config: ConfigDict, steps_per_epoch: int) -> Callable:
    """Return step (an integer) -> the members' learning rates [K]."""
    return scheduled_rates(config, config.schedule.name, per_member(config, 'optimizer.lr'), steps_per_epoch)


def scheduled_rates(
    config: ConfigDict, schedule: str, initial: list[float], steps_per_epoch: int
) -> Callable:
    """Return step -> these learning rates on the schedule of this name.

    The warm-up multiplies the schedule rather than delaying it, so that milestones stay where they
    are written.
    """
    s = config.schedule
    rates = jnp.array(initial, jnp.float32)
    factor = SCHEDULES[schedule](s, config.epochs)

    def learning_rates(step) -> jax.Array:
        step = jnp.asarray(step)
        # XLA compiles step/n to step·(1/n), which falls just below e at the start of some epochs e. So
        # whole epochs are counted in integers.
        epoch = (step // steps_per_epoch).astype(jnp.float32)
        if s.per == 'step':
            epoch += step % steps_per_epoch / steps_per_epoch
        # The first step counts as 1, or a rate of 0 would waste it.
        warmup = jnp.minimum((step + 1) / s.warmup_steps, 1.0) if s.warmup_steps else 1.0
        return rates * warmup * factor(epoch)

    return learning_rates
