"""Long tails: the images of each part, the files that keep them, and what a run leaves behind."""

import csv
import hashlib
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import softmax

import jaxcifar
from configs import base
from configs import long_tail as long_tail_config
from experiments.faults import networks
from jaxcifar import calibrate, reject
from jaxcifar.config import saved
from jaxcifar.data import long_tail
from jaxcifar.data.datasets import load_dataset
from jaxcifar.data.splits import evaluation_images, make_split, train_counts
from jaxcifar.evaluate import evaluate
from jaxcifar.export import write as export
from jaxcifar.loop import train
from jaxcifar.machine.errors import UserError
from jaxcifar.report.tables import report
from jaxcifar.runs import evaluation, session
from jaxcifar.runs.metrics import class_groups
from jaxcifar.runs.resolve import finalize

SIZES = {'train': 8677, 'tuneV': 867, 'val_small': 651, 'calib': 326, 'val_lt': 1104, 'test_lt': 4419}


def labels_only(classes: int, per_class: int, test: int, fingerprint: str = 'abc'):
    """A balanced data set without pictures: images [n,1] are their own numbers."""
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), per_class))
    y_test = np.random.default_rng(1).permutation(np.repeat(np.arange(classes), test))
    return SimpleNamespace(
        y_train=y, y_test=y_test, y_val=None, num_classes=classes, fingerprint=lambda: fingerprint,
        x_train=np.arange(len(y))[:, None], x_test=np.arange(len(y_test))[:, None],
        classes=tuple(map(str, range(classes))),
    )  # fmt: skip


def tail_config(root, split='long_tail', dataset='cifar100', imbalance=100.0):
    c = base.get_config()
    c.dataset, c.split, c.data.root, c.long_tail.imbalance = dataset, split, str(root), imbalance
    c.data.validation = 'val_lt' if split == 'long_tail' else 'none'
    return c


def test_six_parts_have_the_sizes_of_the_recipe(tmp_path):
    sizes = long_tail.class_sizes(np.repeat(np.arange(100), 500), 100, 100)
    assert sizes[:5].tolist() == [500, 477, 455, 434, 415] and sizes[-1] == 5 and sizes.sum() == 10847
    dataset = labels_only(100, 500, 100)
    config = tail_config(tmp_path)
    images = evaluation_images(dataset, make_split(dataset, config))
    assert {name: len(images[name].labels) for name in SIZES} == SIZES
    assert len(images['test'].labels) == 10000 - 1104
    of_train = np.concatenate([images[p].indices for p in ('train', 'tuneV', 'val_small', 'calib')])
    of_test = np.concatenate([images[p].indices for p in ('val_lt', 'test_lt')])
    assert len(np.unique(of_train)) == 10521 and len(np.unique(of_test)) == 5523  # disjoint
    assert not np.intersect1d(images['val_lt'].indices, images['test'].indices).size
    assert np.isin(images['test_lt'].indices, images['test'].indices).all()
    drawn = np.bincount(dataset.y_test[of_test], minlength=100)
    np.testing.assert_array_equal(drawn, np.minimum(sizes, 100))
    for name, part in images.items():  # rows are what the indices say
        x, y = (dataset.x_test, dataset.y_test) if name in ('test', 'val_lt', 'test_lt') else (
            dataset.x_train, dataset.y_train)  # fmt: skip
        np.testing.assert_array_equal(part.images, x[part.indices])
        np.testing.assert_array_equal(part.labels, y[part.indices])


def test_files_are_made_once_and_made_again_alike(tmp_path, monkeypatch):
    dataset = labels_only(4, 100, 40)
    config = tail_config(tmp_path, imbalance=5.0)
    first = make_split(dataset, config)
    (folder,) = (tmp_path / 'splits').iterdir()
    assert folder.name == 'cifar100_lt_if5_seed42'
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {f'{name}.json' for name in (*SIZES, 'manifest')}
    assert json.loads(before['train.json']) == first.train.tolist()  # in row order
    manifest = json.loads(before['manifest.json'])
    labels = dataset.y_train[first.train]
    assert manifest['parts']['train']['class_counts'] == np.bincount(labels).tolist()
    with monkeypatch.context() as patch:
        patch.setattr(long_tail, 'parts', None)  # they are read
        np.testing.assert_array_equal(make_split(dataset, config).train, first.train)
    for path in folder.iterdir():
        path.unlink()
    make_split(dataset, config)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    config.long_tail.seed = 43
    assert sorted(make_split(dataset, config).train) != sorted(first.train)


