"""Tables of experiments: what runs, what is skipped, and what the table says."""

import io
import json
import shlex
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from experiments import (
    fault_injection,
    fusion_4gpu,
    long_tail_table,
    mutual_table,
    record,
    results,
    run,
    sweep,
    sweep_table,
    ternary_table,
)
from experiments.sweep import Run, load
from jaxcifar import main
from jaxcifar.machine.errors import UserError
from jaxcifar.runs.resolve import finalize
from tests.processes import SMALL

SWEEP = """
from experiments.run import Run, Sweep
def get_sweep(argument):
    fields = {fields}
    return Sweep('Small', [
        Run('one', 'alone', 'configs/base.py', {{**fields, 'epochs': 1, 'network': 'resnet8'}}),
        Run('wrong', 'alone', 'configs/base.py', {{**fields, 'epochs': 0}}),
        Run('late', 'alone', 'configs/base.py', fields, after=('one', 'wrong')),
    ][: int(argument)])
"""


def test_a_table_runs_once_skips_what_is_finished_and_names_what_failed(
    small_npz, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(results, 'FOLDER', tmp_path)
    fields = SMALL | {'dataset': f'npz:{small_npz}', 'network': 'resnet8'}
    (tmp_path / 'sweep.py').write_text(SWEEP.format(fields=fields))

    def go(count, *flags):
        argv = ['run', f'{tmp_path}/sweep.py:{count}', '--workdir', str(tmp_path / 'runs'), *flags]
        monkeypatch.setattr('sys.argv', argv)
        run.main()

    go(1, '--follow')
    accuracy = json.loads((tmp_path / 'runs/one/results.json').read_text())['mean']['last']['accuracy']
    out = capsys.readouterr().out
    assert f'| alone | resnet8 | 1 | {100 * accuracy:.2f} |' in out and '[task-0-one] epoch 1/1' in out
    assert (tmp_path / 'runs/report/report.html').exists()
    assert f'{accuracy:.4g}' in (tmp_path / 'runs/results.csv').read_text()
    (row,) = [r for r in (tmp_path / 'accuracy.csv').read_text().splitlines() if ',last,' in r]
    assert f'{accuracy:.4g}' in row and str(tmp_path / 'runs') not in row
    calls, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, 'Popen', lambda c, **k: (calls.append(c), popen(c, **k))[1])
    with pytest.raises(UserError, match='failed: wrong, late;'):
        go(3, '--jobs=2', '--retries=1')
    out = capsys.readouterr().out
    assert '[1/3] one: finished before' in out and len(calls) == 2
    assert '[2/3] wrong: failed with exit status 1; try 2 of 2' in out
    assert '[2/3] wrong: failed with exit status 1: error: epochs must be at least 1, got 0' in out
    assert '[3/3] late: not begun, as wrong failed' in out
    wrong = Run('late', '', '', {}, after=('never',))
    with pytest.raises(UserError, match=r'unknown run before late: .never'):
        sweep.check([wrong], 'sweep.py')


def test_each_of_several_jobs_has_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run, 'GPUS', ['0', '1'])
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    table = run.Sweep('Title', [Run(str(i), 'row', 'c.py', {}) for i in range(6)])
    runner = run.Runner(table, tmp_path, 2, 0, run.Display(table, False))
    given, busy, together = [], set(), threading.Barrier(2)

    class Process:
        def __init__(self, command, **options):
            self.gpu, self.stdout = options['env']['CUDA_VISIBLE_DEVICES'], io.StringIO('a line\n')
            assert self.gpu not in busy
            busy.add(self.gpu)
            given.append(self.gpu)

        def wait(self):
            together.wait(120)  # there are always two at a time
            busy.remove(self.gpu)
            return 1

    monkeypatch.setattr(subprocess, 'Popen', Process)
    runner.run()
    assert sorted(runner.failed) == list('012345') and sorted(given) == ['0'] * 3 + ['1'] * 3
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,7')
    assert [runner._device(slot)['CUDA_VISIBLE_DEVICES'] for slot in (0, 1)] == ['5', '7']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')  # none, as somebody wants it
    assert runner._device(1)['CUDA_VISIBLE_DEVICES'] == ''
    # One takes three quarters of a GPU's memory by itself: those that share it are told to take less.
    assert runner._device(0).get('XLA_PYTHON_CLIENT_MEM_FRACTION') == '0.450'
    # What the user has set stays, by either name: XLA refuses both at once.
    monkeypatch.setenv('XLA_CLIENT_MEM_FRACTION', '.3')
    assert 'XLA_PYTHON_CLIENT_MEM_FRACTION' not in runner._device(0)
    monkeypatch.delenv('XLA_CLIENT_MEM_FRACTION')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,7')
    assert 'XLA_PYTHON_CLIENT_MEM_FRACTION' not in runner._device(1)


