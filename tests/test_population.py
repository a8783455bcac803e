"""K networks in one step are K single runs; devices change where things happen, not what."""

import copy
import csv
import re

import jax
import numpy as np
import pytest

from jaxcifar.engine import state
from jaxcifar.engine.population import check_batch, make_mesh
from jaxcifar.engine.side_by_side import choose, stack, unstack
from jaxcifar.loop import train
from jaxcifar.machine.errors import UserError
from jaxcifar.models import build, convolution
from jaxcifar.runs.resolve import finalize
from tests.steps import Run, distance, run_steps


@pytest.fixture
def smooth(monkeypatch):
    """No kinks: at a ReLU's, rounding decides a gradient, and programs that round apart drift apart."""
    monkeypatch.setattr('flax.linen.relu', jax.nn.silu)


@pytest.fixture
def config(config, tiny_networks):
    """What holds for a network of few layers holds for all."""
    config.network = 'tiny'
    return config


@pytest.mark.parametrize('order', ['shared', 'member'])
def test_members_of_a_population_equal_single_runs(config, dataset, order):
    config.data.order, config.model.dropout = order, 0.2
    config.members = 3
    config.optimizer.lr = (0.02, 0.01, 0.005)
    config.optimizer.clip = 1.0
    together, losses, step = run_steps(config, dataset)
    assert step._cache_size() == 1  # one batch shape, traced once
    assert distance(together[0], together[1]) > 1e-3
    for k in range(3):
        alone = copy.deepcopy(config)
        alone.members, alone.member_ids, alone.optimizer.lr = 1, k, config.optimizer.lr[k]
        single, loss, _ = run_steps(alone, dataset)
        assert distance(single[0], together[k]) <= 1e-6
        np.testing.assert_allclose(loss[:, 0], losses[:, k], atol=1e-6)


def test_a_seed_per_member_is_the_single_run_of_that_seed(config, dataset):
    config.data.order = 'member'
    config.members, config.seed = 2, (7, 11)
    together, _, _ = run_steps(config, dataset)
    for k, seed in enumerate((7, 11)):
        alone = copy.deepcopy(config)
        alone.members, alone.seed = 1, seed
        assert distance(run_steps(alone, dataset)[0][0], together[k]) <= 1e-6


def test_different_networks_train_side_by_side(smooth, config, dataset):
    config.network = 'tiny+linear+tiny'
    mixed, losses, _ = run_steps(config, dataset, steps=2)
    config.network, config.members = 'tiny', 3
    same, expected, _ = run_steps(config, dataset, steps=2)
    assert distance(mixed[0], same[0]) <= 1e-6 and distance(mixed[2], same[2]) <= 1e-6
    np.testing.assert_allclose(losses[:, [0, 2]], expected[:, [0, 2]], atol=1e-6)


@pytest.mark.parametrize(('members', 'devices', 'mesh'), [
    (1, 4, (1, 4)), (2, 4, (2, 2)), (4, 4, (4, 1)), (3, 4, (1, 4)), (6, 4, (2, 2)),
])  # fmt: skip
def test_four_devices_equal_one(config, dataset, members, devices, mesh):
    config.members = members
    one, losses, _ = run_steps(config, dataset, steps=2)
    config.devices = devices
    assert tuple(make_mesh(finalize(copy.deepcopy(config))).shape.values()) == mesh
    four, sharded_losses, _ = run_steps(config, dataset, steps=2)
    np.testing.assert_allclose(losses, sharded_losses, atol=1e-5)
    for k in range(members):
        assert distance(one[k], four[k]) <= 1e-5