@pytest.mark.parametrize(('fault', 'words'), [
    ('edited', r'calib\.json does not match its sha256'),
    ('missing', r'calib\.json is missing'),
    ('other settings', 'expected imbalance=5.0, got 6.0'),
    ('manifest', 'manifest.json: '),
])  # fmt: skip
def test_files_that_do_not_match_are_refused(tmp_path, fault, words):
    config = tail_config(tmp_path, imbalance=5.0)
    make_split(labels_only(4, 100, 40), config)
    (folder,) = (tmp_path / 'splits').iterdir()
    if fault == 'edited':
        (folder / 'calib.json').write_text('[1, 2, 3]\n')
    elif fault == 'missing':
        (folder / 'calib.json').unlink()
    elif fault == 'manifest':
        (folder / 'manifest.json').write_text('{"protocol"')
    else:
        text = (folder / 'manifest.json').read_text()
        (folder / 'manifest.json').write_text(text.replace('"imbalance": 5.0', '"imbalance": 6.0'))
    with pytest.raises(UserError, match=words) as caught:
        make_split(labels_only(4, 100, 40), config)
    assert 'delete the folder' in str(caught.value) and '\n' not in str(caught.value)


def test_images_of_one_name_have_folders_of_their_own(tmp_path):
    config = tail_config(tmp_path, imbalance=5.0)
    other = labels_only(4, 90, 40, '79dcdfd90')
    first = make_split(labels_only(4, 100, 40), config)
    second = make_split(other, config)
    names = ['cifar100_lt_if5_seed42', 'cifar100_lt_if5_seed42_79dcdfd9']
    assert sorted(folder.name for folder in (tmp_path / 'splits').iterdir()) == names
    np.testing.assert_array_equal(make_split(labels_only(4, 100, 40), config).train, first.train)
    with long_tail.keeping_nothing(config) as apart:
        shutil.rmtree(tmp_path / 'splits' / names[0])  # the name stays, even if the other's is free now
        for there in apart, config:
            np.testing.assert_array_equal(make_split(other, there).train, second.train)
    assert [folder.name for folder in (tmp_path / 'splits').iterdir()] == names[1:]


def test_the_standard_protocol_trains_on_all_and_tests_on_all(tmp_path):
    dataset = labels_only(100, 500, 100)
    split = make_split(dataset, tail_config(tmp_path, 'long_tail_standard'))
    images = evaluation_images(dataset, split)
    assert {name: len(part.labels) for name, part in images.items()} == {'train': 10847, 'test': 10000}
    np.testing.assert_array_equal(train_counts(dataset, split), [split.class_counts])
    groups = class_groups(split.class_counts)
    assert {name: g.sum() for name, g in groups.items()} == {
        'many': 35, 'medium': 35, 'few': 30, 'head': 50, 'tail': 50}  # fmt: skip
    config = tail_config(tmp_path, 'long_tail_standard')
    config.data.validation, config.data.validation_size = 'holdout', 1000
    held = evaluation_images(dataset, make_split(dataset, config))
    assert len(held['validation'].labels) == 1000 and len(held['train'].labels) == 9847
    assert sorted([*held['validation'].indices, *held['train'].indices]) == sorted(split.train)


