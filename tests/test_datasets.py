"""Data sets: what is accepted, what is refused and in which words, and how CIFAR arrives."""

import copy
import errno
import hashlib
import io
import os
import pickle
import shutil
import tarfile
import tempfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxcifar.data import datasets, download
from jaxcifar.data.arrays import mean_std
from jaxcifar.data.datasets import load_dataset
from jaxcifar.data.vision import import_torchvision
from jaxcifar.machine.errors import UserError
from jaxcifar.runs.resolve import finalize


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


def test_the_size_of_npz_images_is_theirs(config, tmp_path):
    np.savez(tmp_path / 'own.npz', **arrays(3, size=8))
    config.dataset = f'npz:{tmp_path}/own.npz'
    for size in None, 8:
        config.data.image_size = size
        finalize(copy.deepcopy(config))
    config.data.image_size = 64
    with pytest.raises(UserError, match=r'data\.image_size=64 is .*: leave it out for npz:.*another size'):
        finalize(config)
    config.dataset = f'npz:{tmp_path}/none.npz'
    finalize(config)  # to load it says what is wrong


def test_statistics_are_exact(monkeypatch):
    images = arrays(4, each=5)['x_train']
    whole = mean_std(images)
    monkeypatch.setattr('jaxcifar.data.arrays.COUNTED', 7)
    assert mean_std(images) == whole
    np.testing.assert_allclose(whole, [(images / 255).mean((0, 1, 2)), (images / 255).std((0, 1, 2))])


def test_npz_without_test_part_is_split_by_class(tmp_path):
    np.savez(tmp_path / 'own.npz', **arrays(3, each=10, size=8, x_test=None, y_test=None))
    own = load_dataset(f'npz:{tmp_path}/own.npz', 'unused')
    assert own.classes == ('0', '1', '2')
    assert np.bincount(own.y_train).tolist() == [8] * 3
    assert np.bincount(own.y_test).tolist() == [2] * 3


EIGHT = arrays(size=8)['x_train']  # 30 images
AS_UINT8 = 'x_train: expected uint8 of shape (n, H, H, 3), got '
AS_INTEGER = 'y_train: expected integers of shape (30,), got '


@pytest.mark.parametrize(
    'changes, complaint',
    [
        ({'x_train': None}, 'x_train is missing'),
        ({'y_test': None}, 'y_test is missing'),
        ({'x_test': np.zeros((5, 9, 9, 3), np.uint8)}, 'differ in size: 8 and 9 pixels'),
        ({'x_test': np.zeros((0, 8, 8, 3), np.uint8), 'y_test': np.zeros(0, int)}, '(0, 8'),
        ({'x_train': EIGHT[:20]}, 'y_train: expected integers of shape (20,), got uint8 of shape (30,)'),
        ({'y_train': np.array([1, 2] * 15), 'y_test': np.ones(5, int)}, 'got no image of 0'),
        ({'y_test': np.array([0, 1, 2, 3, 10])}, 'y_test: expected labels from 0 to 9'),
        ({'y_test': np.array([0, 1, 2, 3, -1])}, 'got -1 to 3'),
        ({'y_train': np.arange(30) / 2}, 'got float64 of shape (30,)'),
        ({'x_train': np.full((30, 8, 8, 3), np.nan)}, 'convert: replace the numbers that are not finite'),
        ({'x_train': np.array(['object', 1], object)}, 'got pickled Python objects; convert: np.array(x_tr'),
    ],
)
def test_bad_npz_is_refused(tmp_path, changes, complaint):
    np.savez(tmp_path / 'cifar10.npz', **arrays(size=8, **changes))
    for name in ('cifar10', f'npz:{tmp_path}/cifar10.npz'):
        text = message(name, tmp_path)
        assert text.startswith(f'{tmp_path}/cifar10.npz: ') and complaint in text


