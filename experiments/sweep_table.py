"""Write what a sweep has found: results.csv, a page about all runs, and its tables in Markdown."""

import json
from pathlib import Path

import numpy as np

from experiments import record
from experiments.sweep import Run, Sweep, is_finished, one_at_a_time, weights_that_count
from jaxcifar.config.members import network_of, titled
from jaxcifar.machine.files import read_json, write_csv, write_text
from jaxcifar.report import tables as report
from jaxcifar.runs.metrics import verdict

FUSED = ('fused', 'mean_of_logits', 'mean_of_probabilities', 'best_expert')


def write(sweep: Sweep, folder: Path):
    """Write FOLDER/results.csv and FOLDER/report of the finished runs, and print the table."""
    with one_at_a_time(folder):
        workdirs = [folder / run.name for run in sweep.runs if is_finished(run, folder)]
        rows = [{'run': workdir.name, **row} for workdir in workdirs for row in record.rows(workdir)]
        lines, columns = table(sweep, folder), ['run', *record.COLUMNS]
        cells = [[row.get(column, '') for column in columns] for row in rows]
        write_csv(folder / 'results.csv', columns, cells)
        write_text(folder / 'table.md', '\n'.join(lines) + '\n')
        print('', *lines, '', sep='\n')
        print(folder / 'table.md', folder / 'results.csv', sep='\n')
        if workdirs:
            print(*report.write(workdirs, folder / 'report'), sep='\n')


def table(sweep: Sweep, folder: Path) -> list[str]:
    """Return the finished runs in Markdown: a line for each row and network."""
    seeds: dict[tuple[str, str], list[float]] = {}  # a number for each seed
    nodes: dict[tuple[str, str], list[float]] = {}  # … and each node
    ensembles: dict[tuple[str, str], list[float]] = {}
    for run in sweep.runs:
        if not is_finished(run, folder):
            continue
        config, results = (
            json.loads((folder / run.name / f'{name}.json').read_text()) for name in ('config', 'results')
        )
        weights = weights_that_count(results)
        of_network: dict[str, list[float]] = {}
        for member in results['members']:
            # Members that differ by design have lines of their own: they are no seeds of one another.
            kinds = filter(None, (member.get(kind) for kind in ('loss', 'view')))
            network = titled(network_of(member['name']), kinds, member.get('numbers') or {})
            of_network.setdefault(network, []).append(100 * member[weights]['test']['accuracy'])
        for network, values in of_network.items():
            nodes.setdefault((run.row, network), []).extend(values)
            # Uncoupled members that saw the same images count as that many seeds.
            alone = config['coupling'] == 'none' and not results.get('own_images')
            if 'fusion' in results:
                values = [100 * results['fusion'][weights]['test']['fused']['accuracy']]
            seeds.setdefault((run.row, network), []).extend(values if alone else [float(np.mean(values))])
        if len(results['members']) > 1:
            ensemble = 100 * results['ensemble'][weights]['accuracy']
            for network in of_network:
                ensembles.setdefault((run.row, network), []).append(ensemble)
    lines = [sweep.title, '', '| experiment | network | seeds | test % | nodes | ensemble % | improvement |',
             '|---|---|---|---|---|---|---|']  # fmt: skip
    for (row, network), values in seeds.items():
        spread = f' ± {np.std(values, ddof=1):.2f}' if len(values) > 1 else ''
        lowest, highest = min(nodes[row, network]), max(nodes[row, network])
        several = len(nodes[row, network]) > 1
        base = seeds.get((sweep.baseline, network)) or seeds.get((sweep.baseline, network.split()[0]))
        better = f'{np.mean(values) - np.mean(base):+.2f}' if base and row != sweep.baseline else ''
        together = f'{np.mean(ensembles[row, network]):.2f}' if (row, network) in ensembles else ''
        lines.append(
            f'| {row} | {network} | {len(values)} | {np.mean(values):.2f}{spread} | '
            f'{f"{lowest:.2f} to {highest:.2f}" if several else ""} | {together} | {better} |'
        )
    return lines + fusion_table(sweep, folder)


def fusion_table(sweep: Sweep, folder: Path) -> list[str]:
    """Return fused predictions beside what they have to beat, in Markdown: a line a run; [] without any.

    The last columns are the sweep's single networks, of the same kind as those that are fused.
    """
    singles: dict[str, dict[str, str]] = {}  # row -> network -> numbers
    fused: list[tuple[Run, str, dict]] = []
    for run in sweep.runs:
        results = read_json(folder / run.name / 'results.json') if is_finished(run, folder) else None
        if results is None:
            continue
        weights, network = weights_that_count(results), network_of(results['members'][0]['name'])
        if 'fusion' in results:
            fused.append((run, network, results['fusion'][weights]['test']))
        elif len(results['members']) == 1:
            singles.setdefault(run.row, {})[network] = _numbers(results['mean'][weights])
    lines = [
        f'| {run.name} | {" | ".join(_numbers(found[name]) for name in FUSED)} | {verdict(found)} |'
        + ''.join(f' {of_network.get(network, "")} |' for of_network in singles.values())
        for run, network, found in fused
    ]
    head = ' | '.join([name.replace('_', ' ') for name in FUSED] + ['the learned rule', *singles])
    columns = 2 + len(FUSED) + len(singles)
    return ['', f'| test %, NLL, ECE of | {head} |', '|---' * columns + '|', *lines] if lines else []


def _numbers(scores: dict) -> str:
    return f'{100 * scores["accuracy"]:.2f}, {scores["nll"]:.3f}, {scores["ece"]:.3f}'