def test_other_factors_and_data_sets(tmp_path):
    ten = labels_only(10, 5000, 1000)
    split = make_split(ten, tail_config(tmp_path, dataset='cifar10'))
    assert split.class_counts.max() == 5000 and split.class_counts.sum() == 12406
    assert 'few' not in class_groups(split.class_counts)
    with pytest.raises(
        UserError, match=r'imbalance=500 has too few images of some class.*long_tail_standard'
    ):
        make_split(labels_only(100, 500, 100), tail_config(tmp_path, imbalance=500.0))
    with pytest.raises(UserError, match='leaves the last class without images'):
        make_split(labels_only(4, 100, 40), tail_config(tmp_path, imbalance=200.0))
    for name, validation, words in (
        ('long_tail', 'holdout', 'set data.validation=val_lt'),
        ('shared', 'val_lt', 'set data.validation=holdout'),
    ):
        config = tail_config(tmp_path, name)
        config.data.validation = validation
        with pytest.raises(UserError, match=words):
            finalize(config)


@pytest.mark.real_data
@pytest.mark.skipif('JAXCIFAR_DATA' not in os.environ, reason='needs real CIFAR files')
def test_the_parts_of_one_copy_of_the_real_data():
    """To the row: another release of scikit-learn or numpy that draws others would be seen here."""
    dataset = load_dataset('cifar100', os.environ['JAXCIFAR_DATA'])
    found = long_tail.parts(dataset.y_train, dataset.y_test, 100, tail_config(None))
    assert {name: len(indices) for name, indices in found.items()} == SIZES
    if not dataset.fingerprint().startswith('1b50910ed1daa424'):
        pytest.skip('rows of this copy of CIFAR-100 have another order')
    rows = np.concatenate(list(found.values())).astype('<i8')
    assert hashlib.sha256(rows.tobytes()).hexdigest().startswith('45f70e387c236f9b')


@pytest.fixture(scope='module')
def run(tail_npz, tmp_path_factory):
    """(workdir, results) of configs/long_tail.py as shipped but for size."""
    workdir = tmp_path_factory.mktemp('tail')
    c = long_tail_config.get_config()
    c.dataset, c.long_tail.imbalance, c.data.root = f'npz:{tail_npz}', 5.0, str(workdir / 'data')
    c.network, c.epochs, c.batch_size, c.devices = 'tiny', 3, 32, 1
    c.optimizer.lr, c.data.drop_last, c.eval.batch_size, c.eval.every_epochs = 0.02, True, 160, 2
    c.log.pictures, c.model.shortcut = False, ''
    with networks.registered():
        yield workdir, train(c, workdir)


def exported(workdir, member, part):
    folder = workdir / 'outputs' / 'logits' / 'tail_lt_if5' / member
    with np.load(folder / f'{part}.npz') as rows:
        return np.load(folder / f'{part}.npy'), rows['labels'], rows['indices']


def test_a_run_reports_groups_of_classes(run):
    workdir, results = run
    names = [m['name'] for m in results['members']]
    with open(workdir / 'metrics.csv') as file:
        rows = list(csv.DictReader(file))
    kinds = {(r['split'], r['checkpoint'], r['epoch']) for r in rows} - {
        ('train', 'last', str(e)) for e in (1, 2)
    }
    assert kinds == {('train', 'last', '3'), *(('val_lt', 'last', e) for e in '23'),
                     *((part, w, '3') for part in ('test', 'test_lt') for w in ('last', 'best'))}  # fmt: skip
    with open(workdir / 'per_class.csv') as file:
        classes = list(csv.DictReader(file))
    # The images that are trained on: four fifths of the tail's 100, 58, 34 and 20.
    assert [r['train_images'] for r in classes[:4]] == ['80', '46', '27', '16']
    for k, name in enumerate(names):
        assert results['members'][k]['loss'] == ('cross_entropy', 'logit_adjustment', 'balanced_softmax')[k]
        for which in ('last', 'best'):
            scores = results['members'][k][which]['test']
            own = [r for r in classes if (r['member'], r['checkpoint'], r['split']) == (name, which, 'test')]
            recalls = np.array([float(r['recall']) for r in own])
            assert scores['mean_recall'] == scores['medium'] == pytest.approx(recalls.mean(), abs=1e-5)
            assert scores['head'] == pytest.approx(recalls[:2].mean(), abs=1e-5)
            assert scores['tail'] == pytest.approx(recalls[2:].mean(), abs=1e-5)
            images = np.array([int(r['images']) for r in own])
            assert scores['accuracy'] == pytest.approx((recalls * images).sum() / images.sum(), abs=1e-5)
    assert 'few' not in rows[0] and 'many' not in rows[0]  # there are none
    assert results['test_lt']['mean']['best']['nll'] > 0


