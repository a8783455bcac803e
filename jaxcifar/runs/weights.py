"""Keep weights without the rest of a run's state: on disk one file a member, and back on the devices.

WORKDIR/best/MEMBER/STEP.npz        a member's best weights, as evaluated, stamped with their step
WORKDIR/calibrated/MEMBER/STEP.npz  the same with the temperature that calibrates them
"""

import math
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from jaxcifar.config.members import member_names
from jaxcifar.engine.couplings import has_head, head_parts
from jaxcifar.engine.population import Population
from jaxcifar.engine.state import Weights, eval_weights, init_state
from jaxcifar.engine.views import is_scale
from jaxcifar.machine import hosts
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import write_arrays
from jaxcifar.runs import results_file
from jaxcifar.runs.checkpoint import Checkpoints, saved_steps

CALIBRATED = 'calibrated'
CHOSEN = 'best', CALIBRATED  # names of weights that held-out images chose

USE_LAST = 'use the last weights (--checkpoint last; in init_from, RUN@last)'
PUT_BACK = f'put them back, or {USE_LAST}'


class BestWeights:
    """Keep each member's best (params, batch statistics), one file per member and step.

    The parts of a coupling's head are kept in the same way, without batch statistics.
    """

    def __init__(self, workdir: str | Path, folder: str = 'best'):
        self.folder = Path(workdir) / folder

    def save(self, member: str, step: int, params: dict, stats: dict, temperature: float | None = None):
        """Write a member's weights, trees of numpy arrays, and what calibrates them, if known."""
        # An .npz is flat: the path of a leaf becomes its name.
        tree = flatten_dict({'params': params, 'batch_stats': stats}, sep='/')
        if temperature is not None:
            tree['temperature'] = np.float64(temperature)
        write_arrays(self._file(member, step), tree)

    def load(self, member: str, upto: float = math.inf) -> tuple[dict, dict, int]:
        """Return (params, batch statistics, step) of the newest stamp not after step `upto`."""
        tree, stamp = self._read(member, upto, 'params')
        return tree['params'], tree.get('batch_stats', {}), stamp

    def temperature(self, member: str) -> float:
        """Return the temperature that was saved with the newest weights."""
        return float(self._read(member, math.inf, 'temperature')[0]['temperature'])

    def _read(self, member: str, upto: float, needed: str) -> tuple[dict, int]:
        # Stamps after a checkpoint belong to steps that the run will repeat, perhaps with another result.
        stamps = [s for s in self.steps(member) if s <= upto]
        if not stamps:
            before = '' if upto == math.inf else f' of step {upto} or before'
            raise UserError(f'{self.folder / member} holds no {self.folder.name} weights{before}', PUT_BACK)
        path = self._file(member, stamps[-1])
        try:
            with path.open('rb') as file:  # which numpy leaves open where it is damaged
                tree = unflatten_dict(dict(np.load(file)), sep='/')
            if needed not in tree:
                raise ValueError(f'it has no {needed}')
        except Exception as error:  # zip, zlib and numpy each have their own
            reason = ' '.join(str(error).split())
            raise UserError(f'{path} is damaged ({reason})', PUT_BACK) from None
        return tree, stamps[-1]

    def steps(self, member: str) -> list[int]:
        """Return the stamps of a member's files, oldest first; files with other names are not ours."""
        files = (self.folder / member).glob('[0-9]*.npz')
        # Sorted as numbers: in the order of names, 1000 would come before 200.
        return sorted(int(path.stem) for path in files if path.stem.isdecimal())

    def forget_after(self, step: int):
        """Delete weights of later steps than `step`: the run has gone back there, and may choose others."""
        for member in self.folder.glob('*'):
            for stamp in self.steps(member.name):
                if stamp > step:
                    self._file(member.name, stamp).unlink(missing_ok=True)

    def prune(self, checkpoints: list[int]):
        """Delete weights that no run resumed from one of these checkpoints would need."""
        oldest = min(checkpoints, default=0)
        for member in self.folder.glob('*'):
            # The newest stamp of the oldest checkpoint stays: that one may still be restored.
            for stamp in [s for s in self.steps(member.name) if s <= oldest][:-1]:
                self._file(member.name, stamp).unlink(missing_ok=True)

    def _file(self, member: str, step: int) -> Path:
        return self.folder / member / f'{step}.npz'


