"""Read what a config says about each of its K members: network, name, seed and numbers of its own."""

import copy
from collections.abc import Iterable, Mapping
from numbers import Number

from ml_collections import ConfigDict

from jaxcifar.config.fields import PER_MEMBER
from jaxcifar.config.values import get
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.text import show


def per_member(config: ConfigDict, field: str) -> list:
    """Return the field's K values: one number is given to every member."""
    value = get(config, field)
    values = list(value) if isinstance(value, (list, tuple)) else [value] * config.members
    if len(values) != config.members or not all(isinstance(v, Number) for v in values):
        wanted = f'one number, or one for each of members={config.members}'
        remedy = f': set members={len(values)}' if len(values) > 1 and len(values) != config.members else ''
        raise UserError(f'{field} must be {wanted}, got {show(value)}{remedy}')
    return values


def own_numbers(fields: Mapping, members: int) -> dict[str, list]:
    """Return {field: [K]} where members have different numbers; the seed, which only repeats, is left out.

    fields: a config by dotted names, or what is left of it in a damaged file.
    """
    found = {name: fields.get(name) for name in PER_MEMBER if name != 'seed'}
    lists = {name: [*v] for name, v in found.items() if isinstance(v, (list, tuple)) and len(v) == members}
    return {name: values for name, values in lists.items() if len(set(values)) > 1}


def titled(name: str, kinds: Iterable[str], numbers: Mapping[str, float]) -> str:
    """Return a member's name with its loss and view, and its own numbers: '0_resnet8 ternary lr=0.1'."""
    return ' '.join([name, *kinds, *(f'{field.rpartition(".")[2]}={x:g}' for field, x in numbers.items())])


def member_networks(config: ConfigDict) -> list[str]:
    """Return the K members' networks."""
    return _names(config, 'network')


def member_losses(config: ConfigDict) -> list[str]:
    """Return the K members' losses."""
    return _names(config, 'loss')


def member_views(config: ConfigDict) -> list[str]:
    """Return the K members' views."""
    return _names(config, 'view')


def _names(config: ConfigDict, field: str) -> list[str]:
    names = config[field].split('+')
    return names if len(names) == config.members else names * config.members


def member_kinds(config: ConfigDict) -> list[tuple[str, str]]:
    """Return the K members' kinds, (network, view); members of one kind have parameters of equal shapes."""
    return list(zip(member_networks(config), member_views(config)))


def member_names(config: ConfigDict) -> list[str]:
    """Return what members are called in every table: 0_resnet32."""
    return [f'{i}_{name}' for i, name in zip(config.member_ids, member_networks(config))]


def answers_to(name: str, asked: str | int | None) -> bool:
    """Return whether `asked` is the name or the id of the member called `name`: 0 for 0_resnet18."""
    return str(asked) in (name, name.partition('_')[0])


def network_of(name: str) -> str:
    """Return the network in a member's name: resnet32 for 0_resnet32, '' for names of another form."""
    return name.partition('_')[2]


def alone(config: ConfigDict, k: int) -> ConfigDict:
    """Return the config of the population's member `k` as a run of its own."""
    one = copy.deepcopy(config)
    with one.ignore_type():
        one.update_from_flattened_dict({field: per_member(config, field)[k] for field in PER_MEMBER})
        one.network, one.loss = member_networks(config)[k], member_losses(config)[k]
        one.view = member_views(config)[k]
        one.members, one.member_ids = 1, (config.member_ids[k],)
    return one


def run_seed(config: ConfigDict) -> int:
    """Return the seed of data order and augmentation where members share their batches."""
    return per_member(config, 'seed')[0]


def member_seeds(config: ConfigDict) -> list[tuple[int, int]]:
    """Return the (seed, id) pairs that a member's init, dropout and own batches are drawn from.

    With one seed, a member's id identifies it, so it trains identically alone (`member_ids=2`) and among
    others. With a seed per member, its seed does, so it trains identically in a single run with that seed.
    """
    if isinstance(config.seed, (list, tuple)):
        return [(seed, 0) for seed in config.seed]
    return [(config.seed, i) for i in config.member_ids]
