"""Data sets: what is accepted, what is refused and in which words, and how CIFAR arrives."""

import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from jaxcifar.data import datasets, download
from jaxcifar.data.datasets import load_dataset
from jaxcifar.data.vision import import_torchvision
from jaxcifar.machine.errors import UserError


def arrays(classes=10, each=3, size=32, **changes):
    """A small valid data set, less the keys that are None in `changes`."""
    labels = np.tile(np.arange(classes, dtype=np.uint8), each)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), size, size, 3), np.uint8)
    whole = {'x_train': images, 'y_train': labels, 'x_test': images[:5], 'y_test': labels[:5]}
    return {key: value for key, value in (whole | changes).items() if value is not None}


def message(name, root='.'):
    with pytest.raises(UserError) as caught:
        load_dataset(name, root)
    text = str(caught.value)
    assert '\n' not in text
    return text


def test_digits():
    digits = load_dataset('digits', 'unused', image_size=16)
    assert digits.x_train.shape == (1437, 16, 16, 3) and digits.x_test.shape == (360, 16, 16, 3)
    assert digits.x_train.dtype == np.uint8 and digits.y_train.dtype == np.int32
    assert (digits.x_train.min(), digits.x_train.max()) == (0, 255)
    assert digits.num_classes == 10 and digits.image_size == 16
    scaled = digits.x_train.astype(float) / 255
    np.testing.assert_allclose(digits.mean, scaled.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(digits.std, scaled.std(axis=(0, 1, 2)))
    assert digits.fingerprint() == load_dataset('digits', 'x', image_size=16).fingerprint()
    assert digits.fingerprint() != load_dataset('digits', 'x', image_size=17).fingerprint()


def test_unknown_name_gets_the_nearest():
    assert "did you mean 'cifar10'" in message('cifar-10')
    assert "did you mean 'npz:PATH'" in message('npz')
    assert 'valid: ' in message('zip:somewhere')


def test_npz(tmp_path):
    np.savez(tmp_path / 'own.npz', **arrays(3, size=8), classes=['a', 'b', 'c'], extra=1)
    own = load_dataset(f'npz:{tmp_path}/own.npz', 'unused')
    assert own.classes == ('a', 'b', 'c') and own.image_size == 8 and len(own.x_test) == 5
    np.testing.assert_array_equal(own.x_train, arrays(3, size=8)['x_train'])


def test_npz_without_test_part_is_split_by_class(tmp_path):
    np.savez(tmp_path / 'own.npz', **arrays(3, each=10, size=8, x_test=None, y_test=None))
    own = load_dataset(f'npz:{tmp_path}/own.npz', 'unused')
    assert own.classes == ('0', '1', '2')
    assert np.bincount(own.y_train).tolist() == [8] * 3
    assert np.bincount(own.y_test).tolist() == [2] * 3


@pytest.mark.parametrize(
    'changes, complaint',
    [
        ({'x_train': None}, 'x_train is missing'),
        ({'y_test': None}, 'y_test is missing'),
        ({'x_train': np.zeros((30, 32, 32, 3))}, 'float64'),
        ({'x_train': np.zeros((30, 32, 32), np.uint8)}, '(30, 32, 32)'),
        ({'x_test': np.zeros((5, 8, 8, 3), np.uint8)}, 'differ in size'),
        ({'x_test': np.zeros((0, 32, 32, 3), np.uint8), 'y_test': np.zeros(0, int)}, '(0, 32'),
        ({'y_train': np.zeros((30, 1), int)}, '(30, 1)'),
        ({'y_train': np.zeros(30)}, 'float64'),
        ({'y_train': np.array([1, 2] * 15), 'y_test': np.ones(5, int)}, 'class 0'),
        ({'y_test': np.array([0, 1, 2, 3, 10])}, 'y_test runs from 0 to 10'),
        ({'y_test': np.array([0, 1, 2, 3, -1])}, 'y_test runs from -1 to 3'),
        ({'x_train': np.array(['object', 1], object)}, 'not a whole .npz file'),
    ],
)
def test_bad_npz_is_refused(tmp_path, changes, complaint):
    np.savez(tmp_path / 'cifar10.npz', **arrays(**changes))
    for name in ('cifar10', f'npz:{tmp_path}/cifar10.npz'):
        text = message(name, tmp_path)
        assert text.startswith(f'{tmp_path}/cifar10.npz: ') and complaint in text


def test_cifar_has_32_pixels_and_all_its_classes(tmp_path):
    np.savez(tmp_path / 'cifar100.npz', **arrays(100, size=28))
    assert '(300, 28, 28, 3)' in message('cifar100', tmp_path)
    np.savez(tmp_path / 'cifar100.npz', **arrays(99))
    assert 'class 99 of 0..99' in message('cifar100', tmp_path)


@pytest.mark.parametrize('bytes_left', [0, 20, 5000, -100])
def test_truncated_cache_is_refused(tmp_path, bytes_left):
    path = tmp_path / 'cifar10.npz'
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:bytes_left])
    text = message('cifar10', tmp_path)
    assert text.startswith(f'{path}: not a whole .npz file') and 'delete it' in text


