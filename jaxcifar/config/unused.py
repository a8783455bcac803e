"""Say which of the fields that somebody has set change nothing, because the part they belong to is off."""

from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from jaxcifar.config.fields import FIELDS, get_config
from jaxcifar.config.shipped_configs import given, is_shipped
from jaxcifar.config.values import flatten, get
from jaxcifar.machine.text import show


def _schedule(*names: str) -> Callable[[ConfigDict], bool]:
    """Return whether the members, or a fusion's head, have one of these schedules."""
    return lambda c: c.schedule.name in names or (c.coupling == 'fusion' and c.fusion.schedule in names)


def _rule(name: str) -> Callable[[ConfigDict], bool]:
    return lambda c: c.ternary.rule == name


def _optimizer(*names: str) -> Callable[[ConfigDict], bool]:
    return lambda c: c.optimizer.name in names


def _splits_experts(config: ConfigDict) -> bool:
    return config.split in ('overlap', 'disjoint', 'fusion') or config.data.validation.startswith('fusion')


# Fields or groups, the setting that they are for, and whether a config has it; the first reason is shown.
NEEDS: list[tuple[str, str, Callable[[ConfigDict], bool]]] = [
    ('ternary', 'view=ternary', lambda c: 'ternary' in c.view.split('+')),
    ('ternary.scale', 'ternary.rule=twn', _rule('twn')),
    ('ternary.scale_start', 'ternary.rule=ttq', _rule('ttq')),
    ('ternary.scale_lr', 'ternary.rule=ttq', _rule('ttq')),
    ('ternary.scale_decay', 'ternary.rule=ttq', _rule('ttq')),
    ('mutual', 'coupling=mutual', lambda c: c.coupling == 'mutual'),
    ('fusion', 'coupling=fusion', lambda c: c.coupling == 'fusion'),
    ('fusion.heads', 'fusion.rule=TransformerBase', lambda c: c.fusion.rule == 'TransformerBase'),
    ('long_tail', 'split=long_tail', lambda c: c.split.startswith('long_tail')),
    ('experts', 'split=overlap, disjoint or fusion', _splits_experts),
    ('experts.count', 'split=overlap or disjoint', lambda c: c.split in ('overlap', 'disjoint')),
    ('experts.shared', 'split=overlap', lambda c: c.split == 'overlap'),
    ('experts.unique', 'split=overlap', lambda c: c.split == 'overlap'),
    ('data.validation_size', 'data.validation=holdout', lambda c: c.data.validation == 'holdout'),
    ('data.split_seed', 'data.validation=holdout', lambda c: c.data.validation == 'holdout'),
    (
        'data.workers',
        'dataset=stream:… or imagenet:…',
        lambda c: c.dataset.startswith(('stream:', 'imagenet:')),
    ),
    ('optimizer.momentum', 'optimizer.name=sgd or muon', _optimizer('sgd', 'muon')),
    ('optimizer.nesterov', 'optimizer.name=sgd or muon', _optimizer('sgd', 'muon')),
    ('optimizer.b1', 'optimizer.name=adamw', _optimizer('adamw')),
    ('optimizer.b2', 'optimizer.name=adamw', _optimizer('adamw')),
    ('optimizer.rest', 'optimizer.name=muon', _optimizer('muon')),
    ('optimizer.rest_momentum', 'optimizer.name=muon', _optimizer('muon')),
    ('schedule.milestones', 'schedule.name=multistep', _schedule('multistep')),
    ('schedule.gamma', 'schedule.name=multistep or step', _schedule('multistep', 'step')),
    ('schedule.step_size', 'schedule.name=step', _schedule('step')),
    ('schedule.period', 'schedule.name=warm_restarts', _schedule('warm_restarts')),
    ('schedule.multiplier', 'schedule.name=warm_restarts', _schedule('warm_restarts')),
    (
        'schedule.final',
        'schedule.name=cosine, warm_restarts or linear',
        _schedule('cosine', 'warm_restarts', 'linear'),
    ),
    ('early_stopping.min_epochs', 'early_stopping.patience', lambda c: c.early_stopping.patience),
    ('log.wandb_project', 'log.wandb=online or offline', lambda c: c.log.wandb != 'disabled'),
    ('log.wandb_group', 'log.wandb=online or offline', lambda c: c.log.wandb != 'disabled'),
    ('log.wandb_name', 'log.wandb=online or offline', lambda c: c.log.wandb != 'disabled'),
]


def without_effect(config: ConfigDict, fields: Iterable[str]) -> list[str]:
    """Return a line for each of these fields, which somebody has set, that this config does not use."""
    lines: dict[str, str] = {}
    for field in fields:
        for part, setting, is_used in NEEDS:
            if f'{field}.'.startswith(f'{part}.') and not is_used(config):
                value = show(get(config, field))
                lines.setdefault(field, f'{field}={value} has no effect: it is for {setting}')
    return list(lines.values())


def set_by(argv: list[str], config: ConfigDict) -> list[str]:
    """Return the fields that a command line sets, and those that a config file of the user's changes."""
    words = [word.partition('=')[0] for word in argv]
    fields = [field for field in FIELDS if f'--config.{field}' in words]
    # What a shipped recipe sets besides is for whoever turns that part on.
    if any(map(is_shipped, given(argv)[-1:])):
        return fields
    now, plain = flatten(config), flatten(get_config())
    return list(dict.fromkeys([*fields, *(field for field in now if now[field] != plain.get(field))]))
