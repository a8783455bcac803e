"""Fill in and check the config from a config file and a command line, so that a run can be made from it."""

import importlib.util
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxcifar.augment import pipeline as augment
from jaxcifar.config.fields import PER_MEMBER, check_values
from jaxcifar.config.members import member_losses, member_networks, per_member
from jaxcifar.config.values import get
from jaxcifar.data import splits
from jaxcifar.data.cifar import CIFAR
from jaxcifar.data.datasets import is_resized, is_streamed
from jaxcifar.engine import couplings, fusion, losses, optim, paths, quantize, schedules, side_by_side, views
from jaxcifar.machine.errors import UserError, lookup
from jaxcifar.machine.profile import count_flops
from jaxcifar.machine.text import show
from jaxcifar.models import CHOICES, NETWORKS, build, has_choice, has_dropout
from jaxcifar.models.layers import SCHEMES

# A field, and the names that it takes.
NAMES: dict[str, Iterable[str]] = {
    'split': splits.SPLITS,
    'coupling': couplings.COUPLINGS,
    'members_as': side_by_side.WAYS,
    'ternary.rule': views.RULES,
    'ternary.per': quantize.PER,
    'data.validation': splits.VALIDATIONS,
    'optimizer.name': optim.OPTIMIZERS,
    'schedule.name': schedules.SCHEDULES,
    'fusion.rule': fusion.RULES,
    'fusion.schedule': schedules.SCHEDULES,
    'model.init': SCHEMES,
    **{f'model.{option}': ('', *names) for option, names in CHOICES.items()},
}
# Fields of names joined by +, one for all members or one for each.
JOINED: dict[str, Iterable[str]] = {'network': NETWORKS, 'loss': losses.LOSSES, 'view': views.VIEWS}
# Fields that hold regular expressions, and what reads them.
EXPRESSIONS: dict[str, Callable[[str], Any]] = {
    'ternary.layers': re.compile,
    'optimizer.rates': lambda text: paths.parse_rules('optimizer.rates', text),
    'optimizer.decay': lambda text: paths.parse_rules('optimizer.decay', text, bare=1.0),
}

# What makes a config impossible, and what to say then; {…} are its fields.
CONFLICTS: list[tuple[Callable[[ConfigDict], Any], str]] = [
    (
        lambda c: couplings.has_head(c) and c.update_order == 'sequential',
        'coupling={coupling} has one forward pass for all members: set update_order=simultaneous',
    ),
    (
        lambda c: couplings.has_head(c) and None in (c.fusion.lr, c.fusion.lr_head),
        'coupling={coupling} has a head: set fusion.lr and fusion.lr_head',
    ),
    (
        lambda c: c.batch_size % c.optimizer.accumulate,
        'batch_size must be a multiple of optimizer.accumulate={optimizer.accumulate}, got {batch_size}',
    ),
    (
        lambda c: c.data.loader == 'device' and is_streamed(c.dataset),
        'data.loader=device is for images in memory: set data.loader=host for {dataset}',
    ),
    (
        lambda c: (c.steps_per_call or 1) > 1 and is_streamed(c.dataset),
        'steps_per_call={steps_per_call} is for images in memory: set steps_per_call=1 for {dataset}',
    ),
    (
        lambda c: (
            is_streamed(c.dataset) and any(build(name, 2).needs_images for name in set(member_networks(c)))
        ),
        '{network} fits its first filters to images in memory: choose another network for {dataset}',
    ),
    (
        lambda c: c.update_order == 'sequential' and c.optimizer.accumulate > 1,
        'update_order=sequential needs whole batches: set optimizer.accumulate=1',
    ),
    (
        lambda c: c.early_stopping.patience and c.data.validation == 'none',
        'early_stopping needs validation images: set early_stopping.patience=0, or another data.validation',
    ),
    (
        lambda c: c.init_from and c.resume_from,
        'init_from loads weights and resume_from a whole state: give one of them',
    ),
    (
        lambda c: c.log.wandb != 'disabled' and not importlib.util.find_spec('wandb'),
        "log.wandb={log.wandb} needs a package: pip install -e '.[wandb]'",
    ),
    (
        lambda c: (
            'ternary' in c.view
            and c.ternary.rule == 'ttq'
            and c.ternary.float_epochs
            and c.ternary.scale_decay * max(per_member(c, 'optimizer.weight_decay'))
        ),
        'ternary.float_epochs={ternary.float_epochs:g} would let the scales of ttq decay before they are '
        'used: set ternary.scale_decay=0',
    ),
    (
        lambda c: _is_tau_ignored(c),
        'tau={tau} is for loss=logit_adjustment, and loss={loss} ignores it: leave tau out, or set '
        'loss=logit_adjustment',
    ),
    (
        lambda c: c.dataset in CIFAR and c.data.image_size != 32,
        'data.image_size={data.image_size} is for digits and image files: leave it out for {dataset}, whose '
        'images have 32 pixels',
    ),
    (
        lambda c: is_resized(c.dataset, c.data.image_size),
        'data.image_size={data.image_size} is for digits and image files: leave it out for {dataset}, whose '
        'images have another size',
    ),
    (
        lambda c: (
            (c.model.dropout or c.model.drop_path) and not any(map(has_dropout, set(member_networks(c))))
        ),
        'model.dropout and model.drop_path must be 0 for {network}, which has neither',
    ),
    (
        lambda c: c.model.shortcut and not all(has_choice(n, 'shortcut') for n in member_networks(c)),
        'model.shortcut={model.shortcut} is not for {network}, which has no choice of it: add '
        '--config.model.shortcut=',
    ),
    (
        lambda c: c.optimizer.rescale and c.optimizer.name != 'muon',
        'optimizer.rescale is for muon: set optimizer.rescale=False for {optimizer.name}',
    ),
    (
        lambda c: c.augment_each and augment.parse(c.augment).mixes,
        'augment_each cannot mix images: leave mixup and cutmix out of augment={augment}',
    ),
]

