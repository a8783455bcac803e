"""From a config file and a command line to a resolved configuration, and what may change in it."""

import importlib.util
import os
import re
from typing import Any

from ml_collections import ConfigDict

from jaxcifar.augment import pipeline as augment
from jaxcifar.config.fields import get_config
from jaxcifar.config.members import PER_MEMBER, flatten, get, member_networks, per_member
from jaxcifar.data import splits
from jaxcifar.data.datasets import is_streamed
from jaxcifar.engine import couplings, fusion, losses, optim, paths, quantize, views
from jaxcifar.machine.errors import UserError, lookup, unknown
from jaxcifar.models import NETWORKS, build

PRECISIONS = ('float32', 'bfloat16')
LOADERS = ('host', 'device')
ORDERS = ('shared', 'member')
PERIODS = ('step', 'epoch')
UPDATE_ORDERS = ('simultaneous', 'sequential')
WANDB_MODES = ('disabled', 'offline', 'online')

# What values can be; an open end is infinite.
ANY = float('inf')
RANGES = {
    **dict.fromkeys(('members', 'epochs', 'batch_size', 'devices', 'data.image_size'), (1, ANY)),
    **dict.fromkeys(
        ('eval.batch_size', 'eval.every_epochs', 'optimizer.accumulate', 'steps_per_call'), (1, ANY)
    ),
    **dict.fromkeys(('checkpoint.every_epochs', 'checkpoint.keep'), (1, ANY)),
    **dict.fromkeys(('checkpoint.every_steps', 'log.every_steps', 'data.workers'), (0, ANY)),
    **dict.fromkeys(('optimizer.lr', 'optimizer.weight_decay', 'optimizer.clip'), (0, ANY)),
    **dict.fromkeys(('optimizer.momentum', 'optimizer.b1', 'optimizer.b2', 'ema'), (0, 1)),
    **dict.fromkeys(('optimizer.rest', 'eval.shift'), (0, ANY)),
    'model.norm_momentum': (0, 1),
    **dict.fromkeys(('model.dropout', 'model.drop_path'), (0, 0.99)),
    'mutual.temperature': (0.01, ANY),
    **dict.fromkeys(('fusion.alpha', 'fusion.lr', 'fusion.lr_head', 'fusion.weight_decay'), (0, ANY)),
    **dict.fromkeys(('fusion.clip', 'fusion.clip_all', 'fusion.freeze_epochs', 'schedule.period'), (0, ANY)),
    'fusion.dropout': (0, 0.99),
    'fusion.heads': (1, ANY),
    **dict.fromkeys(('label_smoothing', 'schedule.final'), (0, 1)),
    **dict.fromkeys(('schedule.gamma', 'schedule.warmup_steps', 'data.split_seed', 'tau'), (0, ANY)),
    **dict.fromkeys(('experts.count', 'long_tail.imbalance'), (1, ANY)),
    **dict.fromkeys(('experts.seed', 'experts.holdout', 'experts.validation'), (0, ANY)),
    **dict.fromkeys(('experts.shared', 'experts.unique'), (0, 1)),
    **dict.fromkeys(('ternary.scale_lr', 'ternary.scale_decay'), (0, ANY)),
    **dict.fromkeys(('ternary.float_epochs', 'ternary.blend_epochs'), (0, ANY)),
    'long_tail.seed': (0, 2**32 - 1),
    **dict.fromkeys(('early_stopping.patience', 'early_stopping.min_epochs'), (0, ANY)),
}


def finalize(config: ConfigDict) -> ConfigDict:
    """Fill in the fields that depend on others and check them all.

    Runs after the command line's changes, fills in only what is unset, and returns the same object.
    Raises `UserError` with one line for a value that cannot be.
    """
    fields = flatten(get_config())
    for field in flatten(config):
        if field not in fields:
            raise unknown('field', field, fields)
    names, loss_names, view_names = (config[field].split('+') for field in ('network', 'loss', 'view'))
    ids = config.member_ids
    if ids is not None:
        ids = tuple(ids) if isinstance(ids, (tuple, list)) else (ids,)
    counts = splits.population(config) or 0, len(names), len(loss_names), len(view_names)
    config.members = config.members or len(ids or ()) or max(counts)
    for kind, found in (('networks', names), ('losses', loss_names), ('views', view_names)):
        if len(found) not in (1, config.members):
            listed = '+'.join(found)
            raise UserError(f'{listed} names {len(found)} {kind} for members={config.members}')
    ids = tuple(range(config.members)) if ids is None else ids
    if len(set(ids)) != config.members or not all(isinstance(i, int) and i >= 0 for i in ids):
        raise UserError(f'member_ids={ids} are not {config.members} different numbers of members')
    config.member_ids = ids
    on_disk = is_streamed(config.dataset)
    if config.augment is None:
        config.augment = 'none' if on_disk else 'crop(4)+flip'
    imagenet = config.dataset.startswith('imagenet:')
    config.data.image_size = config.data.image_size or (224 if imagenet else 32)
    config.data.root = config.data.root or data_root()
    if couplings.has_head(config) and config.update_order == 'sequential':
        raise UserError(f'coupling={config.coupling} has one forward pass: set update_order=simultaneous')
    if config.coupling == 'fusion':
        _finalize_fusion(config)
    _check(config, names)
    return config