def test_a_sweep_takes_changes_of_all_its_runs():
    table = run.Sweep('Title', [Run('a', 'a', 'c.py', {'epochs': 9}), Run('b', 'b', 'd.py', {'seed': 1})])
    words = ['--config.epochs=2', '--config.augment=crop(4)+flip,x=1', '--config.data.workers=3']
    changed, fields = sweep.with_changes(table, words), {'epochs': '2', 'augment': 'crop(4)+flip,x=1'}
    fields['data.workers'] = '3'
    assert [r.changes for r in changed.runs] == [r.changes | fields for r in table.runs]
    # The title says what all runs have, but not what changes no result.
    assert changed.title == 'Title; changed: epochs=2, augment=crop(4)+flip,x=1'
    # Runs that a change has made the same would count as two seeds.
    seeds = [Run(f'a-{s}', 'a', 'c.py', {'epochs': 9, 'seed': s}) for s in (1, 2)]
    assert len(sweep.with_changes(run.Sweep('Title', seeds), ['--config.epochs=2']).runs) == 2
    with pytest.raises(UserError, match=r'got a-1 and a-2 with .*: leave out --config\.seed=5, or'):
        sweep.with_changes(run.Sweep('Title', seeds), ['--config.epochs=2', '--config.seed=5'])
    changes, others = sweep.take_changes(['--jobs', '2', '--config.epochs=2'])
    assert (changes, others) == (['--config.epochs=2'], ['--jobs', '2'])
    with pytest.raises(UserError, match=r'expected --config\.FIELD=VALUE, got --config\.epochs: join'):
        sweep.take_changes(['--config.epochs', '2'])
    with pytest.raises(UserError, match="unknown field 'epoch'; did you mean 'epochs'"):
        sweep.with_changes(table, ['--config.epoch=2'])


def finished(folder, experiment, coupling, scores, ensemble, epochs=1):
    """A workdir with these test accuracies {member: fraction}."""
    workdir = folder / experiment.name
    workdir.mkdir(exist_ok=True)
    files = {
        'kept': experiment.arguments(folder),
        'config': {'coupling': coupling, 'epochs': epochs},
        'results': {
            'step': 3 * epochs,
            'metrics_length': 1,
            'selection': 'test',
            'members': [{'name': n, 'last': {'test': {'accuracy': a}}} for n, a in scores.items()],
            'mean': {'last': {'accuracy': float(np.mean([*scores.values()])), 'nll': 1.0, 'ece': 0.1}},
            'ensemble': {'last': {'accuracy': ensemble}},
        },
    }
    for name, content in files.items():
        (workdir / f'{name}.json').write_text(json.dumps(content))


