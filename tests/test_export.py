"""Networks for others: a release, its card, and the images that others score it on."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import jaxcifar
from jaxcifar.data.only_test import check_alike
from jaxcifar.engine.population import Population, make_mesh
from jaxcifar.engine.state import init_state
from jaxcifar.evaluate import evaluate
from jaxcifar.export import hub
from jaxcifar.export import write as export
from jaxcifar.formats import portable
from jaxcifar.formats.portable import read
from jaxcifar.machine.errors import UserError
from jaxcifar.runs import session_log, shipped_networks
from jaxcifar.runs.init_from import begin_from
from jaxcifar.runs.resolve import finalize
from jaxcifar.runs.trained import open_trained
from tests.steps import distance


def test_other_test_images_are_scored(packed_path, ternary_run, dataset, tmp_path):
    """From a file, and from folders of some of the classes."""
    x, y = dataset.x_test, dataset.y_test

    def write(name, **changes):
        np.savez(tmp_path / f'{name}.npz', **{'x_test': x, 'y_test': y, **changes})
        return f'npz:{tmp_path}/{name}.npz'

    for at, label in [(i, label) for i, label in enumerate(y) if label < 3]:
        (tmp_path / 'new' / 'test' / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[at]).save(tmp_path / 'new' / 'test' / str(label) / f'{at}.png')
    # The same images and weights give the same numbers, whatever training part lies beside.
    expected = evaluate(ternary_run)['members']
    for place in (write('new'), write('named', classes=[*'abcd'], x_train=0)):
        for path, members in ((ternary_run, expected), (packed_path.parent, expected[1:])):
            found = evaluate(path, test_images=place)
            assert found['images'] == 40 and found['test_images'] == place
            for ours, theirs in zip(found['members'], members, strict=True):
                assert ours['nll'] == pytest.approx(theirs['nll'], abs=1e-5)
    # Names of folders are in the order of text, and a file has none.
    folders, file = (
        replace(dataset, name=name, classes=classes)
        for name, classes in (('folder:x', ('1', '11', '2')), ('npz:x', ('11', '2', '1')))
    )
    with pytest.raises(UserError, match=r'npz:x: expected 1 as class 0, got 11'):
        check_alike(file, folders)
    labels = jaxcifar.load(ternary_run, 0).logits(x)[0].argmax(-1)
    for folder in ('new', 'new/test'):
        found = evaluate(ternary_run, test_images=f'folder:{tmp_path}/{folder}')
        assert found['images'] == (y < 3).sum() and found['selected_on'] == 'holdout'
        assert found['members'][0]['accuracy'] == pytest.approx((labels == y)[y < 3].mean())
    faults = [
        (write('y', y_test=y + 1), {}, 'labels from 0 to 3, got 1 to 4; subtract 1'),
        (write('c', classes=['a', 'b', 'c']), {}, 'expected 4 classes of 8 pixels, got 3 classes of 8'),
        (write('x', x_test=x[:, :4, :4]), {}, 'expected 4 classes of 8 pixels, got 4 classes of 4'),
        (f'npz:{tmp_path}/none.npz', {}, 'no such file'),
        (f'folder:{tmp_path}', {}, 'expected folders of the classes 0, 1, 2, 3, got '),
        ('stream:here', {}, 'expected npz:FILE, folder:DIR or one of digits, cifar10, cifar100'),
        ('', {}, '--test-images must not be empty'),
        (write('new'), {'posthoc_tau': 1.0}, '--posthoc-tau goes with the images of the data set'),
        (write('new'), {'split': 'train'}, '--split goes with the images of the data set'),
    ]
    for place, options, text in faults:
        with pytest.raises(UserError, match=text):
            evaluate(ternary_run, test_images=place, **options)


def test_weights_that_nothing_chose_are_not_called_chosen(ternary_run, tmp_path, small_npz):
    folder = export.export(ternary_run, 'safetensors', tmp_path / 'last', checkpoint='last')
    assert evaluate(ternary_run)['selected_on'] == 'holdout'
    assert evaluate(ternary_run, 'last')['selected_on'] == 'none'
    assert evaluate(folder, dataset=f'npz:{small_npz}')['selected_on'] == 'none'
    assert json.loads((folder / 'card.json').read_text())['accuracy']['selected_on'] == 'none'


def test_the_split_of_a_training_is_not_that_of_other_images(ternary_run, small_npz, tmp_path):
    folder = export.export(ternary_run, 'safetensors', tmp_path / 'export')
    with np.load(small_npz) as arrays:
        other = {**arrays, 'x_train': arrays['x_train'][::-1], 'y_train': arrays['y_train'][::-1]}
    np.savez(tmp_path / 'other.npz', **other)
    assert evaluate(folder, split='validation', dataset=f'npz:{small_npz}')['images'] == 16
    found = evaluate(folder, dataset=f'npz:{tmp_path}/other.npz')
    assert (found['images'], found['selected_on']) == (40, 'holdout')
    with pytest.raises(UserError, match=r'--split validation needs the images that .* was trained with'):
        evaluate(folder, split='validation', dataset=f'npz:{tmp_path}/other.npz')


def test_only_imagenet_is_called_so():
    card = {
        'data': {'name': 'imagenet:photos', 'classes': ['cat', 'dog']},
        'format': 'onnx',
        'accuracy': None,
    }
    card['training'] = {'coupling': 'none', 'view': 'none', 'network': 'resnet18', 'loss': 'cross_entropy'}
    assert 'datasets' not in yaml.safe_load(hub.head(card).strip('-'))
    card['data']['classes'] = [f'n{i:08}' for i in range(1000)]
    assert yaml.safe_load(hub.head(card).strip('-'))['datasets'] == ['ILSVRC/imagenet-1k']


def test_a_release_is_a_function_in_one_line(ternary_run, dataset, small_npz, tmp_path):
    folder = export.export(ternary_run, 'release')
    assert subprocess.run(['sha256sum', '--quiet', '-c', 'SHA256SUMS'], cwd=folder).returncode == 0
    umask = os.umask(0)
    os.umask(umask)
    assert (folder / '0_resnet8.safetensors').stat().st_mode & 0o777 == 0o666 & ~umask
    model = jaxcifar.load(folder)
    expected = evaluate(ternary_run, 'best', 'test', flip=False)
    assert model.classes == ('0', '1', '2', '3') and model.names == ['0_resnet8', '1_resnet8']
    hits = model(dataset.x_test).argmax(1) == dataset.y_test
    assert hits.mean() == pytest.approx(expected['ensemble']['accuracy'])
    alone = jaxcifar.load(folder, '1_resnet8').logits(dataset.x_test)
    np.testing.assert_allclose(alone[0], model.logits(dataset.x_test)[1], atol=1e-5)
    again = evaluate(folder, None, 'test', flip=False, dataset=f'npz:{small_npz}')
    assert again['members'] == expected['members']
    for file in folder.iterdir():  # says nothing of the machine that it comes from
        assert str(small_npz.parent).encode() not in file.read_bytes(), file
    card, results = (folder / 'README.md').read_text(), json.loads((ternary_run / 'results.json').read_text())
    _, top, card = card.split('---\n', 2)
    about = yaml.safe_load(top)
    assert about['tags'] == ['jax', 'release', 'resnet8', 'cross_entropy', 'ternary']
    assert 'datasets' not in about
    (result,) = about['model-index'][0]['results']
    assert result['dataset'] == {'name': 'small.npz', 'type': 'small.npz', 'split': 'test'}
    expected = [results[kind]['best']['accuracy'] for kind in ('mean', 'ensemble')]
    assert [m['value'] for m in result['metrics']] == pytest.approx(expected, abs=1e-4)
    assert card.startswith('# resnet8 for small.npz\n')
    assert f'Test accuracy {100 * results["mean"]["best"]["accuracy"]:.2f} ± ' in card
    with (folder / 'README.md').open('a') as file:
        file.write('MIT license')
    jaxcifar.load(folder)
    with pytest.raises(UserError, match=r'README\.md has been edited: move it away'):
        export.export(ternary_run, 'release')
    (folder / 'README.md').unlink()
    mine = tmp_path / 'mine'
    mine.mkdir()
    for name, text in ('thesis.tex', ''), ('SHA256SUMS', 'e3b0  thesis.tex\n\n'):
        (mine / name).write_text(text)
    for words, call in {
        r'expected a member of .* \(all, 0_resnet8.*\), got 7': lambda: jaxcifar.load(folder, 7),
        'got .*absent: no such path': lambda: jaxcifar.load(tmp_path / 'absent'),
        r'expected images as uint8 \[B,8,8,3\], got float32': lambda: model(dataset.x_test / np.float32(255)),
        'holds other files': lambda: export.export(ternary_run, 'release', ternary_run),
        r'holds other files \(SHA256SUMS\)': lambda: export.export(ternary_run, 'release', mine),
        'got the file .*thesis': lambda: export.export(ternary_run, 'release', mine / 'thesis.tex'),
        '--bits is not for': lambda: export.export(ternary_run, 'release', bits=2),
        "unknown format 'onix'": lambda: export.export(ternary_run, 'onix'),
    }.items():
        with pytest.raises(UserError, match=words):
            call()
    (folder / 'config.json').write_text('{}')
    with pytest.raises(UserError, match=r'damaged: config\.json does not have the sum'):
        jaxcifar.load(folder)


def test_a_card_knows_what_its_numbers_are_of(ternary_run, tmp_path):
    def card(name, run=ternary_run, **options):
        return (export.export(run, output=tmp_path / name, **options) / 'README.md').read_text()

    kept = shutil.copytree(ternary_run, tmp_path / 'run')
    assert '96 training images, of which a member saw 80, 40 test images (sha256' in card(
        'whole', kind='release'
    )
    small = card('small', kind='packed', rest='float16')
    assert 'measured before the numbers in these files were rounded' in small
    results = json.loads((kept / 'results.json').read_text())
    for change, words in (
        ({'own_images': True}, 'Test accuracy \\d+\\.\\d+ %, '),
        ({'step': 1}, 'No accuracy was'),
    ):
        (kept / 'results.json').write_text(json.dumps({**results, **change}))
        assert re.search(words, card('changed', kept, kind='release'))
    assert not (tmp_path / 'changed/results.json').exists()  # the run has gone on since
    config = json.loads((kept / 'config.json').read_text())
    config['eval']['flip'] = True
    (kept / 'config.json').write_text(json.dumps(config))
    (kept / 'results.json').write_text(json.dumps(results))
    assert 'of its mirror image averaged' in card('changed', kept, kind='release')


def test_a_folder_that_is_not_what_it_says_is_refused(ternary_run, tmp_path):
    good = export.export(ternary_run, 'release', tmp_path / 'good', member='0')
    name = '0_resnet8.safetensors'

    def broken(change, words):
        folder = shutil.copytree(good, tmp_path / 'broken', dirs_exist_ok=True)
        change(folder)
        with pytest.raises(UserError, match=words) as caught:
            jaxcifar.load(folder)
        assert '\n' not in str(caught.value)

    def sums(text):
        return lambda folder: (folder / 'SHA256SUMS').write_text(text)

    def summed(file, data):
        def change(folder):
            (folder / file).write_bytes(data)
            portable.write_sums(folder)

        return change

    card, (member,) = json.loads((good / 'card.json').read_text()), read(good)
    card['members'][0]['file'] = f'../good/{name}'
    broken(sums(''), 'has no sums of what is in card')
    broken(sums(f'{"0" * 64}  ../good/{name}\n'), 'names ../good/.*, which is not in this folder')
    broken(summed('card.json', json.dumps(card).encode()), 'has no sums of what is in card')
    broken(summed('card.json', b'[]'), 'is not a jaxcifar file')
    broken(summed('card.json', b'{"members": []}'), 'is not an export of jaxcifar: .* names no members')
    portable.write_safetensors(tmp_path / name, {**member.about, 'network': 'resnet20'}, member.variables)
    broken(summed(name, (tmp_path / name).read_bytes()), 'does not hold a resnet20: .*, not ')
    portable.write_safetensors(tmp_path / name, {'name': 'mine'}, member.variables)
    broken(summed(name, (tmp_path / name).read_bytes()), 'does not say its network')


def test_a_network_that_comes_along_answers_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = shipped_networks.names()
    folder = shipped_networks.FOLDER / name
    card = json.loads((folder / 'card.json').read_text())
    assert card['accuracy']['mean'] > 0.9 and 'commit' in card['training']
    assert (folder / '0_resnet20.packed').stat().st_size < 70_000
    model = jaxcifar.load(name)
    assert model.classes[3] == 'cat' and len(model.predict(np.zeros((2, 48, 40, 3), np.uint8))) == 2
    images, labels = np.zeros((20, 32, 32, 3), np.uint8), np.arange(20) % 10
    np.savez('others.npz', x_train=images, y_train=labels, x_test=images, y_test=labels)
    scores = evaluate(Path(name), dataset='npz:others.npz')
    assert scores['workdir'] == name and scores['members'][0]['accuracy'] == 0.1
    # Labels of other classes, or in another order, would give numbers that mean nothing.
    parts = {'x_train': images, 'y_train': labels, 'x_test': images, 'y_test': labels}
    np.savez('others.npz', **parts, classes=model.classes[::-1])
    for place in (
        {'dataset': 'npz:others.npz'},
        {'test_images': 'npz:others.npz'},
        {'test_images': 'digits'},
    ):
        with pytest.raises(UserError, match=r'expected airplane as class 0, got (truck|0)'):
            evaluate(Path(name), **place)
    # What the user has made comes first, and a path is never a name.
    Path(name).mkdir()
    assert shipped_networks.folder_of(Path(name)) == Path(name)
    assert shipped_networks.folder_of(folder / 'x') == folder / 'x'


def test_a_card_names_the_machines_of_all_sessions(tmp_path):
    sessions = [
        {'commit': 'a', 'devices': ['gpu:0 H200'], 'packages': {'jax': '0.11.2', 'numpy': '2.4'}},
        {'commit': 'a', 'devices': ['gpu:0 H200'], 'packages': {'jax': '0.11.2', 'numpy': '2.4'}},
        {'commit': 'b', 'devices': ['cpu:0 cpu'], 'packages': {'jax': '0.10.2', 'numpy': ''}},
    ]
    (tmp_path / 'run.json').write_text(json.dumps({'sessions': sessions}))
    packages = {'jax': '0.11.2, 0.10.2', 'numpy': '2.4'}
    expected = {'commit': 'a, b', 'devices': ['gpu:0 H200', 'cpu:0 cpu'], 'packages': packages}
    assert session_log.trained_with(tmp_path) == expected


def test_training_begins_from_a_release(ternary_run, config, tmp_path, capsys):
    """Or from the run that it is of: floats with the ternary weights, not with those behind them."""
    folder = export.export(ternary_run, 'release', tmp_path / 'release')
    config.members = 2
    for classes, source in ((4, folder), (3, folder), (4, ternary_run)):
        config.init_from = str(source)
        run = finalize(config.copy_and_resolve_references())
        population = Population(run, classes, 8, make_mesh(run))
        drawn = init_state(run, population)
        began = begin_from(run, population, drawn)
        ours, fresh = (population.disassemble(tuple(zip(s.params, s.stats))) for s in (began, drawn))
        for k in range(2):
            theirs = read(folder)[k].variables
            if classes == 3:
                assert distance(ours[k][0].pop('fc'), fresh[k][0]['fc']) == 0
                del theirs['params']['fc']
            assert distance(ours[k], (theirs['params'], theirs['batch_stats'])) == 0
        assert ('fc of 1_resnet8 begins fresh, 4 -> 3 classes' in capsys.readouterr().out) == (classes == 3)
    # Beside a ternary member, which takes the floats, a float one still takes what was seen.
    config.view, floats = 'none+ternary', open_trained(ternary_run).members(shown=False)
    run = finalize(config.copy_and_resolve_references())
    population = Population(run, 4, 8, make_mesh(run))
    began = begin_from(run, population, init_state(run, population))
    first, second = population.disassemble(tuple(zip(began.params, began.stats)))
    assert distance(first[0], read(folder)[0].variables['params']) == 0
    assert distance(second[0], floats[1]['params']) == 0
    config.view, config.network = 'none', 'resnet20'
    run = finalize(config)
    population = Population(run, 4, 8, make_mesh(run))
    with pytest.raises(
        UserError, match=r'expected weights of resnet20 with this config\.model for 0_resnet20'
    ):
        begin_from(run, population, init_state(run, population))