@pytest.mark.parametrize(('network', 'devices', 'mesh', 'each'), [
    ('tiny', 4, (1, 4), False), ('tiny+tiny', 4, (2, 2), True), ('tiny+tiny+tiny+tiny', 4, (4, 1), True),
    ('tiny+tiny+tiny', 2, (1, 2), False), ('tiny+linear+tiny+linear', 4, (2, 2), True),
])  # fmt: skip
def test_members_that_teach_each_other_on_many_devices_equal_one(
    tiny_networks, config, dataset, network, devices, mesh, each
):
    """Without momentum and at a learning rate of 1, the first step is the gradient as it is."""
    config.network, config.coupling, config.mutual.temperature = network, 'mutual', 2.0
    config.augment, config.augment_each = 'flip', each
    config.optimizer.lr, config.optimizer.momentum = 1.0, 0.0
    one = Run(config, dataset)
    config.devices = devices
    many = Run(config, dataset)
    assert tuple(many.mesh.shape.values()) == mesh
    steps = one.compiled(), many.compiled()
    for batch, shards in zip(one.batches(4), many.batches(4)):
        one.state, row = steps[0](one.state, batch)
        many.state, row_of_many = steps[1](many.state, shards)
        assert distance(many.weights(), one.weights()) <= 1e-5
        assert distance(row_of_many, row) <= 1e-5


OWN = {'data.order': 'member', 'model.dropout': 0.2}
TWN = {'view': 'ternary', 'ternary.layers': 'conv1'}
TTQ = TWN | {'ternary.rule': 'ttq', 'coupling': 'mutual'}
FOUR = {'members': 4, 'devices': 4}


@pytest.mark.parametrize(('network', 'way', 'changes'), [
    ('resnet8', 'one', {}), ('tiny', 'grouped', OWN | TWN),
    ('tiny', 'dense', TTQ), ('tiny', 'one', {'coupling': 'fusion'}), ('tiny+linear+tiny', 'dense', OWN),
    ('tiny', 'dense', OWN | FOUR), ('tiny', 'grouped', OWN | FOUR | {'sync_norm': False}),
])  # fmt: skip
def test_members_in_one_convolution_equal_members_in_turns(
    smooth, monkeypatch, config, dataset, network, way, changes
):
    monkeypatch.setattr(convolution, 'DENSE_CHANNELS', 100)  # some layers of three ResNet-8, but not all
    config.network, config.members = network, 3
    config.update_from_flattened_dict(changes)
    turns, losses, _ = run_steps(config, dataset, steps=3)
    config.members_as = way
    together, their_losses, _ = run_steps(config, dataset, steps=3)
    assert distance(together, turns) <= 1e-5
    np.testing.assert_allclose(their_losses, losses, atol=1e-5)


def test_members_side_by_side_take_the_convolutions_of_one(config, dataset):
    """Forward and backward; the form of each is its width's."""
    config.network = 'resnet8'

    def convolutions(members, way):
        config.members, config.members_as = members, way
        run = Run(config, dataset)
        traced = run.compiled().trace(run.state, next(run.batches(1)))
        text = traced.lower(lowering_platforms=('cuda',)).as_text()
        groups = [int(g) for g in re.findall(r'stablehlo.convolution.*?feature_group_count = (\d+)', text)]
        return len(groups), max(groups)

    count, _ = convolutions(1, 'auto')
    assert convolutions(8, 'dense') == (count, 1)
    assert convolutions(8, 'one') == (count, 8)
    assert convolutions(4, 'one') == (count, 1)


def test_narrow_networks_are_side_by_side_on_a_gpu_alone():
    narrow, wide = build('resnet8', 4), build('resnet18', 4)
    assert choose('auto', narrow, 3, 'gpu') == 'one'
    cases = (
        ('auto', wide, 3, 'gpu'),
        ('auto', narrow, 1, 'gpu'),
        ('auto', narrow, 3, 'cpu'),
        ('one', narrow, 1, 'cpu'),
    )
    assert {choose(*case) for case in cases} == {'loop'}


def test_local_batch_statistics_are_a_choice(config, dataset):
    config.devices = 4
    synced, _, _ = run_steps(config, dataset, steps=1)
    config.sync_norm = False
    local, _, _ = run_steps(config, dataset, steps=1)
    assert distance(synced, local) > 1e-5


