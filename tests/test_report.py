"""The report on made-up run folders: its numbers, its warnings and its page."""

import base64
import csv
import json
import random
import re

import numpy as np
import pytest

from experiments.faults.damages import places, replaced
from jaxcifar.machine.errors import UserError
from jaxcifar.report import __main__ as report_command
from jaxcifar.report.figures import draw_comparison
from jaxcifar.report.run_files import load
from jaxcifar.report.scores import score_rows
from jaxcifar.report.tables import report

HEADER = 'epoch,step,member,split,checkpoint,loss,accuracy,top5,ece,lr,best,patience'
FIELDS = HEADER.split(',')


def make_run(folder, members=3, epochs=6, planned=None, selection='holdout', seed=0, **config):
    """A run folder with plausible curves; unfinished when fewer epochs are done than planned."""
    folder.mkdir(parents=True)
    rng, planned = np.random.default_rng(seed), planned or epochs
    names = [f'{i}_resnet20' for i in range(members)]
    skill = rng.normal(0.92, 0.006, members) - 0.02 * (seed % 5)
    watched = {'holdout': ['validation'], 'test': ['test'], 'none': []}[selection]
    rows, scores = [], []
    for e in range(1, epochs + 1):
        lr = 0.05 * (1 + np.cos(np.pi * e / planned))
        for split in ['train', *watched]:
            for name, top in zip(names, skill):
                noise = rng.normal(0, 0.03) * lr / 0.1
                accuracy = top + 0.07 * (split == 'train') * e / planned
                accuracy -= 0.55 * np.exp(-5 * e / planned) + noise
                numbers = {'loss': 3 * (1 - accuracy) ** 1.1, 'accuracy': accuracy}
                lr_cell = {'lr': lr} if split == 'train' else {}
                row = {'epoch': e, 'step': 390 * e, 'member': name, 'split': split}
                rows.append({**row, 'checkpoint': 'last', **numbers, **lr_cell})
    for name, top in zip(names, skill):
        test = {
            'accuracy': top,
            'top5': 0.997,
            'nll': 3.2 * (1 - top),
            'ece': 0.04 + rng.random() / 99,
        }
        best = {'epoch': epochs - 1, 'validation_accuracy': top + 0.004}
        best = {} if selection == 'none' else {'best': {**best, 'test': {**test, 'nll': 0.3}}}
        done = {'epoch': epochs, 'member': name, 'split': 'test', 'accuracy': top}
        rows += [{**done, 'checkpoint': weights} for weights in ('last', *best) if epochs == planned]
        scores.append({'name': name, 'last': {'test': test}, **best})
    text = {name: [FIELDS, *([r.get(f, '') for f in FIELDS] for r in rows)] for name in ['metrics']}
    text['timing'] = [['epoch', 'step', 'seconds', 'images_per_second', 'timestamp']]
    text['timing'] += [[e, 390 * e, 31.5, 12000 + e, 1.7e9 + 32 * e] for e in range(epochs)]
    for name, table in text.items():
        with open(folder / f'{name}.csv', 'w', newline='') as file:
            csv.writer(file).writerows(table)
    tree = {'network': 'resnet20', 'dataset': 'cifar10', 'members': members, 'epochs': planned}
    tree |= {'seed': seed, 'data': {'validation': selection}, 'optimizer': {'lr': 0.1}, **config}
    (folder / 'config.json').write_text(json.dumps(tree))
    session = {
        'command': f'train --seed {seed}',
        'commit': '1a2b3c4',
        'packages': {'jax': '0.10.0'},
    }
    session |= {'devices': ['NVIDIA H200'], 'started': '2025-01-02 03:04:05'}
    (folder / 'run.json').write_text(json.dumps({'sessions': [session]}))
    if epochs == planned:
        ensemble = {w: {'accuracy': 0.951, 'top5': 0.999, 'nll': 0.2, 'ece': 0.02} for w in ('last', 'best')}
        results = {'epoch': epochs, 'selection': selection, 'members': scores, 'ensemble': ensemble}
        (folder / 'results.json').write_text(json.dumps(results))
    return folder


def summary_row(dirs, out, n=0):
    """The n-th row of the Markdown table, column -> cell."""
    report(dirs, out)
    lines = (out / 'report.md').read_text().splitlines()
    head, row = ([c.strip() for c in lines[i].strip('|').split(' | ')] for i in (0, 2 + n))
    return dict(zip(head, row))


@pytest.fixture(autouse=True)
def coarse_figures(monkeypatch):
    """Small pictures: their pixels are looked at by people, not by tests."""
    monkeypatch.setattr('jaxcifar.report.figures.DPI', 20)


def test_numbers_are_numpys(tmp_path):
    run = make_run(tmp_path / 'run', members=4)
    row = summary_row([run], tmp_path)
    tests = [m['last']['test'] for m in json.loads((run / 'results.json').read_text())['members']]
    for column, field, scale, digits in [
        ('test % last', 'accuracy', 100, 2),
        ('NLL', 'nll', 1, 4),
        ('ECE %', 'ece', 100, 2),
    ]:
        values = scale * np.array([t[field] for t in tests])
        assert row[column] == f'{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}'
    assert row['test % selected'] == row['test % last'] and row['ensemble %'] == '95.10'
    assert row['K'] == '4' and row['epochs'] == '6/6' and row['state'] == 'finished'
    assert row['images/s'] == '12,002' and row['h:mm:ss'] == '0:03:09'


