"""Images that stay on disk: what is drawn for them, what stands in for broken ones, and whole runs."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from configs import base, ternary
from experiments.faults import networks
from jaxcifar import main
from jaxcifar.data.datasets import load_dataset
from jaxcifar.data.loader import in_order
from jaxcifar.data.stream import Reader
from jaxcifar.data.vision import import_torchvision
from jaxcifar.evaluate import evaluate
from jaxcifar.loop import train
from jaxcifar.machine.errors import UserError
from jaxcifar.predict import predict
from jaxcifar.runs.resolve import finalize
from tests.processes import assert_same
from tests.test_loader import load, same

CLASSES, EACH = ('n01', 'n02', 'n03', 'n04'), 12
BROKEN = ('train/n02/11.jpg', 'train/n03/04.jpg', 'val/n01/00.jpg')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """JPEG files of many sizes in torchvision's layout of ImageNet; `BROKEN` are cut off or no images."""
    top, rng = tmp_path_factory.mktemp('imagenet'), np.random.default_rng(0)
    for part, count in (('train', EACH), ('val', 4)):
        for label, name in enumerate(CLASSES):
            (top / part / name).mkdir(parents=True)
            for i in range(count):
                grid = rng.integers(0, 120, (4, 4, 3), np.uint8) + np.uint8(40 * label)
                image = Image.fromarray(grid).resize(rng.integers(12, 60, 2).tolist())
                image.convert('L' if i == 1 else 'RGB').save(top / part / name / f'{i:02}.jpg')
    for name in BROKEN[:2]:
        (top / name).write_bytes((top / name).read_bytes()[:400])
    (top / BROKEN[2]).write_text('no image')
    return top


@pytest.fixture
def config(folder):
    """Batches of 20 of the folder's images, at 8 pixels."""
    c = base.get_config()
    c.dataset, c.data.image_size, c.batch_size, c.devices = f'stream:{folder}', 8, 20, 1
    return c


def read(files, indices, **options):
    """One batch of the files, without workers."""
    reader = Reader(files, [np.arange(len(files))], **options)
    return files.noted(reader.__getitems__((0, np.array(indices))))['image']


@pytest.mark.parametrize('order', ['shared', 'member'])
def test_batches_do_not_depend_on_the_workers(config, folder, order):
    config.members, config.data.order = 2, order
    dataset = load_dataset(config.dataset, '', 8)
    here = load(config, dataset, range(7))
    shape = (20, 8, 8, 3) if order == 'shared' else (2, 20, 8, 8, 3)
    assert here[0]['image'].shape == shape and here[0]['image'].dtype == np.uint8
    config.data.workers = 2
    assert same(here, load(config, dataset, range(7)))
    if order == 'member':
        config.members, config.member_ids, config.data.workers = 1, 1, 0
        alone = load(config, dataset, range(7))
        assert all((a['image'][0] == b['image'][1]).all() for a, b in zip(alone, here))


def test_draws_are_torchvisions_and_of_seed_epoch_and_index_alone(folder):
    """Against its older transforms, seeded by hand; torch's own generator is left as it was."""
    import torch

    transforms = import_torchvision().transforms
    reference = transforms.Compose([transforms.RandomResizedCrop(8), transforms.RandomHorizontalFlip()])
    files = load_dataset(f'stream:{folder}', '', 8).x_train
    reader = Reader(files, [np.arange(len(files))], seeds=[(5,)])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    images = reader.__getitems__((3, np.array([7, 2, 7])))['image']
    assert (torch.get_rng_state() == before).all()
    for index, image in zip((7, 2), images):
        torch.manual_seed(int(np.random.SeedSequence((5, 3, index)).generate_state(1)[0]))
        with Image.open(files.path(index)) as opened:
            np.testing.assert_array_equal(image, np.asarray(reference(opened.convert('RGB'))))
    assert (images[0] == images[2]).all()
    others = [reader.__getitems__((4, np.array([7])))['image'], read(files, [7], seeds=[(6,)])]
    assert not any((images[0] == other[0]).all() for other in others)