def load_weights(config: ConfigDict, population: Population, workdir: Path, checkpoint: str | None):
    """Return (`Weights`, step) of the checkpoint called best, last, calibrated or by its step.

    None means best, or last where nothing was chosen. For best and calibrated, step is [K], one per member.
    """
    checkpoint = checkpoint or default_checkpoint(config, workdir)
    if checkpoint == CALIBRATED:
        if has_head(config):
            raise UserError('a fused run calibrates its members alone; use --checkpoint best')
        return _load_files(config, population, BestWeights(workdir, CALIBRATED))
    if not saved_steps(workdir):  # opening them would make their folder
        return _load_without_checkpoints(config, population, workdir, checkpoint)
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    try:
        steps = checkpoints.steps()
        if checkpoint == 'best':
            return load_best(config, population, workdir, steps[-1])
        if checkpoint != 'last' and checkpoint not in map(str, steps):
            raise UserError(
                f'expected a checkpoint of {workdir}, best, last or one of {steps}, got {checkpoint!r}'
            )
        step = steps[-1] if checkpoint == 'last' else int(checkpoint)
        # A fresh state lends its structure; no value of it survives.
        return eval_weights(checkpoints.restore(init_state(config, population), step)[0]), step
    finally:
        checkpoints.close()


def _load_without_checkpoints(config: ConfigDict, population: Population, workdir: Path, checkpoint: str):
    """Return what `load_weights` does for a finished run whose checkpoints were deleted to save space."""
    # Best weights without results are from a run killed before its first save, which may still choose others.
    ended = results_file.last_step(workdir)
    if not ended:
        raise UserError(f'{workdir} has no checkpoint yet: train it, or wait for its first save')
    if checkpoint != 'best':
        raise UserError(f'the checkpoints of {workdir} are gone', 'put them back, or use the best weights')
    return load_best(config, population, workdir, ended)


def default_checkpoint(config: ConfigDict, workdir: Path) -> str:
    """Return the name of the weights that represent a run: best, or last where nothing was chosen."""
    # A run may also end before its first evaluation. Damaged results do not keep weights from being used.
    results = results_file.peek(workdir)
    chose_none = results is not None and 'best' not in results['mean']
    return 'last' if config.data.validation == 'none' or chose_none else 'best'


def load_best(config: ConfigDict, population: Population, workdir: Path, upto: int):
    """Return (`Weights`, steps [K]) of every member's best weights not after step `upto`."""
    if config.data.validation == 'none':
        raise UserError('data.validation=none chose no best weights', USE_LAST)
    hosts.wait('best weights')  # the first has written them
    return _load_files(config, population, BestWeights(workdir), upto)


def load_temperatures(config: ConfigDict, workdir: Path, checkpoint: str | None) -> np.ndarray:
    """Return the temperatures that members' logits are divided by, [K]; 1 unless it is `calibrated`."""
    if checkpoint != CALIBRATED:
        return np.ones(config.members)
    return np.array([BestWeights(workdir, CALIBRATED).temperature(name) for name in member_names(config)])


def assemble(population: Population, params, stats, head=None) -> Weights:
    """Put K members' trees and a head's, which are on the host, on the devices; return the `Weights`."""
    placed = head and hosts.put(head, population.sharding())
    return Weights(population.assemble(params), population.assemble(stats), placed)


def _load_files(config: ConfigDict, population: Population, files: BestWeights, upto: float = math.inf):
    names = member_names(config)
    # Each member has an epoch of its own, and so a step of its own.
    params, stats, steps = zip(*(files.load(name, upto) for name in names))
    for name, shapes, p, s in zip(names, population.shapes(), params, stats):
        _check_shapes(files.folder / name, {'params': p, 'batch_stats': s}, shapes)
    head = {part: files.load(part, upto)[0] for part in head_parts(config)}
    return assemble(population, params, stats, head or None), list(steps)


def _check_shapes(path: Path, variables: dict, shapes):
    """Raise `UserError` unless the variables have a network's `shapes`; a view may have added its scales."""
    expected = {name: leaf.shape for name, leaf in flatten_dict(shapes, sep='/').items()}
    given = {name: leaf.shape for name, leaf in flatten_dict(variables, sep='/').items()}
    # Weights of a ternary run, as evaluated, carry scales that the plain network lacks.
    given = {n: shape for n, shape in given.items() if n in expected or not is_scale(n.rpartition('/')[2])}
    name = min((n for n in expected.keys() | given.keys() if expected.get(n) != given.get(n)), default='')
    if name:
        raise UserError(
            f'{path} holds weights of another network: expected {name} {expected.get(name)}, '
            f'got {given.get(name)}',
            PUT_BACK,
        )