def test_what_does_not_divide_is_said(config):
    config.devices, config.batch_size = 4, 30
    with pytest.raises(
        UserError, match=r'batch_size must be a multiple of 4 .*, got 30: set batch_size=28 or 32'
    ):
        check_batch(config, make_mesh(finalize(config)))


def test_parts_of_a_batch_give_the_gradient_of_the_whole(tiny_networks, config, dataset):
    """Without batch norm, accumulation changes nothing but memory."""
    config.network, config.optimizer.clip = 'linear', 0.5
    config.augment = 'flip+mixup(1.0,per="image")'
    whole, losses, _ = run_steps(config, dataset)
    config.optimizer.accumulate = 4
    parts, parts_losses, _ = run_steps(config, dataset)
    assert distance(whole, parts) <= 1e-6
    np.testing.assert_allclose(losses, parts_losses, atol=1e-6)
    # Members with their own augmentation of the images share the labels.
    config.augment, config.augment_each, config.members = 'flip', True, 2
    parts, _, _ = run_steps(config, dataset)
    config.optimizer.accumulate = 1
    assert distance(run_steps(config, dataset)[0], parts) <= 1e-6


def test_stopped_members_stay_as_they_are(config, tmp_path):
    """With a learning rate of 0 nothing improves: that member stops first, the others go on."""
    config.members, config.epochs, config.ema = 2, 9, 0.5
    config.optimizer.lr = (0.0, 0.03)
    config.optimizer.weight_decay = 0.0
    config.augment = 'none'
    config.early_stopping.patience = 2
    config.early_stopping.min_epochs = 1
    train(config, tmp_path)
    with open(tmp_path / 'metrics.csv') as file:
        rows = [r for r in csv.DictReader(file) if r['split'] == 'validation']
    still = [r for r in rows if r['member'].startswith('0')]
    stop = next(i for i, r in enumerate(still) if r['patience'] == '2')
    assert 2 <= stop < len(still) - 1  # not before epoch 3: patience counts after min_epochs
    # Batch statistics and the average are frozen too, or these would change.
    assert len({(r['loss'], r['patience'], r['best']) for r in still[stop:]}) == 1
    moving = [r['loss'] for r in rows if r['member'].startswith('1')]
    assert len(set(moving)) == len(moving)


def test_stack_and_unstack_are_inverse():
    trees = [{'a': np.full((2, 3), k, np.float32)} for k in range(3)]
    for tree, again in zip(trees, unstack(stack(trees)), strict=True):
        np.testing.assert_array_equal(tree['a'], again['a'])


def test_kernels_in_the_order_of_cudnn_change_nothing(monkeypatch, config, dataset, tmp_path):
    """Their memory is given away and used again, and a run that goes on is the run that never stopped."""
    config.members, config.schedule.name, config.ema = 2, 'constant', 0.9
    kept, weights, order = [], [], []
    for plain in (('cpu',), ()):
        monkeypatch.setattr(state, 'PLAIN', plain)
        run = Run(config, dataset)
        (batch,) = run.batches(1)
        program = run.compiled().lower(run.state, batch).compile()
        kept.append(program.memory_analysis().alias_size_in_bytes)
        run.state, _ = program(run.state, batch)
        weights.append(run.weights())
        (kernel,) = (x for x in jax.tree.leaves(run.state.params) if x.ndim == 5)
        order.append(kernel.format.layout.major_to_minor)
    assert order == [(0, 1, 2, 3, 4), (0, 4, 1, 2, 3)]
    assert kept[0] == kept[1] > 0
    assert distance(*weights) <= 1e-6

    def metrics(name, epochs):
        config.epochs = epochs
        train(config.copy_and_resolve_references(), tmp_path / name)
        return [r for r in (tmp_path / name / 'metrics.csv').read_text().splitlines() if r.startswith('2,')]

    metrics('stopped', 1)
    assert metrics('stopped', 2) == metrics('undisturbed', 2)