def test_the_table_counts_seeds_and_compares_network_by_network(tmp_path, monkeypatch):
    alone, first, second, other = (
        run.Run(name, row, 'c.py', {}) for name, row in
        (('alone', 'alone'), ('a', 'mutual'), ('b', 'mutual'), ('c', 'more'))
    )  # fmt: skip
    finished(tmp_path, alone, 'none', {'0_x': 0.70, '1_x': 0.72, '2_y': 0.60}, 0.75)
    finished(tmp_path, first, 'mutual', {'0_x': 0.71, '1_y': 0.65}, 0.76)
    finished(tmp_path, second, 'mutual', {'0_x': 0.74, '1_y': 0.67}, 0.78)
    finished(tmp_path, other, 'mutual', {'0_x': 0.70}, 0.7)
    (tmp_path / 'c' / 'kept.json').unlink()  # it was stopped before its numbers were kept
    lines = sweep_table.table(run.Sweep('Title', [alone, first, second, other], 'alone'), tmp_path)
    assert lines[4:] == [
        '| alone | x | 2 | 71.00 ± 1.41 | 70.00 to 72.00 | 75.00 |  |',
        '| alone | y | 1 | 60.00 |  | 75.00 |  |',
        '| mutual | x | 2 | 72.50 ± 2.12 | 71.00 to 74.00 | 77.00 | +1.50 |',
        '| mutual | y | 2 | 66.00 ± 1.41 | 65.00 to 67.00 | 77.00 | +6.00 |',
    ]
    # Experts that each saw other images are no seeds of one another.
    path = tmp_path / 'alone' / 'results.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'own_images': True}))
    lines = sweep_table.table(run.Sweep('Title', [alone]), tmp_path)
    assert lines[4] == '| alone | x | 1 | 71.00 | 70.00 to 72.00 | 75.00 |  |'
    longer = alone._replace(changes={'epochs': 9})
    assert run.is_finished(alone, tmp_path) and not run.is_finished(longer, tmp_path)
    # A flag that changes no result, as somebody adds to a script of a job, makes no other run of it.
    words = ['python', '-m', 'jaxcifar.main', *alone.arguments(tmp_path)]
    for more, ended in (['--config.data.workers=8'], True), (['--config.epochs=1'], False):
        session = {'sessions': [{'command': shlex.join([*words, *more])}]}
        (tmp_path / 'alone' / 'run.json').write_text(json.dumps(session))
        assert run.has_ended(alone, tmp_path) == ended
        assert run.last_command(alone, tmp_path) == [*words, *more]
    appended: list[list[Path]] = []
    monkeypatch.setattr(sweep.record, 'append', appended.append)
    run.record_results(longer, tmp_path)
    assert appended == [[tmp_path / 'alone']] and run.is_finished(longer, tmp_path)
    run.record_results(alone, tmp_path)
    assert len(appended) == 1
    # The spelling of the folder does not matter.
    monkeypatch.chdir(tmp_path.parent)
    assert run.is_finished(alone, Path(tmp_path.name))
    # Members that differ by design are no seeds of one another, and compare with the plain network.
    results = json.loads(path.read_text()) | {'own_images': False}
    for member, view, lr in zip(results['members'], ('ternary', 'ternary', ''), (0.1, 0.2, 0.3)):
        member |= {'view': view, 'numbers': {'optimizer.lr': lr}}
    (tmp_path / 'b' / 'results.json').write_text(json.dumps(results))
    lines = sweep_table.table(run.Sweep('Title', [first, second], 'mutual'), tmp_path)
    assert '| mutual | x ternary lr=0.1 | 1 | 70.00 |  | 75.00 |  |' in lines
    lines = sweep_table.table(run.Sweep('Title', [first, second._replace(row='b')], 'mutual'), tmp_path)
    assert '| b | x ternary lr=0.1 | 1 | 70.00 |  | 75.00 | -1.00 |' in lines


def test_a_run_of_another_length_is_not_of_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep.record, 'append', lambda workdirs: None)
    monkeypatch.setattr(run.Runner, '_train', lambda *_: 0)  # training is finished, whatever is asked for
    one = Run('one', 'row', 'configs/single.py', {'epochs': 1})
    finished(tmp_path, one, 'none', {'0_x': 0.5}, 0.5)
    run.record_results(one, tmp_path)
    assert run.is_finished(one, tmp_path)
    # Somebody has continued it.
    kept = (tmp_path / 'one' / 'kept.json').read_text()
    finished(tmp_path, one, 'none', {'0_x': 0.6}, 0.6, epochs=12)
    (tmp_path / 'one' / 'kept.json').write_text(kept)
    assert not run.is_finished(one, tmp_path)
    with pytest.raises(UserError, match='failed: one;'):
        run.run_here(run.Sweep('Title', [one]), tmp_path, 1, 0, False)
    said = f'one: expected 1 epoch, got 12 in {tmp_path / "one"}: choose another --workdir'
    assert said in capsys.readouterr().out and not run.is_finished(one, tmp_path)


