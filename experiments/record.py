"""Keep a finished run's numbers: python -m experiments.record WORKDIR…

Appends a row for each to experiments/results/accuracy.csv, with the command that gives them again.
"""

import csv
import json
import shlex
import sys
from pathlib import Path

import numpy as np

from experiments import results
from jaxcifar.runs import sparsity

COLUMNS = ('date', 'commit', 'device', 'python', 'jax', 'dataset', 'network', 'members', 'epochs',
           'selection', 'weights', 'accuracy', 'std', 'nll', 'ece', 'ensemble', 'images_per_second',
           'seconds', 'command')  # fmt: skip


def command(session: dict, workdir: Path) -> str:
    """The session's command without what belongs to its machine: interpreter and folders."""
    words = shlex.split(session['command'])
    renamed = f'runs/{workdir.name}'
    kept = words[words.index('jaxcifar.main') + 1 :]
    for i, word in enumerate(kept):
        if word == '--workdir':
            kept[i + 1] = renamed
        elif word.startswith('--workdir='):
            kept[i] = f'--workdir={renamed}'
        elif word.startswith(('--config.init_from=', '--config.resume_from=')):  # of a run beside it
            kept[i] = word.replace(f'{workdir.parent}/', 'runs/')
    return shlex.join(['python', '-m', 'jaxcifar.main', *kept])


def rows(workdir: Path):
    """One row for each of the weights that were tested."""
    config, found, run = (
        json.loads((workdir / f'{name}.json').read_text()) for name in ('config', 'results', 'run')
    )
    with open(workdir / 'timing.csv') as file:
        timing = list(csv.DictReader(file))
    session = run['sessions'][0]
    common = {
        'date': session['started'][:10],
        'commit': session['commit'],
        'device': ' + '.join(session['devices']),
        'python': session['python'],
        'jax': session['packages']['jax'],
        'dataset': config['dataset'],
        'network': config['network'],
        'members': config['members'],
        'epochs': found['epoch'],
        'selection': found['selection'],
        'images_per_second': round(float(np.median([float(t['images_per_second']) for t in timing]))),
        'seconds': round(sum(float(t['seconds']) for t in timing)),
        'command': command(session, workdir),
    }
    for weights, mean in found['mean'].items():
        several = config['members'] > 1
        # Otherwise a ± would look like an error bar.
        alike = several and not found.get('own_images') and 'fusion' not in found
        numbers = {
            'accuracy': round(mean['accuracy'], 5),
            'std': round(found['std'][weights]['accuracy'], 5) if alike else '',
            'nll': round(mean['nll'], 4),
            'ece': round(mean['ece'], 4),
            'ensemble': round(found['ensemble'][weights]['accuracy'], 5) if several else '',
        }
        of_members = f'{config["network"]} within fusion' if 'fusion' in found else config['network']
        yield {**common, 'weights': weights, **numbers, 'network': of_members}
        if 'fusion' in found:
            fused = found['fusion'][weights]['test']['fused']
            rounded = {'accuracy': round(fused['accuracy'], 5), 'std': '', 'nll': round(fused['nll'], 4),
                       'ece': round(fused['ece'], 4)}  # fmt: skip
            network = f'{config["network"]} fused by {config["fusion"]["rule"]}'
            yield {**common, 'weights': weights, **numbers, **rounded, 'network': network}


def sparsity_rows(workdir: Path):
    """The share of zeros in each ternary layer, mean over members."""
    layers: dict[tuple[str, ...], list[float]] = {}
    if (workdir / sparsity.FILE).exists():
        with open(workdir / sparsity.FILE) as file:
            for row in csv.DictReader(file):
                key = row['checkpoint'], row['member'].partition('_')[2], row['layer'], row['weights']
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


def append(workdirs: list[Path]) -> list[dict]:
    """Add these runs' rows to the table, and return them; ternary layers' zeros go to sparsity.csv."""
    added = [{column: row[column] for column in COLUMNS} for workdir in workdirs for row in rows(workdir)]
    results.append('accuracy', added)
    zeros = [row for workdir in workdirs for row in sparsity_rows(workdir)]
    if zeros:
        results.append('sparsity', zeros)
    return added


if __name__ == '__main__':
    print(*append([Path(workdir) for workdir in sys.argv[1:]]), sep='\n')
