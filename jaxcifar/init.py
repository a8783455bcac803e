"""Where weights come from that are not drawn: config.init_from.

`WORKDIR` stands for the best weights of all members of a run (the last where none were chosen),
`WORKDIR@last` and `WORKDIR@STEP` for others, `FILE.pt` or `.pth` for a state_dict of PyTorch. Sources
joined by + give one member after the other; a source of one alone is given to every member.
"""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxcifar import torch_weights
from jaxcifar.errors import UserError
from jaxcifar.evaluate import load_members
from jaxcifar.members import member_names, member_networks
from jaxcifar.population import Population
from jaxcifar.state import TrainState


def begin_from(config: ConfigDict, population: Population, state: TrainState) -> TrainState:
    """The state before the first step, with the members' weights of config.init_from.

    Optimisers, counters and a coupling's head begin as they would anyway. Raises `UserError` where
    there are not as many members, or other networks or classes.
    """
    shapes = population.shapes()
    found: list[dict] = []
    for source in config.init_from.split('+'):
        # A file fits the network of the next member.
        found += load(source, shapes[min(len(found), len(shapes) - 1)], config.member_ids)
    if len(found) == 1:
        found *= population.size
    if len(found) != population.size:
        raise UserError(f'init_from={config.init_from} holds {len(found)} members, not {population.size}')
    for name, network, wanted, variables in zip(
        member_names(config), member_networks(config), shapes, found, strict=True
    ):
        if _description(variables) != _description(wanted):
            raise UserError(f'init_from: the weights for {name} are not of a {network} with as many classes')
    params, stats = (population.assemble([v[kind] for v in found]) for kind in ('params', 'batch_stats'))
    return state.replace(params=params, stats=stats, ema=state.ema and (params, stats))


def load(source: str, shapes, member_ids: tuple[int, ...]) -> list[dict]:
    """A source's members, each {'params': …, 'batch_stats': …} on the host.

    shapes: of the network that a file is read for. member_ids: which members are taken of a run that
    has all of these and others.
    """
    name, _, which = source.partition('@')
    path = Path(name)
    if path.is_dir():
        config, members = load_members(path, which or None)
        ids = config.member_ids
        if set(member_ids) < set(ids):
            members = [members[ids.index(i)] for i in member_ids]
        return [{'params': params, 'batch_stats': stats} for params, stats in members]
    if path.suffix in ('.pt', '.pth'):
        return [torch_weights.read_as(path, shapes)]
    raise UserError(f'init_from: {source} is neither a workdir nor a .pt or .pth file')


def _description(tree) -> dict:
    """The shape of every leaf by its path."""
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}
