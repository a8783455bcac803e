"""Keep finished runs' numbers: python -m experiments.record WORKDIR…

Appends to experiments/results, each row with the command that gives its numbers again,

- accuracy.csv: a row for each of the weights that were tested;
- sparsity.csv: the zeros of each ternary layer;
- long_tail.csv: of calibrated long tails a row for each member and the ensemble, of the chosen weights or
  else the last, on the test images, with the areas of Chow's rule where `jaxcifar.reject` ran.
"""

import csv
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import results
from jaxcifar.config.members import network_of
from jaxcifar.machine.command import run_words
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import read_json
from jaxcifar.runs import ending, sparsity

COLUMNS = ('date', 'commit', 'device', 'python', 'jax', 'dataset', 'network', 'members', 'epochs',
           'selection', 'weights', 'accuracy', 'std', 'nll', 'ece', 'ensemble', 'images_per_second',
           'seconds', 'command')  # fmt: skip
SCORES = ('accuracy', 'mean_recall', 'many', 'medium', 'few', 'head', 'tail', 'nll', 'ece')
LONG_TAIL_COLUMNS = ('date', 'commit', 'device', 'dataset', 'images_sha256', 'split', 'imbalance', 'network',
                     'epochs', 'weights', 'member', 'loss', *SCORES, 'temperature', 'nll_calibrated',
                     'ece_calibrated', 'area_balanced', 'area_worst', 'seconds', 'command')  # fmt: skip

LOCAL = ('compile_cache', 'data.root', 'root')  # flags that name folders of a machine
FOLDERS = ('workdir', 'init_from', 'resume_from', *LOCAL)  # flags that name folders


class Finished(NamedTuple):
    """Hold what a finished run's files say."""

    config: dict[str, Any]
    results: dict[str, Any]
    session: dict[str, Any]  # the first
    timing: list[dict[str, str]]
    command: str

    def common(self) -> dict[str, Any]:
        """Return the cells that all rows of the run share."""
        return {
            'date': self.session['started'][:10],
            'commit': self.session['commit'],
            'device': ' + '.join(self.session['devices']),
            'dataset': self.config['dataset'],
            'network': self.config['network'],
            'epochs': self.results['epoch'],
            'seconds': round(sum(float(epoch['seconds']) for epoch in self.timing)),
            'command': self.command,
        }


def read(workdir: Path) -> Finished:
    """Return what a finished run's files say; `UserError` where it is none."""
    config, found, run = (read_json(workdir / f'{name}.json') for name in ('config', 'results', 'run'))
    # A run that was stopped has no results, and its row would be of another number.
    if not (config and found and run):
        raise UserError(f'expected a finished run in {workdir}, got a folder without its results.json')
    with open(workdir / 'timing.csv') as file:
        timing = list(csv.DictReader(file))
    session = run['sessions'][0]
    return Finished(config, found, session, timing, command(run['sessions'][-1], workdir))


def command(session: dict, workdir: Path) -> str:
    """Return the session's command without what belongs to its machine: interpreter, folders, a cache.

    It is that of `python -m jaxcifar.main`, of `jaxcifar train`, or the name of a program that called
    `jaxcifar.train`.
    """
    words = shlex.split(session['command'])
    # Python's own flags come before the program, of which only two are ours.
    start = next(i for i, word in enumerate([*words, '']) if i and not word.startswith('-'))
    program, rest = Path(words[start]).name, iter(words[start + 1 :])
    if program not in ('jaxcifar.main', 'jaxcifar'):
        return shlex.join(Path(word).name for word in words)
    kept = ['python', '-m', 'jaxcifar.main'] if program == 'jaxcifar.main' else ['jaxcifar']
    for word in rest:
        flag, equals, value = word.partition('=')
        field = flag.removeprefix('--').removeprefix('config.')
        if not word.startswith('--') or field not in FOLDERS:
            kept.append(word)
            continue
        value = value if equals else next(rest, '')
        if field == 'workdir':
            value = f'runs/{workdir.name}'
        # Runs that this one started from are recorded as lying beside it, which is where a sweep puts them.
        value = re.sub(rf'(^|\+){re.escape(str(workdir.parent))}/', r'\1runs/', value)
        if field not in LOCAL:
            kept += [f'{flag}={value}'] if equals else [flag, value]
    return shlex.join(kept)


