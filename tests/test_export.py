"""Networks for others: every format gives the network's logits, and says so when it is not whole."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from PIL import Image

import jaxcifar
from jaxcifar.engine.population import Population, make_mesh
from jaxcifar.engine.quantize import Ternary
from jaxcifar.engine.state import init_state
from jaxcifar.evaluate import evaluate
from jaxcifar.export import write as export
from jaxcifar.formats import packed, packed_file, portable
from jaxcifar.formats.packed import pack, unpack
from jaxcifar.formats.portable import read
from jaxcifar.loop import train
from jaxcifar.machine.errors import UserError
from jaxcifar.models import NETWORKS, build
from jaxcifar.models.layers import Layers, head
from jaxcifar.models.resnet import subsample
from jaxcifar.models.speednet import halve
from jaxcifar.runs import shipped_networks, workdirs
from jaxcifar.runs.init_from import begin_from
from jaxcifar.runs.resolve import finalize
from tests.conftest import small_config
from tests.steps import distance


def ternary(params, per_channel=False, negative=1.0):
    """A tree of parameters with ternary kernels [3,3,…] but for the stem's; numpy, which compiles nothing."""

    def change(leaf):
        if leaf.shape[:2] != (3, 3) or leaf.shape[2] == 3:
            return leaf
        size = np.abs(leaf)
        scale = size.mean((0, 1, 2)) if per_channel else size.mean(keepdims=True).ravel()
        codes = (np.sign(leaf) * (size > 0.7 * size.mean())).astype(np.int8)
        return Ternary(codes, scale, np.float32(negative) * scale)

    return jax.tree.map(change, params)


def floats(tree):
    """The same with the kernels' values."""

    def change(leaf):
        if not isinstance(leaf, Ternary):
            return leaf
        return np.where(leaf.codes > 0, leaf.positive, leaf.codes * leaf.negative).astype(np.float32)

    return jax.tree.map(change, tree, is_leaf=lambda leaf: isinstance(leaf, Ternary))


@pytest.fixture(scope='module')
def workdir(small_npz, tmp_path_factory) -> Path:
    """Two ternary members after an epoch."""
    path = tmp_path_factory.mktemp('export') / 'run'
    config = small_config(small_npz)
    config.members, config.epochs, config.batch_size = 2, 1, 40  # batches of one size: one compilation
    config.view = 'ternary'
    train(config, path)
    return path


@pytest.fixture(scope='module')
def packed_path(workdir) -> Path:
    return export.export(workdir, 'packed', member='1') / '1_resnet8.packed'


def test_codes_are_packed_to_the_byte():
    assert pack(np.array([1, 0, -1, 1]), '2bit').tobytes() == b'\x86'
    assert pack(np.array([1, 0, -1, 1, 0]), 'trits').tolist() == [2 + 1 * 3 + 0 * 9 + 2 * 27 + 1 * 81]
    assert pack(np.array([-1]), '2bit').tobytes() == b'\x54'  # filled up with zeros
    for how, bits in (('2bit', 2), ('trits', 1.6)):
        for length in range(21):
            codes = np.random.default_rng(length).integers(-1, 2, length, np.int8)
            data = pack(codes, how)
            assert data.dtype == np.uint8 and len(data) == np.ceil(length * bits / 8)
            np.testing.assert_array_equal(unpack(data, how, (length,)), codes)
        np.testing.assert_array_equal(unpack(data, how, (4, 5), jnp), codes.reshape(4, 5))


def test_resnet18_fits_where_it_should(tmp_path):
    variables, rng = build('resnet18', 10).init((0, 0)), np.random.default_rng(0)
    for name, block in variables['params'].items():
        for kernel in (layer for part, layer in block.items() if name[:5] == 'layer' and 'kernel' in layer):
            codes = rng.integers(-1, 2, kernel['kernel'].shape, np.int8)
            kernel['kernel'] = codes * np.float32(0.01)
    size = {}
    kinds = [('trits', 'float32', False), ('trits', 'float16', False), ('2bit', 'float32', False)]
    for how, rest, fold in [*kinds, ('trits', 'float16', True)]:
        packed_file.write(tmp_path / 'file', {}, variables, how, rest, fold)
        size[how, rest, fold] = (tmp_path / 'file').stat().st_size
    assert size['trits', 'float16', False] < 2.3e6 and size['trits', 'float16', True] < 2.28e6
    assert size['trits', 'float32', False] < 2.35e6 and size['2bit', 'float32', False] < 2.765 * 2**20
    _, same = packed_file.read(tmp_path / 'file')
    assert distance(packed.to_dense(same)['params']['layer4_1']['conv2'],
                    variables['params']['layer4_1']['conv2']) < 1e-4  # fmt: skip