def test_two_collectors_at_once_keep_a_run_once(tmp_path, monkeypatch):
    one, appended = Run('one', 'row', 'c.py', {}), list[list[Path]]()
    finished(tmp_path, one, 'none', {'0_x': 0.5}, 0.5)
    (tmp_path / 'one' / 'kept.json').unlink()

    def append(workdirs):
        appended.append(workdirs)
        time.sleep(0.2)  # the other one comes meanwhile

    monkeypatch.setattr(sweep.record, 'append', append)
    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(lambda _: run.record_results(one, tmp_path), range(2))] == [None, None]
    assert appended == [[tmp_path / 'one']]


def test_tables_are_utf_8_in_any_locale_and_say_where_they_can_be_written(tmp_path, monkeypatch, capsys):
    # Python's own default where the locale is Latin-1.
    monkeypatch.setattr(io, 'text_encoding', lambda encoding, *_: encoding or 'latin-1')
    sweep_table.write(run.Sweep('τ = 1', []), tmp_path)
    assert (tmp_path / 'table.md').read_bytes().decode().startswith('τ = 1\n')
    assert (tmp_path / 'results.csv').read_text() == ','.join(['run', *record.COLUMNS]) + '\n'
    monkeypatch.setattr(results, 'FOLDER', tmp_path / 'tables')
    results.append('some', [{'name': 'τ'}])
    results.append('some', [{'name': '±'}])
    assert [row['name'] for row in results.read('some')] == ['τ', '±']
    monkeypatch.setattr(results, 'FOLDER', tmp_path / 'table.md' / 'tables')
    with pytest.raises(UserError, match=r'cannot write .*some\.csv .*: set JAXCIFAR_RESULTS to a folder'):
        results.append('some', [{'name': 'τ'}])


@pytest.mark.parametrize(('argument', 'epochs', 'nodes'), [
    ('', 200, [2, 3, 4]), ('resnet20', 60, [2, 4]), ('short', mutual_table.EPOCHS, [2, 3, 4]),
])  # fmt: skip
def test_mutual_table_runs_one_recipe_with_and_without_coupling(
    argument, epochs, nodes, monkeypatch, small_npz, tmp_path
):
    monkeypatch.setattr(mutual_table, 'small_cifar10', lambda: small_npz)
    found, configs = mutual_table.get_sweep(argument), {}
    for experiment in found.runs:
        argv = ['main', *experiment.arguments(tmp_path)]
        monkeypatch.setattr('sys.argv', argv)
        configs[experiment.name] = finalize(main.parse(argv)[0])
    assert {c.epochs for c in configs.values()} == {epochs}
    assert sorted({c.members for c in configs.values() if c.coupling == 'mutual'}) == nodes
    same = [(c.batch_size, c.optimizer.lr, c.schedule.per, c.data.drop_last, c.model.init, c.augment)
            for c in configs.values()]  # fmt: skip
    assert set(same) == {(64, 0.1, 'epoch', True, 'he_dense', 'crop(4)+flip')}
    assert {c.data.validation for c in configs.values()} == {'none'}
    assert ('SHORTENED' in found.title) == (argument == 'short')


