"""What stands around a run: its files, evaluation, prediction, traces, event files."""

import csv
import json
import shutil
import struct

import jax
import numpy as np
import pytest
from PIL import Image

import jaxcifar
from jaxcifar import evaluate as evaluate_command
from jaxcifar import preview
from jaxcifar.evaluate import evaluate, improve_on
from jaxcifar.export.write import export
from jaxcifar.loop import train
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.profile import Compiled
from jaxcifar.machine.versions import git_commit
from jaxcifar.predict import predict
from jaxcifar.runs.console import Clock
from jaxcifar.runs.first_batch import visible
from tests.conftest import small_config
from tests.processes import finish


@pytest.fixture(scope='module')
def run(small_npz, tmp_path_factory):
    """(workdir, results, what it printed) of two members that were traced and logged in all ways."""
    workdir = tmp_path_factory.mktemp('run')
    config = small_config(small_npz)
    config.members, config.epochs, config.optimizer.lr = 2, 4, 0.02
    config.log.tensorboard, config.log.every_steps = True, 2
    config.profile.steps = (4, 6)
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr('jaxcifar.runs.console.Console.say', lambda self, line: lines.append(line))
        results = train(config, workdir)
    return workdir, results, lines


def test_a_run_of_mirrored_tests_predicts_as_it_is_evaluated(run, dataset, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / 'run')
    config = json.loads((workdir / 'config.json').read_text())
    config['eval'] |= {'flip': True, 'shift': 1}
    (workdir / 'config.json').write_text(json.dumps(config))
    found = jaxcifar.load(workdir).predict(dataset.x_test).probabilities
    nll = -np.log(found[np.arange(40), dataset.y_test]).mean()
    assert nll == pytest.approx(evaluate(workdir)['ensemble']['nll'], abs=1e-5)
    assert nll != pytest.approx(evaluate(run[0])['ensemble']['nll'], abs=1e-4)


def test_metrics_are_long_format_and_say_nothing_of_the_clock(run):
    workdir, _, _ = run
    with open(workdir / 'metrics.csv') as file:
        rows = list(csv.DictReader(file))
    kinds = {(r['split'], r['checkpoint']) for r in rows}
    assert kinds == {('train', 'last'), ('train_batch', 'last'), ('validation', 'last'),
                     ('test', 'last'), ('test', 'best')}  # fmt: skip
    assert {r['member'] for r in rows} == {'0_resnet8', '1_resnet8'}
    train_rows = [r for r in rows if r['split'] == 'train']
    assert [(r['epoch'], r['step']) for r in train_rows[::2]] == [(str(e), str(3 * e)) for e in range(1, 5)]
    assert not any('second' in name or 'time' in name for name in rows[0])
    with open(workdir / 'timing.csv') as file:
        timing = [{name: r[name] for name in r if name.endswith('_seconds')} for r in csv.DictReader(file)]
    # Training waits between epochs, so that the first row has waited for nothing.
    assert [float(r['evaluation_seconds']) > 0 for r in timing] == [False, True, True, True]
    assert all(float(r['saving_seconds']) > 0 for r in timing[1:]) and len(timing) == 4


def test_the_workdir_says_what_ran(run):
    workdir, _, lines = run
    session = json.loads((workdir / 'run.json').read_text())['sessions'][0]
    assert session['packages']['jax'] == jax.__version__ and session['packages']['torch']
    assert session['command'] and session['devices'] and session['commit'] == git_commit()
    speed = session['speed']
    assert speed['flops_per_step_and_device'] > 1e6 and speed['images_per_second'] > 0
    assert speed['compile_seconds'] > 0 and speed['share_of_bfloat16_peak'] is None  # a CPU has no known peak
    assert 'layer1_0/conv1/kernel' in (workdir / 'networks.txt').read_text()
    assert session['compiler'] and session['memory'].startswith('in ')
    assert not any('compile' in line for line in lines if 'images/s' not in line)  # that is for --verbose
    assert any('± ' in line and 'ensemble' in line for line in lines)


def test_the_commit_is_what_the_environment_says_and_else_what_git_says(monkeypatch, tmp_path):
    monkeypatch.setenv('JAXCIFAR_COMMIT', 'abc123')
    assert git_commit() == 'abc123'  # in a checkout, too
    monkeypatch.delenv('JAXCIFAR_COMMIT')
    monkeypatch.setenv('GIT_DIR', str(tmp_path))
    assert git_commit() == ''