def rows(workdir: Path) -> Iterator[dict]:
    """Yield a row of accuracy.csv for each of the weights that were tested."""
    run = read(workdir)
    config, found = run.config, run.results
    rates = [float(epoch['images_per_second']) for epoch in run.timing]
    common = {
        **run.common(),
        'python': run.session['python'],
        'jax': run.session['packages']['jax'],
        'members': config['members'],
        'selection': found['selection'],
        'images_per_second': round(float(np.median(rates))),
    }
    # One member has no spread, and its ensemble is itself.
    several, network = config['members'] > 1, config['network']
    replicates = several and 'fusion' not in found and ending.are_replicates(found)
    for weights, mean in found['mean'].items():
        numbers = {
            **_rounded(mean),
            'std': round(found['std'][weights]['accuracy'], 5) if replicates else '',
            'ensemble': round(found['ensemble'][weights]['accuracy'], 5) if several else '',
        }
        if 'fusion' not in found:
            yield {**common, 'weights': weights, **numbers}
            continue
        yield {**common, 'weights': weights, **numbers, 'network': f'{network} within fusion'}
        fused = {**_rounded(found['fusion'][weights]['test']['fused']), 'std': ''}
        name = f'{network} fused by {config["fusion"]["rule"]}'
        yield {**common, 'weights': weights, **numbers, **fused, 'network': name}


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(scores[name], 5 if name == 'accuracy' else 4) for name in ('accuracy', 'nll', 'ece')}


def sparsity_rows(workdir: Path) -> Iterator[dict]:
    """Yield the share of zeros in each ternary layer, mean over members."""
    # A layer's share of zeros is the mean over the members of its network.
    layers: dict[tuple[str, ...], list[float]] = {}
    if (workdir / sparsity.FILE).exists():
        with open(workdir / sparsity.FILE) as file:
            for row in csv.DictReader(file):
                key = row['checkpoint'], network_of(row['member']), row['layer'], row['weights']
                layers.setdefault(key, []).append(float(row['zeros']))
    session = json.loads((workdir / 'run.json').read_text())['sessions'][0]
    for (weights, network, layer, size), values in layers.items():
        yield {
            'date': session['started'][:10],
            'commit': session['commit'],
            'run': workdir.name,
            'network': network,
            'weights': weights,
            'layer': layer,
            'size': size,
            'members': len(values),
            'zeros': round(float(np.mean(values)), 5),
        }


def long_tail_rows(workdir: Path) -> Iterator[dict]:
    """Yield a row for each member and for the ensemble of a calibrated long tail; of other runs none."""
    calibration, config = (read_json(workdir / f'{name}.json', {}) for name in ('calibration', 'config'))
    if not calibration or 'long_tail' not in config.get('split', ''):
        return
    run, dataset = read(workdir), read_json(workdir / 'dataset.json')
    # Areas of another step than the calibrated one are of other weights.
    rejected = read_json(workdir / 'rejection.json', {})
    areas = rejected['parts']['test'] if rejected.get('step') == calibration['step'] else {}
    # The chosen weights come first, where there are any.
    weights, calibrated = next(iter(calibration['weights'].items()))
    common = {
        **run.common(),
        'split': config['split'],
        'images_sha256': dataset['sha256'][:16],  # copies of CIFAR-100 differ
        'imbalance': config['long_tail']['imbalance'],
        'weights': f'best on {run.results["selection"]}' if weights == 'best' else weights,
    }
    members = [(m['name'], m.get('loss', config['loss']), m[weights]['test']) for m in run.results['members']]
    members.append(('mean', '', run.results['ensemble'][weights]))
    temperatures = [*calibrated['members'], calibrated['mean']]
    for (name, loss, scores), fitted in zip(members, temperatures):
        after, area = fitted['parts']['test']['after'], areas.get(name, {})
        risks = [risk for risk in ('balanced', 'worst') if risk in area]
        yield {
            **common,
            'member': name,
            'loss': loss,
            **{k: round(v, 5) for k, v in scores.items() if k in SCORES},
            'temperature': round(fitted['temperature'], 4),
            'nll_calibrated': round(after['nll'], 4),
            'ece_calibrated': round(after['ece'], 4),
            **{f'area_{risk}': round(area[risk]['area'], 4) for risk in risks},
        }


def append(workdirs: list[Path]) -> list[dict]:
    """Append these runs' rows to the tables, and return those of accuracy.csv."""
    kept = [row for workdir in workdirs for row in rows(workdir)]
    results.append('accuracy', kept, COLUMNS)
    if zeros := [row for workdir in workdirs for row in sparsity_rows(workdir)]:
        results.append('sparsity', zeros)
    if tails := [row for workdir in workdirs for row in long_tail_rows(workdir)]:
        results.append('long_tail', tails, LONG_TAIL_COLUMNS)
    return kept


def main(*workdirs: str):
    """Append and print."""
    for row in append([Path(workdir) for workdir in workdirs]):
        print({column: row.get(column, '') for column in COLUMNS})


if __name__ == '__main__':
    run_words(main)
