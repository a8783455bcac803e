"""Weights without the rest of a run's state: on disk one file a member, and back on the devices.

WORKDIR/best/MEMBER/STEP.npz        a member's best weights, as evaluated, stamped with their step
WORKDIR/calibrated/MEMBER/STEP.npz  the same with the temperature that calibrates them
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from jaxcifar.config import saved
from jaxcifar.config.members import member_names
from jaxcifar.engine.couplings import has_head, head_parts
from jaxcifar.engine.population import Population, make_mesh
from jaxcifar.engine.state import Weights, eval_weights, init_state
from jaxcifar.machine import hosts
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import read_json, write_arrays
from jaxcifar.runs.checkpoint import Checkpoints


class BestWeights:
    """Each member's best (params, batch statistics), one file a member and step.

    So are the parts of a coupling's head, which have no batch statistics.
    """

    def __init__(self, workdir: Path, folder: str = 'best'):
        self.folder = workdir / folder

    def save(self, member: str, step: int, params: dict, stats: dict, temperature: float | None = None):
        """Write a member's weights, trees of numpy arrays, and what calibrates them, if known."""
        tree = flatten_dict({'params': params, 'batch_stats': stats}, sep='/')
        if temperature is not None:
            tree['temperature'] = np.float64(temperature)
        write_arrays(self._file(member, step), tree)

    def load(self, member: str, upto: float = math.inf) -> tuple[dict, dict, int]:
        """(params, batch statistics, step) of the newest stamp not after step `upto`."""
        tree, stamp = self._read(member, upto)
        return tree['params'], tree.get('batch_stats', {}), stamp

    def temperature(self, member: str) -> float:
        """What was saved with the newest weights."""
        return float(self._read(member, math.inf)[0]['temperature'])

    def _read(self, member: str, upto: float) -> tuple[dict, int]:
        stamps = [s for s in self.steps(member) if s <= upto]
        if not stamps:
            before = '' if upto == math.inf else f' of step {upto} or before'
            raise UserError(f'{self.folder / member} holds no {self.folder.name} weights{before}')
        path = self._file(member, stamps[-1])
        try:
            with np.load(path) as file:
                return unflatten_dict(dict(file), sep='/'), stamps[-1]
        except Exception as error:  # zip, zlib and numpy each have their own
            raise UserError(f'{path} is damaged: {error}; use --checkpoint last') from None

    def steps(self, member: str) -> list[int]:
        """The stamps of a member's files, oldest first."""
        return sorted(int(p.stem) for p in (self.folder / member).glob('*.npz') if p.stem.isdecimal())

    def forget_after(self, step: int):
        """Delete what a run wrote that has gone back to `step` and may fare differently from there."""
        for member in self.folder.glob('*'):
            for stamp in self.steps(member.name):
                if stamp > step:
                    self._file(member.name, stamp).unlink(missing_ok=True)

    def prune(self, checkpoints: list[int]):
        """Delete what none of these checkpoints can come back to."""
        oldest = min(checkpoints, default=0)
        for member in self.folder.glob('*'):
            for stamp in [s for s in self.steps(member.name) if s <= oldest][:-1]:
                self._file(member.name, stamp).unlink(missing_ok=True)

    def _file(self, member: str, step: int) -> Path:
        return self.folder / member / f'{step}.npz'


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
    head = {part: best.load(part, upto)[0] for part in head_parts(config)} or None
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
    config, description = saved.load(workdir / 'config.json'), read_json(workdir / 'dataset.json')
    if description is None:
        raise UserError(f'{workdir} has no dataset.json, which a run writes when it starts')
    config.devices = 1 if hosts.alone() and not shown else None  # several hosts take part with all
    shape = len(description['classes']), description['image_size']
    population = Population(config, *shape, make_mesh(config))
    temperatures = np.ones(config.members)
    if which == 'calibrated':
        weights, _, temperatures = load_calibrated(config, population, workdir)
    else:
        weights, _ = load_weights(config, population, workdir, which)
    # Compiled and placed as in evaluation: otherwise a view's sums may be rounded to other last bits.
    params = jax.jit(population.show)(weights.params) if shown else weights.params
    members = population.disassemble(tuple(zip(params, weights.stats)))
    return Trained(config, members, hosts.fetch(weights.head), temperatures)