def test_evaluate_gives_the_results_of_the_run(run):
    workdir, results, _ = run
    for which in ('best', 'last'):
        found = evaluate(workdir, which, 'test', flip=False)
        for member, expected in zip(found['members'], results['members']):
            for metric, value in expected[which]['test'].items():
                assert member[metric] == pytest.approx(value, abs=1e-6)
        assert found['ensemble'] == pytest.approx(results['ensemble'][which], abs=1e-6)
        spread = np.std([m['accuracy'] for m in found['members']], ddof=1)
        assert found['std']['accuracy'] == pytest.approx(spread)
    best = evaluate(workdir, None, 'validation', flip=False)
    for member, expected in zip(best['members'], results['members']):
        assert member['accuracy'] == pytest.approx(expected['best']['validation_accuracy'])
    assert evaluate(workdir, '12', 'train', flip=True)['images'] == 80
    beside = improve_on(evaluate(workdir, 'best', 'test')['members'], workdir)
    mean = results['mean']['best']['accuracy']  # of members of one network
    for member in beside:
        assert member['improvement'] == pytest.approx(member['accuracy'] - mean, abs=1e-6)
    for which, split, words in (('7', 'test', "got '7'"), ('last', 'tset', "did you mean 'test'")):
        with pytest.raises(UserError, match=words):
            evaluate(workdir, which, split, flip=False)


def test_evaluate_prints_a_table_and_writes_a_row_for_each_member(run, tmp_path, monkeypatch, capsys):
    workdir, results, _ = run

    def evaluated(*words):
        monkeypatch.setattr('sys.argv', ['evaluate', *map(str, words)])
        evaluate_command.main()
        return capsys.readouterr()

    path = tmp_path / 'all.csv'
    said, told = evaluated(workdir, '--workdir', tmp_path, '--baseline', workdir, '--csv', path)
    assert f'left out: expected a workdir, got {tmp_path}' in told and 'train %' in said
    with open(path) as file:
        rows = {row['member']: row for row in csv.DictReader(file)}
    assert list(rows) == ['0_resnet8', '1_resnet8', 'mean', 'std', 'ensemble']
    train = jaxcifar.open(workdir).history['train']
    for k, member in enumerate(results['members']):
        row, scores = rows[member['name']], member['best']
        assert float(row['test_accuracy']) == pytest.approx(scores['test']['accuracy'], abs=1e-6)
        assert float(row['test_loss']) == pytest.approx(scores['test']['nll'], abs=1e-5)
        epoch = scores['epoch'] - 1
        assert float(row['train_accuracy']) == pytest.approx(train['accuracy'][k, epoch], abs=1e-6)
        assert float(row['train_loss']) == pytest.approx(train['loss'][k, epoch], abs=1e-5)
        assert f'{100 * scores["test"]["accuracy"]:.2f}' in said
    assert (
        float(rows['mean']['improvement']) == pytest.approx(0, abs=1e-6)
        and not rows['ensemble']['train_loss']
    )

    found = json.loads(evaluated('--workdir', workdir, '--json').out)
    assert [member['name'] for member in found['members']] == ['0_resnet8', '1_resnet8']
    assert found['mean']['nll'] == pytest.approx(results['mean']['best']['nll'], abs=1e-5)
    assert len(repr(found['mean']['nll'])) < 10
    assert len(json.loads(evaluated(workdir, workdir, '--json').out)) == 2
    with pytest.raises(UserError, match='expected a run or more, got none'):
        evaluated()


def test_predict_names_the_classes_of_files(run, dataset, tmp_path):
    workdir, _, _ = run
    paths = [tmp_path / f'{i}.png' for i in range(8)]
    for path, image in zip(paths, dataset.x_test):
        Image.fromarray(image).save(path)
    with pytest.raises(UserError, match=r'expected a run before the images, got .*0\.png: .* RUN '):
        predict(paths[0], paths[1:])
    predictions = predict(workdir, paths)
    np.testing.assert_allclose(predictions.probabilities.sum(1), 1, atol=1e-6)
    assert predictions.classes == ('0', '1', '2', '3')
    every = evaluate(workdir, 'best', 'test', flip=False)['ensemble']['accuracy']
    right = [int(p.label) == y for p, y in zip(predictions, dataset.y_test)]
    assert np.mean(right) == pytest.approx(every, abs=0.25)
    folder = export(workdir, 'safetensors', tmp_path / 'export')
    exported = predict(folder, paths).probabilities
    np.testing.assert_allclose(exported, predictions.probabilities, atol=1e-5)
    # From Python, arrays and open images are the same images.
    model = jaxcifar.load(workdir)
    arrays = model.predict(dataset.x_test[:8], top=1)
    np.testing.assert_allclose(arrays.probabilities, model(dataset.x_test[:8]), atol=1e-5)
    np.testing.assert_allclose(arrays.probabilities, predictions.probabilities, atol=1e-5)
    assert arrays[0].top == ((arrays[0].label, arrays[0].probability),)
    assert str(predictions).splitlines()[0] == f'{paths[0]}  {predictions[0]}'
    (tmp_path / 'broken.png').write_bytes(b'no picture')
    with pytest.raises(UserError, match=r'broken\.png is not a readable image'):
        predict(workdir, [tmp_path / 'broken.png'])