@pytest.mark.parametrize('packing', ['trits', '2bit'])
def test_a_packed_file_evaluates_to_the_last_bit(packing, workdir, small_npz, tmp_path, monkeypatch):
    """As the checkpoint, and nearly so where it is smaller still."""
    # Two members and one would cut a batch into other parts, and a convolution rounds by its batch.
    monkeypatch.setattr(jax, 'devices', lambda devices=jax.devices(): devices[:1])  # noqa: B008
    folder, data = export.export(workdir, 'packed', tmp_path / packing, packing=packing), f'npz:{small_npz}'
    expected = evaluate(workdir, 'best', 'test', flip=False)['members']
    for k, name in enumerate(('0_resnet8', '1_resnet8')):
        found = evaluate(folder / f'{name}.packed', None, 'test', flip=False, dataset=data)
        assert found['members'] == [expected[k]]
    assert evaluate(folder, None, 'test', flip=False, dataset=data)['members'] == expected
    with pytest.raises(UserError, match='leave out --checkpoint last'):
        evaluate(folder, 'last', 'test', flip=False, dataset=data)
    with pytest.raises(UserError, match='expected 4 classes of 8 pixels, got 10 classes of 32'):
        evaluate(folder, None, 'test', flip=False, dataset='digits')
    small = export.export(workdir, 'packed', tmp_path / 's', packing=packing, rest='float16', fold=True)
    assert (small / '0_resnet8.packed').stat().st_size < (folder / '0_resnet8.packed').stat().st_size
    for exact, near in zip(expected, evaluate(small, None, 'test', flip=False, dataset=data)['members']):
        assert near['nll'] == pytest.approx(exact['nll'], abs=0.01) and near['nll'] != exact['nll']


def test_other_test_images_are_scored(packed_path, workdir, dataset, tmp_path):
    """From a file, and from folders of some of the classes."""
    x, y = dataset.x_test, dataset.y_test

    def write(name, **changes):
        np.savez(tmp_path / f'{name}.npz', **{'x_test': x, 'y_test': y, **changes})
        return f'npz:{tmp_path}/{name}.npz'

    for at, label in [(i, label) for i, label in enumerate(y) if label < 3]:
        (tmp_path / 'new' / 'test' / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[at]).save(tmp_path / 'new' / 'test' / str(label) / f'{at}.png')
    # The same images and weights give the same numbers, whatever training part lies beside.
    expected = evaluate(workdir)['members']
    for place in (write('new'), write('named', classes=[*'abcd'], x_train=0)):
        for path, members in ((workdir, expected), (packed_path.parent, expected[1:])):
            found = evaluate(path, test_images=place)
            assert found['images'] == 40 and found['test_images'] == place
            for ours, theirs in zip(found['members'], members, strict=True):
                assert ours['nll'] == pytest.approx(theirs['nll'], abs=1e-5)
    labels = jaxcifar.load(workdir, 0).logits(x)[0].argmax(-1)
    for folder in ('new', 'new/test'):
        found = evaluate(workdir, test_images=f'folder:{tmp_path}/{folder}')
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
            evaluate(workdir, test_images=place, **options)


def test_weights_that_nothing_chose_are_not_called_chosen(workdir, tmp_path, small_npz):
    folder = export.export(workdir, 'safetensors', tmp_path / 'last', checkpoint='last')
    assert evaluate(workdir)['selected_on'] == 'holdout'
    assert evaluate(workdir, 'last')['selected_on'] == 'none'
    assert evaluate(folder, dataset=f'npz:{small_npz}')['selected_on'] == 'none'


def test_packed_weights_stay_packed_in_memory(packed_path, workdir, dataset):
    model, dense = jaxcifar.load(packed_path), jaxcifar.load(workdir, 1)
    np.testing.assert_allclose(model.logits(dataset.x_test), dense.logits(dataset.x_test), atol=1e-5)
    held, before = (sum(leaf.nbytes for leaf in jax.tree.leaves(m.weights)) for m in (model, dense))
    assert held < 0.1 * before
    program = model.function.lower(model.weights, dataset.x_test[:1]).compile()
    largest = 4 * 3 * 3 * 64 * 64
    assert program.memory_analysis().temp_size_in_bytes < 2 * largest  # where all together are 4.5 times it