@pytest.mark.parametrize('argument', ['', 'strong,short,multiplicative+concatenation'])
def test_fusion_follows_its_experts(argument, monkeypatch, small_npz, tmp_path):
    monkeypatch.setattr(fusion_4gpu, 'small_cifar10', lambda images: small_npz)
    sweep, configs = fusion_4gpu.get_sweep(argument), {}
    for experiment in sweep.runs:
        monkeypatch.setattr('sys.argv', argv := ['main', *experiment.arguments(tmp_path)])
        configs[experiment.name] = finalize(main.parse(argv)[0])
    fused = [r for r in sweep.runs if configs[r.name].coupling == 'fusion']
    assert len(fused) == 4 and (len(sweep.runs) == 7) == bool(argument)
    for r in fused:
        (experts,) = r.after
        c, before = configs[r.name], configs[experts]
        assert c.init_from == f'{tmp_path}/{experts}' and c.network == before.network
        assert (before.split, before.members, c.split, c.members) == ('overlap', 4, 'fusion', 4)
        single = configs[experts.replace('experts', 'single')]
        assert single.data.validation == c.data.validation == 'fusion_validation'
    if not argument:
        pairs = {(configs[r.name].network, configs[r.name].fusion.rule) for r in fused}
        assert pairs == set(fusion_4gpu.PAIRS.items())
    with pytest.raises(UserError, match="did you mean 'multiplicative'"):
        fusion_4gpu.get_sweep('multiplicativ')


def test_a_table_says_where_a_learned_rule_does_not_beat_the_mean(tmp_path):
    fused = sweep.Run('a', 'fusion', 'c.py', {'init_from': '{folder}/experts'})
    single, other = (sweep.Run(name, 'one network', 'c.py', {}) for name in 'bc')
    finished(tmp_path, fused, 'fusion', {'0_x': 0.70, '1_x': 0.72}, 0.75)
    finished(tmp_path, single, 'none', {'0_x': 0.73}, 0.73)
    finished(tmp_path, other, 'none', {'0_y': 0.99}, 0.99)
    path = tmp_path / 'a' / 'results.json'
    results = json.loads(path.read_text())
    scores = {name: {'accuracy': 0.75, 'nll': 1.0, 'ece': 0.1} for name in sweep_table.FUSED}
    scores['fused']['accuracy'] = 0.74
    results['fusion'] = {'last': {'test': {**scores, 'beats_mean': False, 'p_value': 0.25}}}
    path.write_text(json.dumps(results))
    lines = sweep_table.table(sweep.Sweep('Title', [fused, single, other]), tmp_path)
    assert lines[4] == '| fusion | x | 1 | 74.00 | 70.00 to 72.00 | 75.00 |  |'
    others = '| 75.00, 1.000, 0.100 ' * 3
    begin = f'| a | 74.00, 1.000, 0.100 {others}| does NOT beat the mean of the experts (p = 0.25) '
    assert lines[-1] == f'{begin}| 73.00, 1.000, 0.100 |'
    assert lines[-3].endswith('| the learned rule | one network |')


@pytest.mark.parametrize('argument', ['', 'steps', 'strong', 'short'])
def test_long_tail_table_has_the_protocol_of_published_numbers(argument, monkeypatch, tmp_path):
    found, configs = long_tail_table.get_sweep(argument), {}
    for experiment in found.runs:
        monkeypatch.setattr('sys.argv', argv := ['main', *experiment.arguments(tmp_path)])
        configs[experiment.row] = finalize(main.parse(argv)[0])
    losses = [c.loss for c in configs.values()]
    assert losses == [('cross_entropy', 'balanced_softmax')[argument == 'strong'], 'balanced_softmax']
    assert found.baseline in configs and ('SHORTENED' in found.title) == (argument == 'short')
    for c in configs.values():
        assert (c.split, c.data.validation, c.dataset) == ('long_tail_standard', 'none', 'cifar100')
        assert c.members == (1 if argument == 'short' else 3) and c.long_tail.imbalance == 100
        assert c.epochs == {'strong': 400, 'short': 8}.get(argument, 200)


@pytest.mark.parametrize('argument', ['', 'resnet20', 'short', 'recipes'])
def test_ternary_table_compares_one_recipe(argument, monkeypatch, small_npz, tmp_path):
    monkeypatch.setattr(ternary_table, 'small_cifar10', lambda images: small_npz)
    sweep, rows = ternary_table.get_sweep(argument), {}
    for experiment in sweep.runs:
        monkeypatch.setattr('sys.argv', argv := ['main', *experiment.arguments(tmp_path)])
        c = finalize(main.parse(argv)[0])
        rows[experiment.row] = c.view, c.ternary.rule, c.ternary.layers == '.*'
        assert (c.data.validation, c.early_stopping.patience) == ('none', 0)
        assert c.dataset == (f'npz:{small_npz}' if argument == 'short' else 'cifar10')
        assert (c.optimizer.lr, c.schedule.name) == (0.1, 'cosine')
        assert argument == 'recipes' or c.members == (1 if argument == 'short' else 3)
    assert sweep.baseline in rows and ('SHORTENED' in sweep.title) == (argument == 'short')
    if argument != 'recipes':
        floats, twn, ttq, *everything = rows.values()
        assert floats == ('none', 'twn', False) and twn == ('ternary', 'twn', False)
        assert ttq == ('ternary', 'ttq', False)
        assert everything == ([] if argument == 'resnet20' else [('ternary', 'twn', True)])