def test_exported_logits_are_the_calibrated_members(run):
    workdir, results = run
    calibration = json.loads((workdir / 'calibration.json').read_text())
    split = json.loads(next(workdir.glob('data/splits/*/train.json')).read_text())
    calibrated = {part: evaluate(workdir, 'calibrated', part, False) for part in ('val_lt', 'test_lt')}
    for k, member in enumerate(calibration['weights']['best']['members']):
        z, labels, indices = exported(workdir, member['name'], 'train')
        assert z.dtype == np.float16 and z.shape == (len(split), 4) and indices.tolist() == split
        for part in ('val_lt', 'test_lt'):
            z, labels, _ = exported(workdir, member['name'], part)
            numbers = member['parts'][part]
            p = softmax(z.astype(float), 1)[np.arange(len(labels)), labels]
            assert -np.log(p).mean() == pytest.approx(numbers['after']['nll'], abs=1e-3)
            again = calibrated[part]['members'][k]  # evaluate reads weights and temperature back
            assert again['nll'] == pytest.approx(numbers['after']['nll'], abs=1e-6)
            assert again['ece'] == pytest.approx(numbers['after']['ece'], abs=1e-6)
        assert member['parts']['val_lt']['after']['nll'] <= member['parts']['val_lt']['before']['nll']
        assert again['accuracy'] == results['members'][k]['best']['test_lt']['accuracy']
    assert calibrated['test_lt']['ensemble']['nll'] > 0
    files = {p.relative_to(workdir / 'outputs').as_posix() for p in workdir.glob('outputs/**/*.npy')}
    parts, names = (*SIZES, 'test'), [m['name'] for m in results['members']]
    assert files == {f'logits/{f}/{m}/{p}.npy' for f in ('tail_lt_if5', 'tail_lt_if5_last')
                     for m in names for p in parts}  # fmt: skip


def test_calibrated_networks_are_exported_with_their_temperatures(run, tmp_path, monkeypatch):
    workdir, _ = run
    config = saved.load(workdir / 'config.json')
    folder = export.export(workdir, 'safetensors', tmp_path / 'calibrated', checkpoint='calibrated')
    images = load_dataset(config.dataset, '').x_test
    for z, member in zip(jaxcifar.load(folder).logits(images), calibration_of(workdir)['best']['members']):
        kept, _, indices = exported(workdir, member['name'], 'test')
        np.testing.assert_allclose(z[indices], kept, rtol=0.01, atol=0.01)
        assert member['temperature'] != pytest.approx(1, abs=0.03)
    monkeypatch.setenv('JAXCIFAR_DATA', config.data.root)
    found, wanted = (evaluate(*of, 'test', False, dataset=data)['members'] for of, data in (
        ((folder, None), config.dataset), ((workdir, 'calibrated'), None)))  # fmt: skip
    assert found == [pytest.approx(member) for member in wanted]


def test_posthoc_adjustment_subtracts_the_prior(run):
    workdir, _ = run
    calibrated = calibration_of(workdir)['best']['members']
    assert {m['loss'] for m in calibrated} > {'cross_entropy'}  # and others, which are not adjusted again
    counts = np.bincount(exported(workdir, '0_tiny', 'train')[1])
    found = evaluate(workdir, 'best', 'test', False, posthoc_tau=1.5)
    for fitted, member in zip(calibrated, found['members']):
        z, labels, _ = exported(workdir, member['name'], 'test')
        tau = 1.5 if fitted['loss'] == 'cross_entropy' else 0.0
        adjusted = z * fitted['temperature'] - tau * np.log(counts / counts.sum())
        assert member['accuracy'] == pytest.approx((adjusted.argmax(1) == labels).mean(), abs=0.01)
    plain = evaluate(workdir, 'best', 'test', False)
    assert plain['members'][0]['nll'] != found['members'][0]['nll']


