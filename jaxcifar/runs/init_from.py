"""Load initial weights instead of drawing them: config.init_from.

`WORKDIR` stands for the best weights of all members of a run (the last where none were chosen), and
`WORKDIR@last` and `WORKDIR@STEP` for others. A PyTorch or safetensors file stands for the weights of one
network, a folder or file of `jaxcifar.export` for its contents, and the name of a network that comes with
the package for that network. Sources joined by + give one member after the other; a source with a single
member is given to every member. A classifier for other classes starts with fresh weights.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from jaxcifar.config import saved
from jaxcifar.config.members import member_names, member_networks, member_views, network_of
from jaxcifar.data.datasets import Dataset
from jaxcifar.data.splits import Split, make_split
from jaxcifar.engine.population import Population
from jaxcifar.engine.state import TrainState
from jaxcifar.engine.views import View, is_scale
from jaxcifar.formats import foreign, portable
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import read_json
from jaxcifar.runs import shipped_networks
from jaxcifar.runs.sources import split_checkpoint, split_sources
from jaxcifar.runs.trained import open_trained


def begin_from(config: ConfigDict, population: Population, state: TrainState) -> TrainState:
    """Return the state before the first step, with the members' weights of config.init_from.

    Optimisers, counters and a coupling's head start as in any new run. Raises `UserError` if the
    sources have another number of members, or other networks.
    """
    # Members with a view start from the underlying floats, and the others from what the networks saw.
    plain = [view == 'none' for view in member_views(config)]
    sources = {shown: _members(config, population, shown) for shown in set(plain)}
    members = [sources[shown][k] for k, shown in enumerate(plain)]
    # The drawn weights stand in where a source has none, as for a classifier of other classes.
    drawn = population.disassemble(tuple(zip(state.params, state.stats)))
    for k, name in enumerate(member_names(config)):
        (view,) = (g.view for g in population.groups if k in g.members)
        members[k] = _fit(name, view, members[k], {'params': drawn[k][0], 'batch_stats': drawn[k][1]})
    params, stats = (population.assemble([v[kind] for v in members]) for kind in ('params', 'batch_stats'))
    ema = state.ema and jax.tree.map(jnp.copy, (params, stats))  # a step takes each array once
    return state.replace(params=params, stats=stats, ema=ema)


def _members(config: ConfigDict, population: Population, shown: bool) -> list[dict]:
    """Return K members of all sources, as `_load` does for one; `UserError` if there are not K."""
    shapes, networks = population.shapes(), member_networks(config)
    members: list[dict] = []
    for source in split_sources(config.init_from):
        k = min(len(members), len(shapes) - 1)  # a file fits the network of the next member
        members += _load(source, shapes[k], networks[k], config, shown)
    # One source serves all members; each gets a copy of its own when they are assembled.
    if len(members) == 1:
        members *= population.size
    if len(members) != population.size:
        raise UserError(
            f'init_from={config.init_from}: expected {population.size} members, got {len(members)}; '
            'name one source for all, or one for each, joined by +'
        )
    return members


def _load(source: str, shapes, network: str, config: ConfigDict, shown: bool) -> list[dict]:
    """Return a source's members, each {'params': …, 'batch_stats': …} on the host.

    shapes: of the network called `network`, which a file is read for. If a run has all of the config's
    member_ids, only those members are taken. shown: take a run's weights as its networks saw them, and not
    the underlying floats.
    """
    path, checkpoint = split_checkpoint(source)
    name, member_ids = path, config.member_ids
    # An export may end in .safetensors too, and then knows more of itself than its tensors tell.
    if foreign.is_foreign(path) and not portable.is_portable(path):
        return [foreign.read(path).fit(shapes, network)]
    endings = ', '.join(foreign.ENDINGS)
    path = shipped_networks.find(path, f'a workdir, an export, a weights file ({endings})', 'init_from: ')
    if checkpoint and portable.is_portable(path):
        raise UserError(f'init_from: {name} holds one set of weights: leave out @{checkpoint}')
    trained = open_trained(path, checkpoint or None)
    members, ids = trained.members(shown), trained.config.member_ids
    return [members[ids.index(i)] for i in member_ids] if set(member_ids) <= set(ids) else members


def warn_of_seen(config: ConfigDict, dataset: Dataset, split: Split):
    """Warn on stderr if members have been trained on the images that choose the weights here."""
    for source in split_sources(config.init_from) if len(split.validation) else ():
        path = shipped_networks.folder_of(split_checkpoint(source)[0])
        # A workdir or an export tells which images its networks saw; a file of weights cannot be asked.
        about = _about_data(path) if path.is_dir() else {}
        if about.get('sha256') != dataset.fingerprint():
            continue
        try:
            source_config = saved.load(path / 'config.json')
            source_config.data.root = config.data.root  # an export names no folder
            theirs = make_split(dataset, source_config)
        except UserError:  # index files may be gone
            continue
        # The config of an export leaves a split by index files out.
        if about.get('split', theirs.fingerprint()) != theirs.fingerprint():
            continue
        seen = np.intersect1d(theirs.train, split.validation).size
        if seen:
            print(
                f'warning: {source} was trained on {seen:,} of the {len(split.validation):,} images that '
                'choose the weights here, which flatters its members',
                file=sys.stderr,
            )


def _about_data(folder: Path) -> dict:
    """Return what a workdir or an export records about its training data, {} if nothing."""
    about = read_json(folder / 'dataset.json') or (read_json(folder / portable.CARD) or {}).get('data')
    return about if isinstance(about, dict) else {}


def _fit(name: str, view: View, variables: dict, drawn: dict) -> dict:
    """Return the weights for a member, with its drawn classifier if theirs has another number of classes."""
    # Scales of another view are dropped: the member's view starts with its own scales.
    own, fresh = flatten_dict(variables), flatten_dict(drawn)
    own = {path: leaf for path, leaf in own.items() if path in fresh or not is_scale(path[-1])}
    if own.keys() != fresh.keys():  # perhaps only without what a view adds
        variables = unflatten_dict(own)
        own = flatten_dict({**variables, 'params': view.init(variables['params'])})
    # Only a dense layer, the classifier, may differ in shape; any other is another network.
    others = {path[:-1] for path in fresh if path in own and own[path].shape != fresh[path].shape}
    dense = {path[:-1] for path, leaf in fresh.items() if path[-1] == 'kernel' and leaf.ndim == 2}
    if own.keys() != fresh.keys() or not others <= dense:
        network = network_of(name)
        raise UserError(
            f'init_from: expected weights of {network} with this config.model for {name}, got other '
            'layers or shapes: check network and model.*'
        )
    for layer in others:
        before, now = (tree[*layer, 'kernel'].shape for tree in (own, fresh))
        print(f'init_from: {layer[-1]} of {name} begins fresh, {before[-1]} -> {now[-1]} classes')
        own |= {path: leaf for path, leaf in fresh.items() if path[:-1] == layer}
    return {'batch_stats': {}, **unflatten_dict(own)}