def test_other_files_are_not_npz(tmp_path):
    np.save(tmp_path / 'one.npy', np.zeros(3))
    assert 'not a whole .npz file' in message(f'npz:{tmp_path}/one.npy')
    assert 'no such file' in message(f'npz:{tmp_path}/none.npz')


def image_tree(folder, classes='ab', count=10):
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for j in range(count):
            Image.new('RGB', (24, 16 + j), (100 * i, 10 * j, 7)).save(folder / name / f'{j}.png')


def test_folder_is_cropped_and_split(tmp_path, capsys):
    image_tree(tmp_path)
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, 8:24] = 200
    Image.fromarray(wide).save(tmp_path / 'b' / '0.png')
    (tmp_path / 'a' / '0.png').write_bytes(b'no image')
    (tmp_path / 'a' / '1.png').write_bytes((tmp_path / 'a' / '2.png').read_bytes()[:50])
    own = load_dataset(f'folder:{tmp_path}', 'unused', image_size=8)
    assert own.classes == ('a', 'b')
    assert own.x_train.shape == (14, 8, 8, 3) and own.x_test.shape == (4, 8, 8, 3)
    everything = np.concatenate([own.x_train, own.x_test])
    assert sum((image[:, 2:-2] == 200).all() for image in everything) == 1  # the wide one's middle
    told = capsys.readouterr().err
    assert 'a/0.png' in told and 'a/1.png' in told and '2 of 20' in told


@pytest.mark.parametrize('part', ['test', 'val'])
def test_folder_with_its_own_test_part(tmp_path, part):
    image_tree(tmp_path / 'train')
    image_tree(tmp_path / part, count=1)
    own = load_dataset(f'folder:{tmp_path}', 'unused', image_size=8)
    assert own.y_train.tolist() == [0] * 10 + [1] * 10 and own.y_test.tolist() == [0, 1]


def test_bad_folders_are_refused(tmp_path):
    image_tree(tmp_path / 'uneven' / 'train', 'ab')
    image_tree(tmp_path / 'uneven' / 'test', 'ac')
    assert 'differ in b, c' in message(f'folder:{tmp_path}/uneven')
    assert 'No such file' in message(f'folder:{tmp_path}/none')
    (tmp_path / 'broken' / 'a').mkdir(parents=True)
    (tmp_path / 'broken' / 'a' / '0.png').write_bytes(b'no image')
    assert 'none of the 1 images' in message(f'folder:{tmp_path}/broken')