@pytest.mark.parametrize(('size', 'shorter'), [(224, 256), (8, 9)])
def test_evaluation_is_resize_and_center_crop(folder, size, shorter, capsys):
    transforms = import_torchvision().transforms
    reference = transforms.Compose([transforms.Resize(shorter), transforms.CenterCrop(size)])
    files = load_dataset(f'imagenet:{folder}', '', size).x_test
    parts = list(in_order(files, 6, 0))
    assert [len(part) for part in parts] == [6, 6, 4]
    expected = []
    for i in range(len(files)):
        with Image.open(files.path(max(i, 1))) as image:  # 1 stands in for 0, which is broken
            expected.append(np.asarray(reference(image.convert('RGB'))))
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    told = capsys.readouterr().err
    assert told.count('\n') == 1 and f'{folder}/{BROKEN[2]} (cannot identify image)' in told


def test_a_broken_image_is_replaced_by_the_next_of_its_class_that_may_be_seen(folder, capsys):
    files = load_dataset(f'stream:{folder}', '', 8).x_train
    in_class = {name: EACH * CLASSES.index(name) for name in CLASSES}
    last, middle = in_class['n02'] + 11, in_class['n03'] + 4
    images = read(files, [last, middle, last])
    np.testing.assert_array_equal(images, read(files, [in_class['n02'], middle + 1, in_class['n02']]))
    told = capsys.readouterr().err
    assert all(told.count(name) == 1 for name in BROKEN[:2])
    visible = np.array([in_class['n02'] + 3, last, middle])
    alone = files.noted(Reader(files, [visible]).__getitems__((0, visible[1:2])))['image']
    np.testing.assert_array_equal(alone, read(files, visible[:1]))
    pools = [visible, np.array([last, in_class['n02'] + 5])]  # of two members, who see other images
    request = 0, np.array([[last], [last]])
    of_two = Reader(files, pools, [(0,), (1,)]).__getitems__(request)['image']
    for k, pool in enumerate(pools):
        single = Reader(files, [pool], [(k,)]).__getitems__((0, request[1][k]))['image']
        np.testing.assert_array_equal(of_two[k], single)
    with pytest.raises(UserError, match=r'no image of the class of .*n03/04\.jpg can be read: .'):
        files.noted(Reader(files, [visible]).__getitems__((0, visible)))


@pytest.fixture(scope='module')
def run(folder, tmp_path_factory):
    """(folder of runs, results) of a run in `whole`, as a command line asks for it."""
    runs = tmp_path_factory.mktemp('runs')
    fields = {'dataset': f'stream:{folder}', 'network': 'tiny', 'data.image_size': 8, 'devices': 1,
              'epochs': 2, 'batch_size': 16, 'data.validation_size': 8, 'eval.batch_size': 8,
              'optimizer.lr': 0.02, 'checkpoint.every_steps': 1, 'checkpoint.keep': 9,
              'log.tensorboard': False}  # fmt: skip
    argv = ['main', '--config=configs/base.py', f'--workdir={runs / "whole"}']
    with pytest.MonkeyPatch.context() as patch, networks.registered():
        argv += [f'--config.{name}={value}' for name, value in fields.items()]
        patch.setattr('sys.argv', argv)  # ml_collections looks there
        config, workdir = main.parse(argv)
        lines: list[str] = []
        patch.setattr('jaxcifar.runs.console.Console.say', lambda self, line: lines.append(line))
        yield config, workdir, train(config, workdir), lines