def data_root() -> str:
    """Where data sets are kept unless something else is said."""
    return os.environ.get('JAXCIFAR_DATA') or 'data'


def _finalize_fusion(config: ConfigDict):
    """Learning rates by rule and features, and what fusion cannot be with."""
    lookup('fusion.rule', fusion.RULES, config.fusion.rule)
    sizes = {name: build(name, 2).feature_size() for name in config.network.split('+')}
    fusion.fill_rates(config, [sizes[name] for name in member_networks(config)])


def _check(config: ConfigDict, names: list[str]):
    for field, values in _choices():
        lookup(field, dict.fromkeys(values), get(config, field))
    for name in names:
        lookup('network', NETWORKS, name)
    for name in config.loss.split('+'):
        lookup('loss', losses.LOSSES, name)
    for name in config.view.split('+'):
        lookup('view', views.VIEWS, name)
    splits.check(config)
    for field in PER_MEMBER:
        per_member(config, field)
    if not all(isinstance(s, int) and s >= 0 for s in per_member(config, 'seed')):
        raise UserError(f'seed={config.seed} is not made of whole numbers from 0 up')
    for field, (low, high) in RANGES.items():
        values = per_member(config, field) if field in PER_MEMBER else [get(config, field)]
        for value in values:
            if value is not None and not low <= value <= high:
                raise UserError(f'{field}={value} is not from {low} to {high}')
    if couplings.has_head(config) and None in (config.fusion.lr, config.fusion.lr_head):
        raise UserError(f'coupling={config.coupling} has a head: set fusion.lr and fusion.lr_head')
    if config.batch_size % config.optimizer.accumulate:
        raise UserError(
            f'batch_size={config.batch_size} does not split into '
            f'optimizer.accumulate={config.optimizer.accumulate} equal parts'
        )
    if config.data.loader == 'device' and is_streamed(config.dataset):
        raise UserError(f'data.loader=device is for images in memory; {config.dataset} needs host')
    if config.steps_per_call > 1 and is_streamed(config.dataset):
        raise UserError(f'steps_per_call is for images in memory, not for {config.dataset}')
    if config.update_order == 'sequential' and config.optimizer.accumulate > 1:
        raise UserError('update_order=sequential needs whole batches: set optimizer.accumulate=1')
    if config.early_stopping.patience and config.data.validation == 'none':
        raise UserError('early_stopping needs validation images: set data.validation=holdout')
    if config.init_from and config.resume_from:
        raise UserError('init_from takes weights and resume_from whole states: give one of them')
    if len(config.profile.steps) != 2:
        raise UserError(f'profile.steps={config.profile.steps} is not a pair (first, end)')
    if config.log.wandb != 'disabled' and not importlib.util.find_spec('wandb'):
        raise UserError(f"log.wandb={config.log.wandb} needs a package: pip install -e '.[wandb]'")
    mixes = augment.parse(config.augment).mixes
    if config.augment_each and mixes:
        raise UserError(f'augment_each would mix other images for each member: leave out {mixes[0].name}')
    paths.parse_rules('optimizer.rates', config.optimizer.rates)
    paths.parse_rules('optimizer.decay', config.optimizer.decay, bare=1.0)
    if config.optimizer.rescale and config.optimizer.name != 'muon':
        raise UserError(f'optimizer.rescale is for muon, not for {config.optimizer.name}')
    _check_expression(config, 'ternary.layers')
    optim.SCHEDULES[config.schedule.name](config.schedule, config.epochs)  # raises if impossible


def _check_expression(config: ConfigDict, field: str):
    try:
        re.compile(get(config, field))
    except re.error as error:
        raise UserError(f'{field}={get(config, field)!r}: {error}') from None


def _choices() -> list[tuple[str, Any]]:
    return [
        ('split', splits.SPLITS),
        ('coupling', couplings.COUPLINGS),
        ('update_order', UPDATE_ORDERS),
        ('ternary.rule', views.RULES),
        ('ternary.per', quantize.PER),
        ('precision', PRECISIONS),
        ('data.loader', LOADERS),
        ('data.validation', splits.VALIDATIONS),
        ('data.order', ORDERS),
        ('optimizer.name', optim.OPTIMIZERS),
        ('schedule.name', optim.SCHEDULES),
        ('fusion.rule', fusion.RULES),
        ('fusion.schedule', optim.SCHEDULES),
        ('schedule.per', PERIODS),
        ('log.wandb', WANDB_MODES),
    ]