def test_what_can_be_converted_is_said_with_the_words_that_do_it(tmp_path):
    """The advice of each message is followed, and leads to the data set that was meant."""
    labels = arrays()['y_train']
    grey = np.repeat(EIGHT[..., :1], 3, 3)
    bad = {
        'x_train': [
            (EIGHT / 255, EIGHT), ((EIGHT / 255).astype(np.float32), EIGHT), (EIGHT.astype(float), EIGHT),
            (EIGHT.astype(int), EIGHT), (EIGHT.transpose(0, 3, 1, 2), EIGHT), (grey[..., 0], grey),
            (grey[..., :1], grey), (grey[..., 0] / 255, grey), (EIGHT.astype(np.uint16) * 257, EIGHT),
            ((EIGHT / 255).transpose(0, 3, 1, 2), EIGHT), (np.concatenate([EIGHT, grey[..., :1]], 3), EIGHT),
            (grey[..., 0][:, None], grey), (EIGHT.transpose(0, 3, 1, 2).reshape(30, -1), EIGHT),
        ],
        'y_train': [
            (labels[:, None], labels), (labels.astype(float), labels), (np.eye(10)[labels], labels),
            (labels[:, None].astype(float), labels),
        ],
    }  # fmt: skip
    path = tmp_path / 'own.npz'
    for key, cases in bad.items():
        for value, meant in cases:
            np.savez(path, **arrays(size=8, **{key: value}))
            text = message(f'npz:{path}')
            assert (
                f'{key}: expected ' in text and f'got {value.dtype} of shape {value.shape}; convert: ' in text
            )
            advice = text.partition('convert: ')[2].partition(' (create')[0].partition(', if')[0]
            converted = value
            for step in advice.replace(' if channels come first', '').split(', then '):
                converted = eval(step, {'np': np, key: converted})
            np.testing.assert_array_equal(converted, meant)
            np.savez(path, **arrays(size=8, **{key: converted}))
            np.testing.assert_array_equal(getattr(load_dataset(f'npz:{path}', ''), key), meant)


def test_the_keys_of_an_npz_are_named(tmp_path):
    np.savez(tmp_path / 'own.npz', EIGHT, arrays()['y_train'])
    text = message(f'npz:{tmp_path}/own.npz')
    assert 'x_train and y_train are missing: expected x_train and y_train, got arr_0, arr_1 (create' in text
    np.savez(tmp_path / 'own.npz', **arrays(size=8), x_val=EIGHT)
    assert load_dataset(f'npz:{tmp_path}/own.npz', '').notes == (f'{tmp_path}/own.npz: not used: x_val',)


@pytest.mark.parametrize('classes', [None, ['a', 'b', 'c']])
def test_labels_that_begin_at_1_are_told(tmp_path, classes):
    labels = arrays(3)['y_train'] + 1
    names = {'classes': classes} if classes else {}
    np.savez(tmp_path / 'own.npz', **arrays(3, size=8, y_train=labels, y_test=labels[:5]), **names)
    assert '; subtract 1 from all labels (' in message(f'npz:{tmp_path}/own.npz')


def test_a_damaged_header_is_one_line(tmp_path):
    path = tmp_path / 'own.npz'
    np.savez(path, **arrays(size=8))
    whole = path.read_bytes()
    for old, new in (
        (b"'descr'", b"'de\nr'"),
        (b'|u1', b'<q\xff'),
        (b'(30,', b'(3\n,'),
        (b'NUMPY', b'NUMPX'),
    ):
        path.write_bytes(whole.replace(old, new))
        text = message(f'npz:{path}')
        assert text.startswith(f'{path}: not a whole .npz file (') and len(text) < 600


def test_cifar_has_32_pixels_and_all_its_classes(tmp_path):
    np.savez(tmp_path / 'cifar100.npz', **arrays(100, size=28))
    assert '(300, 28, 28, 3)' in message('cifar100', tmp_path)
    np.savez(tmp_path / 'cifar100.npz', **arrays(99))
    assert 'got no image of 99 (worm)' in message('cifar100', tmp_path)


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
    (tmp_path / 'text.npz').write_text('no archive')
    assert 'not a whole .npz file (no zip archive of arrays)' in message(f'npz:{tmp_path}/text.npz')
    with zipfile.ZipFile(tmp_path / 'other.npz', 'w') as archive:
        archive.writestr('x_train', 'text')
        archive.writestr('y_train', 'text')
    assert 'x_train: expected an array, got other bytes' in message(f'npz:{tmp_path}/other.npz')
    np.savez(tmp_path / 'names.npz', **arrays(3, size=8), classes=['a', 'b', 'a'])
    assert 'expected a name for each class, got a 2 times' in message(f'npz:{tmp_path}/names.npz')
    assert 'no such file' in message(f'npz:{tmp_path}/none.npz')
    assert '~nobody-here/none.npz: no such file' in message('npz:~nobody-here/none.npz')


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
    assert 'a/0.png' in told and 'a/1.png' in told and '18 images of 20 files used' in told