def test_a_trace_is_written_and_its_top_operations_printed(run):
    workdir, _, lines = run
    assert list((workdir / 'profile').rglob('*.xplane.pb'))
    table = lines[next(i for i, line in enumerate(lines) if 'trace of steps 4 to 6' in line) + 1 :]
    assert 'operation' in table[0] and '%' in table[1]


def events(folder) -> list:
    """All events of a folder, in the order in which TensorBoard reads them."""
    from tensorboardX.proto.event_pb2 import Event

    data, found = b''.join(path.read_bytes() for path in sorted(folder.glob('events.*'))), []
    while data:  # length, its checksum, an event, its checksum
        size = struct.unpack('<Q', data[:8])[0]
        found.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return found


def points(folder) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(step, value)]} as TensorBoard shows them: a START takes back its step and later ones."""
    curves: dict = {}
    for event in events(folder):
        if event.HasField('session_log'):
            curves = {tag: [p for p in curve if p[0] < event.step] for tag, curve in curves.items()}
        for value in event.summary.value:
            curves.setdefault(value.tag, []).append((event.step, value.simple_value))
    return curves


def test_event_files_lay_members_and_splits_over_one_another(run):
    board = run[0] / 'tensorboard'
    member = run[1]['members'][1]
    train_of, held, test = (points(board / '1_resnet8' / s) for s in ('train', 'validation', 'test'))
    assert [epoch for epoch, _ in train_of['accuracy']] == [1, 2, 3, 4] == [e for e, _ in held['accuracy']]
    assert test['accuracy'] == [(4, pytest.approx(member['last']['test']['accuracy']))]
    within = points(board / '0_resnet8' / 'train_batch')
    assert [step for step, _ in within['batch/loss']] == [2, 4, 6, 8, 10, 12] and 'loss' not in within
    assert len(points(board / 'run')['images_per_second']) == 4
    (start,) = (v.metadata for e in events(board / '1_resnet8') for v in e.summary.value if 'start' in v.tag)
    assert start.plugin_data.plugin_name == 'hparams' and b'optimizer.lr' in start.plugin_data.content


@pytest.mark.parametrize('loader', ['host', 'device'])
def test_nothing_is_fetched_from_the_devices_within_an_epoch(
    loader, config, tmp_path, monkeypatch, tiny_networks
):
    """Twice the steps, the same number of fetches. (The guard in the loop sees other directions.)"""
    from jax._src.array import ArrayImpl

    original, fetches = ArrayImpl._value, []
    monkeypatch.setattr(ArrayImpl, '_value', property(lambda a: (fetches.append(1), original.fget(a))[1]))
    counts = []
    for batch in (16, 8):
        config.network, config.batch_size, config.epochs, config.data.loader = 'tiny', batch, 1, loader
        fetches.clear()
        train(config, tmp_path / str(batch))
        counts.append(len(fetches))
    assert counts[0] == counts[1] > 0


def test_the_seconds_of_an_epoch_end_when_its_last_step_does(config, tmp_path, monkeypatch):
    step, stop, states, ended = Compiled.__call__, Clock.stop, [], []

    def take(compiled, state, batch):
        states[:] = [step(compiled, state, batch)]
        return states[0]

    def end(clock):
        ended.append(all(leaf.is_ready() for leaf in jax.tree.leaves(states[0][0].sums)))
        return stop(clock)

    monkeypatch.setattr(Compiled, '__call__', take)
    monkeypatch.setattr(Clock, 'stop', end)
    config.epochs, config.batch_size = 2, 40
    train(config, tmp_path)
    assert ended == [True, True]


def test_test_set_selection_is_said_in_every_log(tiny_networks, config, tmp_path, capsys):
    config.network, config.data.validation, config.epochs = 'tiny', 'test', 1
    results = train(config, tmp_path)
    printed = capsys.readouterr().out
    assert 'TEST' in printed and results['selection'] == 'test'
    splits = {line.split(',')[3] for line in (tmp_path / 'metrics.csv').read_text().splitlines()[1:]}
    assert splits == {'train', 'test'}


def test_without_validation_the_last_epoch_counts(tiny_networks, config, tmp_path):
    config.network, config.data.validation, config.epochs = 'tiny', 'none', 1
    results = train(config, tmp_path)
    assert set(results['mean']) == {'last'} and not (tmp_path / 'best').exists()
    assert evaluate(tmp_path, None, 'test', flip=False)['mean'] == pytest.approx(results['mean']['last'])


def test_bfloat16_computes_in_it_and_keeps_float32(tiny_networks, config, tmp_path):
    config.network, config.precision, config.epochs = 'tiny', 'bfloat16', 1
    assert np.isfinite(train(config, tmp_path)['mean']['last']['nll'])
    with np.load(next((tmp_path / 'best').rglob('*.npz'))) as best:
        assert {best[k].dtype for k in best.files} == {np.dtype('float32')}


def read_wandb(path):
    """{step: {metric: value}} of an offline run, and its groups.

    Behind 7 bytes, blocks of 32 kB in LevelDB's log format: of each record or part of it a checksum, its
    length and kind (1 whole, 2 first, 3 middle, 4 last), 7 bytes in all, and then its bytes.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts, steps, groups = path.read_bytes(), 7, b'', {}, set()
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        size, kind = struct.unpack('<HB', data[at + 4 : at + 7])
        parts, at = parts + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):
            record, parts = Record.FromString(parts), b''
            row = {i.key or '/'.join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            if 'step' in row:
                steps.setdefault(int(row['step']), {}).update(row)
            if record.HasField('run'):
                groups.add(record.run.run_group)
    return steps, groups


def test_wandb_keeps_an_offline_run(small_npz, tmp_path):
    pytest.importorskip('wandb', reason='the optional package wandb is not installed')
    for epochs in 1, 2:
        finish(tmp_path, small_npz, log__wandb='offline', epochs=epochs)
    paths = sorted(tmp_path.glob('wandb/offline-run-*/run-*.wandb'))
    (first, groups), (second, others) = (read_wandb(path) for path in paths)
    # A session each, in one group; the CSV has both.
    assert groups == others == {tmp_path.name}
    assert set(first) == {4} and set(second) == {8}
    with open(tmp_path / 'metrics.csv') as file:
        rows = [r for r in csv.DictReader(file) if (r['split'], r['checkpoint']) == ('test', 'last')]
    logged = [run[step]['accuracy/test/0_tiny'] for run, step in ((first, 4), (second, 8))]
    assert [float(r['accuracy']) for r in rows[:2]] == pytest.approx(logged)


def test_preview_shows_images_and_what_they_count_as(small_npz, dataset, tmp_path, monkeypatch, capsys):
    """The pictures are what the network sees, with the shares of both labels."""
    changes = f'--config.dataset=npz:{small_npz} --config.augment=alternating_flip+mixup(1.0)'
    argv = ['preview', '--config=configs/single.py', *changes.split(), f'--workdir={tmp_path}']
    monkeypatch.setattr('sys.argv', argv)
    read = preview.read_first_batch
    batches = []
    monkeypatch.setattr(preview, 'read_first_batch', lambda *a: batches.append(read(*a)) or batches[0])
    preview.main()
    assert capsys.readouterr().out.strip() == str(tmp_path / 'preview.png')
    assert (tmp_path / 'preview.png').read_bytes().startswith(b'\x89PNG')
    plain, seen = batches[0]
    assert set(plain.titles) <= {'0', '1', '2', '3'} and len(seen) == 4
    (first, share), (_, rest) = (part.split() for part in seen[0].titles[0].split(' / '))
    assert first == plain.titles[0] and abs(float(share) + float(rest) - 1) < 0.011
    assert seen[0].images.shape[1:] == (8, 8, 3) and seen[0].images.dtype == np.uint8
    normal = (dataset.x_train[:2] / 255 - 0.5) / 0.25
    np.testing.assert_array_equal(visible(normal, (0.5,) * 3, (0.25,) * 3), dataset.x_train[:2])