# A GPU is given this many FLOP at a time, in so many steps at the most: 5 to 35 ms of an H200's work. On one,
# ResNet-32 ran 1.19 times as fast with 16 steps a call as with 7 (`experiments/results/bench.csv`).
CALL_FLOPS, MOST_STEPS = 2e12, 16


def finalize(config: ConfigDict) -> ConfigDict:
    """Fill in the fields that depend on others and check them all.

    Runs after the command line's changes, fills in only what is unset, and returns the same object.
    Raises `UserError` with one line for an invalid value.
    """
    # All values are checked first: the rest computes with them and looks their names up.
    check_values(config)
    for field, names in NAMES.items():
        lookup(field, dict.fromkeys(names), get(config, field))
    for field, names in JOINED.items():
        for name in config[field].split('+'):
            lookup(field, dict.fromkeys(names), name)
    # Members come first among what is filled in: other defaults depend on their number.
    _fill_members(config)
    if config.augment is None:
        config.augment = 'none' if is_streamed(config.dataset) else 'crop(4)+flip'
    imagenet = config.dataset.startswith('imagenet:')
    config.data.image_size = config.data.image_size or (224 if imagenet else 32)
    config.data.root = config.data.root or data_root()
    if config.coupling == 'fusion':
        _fill_rates(config)
    _check(config)
    # This traces every network, so it comes after everything that may be refused.
    config.steps_per_call = config.steps_per_call or _steps_per_call(config)
    return config


def data_root() -> str:
    """Return where data sets are kept unless something else is said."""
    return os.environ.get('JAXCIFAR_DATA') or 'data'


def _is_tau_ignored(config: ConfigDict) -> bool:
    """Return whether members have a tau of their own that their losses do not use."""
    uses = [loss == 'logit_adjustment' for loss in member_losses(config)]
    ignored = {tau for tau, used in zip(per_member(config, 'tau'), uses) if not used}
    # A number for all members may be meant for some of them.
    return len(ignored) > 1 or (not any(uses) and ignored != {1.0})


def _fill_members(config: ConfigDict):
    """Fill in members and member_ids, from fields that name several members or a split in several parts."""
    ids = config.member_ids
    if ids is not None:
        ids = tuple(ids) if isinstance(ids, (tuple, list)) else (ids,)
    # Each list of names asks for members; the longest wins unless the number is given.
    counts = [len(config[field].split('+')) for field in JOINED]
    config.members = config.members or len(ids or ()) or max(splits.population(config) or 0, *counts)
    for field, count in zip(JOINED, counts):
        if count not in (1, config.members):
            wanted = f'one name, or one for each of members={config.members}'
            got = f'{count} in {show(config[field])}'
            raise UserError(f'{field} must be {wanted}, got {got}: set members={count}')
    ids = tuple(range(config.members)) if ids is None else ids
    if len(set(ids)) != len(ids) or len(ids) != config.members:
        remedy = f': set members={len(ids)}' if len(set(ids)) == len(ids) else ''
        wanted = f'members={config.members} different numbers'
        raise UserError(f'member_ids must be {wanted}, got {show(ids)}{remedy}')
    config.member_ids = ids


def _fill_rates(config: ConfigDict):
    """Fill in learning rates by rule and features, and refuse networks that cannot be fused."""
    sizes = {name: build(name, 2).feature_size() for name in config.network.split('+')}
    fusion.fill_rates(config, [sizes[name] for name in member_networks(config)])


def _steps_per_call(config: ConfigDict) -> int:
    """Return how many steps a GPU takes in one call: several for small networks, which wait for the host."""
    # XLA on a CPU compiles convolutions in a loop to code 30 times as slow.
    if jax.default_backend() == 'cpu' or is_streamed(config.dataset):
        return 1
    size, flops = config.data.image_size, {}
    for name in config.network.split('+'):
        network = build(name, 10, size)
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        # Tracing counts FLOPs without compiling, which would take seconds a network.
        forward = jax.jit(partial(network.apply, train=False)).trace(network.shapes(), image)
        flops[name] = count_flops(forward.jaxpr.jaxpr)
    # The backward pass takes twice as many FLOPs as the forward pass.
    step = 3 * config.batch_size * sum(flops[name] for name in member_networks(config))
    return int(min(max(CALL_FLOPS // step, 1), MOST_STEPS))


def _check(config: ConfigDict):
    """Raise `UserError` if fields that are valid by themselves do not go together."""
    for field in PER_MEMBER:
        per_member(config, field)
    splits.check(config)
    augment.parse(config.augment)
    # Each field is valid by now, so that only combinations can be wrong.
    for is_wrong, words in CONFLICTS:
        if is_wrong(config):
            raise UserError(words.format(**config))
    for field, read in EXPRESSIONS.items():
        try:
            read(get(config, field))
        except (re.error, OverflowError, RecursionError) as error:
            pattern = show(get(config, field))
            raise UserError(f'{field} must be a regular expression, got {pattern}: {error}') from None
    schedules.SCHEDULES[config.schedule.name](config.schedule, config.epochs)  # raises if impossible