def test_a_member_without_training_rows_leaves_no_mean_of_them(tmp_path):
    run = make_run(tmp_path / 'run', members=2)
    found = {
        'workdir': str(run), 'split': 'test', 'step': [390 * 6, 390 * 7],
        'members': [{'name': f'{k}_resnet20', 'accuracy': 0.9, 'nll': 0.3} for k in range(2)],
        'ensemble': {'accuracy': 0.95, 'nll': 0.2},
    }  # fmt: skip
    first, second, mean = score_rows(found)[:3]
    assert 'train_accuracy' in first and 'train_accuracy' not in second
    assert 'train_accuracy' not in mean and mean['accuracy'] == pytest.approx(0.9)


def test_one_seed_has_no_spread(tmp_path):
    row = summary_row([make_run(tmp_path / 'run', members=1, selection='none')], tmp_path)
    assert re.fullmatch(r'\d\d\.\d\d', row['test % last'])
    assert row['test % selected'] == row['ensemble %'] == '—'
    assert 'a single seed' in (tmp_path / 'report.html').read_text()


def test_unfinished_run_whose_last_line_is_cut(tmp_path):
    run = make_run(tmp_path / 'run', epochs=5, planned=9)
    rows = list(csv.DictReader((run / 'metrics.csv').read_text().splitlines()))
    epoch4 = [float(r['accuracy']) for r in rows if (r['epoch'], r['split']) == ('4', 'validation')]
    whole = (run / 'metrics.csv').read_bytes().rstrip()
    (run / 'metrics.csv').write_bytes(whole[: whole.rindex(b'.') + 2])
    row = summary_row([run], tmp_path)
    mean, std = 100 * np.mean(epoch4), 100 * np.std(epoch4, ddof=1)
    assert row['test % last'] == f'validation {mean:.2f} ± {std:.2f}'
    assert row['state'] == 'running/unfinished' and row['epochs'] == '5/9'


def test_run_that_has_only_begun(tmp_path):
    run = make_run(tmp_path / 'run', epochs=0, planned=9)
    for name in ('run.json', 'timing.csv'):
        (run / name).unlink()
    assert summary_row([run], tmp_path)['test % last'] == '—'


def test_results_older_than_the_metrics_do_not_count(tmp_path):
    run = make_run(tmp_path / 'run', epochs=6)
    results = json.loads((run / 'results.json').read_text())
    (run / 'results.json').write_text(json.dumps({**results, 'epoch': 3}))
    assert summary_row([run], tmp_path)['state'] == 'running/unfinished'


def test_selection_on_the_test_set_is_said(tmp_path):
    row = summary_row([make_run(tmp_path / 'run', selection='test')], tmp_path)
    assert row['selection'] == '**SELECTED ON TEST**'
    assert 'optimistically biased' in (tmp_path / 'report.html').read_text()


def test_several_runs_on_one_self_contained_page(tmp_path):
    runs = [make_run(tmp_path / f'r{i}', members=1 + i, seed=i, coupling='none') for i in range(2)]
    page = report(runs, tmp_path / 'out')
    text = page.read_text()
    assert not re.search(r'(src|href|srcset)="(?!data:|#)|url\(|@import|<script', text)
    assert '://' not in text
    pictures = [p.name for p in (tmp_path / 'out').glob('*.png')]
    assert sorted(pictures) == ['comparison.png', 'curves_01_r0.png', 'curves_02_r1.png']
    differing = (tmp_path / 'out' / 'report.md').read_text().split('Settings that differ')[1]
    assert 'seed' in differing and 'members' in differing and 'coupling' not in differing


def test_runs_without_held_out_images_are_compared_in_training(tmp_path):
    folders = [make_run(tmp_path / selection, selection=selection) for selection in ('none', 'holdout')]
    whole, _ = draw_comparison(load(folders)).axes
    shown = {line.get_label(): len(line.get_xdata()) for line in whole.lines}
    assert shown == {'1. none (train)': 6, '2. holdout (validation)': 6}


def test_hostile_names_are_escaped(tmp_path):
    name = '<img src=x onerror=alert(1)> $x_{$ | \x1b[31m'
    runs = [make_run(tmp_path / name), make_run(tmp_path / '_b', network='<script>')]
    page = report(runs, tmp_path).read_text()
    assert '<img src=x' not in page and '<script' not in page and '&lt;img src=x' in page
    table = (tmp_path / 'report.md').read_text()
    assert r'\|' in table and '\x1b' not in table and '<script' not in table