def test_fetched_cifar_is_kept(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(datasets, 'fetch_cifar', lambda *a: fetched.append(a) or arrays())
    first = load_dataset('cifar10', tmp_path / 'new' / 'folder')
    again = load_dataset('cifar10', tmp_path / 'new' / 'folder')
    assert len(fetched) == 1 and first.fingerprint() == again.fingerprint()
    assert first.classes[0] == 'airplane' and first.mean[0] == 0.4914
    assert os.listdir(tmp_path / 'new' / 'folder') == ['cifar10.npz']
    (tmp_path / 'file').touch()
    assert 'name another data folder' in message('cifar10', tmp_path / 'file')


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A tiny archive in the official layout behind torchvision's CIFAR10: (class, its path)."""
    kind = import_torchvision().datasets.CIFAR10
    batch = {'data': (np.arange(4 * 3072) % 251).reshape(4, -1), 'labels': [3, 1, 4, 1]}
    (tmp_path / 'host').mkdir()
    path = tmp_path / 'host' / kind.filename
    md5s = {}
    with tarfile.open(path, 'w:gz') as tar:
        for name, content in {'one': batch, 'test_batch': batch, 'batches.meta': {}}.items():
            content = pickle.dumps(content or {'label_names': []})
            entry = tarfile.TarInfo(f'{kind.base_folder}/{name}')
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
            md5s[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(kind, 'url', path.as_uri())
    monkeypatch.setattr(kind, 'tgz_md5', hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(kind, 'train_list', [['one', md5s['one']]])
    monkeypatch.setattr(kind, 'test_list', [['test_batch', md5s['test_batch']]])
    monkeypatch.setattr(kind, 'meta', kind.meta | {'md5': md5s['batches.meta']})
    monkeypatch.setattr(download, 'from_npm', lambda: (_ for _ in ()).throw(OSError('no npm')))
    (tmp_path / 'root').mkdir()
    return kind, path


def test_archive_is_downloaded_once(tmp_path, official, capsys):
    kind, path = official
    root = tmp_path / 'root'
    (root / kind.filename).write_bytes(b'half of it')
    got = download.fetch_cifar('cifar10', root)
    assert 'fetching it anew' in capsys.readouterr().err
    assert got['x_train'].shape == (4, 32, 32, 3) and got['y_test'].tolist() == [3, 1, 4, 1]
    assert got['x_train'][0, 0, 1].tolist() == [1, 1025 % 251, 2049 % 251]
    path.unlink()
    again = download.fetch_cifar('cifar10', root)
    np.testing.assert_array_equal(again['x_test'], got['x_test'])


def test_wrong_archive_is_not_kept(tmp_path, official, monkeypatch):
    kind = official[0]
    monkeypatch.setattr(kind, 'tgz_md5', '0' * 32)
    assert 'wrong md5' in message('cifar10', tmp_path / 'root')
    assert os.listdir(tmp_path / 'root') == []


def test_slow_host_is_given_up(tmp_path, official, monkeypatch):
    monkeypatch.setattr(download, 'SLOW_AFTER', 0)
    monkeypatch.setattr(download, 'SLOW_RATE', 1e15)
    assert 'slow host' in message('cifar10', tmp_path / 'root')


def test_nothing_works(tmp_path, official, monkeypatch):
    official[1].unlink()
    text = message('cifar10', tmp_path / 'root')
    assert 'No such file' in text and 'no npm' in text
    assert f'{official[0].filename} into {tmp_path}/root' in text
    assert f'{tmp_path}/root/cifar10.npz with uint8 x_train' in text


def test_wrong_batch_is_refused():
    images = np.zeros((10, 32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match='test_batch has wrong md5'):
        download.verify_batch('test_batch', images, [0] * 10)
    with pytest.raises(ValueError, match='10 images but 9 labels'):
        download.verify_batch('test_batch', images, [0] * 9)


@pytest.mark.real_data
@pytest.mark.skipif('JAXCIFAR_DATA' not in os.environ, reason='JAXCIFAR_DATA is not set')
def test_real_cifar10_is_the_official_one():
    cifar = load_dataset(f'npz:{os.environ["JAXCIFAR_DATA"]}/cifar10.npz', 'unused')
    images = np.concatenate([cifar.x_train, cifar.x_test]).reshape(6, 10_000, 32, 32, 3)
    labels = np.concatenate([cifar.y_train, cifar.y_test]).reshape(6, 10_000)
    for name, x, y in zip(download.BATCH_MD5, images, labels):
        download.verify_batch(name, x, y)
