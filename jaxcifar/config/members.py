"""What a config says of each of its K members: network, name, seed, and its own numbers."""

import copy
from numbers import Number
from typing import Any

from ml_collections import ConfigDict

from jaxcifar.machine.errors import UserError

# Fields of one number or one number per member.
PER_MEMBER = ('seed', 'label_smoothing', 'tau', 'optimizer.lr', 'optimizer.weight_decay')


def get(config, field: str):
    """The value at a dotted path."""
    for key in field.split('.'):
        config = config[key]
    return config


def flatten(config: dict | ConfigDict, prefix: str = '') -> dict[str, Any]:
    """{'optimizer.lr': .1, …}"""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, (dict, ConfigDict))
        flat |= flatten(value, f'{prefix}{key}.') if nested else {f'{prefix}{key}': value}
    return flat


def per_member(config: ConfigDict, field: str) -> list:
    """The field's K values: one number is given to every member."""
    value = get(config, field)
    values = list(value) if isinstance(value, (list, tuple)) else [value] * config.members
    if len(values) != config.members or not all(isinstance(v, Number) for v in values):
        raise UserError(f'{field}={value} is not a number, nor one for each of members={config.members}')
    return values


def member_networks(config: ConfigDict) -> list[str]:
    """The K members' networks."""
    names = config.network.split('+')
    return names if len(names) == config.members else names * config.members


def member_losses(config: ConfigDict) -> list[str]:
    """The K members' losses."""
    names = config.loss.split('+')
    return names if len(names) == config.members else names * config.members


def member_views(config: ConfigDict) -> list[str]:
    """The K members' views."""
    names = config.view.split('+')
    return names if len(names) == config.members else names * config.members


def member_kinds(config: ConfigDict) -> list[tuple[str, str]]:
    """The K members' (network, view): those of one kind have parameters of one shape."""
    return list(zip(member_networks(config), member_views(config)))


def member_names(config: ConfigDict) -> list[str]:
    """What members are called in every table: 0_resnet32."""
    return [f'{i}_{name}' for i, name in zip(config.member_ids, member_networks(config))]


def alone(config: ConfigDict, k: int) -> ConfigDict:
    """The config of the population's member `k` as a run of its own."""
    one = copy.deepcopy(config)
    with one.ignore_type():
        one.update_from_flattened_dict({field: per_member(config, field)[k] for field in PER_MEMBER})
        one.network, one.loss = member_networks(config)[k], member_losses(config)[k]
        one.view = member_views(config)[k]
        one.members, one.member_ids = 1, (config.member_ids[k],)
    return one


def run_seed(config: ConfigDict) -> int:
    """The seed of data order and augmentation where members share their batches."""
    return per_member(config, 'seed')[0]


def member_seeds(config: ConfigDict) -> list[tuple[int, int]]:
    """The (seed, id) pairs that a member's init, dropout and own batches are drawn from.

    With one seed, a member is its id, so that it trains alike alone (`member_ids=2`) and among
    others. With a seed per member it is its seed, so that it trains alike in a single run of it.
    """
    if isinstance(config.seed, (list, tuple)):
        return [(seed, 0) for seed in config.seed]
    return [(config.seed, i) for i in config.member_ids]
