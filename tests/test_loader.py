"""Batches are functions of the seed and the step; a loader only moves their bytes."""

import copy
import sys
from multiprocessing import spawn
from types import ModuleType, SimpleNamespace

import jax
import numpy as np
import pytest

from jaxcifar.data import gather
from jaxcifar.data.loader import Order, batches, prefetch
from jaxcifar.data.splits import evaluation_images, make_split
from jaxcifar.engine.population import Population, make_mesh
from jaxcifar.machine.errors import UserError
from jaxcifar.runs.resolve import finalize


def load(config, dataset, steps: range, train=None) -> list[dict[str, np.ndarray]]:
    """The batches of some steps, fetched to the host."""
    config = finalize(copy.deepcopy(config))
    mesh = make_mesh(config)
    population = Population(config, dataset.num_classes, dataset.image_size, mesh)
    train = np.arange(len(dataset.y_train)) if train is None else train
    order = Order(config, train, mesh.shape['data'])
    return [jax.device_get(b) for b in batches(config, dataset, order, population.mesh, steps)]


def same(a: list[dict], b: list[dict]) -> bool:
    """Equal to the bit."""
    pairs = [(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in ('image', 'label', 'index')]
    return all(x.dtype == y.dtype and x.shape == y.shape and (x == y).all() for x, y in pairs)


@pytest.mark.parametrize('order', ['shared', 'member'])
@pytest.mark.parametrize('devices', [1, 4])
def test_both_loaders_give_the_same_bits(config, dataset, order, devices):
    config.members, config.devices, config.data.order = 2, devices, order
    config.batch_size = 40  # 96 images: 40, 40 and 16
    host = load(config, dataset, range(7))
    config.data.loader = 'device'
    device = load(config, dataset, range(7))
    assert same(host, device)
    assert host[0]['image'].dtype == np.uint8
    for name, array in (('image', dataset.x_train), ('label', dataset.y_train)):
        np.testing.assert_array_equal(host[4][name], array[host[4]['index']])
    assert host[2]['label'].shape == ((16,) if order == 'shared' else (2, 16))


def test_images_in_memory_need_no_worker_processes(config, dataset, monkeypatch):
    """Each would get a copy of them all."""
    here = load(config, dataset, range(3))
    config.data.workers = 1
    monkeypatch.setattr(gather, 'WorkerContext', None)
    assert same(here, load(config, dataset, range(3)))


def test_a_run_taken_up_in_mid_epoch_sees_the_next_batch(config, dataset):
    assert same(load(config, dataset, range(8))[5:], load(config, dataset, range(5, 8)))


def test_every_image_once_an_epoch_and_in_a_new_order(config, dataset):
    first, second = load(config, dataset, range(3)), load(config, dataset, range(3, 6))
    for epoch in (first, second):
        images = np.concatenate([b['image'] for b in epoch])
        assert len(np.unique(images.reshape(96, -1), axis=0)) == 96
    assert not same(first, second)
    config.seed = 1
    assert not same(first, load(config, dataset, range(3)))


def test_members_with_their_own_images(config, dataset):
    """Splits of shape [K,n] give [K,B,...] batches, each from its member's images alone."""
    config.members = 2
    train = np.array([np.arange(48), np.arange(48, 96)])
    batch = load(config, dataset, range(1), train)[0]
    assert batch['image'].shape == (2, 32, 8, 8, 3)
    for own, images in zip(train, batch['image']):
        known = {image.tobytes() for image in dataset.x_train[own]}
        assert {image.tobytes() for image in images} <= known


def test_drop_last_and_too_few_images(config, dataset):
    config.batch_size, config.data.drop_last = 40, True
    assert [len(b['label']) for b in load(config, dataset, range(4))] == [40] * 4
    config.batch_size = 97
    with pytest.raises(UserError, match='expected 97 training images or more, a batch, got 96'):
        load(config, dataset, range(1))


def test_a_last_batch_is_trimmed_to_the_devices(config):
    config.devices = 4
    order = Order(finalize(config), np.arange(70), 4)
    assert [len(order.indices(i)) for i in range(3)] == [32, 32, 4] and order.trimmed == 2


@pytest.mark.parametrize(('log', 'lengths'), [(0, [3, 3]), (2, [2, 1, 1, 2])])
def test_a_call_takes_as_many_steps_as_fit(config, log, lengths):
    """Every 2 steps there is a row to write, and every 3 an epoch ends."""
    config.steps_per_call, config.log.every_steps = 100, log
    order = Order(finalize(config), np.arange(96), 1)
    assert [len(call) for call in order.calls(config, 0, 6)] == lengths


def test_the_prefetching_thread_ends_and_passes_on_its_error():
    import threading

    def source():
        yield from range(3)
        raise OSError('disk gone')

    stream = prefetch(source(), lambda item: item)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match='disk gone'):
        next(stream)
    endless = prefetch(iter(int, 1), lambda item: item)
    next(endless)
    endless.close()
    assert not [t for t in threading.enumerate() if t.name == 'prefetch']