def test_a_packed_file_that_is_not_whole_is_refused(packed_path, tmp_path):
    good, broken = packed_path.read_bytes(), tmp_path / 'broken.packed'
    faults = {
        'expected a packed network': b'no network at all',
        'ends after 20 bytes': good[:20],
        'of version 2': good[:8] + b'\x02' + good[9:],
        'not those that were written': good[:-1],
    }
    for place in (20, 60, len(good) // 2, len(good) - 1):
        broken.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(UserError, match='not those that were written'):
            jaxcifar.load(broken)
    for words, data in faults.items():
        broken.write_bytes(data)
        with pytest.raises(UserError, match=words) as caught:
            jaxcifar.load(broken)
        assert '\n' not in str(caught.value)
    for header, rest, words in (
        (b'{}', b'', "'rest'"),
        (b'[1]', b'', 'indices'),
        (b'{"rest":"float32","tensors":[["a",[9],"float32"]]}', b'', 'buffer'),
        (b'{"rest":"float32","tensors":[["a",[-1],"float32"]]}', b'', '-1 numbers'),
        (b'{"rest":"float16","tensors":[["a",[2,3],"2bit",[2]]]}', bytes(6), 'for other channels'),
        (b'{"rest":"float16","tensors":[["a",[2,3],"2bit",[1]]]}', bytes(5), '1 bytes are left over'),
    ):
        digest = hashlib.sha256(header + rest).digest()
        start = packed_file.START.pack(packed_file.MAGIC, 1, len(header), digest)
        broken.write_bytes(start + header + rest)
        with pytest.raises(UserError, match=f'damaged: what it says of its tensors .*{words}'):
            jaxcifar.load(broken)
    with pytest.raises(UserError, match=r'no kernel of .* is ternary'):
        packed_file.write(tmp_path / 'dense', {}, build('resnet8', 4).init((0, 0)))


def test_a_release_is_a_function_in_one_line(workdir, dataset, small_npz, tmp_path):
    folder = export.export(workdir, 'release')
    assert subprocess.run(['sha256sum', '--quiet', '-c', 'SHA256SUMS'], cwd=folder).returncode == 0
    umask = os.umask(0)
    os.umask(umask)
    assert (folder / '0_resnet8.safetensors').stat().st_mode & 0o777 == 0o666 & ~umask
    model = jaxcifar.load(folder)
    expected = evaluate(workdir, 'best', 'test', flip=False)
    assert model.classes == ('0', '1', '2', '3') and model.names == ['0_resnet8', '1_resnet8']
    hits = model(dataset.x_test).argmax(1) == dataset.y_test
    assert hits.mean() == pytest.approx(expected['ensemble']['accuracy'])
    alone = jaxcifar.load(folder, '1_resnet8').logits(dataset.x_test)
    np.testing.assert_allclose(alone[0], model.logits(dataset.x_test)[1], atol=1e-5)
    again = evaluate(folder, None, 'test', flip=False, dataset=f'npz:{small_npz}')
    assert again['members'] == expected['members']
    for file in folder.iterdir():  # says nothing of the machine that it comes from
        assert str(small_npz.parent).encode() not in file.read_bytes(), file
    card, results = (folder / 'README.md').read_text(), json.loads((workdir / 'results.json').read_text())
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
    mine = tmp_path / 'mine'
    mine.mkdir()
    for name, text in ('thesis.tex', ''), ('SHA256SUMS', 'e3b0  thesis.tex\n\n'):
        (mine / name).write_text(text)
    for words, call in {
        r'expected a member of .* \(all, 0_resnet8.*\), got 7': lambda: jaxcifar.load(folder, 7),
        'got .*absent: no such path': lambda: jaxcifar.load(tmp_path / 'absent'),
        r'expected images as uint8 \[B,8,8,3\], got float32': lambda: model(dataset.x_test / np.float32(255)),
        'holds other files': lambda: export.export(workdir, 'release', workdir),
        r'holds other files \(SHA256SUMS\)': lambda: export.export(workdir, 'release', mine),
        'got the file .*thesis': lambda: export.export(workdir, 'release', mine / 'thesis.tex'),
        '--bits is not for': lambda: export.export(workdir, 'release', bits=2),
        "unknown format 'onix'": lambda: export.export(workdir, 'onix'),
    }.items():
        with pytest.raises(UserError, match=words):
            call()
    (folder / 'config.json').write_text('{}')
    with pytest.raises(UserError, match=r'damaged: config\.json does not have the sum'):
        jaxcifar.load(folder)


def test_a_card_knows_what_its_numbers_are_of(workdir, tmp_path):
    def card(name, run=workdir, **options):
        return (export.export(run, output=tmp_path / name, **options) / 'README.md').read_text()

    kept = shutil.copytree(workdir, tmp_path / 'run')
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


def test_a_folder_that_is_not_what_it_says_is_refused(workdir, tmp_path):
    good = export.export(workdir, 'release', tmp_path / 'good', member='0')
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
    assert workdirs.trained_with(tmp_path) == expected


def test_training_begins_from_a_release(workdir, config, tmp_path, capsys):
    """Or from the run that it is of: floats with the ternary weights, not with those behind them."""
    folder = export.export(workdir, 'release', tmp_path / 'release')
    config.members = 2
    for classes, source in ((4, folder), (3, folder), (4, workdir)):
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
    config.network = 'resnet20'
    run = finalize(config)
    population = Population(run, 4, 8, make_mesh(run))
    with pytest.raises(
        UserError, match=r'expected weights of resnet20 with this config\.model for 0_resnet20'
    ):
        begin_from(run, population, init_state(run, population))


def test_stablehlo_runs_for_any_batch(workdir, dataset):
    folder = export.export(workdir, 'stablehlo', member='0_resnet8')
    program = jax.export.deserialize(bytearray((folder / '0_resnet8.stablehlo').read_bytes()))
    expected = jaxcifar.load(workdir, 0).logits(dataset.x_test)[0]
    for batch in (1, 40):
        np.testing.assert_allclose(program.call(dataset.x_test[:batch]), expected[:batch], atol=1e-5)
    assert set(program.platforms) == {'cpu', 'cuda', 'rocm', 'tpu'}


class Everything(nn.Module):
    """One of each thing that the networks are made of."""

    num_classes: int
    layers: Layers

    @nn.compact
    def __call__(self, x):
        a = self.layers
        x = nn.relu(a.norm('bn1')(a.conv(8, 7, 2, name='conv1')(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        y = nn.relu6(a.norm('bn2')(a.conv(8, 3, 2, 8, name='depthwise')(x)))
        y = a.norm('bn3')(a.conv(12, 3, 1, 2, name='grouped')(y))
        x = nn.sigmoid(subsample(x, 12, 2, a) + nn.gelu(y))
        x = nn.avg_pool(jnp.concatenate([x, a.conv(4, 3, name='conv2')(x)], -1), (2, 2), (2, 2))
        return head(halve(x), self.num_classes)


def test_onnx_graphs_give_the_same_logits(monkeypatch):
    onnxruntime = pytest.importorskip('onnxruntime', reason="needs pip install -e '.[export]'")
    from jaxcifar.formats.onnx_export import to_onnx

    monkeypatch.setitem(NETWORKS, 'everything', Everything)
    network, rng = build('everything', 5, 32), np.random.default_rng(0)
    drawn = network.init((0, 0))
    variables = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32), drawn)
    kinds = {'dense': variables['params'], 'channel': ternary(variables['params'], per_channel=True)}
    kinds['asymmetric'] = ternary(variables['params'], negative=0.5)
    images = rng.integers(0, 256, (3, 32, 32, 3), np.uint8)

    @jax.jit
    def function(variables, images):
        return network.apply(variables, images / jnp.float32(255), False)[0][0]

    found = {}
    for (kind, params), bits in zip(kinds.items(), (2, 4, 2)):
        tree = {**variables, 'params': params}
        model = to_onnx(function, tree, 32, bits)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
        (found[kind],) = session.run(None, {'images': images})
        np.testing.assert_allclose(found[kind], function(floats(tree), images), atol=1e-4, err_msg=kind)
    assert min(np.ptp(z[:, 0]) for z in found.values()) > 1e-3  # the images make a difference
    assert np.abs(found['channel'] - found['asymmetric']).max() > 1e-2


def test_onnx_of_a_run_keeps_codes(workdir, tmp_path):
    onnx = pytest.importorskip('onnx', reason="needs pip install -e '.[export]'")
    folder = export.export(workdir, 'onnx', tmp_path / '2')  # which compares it with the network itself
    model = onnx.load(folder / '0_resnet8.onnx')
    types = [onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer]
    assert types.count('INT2') == 6
    wide = export.export(workdir, 'onnx', tmp_path / '8', bits=8)
    sizes = [(f / '0_resnet8.onnx').stat().st_size for f in (folder, wide)]
    assert sizes[0] < 0.45 * sizes[1]
    with pytest.raises(UserError, match='no translation of sin yet'):
        from jaxcifar.formats.onnx_export import to_onnx

        to_onnx(lambda _, images: jnp.sin(images.astype(jnp.float32)).sum((1, 2)), {}, 8)
    shutil.rmtree(folder)
