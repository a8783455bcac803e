"""The weights that a run has left in its workdir."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcifar import config as configs
from jaxcifar import hosts
from jaxcifar.checkpoint import BestWeights, Checkpoints
from jaxcifar.couplings import has_head
from jaxcifar.errors import UserError
from jaxcifar.logs import read_json
from jaxcifar.members import member_names
from jaxcifar.optim import HEAD_PARTS
from jaxcifar.population import Population, make_mesh
from jaxcifar.state import Weights, eval_weights, init_state
from jaxcifar.step import compiler_options


def load_weights(config: ConfigDict, population: Population, workdir: Path, which: str | None):
    """(`Weights`, step) of `last`, `best` or a step; each member's own best step for `best`.

    None is `best`, or `last` where nothing was chosen.
    """
    which = which or ('last' if config.data.validation == 'none' else 'best')
    like = init_state(config, population)
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    try:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(f'{workdir} has no checkpoint yet')
        if which == 'best':
            return load_best(config, population, workdir, steps[-1])
        if which != 'last' and which not in map(str, steps):
            raise UserError(f'{workdir} has no checkpoint {which!r}; it has best, last, {steps}')
        step = steps[-1] if which == 'last' else int(which)
        return eval_weights(checkpoints.restore(like, step)[0]), step
    finally:
        checkpoints.close()


def load_best(config: ConfigDict, population: Population, workdir: Path, upto: int):
    """(`Weights`, steps [K]) of every member's best weights not after step `upto`."""
    if config.data.validation == 'none':
        raise UserError('data.validation=none chose no best weights; use --checkpoint last')
    hosts.wait('best weights')  # the first has written them
    best = BestWeights(workdir)
    params, stats, steps = zip(*(best.load(m, upto) for m in member_names(config)))
    head = {part: best.load(part, upto)[0] for part in HEAD_PARTS} if has_head(config) else None
    return assemble(population, params, stats, head), list(steps)


def assemble(population: Population, params, stats, head=None) -> Weights:
    """K members' trees and a head's on the host -> weights on the devices."""
    placed = head and hosts.put(head, population.sharding())
    return Weights(population.assemble(params), population.assemble(stats), placed)


def load_calibrated(config: ConfigDict, population: Population, workdir: Path):
    """(`Weights`, steps [K], temperatures [K]) that `jaxcifar.calibrate` left behind."""
    if has_head(config):
        raise UserError('a fused run calibrates its members alone; use --checkpoint best')
    weights = BestWeights(workdir, 'calibrated')
    names = member_names(config)
    params, stats, steps = zip(*(weights.load(name) for name in names))
    temperatures = np.array([weights.temperature(name) for name in names])
    return assemble(population, params, stats), list(steps), temperatures


class Trained(NamedTuple):
    """A run's weights on the host.

    members: K (params, batch statistics); head: params of the coupling's, None where it has none;
    temperatures: [K], what logits are to be divided by.
    """

    config: ConfigDict
    members: list[tuple[dict, dict]]
    head: Any
    temperatures: np.ndarray


def load_trained(workdir: Path, which: str | None = None, shown: bool = False) -> Trained:
    """`which` is as in `load_weights`, or calibrated.

    shown: members as their networks see them, instead of what they are made of.
    """
    config, description = configs.load(workdir / 'config.json'), read_json(workdir / 'dataset.json')
    if description is None:
        raise UserError(f'{workdir} has no dataset.json, which a run writes when it starts')
    config.devices = None if shown else 1
    shape = len(description['classes']), description['image_size']
    population = Population(config, *shape, make_mesh(config))
    temperatures = np.ones(config.members)
    if which == 'calibrated':
        weights, _, temperatures = load_calibrated(config, population, workdir)
    else:
        weights, _ = load_weights(config, population, workdir, which)
    # Compiled and placed as in evaluation: otherwise a view's sums may be rounded to other last bits.
    show = jax.jit(population.show, compiler_options=compiler_options())
    params = show(weights.params) if shown else weights.params
    members = population.disassemble(tuple(zip(params, weights.stats)))
    return Trained(config, members, hosts.fetch(weights.head), temperatures)