def test_a_sweep_file_that_fails_is_named_with_its_line(tmp_path):
    path = tmp_path / 'sweep.py'
    path.write_text('def get_sweep(argument):\n    return 1 / 0\n')
    with pytest.raises(UserError, match=rf'{path}, line 2: the sweep file fails: ZeroDivisionError'):
        load(str(path))


def test_a_kept_command_names_no_folder_of_this_machine(tmp_path):
    workdir = tmp_path / 'fused'
    words = f'python -m jaxcifar.main --workdir {workdir} --config.init_from={tmp_path}/a+{tmp_path}/b@last'
    words += f' --config.compile_cache={tmp_path}/compiled'
    kept = 'python -m jaxcifar.main --workdir runs/fused --config.init_from=runs/a+runs/b@last'
    assert record.command({'command': words}, workdir) == kept
    words = f'/opt/bin/python3 /opt/bin/jaxcifar train quickstart --epochs 3 --workdir={workdir}'
    words += f' --init_from {tmp_path}/a'
    kept = 'jaxcifar train quickstart --epochs 3 --workdir=runs/fused --init_from runs/a'
    assert record.command({'command': words}, workdir) == kept
    words = f'/usr/bin/python3 {tmp_path}/mine.py --like jaxcifar.main --in {tmp_path}/jaxcifar --lr 3'
    assert record.command({'command': words}, workdir).startswith('python3 mine.py --like jaxcifar.main')
    words = (
        'python3 -m jaxcifar.main --workdir q --config.init_from=../experts+./a --config.data.root=/home/me'
    )
    kept = 'python -m jaxcifar.main --workdir runs/q --config.init_from=../experts+runs/a'
    assert record.command({'command': words}, Path('q')) == kept


def test_zeros_of_each_layer_are_kept(monkeypatch, tmp_path):
    kept = {}
    monkeypatch.setattr(record, 'rows', lambda workdir: [])
    monkeypatch.setattr(results, 'append', lambda name, rows, columns=(): kept.update({name: rows}))
    (tmp_path / 'run.json').write_text('{"sessions": [{"started": "2026-01-01T00:00", "commit": "c"}]}')
    lines = [f'{k}_resnet8,last,conv2/kernel,8,{zeros}' for k, zeros in ((0, 0.25), (1, 0.75))]
    (tmp_path / 'sparsity.csv').write_text('\n'.join(['member,checkpoint,layer,weights,zeros', *lines]))
    record.append([tmp_path])
    (row,) = kept['sparsity']
    assert (row['network'], row['layer'], row['members'], row['zeros']) == ('resnet8', 'conv2/kernel', 2, 0.5)


def test_a_refused_fault_is_repair_as_its_line_says(tmp_path):
    run = fault_injection.FaultyRun(tmp_path, 0)
    run.workdir.mkdir()
    path = run.workdir / 'config.json'
    run._repair('deleted config', path, b'{}', 'error: config.json is gone: put the file back, or …\n')
    assert path.read_bytes() == b'{}' and run.refused == 1
    run._repair('deleted config', path, b'', 'error: config.json is gone; choose a new --workdir\n')
    assert not run.workdir.exists() and run.refused == 2
    for line in (
        'error: config.json is gone',
        'Traceback\nerror: config.json: put it back',
        'error: put it back',
    ):
        with pytest.raises(UserError, match=r'way out|one line'):
            run._repair('deleted config', path, b'', line)
