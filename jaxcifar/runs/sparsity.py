"""Report what is ternary in a run, and how much of it is zero."""

from collections.abc import Mapping
from math import prod
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from jaxcifar.config.members import member_views
from jaxcifar.engine.population import Population
from jaxcifar.engine.views import ternary_layers
from jaxcifar.machine.files import write_csv
from jaxcifar.runs.evaluation import Scored
from jaxcifar.runs.session import Session

FILE = 'sparsity.csv'
COLUMNS = ('member', 'checkpoint', 'layer', 'weights', 'zeros')


def describe(config: ConfigDict, population: Population, params) -> list[str]:
    """Return a line for each ternary network: how many of its kernels and parameters are ternary."""
    views, t, lines = member_views(config), config.ternary, []
    for group, tree in zip(population.groups, params):
        if views[group.members[0]] == 'ternary':
            # The leading axis counts the members of a group, which are alike.
            sizes = {path: prod(x.shape[1:]) for path, x in flatten_dict(tree, sep='/').items()}
            layers = ternary_layers(config, sizes)
            kernels = sum(path.endswith('/kernel') for path in sizes)
            lines.append(
                f'ternary ({t.rule} per {t.per}): {len(layers)} of {kernels} kernels, '
                f'{sum(sizes[path] for path in layers):,} of {sum(sizes.values()):,} parameters'
            )
    return lines


def zeros(config: ConfigDict, population: Population, params) -> list[dict[str, tuple[int, int]]]:
    """Return {layer: (weights, zeros among them)} of each member's ternary kernels, K dicts."""
    # Zeros are counted as the network sees its weights, not in the floats behind them.
    shown, counts = population.disassemble(jax.jit(population.show)(params)), []
    for view, tree in zip(member_views(config), shown):
        flat = flatten_dict(tree, sep='/')
        layers = ternary_layers(config, flat) if view == 'ternary' else []
        counts.append({path: (flat[path].size, int(np.sum(flat[path] == 0))) for path in layers})
    return counts


def record(session: Session, workdir: Path, scored: Mapping[str, Scored], results: dict):
    """Put the share of zeros in `results` and each layer's in sparsity.csv, of last and best weights."""
    if 'ternary' not in member_views(session.config):
        return
    rows: list[tuple] = []
    for checkpoint, tested in scored.items():
        counts = zeros(session.config, session.population, tested.weights.params)
        for member, layers in zip(results['members'], counts):
            for layer, (size, count) in layers.items():
                rows.append((member['name'], checkpoint, layer, size, f'{count / size:.6g}'))
            # A plain member beside ternary ones has no share of zeros.
            if layers:
                sizes, zero = zip(*layers.values())
                member[checkpoint]['zeros'] = sum(zero) / sum(sizes)
    write_csv(workdir / FILE, COLUMNS, rows)