def test_classes_and_the_pictures_that_a_run_has_left_are_on_the_page(tmp_path):
    run = make_run(tmp_path / 'run', members=2, optimizer={'lr': 0.1 + 0.2})
    (run / 'pictures').mkdir()
    png = b'\x89PNG\r\n\x1a\n and so on'
    (run / 'pictures' / 'confusion.png').write_bytes(png)
    (run / 'pictures' / 'mistakes.png').write_bytes(b'<script>')
    recalls = {'0_resnet20': 0.25, '1_resnet20': 0.75, 'ensemble': 0.5}
    with open(run / 'per_class.csv', 'w', newline='') as file:
        rows = csv.writer(file)
        rows.writerow(('member', 'checkpoint', 'split', 'class', 'name', 'train_images', 'images', 'recall'))
        for name, recall in recalls.items():
            rows.writerow((name, 'best', 'test', 0, '<b>cat', 500, 100, recall))
    page = report([run, make_run(tmp_path / 'other', members=2)], tmp_path).read_text()
    assert f'src="data:image/png;base64,{base64.b64encode(png).decode()}"' in page
    assert 'Which class is taken for which' in page and 'most certain mistakes' not in page
    cells = re.findall(r'<t[hd][^>]*>([^<]*)</t[hd]>', page.partition('&lt;b&gt;cat</th>')[2])
    assert cells[:4] == ['500', '100', '50.00\xa0±\xa035.36', '50.00']
    # Numbers are as short as they can be read.
    assert '>0.3<' in page and '0.30000' not in page


def test_notes_show_names_as_they_are(tmp_path):
    run = make_run(tmp_path / '**bold** [a](b) <i>')
    results = json.loads((run / 'results.json').read_text())
    fused = {
        'fused': {'accuracy': 0.9},
        'mean_of_experts': {'accuracy': 0.8},
        'beats_mean': False,
        'mcnemar_p': 0.5,
    }
    results['fusion'] = {w: {'test': fused} for w in ('last', 'best')}
    (run / 'results.json').write_text(json.dumps(results))
    report([run], tmp_path)
    (line,) = (line for line in (tmp_path / 'report.md').read_text().splitlines() if 'learned rule' in line)
    assert line.startswith(r'- \*\*bold\*\* \[a\](b) &lt;i&gt;: the learned rule')


JUNK = [None, 'x', 3, -1e400, True, [], [[]], {}, [None], {'a': {}}]


def test_files_of_another_content_end_in_one_line(tmp_path, monkeypatch):
    run = make_run(tmp_path / 'run', members=2, epochs=3)
    drawn = {'light': b'', 'dark': b''}
    monkeypatch.setattr('jaxcifar.report.tables.render', lambda draw: drawn)
    monkeypatch.setattr('jaxcifar.report.long_tail.render', lambda draw: draw() and drawn)
    after, bins = {'nll': 1.0, 'ece': 0.1}, {'images': [1], 'confidence': [0.5], 'correct': [1]}
    after['reliability'] = bins
    parts = {'parts': {'test': {'before': after, 'after': after}}, 'temperature': 1.1}
    weights = {'members': [{'name': f'{i}_resnet20', **parts} for i in range(2)], 'mean': parts}
    calibration = json.dumps({'weights': {'best': weights}})
    risk = {'area': 0.1, 'interval': [0.1, 0.2], 'curve': [0.1, 0.2]}
    rejection = {'head_classes': 1, 'tail_classes': 1, 'coverage': [0.5, 1.0]}
    rejection['parts'] = {'test': {'mean': dict.fromkeys(('error', 'balanced', 'worst'), risk)}}
    rejection = json.dumps(rejection)
    draw, outcomes = random.Random(0), []

    def attempt(path, data: bytes):
        whole = path.read_bytes()
        path.write_bytes(data)
        try:
            report([run], tmp_path)
            outcomes.append('reported')
        except UserError as error:
            assert str(error).isprintable() and 'run' in str(error)
            outcomes.append('refused')
        path.write_bytes(whole)

    for path in (run / 'metrics.csv', run / 'timing.csv', run / 'results.json'):
        whole = path.read_bytes()
        for data in (b'', b'\xff' + whole, whole[:-40] + b'\xff,\0' + whole[-40:], b'[' * 10**5, b'null'):
            attempt(path, data)
    for name in ('config', 'results', 'run', 'calibration', 'rejection'):
        if name in ('calibration', 'rejection'):
            (run / f'{name}.json').write_text({'calibration': calibration, 'rejection': rejection}[name])
        path = run / f'{name}.json'
        tree = json.loads(path.read_text())
        for place in draw.choices([*places(tree)], k=20 if name in ('config', 'results') else 10):
            attempt(path, json.dumps(replaced(tree, place, draw.choice(JUNK))).encode())
    assert min(outcomes.count('reported'), outcomes.count('refused')) > 15


def test_command_line(tmp_path, capsys):
    run = make_run(tmp_path / 'run')
    report_command.main([str(tmp_path), str(run)])  # the first is no run: left out with a line
    out, err = capsys.readouterr()
    assert out.startswith('| run') and str(run / 'report.html') in out
    assert err == f'left out: {tmp_path} is not a run folder: it has no metrics.csv\n'
    with pytest.raises(UserError, match=r'expected the folder of a run, got .*: there is no metrics\.csv'):
        report([tmp_path], tmp_path)
    assert not capsys.readouterr().err  # said once: in the error