def test_bad_folders_are_refused(tmp_path):
    assert f'{tmp_path}/none: No such file or directory; expected image files as' in message(
        f'folder:{tmp_path}/none'
    )
    for name in 'ab':
        (tmp_path / 'broken' / name).mkdir(parents=True)
        (tmp_path / 'broken' / name / '0.png').write_bytes(b'no image')
    assert 'none of the 2 images can be read' in message(f'folder:{tmp_path}/broken')


def test_fetched_cifar_is_kept(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(datasets, 'fetch_cifar', lambda *a: fetched.append(a) or arrays())
    first = load_dataset('cifar10', tmp_path / 'new' / 'folder')
    again = load_dataset('cifar10', tmp_path / 'new' / 'folder')
    assert len(fetched) == 1 and first.fingerprint() == again.fingerprint()
    assert first.classes[0] == 'airplane' and first.mean[0] == 0.4914
    assert os.listdir(tmp_path / 'new' / 'folder') == ['cifar10.npz']
    (tmp_path / 'file').touch()
    assert 'set JAXCIFAR_DATA to another folder' in message('cifar10', tmp_path / 'file')


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
    assert 'fetching it again' in capsys.readouterr().err
    assert got['x_train'].shape == (4, 32, 32, 3) and got['y_test'].tolist() == [3, 1, 4, 1]
    assert got['x_train'][0, 0, 1].tolist() == [1, 1025 % 251, 2049 % 251]
    path.unlink()
    again = download.fetch_cifar('cifar10', root)
    np.testing.assert_array_equal(again['x_test'], got['x_test'])
    # Nothing is unpacked where another run that starts now would look for it.
    assert os.listdir(root) == [kind.filename]


def test_a_read_only_folder_with_the_archive_is_used(tmp_path, official, monkeypatch, capsys):
    kind, path = official
    shutil.copy(path, tmp_path / 'root' / kind.filename)
    make = tempfile.TemporaryDirectory

    def refuse(dir=None, **options):
        if dir is not None:  # the tests may run as root, who may write anywhere
            raise OSError(errno.EROFS, 'Read-only file system')
        return make(**options)

    monkeypatch.setattr(tempfile, 'TemporaryDirectory', refuse)
    monkeypatch.setitem(datasets.CIFAR, 'cifar10', ('a b c d e', (0.5,) * 3, (0.2,) * 3))
    monkeypatch.setattr(download, '_arrays', lambda *a: arrays(5))
    assert len(load_dataset('cifar10', tmp_path / 'root').x_train) == 15
    told = capsys.readouterr().err
    assert told.startswith(f'warning: {tmp_path}/root/cifar10.npz: Read-only file system; ')


def test_wrong_archive_is_not_kept(tmp_path, official, monkeypatch):
    kind = official[0]
    monkeypatch.setattr(kind, 'tgz_md5', '0' * 32)
    assert f'expected md5 {"0" * 32}, got' in message('cifar10', tmp_path / 'root')
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
    with pytest.raises(ValueError, match='test_batch: expected the official md5'):
        download.verify_batch('test_batch', images, [0] * 10)
    with pytest.raises(ValueError, match='expected a label for each of 10 images, got 9'):
        download.verify_batch('test_batch', images, [0] * 9)


@pytest.mark.real_data
@pytest.mark.skipif('JAXCIFAR_DATA' not in os.environ, reason='JAXCIFAR_DATA is not set')
def test_real_cifar10_is_the_official_one():
    cifar = load_dataset(f'npz:{os.environ["JAXCIFAR_DATA"]}/cifar10.npz', 'unused')
    images = np.concatenate([cifar.x_train, cifar.x_test]).reshape(6, 10_000, 32, 32, 3)
    labels = np.concatenate([cifar.y_train, cifar.y_test]).reshape(6, 10_000)
    for name, x, y in zip(download.BATCH_MD5, images, labels):
        download.verify_batch(name, x, y)