def test_a_run_taken_up_in_mid_epoch_ends_the_same(run, tmp_path, capsys):
    """40 images in batches of 16: step 4 is the first of the second epoch; with workers from there."""
    config, workdir, _, lines = run
    assert '3 of 64 images could not be read and were replaced' in lines
    assert any(line.startswith('8 of 64 images were converted to 8-bit RGB (grey 8)') for line in lines)
    assert f'{config.dataset[7:]}: train/ is the training part, val/ is the test part' in lines
    # The pictures are read from the files too.
    assert (workdir / 'pictures' / 'first_batch.png').exists()
    again = config.copy_and_resolve_references()
    again.resume_from, again.data.workers, again.log.pictures = f'{workdir}@4', 2, False
    train(again, tmp_path)
    told = capsys.readouterr().err.splitlines()
    assert 0 < len(told) == len(set(told)) and all(any(name in line for name in BROKEN) for line in told)
    assert_same(tmp_path, workdir)


def test_evaluate_and_predict_read_as_the_run_did(run, folder):
    _, workdir, results, _ = run
    found = evaluate(workdir, 'best', 'test', flip=False)
    assert found['mean'] == pytest.approx(results['mean']['best'])
    assert evaluate(workdir, 'best', 'train', flip=False)['images'] == 40
    # Files that come alone are cut in the same way.
    alone = evaluate(workdir, 'best', test_images=f'folder:{folder}/val')
    assert alone['members'] == found['members'] and alone['images'] == 16
    paths = sorted((folder / 'val').glob('*/*.jpg'))
    paths[0] = paths[1]  # as the evaluation does
    predictions = predict(workdir, paths)
    right = [p.label == path.parent.name for p, path in zip(predictions, paths)]
    assert predictions.classes == CLASSES and np.mean(right) == found['mean']['accuracy']


def test_other_files_are_another_data_set(run, folder, tmp_path):
    """Told by names and sizes, in whichever folder."""
    _, workdir, _, _ = run
    copy = shutil.copytree(folder, tmp_path / 'copy')
    said = json.loads((workdir / 'dataset.json').read_text())['sha256']
    assert load_dataset(f'imagenet:{copy}', '', 8).fingerprint() == said
    path = copy / 'val' / 'n04' / '03.jpg'
    path.write_bytes(path.read_bytes() + b'\0')
    assert load_dataset(f'imagenet:{copy}', '', 8).fingerprint() != said


def test_a_single_tree_is_split_by_class(folder):
    dataset = load_dataset(f'stream:{folder}/train', '', 8)
    names = {n for files in (dataset.x_train, dataset.x_test) for n in files.names}
    assert (len(dataset.x_train), len(dataset.x_test), len(names)) == (38, 10, 48)
    assert set(np.bincount(dataset.y_test)) <= {2, 3}


def test_what_is_set_for_streams_and_refused(config, tmp_path):
    assert finalize(config).augment == 'none' and config.data.image_size == 8
    config.dataset, config.data.image_size = 'imagenet:x', None
    assert finalize(config).data.image_size == 224
    for name, stem in ('imagenet:x', 'imagenet'), ('stream:x', ''):
        c = ternary.get_config(f'resnet18,{name}')
        assert (c.augment, c.data.workers, c.model.stem) == ('cutmix(1.0,.5)', 4, stem)
    config.data.loader = 'device'
    with pytest.raises(UserError, match=r'set data\.loader=host for imagenet:x'):
        finalize(config)
    with pytest.raises(UserError, match=r'No such file.*; expected image files as'):
        load_dataset(f'stream:{tmp_path}/none', '', 8)


def test_a_second_thread_changes_no_training_image(folder):
    """Reading draws from torch's one global generator."""
    files = load_dataset(f'stream:{folder}', '', 8).x_train
    indices = np.array([i for i in range(len(files)) if not files.path(i).endswith(BROKEN)])
    readers = [Reader(files, [indices], [(seed,)]) for seed in (0, 1)] * 4
    alone = readers[0].__getitems__((0, indices))['image']
    with ThreadPoolExecutor(2) as pool:
        batches = list(pool.map(lambda reader: reader.__getitems__((0, indices))['image'], readers))
    for batch in batches[::2]:
        np.testing.assert_array_equal(batch, alone)