def test_a_worker_does_not_run_the_users_program(monkeypatch):
    told = []
    what = spawn.get_preparation_data
    monkeypatch.setattr(
        gather.ForkServerProcess, 'start', lambda self: told.append(what(self.name)), raising=False
    )
    program = ModuleType('__main__')
    program.__file__ = 'train.py'
    monkeypatch.setitem(sys.modules, '__main__', program)
    assert {'init_main_from_name', 'init_main_from_path'} & {*what('plain')}
    gather.WorkerContext().Process(target=print).start()
    assert told and not {'init_main_from_name', 'init_main_from_path'} & {*told[0]}
    assert sys.modules['__main__'] is program


def test_training_images_are_copied_only_to_be_evaluated(config, dataset):
    images = evaluation_images(dataset, make_split(dataset, config))
    assert images['test'].images is dataset.x_test
    assert 'images' not in vars(images['train'])  # not made yet
    train = images['train'].images
    assert train is images['train'].images  # the evaluation knows by it what is on the devices
    np.testing.assert_array_equal(train, dataset.x_train[images['train'].indices])


def test_held_out_images_are_stratified_and_not_trained_on(config):
    labels = np.repeat(np.arange(5), 20)
    dataset = SimpleNamespace(y_train=labels, y_val=None, classes=('cat', 'dog', 'emu', 'fox', 'gnu'))
    config.data.validation_size = 0.1
    split = make_split(dataset, config)
    assert sorted([*split.train, *split.validation]) == list(range(100))
    assert (np.bincount(labels[split.validation]) == 2).all()
    config.seed = 5  # the run's seed does not move the split
    np.testing.assert_array_equal(make_split(dataset, config).validation, split.validation)
    for validation in ('none', 'test'):
        config.data.validation = validation
        assert len(make_split(dataset, config).train) == 100
    config.data.validation = 'holdout'
    few = SimpleNamespace(y_train=np.append(labels, 5), y_val=None, classes=(*dataset.classes, 'hen'))
    of_both = 'expected each of 5 classes in both parts, got'
    for images, size, words in (
        (
            dataset,
            99,
            f'{of_both} 1 and 99 images for them; set it to 5 to 95 images, or set data',
        ),
        (dataset, 0.0, f'{of_both} 100 and 0 images'),
        (dataset, 0.03, f'{of_both} 97 and 3 images'),
        (
            few,
            9,
            'class hen: expected 2 images or more, got 1; add images of it, or set data',
        ),
    ):
        config.data.validation_size = size
        with pytest.raises(UserError, match=f'cannot hold out data.validation_size={size:g}: {words}'):
            make_split(images, config)
    config.data.validation_size = 5
    assert len(make_split(dataset, config).validation) == 5
