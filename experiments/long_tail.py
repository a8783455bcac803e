"""Keep a finished long-tail run's numbers: python -m experiments.long_tail WORKDIR…

Appends to experiments/results/long_tail.csv a row for each member and the ensemble, of the chosen
weights or else the last, on the test images; with the areas of Chow's rule where `jaxcifar.reject` ran.
"""

import csv
import json
from pathlib import Path

from experiments import results
from experiments.record import command
from jaxcifar.machine.command import run_words

SCORES = ('accuracy', 'mean_recall', 'many', 'medium', 'few', 'head', 'tail', 'nll', 'ece')
COLUMNS = ('date', 'commit', 'device', 'dataset', 'images_sha256', 'split', 'imbalance', 'network',
           'epochs', 'weights', 'member', 'loss', *SCORES, 'temperature', 'nll_calibrated',
           'ece_calibrated', 'area_balanced', 'area_worst', 'seconds', 'command')  # fmt: skip


def rows(workdir: Path):
    """A row for each member and for the ensemble."""
    names = ('config', 'dataset', 'results', 'run', 'calibration')
    config, dataset, found, run, calibration = (
        json.loads((workdir / f'{n}.json').read_text()) for n in names
    )
    rejection = workdir / 'rejection.json'
    rejected = json.loads(rejection.read_text()) if rejection.exists() else {}
    areas = rejected['parts']['test'] if rejected.get('step') == calibration['step'] else {}
    with open(workdir / 'timing.csv') as file:
        seconds = round(sum(float(row['seconds']) for row in csv.DictReader(file)))
    session = run['sessions'][0]
    weights, calibrated = next(iter(calibration['weights'].items()))
    common = {
        'date': session['started'][:10],
        'commit': session['commit'],
        'device': ' + '.join(session['devices']),
        **{field: config[field] for field in ('dataset', 'split', 'network')},
        'images_sha256': dataset['sha256'][:16],  # copies of CIFAR-100 differ
        'imbalance': config['long_tail']['imbalance'],
        'epochs': found['epoch'],
        'weights': f'best on {found["selection"]}' if weights == 'best' else weights,
        'seconds': seconds,
        'command': command(session, workdir),
    }
    members = [(m['name'], m.get('loss', config['loss']), m[weights]['test']) for m in found['members']]
    temperatures = [*calibrated['members'], {'name': 'mean', **calibrated['mean']}]
    for (name, loss, scores), fitted in zip(
        [*members, ('mean', '', found['ensemble'][weights])], temperatures
    ):
        after, area = fitted['parts']['test']['after'], areas.get(name, {})
        yield {
            **common,
            'member': name,
            'loss': loss,
            **{k: round(v, 5) for k, v in scores.items() if k in SCORES},
            'temperature': round(fitted['temperature'], 4),
            'nll_calibrated': round(after['nll'], 4),
            'ece_calibrated': round(after['ece'], 4),
            **{
                f'area_{risk}': round(area[risk]['area'], 4) for risk in ('balanced', 'worst') if risk in area
            },
        }


def main(*workdirs: str):
    """Append and print."""
    kept = [{column: row.get(column, '') for column in COLUMNS} for w in workdirs for row in rows(Path(w))]
    results.append('long_tail', kept)
    print(*kept, sep='\n')


if __name__ == '__main__':
    run_words(main)
