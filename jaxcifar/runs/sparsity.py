"""What is ternary in a run, and how much of it is zero."""

import csv
import io
from math import prod
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from jaxcifar.config.members import member_views
from jaxcifar.engine.population import Population
from jaxcifar.engine.views import ternary_layers
from jaxcifar.machine.files import write_text

FILE = 'sparsity.csv'
COLUMNS = ('member', 'checkpoint', 'layer', 'weights', 'zeros')


def describe(config: ConfigDict, population: Population, params) -> list[str]:
    """A line for each network that is seen as ternary: how many of its kernels and parameters."""
    views, t, lines = member_views(config), config.ternary, []
    for group, tree in zip(population.groups, params):
        if views[group.members[0]] == 'ternary':
            sizes = {path: prod(x.shape[1:]) for path, x in flatten_dict(tree, sep='/').items()}
            layers = ternary_layers(config, sizes)
            kernels = sum(path.endswith('/kernel') for path in sizes)
            lines.append(
                f'ternary ({t.rule} per {t.per}): {len(layers)} of {kernels} kernels, '
                f'{sum(sizes[path] for path in layers):,} of {sum(sizes.values()):,} parameters'
            )
    return lines


def zeros(config: ConfigDict, population: Population, params) -> list[dict[str, tuple[int, int]]]:
    """{layer: (weights, zeros among them)} of each member's ternary kernels, K dicts."""
    shown, found = population.disassemble(jax.jit(population.show)(params)), []
    for view, tree in zip(member_views(config), shown):
        flat = flatten_dict(tree, sep='/')
        layers = ternary_layers(config, flat) if view == 'ternary' else []
        found.append({path: (flat[path].size, int(np.sum(flat[path] == 0))) for path in layers})
    return found


def record(run, weights: dict[str, Any], results: dict):
    """Put the share of zeros in `results` and each layer's in sparsity.csv.

    weights: `Weights` of `last` and if chosen `best`.
    """
    if 'ternary' not in member_views(run.config):
        return
    file = io.StringIO()
    table = csv.writer(file, lineterminator='\n')
    table.writerow(COLUMNS)
    for which, (params, *_) in weights.items():
        for member, layers in zip(results['members'], zeros(run.config, run.population, params)):
            for layer, (size, count) in layers.items():
                table.writerow((member['name'], which, layer, size, f'{count / size:.6g}'))
            if layers:
                sizes, counts = zip(*layers.values())
                member[which]['zeros'] = sum(counts) / sum(sizes)
    write_text(run.workdir / FILE, file.getvalue())
