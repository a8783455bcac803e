"""What an older version wrote is read, evaluated, gone on with and published as it was then."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import jaxcifar
from tests import old
from tests.processes import assert_same, checkpoints, contents, meta, state

EXPECTED = json.loads((old.HERE / 'expected.json').read_text())
IMAGES = old.images(40, 2 * 10**6)[0][:8]


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_networks):
    """The current folder, with the data that the old files are of."""
    monkeypatch.chdir(tmp_path)
    old.write_data(tmp_path)
    return tmp_path


def known(found, expected):
    """What a tree has under the keys of another."""
    if isinstance(expected, dict):
        return {key: known(found[key], value) for key, value in expected.items()}
    return found if not isinstance(expected, list) else [known(a, b) for a, b in zip(found, expected)]


def near(found, expected, **tolerance):
    """All numbers of two trees are equal within the tolerance, and all else is equal; new keys may come.

    Calibration errors are left out: they jump where a confidence crosses the edge of a bin.
    """
    pairs = [jax.tree.leaves_with_path(tree) for tree in (known(found, expected), expected)]
    assert [path for path, _ in pairs[0]] == [path for path, _ in pairs[1]]
    for (path, a), (_, b) in zip(*pairs):
        assert 'ece' in str(path) or a == (b if isinstance(b, str) else pytest.approx(b, **tolerance)), path


def said(monkeypatch, capsys, *words) -> dict:
    """What `evaluate --json` prints."""
    capsys.readouterr()
    old.command(monkeypatch, 'evaluate', '--json', *words)
    return json.loads(capsys.readouterr().out)


def test_a_run_that_was_stopped_goes_on(folder, monkeypatch, capsys):
    old.unpack('stopped', folder)
    run, expected, step = folder / 'stopped', EXPECTED['stopped'], old.STOPPED_AT
    kept = contents(run, 'metrics.csv', 'best/*/*')
    arrays = {jax.tree_util.keystr(p): a for p, a in jax.tree.leaves_with_path(state(run, step))}
    assert checkpoints(run)[-1] == meta(run, step)['step'] == step and old.sha(arrays) == expected['state']
    words = '--checkpoint', step, '--output', 'arrays'
    old.command(monkeypatch, 'export', '--workdir', run, '--format', 'safetensors', *words)
    weights = {p.stem: old.sha(load_file(p)) for p in (folder / 'arrays').glob('*.safetensors')}
    assert weights == expected['weights']  # to the bit

    again = shutil.copytree(run, folder / 'again')
    for workdir in run, again:
        old.train(monkeypatch, workdir, {**old.STOPPED, 'log.pictures': workdir == again})
        assert f'resumed at step {step},' in ' '.join(capsys.readouterr().out.split())
    assert_same(again, run)
    results = json.loads((run / 'results.json').read_text())
    near(results | {'metrics_length': 0}, expected['results'] | {'metrics_length': 0}, abs=1e-4)
    assert (run / 'metrics.csv').read_bytes().startswith(kept['metrics.csv'])
    first, second = json.loads((run / 'run.json').read_text())['sessions']
    assert first['commit'].startswith('fbf67ca') and second['command']


def test_a_finished_run_is_evaluated_reported_and_left_as_it_is(folder, monkeypatch, capsys):
    old.unpack('finished', folder)
    run, before = folder / 'tail', contents(folder / 'tail', '**/[!.]*')
    probabilities = jaxcifar.load(run)(IMAGES)
    np.testing.assert_allclose(probabilities, EXPECTED['probabilities']['tail'], atol=1e-5)
    words = '--workdir', 'tail', '--checkpoint', 'calibrated', '--split', 'test_lt'
    near(said(monkeypatch, capsys, *words), EXPECTED['calibrated'], abs=1e-5)
    near(said(monkeypatch, capsys, '--workdir', 'tail'), EXPECTED['best'], abs=1e-5)
    Image.fromarray(IMAGES[0]).save('0.png')
    old.command(monkeypatch, 'predict', '--workdir', 'tail', '--top', 1, '0.png')
    assert f'0.png  {probabilities[0].argmax()} {probabilities[0].max():.1%}' in capsys.readouterr().out
    old.train(monkeypatch, 'tail', old.TAIL, 'long_tail')
    assert 'tail is finished' in capsys.readouterr().out
    assert contents(run, '**/[!.]*') == before

    old.command(monkeypatch, 'report', 'tail', '--out', 'report')
    table = (folder / 'report' / 'report.md').read_text()
    accuracy = np.array([m['accuracy'] for m in EXPECTED['best']['members']])
    assert 'tail' in table and f'{100 * accuracy.mean():.2f}' in table


@pytest.mark.parametrize('name', ['safetensors', 'packed', 'release'])
def test_exports_are_the_function_that_they_were(folder, name, monkeypatch, capsys):
    old.unpack('exports', folder)
    expected = EXPECTED['probabilities'][f'exports/{name}']
    np.testing.assert_allclose(jaxcifar.load(f'exports/{name}')(IMAGES), expected, atol=1e-5)
    found = said(monkeypatch, capsys, '--workdir', f'exports/{name}', '--dataset', 'npz:small.npz')
    assert found['images'] == 40 and ('fusion' in found) == (name == 'release')


def test_a_state_dict_becomes_the_same_network(folder, monkeypatch):
    old.unpack('exports', folder)
    words = '--network', 'resnet8', '--workdir', 'run', '--dataset', 'npz:small.npz'
    old.command(monkeypatch, 'torch_weights', 'exports/ternary.pth', *words)
    expected = EXPECTED['probabilities']['exports/safetensors']
    np.testing.assert_allclose(jaxcifar.load('run')(IMAGES), expected, atol=1e-5)