def calibration_of(workdir):
    return json.loads((workdir / 'calibration.json').read_text())['weights']


def test_a_run_goes_on_only_with_the_split_that_it_had(run):
    workdir, _ = run
    config = saved.load(workdir / 'config.json')
    config.data.root = str(workdir / 'other')  # resumable: data may move
    (folder,) = workdir.glob('data/splits/*')
    other = workdir / 'other' / 'splits' / folder.name
    shutil.copytree(folder, other)
    rows = json.loads((other / 'calib.json').read_text())[::-1]
    (other / 'calib.json').write_text(json.dumps(rows))
    manifest = json.loads((other / 'manifest.json').read_text())
    manifest['parts']['calib']['sha256'] = hashlib.sha256((other / 'calib.json').read_bytes()).hexdigest()
    (other / 'manifest.json').write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r'split of npz:.* is not that of'):
        train(config, workdir)


def test_a_finished_run_is_calibrated_once(run, monkeypatch):
    workdir, results = run
    config = saved.load(workdir / 'config.json')
    with monkeypatch.context() as patch:
        patch.setattr(calibrate, 'calibrate', None)
        assert train(config, workdir) == results
    before = (workdir / 'calibration.json').read_bytes()
    (workdir / 'calibration.json').unlink()  # as if it had been killed before
    train(saved.load(workdir / 'config.json'), workdir)
    assert (workdir / 'calibration.json').read_bytes() == before


def test_the_report_shows_groups_calibration_and_rejection(run, tmp_path, monkeypatch):
    monkeypatch.setattr('jaxcifar.report.figures.DPI', 20)
    workdir, _ = run
    reject.reject(workdir, samples=20)
    text = report([workdir], tmp_path).read_text().replace('<wbr>', '')
    for words in ('best on val_lt', 'Groups of classes', '0_tiny cross_entropy', 'Calibration',
                  'Rejection by Chow', '3 head and 1 tail classes', 'not quite balanced'):  # fmt: skip
        assert words in text
    (workdir / 'rejection.json').unlink()


def test_the_standard_protocol_has_no_calibration_images(tiny_networks, tail_npz, tmp_path, monkeypatch):
    loads, shapes = [], []
    load, see = session.load_dataset, evaluation.normalise
    monkeypatch.setattr(session, 'load_dataset', lambda *a: (loads.append(a), load(*a))[1])
    monkeypatch.setattr(evaluation, 'normalise', lambda x, *a: (shapes.append(x.shape), see(x, *a))[1])
    c = long_tail_config.get_config('standard')
    c.dataset, c.long_tail.imbalance, c.data.root = f'npz:{tail_npz}', 5.0, str(tmp_path / 'data')
    c.network, c.loss, c.epochs, c.batch_size, c.devices = 'tiny', 'balanced_softmax', 1, 32, 1
    c.data.drop_last, c.eval.batch_size, c.model.shortcut = True, 160, ''
    train(c, tmp_path)
    # Calibration has the images and the compiled networks of the run.
    assert len(loads) == len(shapes) == 1
    (which, report), *others = calibration_of(tmp_path).items()
    assert which == 'last' and not others and report['members'][0]['temperature'] == 1
    z = np.load(tmp_path / 'outputs/logits/tail_lt_if5_standard/0_tiny/test.npy')
    assert z.shape == (160, 4)
    assert list(reject.reject(tmp_path, samples=2)['parts']) == ['test']
    assert not (tmp_path / 'calibrated').exists()  # nothing was fitted


def test_calibration_needs_a_long_tail(tmp_path):
    with pytest.raises(UserError, match='expected a workdir'):
        calibrate.calibrate(tmp_path)
    with pytest.raises(UserError, match='expected a workdir'):
        reject.reject(tmp_path)
